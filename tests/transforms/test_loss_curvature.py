"""Products with the Hessian of every loss, by forward mode over reverse mode, and losses under two vmaps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import purenn as pn
from purenn import losses
from purenn.errors import GradientError

DOUBLE = torch.float64
Loss = Callable[[Tensor], Tensor]
# What torch says of its batching rules for the gradients of two of these losses.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop .* aten..soft_margin_loss_backward:UserWarning"),
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning"),
]


class Data:
    """Targets for a prediction of shape [4, 3], and the prediction and a direction."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        make = lambda: torch.randn(4, 3, generator=generator, dtype=DOUBLE).to(device)  # noqa: E731
        self.x, self.direction, self.y, self.other = make(), make(), make(), make()
        self.positive = self.other.sigmoid()
        self.sign = self.y.sign()
        self.yes = (self.y > 0).to(DOUBLE)
        self.label = torch.tensor([0, 2, 1, 1], device=device)
        self.pairs = torch.tensor([1, -1, 1, -1], device=device)
        self.labels = torch.tensor([[0, -1, 1], [1, 2, -1], [2, 0, -1], [1, -1, 0]], device=device)
        self.weight = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE, device=device)
        self.ctc = self.labels[:1, :1] + 1, torch.tensor([4], device=device), torch.tensor([1], device=device)


def _frames(x: Tensor) -> Tensor:
    return x[:, None].log_softmax(-1)


