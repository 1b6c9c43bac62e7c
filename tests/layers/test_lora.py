"""LoRA: the same as the layer with the product of the two matrices in its weight, for layers and for whole models."""

from typing import Any

import pytest
import torch
from _reference import numbers, same, weights_like
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import bridge
import purenn as pn
from purenn import layers
from purenn.layers import LoRA, lora, merge_lora

DOUBLE = torch.float64


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def tokens(*shape: int, device: torch.device) -> Tensor:
    """Indices from 0 to 5."""
    return torch.randint(6, shape, generator=torch.Generator().manual_seed(0)).to(device)


# Layer, its function, an input.
CASES: dict[str, tuple[Any, Any, Any]] = {
    "linear": (
        lambda k: layers.Linear.init(k, 4, 3, dtype=DOUBLE),
        layers.linear,
        lambda d: numbers(3, 2, 4, device=d),
    ),
    "no bias": (
        lambda k: layers.Linear.init(k, 4, 3, bias=False, dtype=DOUBLE),
        layers.linear,
        lambda d: numbers(3, 4, device=d),
    ),
    "embedding": (
        lambda k: layers.Embedding.init(k, 6, 3, padding_idx=2, dtype=DOUBLE),
        layers.embedding,
        lambda d: tokens(3, 2, 4, device=d),
    ),
    "conv1d": (
        lambda k: layers.Conv1d.init(k, 2, 3, 3, padding="same", padding_mode="circular", dilation=2, dtype=DOUBLE),
        layers.conv1d,
        lambda d: numbers(3, 2, 7, device=d),
    ),
    "conv2d": (
        lambda k: layers.Conv2d.init(k, 4, 6, (3, 2), stride=2, padding=1, groups=2, dtype=DOUBLE),
        layers.conv2d,
        lambda d: numbers(3, 4, 5, 5, device=d),
    ),
    "conv2d 1x1": (
        lambda k: layers.Conv2d.init(k, 3, 2, 1, bias=False, dtype=DOUBLE),
        layers.conv2d,
        lambda d: numbers(3, 3, 4, 4, device=d),
    ),
    "embedding with max_norm": (
        lambda k: layers.Embedding.init(k, 6, 3, 2, max_norm=1.0, scale_grad_by_freq=True, dtype=DOUBLE),
        layers.embedding,
        lambda d: tokens(3, 2, 4, device=d),
    ),
    "linear with activation": (
        lambda k: layers.LinearActivation.init(k, 4, 3, activation=layers.Tanh(), dtype=DOUBLE),
        layers.linear_activation,
        lambda d: numbers(3, 2, 4, device=d),
    ),
    "conv_transpose2d": (
        lambda k: layers.ConvTranspose2d.init(k, 3, 2, 3, stride=2, output_padding=1, dtype=DOUBLE),
        layers.conv_transpose2d,
        lambda d: numbers(3, 3, 4, 4, device=d),
    ),
    "conv3d": (
        lambda k: layers.Conv3d.init(k, 2, 2, 2, groups=2, dtype=DOUBLE),
        layers.conv3d,
        lambda d: numbers(3, 2, 3, 3, 3, device=d),
    ),
}


def wrapped(case: str, device: torch.device, seed: int = 0, **options: Any) -> LoRA:
    """A wrapped layer whose addition is not zero."""
    p = LoRA.of(key(device, seed + 1), CASES[case][0](key(device, seed)), **options)
    return pn.replace(p, lora_B=numbers(*p.lora_B.shape, seed=seed, device=device))


def written_out(p: LoRA) -> Any:
    """The plain layer whose weight is the sum, by the formula."""
    product = torch.einsum("or,r...->o...", p.lora_B, p.lora_A)
    return pn.replace(p.layer, weight=p.layer.weight + p.alpha / len(p.lora_A) * product)


@given(
    case=st.sampled_from(list(CASES)),
    rank=st.integers(1, 3),
    alpha=st.sampled_from([None, 0.5, 16]),
    seed=st.integers(0, 9),
)
def test_equals_the_sum_of_weights(case: str, rank: int, alpha: float | None, seed: int, device: torch.device) -> None:
    """Values and gradients are those of the layer with the sum of the weights, applied in each of the three ways."""
    _, function, make_x = CASES[case]
    p = pn.tree.map(lambda leaf: leaf.detach().requires_grad_(), wrapped(case, device, seed, rank=rank, alpha=alpha))
    x = make_x(device)
    if x.is_floating_point():
        x.requires_grad_()
    of = [leaf for leaf in (x, *pn.tree.leaves(p)) if leaf.requires_grad]

    def gradients(y: Tensor) -> Any:
        return torch.autograd.grad((torch.sin(y) * weights_like(y)).sum(), of, retain_graph=True)

    expected = function(written_out(p), x)
    for y in (p(x), function(p, x), p.folded()(x)):
        same(y, expected)
        same(gradients(y), gradients(expected))


