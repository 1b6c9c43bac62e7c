"""Architectures of Hugging Face's transformers, made from tiny configurations without any download."""

import copy
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import optree
import torch
from _huggingface_models import ARCHITECTURES, MORE, VOCABULARY
from torch import Tensor, nn

import bridge
import purenn as pn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

BATCH, LENGTH, EXAMPLES = 2, 6, 2
_ALL = {**ARCHITECTURES, **MORE}


#: Mixtures of experts have two forms that torch can run in float64.
_EXPERTS = dict.fromkeys(("MixtralModel", "Qwen2MoeModel", "OlmoeModel"), ("eager", "batched_mm"))
#: Computes in float32 whatever the dtype of its parameters.
_SINGLE = frozenset({"Mamba2Model"})
#: Cast a part of themselves when they run for the first time.
_CASTING = frozenset({"SwitchTransformersModel", "NllbMoeModel"})


@attrs.frozen(eq=False)
class Architecture:
    """A model in float64, and a call of it.

    Attributes:
        model: the model, in evaluation mode.
        tolerance: to which values are compared.
        arguments: the arguments of example `n`, by names.
    """

    model: nn.Module
    tolerance: float
    arguments: Callable[[int], dict[str, Any]]


def make(name: str, attention: str, masked: bool, experts: str = "eager") -> Architecture:
    """Make a model.

    Args:
        name: one of `ARCHITECTURES` or `MORE`.
        attention: "eager" or "sdpa".
        masked: whether sequences are padded and have a mask that says so.
        experts: "eager" or "batched_mm", for mixtures of experts.
    """
    import transformers

    kind, options = _ALL[name]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = {"attn_implementation": attention, "experts_implementation": experts}
        model = cls._from_config(cls.config_class(**options), **how)
    tolerance = 1e-4 if name in _SINGLE else 1e-9
    made = Architecture(model.double().eval(), tolerance, lambda number: _arguments(kind, options, masked, number))
    if name in _CASTING:
        with torch.no_grad():
            made.model(**made.arguments(0))
    return made


def settings(name: str) -> Iterator[tuple[str, bool, str]]:
    """The kinds of attention, whether there are masks, and the forms of experts, that an architecture has."""
    import transformers

    kind, cls = _ALL[name][0], getattr(transformers, name)
    kinds = ["eager", "sdpa"] if cls._supports_sdpa else ["eager"]
    masks = [False, True] if kind in ("text", "pair") else [False]
    for attention in kinds:
        for masked in masks:
            for experts in _EXPERTS.get(name, ("eager",)):
                yield attention, masked, experts


def _arguments(kind: str, options: dict[str, Any], masked: bool, number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number + 1)

    def words(length: int = LENGTH) -> Tensor:
        return torch.randint(3, VOCABULARY, (BATCH, length), generator=generator)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)

    given: dict[str, Any] = {}
    if kind in ("text", "pair"):
        given["input_ids"] = words()
        if masked:
            lengths = torch.tensor([LENGTH - 1 - number, LENGTH])
            given["attention_mask"] = (torch.arange(LENGTH) < lengths[:, None]).long()
    if kind == "pair":
        given["decoder_input_ids"] = words(4)
    if kind == "image":
        given["pixel_values"] = numbers(3, *[options.get("image_size", 16)] * 2)
    if kind == "sound":
        given["input_values"] = numbers(60)
    if kind == "spectrogram":
        given["input_values"] = numbers(12, 8)
    if kind == "speech":
        given |= {"input_features": numbers(4, 12), "decoder_input_ids": words(4)}
    return given


def _value(outputs: Any) -> Tensor:
    found = next(
        y for y in optree.tree_leaves(tuple(outputs.values())) if isinstance(y, Tensor) and y.is_floating_point()
    )
    return (found.sin() * torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).reshape(found.shape)).sum()


def _apply(p: Any, arguments: dict[str, Any]) -> Any:
    out = p(**arguments)
    return out[0] if pn.is_stateful(p) else out


def _loss(p: Any, arguments: dict[str, Any]) -> Tensor:
    return _value(_apply(p, arguments))


def _close(one: Architecture, found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=one.tolerance, atol=one.tolerance, equal_nan=True)


def _stacked(arguments: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.stack([one[name] for one in arguments]) for name in arguments[0]}


def forward(one: Architecture, p: Any) -> None:
    """The values are the model's, and neither model nor container is touched."""
    before = copy.deepcopy(one.model.state_dict())
    leaves = pn.tree.map(torch.clone, p)
    _close(one, _loss(p, one.arguments(0)), _value(copy.deepcopy(one.model)(**one.arguments(0))).detach())
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())
    assert pn.tree.equal(p, leaves)


def _gradients(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(_value(model(**arguments)), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(named[name]) if g is None else g for name, g in zip(named, found, strict=True)}


def gradients(one: Architecture, p: Any) -> None:
    """Gradients are the model's."""
    found = dict(pn.tree.named_leaves(pn.grad(_loss)(p, one.arguments(0))))
    for name, expected in _gradients(one.model, one.arguments(0)).items():
        _close(one, found[name], expected)


def per_sample(one: Architecture, p: Any) -> None:
    """Gradients of every example by vmap(grad) are those of a loop."""
    examples = [one.arguments(n) for n in range(EXAMPLES)]
    found = dict(pn.tree.named_leaves(pn.vmap(pn.grad(_loss), (None, 0))(p, _stacked(examples))))
    loop = [_gradients(one.model, arguments) for arguments in examples]
    for name in loop[0]:
        _close(one, found[name], torch.stack([each[name] for each in loop]))


def ensembles(one: Architecture, p: Any) -> None:
    """Several models, batched over models and over models and inputs, are those of a loop."""
    scaled = [p, pn.tree.map(lambda leaf: leaf * 1.1 if leaf.is_floating_point() else leaf, p)]
    models, examples = pn.tree.stack(scaled), [one.arguments(n) for n in range(EXAMPLES)]
    _close(one, pn.vmap(_loss, (0, None))(models, examples[0]), torch.stack([_loss(q, examples[0]) for q in scaled]))
    expected = torch.stack([_loss(q, x) for q, x in zip(scaled, examples, strict=True)])
    _close(one, pn.vmap(_loss, (0, 0))(models, _stacked(examples)), expected)


CHECKS = {"forward": forward, "gradients": gradients, "per-sample gradients": per_sample, "ensembles": ensembles}


def print_table(only: list[str] | None) -> int:
    """Check all architectures and print how many pass."""
    import transformers

    warnings.simplefilter("ignore")
    passed: Counter[str] = Counter()
    total = 0
    for name in only or _ALL:
        for attention, masked, experts in settings(name):
            total += 1
            cells = []
            one = make(name, attention, masked, experts)
            for check, run in CHECKS.items():
                try:
                    run(one, bridge.from_module(one.model))
                    passed[check] += 1
                    cells.append("ok")
                # Whatever goes wrong is the result.
                except Exception as error:
                    cells.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            mask = "padding" if masked else "no mask"
            print(f"| {name} | {attention} | {mask} | {' | '.join(cells)} |", flush=True)
    print(f"transformers {transformers.__version__}, {len(only or _ALL)} architectures, {total} settings:")
    print(", ".join(f"{check} {passed[check]}" for check in CHECKS))
    return int(any(passed[check] < total for check in CHECKS))
