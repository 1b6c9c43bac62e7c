"""Convolutional capsules: every output capsule sees a window of positions, with the same matrices at each of them.

Capsules are ``[*batch, types, height, width, dim]``, their activations ``[*batch, types, height, width]``.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.initializers import normal
from purenn.layers.capsule._votes import Routed, Windows, make_votes
from purenn.layers.capsule.connected import placed, sides_of
from purenn.tree import Layer, applies, container, static


@container
class ConvCapsules2d(Layer):
    """Capsules that are connected to a window of the layer below; see `conv_capsules2d`.

    Attributes:
        weight: one matrix for every pair of types and place of the window, ``[out_types, in_types, height, width,
            out_dim, in_dim]``, or ``[..., n, m]`` for capsules that are matrices.
        routing: see `Capsules`.
        stride: from window to window, in positions.
        padding: positions with capsules of zero around the input.
    """

    weight: Float[Tensor, "out_types in_types kernel_height kernel_width out_dim in_dim"]
    routing: Layer
    stride: int = static(default=1)
    padding: int = static(default=0)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_types: int,
        out_types: int,
        kernel_size: int,
        routing: Layer,
        *,
        in_dim: int = 8,
        out_dim: int = 8,
        matrix: bool = False,
        stride: int = 1,
        padding: int = 0,
        std: float = 0.05,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "ConvCapsules2d":
        """Draw the weight from a normal distribution.

        Args:
            key: random key.
            in_types: capsules at each position of the input.
            out_types: capsules at each position of the output.
            kernel_size: height and width of the window.
            routing: see `Capsules`; it has the sizes of one window, ``in_types * kernel_size**2`` input capsules.
            in_dim: components of an input capsule. Default: 8.
            out_dim: components of an output capsule. Default: 8.
            matrix: whether capsules are square matrices; `in_dim` and `out_dim` are then n * n. Default: False.
            stride: from window to window. Default: 1.
            padding: positions around the input. Default: 0.
            std: standard deviation of the weight. Default: 0.05.
            dtype: of the weight. Default: torch's default dtype.
            device: of the weight. Default: the key's.

        Raises:
            ArgumentError: window, stride or padding are too small, or capsules shall be square matrices, and `in_dim`
                or `out_dim` is no square number.
        """
        sides = sides_of("ConvCapsules2d.init", in_dim, out_dim, matrix)
        if kernel_size < 1 or stride < 1 or padding < 0:
            raise ArgumentError(
                f"ConvCapsules2d.init: kernel_size and stride must be at least 1 and padding at least 0, got "
                f"kernel_size={kernel_size}, stride={stride} and padding={padding}."
            )
        shape = (out_types, in_types, kernel_size, kernel_size, *sides)
        return cls(normal(key, shape, std=std, **placed(dtype, device)), routing, stride, padding)

    def extra_repr(self) -> str:
        """The sizes, as modules write them."""
        out_types, in_types, *kernel_size = self.weight.shape[:4]
        return (
            f"in_types={in_types}, out_types={out_types}, kernel_size={tuple(kernel_size)}, stride={self.stride}, "
            f"padding={self.padding}"
        )


@applies(ConvCapsules2d)
def conv_capsules2d(
    p: ConvCapsules2d,
    poses: Float[Tensor, "*batch in_types height width in_dim"],
    activations: Float[Tensor, "*batch in_types height width"] | None = None,
) -> Routed:
    """Route the capsules of every window.

    With EM routing an input capsule shares its vote among the output capsules of **all** windows that it is in; with
    the other routings among those of each window alone.

    Args:
        p: the parameters.
        poses: the input capsules.
        activations: how surely each is present.

    Returns:
        Poses ``[*batch, out_types, out_height, out_width, out_dim]`` and activations of that shape without its last
        axis.

    Raises:
        ArgumentError: the routing needs activations and there are none.
        ShapeError: the shapes do not fit, or the input is smaller than a window.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, section 4.
    """
    _require_maps("conv_capsules2d", poses, activations)
    types, height, width = poses.shape[-4:-1]
    kernel = tuple(p.weight.shape[2:4])
    sizes = [(n + 2 * p.padding - k) // p.stride + 1 for n, k in zip((height, width), kernel, strict=True)]
    if types != p.weight.shape[1] or min(sizes) < 1:
        raise ShapeError(
            f"conv_capsules2d: expected capsules [*batch, {p.weight.shape[1]}, height, width, in_dim], padded to at "
            f"least {kernel[0]}x{kernel[1]} positions, got {tuple(poses.shape)} and padding {p.padding}."
        )
    around = (p.padding,) * 4
    padded = F.pad(poses, (0, 0, *around))
    index = _windows(padded.shape[-3:-1], kernel, p.stride, sizes, poses.device)
    count = math.prod(padded.shape[-3:-1])
    places = torch.arange(types, device=poses.device).unsqueeze(-1) * count
    children = (places + index.unsqueeze(-2)).flatten(-2)
    seen = padded.flatten(-4, -2)[..., children, :]
    active = None if activations is None else F.pad(activations, around).flatten(-3)[..., children]
    weight = p.weight.flatten(1, 3)
    routed = p.routing((weight, seen), active, windows=Windows(children, types * count))
    return Routed(routed.poses.movedim(-3, -2).unflatten(-2, sizes), routed.activations.mT.unflatten(-1, sizes))


def _require_maps(name: str, poses: Tensor, activations: Tensor | None) -> None:
    if poses.dim() < 4 or (activations is not None and activations.shape != poses.shape[:-1]):
        got = "none" if activations is None else str(tuple(activations.shape))
        raise ShapeError(
            f"{name}: expected capsules [*batch, types, height, width, dim] and activations [*batch, types, height, "
            f"width], got capsules {tuple(poses.shape)} and activations {got}."
        )


def _windows(size: torch.Size, kernel: tuple[int, ...], stride: int, sizes: list[int], device: torch.device) -> Tensor:
    """The numbers of the positions in each window, ``[windows, kernel_height * kernel_width]``."""
    row, column = (
        torch.arange(n, device=device).unsqueeze(1) * stride + torch.arange(k, device=device)
        for n, k in zip(sizes, kernel, strict=True)
    )
    return (row[:, None, :, None] * size[1] + column[None, :, None, :]).flatten(0, 1).flatten(1)


@container
class ClassCapsules2d(Layer):
    """Capsules without a position that see all positions, with the same matrices at each; see `class_capsules2d`.

    Attributes:
        weight: one matrix for every pair of types, ``[out_caps, in_types, out_dim, in_dim]``, or ``[..., n, m]`` for
            capsules that are matrices.
        routing: see `Capsules`.
        coordinates: whether the position of an input capsule is added to its votes.
    """

    weight: Float[Tensor, "out_caps in_types out_dim in_dim"]
    routing: Layer
    coordinates: bool = static(default=True)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_types: int,
        out_caps: int,
        routing: Layer,
        *,
        in_dim: int = 16,
        out_dim: int = 16,
        matrix: bool = True,
        coordinates: bool = True,
        std: float = 0.05,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "ClassCapsules2d":
        """Draw the weight from a normal distribution.

        Args:
            key: random key.
            in_types: capsules at each position of the input.
            out_caps: number of output capsules.
            routing: see `Capsules`; one that takes votes.
            in_dim: components of an input capsule. Default: 16.
            out_dim: components of an output capsule. Default: 16.
            matrix: whether capsules are square matrices; `in_dim` and `out_dim` are then n * n. Default: True.
            coordinates: whether positions are added to the votes. Default: True.
            std: standard deviation of the weight. Default: 0.05.
            dtype: of the weight. Default: torch's default dtype.
            device: of the weight. Default: the key's.

        Raises:
            ArgumentError: capsules shall be square matrices, and `in_dim` or `out_dim` is no square number.
        """
        sides = sides_of("ClassCapsules2d.init", in_dim, out_dim, matrix)
        return cls(normal(key, (out_caps, in_types, *sides), std=std, **placed(dtype, device)), routing, coordinates)


@applies(ClassCapsules2d)
def class_capsules2d(
    p: ClassCapsules2d,
    poses: Float[Tensor, "*batch in_types height width in_dim"],
    activations: Float[Tensor, "*batch in_types height width"] | None = None,
) -> Routed:
    """Route the capsules of all positions to capsules that have none.

    Args:
        p: the parameters.
        poses: the input capsules.
        activations: how surely each is present.

    Raises:
        ArgumentError: the routing needs activations and there are none.
        ShapeError: the shapes do not fit.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, section 4.
    """
    _require_maps("class_capsules2d", poses, activations)
    by_position = poses.movedim(-4, -2)
    votes = make_votes("class_capsules2d", (p.weight, by_position))
    placed_votes = add_coordinates(votes) if p.coordinates else votes
    # [*batch, height, width, out_caps, in_types, dim] to [*batch, out_caps, in_types * height * width, dim]
    flat = placed_votes.movedim((-5, -4), (-3, -2)).flatten(-4, -2)
    return p.routing(flat, None if activations is None else activations.flatten(-3))


def add_coordinates(
    votes: Float[Tensor, "*batch height width out_caps in_types dim"],
) -> Float[Tensor, "*batch height width out_caps in_types dim"]:
    """Add the position of an input capsule, between 0 and 1, to two components of its votes.

    They are the first two of the last column of a 4x4 matrix, components 3 and 7 of 16; 0 and 1 of any other size.

    Raises:
        ShapeError: votes have fewer than two components.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, section 4.
    """
    height, width = votes.shape[-5:-3]
    dim = votes.shape[-1]
    if dim < 2:
        raise ShapeError(
            f"add_coordinates: votes need two components or more to carry a position, got {tuple(votes.shape)}. For "
            f"ClassCapsules2d there is coordinates=False."
        )
    rows, columns = ((torch.arange(n, device=votes.device, dtype=votes.dtype) + 0.5) / n for n in (height, width))
    first, second = (3, 7) if dim == 16 else (0, 1)
    unit = torch.eye(dim, dtype=votes.dtype, device=votes.device)
    offsets = rows[:, None, None] * unit[first] + columns[None, :, None] * unit[second]
    return votes + offsets[:, :, None, None, :]
