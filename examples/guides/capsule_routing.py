"""Capsule routing.

    python examples/guides/capsule_routing.py

A capsule is a small vector: its direction says how a thing looks, its length (below 1) how surely it is there. A
capsule of one layer votes for the capsules of the next, and routing decides which votes count: those that agree.
Written for one example, that is twenty lines of mathematics; vmap makes the batch.

Source: Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017.
"""

import torch
from torch import Tensor

import purenn as pn
from purenn.layers.capsule import DynamicRouting, capsule_lengths, dynamic_routing, squash


def squashing() -> None:
    # `squash` keeps the direction and turns any length into one below 1. Its gradient at zero is finite: a capsule that
    # sees nothing does not ruin a training run.
    lengths = torch.tensor([0.0, 0.1, 1.0, 10.0])
    vectors = lengths[:, None] * torch.tensor([0.6, 0.8])
    print("lengths", lengths.tolist(), "become", [round(n, 3) for n in squash(vectors).norm(dim=-1).tolist()])
    torch.testing.assert_close(squash(vectors).norm(dim=-1), lengths.square() / (1 + lengths.square()))
    assert pn.grad(lambda v: squash(v).sum())(torch.zeros(2)).isfinite().all()


def by_the_book(W: Tensor, u: Tensor, iterations: int = 3) -> Tensor:
    """Procedure 1 of the paper for one example: W [out, in, out_dim, in_dim], u [in, in_dim] -> [out, out_dim]."""
    votes = torch.einsum("oidk,ik->oid", W, u)
    logits = torch.zeros(votes.shape[:2], dtype=u.dtype)
    v = torch.zeros(0)
    for _ in range(iterations):
        coupling = logits.softmax(0)  # an input capsule divides its vote among the output capsules
        v = squash(torch.einsum("oi,oid->od", coupling, votes))
        logits = logits + torch.einsum("oid,od->oi", votes, v)
    return v


def one_example() -> tuple[Tensor, Tensor]:
    k1, k2 = pn.random.split(pn.random.key(0))
    W = pn.random.normal(k1, (10, 72, 16, 8), dtype=torch.float64) * 0.3
    u = squash(pn.random.normal(k2, (5, 72, 8), dtype=torch.float64))

    # The library's function is the same, in forms that need less memory: no copies of W for the examples of a batch,
    # and with memory="tiled" never all votes at once. Which one serves changes no number.
    expected = by_the_book(W, u[0])
    for memory in ("votes", "folded", "tiled"):
        torch.testing.assert_close(dynamic_routing(W, u[0], memory=memory), expected, rtol=0, atol=1e-12)
    print("\nby the book, to 1e-12:", list(expected.shape))
    return W, u


def a_batch(W: Tensor, u: Tensor) -> None:
    # vmap over the examples, and W is shared by all.
    batched = pn.vmap(dynamic_routing, (None, 0))(W, u)
    torch.testing.assert_close(batched, torch.stack([by_the_book(W, one) for one in u]), rtol=0, atol=1e-12)

    # Gradients for each example, too.
    gradients = pn.vmap(pn.grad(lambda W, u: dynamic_routing(W, u).square().sum()), (None, 0))(W, u)
    assert gradients.shape == (5, *W.shape)
    print("batched by vmap:", list(batched.shape), "with a gradient for each example:", list(gradients.shape))


def agreement() -> None:
    # What routing does. Six capsules see parts of something. For output 0 their votes agree, for output 1 they point
    # anywhere. After one iteration both outputs get the same share of every vote; then agreement wins.
    agreeing = torch.tensor([1.0, 0.0]).expand(6, 2)
    angles = torch.arange(6) * 1.3
    scattered = torch.stack([angles.cos(), angles.sin()], 1)
    W = torch.stack([agreeing, scattered]).unsqueeze(-1)  # [2, 6, 2, 1]: the vote is W times a capsule of one number
    u = torch.ones(6, 1)
    print()
    lengths = []
    for iterations in (1, 2, 3, 5):
        v = dynamic_routing(W, u, iterations=iterations)
        lengths.append(capsule_lengths(v))
        print(
            f"iterations: {iterations}  length where votes agree {lengths[-1][0]:.3f}, where not {lengths[-1][1]:.3f}"
        )
    assert lengths[-1][0] > lengths[0][0]
    assert lengths[-1][1] < 0.2


def gradients_through_routing(W: Tensor, u: Tensor) -> None:
    # Couplings are functions of the weights, and the exact gradient goes through all iterations. Some implementations
    # cut it there; `stop_gradient=True` does, and is another direction.
    def loss(W: Tensor, stop_gradient: bool) -> Tensor:
        return pn.vmap(lambda u: dynamic_routing(W, u, stop_gradient=stop_gradient))(u)[:, 0].square().sum()

    exact, cut = pn.grad(lambda W: loss(W, False))(W), pn.grad(lambda W: loss(W, True))(W)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(), cut.flatten(), dim=0)
    print(f"\ncosine between the exact gradient and the cut one: {cosine:.3f}")
    assert 0.5 < cosine < 0.9999


def a_layer() -> None:
    # As a layer with parameters. `init` starts small, for a reason: with weights of size 1 and many capsules all
    # lengths are 1 at the start, and there is nothing left to learn from.
    u = squash(pn.random.normal(pn.random.key(1), (4, 1152, 8)))
    print()
    for std in (0.05, 1.0):
        p = DynamicRouting.init(pn.random.key(2), 1152, 10, std=std)
        gradient = pn.grad(lambda p: capsule_lengths(p(u)).sum())(p)
        mean = gradient.weight.abs().mean().item()
        print(f"std {std}: mean length {capsule_lengths(p(u)).mean():.3f}, mean gradient {mean:.0e}")
    assert pn.tree.count(p) == 10 * 1152 * 16 * 8


def main() -> None:
    torch.set_num_threads(1)
    squashing()
    W, u = one_example()
    a_batch(W, u)
    agreement()
    gradients_through_routing(W, u)
    a_layer()


if __name__ == "__main__":
    main()
