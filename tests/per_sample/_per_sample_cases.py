"""Losses of one example, each with parameters and a batch: what per-example gradients must be right for."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn import layers as L

D = torch.float64
EXAMPLES = 5


class Case(NamedTuple):
    """A loss ``f(p, *example)``, its parameters, a batch, and how the norms of its leaves are expected to be found.

    Attributes:
        forms: by path; leaves that are not named are in closed form.
    """

    f: Callable[..., Tensor]
    p: Any
    batch: tuple
    forms: Mapping[str, str] = MappingProxyType({})


CASES: dict[str, Callable[[torch.device], Case]] = {}


def case(build: Callable[[torch.device], Case]) -> Callable[[torch.device], Case]:
    CASES[build.__name__] = build
    return build


def keys(device: torch.device, n: int) -> list[Tensor]:
    return list(pn.random.split(pn.random.key(0, device), n))


def draw(device: torch.device, *shape: int, seed: int = 1) -> Tensor:
    return pn.random.normal(pn.random.key(seed, device), shape, dtype=D) * 0.5


def whole(device: torch.device, high: int, *shape: int, seed: int = 2) -> Tensor:
    return pn.random.randint(pn.random.key(seed, device), shape, low=0, high=high)


def squares(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sin().square().sum()


def of_layer(build: Callable[..., Any], x_shape: tuple[int, ...], **forms: str) -> Callable[[torch.device], Case]:
    """The case of one native layer applied to one example."""

    def made(device: torch.device) -> Case:
        p = build(pn.random.key(0, device))
        return Case(lambda p, x: squares(p(x)), p, (draw(device, EXAMPLES, *x_shape),), forms)

    return made


M = "materialised"
C = "copies"
CASES.update(
    linear_vector=of_layer(lambda k: L.Linear.init(k, 4, 3, dtype=D), (4,)),
    linear_short_sequence=of_layer(lambda k: L.Linear.init(k, 6, 5, dtype=D), (3, 6)),
    linear_long_sequence=of_layer(lambda k: L.Linear.init(k, 4, 3, dtype=D), (9, 4), weight=M),
    linear_four_dimensions=of_layer(lambda k: L.Linear.init(k, 8, 7, dtype=D), (2, 1, 2, 8)),
    linear_without_bias=of_layer(lambda k: L.Linear.init(k, 4, 3, bias=False, dtype=D), (4,)),
    conv1d=of_layer(lambda k: L.Conv1d.init(k, 2, 3, 3, dtype=D), (2, 7), weight=M),
    conv1d_closed=of_layer(lambda k: L.Conv1d.init(k, 4, 6, 3, padding=1, dtype=D), (4, 3)),
    conv2d=of_layer(lambda k: L.Conv2d.init(k, 2, 3, 3, dtype=D), (2, 6, 6), weight=M),
    conv2d_closed=of_layer(lambda k: L.Conv2d.init(k, 3, 5, 3, stride=2, padding=1, dilation=1, dtype=D), (3, 4, 4)),
    conv2d_of_batches=of_layer(lambda k: L.Conv2d.init(k, 2, 3, 3, dtype=D), (2, 2, 4, 4), weight=M),
    conv2d_grouped=of_layer(lambda k: L.Conv2d.init(k, 4, 6, 3, groups=2, dtype=D), (4, 5, 5), weight=M),
    conv2d_dilated=of_layer(lambda k: L.Conv2d.init(k, 2, 3, 2, dilation=2, padding=1, dtype=D), (2, 6, 5), weight=M),
    conv2d_strided=of_layer(lambda k: L.Conv2d.init(k, 2, 3, 3, stride=2, dtype=D), (2, 7, 7), weight=M),
    conv2d_depthwise=of_layer(lambda k: L.Conv2d.init(k, 4, 8, 3, groups=4, dtype=D), (4, 5, 5), weight=M),
    conv2d_same=of_layer(lambda k: L.Conv2d.init(k, 2, 3, (2, 4), padding="same", dtype=D), (2, 5, 5), weight=M),
    conv2d_reflected=of_layer(
        lambda k: L.Conv2d.init(k, 2, 3, 3, padding=1, padding_mode="reflect", dtype=D), (2, 5, 5), weight=M
    ),
    conv3d=of_layer(lambda k: L.Conv3d.init(k, 2, 2, 2, dtype=D), (2, 3, 3, 3), weight=M),
    conv_transpose1d=of_layer(lambda k: L.ConvTranspose1d.init(k, 2, 3, 3, stride=2, dtype=D), (2, 4), weight=M),
    conv_transpose2d=of_layer(
        lambda k: L.ConvTranspose2d.init(k, 4, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dtype=D),
        (4, 4, 4),
        weight=M,
    ),
    conv_transpose3d=of_layer(lambda k: L.ConvTranspose3d.init(k, 2, 2, 2, dtype=D), (2, 2, 2, 2), weight=M),
    bilinear=lambda device: Case(
        lambda p, x, y: squares(L.bilinear(p, x, y)),
        L.Bilinear.init(pn.random.key(0, device), 3, 4, 2, dtype=D),
        (draw(device, EXAMPLES, 3), draw(device, EXAMPLES, 4, seed=3)),
        {"bias": C},
    ),
)


@case
def layer_norm(device: torch.device) -> Case:
    p = L.LayerNorm(draw(device, 4), draw(device, 4, seed=5), (4,))
    return Case(lambda p, x: squares(p(x)), p, (draw(device, EXAMPLES, 3, 4),))


@case
def layer_norm_of_two_dimensions_without_bias(device: torch.device) -> Case:
    p = L.LayerNorm(draw(device, 3, 4), None, (3, 4))
    return Case(lambda p, x: squares(p(x)), p, (draw(device, EXAMPLES, 2, 3, 4),))


@case
def group_norm(device: torch.device) -> Case:
    p = L.GroupNorm(draw(device, 4), draw(device, 4, seed=5), 2)
    return Case(lambda p, x: squares(p(x[None])), p, (draw(device, EXAMPLES, 4, 3, 3),), {"weight": C, "bias": C})


@case
def group_norm_of_batches(device: torch.device) -> Case:
    p = L.GroupNorm(draw(device, 4), draw(device, 4, seed=5), 2)
    return Case(lambda p, x: squares(p(x)), p, (draw(device, EXAMPLES, 2, 4, 3),), {"weight": C, "bias": C})


@case
def instance_norm(device: torch.device) -> Case:
    p = pn.replace(L.InstanceNorm2d.init(4, affine=True, dtype=D, device=device), weight=draw(device, 4))
    return Case(
        lambda p, x: squares(L.instance_norm(p, x[None])[0]),
        p,
        (draw(device, EXAMPLES, 4, 3, 3),),
        {"weight": C, "bias": C},
    )


@case
def rms_norm(device: torch.device) -> Case:
    p = L.RMSNorm(draw(device, 4), (4,))
    return Case(lambda p, x: squares(p(x)), p, (draw(device, EXAMPLES, 3, 4),), {"weight": C})


@case
def batch_norm_with_running_statistics(device: torch.device) -> Case:
    p = pn.replace(L.BatchNorm2d.init(4, dtype=D, device=device), weight=draw(device, 4))
    return Case(
        lambda p, x: squares(L.batch_norm(p, x[None])[0]),
        p,
        (draw(device, EXAMPLES, 4, 3, 3),),
        {"weight": C, "bias": C},
    )


@case
def embedding_with_padding(device: torch.device) -> Case:
    p = L.Embedding.init(pn.random.key(0, device), 7, 3, 1, dtype=D)
    return Case(lambda p, i: squares(p(i)), p, (whole(device, 7, EXAMPLES, 6),))


@case
def embedding_of_one_index(device: torch.device) -> Case:
    p = L.Embedding.init(pn.random.key(0, device), 7, 3, dtype=D)
    return Case(lambda p, i: squares(p(i)), p, (whole(device, 7, EXAMPLES),))


@case
def embedding_by_frequency(device: torch.device) -> Case:
    p = L.Embedding.init(pn.random.key(0, device), 5, 3, scale_grad_by_freq=True, max_norm=1.0, dtype=D)
    return Case(lambda p, i: squares(p(i)), p, (whole(device, 5, EXAMPLES, 6),))


@case
def embedding_bag(device: torch.device) -> Case:
    p = L.EmbeddingBag.init(pn.random.key(0, device), 7, 3, dtype=D)
    return Case(lambda p, i: squares(p(i)), p, (whole(device, 7, EXAMPLES, 2, 4),))


@case
def tied_embedding_and_output(device: torch.device) -> Case:
    def f(p: dict, i: Tensor, target: Tensor) -> Tensor:
        h = F.embedding(i, p["table"]).tanh() + p["position"]
        return F.cross_entropy(F.linear(h, p["table"]), target)

    p = {"table": draw(device, 30, 8), "position": draw(device, 4, 8, seed=3)}
    batch = whole(device, 30, EXAMPLES, 4), whole(device, 30, EXAMPLES, 4, seed=4)
    return Case(f, p, batch, {"position": C})


@case
def tied_embedding_of_a_container(device: torch.device) -> Case:
    first, second = keys(device, 2)
    table = L.Embedding.init(first, 11, 4, dtype=D)
    p = {"embed": table, "mix": L.Linear.init(second, 4, 4, dtype=D)}

    def f(p: Any, i: Tensor) -> Tensor:
        h = p["mix"](p["embed"](i)).tanh()
        return squares(h @ p["embed"].weight.T)

    return Case(f, p, (whole(device, 11, EXAMPLES, 2),))


@case
def layer_called_twice(device: torch.device) -> Case:
    p = L.Linear.init(pn.random.key(0, device), 5, 5, dtype=D)
    return Case(lambda p, x: squares(p(p(x).tanh())), p, (draw(device, EXAMPLES, 5),))


@case
def parameters_used_directly(device: torch.device) -> Case:
    p = {"gate": draw(device, 4), "position": draw(device, 6, 4, seed=3), "scale": draw(device)}

    def f(p: dict, x: Tensor) -> Tensor:
        return squares((x + p["position"][: len(x)]) * p["gate"].sigmoid() * p["scale"] - p["gate"])

    return Case(f, p, (draw(device, EXAMPLES, 3, 4),), {"gate": M, "position": C, "scale": C})


@case
def weight_used_outside_of_its_layer(device: torch.device) -> Case:
    p = L.Linear.init(pn.random.key(0, device), 4, 4, dtype=D)
    return Case(
        lambda p, x: squares(p(x)) + p.weight.square().sum() * x.sum() + (p.weight.T @ x).cos().sum(),
        p,
        (draw(device, EXAMPLES, 4),),
        {"weight": M},
    )


@case
def transposed_views(device: torch.device) -> Case:
    p = {"w": draw(device, 4, 3)}

    def f(p: dict, x: Tensor) -> Tensor:
        h = (x @ p["w"]).tanh()
        return squares(F.linear(h, p["w"])) + squares(p["w"].mT @ x) + squares(torch.mv(p["w"], h))

    return Case(f, p, (draw(device, EXAMPLES, 4),), {"w": M})


@case
def slices_of_a_weight(device: torch.device) -> Case:
    p = {"w": draw(device, 6, 4), "rest": draw(device, 4, 6, seed=5)}

    def f(p: dict, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w) for w in p["w"].chunk(3))
        a, b = p["rest"].split(3, 1)
        return squares(q * k + v) + squares(F.linear(x @ a, b))

    return Case(f, p, (draw(device, EXAMPLES, 4),), {"rest": M})


@case
def overlapping_slices(device: torch.device) -> Case:
    p = {"w": draw(device, 6, 4)}
    return Case(
        lambda p, x: squares(F.linear(x, p["w"][:4])) + squares(F.linear(x.cos(), p["w"][2:])),
        p,
        (draw(device, EXAMPLES, 4),),
        {"w": M},
    )


@case
def repeated_elements(device: torch.device) -> Case:
    p = {"a": draw(device, 2, 4), "b": draw(device, 7, seed=3), "c": draw(device, 9, seed=4), "d": draw(device, 1, 4)}

    def f(p: dict, x: Tensor) -> Tensor:
        windows, strided = p["b"].unfold(0, 4, 1), p["c"].as_strided((3, 4), (2, 1))
        weights = p["a"].repeat_interleave(2, 0), windows, strided, p["d"].expand(3, 4)
        return squares(torch.cat([F.linear(x, weight) for weight in weights]))

    return Case(f, p, (draw(device, EXAMPLES, 4),), dict.fromkeys("abcd", M))


@case
def views_by_addresses(device: torch.device) -> Case:
    p = {"w": draw(device, 4, 4), "v": draw(device, 4, 4, seed=3), "unused": draw(device)}

    def f(p: dict, x: Tensor) -> Tensor:
        seen = p["w"].as_strided((2, 4), (8, 1), 4)
        return squares(x * seen) + squares(torch.vmap(lambda row: row @ p["v"].as_strided((4, 4), (4, 1)))(x))

    return Case(f, p, (draw(device, EXAMPLES, 2, 4),), {"w": M, "v": M, "unused": "unused"})


@case
def views_of_results(device: torch.device) -> Case:
    p = {"t": draw(device, 2, 3, 4), "w": draw(device, 3, 4, seed=3)}
    mix, kernel = draw(device, 5, 4, seed=5), draw(device, 3, 1, 2, seed=6)

    def f(p: dict, x: Tensor) -> Tensor:
        mixed, smoothed = F.linear(p["t"], mix), F.conv1d(p["w"], kernel, groups=3)
        return squares(F.linear(x, mixed[1])) + squares(F.linear(x[:3], smoothed))

    return Case(f, p, (draw(device, EXAMPLES, 5),), dict.fromkeys("tw", M))


@case
def einsums(device: torch.device) -> Case:
    p = {"m": draw(device, 4, 3), "heads": draw(device, 2, 3, 4, seed=3), "many": draw(device, 3, 3, 3, seed=4)}

    def f(p: dict, x: Tensor) -> Tensor:
        h = torch.einsum("...d,de->...e", x, p["m"])
        g = torch.einsum("hed,te->htd", p["heads"], h)
        return squares(g) + squares(torch.einsum("te,efe->tf", h, p["many"]))

    return Case(f, p, (draw(device, EXAMPLES, 3, 4),), {"m": M, "many": C})


@case
def einsum_of_capsules(device: torch.device) -> Case:
    p = {"w": draw(device, 3, 6, 4, 2)}
    return Case(lambda p, u: squares(torch.einsum("oidk,ik->oid", p["w"], u)), p, (draw(device, EXAMPLES, 6, 2),))


@case
def capsule_routing(device: torch.device) -> Case:
    p = L.DynamicRouting.init(pn.random.key(0, device), in_caps=6, out_caps=3, in_dim=2, out_dim=4, dtype=D)
    return Case(lambda p, u: squares(p(u)), p, (draw(device, EXAMPLES, 6, 2),))


@case
def multihead_attention(device: torch.device) -> Case:
    p = L.MultiheadAttention.init(pn.random.key(0, device), 4, 2, dtype=D)
    return Case(
        lambda p, x: squares(L.multihead_attention(p, x, need_weights=False)[0]),
        p,
        (draw(device, EXAMPLES, 2, 4),),
    )


@case
def multihead_attention_with_weights(device: torch.device) -> Case:
    p = L.MultiheadAttention.init(pn.random.key(0, device), 4, 2, dtype=D)
    return Case(
        lambda p, x: squares(L.multihead_attention(p, x, x.cos())[0]) + L.multihead_attention(p, x)[1].square().sum(),
        p,
        (draw(device, EXAMPLES, 2, 4),),
        {"in_proj_weight": M, "in_proj_bias": M},
    )


@case
def attention_by_torch(device: torch.device) -> Case:
    p = {"qkv": draw(device, 12, 4), "mask": draw(device, 3, 3, seed=6)}

    def f(p: dict, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, p["qkv"]).unflatten(-1, (3, 2, 2)).permute(1, 2, 0, 3)
        free = F.scaled_dot_product_attention(q, k, v)
        causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return squares(free + causal + F.scaled_dot_product_attention(q, k, v, attn_mask=p["mask"]))

    return Case(f, p, (draw(device, EXAMPLES, 3, 4),), {"mask": C})


@case
def lstm(device: torch.device) -> Case:
    p = L.LSTM.init(pn.random.key(0, device), 3, 2, 2, bidirectional=True, dtype=D)
    return Case(lambda p, x: squares(p(x)[0]), p, (draw(device, EXAMPLES, 4, 3),), dict.fromkeys(_names(p), "any"))


@case
def gru(device: torch.device) -> Case:
    p = L.GRU.init(pn.random.key(0, device), 3, 2, dtype=D)
    return Case(lambda p, x: squares(p(x)[0]), p, (draw(device, EXAMPLES, 3, 3),), dict.fromkeys(_names(p), "any"))


def _names(p: Any) -> list[str]:
    return [path for path, _ in pn.tree.named_leaves(p)]


@case
def network_over_time(device: torch.device) -> Case:
    p = {"in": draw(device, 4, 3), "state": draw(device, 4, 4, seed=3), "bias": draw(device, 4, seed=4)}

    def f(p: dict, x: Tensor) -> Tensor:
        h = torch.zeros(4, dtype=x.dtype, device=x.device)
        for row in x:
            h = torch.tanh(F.linear(row, p["in"]) + F.linear(h, p["state"], p["bias"]))
        return squares(h)

    return Case(f, p, (draw(device, EXAMPLES, 3, 3),), {"in": M, "state": M, "bias": M})


@case
def in_place_relu(device: torch.device) -> Case:
    first, second = keys(device, 2)
    p = {"one": L.Conv2d.init(first, 2, 3, 3, dtype=D), "two": L.Conv2d.init(second, 3, 2, 1, dtype=D)}

    def f(p: dict, x: Tensor) -> Tensor:
        h = p["one"](x)
        F.relu_(h)
        return squares(p["two"](h))

    return Case(f, p, (draw(device, EXAMPLES, 2, 4, 4),), {"two.weight": M})


@case
def written_in_place(device: torch.device) -> Case:
    p = {"w": draw(device, 4, 4), "m": draw(device, 4, 4, seed=3), "t": draw(device, 9, 4, seed=4)}

    def f(p: dict, x: Tensor, i: Tensor) -> Tensor:
        h = F.linear(x, p["w"])
        h.relu_()
        g = torch.einsum("td,ed->et", h, p["m"])
        g.tanh_()
        e = F.embedding(i, p["t"])
        e.sin_().mul_(2)
        return squares(g.T @ p["w"]) + squares(e.add_(h))

    return Case(f, p, (draw(device, EXAMPLES, 3, 4), whole(device, 9, EXAMPLES, 3)), {"w": M, "m": M})


@case
def rows_written_in_place(device: torch.device) -> Case:
    p = {"w": draw(device, 4, 5), "b": draw(device, 4, seed=3)}

    def f(p: dict, x: Tensor) -> Tensor:
        h = F.linear(x[None], p["w"], p["b"])
        h[:, 1] += x[0]
        h.mul_(p["b"]).relu_()
        return squares(h)

    return Case(f, p, (draw(device, EXAMPLES, 5),))


@case
def no_positions(device: torch.device) -> Case:
    p = {name: L.Linear.init(key, 5, 4, dtype=D) for name, key in zip("ab", keys(device, 2), strict=True)}

    def f(p: dict, x: Tensor) -> Tensor:
        return squares(p["a"](x[:0])) + squares(p["a"](x)) + squares(p["b"](x[:0]))

    return Case(f, p, (draw(device, EXAMPLES, 1, 5),))


@case
def no_indices(device: torch.device) -> Case:
    p = {name: L.Embedding.init(key, 5, 3, dtype=D) for name, key in zip("ab", keys(device, 2), strict=True)}

    def f(p: dict, i: Tensor) -> Tensor:
        return squares(p["a"](i[:0])) + squares(p["a"](i)) + squares(p["b"](i[:0]))

    return Case(f, p, (whole(device, 5, EXAMPLES, 2),))


@case
def weights_written_in_place(device: torch.device) -> Case:
    p = {name: draw(device, 3, 4, seed=n) for n, name in enumerate("abc")}

    def f(p: dict, x: Tensor) -> Tensor:
        doubled, buffer = p["a"] * 2, torch.zeros(4, 4, dtype=D, device=x.device)
        before = F.linear(x, doubled)
        doubled.mul_(3)
        buffer[:3] = p["b"]
        return squares(before) + squares(F.linear(x, doubled)) + squares(F.linear(x, buffer) * p["c"][0])

    return Case(f, p, (draw(device, EXAMPLES, 4),), dict.fromkeys("abc", M))


@case
def used_without_gradients(device: torch.device) -> Case:
    p = {"w": draw(device, 3, 4), "b": draw(device, 4, seed=3)}

    def f(p: dict, x: Tensor) -> Tensor:
        with torch.no_grad():
            row = p["w"][0]
            scale = (row * x).sum() + (p["b"] * x).sum()
        return squares(F.linear(x, p["w"]) * scale) + squares(p["b"] * x * row)

    return Case(f, p, (draw(device, EXAMPLES, 4),), {"b": C})


@case
def weight_norm(device: torch.device) -> Case:
    p = {"g": draw(device, 3, 1), "v": draw(device, 3, 4, seed=3)}
    return Case(
        lambda p, x: squares(F.linear(x, p["g"] * p["v"] / p["v"].norm(dim=1, keepdim=True))),
        p,
        (draw(device, EXAMPLES, 4),),
        {"g": M, "v": M},
    )


@case
def low_rank(device: torch.device) -> Case:
    p = {"w": draw(device, 3, 4), "a": draw(device, 2, 4, seed=3), "b": draw(device, 3, 2, seed=4)}
    return Case(
        lambda p, x: squares(F.linear(x, p["w"] + p["b"] @ p["a"])) + squares(F.linear(F.linear(x, p["a"]), p["b"])),
        p,
        (draw(device, EXAMPLES, 4),),
        {"w": M, "a": M, "b": M},
    )


@case
def frozen_leaves(device: torch.device) -> Case:
    first, second = keys(device, 2)
    p = L.Sequential.of(L.Linear.init(first, 4, 3, dtype=D), L.Tanh(), L.Linear.init(second, 3, 2, dtype=D))
    p = pn.tree.freeze(p, ["layers.0.weight", "layers.2.bias"])
    return Case(lambda p, x: squares(p(x)), p, (draw(device, EXAMPLES, 4),), {"layers.0.bias": C})


@case
def unused_and_integer_leaves(device: torch.device) -> Case:
    p = {"w": draw(device, 3, 4), "unused": draw(device, 2), "steps": torch.tensor(3, device=device)}
    return Case(
        lambda p, x: squares(F.linear(x, p["w"])) * p["steps"], p, (draw(device, EXAMPLES, 4),), {"unused": "unused"}
    )


@case
def cross_entropies(device: torch.device) -> Case:
    p = L.Linear.init(pn.random.key(0, device), 4, 3, dtype=D)

    def f(p: Any, x: Tensor, y: Tensor) -> Tensor:
        scores = p(x)
        of_positions = F.cross_entropy(scores, y, ignore_index=1) + F.cross_entropy(scores, y, reduction="sum")
        of_one = F.cross_entropy(scores[0], y[0]) + F.cross_entropy(scores.T[None], y[None], ignore_index=2)
        smooth = F.cross_entropy(scores, y, label_smoothing=0.1) + F.cross_entropy(scores, y, reduction="none")[1]
        weighted = F.cross_entropy(scores, y, torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype, device=x.device))
        return of_positions + of_one + smooth + weighted + F.cross_entropy(scores, scores.detach().softmax(-1))

    y = torch.tensor([0, 1, 2, 2, 1, 0], device=device)
    return Case(f, p, (draw(device, EXAMPLES, 6, 4), torch.stack([y.roll(n) for n in range(EXAMPLES)])), {"weight": M})


@case
def stopped_gradients(device: torch.device) -> Case:
    p = {"w": draw(device, 4, 4)}

    def f(p: dict, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = F.linear(x, p["w"]) + p["w"].sum()
        return squares(F.linear(x, p["w"]) * fixed * p["w"].detach().mean())

    return Case(f, p, (draw(device, EXAMPLES, 4),))


@case
def number_of_weights_that_are_not_zero(device: torch.device) -> Case:
    p = {"w": draw(device, 3, 4), "only": draw(device, 3, seed=3)}

    def f(p: dict, x: Tensor) -> Tensor:
        return squares(F.linear(x, p["w"])) + x.sum() * sum(torch.linalg.vector_norm(w, 0) for w in p.values())

    return Case(f, p, (draw(device, EXAMPLES, 4),), dict.fromkeys(("w", "only"), M))


@case
def unpooled_parameters(device: torch.device) -> Case:
    p = {"w": draw(device, 1, 2, 2, 2)}
    places = torch.tensor([0, 2, 8, 10], device=device).view(1, 1, 2, 2).expand(1, 2, 2, 2)

    def f(p: dict, x: Tensor) -> Tensor:
        return squares(F.max_unpool2d(p["w"], places, 2) * x)

    return Case(f, p, (draw(device, EXAMPLES, 2, 4, 4),), {"w": M})


@case
def tables_with_sparse_gradients(device: torch.device) -> Case:
    p = {"of_each": draw(device, 7, 3), "of_all": draw(device, 7, 3, seed=3), "made": draw(device, 7, 3, seed=4)}
    bag = torch.tensor([[0, 2], [2, 6]], device=device)

    def f(p: dict, i: Tensor, x: Tensor) -> Tensor:
        each = F.embedding(i, p["of_each"], sparse=True)
        alike = F.embedding(bag, p["of_all"], sparse=True) + F.embedding_bag(bag, p["of_all"], sparse=True, mode="sum")
        return squares(each * x) + squares(alike * x) + squares(F.embedding(i, p["made"] * x[0], sparse=True))

    batch = whole(device, 7, EXAMPLES, 2), draw(device, EXAMPLES, 3)
    return Case(f, p, batch, {"of_all": M, "made": "copies"})


@case
def complex_numbers_of_real_parameters(device: torch.device) -> Case:
    p = {"w": draw(device, 3, 4, 2), "b": draw(device, 3, 2, seed=3), "table": draw(device, 7, 4, 2, seed=4)}

    def f(p: dict, x: Tensor, i: Tensor) -> Tensor:
        w, b, table = (torch.view_as_complex(p[name]) for name in ("w", "b", "table"))
        one, many = F.linear(torch.view_as_complex(x[0]), w, b), F.linear(table[i], w) @ w.conj()
        parts = one + b, many, torch.einsum("id,od->io", table[i], w), F.conv1d(many.mT, w[..., None])
        return sum(squares(torch.view_as_real(part)) for part in parts)

    batch = draw(device, EXAMPLES, 2, 4, 2), whole(device, 7, EXAMPLES, 3)
    return Case(f, p, batch, dict.fromkeys(p, "copies"))


@case
def transformations_inside(device: torch.device) -> Case:
    p = L.Linear.init(pn.random.key(0, device), 3, 3, dtype=D)

    def f(p: Any, x: Tensor) -> Tensor:
        inner = pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(lambda p: squares(p(x)))(p))
        return squares(inner(x)) + squares(pn.vmap(p)(x.expand(2, 3)))

    return Case(f, p, (draw(device, EXAMPLES, 3),), {"weight": M, "bias": M})


@case
def vmap_inside(device: torch.device) -> Case:
    p = L.Linear.init(pn.random.key(0, device), 3, 3, dtype=D)
    return Case(
        lambda p, x: squares(pn.vmap(lambda row: p(row).tanh())(x)),
        p,
        (draw(device, EXAMPLES, 4, 3),),
        {"weight": C, "bias": C},
    )


@case
def rematerialised_and_scanned(device: torch.device) -> Case:
    p = L.Stack.init(pn.random.key(0, device), 3, lambda key: L.Linear.init(key, 4, 4, dtype=D))
    return Case(
        lambda p, x: squares(pn.remat(p)(x)),
        p,
        (draw(device, EXAMPLES, 4),),
        {path: "any" for path, _ in pn.tree.named_leaves(p)},
    )


def module(build: Callable[[], nn.Module], f: Any, *batch: Callable[[torch.device], Tensor], **forms: str) -> Any:
    """The case of a module carried over by `bridge.from_module`."""

    def made(device: torch.device) -> Case:
        torch.manual_seed(0)
        p = bridge.from_module(build().to(device=device, dtype=D))
        names = {path: "any" for path, _ in pn.tree.named_leaves(p)}
        return Case(f, p, tuple(one(device) for one in batch), names)

    return made


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
        self.position = nn.Parameter(torch.randn(3, 4))

    def forward(self, i: Tensor) -> Tensor:
        return self.head((self.embed(i) + self.position).relu_())


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.gate = nn.Linear(4, 4), nn.Parameter(torch.randn(4))
        self.norm = nn.BatchNorm1d(4)
        self.one.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.one(x).tanh_()) * self.gate.sigmoid() + self.gate
        return self.norm(y) @ self.one.weight.T + self.one.weight.square().sum()


def rows(*shape: int) -> Callable[[torch.device], Tensor]:
    return lambda device: draw(device, EXAMPLES, *shape)


CASES.update(
    module_perceptron=module(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        lambda p, x: squares(p(x)),
        rows(4),
    ),
    module_convolutions=module(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", bias=False),
            nn.GroupNorm(2, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=4, stride=2),
            nn.ConvTranspose2d(4, 2, 2),
            nn.InstanceNorm2d(2, affine=True),
        ),
        lambda p, x: squares(p(x[None])),
        rows(2, 5, 5),
    ),
    module_attention=module(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda p, x: squares(p(x[None], x[None], x[None], need_weights=False)[0]),
        rows(3, 4),
    ),
    module_attention_with_weights=module(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda p, x: sum(map(squares, p(x[None], x[None], x.cos()[None]))),
        rows(3, 4),
    ),
    module_used_in_many_ways=module(_Twice, lambda p, x: squares(p(x)[0]), rows(3, 4)),
    module_of_four_dimensions=module(lambda: nn.Linear(4, 3), lambda p, x: squares(p(x)), rows(2, 1, 2, 4)),
    module_dilated=module(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2, dilation=2), nn.GELU(), nn.ConvTranspose1d(3, 2, 3, stride=2)),
        lambda p, x: squares(p(x)),
        rows(2, 6),
    ),
    module_transformer=module(
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        lambda p, x: squares(p(x[None])),
        rows(3, 4),
    ),
    module_lstm=module(lambda: nn.LSTM(3, 2, 2, bidirectional=True), lambda p, x: squares(p(x)[0]), rows(4, 3)),
    module_gru=module(lambda: nn.GRU(3, 2, batch_first=True), lambda p, x: squares(p(x[None])[0]), rows(4, 3)),
    module_rnn_cell=module(lambda: nn.RNNCell(3, 2), lambda p, x: squares(p(x[1], p(x[0]))), rows(2, 3)),
    module_tied=module(_Shared, lambda p, i: squares(p(i)), lambda device: whole(device, 9, EXAMPLES, 3)),
    module_weight_norm=module(
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), lambda p, x: squares(p(x)), rows(4)
    ),
    module_bag=module(
        lambda: nn.EmbeddingBag(6, 3, mode="sum"),
        lambda p, i: squares(p(i)),
        lambda device: whole(device, 6, EXAMPLES, 2, 3),
    ),
    module_rms_norm=module(lambda: nn.RMSNorm(4), lambda p, x: squares(p(x)), rows(3, 4)),
)
