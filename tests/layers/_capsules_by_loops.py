"""Every routing of one example as its paper writes it, capsule by capsule: what the layers must equal."""

import math

import torch
from torch import Tensor


def squashed(s: Tensor) -> Tensor:
    return s * s.norm() / (1 + s.norm() ** 2)


def dynamic(votes: Tensor, iterations: int, *, leaky: bool = False) -> Tensor:
    """Sabour et al. 2017, procedure 1, with the logits kept as its state."""
    out_caps, in_caps = votes.shape[:2]
    b = torch.zeros(out_caps, in_caps, dtype=votes.dtype, device=votes.device)
    v: list[Tensor] = []
    for _ in range(iterations):
        c = [(b[:, i].exp() / (b[:, i].exp().sum() + (1 if leaky else 0))) for i in range(in_caps)]
        v = [squashed(sum(c[i][o] * votes[o, i] for i in range(in_caps))) for o in range(out_caps)]
        b = torch.stack([torch.stack([b[o, i] + votes[o, i] @ v[o] for i in range(in_caps)]) for o in range(out_caps)])
    return torch.stack(v)


def em(
    votes: Tensor,
    activations: Tensor,
    beta_use: Tensor,
    beta_activation: Tensor,
    iterations: int,
    inverse_temperature: float,
    eps: float,
    parents: list[list[tuple[int, int]]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Hinton et al. 2018, procedure 1.

    `parents` lists for every input capsule the ``(output capsule, place among its votes)`` it votes for, if that is not
    every output capsule. `activations` are those of the places, ``[out_caps, places]``.
    """
    out_caps, places, dim = votes.shape
    parents = [[(o, i) for o in range(out_caps)] for i in range(places)] if parents is None else parents
    R: dict[tuple[int, int], Tensor] = {}
    for mine in parents:
        for pair in mine:
            R[pair] = votes.new_tensor(1 / len(mine))
    means: list[Tensor] = []
    a: list[Tensor] = []
    for iteration in range(1, iterations + 1):
        temperature = inverse_temperature * (1 - 0.95**iteration)
        means, variances, a = [], [], []
        for o in range(out_caps):
            weights = [R[o, i] * activations[o, i] for i in range(places)]
            total = sum(weights)
            mean = sum(w * votes[o, i] for i, w in enumerate(weights)) / (total + eps)
            variance = sum(w * (votes[o, i] - mean) ** 2 for i, w in enumerate(weights)) / (total + eps) + eps
            cost = sum((beta_use[o] + variance[h].sqrt().log()) * total for h in range(dim))
            means.append(mean)
            variances.append(variance)
            a.append((temperature * (beta_activation[o] - cost)).sigmoid())
        for mine in parents:
            density = {
                (o, i): a[o]
                * math.prod(
                    (-((votes[o, i, h] - means[o][h]) ** 2) / (2 * variances[o][h])).exp()
                    / (2 * math.pi * variances[o][h]).sqrt()
                    for h in range(dim)
                )
                for o, i in mine
            }
            for pair in mine:
                R[pair] = density[pair] / sum(density.values())
    return torch.stack(means), torch.stack(a)


def self_routed(votes: Tensor, activations: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Hahn et al. 2019, equations 5 to 7."""
    out_caps, in_caps = votes.shape[:2]
    c = [logits[:, i].exp() / logits[:, i].exp().sum() for i in range(in_caps)]
    mass = [sum(c[i][o] * activations[i] for i in range(in_caps)) for o in range(out_caps)]
    poses = [sum(c[i][o] * activations[i] * votes[o, i] for i in range(in_caps)) / mass[o] for o in range(out_caps)]
    return torch.stack(poses), torch.stack([m / activations.sum() for m in mass])


def attention(votes: Tensor, bias: Tensor) -> Tensor:
    """Mazzia et al. 2021, section 3.3, with the matrix of all pairs of votes."""
    out_caps, in_caps, dim = votes.shape
    A = [votes[o] @ votes[o].T / math.sqrt(dim) for o in range(out_caps)]
    c = [torch.stack([A[o][i].sum() for o in range(out_caps)]).softmax(0) for i in range(in_caps)]
    s = [sum((c[i][o] + bias[o, i]) * votes[o, i] for i in range(in_caps)) for o in range(out_caps)]
    return torch.stack([(1 - (-x.norm()).exp()) * x / x.norm() for x in s])


def inverted_attention(votes: Tensor, weight: Tensor, bias: Tensor, iterations: int, eps: float) -> Tensor:
    """Tsai et al. 2020, algorithm 1, for one layer."""
    out_caps, in_caps, _ = votes.shape
    r = [torch.full((out_caps,), 1 / out_caps, dtype=votes.dtype, device=votes.device) for _ in range(in_caps)]
    poses: list[Tensor] = []
    for iteration in range(iterations):
        if iteration:
            r = [torch.stack([poses[o] @ votes[o, i] for o in range(out_caps)]).softmax(0) for i in range(in_caps)]
        s = [sum(r[i][o] * votes[o, i] for i in range(in_caps)) for o in range(out_caps)]
        poses = [(x - x.mean()) / (x.var(correction=0) + eps).sqrt() * weight + bias for x in s]
    return torch.stack(poses)
