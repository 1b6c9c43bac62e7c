"""Convolutional capsules against loops over positions, coordinate addition, and capsule dropout."""

import _capsules_by_loops as by_loops
import pytest
import torch
from _transformations import check_transformations
from torch import Tensor
from torch.func import vmap

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.layers import (
    AgreementRouting,
    CapsuleDropout,
    ClassCapsules2d,
    ConvCapsules2d,
    EMRouting,
    SelfRouting,
    agreement_routing,
    capsule_dropout,
    class_capsules2d,
    conv_capsules2d,
    self_routing,
)
from purenn.layers.capsule import add_coordinates

DOUBLE = torch.float64
TYPES, OUT, HEIGHT, WIDTH, DIM = 2, 3, 4, 5, 4


def draw(device: torch.device) -> tuple[Tensor, Tensor]:
    """Poses [2, 2, 4, 5, 4] and activations [2, 2, 4, 5]."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(2, TYPES, HEIGHT, WIDTH, DIM, generator=generator, dtype=DOUBLE)
    activations = torch.rand(2, TYPES, HEIGHT, WIDTH, generator=generator, dtype=DOUBLE)
    return poses.to(device), activations.to(device)


def costs(device: torch.device, count: int) -> EMRouting:
    generator = torch.Generator().manual_seed(1)
    use, activation = (torch.randn(count, generator=generator, dtype=DOUBLE).to(device) for _ in range(2))
    return EMRouting(use, activation, 2, 0.5)


def make(routing: str, device: torch.device, seed: int = 0, **options: int) -> ConvCapsules2d:
    inner = {
        "agreement": lambda: AgreementRouting(2),
        "EM": lambda: costs(device, OUT),
        "self": lambda: SelfRouting.init(pn.random.key(1, device), 4 * TYPES, OUT, in_dim=DIM, dtype=DOUBLE),
    }[routing]()
    return ConvCapsules2d.init(
        pn.random.key(seed, device),
        TYPES,
        OUT,
        2,
        inner,
        in_dim=DIM,
        out_dim=DIM,
        matrix=routing == "EM",
        std=1.0,
        dtype=DOUBLE,
        **options,
    )


def windows(stride: int) -> list[tuple[int, int, list[tuple[int, int, int, int]]]]:
    """Every output position with the (row, column, kernel row, kernel column) of what it sees."""
    return [
        (y, x, [(y * stride + i, x * stride + j, i, j) for i in range(2) for j in range(2)])
        for y in range((HEIGHT - 2) // stride + 1)
        for x in range((WIDTH - 2) // stride + 1)
    ]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("routing", ["agreement", "self"])
def test_windows(routing: str, stride: int, device: torch.device) -> None:
    """Every window is routed by itself, with the same matrices everywhere."""
    p = make(routing, device, stride=stride)
    poses, activations = draw(device)
    got = conv_capsules2d(p, poses, activations)
    for y, x, seen in windows(stride):
        u = torch.stack([poses[:, t, r, c] for t in range(TYPES) for r, c, _, _ in seen], 1)
        a = torch.stack([activations[:, t, r, c] for t in range(TYPES) for r, c, _, _ in seen], 1)
        pair = (torch.stack([p.weight[:, t, i, j] for t in range(TYPES) for _, _, i, j in seen], 1), u)
        if routing == "agreement":
            expected = agreement_routing(pair, a, iterations=2)
        else:
            logits = torch.einsum("oik,nik->noi", p.routing.weight, u) + p.routing.bias
            expected = self_routing(pair, a, logits)
        torch.testing.assert_close(got.poses[:, :, y, x], expected.poses, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.activations[:, :, y, x], expected.activations, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_em_shares_votes_among_all_windows(stride: int, device: torch.device) -> None:
    """An input capsule divides its vote among the output capsules of every window that it is in."""
    p = make("EM", device, stride=stride)
    poses, activations = draw(device)
    got = conv_capsules2d(p, poses, activations)
    layout = windows(stride)
    places = [(t, i, j) for t in range(TYPES) for i in range(2) for j in range(2)]
    votes, active = [], []
    parents: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for position, (y, x, _) in enumerate(layout):
        for o in range(OUT):
            row = []
            for place, (t, i, j) in enumerate(places):
                r, c = y * stride + i, x * stride + j
                row.append((poses[0, t, r, c].view(2, 2) @ p.weight[o, t, i, j]).flatten())
                parents.setdefault((t, r, c), []).append((position * OUT + o, place))
            votes.append(torch.stack(row))
            active.append(torch.stack([activations[0, t, y * stride + i, x * stride + j] for t, i, j in places]))
    repeated = (x.repeat(len(layout)) for x in (p.routing.beta_use, p.routing.beta_activation))
    mean, a = by_loops.em(torch.stack(votes), torch.stack(active), *repeated, 2, 0.5, 1e-6, list(parents.values()))
    for position, (y, x, _) in enumerate(layout):
        rows = slice(position * OUT, (position + 1) * OUT)
        torch.testing.assert_close(got.poses[0, :, y, x], mean[rows], rtol=0, atol=1e-10)
        torch.testing.assert_close(got.activations[0, :, y, x], a[rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize("routing", ["agreement", "EM", "self"])
def test_batches_and_padding(routing: str, device: torch.device) -> None:
    """One example, vmap, a batch and two batch axes are the same; padding is a border of empty capsules."""
    p = make(routing, device, padding=1)
    poses, activations = draw(device)
    native = p(poses, activations)
    assert native.poses.shape == (2, OUT, HEIGHT + 1, WIDTH + 1, DIM)
    others = (
        [torch.stack(x) for x in zip(*(p(*one) for one in zip(poses, activations, strict=True)), strict=True)],
        vmap(lambda *args: tuple(p(*args)))(poses, activations),
        [x[0] for x in p(poses[None], activations[None])],
        make(routing, device)(
            torch.nn.functional.pad(poses, (0, 0, 1, 1, 1, 1)), torch.nn.functional.pad(activations, (1, 1, 1, 1))
        ),
    )
    for other in others:
        for got, expected in zip(other, native, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("routing", ["agreement", "EM"])
def test_transformations(routing: str, device: torch.device) -> None:
    """Convolutional capsules keep every promise of a layer."""
    poses, activations = draw(device)
    inputs = torch.cat([poses, activations.unsqueeze(-1)], -1)[..., :3, :3, :]

    def apply(p: ConvCapsules2d, x: Tensor) -> Tensor:
        made = p(x[..., :-1], x[..., -1])
        return torch.cat([made.poses, made.activations.unsqueeze(-1)], -1)

    check_transformations(lambda seed: make(routing, device, seed), apply, inputs, compile=routing == "EM")


def test_class_capsules_see_positions(device: torch.device) -> None:
    """Class capsules share matrices over positions, and votes carry the position in two components."""
    poses, activations = draw(device)
    p = ClassCapsules2d.init(
        pn.random.key(0, device), TYPES, OUT, costs(device, OUT), in_dim=4, out_dim=4, std=1.0, dtype=DOUBLE
    )
    votes = torch.einsum("ntyxpq,otqr->notyxpr", poses.unflatten(-1, (2, 2)), p.weight).flatten(-2).clone()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            votes[:, :, :, y, x, 0] += (y + 0.5) / HEIGHT
            votes[:, :, :, y, x, 1] += (x + 0.5) / WIDTH
    expected = p.routing(votes.flatten(2, 4), activations.flatten(1))
    for got, right in zip(class_capsules2d(p, poses, activations), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-12)
    shifted = class_capsules2d(p, poses.roll(1, -2), activations.roll(1, -1)).poses
    assert not torch.allclose(shifted, expected.poses)
    blind = pn.replace(p, coordinates=False)
    for got, right in zip(blind(poses.roll(1, -2), activations.roll(1, -1)), blind(poses, activations), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-12)
    added = add_coordinates(torch.zeros(2, 3, 1, 1, 16, device=device))
    assert added[1, 2, 0, 0].nonzero().flatten().tolist() == [3, 7]


def test_carried_by_a_module(device: torch.device) -> None:
    """The module gives the same and comes back, and its routing's hooks fire."""
    p = make("EM", device)
    module = bridge.to_module(p)
    fired: list[int] = []
    module.routing.register_forward_hook(lambda *_: fired.append(1))
    for got, expected in zip(module(*draw(device)), p(*draw(device)), strict=True):
        assert torch.equal(got, expected)
    assert fired == [1]
    assert pn.tree.equal(bridge.from_module(module), p)