@pytest.mark.parametrize("case", CASES)
def test_wrapping_changes_nothing(case: str, device: torch.device) -> None:
    """A freshly wrapped layer computes bit for bit what it did, and shares its tensors."""
    layer, x = CASES[case][0](key(device)), CASES[case][2](device)
    p = LoRA.of(key(device, 1), layer, rank=2)
    assert torch.equal(p(x), layer(x))
    assert p.layer is layer
    assert p.scale == 1
    assert p.lora_A.shape == (2, *layer.weight.shape[1:])
    assert p.lora_B.shape == (len(layer.weight), 2)
    assert (p.lora_A.dtype, p.lora_A.device) == (DOUBLE, layer.weight.device)
    assert (p.rank, p.alpha) == (2, 2.0)


def test_first_values(device: torch.device) -> None:
    """A is uniform within 1 / sqrt(fan_in) for maps and normal for embeddings, B is zero."""
    for layer, deviation in (
        (layers.Linear.init(key(device), 400, 3), 1 / 20 / 3**0.5),
        (layers.Conv2d.init(key(device), 16, 3, 5), 1 / 20 / 3**0.5),
        (layers.Embedding.init(key(device), 3, 400), 1.0),
    ):
        p = LoRA.of(key(device, 1), layer)
        assert abs(p.lora_A.std() / deviation - 1) < 0.05
        assert not p.lora_B.any()


@pytest.mark.parametrize("case", CASES)
def test_transformations(case: str, device: torch.device) -> None:
    """Wrapped layers keep the promises of the shared table."""
    check_transformations(lambda seed: wrapped(case, device, seed, rank=2), layers.apply_lora, CASES[case][2](device))


@pytest.mark.parametrize("case", CASES)
def test_as_a_module(case: str, device: torch.device) -> None:
    """The module has the paths as names and the container's results, also where a plain layer is expected."""
    _, function, make_x = CASES[case]
    p, x = wrapped(case, device), make_x(device)
    m = bridge.to_module(p)
    assert set(m.state_dict()) == {name for name, _ in pn.tree.named_leaves(p)}
    seen = []
    m.layer.register_forward_hook(lambda module, args, output: seen.append(output))  # type: ignore[union-attr]
    same(m(x), p(x), tolerance=0)
    assert len(seen) == 1
    same(function(m, x), function(p, x), tolerance=0)


@pn.container
class Block(pn.Layer):
    """A model written by hand, with a tied projection."""

    table: layers.Embedding
    mix: layers.Conv1d
    hidden: tuple[layers.Linear, ...]
    head: layers.Linear


@pn.applies(Block)
def block(p: Block, indices: Tensor) -> Tensor:
    """Scores of all tokens, for each."""
    x = layers.embedding(p.table, indices)
    x = layers.conv1d(p.mix, x.mT).mT
    for layer in p.hidden:
        x = torch.tanh(layers.linear(layer, x))
    return layers.linear(p.head, x)


def make_block(device: torch.device, *, tied: bool = False) -> Block:
    """Six tokens, four features."""
    k = pn.random.split(key(device), 5)
    p = Block(
        layers.Embedding.init(k[0], 6, 4, dtype=DOUBLE),
        layers.Conv1d.init(k[1], 4, 4, 1, dtype=DOUBLE),
        tuple(layers.Linear.init(k[n], 4, 4, dtype=DOUBLE) for n in (2, 3)),
        layers.Linear.init(k[4], 4, 6, dtype=DOUBLE),
    )
    return pn.tree.tie(p, {"head.weight": "table.weight"}) if tied else p


def everything(selection: Any) -> Any:
    """All layers that can be adapted."""
    return selection.instances((layers.Linear, layers.Embedding, layers.Conv1d))


def moved(p: Any, seed: int = 0) -> Any:
    """The model after something like training: every trained leaf has new values."""
    trained, rest = pn.tree.partition(p)
    changed = pn.tree.map(lambda leaf: leaf + numbers(*leaf.shape, seed=seed, device=leaf.device), trained)
    return pn.tree.combine(changed, rest)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("selection", [everything, "hidden.*", ["hidden.1", "head"], "table"])
