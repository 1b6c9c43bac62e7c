"""The bridge: applying a ResNet-18 purely, converted and opaque, against the module's own eager call.

python tests/benchmarks/bridged_modules.py [--repeats 31] [--size 64] [--batch 1] [--device cpu]
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _pairing import header, paired, table
from _torchvision_like import ResNet
from torch import Tensor, nn

import bridge


def calls(module: nn.Module, train: bool) -> dict[str, Callable[[Tensor], Any]]:
    """The pure ways to apply a module."""
    native, opaque = bridge.convert(module), bridge.from_module(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def functional(x: Tensor) -> Any:
        copies = {name: value.clone() if "running" in name else value for name, value in tensors.items()}
        return torch.func.functional_call(module, copies, (x,))

    return {
        "converted": lambda x: native(x, train=train),
        "opaque": lambda x: opaque(x, train=train),
        "torch.func.functional_call": functional,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    goals = {"converted": "1.0", "opaque": "1.3", "torch.func.functional_call": ""}
    rows = [["ResNet-18", "mode", "pure", "the module", "ratio", "quartiles", "goal"]]
    for train in (False, True):
        module = ResNet().to(options.device).train(train)
        x = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
        for name, call in calls(module, train).items():
            with torch.no_grad():
                r = paired(partial(call, x), partial(module, x), repeats=options.repeats)
            mode = "training" if train else "evaluation"
            times = [f"{r.first * 1e3:.2f} ms", f"{r.second * 1e3:.2f} ms"]
            rows.append([name, mode, *times, f"{r.ratio:.2f}", f"{r.low:.2f} to {r.high:.2f}", goals[name]])
    print(header(f"Bridge: batch {options.batch}, images of {options.size} x {options.size}", options.device))
    print(table(rows))


if __name__ == "__main__":
    main()
