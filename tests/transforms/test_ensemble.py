"""Many models as one tree: made, applied, trained and averaged at once."""

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, StructureError
from purenn.layers import BatchNorm1d, Dropout, Linear, Sequential, Tanh


def _init(key: Tensor) -> Sequential:
    first, second = pn.random.split(key)
    return Sequential.of(Linear.init(first, 3, 8), Tanh(), Dropout(0.2), Linear.init(second, 8, 1))


def _loss(p: Sequential, x: Tensor, y: Tensor, key: Tensor | None = None) -> Tensor:
    return (p(x, key=key) - y).square().mean()


def _data(device: torch.device, steps: int) -> list[tuple[Tensor, Tensor]]:
    xs = pn.random.normal(pn.random.key(9, device), (steps, 16, 3))
    return [(x, x.sum(-1, keepdim=True).sin()) for x in xs]


def test_is_the_stack_of_the_models(device: torch.device) -> None:
    """Entry by entry the numbers of one model made with the key, bit for bit."""
    keys = pn.random.split(pn.random.key(0, device), 4)
    assert pn.tree.equal(pn.ensemble(_init)(keys), pn.tree.stack([_init(key) for key in keys]))


def test_arguments_and_leaves_that_are_no_tensors(device: torch.device) -> None:
    """Further arguments are shared, and numbers in the tree stay numbers."""
    keys = pn.random.split(pn.random.key(0, device), 4)
    made = pn.ensemble(lambda key, width, scale: {"p": Linear.init(key, width, 2), "scale": scale})(keys, 5, scale=3)
    assert made["p"].weight.shape == (4, 2, 5)
    assert made["scale"] == 3


def test_on_meta() -> None:
    """Shapes without memory."""
    keys = pn.random.split(pn.random.key(0), 3)
    assert pn.ensemble(Linear.init)(keys, 10_000, 10_000, device="meta").weight.shape == (3, 10_000, 10_000)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_fit_is_the_loop_over_models(device: torch.device, jit: bool, shared: bool) -> None:
    """Each model ends where training it alone ends, with its own keys and, if asked, its own data."""
    keys = pn.random.split(pn.random.key(0, device), 3)
    optimizer, key, batches = pn.optim.adam(0.01), pn.random.key(5, device), _data(device, 6)
    if not shared:
        batches = [tuple(torch.stack([v, v * 0.5, v + 1]) for v in batch) for batch in batches]
    models, losses = pn.optim.fit_ensemble(
        _loss, optimizer, pn.ensemble(_init)(keys), batches, key=key, shared=shared, jit=jit
    )
    for n, start in enumerate(keys):
        p = _init(start)
        state = optimizer.init(p)
        for step, batch in enumerate(batches):
            own = pn.random.split(pn.random.fold_in(key, step), 3)[n]
            mine = batch if shared else tuple(value[n] for value in batch)
            value, grads = pn.value_and_grad(_loss)(p, *mine, key=own)
            torch.testing.assert_close(losses[step, n], value, rtol=0, atol=1e-5)
            updates, state = optimizer.update(grads, state, p)
            p = pn.optim.apply_updates(p, updates)
        assert pn.tree.allclose(pn.tree.unstack(models)[n], p, atol=1e-5)


def test_stateful_models(device: torch.device) -> None:
    """The buffers of stateful models are trained along."""
    keys = pn.random.split(pn.random.key(0), 3)
    models = pn.ensemble(
        lambda key: Sequential.of(Linear.init(key, 3, 4), BatchNorm1d.init(4), Linear.init(key, 4, 1))
    )(keys)
    models = pn.tree.to(models, device=device)

    def loss(p: Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Sequential]:
        out, new = p(x, train=True)
        return (out - y).square().mean(), new

    trained, losses = pn.optim.fit_ensemble(loss, pn.optim.sgd(0.05), models, _data(device, 5))
    counts = [leaf for path, leaf in pn.tree.named_leaves(trained) if path.endswith("num_batches_tracked")]
    assert counts[0].tolist() == [5, 5, 5]
    assert losses.shape == (5, 3)


def test_no_batches(device: torch.device) -> None:
    """Nothing to train on changes nothing."""
    models = pn.ensemble(_init)(pn.random.split(pn.random.key(0, device), 3))
    trained, losses = pn.optim.fit_ensemble(_loss, pn.optim.sgd(0.1), models, [])
    assert pn.tree.equal(trained, models)
    assert losses.shape == (0, 3)