def test_lora_and_merge(selection: Any, tied: bool, device: torch.device) -> None:
    """A model with wrapped layers computes what it did, only the new leaves are trained, and merging is exact."""
    base, x = make_block(device, tied=tied), tokens(3, 5, device=device)
    p = lora(key(device, 1), base, selection, 2, 3.0)
    same(p(x), base(x))
    gradient = pn.grad(lambda p: p(x).square().sum())(p)
    trained = {name.rpartition(".")[2] for name, _ in pn.tree.named_leaves(gradient)}
    assert trained == {"lora_A", "lora_B"}
    p = moved(p)
    assert not torch.allclose(p(x), base(x))
    merged = merge_lora(p)
    same(merged(x), p(x), tolerance=1e-12)
    assert not pn.tree.select(merged).instances(LoRA).names
    assert [name for name, _ in pn.tree.named_leaves(pn.tree.untie(merged))] == [
        name for name, _ in pn.tree.named_leaves(pn.tree.untie(base))
    ]
    assert pn.tree.count(merged, trainable=True) == 0


def test_ties(device: torch.device) -> None:
    """Tied weights stay one leaf under their new names; merging unties what differs, and only that."""
    base = make_block(device, tied=True)
    p = lora(key(device, 1), base, everything)
    names = [name for name, _ in pn.tree.named_leaves(p)]
    assert "table.layer.weight" in names
    assert "head.layer.weight" not in names
    assert "head.lora_A" in names
    assert "head.weight" in [name for name, _ in pn.tree.named_leaves(merge_lora(p))]
    p = lora(key(device, 1), base, "hidden.*")
    merged = merge_lora(p)
    assert [name for name, _ in pn.tree.named_leaves(merged)] == [name for name, _ in pn.tree.named_leaves(base)]
    m = bridge.to_module(p)
    assert m.head.weight is m.table.weight  # type: ignore[union-attr]
    same(m(tokens(5, device=device)), base(tokens(5, device=device)))


def test_a_single_layer(device: torch.device) -> None:
    """The model may be one layer, and the selection may be left out: all linear layers are wrapped."""
    layer, x = layers.Linear.init(key(device), 4, 3, dtype=DOUBLE), numbers(2, 4, device=device)
    p = moved(lora(key(device, 1), layer, rank=2))
    assert type(p) is LoRA
    merged = merge_lora(p)
    assert type(merged) is layers.Linear
    same(merged(x), p(x), tolerance=1e-12)
    assert merge_lora(layer) is layer
    p = lora(key(device, 1), make_block(device))
    assert pn.tree.select(p).instances(LoRA).names == ("hidden.0", "hidden.1", "head")


def test_every_layer_has_a_key_of_its_own(device: torch.device) -> None:
    """Equal layers start with different matrices, and the same key gives the same model."""
    p, q = (lora(key(device, 1), make_block(device), "hidden.*") for _ in range(2))
    assert pn.tree.equal(p, q)
    assert not torch.equal(p.hidden[0].lora_A, p.hidden[1].lora_A)


def test_surgery_by_hand(device: torch.device) -> None:
    """The container can be put into a selection without the function for whole models."""
    base, x = make_block(device), tokens(5, device=device)
    keys = iter(pn.random.split(key(device, 1), 3))
    p = pn.tree.select(base).instances(layers.Linear).apply(lambda layer: LoRA.of(next(keys), layer, rank=8))
    same(p(x), base(x))
    frozen = pn.tree.freeze(p, lambda s: s.instances(LoRA).paths("layer"))
    trained = [name for name, _ in pn.tree.named_leaves(pn.tree.partition(frozen)[0])]
    assert [name for name in trained if "layer" in name] == []
    assert "hidden.0.lora_B" in trained


def test_many_adaptations_of_one_base(device: torch.device) -> None:
    """Under vmap many small additions share one frozen model, applied and differentiated."""
    base, x = make_block(device), tokens(3, 5, device=device)
    models = [moved(lora(key(device, seed), base, everything, rank=2), seed) for seed in range(3)]
    trained, rest = zip(*map(pn.tree.partition, models), strict=True)
    stacked = pn.tree.stack(trained)
    got = pn.vmap(lambda added, x: pn.tree.combine(added, rest[0])(x))(stacked, x)
    same(got, torch.stack([p(one) for p, one in zip(models, x, strict=True)]))

    def loss(p: Block, x: Tensor) -> Tensor:
        return torch.sin(p(x)).sum()

    got = pn.vmap(lambda added, x: pn.grad(loss)(pn.tree.combine(added, rest[0]), x))(stacked, x)
    expected = [pn.tree.partition(pn.grad(loss)(p, one))[0] for p, one in zip(models, x, strict=True)]
    assert pn.tree.allclose(pn.tree.partition(got)[0], pn.tree.stack(expected), atol=1e-9)


def test_jit_and_purity(device: torch.device) -> None:
    """A wrapped model is jitted with its gradient, and changes none of its arguments."""
    p, x = moved(lora(key(device, 1), make_block(device, tied=True), everything)), tokens(5, device=device)
    same(pn.jit(block, backend="eager")(p, x), p(x))
    gradient = pn.grad(lambda p, x: torch.sin(p(x)).sum())
    assert pn.tree.allclose(pn.jit(gradient, backend="eager")(p, x), gradient(p, x), atol=1e-10)
    check_purity(block, p, x)


