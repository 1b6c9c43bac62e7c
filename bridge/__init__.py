"""Pure functions as stateful modules, and modules as pure functions."""

from bridge._convert import convert
from bridge._convert_registry import register_conversion
from bridge._export import export
from bridge._from_module import from_module
from bridge._module import Module
from bridge._optimizer import TorchState, optimizer
from bridge._optimizer_of_module import Optimizer
from bridge._pure_questions import register_helper
from bridge._report import report
from bridge._state_dict import load_state_dict, state_dict
from bridge._to_module import to_module

__all__ = [
    "Module",
    "Optimizer",
    "TorchState",
    "convert",
    "export",
    "from_module",
    "load_state_dict",
    "optimizer",
    "register_conversion",
    "register_helper",
    "report",
    "state_dict",
    "to_module",
]
