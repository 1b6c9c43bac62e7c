"""What a user can do wrong: every error says where, what and what to do instead."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError, BatchingError, GradientError, MutationError, PurennError
from purenn.layers import BatchNorm1d, BatchNorm2d, Conv2d, Lambda, Linear, Sequential

D = torch.float64
MIXES = (
    "per_sample.record: the function mixes the examples of a batch, {where}: with example {number} alone {what}, so "
    "the example has no gradient of its own. Leave out what is computed over the batch (statistics of a batch norm, a "
    "mean, a comparison of examples), or make the whole group of examples one example."
)
STATISTICS = (
    "per_sample.record: a batch normalisation, {layer} normalises with the statistics of the batch, so that the loss "
    "of one example depends on all of them, and there is no gradient for each. Apply it with train=False, or use "
    "GroupNorm, LayerNorm or InstanceNorm instead."
)
OTHER = "the loss is another than within the batch"


def setting(device: torch.device) -> tuple[Linear, Tensor, Tensor]:
    """A linear layer, five inputs and their classes."""
    p = Linear.init(pn.random.key(0, device), 4, 3, dtype=D)
    x = pn.random.normal(pn.random.key(1, device), (5, 4), dtype=D)
    return p, x, torch.arange(5, device=device) % 3


def refused(kind: type[PurennError], text: str, call: Callable[[], Any]) -> None:
    """Require an error with the whole text."""
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()


def test_loss_with_more_results(device: torch.device) -> None:
    """A record has no place for auxiliary results, and does not ask for them."""
    p, x, _ = setting(device)
    refused(
        GradientError,
        "per_sample.record: the function must return a scalar tensor, got a tuple.",
        lambda: pn.per_sample.record(lambda p, x: (p(x).sum(), 1), p, (x,)),
    )


def test_mean_over_the_batch(device: torch.device) -> None:
    """A function of a batch that returns its mean is told to leave the mean out."""
    p, x, y = setting(device)
    refused(
        GradientError,
        "per_sample.record: with batched=True the function must return one loss for each example, so [1] for a batch "
        "of one, but it returned f64[]. Leave the mean or the sum over the batch out (reduction='none'), or write the "
        "loss of one example and leave out batched=True.",
        lambda: pn.per_sample.record(lambda p, x, y: F.cross_entropy(p(x), y), p, (x, y), batched=True),
    )


def test_kronecker_factors_of_a_released_record(device: torch.device) -> None:
    """What a record has released it does not take for empty."""
    p, x, _ = setting(device)
    record = pn.per_sample.record(lambda p, x: p(x).sum(), p, (x,))
    record.release()
    refused(
        ArgumentError,
        "per_sample.record: kfac is made of inputs and output gradients, which release() has given up: ask for it "
        "before.",
        record.kfac,
    )


def test_kronecker_factors_of_what_is_not_recorded(device: torch.device) -> None:
    """Where inputs and output gradients are not recorded there is an error, not an empty answer."""
    p, x, _ = setting(device)

    def factors(p: Any, x: Tensor) -> Tensor:
        found = pn.per_sample.record(lambda p, x: p(x).sum(), p, (x,)).kfac()
        return torch.stack([factor.sum() for factors in found.values() for factor in factors]).sum()

    text = (
        "per_sample.record: kfac is made of inputs and output gradients, which are not recorded where something "
        "outside differentiates, batches or compiles the loss, where it takes derivatives itself, or where parameters "
        "are complex: ask for it elsewhere."
    )
    refused(ArgumentError, text, lambda: pn.grad(factors)(p, x))
    refused(ArgumentError, text, lambda: pn.vmap(factors, (None, 0))(p, x[None]))
    itself = pn.per_sample.record(lambda p, x: pn.grad(lambda p: p(x).sum())(p).weight.square().sum(), p, (x,))
    refused(ArgumentError, text, itself.kfac)
    turned = {"w": p.weight.detach() * (1 + 1j)}
    complex_one = pn.per_sample.record(lambda p, x: F.linear(x + 0j, p["w"]).abs().sum(), turned, (x,))
    refused(ArgumentError, text, complex_one.kfac)


def test_vector_loss(device: torch.device) -> None:
    """The loss of one example is a scalar."""
    p, x, _ = setting(device)
    refused(
        GradientError,
        "per_sample.record: the function must return a scalar tensor, got f64[3]. Reduce it with .mean() or .sum(), or "
        "use pn.jacrev for the derivatives of every element.",
        lambda: pn.per_sample.record(lambda p, x: p(x), p, (x,)),
    )


def test_batch_norm_of_batches_is_named(device: torch.device) -> None:
    """Batch statistics, with which a loss of one example fails, are found and the layer is named."""
    _, x, y = setting(device)
    first, second = pn.random.split(pn.random.key(0, device))
    norm = BatchNorm1d.init(3, dtype=D, device=device)
    p = Sequential.of(Linear.init(first, 4, 3, dtype=D), norm, Linear.init(second, 3, 3, dtype=D))
    refused(
        BatchingError,
        MIXES.format(where="in the layer 'layers.1'", number=0, what="it fails"),
        lambda: pn.per_sample.record(
            lambda p, x, y: F.cross_entropy(p(x, train=True)[0], y, reduction="none"), p, (x, y), batched=True
        ),
    )


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_images_is_named(affine: bool, device: torch.device) -> None:
    """Batch statistics over the positions of one image are refused, too; by name if the layer has parameters."""
    norm = BatchNorm2d.init(3, affine=affine, dtype=D, device=device)
    p = Sequential.of(Conv2d.init(pn.random.key(0, device), 2, 3, 3, dtype=D), norm)
    x = pn.random.normal(pn.random.key(1, device), (5, 2, 4, 4), dtype=D)
    refused(
        BatchingError,
        STATISTICS.format(layer="'layers.1',") if affine else STATISTICS.replace(", {layer}", ""),
        lambda: pn.per_sample.record(lambda p, x: p(x[None], train=True)[0].square().sum(), p, (x,)),
    )


@pytest.mark.parametrize("batched", [True, False])
def test_batch_norm_of_a_module_is_named(batched: bool, device: torch.device) -> None:
    """So are those within an opaque module."""
    torch.manual_seed(0)
    p = bridge.from_module(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(device=device, dtype=D))
    x = pn.random.normal(pn.random.key(1, device), (5, 2, 4, 4), dtype=D)

    def loss(p: Any, x: Any) -> Any:
        y, _ = p(x if batched else x[None], train=True)
        return y.flatten(1).square().sum(1) if batched else y.square().sum()

    refused(
        BatchingError, STATISTICS.format(layer="'1',"), lambda: pn.per_sample.record(loss, p, (x,), batched=batched)
    )


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_single_values_in_a_module(affine: bool, batched: bool, device: torch.device) -> None:
    """A module that normalises a single value is refused in these words, not in torch's about an input too small."""
    torch.manual_seed(0)
    p = bridge.from_module(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=affine)).to(device, D))
    x = pn.random.normal(pn.random.key(1, device), (5, 4), dtype=D)

    def loss(p: Any, x: Any) -> Any:
        y, _ = p(x if batched else x[None], train=True)
        return y.square().sum(1) if batched else y.square().sum()

    refused(
        BatchingError,
        STATISTICS.format(layer="'1',") if affine else STATISTICS.replace(", {layer}", ""),
        lambda: pn.per_sample.record(loss, p, (x,), batched=batched),
    )


