"""The capsule network of Sabour, Frosst and Hinton (2017), with its decoder."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.capsule import (
    DynamicRouting,
    PrimaryCapsules,
    capsule_lengths,
    mask_capsules,
    primary_capsules,
    routing,
)
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.linear import Linear, linear
from purenn.tree import Layer, applies, container, static


class CapsNetOutput(NamedTuple):
    """What `capsnet` returns.

    Attributes:
        lengths: how surely each class is present, in [0, 1): ``[*batch, classes]``.
        poses: the class capsules: ``[*batch, classes, dim]``.
        reconstruction: the image that the decoder makes of the kept capsule, None without a decoder.
    """

    lengths: Tensor
    poses: Tensor
    reconstruction: Tensor | None


@container
class CapsNet(Layer):
    """Convolution, primary capsules, routed class capsules, and a decoder that makes the image from one of them.

    Attributes:
        conv: the first convolution, followed by a ReLU.
        primary: the primary capsules.
        classes: the routed class capsules.
        decoder: linear layers with ReLU between them and a sigmoid at the end; empty for none.
        image_shape: channels, height and width.
    """

    conv: Conv2d
    primary: PrimaryCapsules
    classes: DynamicRouting
    decoder: tuple[Linear, ...]
    image_shape: tuple[int, int, int] = static(default=(1, 28, 28))

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        channels: int = 256,
        kernel_size: int = 9,
        primary_types: int = 32,
        primary_dim: int = 8,
        primary_kernel_size: int = 9,
        primary_stride: int = 2,
        capsule_dim: int = 16,
        iterations: int = 3,
        decoder: tuple[int, ...] | None = (512, 1024),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "CapsNet":
        """Draw the parameters. The defaults are the paper's: 6,804,224 parameters, 8,215,568 with the decoder.

        Args:
            key: a random key.
            image_shape: channels, height and width of an image. Default: (1, 28, 28).
            num_classes: number of class capsules. Default: 10.
            channels: of the first convolution. Default: 256.
            kernel_size: of the first convolution. Default: 9.
            primary_types: primary capsules at each position. Default: 32.
            primary_dim: components of a primary capsule. Default: 8.
            primary_kernel_size: of the primary capsules' convolution. Default: 9.
            primary_stride: of the primary capsules' convolution. Default: 2.
            capsule_dim: components of a class capsule. Default: 16.
            iterations: of routing. Default: 3.
            decoder: sizes of the decoder's hidden layers, None for no decoder. Default: (512, 1024).
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.

        Raises:
            ArgumentError: the image is too small for the convolutions.
        """
        in_channels, *size = image_shape
        maps = [(n - kernel_size + 1 - primary_kernel_size) // primary_stride + 1 for n in size]
        if min(maps) < 1:
            raise ArgumentError(
                f"CapsNet: an image of {size[0]}x{size[1]} is too small for kernels of {kernel_size} and "
                f"{primary_kernel_size}: they need at least {kernel_size + primary_kernel_size - 1} pixels. Use "
                f"smaller kernels."
            )
        keys = random.split(key, 4)
        placed = {"dtype": dtype, "device": device}
        return cls(
            conv=Conv2d.init(keys[0], in_channels, channels, kernel_size, **placed),
            primary=PrimaryCapsules.init(
                keys[1],
                channels,
                types=primary_types,
                dim=primary_dim,
                kernel_size=primary_kernel_size,
                stride=primary_stride,
                **placed,
            ),
            classes=DynamicRouting.init(
                keys[2],
                primary_types * math.prod(maps),
                num_classes,
                in_dim=primary_dim,
                out_dim=capsule_dim,
                iterations=iterations,
                **placed,
            ),
            decoder=draw_decoder(keys[3], num_classes * capsule_dim, decoder, image_shape, **placed),
            image_shape=image_shape,
        )


@applies(CapsNet)
def capsnet(
    p: CapsNet, x: Float[Tensor, "*batch channels height width"], *, label: Int[Tensor, "*batch"] | None = None
) -> CapsNetOutput:
    """Class capsules of images, and their reconstructions.

    Args:
        p: the parameters.
        x: images with values in [0, 1].
        label: the class whose capsule is decoded, as in training. Default: the predicted class.

    Raises:
        ShapeError: the images have not the shape that the network was made for.
    """
    if x.shape[-3:] != p.image_shape:
        raise ShapeError(
            f"capsnet: this network was made for images of shape {tuple(p.image_shape)}, got {tuple(x.shape[-3:])}."
        )
    poses = routing(p.classes, primary_capsules(p.primary, conv2d(p.conv, x).relu()))
    return CapsNetOutput(capsule_lengths(poses), poses, decode(p, poses, label=label) if len(p.decoder) else None)


def decode(
    p: CapsNet, poses: Float[Tensor, "*batch classes dim"], *, label: Int[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch channels height width"]:
    """The images that the decoder makes of class capsules; of the longest, or of `label`'s.

    Raises:
        ArgumentError: the network has no decoder.
        ShapeError: `label` holds no class for each example.
    """
    if not len(p.decoder):
        raise ArgumentError("decode: this network has no decoder; make it with CapsNet.init(key, decoder=(512, 1024)).")
    return decoded(p.decoder, poses, label, p.image_shape)


def draw_decoder(
    key: Tensor, in_features: int, hidden: tuple[int, ...] | None, image_shape: tuple[int, int, int], **where: Any
) -> tuple[Linear, ...]:
    """The linear layers of a decoder with some hidden layers; none for None."""
    if hidden is None:
        return ()
    sizes = (in_features, *hidden, math.prod(image_shape))
    keys = random.split(key, len(sizes) - 1)
    return tuple(Linear.init(k, n, m, **where) for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True))


def decoded(
    decoder: tuple[Linear, ...], poses: Tensor, label: Tensor | None, image_shape: tuple[int, int, int]
) -> Tensor:
    """What the layers of a decoder make of one capsule of each example: the longest, or that of `label`."""
    x = mask_capsules(poses, label)
    for layer in decoder[:-1]:
        x = linear(layer, x).relu()
    return linear(decoder[-1], x).sigmoid().unflatten(-1, image_shape)
