"""The page that examples/digits_capsnet.py writes: look at digits, move their capsules, follow the votes.

One file with everything in it: open it in any browser, it needs no network. The browser runs the trained decoder
itself, so that every component of every capsule can be moved.
"""

import base64
import json
from pathlib import Path

import torch
from torch import Tensor

import purenn as pn
from purenn.layers import conv2d, dynamic_routing, primary_capsules
from purenn.models import CapsNet, capsnet

TEMPLATE = Path(__file__).with_name("_digits_page.html")


def write_page(
    path: Path,
    params: CapsNet,
    images: Tensor,
    targets: Tensor,
    *,
    difficulty: Tensor,
    facts: dict[str, str],
    picture: Path,
) -> None:
    """Write the page of a trained network and some images.

    Args:
        path: of the file.
        params: the network, with its decoder.
        images: with values in [0, 1], ``[count, 1, height, width]``.
        targets: their classes, ``[count]``.
        difficulty: how hard each is, ``[count]``; the largest are shown first.
        facts: what is said of the network at the top.
        picture: a file in the format PNG, which is shown at the end.
    """
    with torch.no_grad():
        poses, shares = capsnet(params, images).poses, couplings(params, images)
    data = {
        "size": list(images.shape[-2:]),
        "images": _bytes((255 * images).round().to(torch.uint8)),
        "targets": targets.tolist(),
        "difficulty": [round(number, 4) for number in difficulty.tolist()],
        "poses": _bytes(poses.float()),
        "shape": list(poses.shape[1:]),
        "couplings": _bytes((65535 * shares).round().to(torch.uint16)),
        "inputs": shares.shape[-1],
        "decoder": [
            {"weight": _bytes(layer.weight.float()), "bias": _bytes(layer.bias.float())} for layer in params.decoder
        ],
        "facts": facts,
    }
    # In a script element only "<" could end it.
    text = json.dumps(data).replace("<", "\\u003c")
    page = TEMPLATE.read_text().replace("{{data}}", text)
    path.write_text(page.replace("{{picture}}", base64.b64encode(picture.read_bytes()).decode()))


def couplings(params: CapsNet, images: Tensor) -> Tensor:
    """Which share of its vote every primary capsule gives to every class in the last iteration.

    Returns:
        ``[count, classes, in_caps]``, with sum 1 over the classes.
    """
    weight = params.classes.weight
    u = primary_capsules(params.primary, conv2d(params.conv, images).relu())
    agreed = torch.zeros(weight.shape[0], weight.shape[2], device=images.device)
    for iterations in range(1, params.classes.iterations):
        agreed = agreed + pn.vmap(lambda u, n=iterations: dynamic_routing(weight, u, iterations=n))(u)
    votes = torch.einsum("oidk,nik->noid", weight, u)
    return (votes * agreed[..., None, :]).sum(-1).softmax(-2)


def _bytes(numbers: Tensor) -> str:
    return base64.b64encode(numbers.cpu().contiguous().numpy().tobytes()).decode()