def test_capsule_dropout(device: torch.device) -> None:
    """Whole capsules are dropped, with one key for a batch or one for each example; without a key nothing is."""
    p = CapsuleDropout(0.5)
    poses = torch.ones(2, 4, 50, 3, device=device)
    assert torch.equal(capsule_dropout(p, poses), poses)
    dropped = p(poses, key=pn.random.key(0, device))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[..., :1].expand(dropped.shape))
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    keys = pn.random.split(pn.random.key(0, device), 4)
    rows = vmap(lambda key, x: p(x, key=key))(keys, poses[0])
    assert not torch.equal(rows[0], rows[1])


def test_errors(device: torch.device) -> None:
    """An input of other types, or smaller than a window, is refused."""
    p = make("agreement", device)
    with pytest.raises(ShapeError) as error:
        p(torch.zeros(3, HEIGHT, WIDTH, DIM, dtype=DOUBLE, device=device))
    assert str(error.value) == (
        "conv_capsules2d: expected capsules [*batch, 2, height, width, in_dim], padded to at least 2x2 positions, got "
        "(3, 4, 5, 4) and padding 0."
    )
    assert repr(p).startswith("ConvCapsules2d(in_types=2, out_types=3, kernel_size=(2, 2), stride=1, padding=0")


def test_maps_that_do_not_fit(device: torch.device) -> None:
    """Activations of other positions than the poses', too few axes and windows without sense are refused."""
    p = make("EM", device)
    text = (
        "{name}: expected capsules [*batch, types, height, width, dim] and activations [*batch, types, height, width], "
        "got capsules {poses} and activations {activations}."
    )
    classes = ClassCapsules2d.init(pn.random.key(0, device), 2, 3, EMRouting.init(3), dtype=DOUBLE)
    for name, layer, dim in (("conv_capsules2d", p, DIM), ("class_capsules2d", classes, 16)):
        poses = torch.zeros(2, HEIGHT, WIDTH, dim, dtype=DOUBLE, device=device)
        for given in (torch.ones(2, HEIGHT + 1, WIDTH), torch.ones(2, WIDTH, HEIGHT)):
            with pytest.raises(ShapeError) as error:
                layer(poses, given.to(poses))
            expected = text.format(name=name, poses=tuple(poses.shape), activations=tuple(given.shape))
            assert str(error.value) == expected
        with pytest.raises(ShapeError) as error:
            layer(poses[0])
        assert str(error.value) == text.format(name=name, poses=tuple(poses[0].shape), activations="none")
    with pytest.raises(ArgumentError) as argument:
        ConvCapsules2d.init(pn.random.key(0), 2, 3, 2, AgreementRouting(), stride=0)
    assert str(argument.value) == (
        "ConvCapsules2d.init: kernel_size and stride must be at least 1 and padding at least 0, got kernel_size=2, "
        "stride=0 and padding=0."
    )
    with pytest.raises(ShapeError) as error:
        add_coordinates(torch.zeros(4, 5, 3, 2, 1, device=device))
    assert str(error.value) == (
        "add_coordinates: votes need two components or more to carry a position, got (4, 5, 3, 2, 1). For "
        "ClassCapsules2d there is coordinates=False."
    )