TORCH: dict[str, Callable[[Data], Loss]] = {
    "mse": lambda d: lambda x: F.mse_loss(x, d.y),
    "mse, sum": lambda d: lambda x: F.mse_loss(d.y, x, reduction="sum"),
    "mse, broadcast": lambda d: lambda x: F.mse_loss(x[:, :1], d.y[:, :1]),
    "mse, weight": lambda d: lambda x: F.mse_loss(x, d.y, weight=d.positive),
    "l1": lambda d: lambda x: F.l1_loss(x * x, d.y),
    "smooth l1": lambda d: lambda x: F.smooth_l1_loss(x, d.y, beta=0.5),
    "huber": lambda d: lambda x: F.huber_loss(x, d.y, delta=0.7),
    "cross entropy": lambda d: lambda x: F.cross_entropy(x, d.label, d.weight, label_smoothing=0.1),
    "cross entropy, probabilities": lambda d: lambda x: F.cross_entropy(x, d.positive),
    "nll": lambda d: lambda x: F.nll_loss(x.log_softmax(-1), d.label),
    "bce": lambda d: lambda x: F.binary_cross_entropy(x.sigmoid(), d.positive),
    "bce of logits": lambda d: lambda x: F.binary_cross_entropy_with_logits(x, d.positive, pos_weight=2 * d.weight),
    "kl": lambda d: lambda x: F.kl_div(x.log_softmax(-1), d.positive, reduction="batchmean"),
    "poisson": lambda d: lambda x: F.poisson_nll_loss(x, d.positive, full=True),
    "gaussian": lambda d: lambda x: F.gaussian_nll_loss(x, d.y, d.positive),
    "hinge": lambda d: lambda x: F.hinge_embedding_loss(x * x, d.sign),
    "soft margin": lambda d: lambda x: F.soft_margin_loss(x, d.sign),
    "multi label soft margin": lambda d: lambda x: F.multilabel_soft_margin_loss(x, d.yes),
    "margin ranking": lambda d: lambda x: F.margin_ranking_loss(x * x, d.y, d.sign),
    "cosine": lambda d: lambda x: F.cosine_embedding_loss(x, d.y, d.pairs),
    "triplet": lambda d: lambda x: F.triplet_margin_loss(x, d.y, d.other),
    "triplet with distance": lambda d: lambda x: F.triplet_margin_with_distance_loss(x, d.y, d.other),
}
# Losses of torch that it cannot differentiate twice, and ours of the same numbers.
ONCE: dict[str, tuple[Callable[[Data], Loss], Callable[[Data], Loss]]] = {
    "multi margin": (
        lambda d: lambda x: F.multi_margin_loss(x, d.label, 2, weight=d.weight),
        lambda d: lambda x: losses.multi_margin_loss(x, d.label, p=2, weight=d.weight),
    ),
    "multi label margin": (
        lambda d: lambda x: F.multilabel_margin_loss(x * x, d.labels, reduction="sum"),
        lambda d: lambda x: losses.multi_label_margin_loss(x * x, d.labels, reduction="sum"),
    ),
    "ctc": (
        lambda d: lambda x: F.ctc_loss(_frames(x), *d.ctc),
        lambda d: lambda x: losses.ctc_loss(_frames(x), *d.ctc),
    ),
}
OURS: dict[str, Callable[[Data], Loss]] = {
    "mse": lambda d: lambda x: losses.mse_loss(x, d.y),
    "mse, weight": lambda d: lambda x: losses.mse_loss(x, d.y, weight=d.positive),
    "l1": lambda d: lambda x: losses.l1_loss(x * x, d.y),
    "smooth l1": lambda d: lambda x: losses.smooth_l1_loss(x, d.y, beta=0.5),
    "huber": lambda d: lambda x: losses.huber_loss(x, d.y, delta=0.7),
    "cross entropy": lambda d: lambda x: losses.cross_entropy(x, d.label, label_smoothing=0.1),
    "cross entropy, probabilities": lambda d: lambda x: losses.cross_entropy(x, d.positive),
    "nll": lambda d: lambda x: losses.nll_loss(x.log_softmax(-1), d.label),
    "linear cross entropy": lambda d: lambda x: losses.linear_cross_entropy(x, d.y[:3], d.label),
    "bce": lambda d: lambda x: losses.binary_cross_entropy(x.sigmoid(), d.positive),
    "bce of logits": lambda d: lambda x: losses.binary_cross_entropy_with_logits(x, d.positive),
    "multi label soft margin": lambda d: lambda x: losses.multi_label_soft_margin_loss(x, d.yes),
    "margin": lambda d: lambda x: losses.margin_loss(x.sigmoid(), d.label),
    "spread": lambda d: lambda x: losses.spread_loss(x.sigmoid(), d.label, margin=0.9),
    "reconstruction": lambda d: lambda x: losses.reconstruction_loss(x, d.y, event_dims=1),
    "ctc": lambda d: lambda x: losses.ctc_loss(_frames(x), *d.ctc),
    "poisson": lambda d: lambda x: losses.poisson_nll_loss(x, d.positive),
    "gaussian": lambda d: lambda x: losses.gaussian_nll_loss(d.y, x, x.exp()),
    "kl": lambda d: lambda x: losses.kl_div(x.log_softmax(-1), d.positive),
    "hinge": lambda d: lambda x: losses.hinge_embedding_loss(x * x, d.sign),
    "soft margin": lambda d: lambda x: losses.soft_margin_loss(x, d.sign),
    "multi margin": lambda d: lambda x: losses.multi_margin_loss(x, d.label, p=2),
    "multi label margin": lambda d: lambda x: losses.multi_label_margin_loss(x * x, d.labels),
    "cosine": lambda d: lambda x: losses.cosine_embedding_loss(x, d.y, d.pairs),
    "margin ranking": lambda d: lambda x: losses.margin_ranking_loss(x * x, d.y, d.sign),
    "triplet": lambda d: lambda x: losses.triplet_margin_loss(x, d.y, d.other),
    "triplet with distance": lambda d: lambda x: losses.triplet_margin_with_distance_loss(x, d.y, d.other),
    "dice": lambda d: lambda x: losses.dice_loss(x.sigmoid(), d.yes),
    "focal": lambda d: lambda x: losses.focal_loss(x, d.label),
}
WAYS: dict[str, Callable[[Loss, Tensor, Tensor], Tensor]] = {
    "jvp of grad": lambda f, x, t: pn.jvp(pn.grad(f), (x,), (t,))[1],
    "jvp of vjp": lambda f, x, t: pn.jvp(lambda x: pn.vjp(f, x)[1](x.new_ones(())), (x,), (t,))[1],
    "jacfwd of grad": lambda f, x, t: (pn.jacfwd(pn.grad(f))(x) * t).sum((2, 3)),
    "hessian": lambda f, x, t: (pn.hessian(f)(x) * t).sum((2, 3)),
}


