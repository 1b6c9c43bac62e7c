"""Every exception that purenn raises on purpose.

All of them derive from `PurennError` and from the builtin that fits, so ``except ValueError`` keeps working.
A message says where (the path in the tree, or the argument), what was expected, what came, and what to do.
"""

__all__ = [
    "ArgumentError",
    "BatchingError",
    "BridgeError",
    "CheckpointError",
    "ContainerError",
    "ConvergenceError",
    "DeviceError",
    "GradientError",
    "ImmutableError",
    "KeyReuseError",
    "MissingExtraError",
    "MutationError",
    "NumericsError",
    "PathError",
    "PlaceholderError",
    "PurennError",
    "SelectionError",
    "ShapeError",
    "StructureError",
    "TraceError",
    "TransformError",
]


class PurennError(Exception):
    """Base of all exceptions of this library."""


class ArgumentError(PurennError, ValueError):
    """An argument has a value that the function does not take."""


class ShapeError(PurennError, ValueError):
    """A tensor's shape does not fit the layer or the other tensors."""


class ContainerError(PurennError, TypeError):
    """A container is defined or built in a way that cannot work."""


class ImmutableError(PurennError, AttributeError):
    """A field of a container is assigned to or deleted."""


class PlaceholderError(PurennError, AttributeError):
    """A `HOLE` or an `Alias` is used as if it were the tensor whose place it takes."""


class StructureError(PurennError, ValueError):
    """Two trees that must have the same structure do not."""


class PathError(PurennError, LookupError):
    """A path names nothing in the tree, or cannot be written."""


class SelectionError(PurennError, LookupError):
    """A selection is empty, or reaches the same node twice."""


class DeviceError(PurennError, ValueError):
    """Tensors that must share a device do not."""


class CheckpointError(PurennError, ValueError):
    """A file of saved tensors cannot be written or does not fit the tree."""


class GradientError(PurennError, RuntimeError):
    """A function cannot be differentiated as asked."""


class BatchingError(PurennError, RuntimeError):
    """A function cannot be batched by `vmap` as asked."""


class MutationError(PurennError, RuntimeError):
    """A pure function wrote into one of its arguments."""


class MissingExtraError(PurennError, ImportError):
    """A part of the library needs another library, which is not installed."""


class KeyReuseError(PurennError, RuntimeError):
    """A random key was used twice while `purenn.random.strict` was active."""


class NumericsError(PurennError, ArithmeticError):
    """A value is NaN or infinite."""


class ConvergenceError(PurennError, ArithmeticError):
    """An iteration has not reached its end within the steps allowed."""


class BridgeError(PurennError, TypeError):
    """A module or a container cannot be carried over by `bridge`."""


class TransformError(PurennError, RuntimeError):
    """A transformation cannot be used where it stands."""


class TraceError(PurennError, RuntimeError):
    """A function cannot be traced, or is traced more often than allowed."""
