"""The arguments of torch's norms by their names, however they are given."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

_BY_POSITION = ("input", "weight", "bias", "running_mean", "running_var")
_NAMES: dict[Any, tuple[str, ...]] = {
    **{norm: tuple(inspect.signature(norm).parameters) for norm in (F.batch_norm, F.instance_norm, F.layer_norm)},
    # These have no signature that Python knows.
    torch.batch_norm: (*_BY_POSITION, "training", "momentum", "eps", "cudnn_enabled"),
    torch.instance_norm: (*_BY_POSITION, "use_input_stats", "momentum", "eps", "cudnn_enabled"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
}


def named(norm: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by name; None if it is no norm whose derivatives need care."""
    names = _NAMES.get(norm)
    return None if names is None else dict(zip(names, args, strict=False)) | dict(kwargs)
