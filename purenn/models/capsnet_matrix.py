"""Matrix capsules with EM routing: every capsule is a 4x4 pose matrix and an activation."""

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.layers.capsule import (
    ClassCapsules2d,
    ConvCapsules2d,
    EMRouting,
    Routed,
    class_capsules2d,
    conv_capsules2d,
)
from purenn.layers.conv import Conv2d, conv2d
from purenn.models._parts import placed
from purenn.tree import Layer, applies, container, static


@container
class MatrixCapsNet(Layer):
    """A convolution, primary capsules, layers of convolutional capsules, and class capsules; see `matrix_capsnet`.

    Attributes:
        conv: the first convolution, 5x5 with stride 2, followed by a ReLU.
        poses: a 1x1 convolution to the poses of the primary capsules.
        activations: a 1x1 convolution to their activations, followed by a sigmoid.
        layers: the convolutional capsules.
        classes: the class capsules.
        pose: height and width of a pose.
    """

    conv: Conv2d
    poses: Conv2d
    activations: Conv2d
    layers: tuple[ConvCapsules2d, ...]
    classes: ClassCapsules2d
    pose: int = static(default=4)

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        in_channels: int = 1,
        num_classes: int = 5,
        channels: int = 64,
        types: tuple[int, ...] = (8, 16, 16),
        kernel_size: int = 5,
        strides: tuple[int, ...] = (2, 1),
        pose: int = 4,
        iterations: int = 2,
        inverse_temperature: float = 0.01,
        std: float = 0.5,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "MatrixCapsNet":
        """Draw the parameters. The defaults are the paper's small network: A = 64, B = 8, C = D = 16, 2 iterations.

        Args:
            key: random key.
            in_channels: channels of an image. Default: 1.
            num_classes: number of class capsules. Default: 5.
            channels: A, of the first convolution. Default: 64.
            types: B, C, D: types of the primary and of each layer of convolutional capsules. Default: (8, 16, 16).
            kernel_size: of the first convolution. Default: 5.
            strides: of the layers of convolutional capsules, 3x3 each. Default: (2, 1).
            pose: height and width of a pose. Default: 4.
            iterations: of EM routing. Default: 2.
            inverse_temperature: see `em_routing`. Default: 0.01.
            std: standard deviation of the capsules' weights. Default: 0.5.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.
        """
        where = placed(key, dtype, device)
        conv_key, pose_key, activation_key, class_key, *keys = random.split(key, 4 + len(strides))
        options = {"in_dim": pose * pose, "out_dim": pose * pose, "matrix": True, "std": std, **where}

        def routing(count: int) -> EMRouting:
            return EMRouting.init(count, iterations=iterations, inverse_temperature=inverse_temperature, **where)

        return cls(
            conv=Conv2d.init(conv_key, in_channels, channels, kernel_size, stride=2, **where),
            poses=Conv2d.init(pose_key, channels, types[0] * pose * pose, 1, **where),
            activations=Conv2d.init(activation_key, channels, types[0], 1, **where),
            layers=tuple(
                ConvCapsules2d.init(k, n, m, 3, routing(m), stride=stride, **options)
                for k, n, m, stride in zip(keys, types[:-1], types[1:], strides, strict=True)
            ),
            classes=ClassCapsules2d.init(class_key, types[-1], num_classes, routing(num_classes), **options),
            pose=pose,
        )


@applies(MatrixCapsNet)
def matrix_capsnet(p: MatrixCapsNet, x: Float[Tensor, "*batch channels height width"]) -> Routed:
    """Class capsules of images: poses ``[*batch, classes, pose * pose]`` and activations ``[*batch, classes]``.

    Train the activations with `purenn.losses.spread_loss`.

    Args:
        p: the parameters.
        x: images.

    Raises:
        ShapeError: the images are too small for the windows of the capsules.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, section 4.
    """
    maps = conv2d(p.conv, x).relu()
    # A pose is made of neighbouring channels at one position.
    poses = conv2d(p.poses, maps).unflatten(-3, (-1, p.pose * p.pose)).movedim(-3, -1)
    activations = conv2d(p.activations, maps).sigmoid()
    for layer in p.layers:
        poses, activations = conv_capsules2d(layer, poses, activations)
    return class_capsules2d(p.classes, poses, activations)
