"""Where dynamic routing runs as Triton kernels instead of by tiles, and how they are started.

Both functions are what `_routing_tiles` has, for all models and groups at once. Besides their results they keep the
sum of an iteration in parts, as many as keep a GPU busy and not more.
"""

import functools
import importlib
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purenn.ops._routing_tiles import accumulated

# Examples of a program, rows of one that squashes, and programs of a sweep that keep a GPU busy.
_EXAMPLES, _ROWS, _PROGRAMS = 16, 32, 512
# Elements of the padded matrices of an input capsule, at most: these and their votes have to stay on the chip.
_MATRICES = 2**13
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def kernels_run(W: Tensor, u: Tensor) -> bool:
    """Whether the kernels take W ``[models, o, i, d, k]`` and u ``[models, n, i, k]``.

    That is single or half precision on an NVIDIA GPU, of Ampere or later, with Triton installed, and sizes of capsules
    that stay on the chip. Triton's interpreter, chosen by TRITON_INTERPRET=1, takes any device and precision.
    """
    _, out_caps, _, out_dim, in_dim = W.shape
    matrices = _padded(out_caps) * _padded(out_dim) * _components(in_dim)
    # Models are an axis of a grid, and places within the matrices of one are 32-bit numbers.
    if not (W.numel() and u.numel() and matrices <= _MATRICES and len(W) < 2**16 and W.shape[1:].numel() < 2**31):
        return False
    return _is_interpreted() or (u.is_cuda and W.dtype == u.dtype in _DTYPES and _is_supported(u.device))


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _is_supported(device: torch.device) -> bool:
    has_triton = importlib.util.find_spec("triton") is not None
    return has_triton and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _components(in_dim: int) -> int:
    return max(16, _padded(in_dim))  # what a product of tiles needs


class _Launcher(NamedTuple):
    """The kernels with the arguments that their calls share."""

    W: Tensor
    u: Tensor
    kernels: Any
    sizes: dict[str, int]
    tiles: dict[str, Any]

    @classmethod
    def of(cls, W: Tensor, u: Tensor, leaky: bool) -> "_Launcher":
        _, out_caps, _, out_dim, in_dim = W.shape
        sizes = {"out_caps": out_caps, "out_dim": out_dim}
        padded = {"N": _EXAMPLES, "OUT": _padded(out_caps), "D": _padded(out_dim), "K": _components(in_dim)}
        kernels = importlib.import_module("purenn.ops._routing_triton_kernels")
        tiles = {**sizes, **padded, "in_dim": in_dim, "LEAKY": leaky, "num_warps": 8}
        return cls(W.contiguous(), u.contiguous(), kernels, sizes, tiles)

    def zeros(self, iterations: int) -> Tensor:
        """An array ``[models, n, iterations, o, d]``."""
        shape = (*self.u.shape[:2], iterations, *self.sizes.values())
        return self.u.new_zeros(shape, dtype=accumulated(self.u.dtype))

    def sweep(self, states: Tensor, of_sums: Tensor | None, iteration: int) -> Tensor:
        """The weighted sum of an iteration, or from the gradients of the sums that of its state, ``[models, n, o, d]``.

        The parts are added in one order, so that results are the same every time.
        """
        models, count, in_caps, _ = self.u.shape
        blocks = -(-count // _EXAMPLES)
        width = -(-in_caps // min(in_caps, -(-_PROGRAMS // (blocks * models))))
        parts = states.new_empty((-(-in_caps // width), models, count, *self.sizes.values()))
        self.kernels.sweep[blocks, len(parts), models](
            *(self.W, self.u, states, states if of_sums is None else of_sums, parts),
            *(iteration, states.shape[2], count, in_caps, width),
            **self.tiles,
            PULL=of_sums is not None,
        )
        return parts.sum(0)

    def by_rows(self, kernel: Any, *args: Any) -> None:
        """Run a kernel that treats every output capsule by itself."""
        rows = self.u.shape[:2].numel() * self.sizes["out_caps"]
        kernel[(-(-rows // _ROWS),)](*args, rows, **self.sizes, ROWS=_ROWS, D=self.tiles["D"])


def sums_by_kernels(W: Tensor, u: Tensor, iterations: int, leaky: bool) -> Tensor:
    """`sums_by_tiles` of several models: ``[models, n, iterations, o, d]``."""
    run = _Launcher.of(W, u, leaky)
    sums, states = run.zeros(iterations), run.zeros(iterations)
    with torch.cuda.device_of(u):
        for iteration in range(iterations):
            sums[:, :, iteration] = run.sweep(states, None, iteration)
            run.by_rows(run.kernels.add_poses, sums, states, min(iteration + 1, iterations - 1), iterations)
    return sums


def gradients_by_kernels(
    W: Tensor, u: Tensor, sums: Tensor, gradient: Tensor, groups: int, stop_gradient: bool, leaky: bool
) -> tuple[Tensor, Tensor]:
    """`gradients_by_tiles` of several models: of W, ``[models, groups, o, i, d, k]``, and of u."""
    run = _Launcher.of(W, u, leaky)
    models, count, in_caps, _ = u.shape
    iterations = sums.shape[2]
    sums, states, of_sums = sums.contiguous(), run.zeros(iterations), run.zeros(iterations)
    of_sums[:, :, -1] = gradient
    of_pose = run.zeros(1)
    of_W, of_u = W.new_empty((models, groups, *W.shape[1:])), u.new_empty(u.shape)
    each = count == groups > 1
    first = iterations - 1 if stop_gradient else 0
    with torch.cuda.device_of(u):
        run.by_rows(run.kernels.add_poses, sums, states, iterations - 1, iterations)
        for iteration in range(iterations - 1, first, -1):
            # The gradient of a pose is the sum of those of all later states.
            of_pose[:, :, 0] += run.sweep(states, of_sums, iteration)
            run.by_rows(run.kernels.pull_poses, sums, of_pose, of_sums, iteration - 1, iterations)
        run.kernels.gradients[in_caps * (-(-count // _EXAMPLES) if each else groups), models](
            *(run.W, run.u, states, of_sums, of_W, of_u),
            *(first, iterations, count, _EXAMPLES if each else count // groups, in_caps),
            **run.tiles,
            STOP=stop_gradient,
            EACH=each,
        )
    return of_W, of_u
