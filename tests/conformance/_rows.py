"""The rows: every class of torch.nn that computes something, and its samples.

Samples come from torch's own table of modules, which covers 114 classes, from `_samplers` for the others, and from
`_awkward`.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from _awkward import AWKWARD
from _cases import Case
from _drawn import DRAWN
from _samplers import SAMPLERS
from _samples import Constructor, Sample
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.common_modules import ModuleInfo, ModuleInput, module_db

T = TypeVar("T")

# The 11 classes of torch.nn that compute nothing of their own.
NOTHING = {
    "Module": "abstract: the base of all modules",
    "RNNBase": "abstract: what RNN, LSTM and GRU share",
    "RNNCellBase": "abstract: what their cells share",
    "Container": "deprecated base of containers",
    "Sequential": "holds modules",
    "ModuleList": "holds modules",
    "ModuleDict": "holds modules",
    "ParameterList": "holds parameters",
    "ParameterDict": "holds parameters",
    "DataParallel": "runs another module on several devices",
    "NLLLoss2d": "deprecated second name of NLLLoss",
}
_INFOS: dict[str, ModuleInfo] = {info.module_cls.__name__: info for info in module_db}
ROWS: tuple[str, ...] = tuple(
    name for name, cls in inspect.getmembers(nn, inspect.isclass) if issubclass(cls, nn.Module) and name not in NOTHING
)


@functools.cache
def samples(row: str) -> tuple[Sample, ...]:
    """All samples of a class, those of torch's table first."""
    torch.manual_seed(0)
    found: list[Sample] = []
    if row in _INFOS:
        info = _INFOS[row]
        for train in (True, False) if info.train_and_eval_differ else (False,):
            made = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=train)
            found += [_sample(row, info, one, train) for one in made if one.forward_input is not None]
    if row in SAMPLERS:
        found += SAMPLERS[row]()
    return (*found, *AWKWARD.get(row, list)(), *DRAWN.get(row, list)())


def cases(row: str, count: int, *, awkward: bool = False) -> list[Case]:
    """A few cases of a class, always the same ones.

    Args:
        row: name of the class.
        count: how many of the ordinary samples, spread evenly over all of them.
        awkward: whether to add all that are awkward.
    """
    ordinary = [sample for sample in samples(row) if not sample.awkward]
    special = [sample for sample in samples(row) if sample.awkward and sample.raises is None]
    return [Case.of(sample) for sample in (*spread(ordinary, count), *(special if awkward else ()))]


def spread(values: Sequence[T], count: int) -> list[T]:
    """`count` of the values, or all if there are fewer: the first, the last, and evenly between."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]


def _sample(row: str, info: ModuleInfo, given: ModuleInput, train: bool) -> Sample:
    inputs, call = given.constructor_input, given.forward_input
    constructor = Constructor(info.module_cls, inputs.args, inputs.kwargs)

    def make() -> nn.Module:
        module = constructor.module(call.args, call.kwargs)
        if "FractionalMaxPool" in row and call.args[0].dim() == module._random_samples.shape[-1] + 1:
            # torch reads the draws of one example only where there is one.
            module._random_samples = module._random_samples[:1]
        return module

    special = _SPECIAL.get(row, {})
    sample = Sample(make, call.args, call.kwargs, given.desc, constructor, train, **special)
    return _unpacked(sample) if any(isinstance(arg, PackedSequence) for arg in call.args) else sample


def _log_softmax(x: Tensor) -> Tensor:
    """Inputs are log softmaxes: behind anything else torch's gradient is wrong."""
    return x.log_softmax(-1)


def _positive(x: Tensor) -> Tensor:
    """Inputs and targets are made positive: half of torch's samples are logarithms of negative numbers."""
    return x.nan_to_num(nan=0.5).abs() + 0.1


def _in_one_piece(module: Any, *args: Tensor) -> Tensor:
    """torch's second derivative of the loss in chunks is wrong, silently; this is the same loss in one piece."""
    module.options = None
    return module(*args)


def _magnitude(x: Tensor) -> Tensor:
    """Inputs are made positive: torch's samples raise negative numbers to fractional powers."""
    return x.abs()


_SPECIAL: dict[str, dict[str, Any]] = {
    "CTCLoss": {"before": _log_softmax},
    "LinearCrossEntropyLoss": {"differentiable_twice": _in_one_piece},
    "KLDivLoss": {"before": _positive},
    "LPPool1d": {"before": _magnitude},
    "LPPool2d": {"before": _magnitude},
    "LPPool3d": {"before": _magnitude},
}


def _unpacked(sample: Sample) -> Sample:
    # Ours takes padded sequences and their lengths.
    batch_first = sample.make().batch_first
    padded, lengths = pad_packed_sequence(sample.args[0], batch_first=batch_first)

    def expected(_: Case, module: nn.Module, x: Tensor, *states: Any) -> Any:
        """torch's module is given packed sequences, ours padded ones and their lengths."""
        packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
        y, last = module(packed, *states)
        return pad_packed_sequence(y, batch_first=batch_first)[0], last

    return Sample(
        sample.make,
        (padded.detach().requires_grad_(), *sample.args[1:]),
        sample.kwargs,
        f"{sample.name}_lengths",
        train=sample.train,
        expected=expected,
        lengths=lengths,
    )
