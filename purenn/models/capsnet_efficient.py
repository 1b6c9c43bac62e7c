"""Efficient-CapsNet: a small convolutional network, one capsule per group of channels, and routing by attention."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.capsule import AttentionRouting, Capsules, capsules
from purenn.layers.conv import Conv2d, conv2d
from purenn.layers.linear import Linear
from purenn.layers.norm_batch import BatchNorm2d, batch_norm
from purenn.models._parts import placed
from purenn.models.capsnet import CapsNetOutput, decoded, draw_decoder
from purenn.ops import squash_exponential
from purenn.tree import Layer, applies, container, replace, static


@container
class EfficientCapsNet(Layer):
    """Four convolutions, primary capsules by a depthwise convolution over all positions, and class capsules.

    Attributes:
        convs: the convolutions, each followed by a ReLU and its normalisation; the last has stride 2.
        norms: their normalisations.
        primary: a depthwise convolution as large as the maps, whose channels are the primary capsules' components.
        classes: the class capsules, by `AttentionRouting`.
        decoder: linear layers with ReLU between them and a sigmoid at the end; empty for none.
        image_shape: channels, height and width.
    """

    convs: tuple[Conv2d, ...]
    norms: tuple[BatchNorm2d, ...]
    primary: Conv2d
    classes: Capsules
    decoder: tuple[Linear, ...]
    image_shape: tuple[int, int, int] = static(default=(1, 28, 28))

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        channels: tuple[int, int, int, int] = (32, 64, 64, 128),
        kernel_sizes: tuple[int, int, int, int] = (5, 3, 3, 3),
        primary_dim: int = 8,
        capsule_dim: int = 16,
        decoder: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "EfficientCapsNet":
        """Draw the parameters. The defaults are the paper's for MNIST: 161,248 parameters, and 576 of normalisation.

        Args:
            key: random key.
            image_shape: channels, height and width of an image. Default: (1, 28, 28).
            num_classes: number of class capsules. Default: 10.
            channels: of the four convolutions. Default: (32, 64, 64, 128).
            kernel_sizes: of the four convolutions. Default: (5, 3, 3, 3).
            primary_dim: components of a primary capsule; it divides the last number of channels. Default: 8.
            capsule_dim: components of a class capsule. Default: 16.
            decoder: sizes of the decoder's hidden layers, None for no decoder. Default: None.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.

        Raises:
            ArgumentError: the image is too small for the convolutions.
        """
        where = placed(key, dtype, device)
        left = [n - sum(kernel_sizes) + len(kernel_sizes) for n in image_shape[1:]]
        # The last convolution alone has a stride.
        sizes = [(n + 1) // 2 for n in left]
        if min(left) < 1:
            raise ArgumentError(
                f"EfficientCapsNet: an image of {image_shape[1]}x{image_shape[2]} is too small for kernels of "
                f"{kernel_sizes}. Use smaller kernels."
            )
        *conv_keys, primary_key, class_key, decoder_key = random.split(key, len(channels) + 3)
        before = (image_shape[0], *channels[:-1])
        last = channels[-1]
        return cls(
            convs=tuple(
                Conv2d.init(k, n, m, size, stride=2 if position == len(channels) - 1 else 1, **where)
                for position, (k, n, m, size) in enumerate(zip(conv_keys, before, channels, kernel_sizes, strict=True))
            ),
            norms=tuple(BatchNorm2d.init(n, **where) for n in channels),
            primary=Conv2d.init(primary_key, last, last, sizes, groups=last, **where),
            classes=Capsules.init(
                class_key,
                last // primary_dim,
                num_classes,
                AttentionRouting.init(last // primary_dim, num_classes, **where),
                in_dim=primary_dim,
                out_dim=capsule_dim,
                std=0.3,
                **where,
            ),
            decoder=draw_decoder(decoder_key, num_classes * capsule_dim, decoder, image_shape, **where),
            image_shape=image_shape,
        )


@applies(EfficientCapsNet, stateful=True)
def efficient_capsnet(
    p: EfficientCapsNet,
    x: Float[Tensor, "batch channels height width"],
    *,
    label: Int[Tensor, " batch"] | None = None,
    train: bool = False,
) -> tuple[CapsNetOutput, EfficientCapsNet]:
    """Class capsules of images, and their reconstructions.

    Args:
        p: the parameters.
        x: images with values in [0, 1].
        label: the class whose capsule is decoded, as in training. Default: the predicted class.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, and the container with the new averages.

    Raises:
        ShapeError: the images have not the shape that the network was made for.

    Source:
        Mazzia, Salvetti, Chiaberge: Efficient-CapsNet: Capsule Network with Self-Attention Routing, 2021.
    """
    if x.shape[-3:] != p.image_shape:
        raise ShapeError(
            f"efficient_capsnet: this network was made for images of shape {tuple(p.image_shape)}, got "
            f"{tuple(x.shape[-3:])}."
        )
    norms = []
    for conv, norm in zip(p.convs, p.norms, strict=True):
        x, norm = batch_norm(norm, conv2d(conv, x).relu(), train=train)
        norms.append(norm)
    in_dim = p.classes.weight.shape[-1]
    # One position is left: the channels of a capsule are neighbours.
    primary = squash_exponential(conv2d(p.primary, x).flatten(-3).unflatten(-1, (-1, in_dim)))
    poses, lengths = capsules(p.classes, primary)
    reconstruction = decoded(p.decoder, poses, label, p.image_shape) if len(p.decoder) else None
    return CapsNetOutput(lengths, poses, reconstruction), replace(p, norms=tuple(norms))
