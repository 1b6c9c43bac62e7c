"""Dropout of whole capsules: a capsule that is dropped has no pose and no say."""

from jaxtyping import Float
from torch import Tensor

from purenn.layers.dropout import Dropout1d, dropout1d
from purenn.tree import applies, container


@container
class CapsuleDropout(Dropout1d):
    """Zeros in the place of random capsules; see `capsule_dropout`.

    Attributes:
        p: probability that a capsule is zero. Default: 0.5.
    """


@applies(CapsuleDropout)
def capsule_dropout(
    p: CapsuleDropout, poses: Float[Tensor, "*batch capsules dim"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch capsules dim"]:
    """Set every capsule to 0 with probability ``p.p`` and divide the others by ``1 - p.p``.

    Args:
        p: the rate.
        poses: the capsules.
        key: random key; without one `poses` are returned as they are.

    Raises:
        ShapeError: `poses` has fewer than two dimensions.
        DeviceError: key and input are on different devices.

    Source:
        Xiang et al.: MS-CapsNet, 2018, section 3.3.
    """
    if poses.dim() <= 3:
        return dropout1d(p, poses, key=key)
    return dropout1d(p, poses.flatten(0, -3), key=key).unflatten(0, poses.shape[:-2])
