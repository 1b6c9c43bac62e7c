"""Pure functions as stateful modules, and modules as pure functions."""

from bridge._convert import convert, register_conversion
from bridge._from_module import from_module
from bridge._module import Module
from bridge._report import report
from bridge._to_module import to_module

__all__ = ["Module", "convert", "from_module", "register_conversion", "report", "to_module"]