def test_layer_that_mixes_is_named(device: torch.device) -> None:
    """A layer that compares the examples of its batch is found by its effect."""
    _, x, y = setting(device)
    first, second = pn.random.split(pn.random.key(0, device))
    parts = (
        Linear.init(first, 4, 3, dtype=D),
        Lambda(lambda h: h / (1 + h.norm(dim=0))),
        Linear.init(second, 3, 3, dtype=D),
    )
    p = Sequential.of(*parts)

    def loss(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(p(x), y, reduction="none")

    with pytest.raises(BatchingError) as caught:
        pn.per_sample.record(loss, p, (x, y), batched=True)
    number = re.search(r"example (\d)", str(caught.value))[1]
    assert str(caught.value) == MIXES.format(where="in the layer 'layers.1'", number=number, what=OTHER)


def test_function_that_mixes(device: torch.device) -> None:
    """A function that mixes examples outside of its layers is found."""
    p, x, y = setting(device)

    def loss(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(p(x) - p(x).mean(0), y, reduction="none")

    with pytest.raises(BatchingError) as caught:
        pn.per_sample.record(loss, p, (x, y), batched=True)
    number = re.search(r"example (\d)", str(caught.value))[1]
    where = "outside of its layers or within an opaque module"
    assert str(caught.value) == MIXES.format(where=where, number=number, what=OTHER)


@pytest.mark.parametrize("options", [{"microbatch": 3}, {"microbatch": 1}, {"key": 0}, {"key": 0, "microbatch": 2}])
def test_function_that_mixes_in_pieces_or_with_keys(options: dict[str, int], device: torch.device) -> None:
    """It is found as well where the batch is cut in pieces, and where every example has a key of its own."""
    p, x, _ = setting(device)
    given: dict[str, Any] = {**options, **({"key": pn.random.key(0, device)} if "key" in options else {})}

    def loss(p: Any, x: Any, key: Any = None) -> Any:
        noise = 0 if key is None else pn.random.normal(key, x.shape, dtype=D)
        return (p(x - x.mean(0)) + p(x + noise)).square().sum(1)

    with pytest.raises(BatchingError) as caught:
        pn.per_sample.record(loss, p, (x,), batched=True, **given).norms()
    number = re.search(r"example (\d)", str(caught.value))[1]
    where = "outside of its layers or within an opaque module"
    assert str(caught.value) == MIXES.format(where=where, number=number, what=OTHER)


def test_input_changed_afterwards(device: torch.device) -> None:
    """An input that is overwritten after its use would make the gradient wrong, and is refused."""

    def loss(p: Linear, x: Tensor) -> Tensor:
        x = x.cos()
        y = p(x)
        x.mul_(2)
        return y.sum()

    p, x, _ = setting(device)
    refused(
        MutationError,
        "per_sample.record: the function writes in place into the input of an operation with 'weight', which the "
        "gradient needs. Write `y = f(x)` into a new name instead of changing x in place.",
        lambda: pn.per_sample.record(loss, p, (x,)),
    )


def test_value_changed_that_the_gradient_needs(device: torch.device) -> None:
    """What no parameter has to do with is torch's to notice."""
    p, x, _ = setting(device)

    def loss(p: Linear, x: Tensor) -> Tensor:
        y = F.linear(x, p.weight).exp()
        return y.mul_(2).sum()

    refused(
        MutationError,
        "per_sample.record: the function overwrites in place a value that the gradient needs. Write `y = f(x)` into a "
        "new name instead of changing x in place.",
        lambda: pn.per_sample.record(loss, p, (x,)),
    )


def test_parameter_written_to(device: torch.device) -> None:
    """A parameter that is written to where no gradient is recorded is noticed, too."""

    def loss(p: Linear, x: Tensor) -> Tensor:
        with torch.no_grad():
            p.weight.add_(1)
        return p(x).sum()

    p, x, _ = setting(device)
    refused(
        MutationError,
        "per_sample.record: the function has written in place into its argument 0 or the batch. Arguments are never "
        "changed: return the new value instead, as pn.replace(p, running_mean=new).",
        lambda: pn.per_sample.record(loss, p, (x,)),
    )


def test_options_that_do_not_fit(device: torch.device) -> None:
    """Every option that cannot be is refused by name."""
    p, x, y = setting(device)

    def loss(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(p(x), y)

    record = pn.per_sample.record(loss, p, (x, y))
    ids = torch.zeros(5, dtype=torch.int64, device=device)
    for text, call in (
        ("norms(per) must be None, 'leaf' or 'layer', got 'row'.", lambda: record.norms("row")),
        (
            "weighted_sum takes a tensor with one weight for each of 5 examples, got f64[4].",
            lambda: record.weighted_sum(torch.ones(4, dtype=D, device=device)),
        ),
        (
            "weighted_sum takes a tensor with one weight for each of 5 examples, got f64[9].",
            lambda: record.weighted_sum(torch.ones(9, dtype=D, device=device)),
        ),
        (
            "weighted_sum takes a tensor with one weight for each of 5 examples, got f64[5,1].",
            lambda: record.weighted_sum(torch.ones(5, 1, dtype=D, device=device)),
        ),
        (
            "weighted_sum takes a tensor with one weight for each of 5 examples, got a list.",
            lambda: record.weighted_sum([1.0] * 5),
        ),
        ("gram takes another record, got a Tensor.", lambda: record.gram(x)),
        (
            "gram takes records of the same parameters, but 'weight' is f64[3,4] in one and f64[4,4] in the other.",
            lambda: record.gram(
                pn.per_sample.record(loss, Linear.init(pn.random.key(0, device), 4, 4, dtype=D), (x, y))
            ),
        ),
        (
            "automatic clipping needs a finite max_norm, got inf.",
            lambda: record.clipped_sum(float("inf"), mode="automatic"),
        ),
        ("mode must be 'flat', 'per_layer' or 'automatic', got 'all'.", lambda: record.clipped_sum(1.0, mode="all")),
        ("max_norm must be positive, got 0.", lambda: record.clipped_sum(0)),
        (
            "noise_scale compares examples and needs at least two, got 1.",
            lambda: pn.per_sample.record(loss, p, (x[:1], y[:1])).noise_scale(),
        ),
        *(
            (
                f"microbatch must be a whole number, at least 1, got {size}.",
                lambda size=size: pn.per_sample.record(loss, p, (x, y), microbatch=size),
            )
            for size in (0, 2.5)
        ),
        (
            "give segments or microbatch, not both: the rows of a unit must be in one piece. Cut the batch between "
            "units yourself.",
            lambda: pn.per_sample.record(loss, p, (x, y), segments=ids, microbatch=2),
        ),
        (
            "segments must be whole numbers, one for each of the 5 rows, got i64[4].",
            lambda: pn.per_sample.record(loss, p, (x, y), segments=ids[:4]),
        ),
        (
            "segments must be a tensor of whole numbers, got a list.",
            lambda: pn.per_sample.record(loss, p, (x, y), segments=[0] * 5),
        ),
        (
            "segments must be from 0 to 1, got 0 to 3.",
            lambda: pn.per_sample.record(loss, p, (x, y), segments=ids + 3 * (y == 2), num_segments=2),
        ),
        (
            "with batched=True the examples must be axis 0 of every input, got (1, 0).",
            lambda: pn.per_sample.record(loss, p, (x, y), in_dims=(1, 0), batched=True),
        ),
    ):
        refused(ArgumentError, f"per_sample.record: {text}", call)
