"""Dynamic routing without its votes: a tile of input capsules at a time, by a forward and a backward pass of its own.

The vote of input capsule i for output capsule o is ``W[o, i] @ u[i]``. Its agreement with a state V is ``u[i]`` times
``V[o] W[o, i]``, and a weighted sum of votes is W times a weighted u. So one sweep over tiles of input capsules makes
an iteration from V alone, in matrix products over one tile and a whole batch, and a second one its gradients. No sweep
keeps more than a few tiles.

The axes are o and i for output and input capsules, d and k for their components, n for examples. A tile is
``[o, n, k, i]``: products over o, sums over k, and long contiguous rows of i.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from purenn.ops._squash import pull_squash, squash

# Elements of a tile, at most. On a CPU a few tiles should stay in the cache; a GPU wants much work in every kernel.
_CPU_TILE, _TILE = 2**19, 2**25
# Input capsules of a tile, at least: the rows of its products.
_COLUMNS = 16


def sums_by_tiles(W: Tensor, u: Tensor, iterations: int, leaky: bool) -> Tensor:
    """The weighted sums of all iterations.

    Args:
        W: ``[o, i, d, k]``.
        u: ``[n, i, k]``.
        iterations: how often to route.
        leaky: whether the softmax has one more entry, a logit of zero that belongs to no output capsule.

    Returns:
        ``[n, iterations, o, d]`` in float32 at least.
    """
    out_caps, _, out_dim, _ = W.shape
    sums = torch.zeros((iterations, out_caps, len(u), out_dim), dtype=accumulated(u.dtype), device=u.device)
    tiles = _tiles(W, u)
    for tile in tiles:
        _add_first_sum(tile, sums[0], leaky)
    state = squash(sums[0])
    for iteration in range(1, iterations):
        for tile in tiles:
            couplings, _ = _couplings(tile, state, leaky)
            sums[iteration][:, tile.rows].baddbmm_((couplings.unsqueeze(2) * tile.u).flatten(2), tile.W.mT)
        if iteration + 1 < iterations:
            state = state + squash(sums[iteration])
    return sums.permute(2, 0, 1, 3).contiguous()


def gradients_by_tiles(
    W: Tensor, u: Tensor, sums: Tensor, gradient: Tensor, stop_gradient: bool, leaky: bool, per_example: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the last weighted sum.

    Args:
        W: ``[o, i, d, k]``.
        u: ``[n, i, k]``.
        sums: what `sums_by_tiles` returned.
        gradient: of the last sum, ``[n, o, d]``.
        stop_gradient: whether the couplings are constants.
        leaky: as in `sums_by_tiles`.
        per_example: whether the gradient of W is that of every example instead of their sum.

    Returns:
        Gradients of W, with a leading axis n if `per_example`, and of u, in their dtypes.
    """
    by_iteration = sums.permute(1, 2, 0, 3)
    tiles = _tiles(W, u)
    grads = _Gradients.zeros(W, u, per_example)
    of_sum = gradient.to(sums.dtype).transpose(0, 1).contiguous()
    poses = squash(by_iteration[:-1])
    # The gradient of a pose is the sum of those of all later states.
    of_pose = torch.zeros_like(of_sum)
    for iteration in range(len(by_iteration) - 1, 0, -1):
        state = poses[:iteration].sum(0)
        for tile in tiles:
            of_state = _pull_iteration(tile, state, of_sum, stop_gradient, leaky, grads)
            of_pose[:, tile.rows].add_(of_state)
        if stop_gradient:
            return grads.cast(W, u)
        of_sum = pull_squash(by_iteration[iteration - 1], of_pose)
    for tile in tiles:
        _pull_first_sum(tile, of_sum, leaky, grads)
    return grads.cast(W, u)


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over many capsules: float32 at least."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class _Tile(NamedTuple):
    rows: slice
    columns: slice
    W: Tensor  # [o, d, k * i]
    u: Tensor  # [n, k, i]


