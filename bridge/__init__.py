"""Pure functions as stateful modules, and modules as pure functions."""

from bridge._from_module import from_module
from bridge._module import Module
from bridge._to_module import to_module

__all__ = ["Module", "from_module", "to_module"]