def test_soup(device: torch.device) -> None:
    """Averages, weighted averages; counters come from the first model."""
    models = {"w": torch.tensor([[1.0, 2.0], [3.0, 6.0]], device=device), "n": torch.tensor([4, 9], device=device)}
    assert pn.soup(models)["w"].tolist() == [2.0, 4.0]
    assert pn.soup(models)["n"] == 4
    assert pn.soup(models, weights=torch.tensor([3.0, 1.0]))["w"].tolist() == [1.5, 3.0]


def test_greedy_soup(device: torch.device) -> None:
    """Models are taken in the order of their scores, and only as long as the average gets no worse."""
    models = {"w": torch.tensor([5.0, -0.9, 1.0, 10.0], dtype=torch.float64, device=device)}
    seen: list[float] = []

    def score(p: dict[str, Tensor]) -> Tensor:
        seen.append(float(p["w"]))
        return -p["w"].abs()

    # Alone -0.9 is best; with 1.0 it is nearer to nought; 5.0 and 10.0 would take it away.
    assert abs(float(pn.soup(models, score=score)["w"]) - 0.05) < 1e-12
    assert seen[:4] == [5.0, -0.9, 1.0, 10.0]
    assert len(seen) == 7


def test_score_without_a_value(device: torch.device) -> None:
    """A model whose score is NaN is the worst, wherever it is."""
    for values in ([float("nan"), 2.0, 3.0], [2.0, 3.0, float("nan")]):
        models = torch.tensor(values, device=device)
        assert float(pn.soup(models, score=lambda p: p)) == 3.0


def test_weights(device: torch.device) -> None:
    """Negative weights move away from a model, sums of half floats do not overflow, gradients go through them."""
    models = torch.tensor([[1.0, 2.0], [3.0, 6.0]], device=device)
    weights = torch.tensor([2, -1], device=device)
    assert pn.soup(models, weights=weights).tolist() == [-1.0, -2.0]
    large = torch.tensor([60000.0, 60000.0], dtype=torch.float16, device=device)
    assert pn.soup(models, weights=large).tolist() == [2.0, 4.0]
    gradient = pn.grad(lambda weights: pn.soup(models, weights=weights)[0])(torch.tensor([1.0, 3.0], device=device))
    assert gradient.tolist() == [-0.375, 0.125]


def test_errors(device: torch.device) -> None:
    """Wrong use says what was wrong."""
    models = {"w": torch.ones(2, 3, device=device), "b": torch.ones(3, device=device)}
    with pytest.raises(StructureError) as error:
        pn.soup(models)
    assert str(error.value) == (
        "soup: 'w' is f32[2,3], where a leading axis of length 3 for the models was expected. Stack models with "
        "pn.tree.stack or make them with pn.ensemble."
    )
    with pytest.raises(StructureError) as error:
        pn.soup({})
    assert str(error.value) == ("soup: there are no models: the tree has no tensors, or its leading axis is empty.")
    with pytest.raises(ArgumentError) as error:
        pn.soup(models["w"], weights=torch.ones(2), score=float)
    assert str(error.value) == "soup takes weights or score, not both."
    with pytest.raises(ArgumentError) as error:
        pn.soup(models["w"], weights=torch.ones(3))
    text = "soup: weights must be a real tensor with one entry for each of the 2 models, got "
    assert str(error.value) == text + "f32[3]."
    with pytest.raises(ArgumentError) as error:
        pn.soup(models["w"], weights=[1, 2])  # pyright: ignore[reportArgumentType]
    assert str(error.value) == text + "[1, 2]."
    for weights, text in {
        (1.0, -1.0): (
            "soup: weights are divided by their sum, which must not be 0, got [1.0, -1.0]. For a difference of models "
            "subtract them: pn.tree.map(torch.sub, a, b)."
        ),
        (float("inf"), 1.0): "soup: weights must be finite numbers, got [inf, 1.0].",
    }.items():
        with pytest.raises(ArgumentError) as error:
            pn.soup(models["w"], weights=torch.tensor(weights, device=device))
        assert str(error.value) == text
    with pytest.raises(ArgumentError) as error:
        pn.soup(models["w"], score=lambda p: p)
    assert str(error.value) == "soup: score must return one real number, got f32[3]."