def _tiles(W: Tensor, u: Tensor) -> list[_Tile]:
    out_caps, in_caps, out_dim, in_dim = W.shape
    elements = (_CPU_TILE if u.device.type == "cpu" else _TILE) // (out_caps * in_dim)
    count = _even(len(u), elements // _COLUMNS)
    width = _even(in_caps, max(_COLUMNS, elements // max(1, count)))
    dtype = accumulated(u.dtype)
    tiles = []
    for start in range(0, in_caps, width):
        columns = slice(start, start + width)
        # Copies, because the products need contiguous rows.
        w = W[:, columns].permute(0, 2, 3, 1).to(dtype).reshape(out_caps, out_dim, -1)
        x = u[:, columns].mT.to(dtype).contiguous()
        for first in range(0, len(u), count):
            rows = slice(first, first + count)
            tiles.append(_Tile(rows, columns, w, x[rows]))
    return tiles


def _even(total: int, most: int) -> int:
    """The size of equal parts, of at most a given size."""
    parts = -(-total // max(1, most))
    return -(-total // max(1, parts)) or 1


class _Gradients(NamedTuple):
    """What tiles add to: the gradient of W, or of the votes ``[o, n, i, d]`` for every example's, and that of u."""

    W: Tensor
    votes: Tensor
    u: Tensor
    per_example: bool

    @classmethod
    def zeros(cls, W: Tensor, u: Tensor, per_example: bool) -> "_Gradients":
        of_u = u.new_zeros(u.shape, dtype=accumulated(u.dtype))
        of_votes = of_u.new_zeros((len(W), len(u), *W.shape[1:3]) if per_example else 0)
        return cls(of_u.new_zeros(0 if per_example else W.shape), of_votes, of_u, per_example)

    def add_products(self, tile: _Tile, left: Tensor, coefficients: Tensor, right: Tensor) -> None:
        """Add the gradient of W where that of the votes is ``left [o, n, d]`` times ``coefficients [o, n, i]``.

        `right` is the coefficients times u, ``[o, n, k, i]``.
        """
        if self.per_example:
            votes = self.votes[:, tile.rows, tile.columns]
            votes.addcmul_(coefficients.unsqueeze(-1), left.unsqueeze(2))
        else:
            more = torch.bmm(left.mT, right.flatten(2)).unflatten(-1, right.shape[2:])
            self.W[:, tile.columns].add_(more.permute(0, 3, 1, 2))

    def cast(self, W: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients, contiguous, in the dtypes of their tensors."""
        of_W = self.W
        if self.per_example:
            of_W = of_W.new_empty((len(u), *W.shape))
            torch.mul(self.votes.transpose(0, 1).unsqueeze(-1), u[:, None, :, None, :].to(of_W.dtype), out=of_W)
        return of_W.to(W.dtype), self.u.to(u.dtype)


def _share(tile: _Tile, leaky: bool) -> float:
    # With all logits zero every output capsule gets an equal share: no softmax in the first iteration.
    return 1 / (len(tile.W) + leaky)


def _add_first_sum(tile: _Tile, total: Tensor, leaky: bool) -> None:
    sums = tile.u.flatten(1) @ tile.W.flatten(0, 1).T
    total[:, tile.rows].add_(sums.unflatten(1, tile.W.shape[:2]).transpose(0, 1), alpha=_share(tile, leaky))


def _pull_first_sum(tile: _Tile, of_sum: Tensor, leaky: bool, grads: _Gradients) -> None:
    scaled = of_sum[:, tile.rows] * _share(tile, leaky)
    right = tile.u.expand(len(tile.W), *tile.u.shape)
    grads.add_products(tile, scaled, torch.ones_like(right[:, :, 0]), right)
    of_u = scaled.transpose(0, 1).flatten(1) @ tile.W.flatten(0, 1)
    grads.u[tile.rows, tile.columns].add_(of_u.unflatten(1, tile.u.shape[1:]).mT)


def _couplings(tile: _Tile, state: Tensor, leaky: bool) -> tuple[Tensor, Tensor]:
    """The couplings ``[o, n, i]``, and the folded state ``[o, n, k, i]`` that they come from."""
    folded = torch.bmm(state[:, tile.rows], tile.W).unflatten(-1, tile.u.shape[1:])
    logits = (folded * tile.u).sum(2)
    if leaky:
        logits = torch.cat([torch.zeros_like(logits[:1]), logits])
    return logits.softmax(0)[int(leaky) :], folded


def _pull_iteration(
    tile: _Tile, state: Tensor, of_sum: Tensor, stop_gradient: bool, leaky: bool, grads: _Gradients
) -> Tensor:
    """Add one iteration's gradients of W and u; return that of its state, ``[o, n, d]``."""
    of_sum, state_rows, x = of_sum[:, tile.rows], state[:, tile.rows], tile.u
    couplings, folded = _couplings(tile, state, leaky)
    of_weighted = torch.bmm(of_sum, tile.W).unflatten(-1, x.shape[1:])
    weighted = couplings.unsqueeze(2) * x
    grads.add_products(tile, of_sum, couplings, weighted)
    if stop_gradient:
        of_u, of_state = of_weighted.mul_(couplings.unsqueeze(2)), torch.zeros_like(of_sum)
    else:
        of_couplings = torch.mul(of_weighted, x, out=weighted).sum(2)
        of_logits = couplings * (of_couplings - (couplings * of_couplings).sum(0))
        of_folded = torch.mul(of_logits.unsqueeze(2), x, out=weighted)
        grads.add_products(tile, state_rows, of_logits, of_folded)
        of_state = torch.bmm(of_folded.flatten(2), tile.W.mT)
        of_u = of_weighted.mul_(couplings.unsqueeze(2)).addcmul_(of_logits.unsqueeze(2), folded)
    grads.u[tile.rows, tile.columns].add_(of_u.sum(0).mT)
    return of_state
