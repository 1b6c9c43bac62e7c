"""`pn.vmap`: batching over inputs, models and keys, and its errors."""

import pytest
import torch
from _transform_models import DOUBLE, Affine, Net, affine, inputs, loss, make, net
from torch import Tensor

import purenn as pn


def test_over_inputs_models_and_both(device: torch.device) -> None:
    """Batching over inputs, over an ensemble, or over both equals the loop."""
    models, x = [make(device, seed) for seed in range(3)], inputs(device, 3)
    stacked = pn.tree.stack(models)
    torch.testing.assert_close(pn.vmap(net, (None, 0))(models[0], x), torch.stack([net(models[0], row) for row in x]))
    torch.testing.assert_close(pn.vmap(net, (0, None))(stacked, x), torch.stack([net(m, x) for m in models]))
    pairs = torch.stack([net(m, row) for m, row in zip(models, x, strict=True)])
    torch.testing.assert_close(pn.vmap(net)(stacked, x), pairs)


def test_per_sample_gradients(device: torch.device) -> None:
    """vmap(grad) gives a tree whose leaves have an axis of examples."""
    p, x = make(device), inputs(device)
    batched = pn.vmap(pn.grad(loss), (None, 0))(p, x)
    assert pn.tree.allclose(batched, pn.tree.stack([pn.grad(loss)(p, row) for row in x]), rtol=0, atol=1e-12)


def test_tree_of_axes(device: torch.device) -> None:
    """An entry of in_dims may be a tree like its argument; None shares a part among all examples."""
    p, x = make(device).second, torch.randn(2, 4, dtype=DOUBLE, device=device)
    weights = torch.stack([p.weight, 2 * p.weight], dim=1)
    batched = pn.vmap(affine, (Affine(1), 0))(Affine(weights), x)
    torch.testing.assert_close(batched, torch.stack([affine(p, x[0]), 2 * affine(p, x[1])]))
    biased = Affine(p.weight, torch.ones(2, 2, dtype=DOUBLE, device=device))
    assert pn.vmap(affine, (Affine(None, 0), None))(biased, x[0]).shape == (2, 2)


def test_out_dims_chunks_and_keywords(device: torch.device) -> None:
    """The new axis goes where asked, chunks give the same, and keywords are batched over axis 0."""
    p, x = make(device), inputs(device)
    whole = pn.vmap(net, (None, 0))(p, x)
    assert torch.equal(pn.vmap(net, (None, 0), out_dims=1)(p, x), whole.T)
    torch.testing.assert_close(pn.vmap(net, (None, 0), chunk_size=2)(p, x), whole, rtol=0, atol=1e-12)
    # To the last bit where a product of fewer rows, which may add its terms in another order, is exact.
    first, numbers = pn.tree.map(lambda leaf: (8 * leaf).round(), (p.first, x))
    batched = pn.vmap(affine, (None, 0), chunk_size=2)(first, numbers)
    assert torch.equal(batched, pn.vmap(affine, (None, 0))(first, numbers))
    assert pn.vmap(net, (None, 0), chunk_size=2)(p, x[:0]).shape == (0, *whole.shape[1:])
    assert torch.equal(pn.vmap(lambda p, *, x: net(p, x), None)(p, x=x), whole)
    both = pn.vmap(lambda p, x: {"a": net(p, x), "b": (x, None)}, (None, 0), out_dims={"a": 1, "b": 0})(p, x)
    assert torch.equal(both["a"], whole.T)
    assert torch.equal(both["b"][0], x)
    assert both["b"][1] is None


def test_results_that_do_not_depend_on_the_batch_are_repeated(device: torch.device) -> None:
    """A constant result gets the new axis too, and each example has its own copy."""
    zeros = pn.vmap(lambda x: torch.zeros(2, device=device))(inputs(device))
    assert zeros.shape == (5, 2)
    zeros[0] += 1
    assert zeros.sum() == 2


