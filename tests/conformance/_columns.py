"""The columns: one promise each, checked for one case. A column fails by raising.

Wherever a value is held against torch or against a loop, it is in float64 and to 1e-9.
"""

from collections.abc import Callable
from typing import NamedTuple

import _promises_of_functions as functions
import _promises_of_places as places
import _promises_of_torch as of_torch
from _cases import Case


class Column(NamedTuple):
    """A promise.

    Attributes:
        check: checks it for one case.
        samples: how many samples of a row it is checked for.
        awkward: whether also for all awkward ones.
    """

    check: Callable[[Case], None]
    samples: int
    awkward: bool


COLUMNS: dict[str, Column] = {
    "forward": Column(of_torch.forward, 1000, True),
    "gradients": Column(of_torch.gradients, 30, True),
    "buffers": Column(of_torch.buffers, 6, True),
    "purity": Column(functions.purity, 30, True),
    "second order": Column(of_torch.second_order, 4, True),
    "gradcheck": Column(functions.gradcheck, 3, False),
    "jvp": Column(functions.forward_mode, 6, True),
    "vmap over inputs": Column(functions.vmap_inputs, 8, True),
    "vmap over models": Column(functions.vmap_models, 6, True),
    "vmap(grad)": Column(functions.vmap_of_grad, 6, True),
    "grad(vmap(grad))": Column(functions.grad_of_vmap_of_grad, 3, True),
    "per sample": Column(functions.per_sample, 6, True),
    "from_module": Column(functions.opaque, 3, True),
    "jit": Column(places.jit, 2, False),
    "torch.compile": Column(places.compile, 2, False),
    "torch.export": Column(places.export, 2, False),
    "bfloat16": Column(places.bfloat16, 6, False),
    "meta": Column(places.meta, 6, True),
    "save and load": Column(places.save_load, 3, False),
    "to_module": Column(places.to_module, 4, True),
    "device": Column(places.on_device, 2, True),
}