def _by_hand(f: Loss, x: Tensor, direction: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    return torch.autograd.grad((gradient * direction).sum(), leaf)[0]


@pytest.mark.parametrize(
    ("make", "reference"),
    [(make, make) for make in (*TORCH.values(), *OURS.values())] + list(ONCE.values()),
    ids=[*TORCH, *(f"ours: {name}" for name in OURS), *ONCE],
)
def test_products(device: torch.device, make: Callable[[Data], Loss], reference: Callable[[Data], Loss]) -> None:
    """Those of plain autograd, which differentiates the gradient by reverse mode."""
    data = Data(device)
    expected = _by_hand(reference(data), data.x, data.direction)
    for name, way in WAYS.items():
        found = way(make(data), data.x, data.direction)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=name)


def test_deeper(device: torch.device) -> None:
    """Losses that forward mode cannot see through are found under vmap, within jit, and a gradient further in."""
    data = Data(device)
    x, t = data.x, data.direction
    loss = TORCH["huber"](data)
    expected = _by_hand(loss, x, t)
    product = lambda x, t: pn.jvp(pn.grad(loss), (x,), (t,))[1]  # noqa: E731
    for found in (
        pn.vmap(product)(x[None], t[None])[0],
        pn.jit(product, backend="eager")(x, t),
        pn.jvp(pn.grad(pn.remat(loss)), (x,), (t,))[1],
        pn.jvp(pn.vmap(pn.grad(loss)), (x[None],), (t[None],))[1][0],
        pn.grad(lambda s: pn.jvp(pn.grad(loss), (x + s,), (t,))[1].sum() + (expected * s).sum())(torch.zeros_like(x)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_two_vmaps(device: torch.device) -> None:
    """Losses that compare elements under two vmaps of which the target knows none, or one."""
    data = Data(device)
    many = torch.stack([data.x, data.x.sin()])  # [2, 4, 3]
    for loss in (F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.l1_loss):
        for target, dims in ((data.y[0], None), (data.y[:2], 0)):
            both = pn.vmap(pn.vmap(pn.value_and_grad(loss), (0, None)), (0, dims))
            rows = [target if dims is None else target[n] for n in range(2)]
            each = [[pn.value_and_grad(loss)(x, y) for x in xs] for xs, y in zip(many, rows, strict=True)]
            for part, found in enumerate(both(many, target)):
                expected = torch.stack([torch.stack([pair[part] for pair in pairs]) for pairs in each])
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wrong = pytest.raises(RuntimeError, match="must match the size of tensor")
    with wrong, pytest.warns(UserWarning, match="Using a target size"):
        pn.vmap(lambda x: F.mse_loss(x, data.y[0, :2]))(data.x)


def test_torch_around(device: torch.device) -> None:
    """Where torch's own forward mode is around, its failure is explained."""
    data = Data(device)
    with pytest.raises(GradientError) as error:
        torch.func.jvp(pn.grad(TORCH["mse"](data)), (data.x,), (data.direction,))
    assert str(error.value) == (
        "grad: torch's derivative in forward mode of an operation fails where one of its arguments is constant. Take "
        "it with pn.jvp, which knows the losses that do so, or use reverse mode (pn.vjp, pn.jacrev; "
        "pn.jacrev(pn.grad(f)) is a Hessian)."
    )


def test_keys_are_used_once(device: torch.device) -> None:
    """A loss that is computed twice uses its keys twice, which is no fault of the user's."""
    data, key = Data(device), pn.random.key(0, device=device)

    def loss(x: Tensor) -> Tensor:
        return F.mse_loss(x * pn.random.bernoulli(key, x.shape), data.y)

    with pn.random.strict():
        found = pn.jvp(pn.grad(loss), (data.x,), (data.direction,))[1]
    torch.testing.assert_close(found, _by_hand(loss, data.x, data.direction), rtol=1e-10, atol=1e-12)
