"""A stack of equal layers as one container whose leaves have a leading axis: entry i belongs to layer i.

Applying it is a `pn.scan`: in eager a loop, under `pn.jit` one step that is traced and compiled once however many
layers there are. `Sequential` is for layers that differ, and writes each of them out.
"""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, ContainerError
from purenn.transforms import ensemble, scan
from purenn.tree import Layer, applies, combine, container, is_stateful, leaves, partition, replace, static, unstack
from purenn.tree import stack as stack_trees
from purenn.tree._applies import binding_of, container_of


@container
class Stack(Layer):
    """Equal layers, applied one after the other.

    Attributes:
        layers: a layer whose leaves are ``[number of layers, *shape]``.
        remat: whether gradients in eager keep only the input of each layer, see `pn.remat`. Default: False.
    """

    layers: Any
    remat: bool = static(default=False)

    @classmethod
    def init(cls, key: Tensor, number: int, init: Callable[[Tensor], Any], *, remat: bool = False) -> Self:
        """Draw all layers at once.

        Args:
            key: random key, split among the layers.
            number: how many layers.
            init: makes one layer of a key.
            remat: see the class. Default: False.

        Raises:
            ArgumentError: `number` is not positive.
            ContainerError: `init` makes something that cannot be applied, or has no tensors.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.layers import Linear, Stack
            >>> p = Stack.init(pn.random.key(0), 8, lambda key: Linear.init(key, 16, 16))
            >>> p.layers.weight.shape, p(torch.ones(2, 16)).shape
            (torch.Size([8, 16, 16]), torch.Size([2, 16]))
        """
        if number < 1:
            raise ArgumentError(f"Stack.init: number must be at least 1, got {number}.")
        return cls._checked(ensemble(init)(random.split(key, number)), remat)

    @classmethod
    def of(cls, *layers: Any, remat: bool = False) -> Self:
        """Stack layers that are there already.

        Raises:
            StructureError: they are not equal in structure, shapes and dtypes.
            ContainerError: they cannot be applied, or have no tensors.
        """
        return cls._checked(stack_trees(layers), remat)

    @classmethod
    def _checked(cls, layers: Any, remat: bool) -> Self:
        if binding_of(layers) is None:
            raise ContainerError(
                f"Stack: its members are of type {type(layers).__name__}, which has no function to apply: bind one "
                f"with @pn.applies."
            )
        if not leaves(layers):
            raise ContainerError(
                f"Stack: its members are of type {type(layers).__name__} and have no tensors, so nothing says how many "
                f"there are: use Sequential."
            )
        return cls(layers, remat)

    @property
    def number(self) -> int:
        """How many layers there are."""
        return len(leaves(container_of(self.layers))[0])

    def __len__(self) -> int:
        return self.number

    def unstacked(self) -> tuple[Any, ...]:
        """The layers one by one; their leaves are views."""
        return unstack(container_of(self.layers))

    def extra_repr(self) -> str:
        """The number of layers."""
        return f"number={self.number}, remat={self.remat}"


@applies(Stack)
def stack(p: Stack, x: Any, *inputs: Any, key: Tensor | None = None, train: bool = False) -> Any:
    """Apply the layers in order, each to the output of the one before, which must look like its input.

    Args:
        p: the layers.
        x: the input of the first layer.
        *inputs: further inputs, the same for all layers (a mask, for example).
        key: random key; it is split among the layers if they take one. Without it all are deterministic.
        train: passed to the layers if they take it.

    Returns:
        The output, or ``(output, new container)`` exactly if the layers are stateful.

    Raises:
        StructureError: a layer's output does not look like its input.
    """
    layers = container_of(p.layers)
    binding, stateful = binding_of(layers), is_stateful(layers)
    assert binding is not None
    options: dict[str, Any] = {"train": train} if "train" in binding.takes else {}
    keys = random.split(key, p.number) if key is not None and "key" in binding.takes else None

    def body(carry: Any, entry: tuple[Any, Any]) -> tuple[Any, Any]:
        layer, own = entry
        result = binding.layer(layer, carry, *inputs, **options, **({} if own is None else {"key": own}))
        if not stateful:
            return result, None
        result, new = result
        return result, partition(new, kind="buffer")[0]

    y, buffers = scan(body, x, (layers, keys), remat=p.remat)
    if not stateful:
        return y
    return y, replace(p, layers=combine(partition(layers, kind="buffer")[1], buffers))