def test_keys_need_no_randomness_option(device: torch.device) -> None:
    """Draws from split keys are batched bit for bit."""
    keys = pn.random.split(pn.random.key(3, device), 4)
    batched = pn.vmap(lambda key: pn.random.normal(key, (5,)))(keys)
    assert torch.equal(batched, torch.stack([pn.random.normal(key, (5,)) for key in keys]))


def test_initialising_an_ensemble(device: torch.device) -> None:
    """vmap over keys of a function that builds a container gives the stacked container."""
    keys = pn.random.split(pn.random.key(0, device), 3)
    ensemble = pn.vmap(lambda key: Affine(pn.random.normal(key, (2, 4)), power=2))(keys)
    assert isinstance(ensemble, Affine)
    assert ensemble.weight.shape == (3, 2, 4)
    assert ensemble.power == 2


def test_nesting(device: torch.device) -> None:
    """vmap within vmap batches two axes."""
    models, x = pn.tree.stack([make(device, seed) for seed in range(3)]), inputs(device)
    grid = pn.vmap(pn.vmap(net, (None, 0)), (0, None))(models, x)
    assert grid.shape == (3, 5, 2)
    torch.testing.assert_close(grid[1, 2], net(pn.tree.unstack(models)[1], x[2]))


def check(error: pytest.ExceptionInfo, text: str) -> None:
    assert str(error.value) == text


def test_error_axes_differ(device: torch.device) -> None:
    """Axes of different lengths are named with their paths and shapes."""
    with pytest.raises(pn.errors.BatchingError) as error:
        pn.vmap(affine)(Affine(torch.ones(3, 2, 4, device=device)), torch.ones(5, 4, device=device))
    check(
        error,
        "vmap: the axes to batch over differ in length: argument 0, 'weight' is f32[3,2,4] with length 3 on axis 0 but "
        "argument 1 is f32[5,4] with length 5 on axis 0. Use None in in_dims for an argument that all examples share.",
    )


def test_error_no_axis(device: torch.device) -> None:
    """A leaf without the axis is named."""
    with pytest.raises(pn.errors.BatchingError) as error:
        pn.vmap(affine, (0, None))(Affine(torch.ones(3, 2, 4, device=device), None, torch.tensor(1, device=device)), 1)
    check(error, "vmap: argument 0, 'count' is i64[] and has no axis 0 to batch over; use None in in_dims.")


def test_error_in_dims(device: torch.device) -> None:
    """in_dims must fit the arguments."""
    p, x = make(device), inputs(device)
    with pytest.raises(pn.errors.ArgumentError) as error:
        pn.vmap(net, (0,))(p, x)
    check(
        error,
        "vmap: in_dims has 1 entries, but the function was called with 2 positional arguments: one entry for each, "
        "None for an argument that all examples share.",
    )
    with pytest.raises(pn.errors.ArgumentError) as error:
        pn.vmap(net, ({"first": 0}, 0))(p, x)
    check(
        error,
        "vmap: the entry of in_dims for argument 0 must be an int, None, or a tree like it; got {'first': 0} for a "
        "Net.",
    )
    with pytest.raises(pn.errors.ArgumentError) as error:
        pn.vmap(net, (None, 0), out_dims=None)(p, x)
    check(error, "vmap: the entry of out_dims for the result must be an int or a tree like it; got None for f64[2].")
    with pytest.raises(pn.errors.BatchingError) as error:
        pn.vmap(net, (None, None))(p, x)
    check(
        error,
        "vmap: there is nothing to batch over: no tensor among the arguments has an axis in in_dims=(None, None).",
    )
    with pytest.raises(pn.errors.ArgumentError) as error:
        pn.vmap(net, randomness="any")
    check(error, "vmap: randomness must be 'error', 'same' or 'different', got 'any'.")