def test_training_a_module(device: torch.device) -> None:
    """The bridged model trains its new parameters only, and the trained container is merged."""
    base, x = make_block(device), tokens(5, device=device)
    p = lora(key(device, 1), base, everything, rank=2)
    m = bridge.to_module(p, copy=True)
    trained = [parameter for parameter in m.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(pn.tree.select(p).instances(LoRA).names)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        m(x).square().sum().backward()
        optimizer.step()
    after = m.tree()
    assert torch.equal(after.head.layer.weight, base.head.weight)
    assert not torch.equal(after.head.lora_B, p.head.lora_B)
    same(merge_lora(after)(x), m(x), tolerance=1e-12)


def test_is_seen_in_a_model(device: torch.device) -> None:
    """In a model that calls the plain layers' functions, capture sees wrapped layers, and the bridge's hooks fire."""
    p, x = moved(lora(key(device, 1), make_block(device), everything)), tokens(5, device=device)
    y, seen = pn.capture(block, "head")(p, x)
    same(seen, {"head": y})
    m, fired = bridge.to_module(p), []
    for name in ("head", "head.layer"):
        m.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.append(name))
    same(m(x), y)
    assert fired == ["head.layer", "head"]


def test_save_and_load(device: torch.device, tmp_path: Any) -> None:
    """A wrapped model is saved and read like any other."""
    p = moved(lora(key(device, 1), make_block(device, tied=True), everything))
    pn.save(tmp_path / "model.safetensors", p)
    like = lora(key(device, 2), make_block(device, tied=True), everything)
    assert pn.tree.equal(pn.load(tmp_path / "model.safetensors", like=like), p)


def test_on_meta(device: torch.device) -> None:
    """On the meta device shapes are right and nothing is allocated."""
    p = lora(key(device), layers.Linear.init(key(device), 10**6, 10**5, device="meta"), rank=16)
    assert [(leaf.is_meta, list(leaf.shape)) for leaf in (p.lora_A, p.lora_B)] == [
        (True, [16, 10**6]),
        (True, [10**5, 16]),
    ]


def test_repr(device: torch.device) -> None:
    """Rank and alpha are printed above the layer."""
    assert repr(LoRA.of(key(device), layers.Linear.init(key(device), 4, 3), 2)) == (
        "LoRA(rank=2, alpha=2.0\n  (layer): Linear(in_features=4, out_features=3, bias=True)\n)"
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda k, p: LoRA.of(k, layers.LayerNorm.init(3)),
            pn.errors.ArgumentError,
            "LoRA.of: the weight of LayerNorm has shape [3], and a low-rank addition needs two dimensions or more. "
            "Select other layers.",
        ),
        (
            lambda k, p: LoRA.of(k, p.head, rank=0),
            pn.errors.ArgumentError,
            "LoRA.of: rank must be at least 1, got 0.",
        ),
        (
            lambda k, p: LoRA.of(k, p),
            pn.errors.ArgumentError,
            "LoRA.of: Block has no floating tensor 'weight'; it has none. Wrap the layer whose own field it is.",
        ),
        (
            lambda k, p: lora(k, p, "hidden"),
            pn.errors.ContainerError,
            "lora: 'hidden': expected a container with a function, such as Linear.init(...), got a tuple.",
        ),
        (
            lambda k, p: lora(k, p, "head.weight"),
            pn.errors.ContainerError,
            "lora: 'head.weight': expected a container with a function, such as Linear.init(...), got a Tensor.",
        ),
        (
            lambda k, p: lora(k, layers.BatchNorm1d.init(3), lambda s: s.instances(layers.BatchNorm1d)),
            pn.errors.ContainerError,
            "lora: BatchNorm1d updates buffers, so it cannot be wrapped as a whole: wrap the layers in it, with "
            "pn.tree.select(p).instances(Linear).apply(...).",
        ),
        (
            lambda k, p: lora(k, lora(k, p, "hidden.0")),
            pn.errors.ArgumentError,
            "lora: 'hidden.0.layer' is adapted already. Leave it out of the selection, or make plain layers of the "
            "adapted ones first, with merge_lora.",
        ),
        (
            lambda k, p: lora(k, layers.ReLU()),
            pn.errors.SelectionError,
            "lora: the selection (instances of Linear) is empty in this ReLU; its nodes are: none below the top.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str, device: torch.device) -> None:
    """What cannot be adapted is refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call(key(device), make_block(device))
    assert str(caught.value) == text
