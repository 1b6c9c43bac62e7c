"""Operations whose batching rules of torch give wrong numbers."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import purenn as pn

Axes = tuple[int | None, ...]
Function = Callable[[Tensor, Tensor, Tensor], Tensor]
EXAMPLES = 3
# Not from the end: torch has a derivative of index_fill for other places only.
PICKED = [2, 0]

# Of a matrix, a row and a number.
FUNCTIONS: dict[str, Function] = {
    "select_scatter": lambda x, row, number: torch.select_scatter(x, row * number, 0, 2),
    "select_scatter, last axis": lambda x, row, number: torch.select_scatter(x.T, row, -1, -1) * number,
    "index_fill": lambda x, row, number: x.index_fill(0, torch.tensor(PICKED, device=x.device), number) * row,
    "index_fill, last axis": lambda x, row, number: x.index_fill(-1, torch.tensor(PICKED, device=x.device), number),
    "index_fill, one place": lambda x, row, number: x.index_fill(1, torch.tensor(1, device=x.device), number),
    "index_fill of a number": lambda x, row, number: row[0].index_fill(0, torch.tensor([0], device=x.device), number),
    "roll of a number": lambda x, row, number: torch.roll(number * 2, 5),
    "roll": lambda x, row, number: torch.roll(x * row, (1, -2), (0, -1)) * number,
    "roll of all": lambda x, row, number: (x * number).roll(5),
    "roll, one axis": lambda x, row, number: (x * row).roll(2, 1),
}
# Which of the three differ from example to example.
BATCHED: list[Axes] = [axes for axes in itertools.product((0, None), repeat=3) if 0 in axes]


def arguments(device: torch.device, axes: Axes) -> list[Tensor]:
    keys = pn.random.split(pn.random.key(0, device), 3)
    shapes = [
        shape if axis is None else (EXAMPLES, *shape) for shape, axis in zip(((4, 3), (3,), ()), axes, strict=True)
    ]
    return [pn.random.normal(key, shape, dtype=torch.float64) for key, shape in zip(keys, shapes, strict=True)]


def by_a_loop(f: Function, axes: Axes) -> Callable[..., Tensor]:
    def results(*given: Tensor) -> Tensor:
        pairs = list(zip(given, axes, strict=True))
        return torch.stack([f(*[x if axis is None else x[n] for x, axis in pairs]) for n in range(EXAMPLES)])

    return results


def weighted(y: Tensor) -> Tensor:
    return (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sin().sum()


def require_the_loop(f: Function, axes: Axes, given: list[Tensor]) -> None:
    batched, looped = pn.vmap(f, axes), by_a_loop(f, axes)
    assert torch.equal(batched(*given), looped(*given))
    outside = [pn.grad(lambda *given, of=of: weighted(of(*given)), (0, 1, 2))(*given) for of in (batched, looped)]
    torch.testing.assert_close(*outside, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", BATCHED, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_the_loop(name: str, axes: Axes, device: torch.device) -> None:
    """Results, and gradients that are taken outside of vmap and inside."""
    f, given = FUNCTIONS[name], arguments(device, axes)
    require_the_loop(f, axes, given)
    gradient = pn.grad(lambda *given: weighted(f(*given)), (0, 1, 2))
    for place in range(3):
        of_one = lambda *given, place=place: gradient(*given)[place]  # noqa: E731
        torch.testing.assert_close(pn.vmap(of_one, axes)(*given), by_a_loop(of_one, axes)(*given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", BATCHED, ids=str)
def test_places_of_each_example(axes: Axes, device: torch.device) -> None:
    """The places that are filled may differ too, and be counted from the end."""
    x, row, number = arguments(device, axes)
    require_the_loop(lambda x, row, number: x.index_fill(0, row.argsort()[:2], number), axes, [x, row, number])
    from_the_end = lambda x, row, number: x.index_fill(-2, -1 - row.argsort()[:2], number)  # noqa: E731
    assert torch.equal(pn.vmap(from_the_end, axes)(x, row, number), by_a_loop(from_the_end, axes)(x, row, number))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_other_transformations(name: str, device: torch.device) -> None:
    """Under two vmaps, of which each batches something else, along another axis, and compiled."""
    f = FUNCTIONS[name]
    x, row, number = arguments(device, (0, 0, 0))
    expected = torch.stack([torch.stack([f(a, r, n) for r, n in zip(row, number, strict=True)]) for a in x])
    inner = pn.vmap(f, (None, 0, 0))
    assert torch.equal(pn.vmap(inner, (0, None, None))(x, row, number), expected)
    assert torch.equal(pn.vmap(inner, (2, None, None))(x.permute(1, 2, 0), row, number), expected)
    torch.testing.assert_close(pn.jit(pn.vmap(inner, (0, None, None)))(x, row, number), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_per_sample_gradients(name: str, device: torch.device) -> None:
    """Those that a record finds are those of the loop."""
    x, row, number = arguments(device, (None, None, 0))
    f = lambda p, number: weighted(FUNCTIONS[name](p["x"], p["row"] * number, number * 2))  # noqa: E731
    p = {"x": x, "row": row}
    expected = pn.tree.stack([pn.grad(f)(p, n) for n in number])
    assert pn.tree.allclose(pn.per_sample.grads(f)(p, (number,)), expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="torch 2.11 has no derivative of it under vmap"
)
@pytest.mark.parametrize("axes", [(-1, 0), (0, -1), (1, 2)], ids=str)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_axes_elsewhere(dimensions: int, axes: tuple[int, int], device: torch.device) -> None:
    """Derivatives of grid_sample, for which torch needs the examples in front, are right wherever these are."""
    keys = pn.random.split(pn.random.key(0, device), 2)
    images = pn.random.normal(keys[0], (EXAMPLES, 1, 1, *[2] * dimensions), dtype=torch.float64)
    places = pn.random.uniform(keys[1], (EXAMPLES, 1, *[1] * dimensions, dimensions), dtype=torch.float64)
    given = [x.movedim(0, axis) for x, axis in zip((images, places), axes, strict=True)]

    def f(x: Tensor, grid: Tensor) -> Tensor:
        return weighted(torch.nn.functional.grid_sample(x, grid, align_corners=False))

    for argument, axis in enumerate(axes):
        gradient = pn.grad(f, argument)
        expected = torch.stack([gradient(*pair) for pair in zip(images, places, strict=True)])
        torch.testing.assert_close(pn.vmap(gradient, axes)(*given), expected, rtol=0, atol=1e-12)
        outside = pn.grad(lambda *given: pn.vmap(f, axes)(*given).sum(), argument)(*given)
        torch.testing.assert_close(outside.movedim(axis, 0), expected, rtol=0, atol=1e-12)
    recorded = pn.per_sample.grads(lambda p, grid: f(p["x"], grid), in_dims=axes[1])({"x": images[0]}, (given[1],))
    expected = torch.stack([pn.grad(f)(images[0], grid) for grid in places])
    torch.testing.assert_close(recorded["x"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: torch.select_scatter(x, x[0], 0, 4),
        lambda x: torch.select_scatter(x, x[0, 0], 0, 0),
        lambda x: torch.select_scatter(x, x[0], 2, 0),
        lambda x: torch.roll(x, 1, 2),
        lambda x: torch.roll(x, (1, 1), (0,)),
        lambda x: x.index_fill(2, torch.tensor([0]), x[0, 0]),
        lambda x: x.index_fill(0, torch.tensor([[0]]), x[0, 0]),
        lambda x: x.index_fill(0, torch.tensor([0]), x[0]),
        lambda x: x.index_fill(0, torch.tensor([4]), x[0, 0]),
    ],
)
def test_errors_are_those_of_one_example(wrong: Callable[[Tensor], Tensor]) -> None:
    """What torch refuses without vmap is refused under it, in the same words but for the place of an axis."""
    x = torch.ones(EXAMPLES, 4, 3)
    with pytest.raises((RuntimeError, IndexError)) as alone:
        wrong(x[0])
    with pytest.raises((RuntimeError, IndexError)) as batched:
        pn.vmap(wrong)(x)
    assert str(batched.value).split(" for ")[0] == str(alone.value).split(" for ")[0]