def test_error_result_is_no_tensor(device: torch.device) -> None:
    """A result that is no tensor is named with its path."""
    with pytest.raises(pn.errors.BatchingError) as error:
        pn.vmap(lambda x: {"n": 3})(inputs(device))
    check(error, "vmap: the function must return tensors, got 3 at 'n': return it as a tensor, or not at all.")


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def draw(x: Tensor) -> Tensor:
    return x + torch.rand(3, device=x.device)


def fill(x: Tensor) -> Tensor:
    return torch.zeros(3, dtype=x.dtype, device=x.device).add_(x)


VALUE = (
    "vmap: the function asks for the value of a batched tensor (`if`, `while`, bool(), int() or .item()){at}. The "
    "value differs from example to example: use torch.where(condition, a, b), or keep the number as a tensor."
)


@pytest.mark.parametrize(
    ("fn", "kind", "text"),
    [
        (branch, pn.errors.BatchingError, VALUE),
        (item, pn.errors.BatchingError, VALUE),
        (
            draw,
            pn.errors.BatchingError,
            "vmap: the function draws from torch's global generator, which vmap cannot split among the examples{at}. "
            "Draw "
            "from an explicit key: keys = pn.random.split(key, n), then vmap over the keys and use pn.random.normal, "
            "pn.random.bernoulli or a layer's key= option.",
        ),
        (
            fill,
            pn.errors.MutationError,
            "vmap: the function writes in place a value larger than its target (a batched value into a tensor that is "
            "not){at}. Write `y = x + b` instead of `x.add_(b)`; a tensor to be filled must be made from a batched "
            "one.",
        ),
    ],
)
def test_error_what_cannot_be_batched(device: torch.device, fn: object, kind: type, text: str) -> None:
    """Control flow, .item(), torch's generator and in-place writes are explained with the user's line."""
    with pytest.raises(kind) as error:
        pn.vmap(fn)(inputs(device))
    code = fn.__code__
    with open(__file__) as source:
        line = source.read().splitlines()[code.co_firstlineno].strip()
    check(error, text.format(at=f" at test_vmap.py:{code.co_firstlineno + 1} (`{line}`)"))
    assert error.value.__cause__ is not None


def test_error_no_rule_of_torch(device: torch.device) -> None:
    """An operation without a batching rule, and one without a derivative, are named."""
    x = inputs(device)

    def listed(x: Tensor) -> Tensor:
        return torch._foreach_neg([x])[0]

    def stepped(x: Tensor) -> Tensor:
        return torch.heaviside(x, x + 1).sum()

    line = listed.__code__.co_firstlineno + 1
    with open(__file__) as source:
        code = source.read().splitlines()[line - 1].strip()
    advice = (
        "Use the layer of purenn.layers or the loss of purenn.losses for this operation, or write it in operations "
        "that have one."
    )
    with pytest.raises(pn.errors.BatchingError) as batching:
        pn.vmap(listed)(x)
    check(
        batching,
        f"vmap: torch has no batching rule for aten::_foreach_neg at test_vmap.py:{line} (`{code}`). {advice}",
    )
    with pytest.raises(pn.errors.GradientError) as gradient:
        pn.grad(stepped)(x)
    check(gradient, f"grad: torch has no derivative for aten::heaviside. {advice}")
    assert batching.value.__cause__ is not None
    assert gradient.value.__cause__ is not None


def test_other_errors_arrive_unchanged(device: torch.device) -> None:
    """An error of the function that has nothing to do with vmap is left alone."""
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size mismatch|Shape mismatch"):
        pn.vmap(lambda x: torch.ones(2, 2, dtype=DOUBLE, device=device) @ x)(inputs(device))
    with pytest.raises(KeyError):
        pn.vmap(lambda x: {}["k"])(inputs(device))


def test_function_name_is_kept() -> None:
    """The transformed function has the name and docstring of the original."""

    def named(p: Net) -> Net:
        """What it does."""
        return p

    assert pn.vmap(named).__name__ == pn.grad(named).__name__ == "named"
    assert pn.vmap(named).__doc__ == "What it does."
