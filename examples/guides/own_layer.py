"""Writing your own layer, end to end.

    python examples/guides/own_layer.py

The layer is a linear map whose weight has a learned scale, `y = gamma * x W^T + b`: small enough to see everything. It
is written, tested, and used in every way that the library's own layers can be used. (The finished one is
`purenn.layers.ScaledLinear`.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ShapeError
from purenn.layers import ReLU, Sequential

# 1. What the layer is: its fields. Name them as torch.nn would, since the names are the keys in files.


@pn.container
class ScaledLinear(pn.Layer):
    """An affine map whose weight has a learned scale.

    Attributes:
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        gamma: the scale, one number.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor

    # 2. How it starts. The constructor takes the fields, so this is a class method of another name. All draws come from
    #    the key, and dtype and device go to whatever makes tensors: then models on meta, ensembles by vmap over keys
    #    and float64 tests work without further code.

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "ScaledLinear":
        """Draw the weight from U(-k, k), ``k = sqrt(3 / in_features)``; the bias starts at 0 and the scale at 1."""
        weight = pn.initializers.lecun_uniform(key, (out_features, in_features), dtype=dtype, device=device)
        zeros = torch.zeros(out_features, dtype=weight.dtype, device=weight.device) if bias else None
        return cls(weight, zeros, torch.ones((), dtype=weight.dtype, device=weight.device))

    def extra_repr(self) -> str:
        """The sizes, for printing."""
        return f"in_features={self.weight.shape[-1]}, out_features={self.weight.shape[-2]}"


# 3. What it does: a function of the container and the input. Pure: nothing is written into, nothing is read that is no
#    argument. Torch broadcasts silently where shapes are wrong, so check what would not raise by itself, or would raise
#    something cryptic, and say what was expected, what came, and what to do.


@pn.applies(ScaledLinear)
def scaled_linear(p: ScaledLinear, x: Tensor) -> Tensor:
    """``gamma * x @ weight.T + bias``, over the last dimension of `x`."""
    if x.shape[-1] != p.weight.shape[-1]:
        raise ShapeError(
            f"scaled_linear: the last dimension of x must be in_features={p.weight.shape[-1]}, got shape "
            f"{list(x.shape)}. Flatten or transpose x so that its features come last."
        )
    return F.linear(x, p.gamma * p.weight, p.bias)


# 4. Its test. The reference is the plainest code that can be trusted, in float64, so that equal means equal.


class Reference(nn.Module):
    """The same layer as a module, for comparison."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.gamma = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """The formula."""
        return self.gamma * (x @ self.weight.t()) + self.bias


def make(seed: int = 0) -> ScaledLinear:
    drawn = ScaledLinear.init(pn.random.key(seed), 4, 3, dtype=torch.float64)
    return pn.replace(drawn, bias=torch.randn(3).double(), gamma=torch.tensor(1.7).double())


def test_equals_the_reference() -> None:
    """Values and gradients are those of the module."""
    p, x = make(), torch.randn(5, 4, dtype=torch.float64)
    module = Reference(4, 3).double()
    module.load_state_dict(dict(pn.tree.named_leaves(p)))
    torch.testing.assert_close(scaled_linear(p, x), module(x), rtol=0, atol=1e-12)
    module(x).square().sum().backward()
    for path, leaf in pn.tree.named_leaves(pn.grad(lambda p: scaled_linear(p, x).square().sum())(p)):
        torch.testing.assert_close(leaf, module.get_parameter(path).grad, rtol=0, atol=1e-12)


def test_derivatives() -> None:
    """First and second derivatives, reverse and forward, are those of finite differences."""
    pn.check_grads(scaled_linear, (make(), torch.randn(2, 4, dtype=torch.float64)))


def test_batches() -> None:
    """Batch axes, vmap over inputs, and a loop agree."""
    p, x = make(), torch.randn(5, 4, dtype=torch.float64)
    expected = torch.stack([scaled_linear(p, row) for row in x])
    torch.testing.assert_close(scaled_linear(p, x), expected)
    torch.testing.assert_close(pn.vmap(scaled_linear, (None, 0))(p, x), expected)


def test_per_sample_gradients() -> None:
    """vmap of grad is a loop of grads."""
    p, x = make(), torch.randn(5, 4, dtype=torch.float64)
    gradient = pn.grad(lambda p, x: scaled_linear(p, x).square().sum())
    rows = pn.tree.unstack(pn.vmap(gradient, (None, 0))(p, x))
    assert all(pn.tree.allclose(row, gradient(p, one)) for row, one in zip(rows, x, strict=True))


def test_jit() -> None:
    """It can be traced."""
    p, x = make(), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(pn.jit(scaled_linear, backend="eager")(p, x), scaled_linear(p, x))


def test_as_a_module() -> None:
    """It is a module with the same names and values, and comes back."""
    p, x = make(), torch.randn(5, 4, dtype=torch.float64)
    module = bridge.to_module(p, copy=True)
    assert list(module.state_dict()) == ["weight", "bias", "gamma"]
    torch.testing.assert_close(module(x), scaled_linear(p, x))
    assert pn.tree.equal(bridge.from_module(module), p)


def test_shape_error() -> None:
    """An input with the wrong features is refused, in words."""
    text = ""
    try:
        scaled_linear(make(), torch.randn(5, 3))
    except ShapeError as error:
        text = str(error)
    assert text == (
        "scaled_linear: the last dimension of x must be in_features=4, got shape [5, 3]. Flatten or transpose x so "
        "that its features come last."
    )


# 5. Using it. All of this comes without another line in the layer.


def use_it() -> None:
    k1, k2 = pn.random.split(pn.random.key(0))
    p = Sequential.of(ScaledLinear.init(k1, 4, 8), ReLU(), ScaledLinear.init(k2, 8, 1, bias=False))
    print(pn.summary(p, torch.ones(2, 4)))

    # Train the scales only: freeze the rest.
    x = pn.random.normal(pn.random.key(1), (64, 4))
    y = x.abs().sum(1, keepdim=True)
    p = pn.tree.freeze(p, ["**.weight", "**.bias"])
    optimizer = pn.optim.sgd(0.02)
    state = optimizer.init(p)

    def loss(p: Sequential) -> Tensor:
        return (p(x) - y).square().mean()

    before = loss(p)
    for _ in range(100):
        p, state = optimizer.step(p, pn.grad(loss)(p), state)
    print(f"\ntraining two scales: loss {before:.2f} -> {loss(p):.2f}")
    assert loss(p) < before

    # An ensemble, and a model of a size that no machine holds, on meta.
    models = pn.ensemble(ScaledLinear.init)(pn.random.split(k1, 6), 4, 3)
    assert pn.vmap(scaled_linear, (0, None))(models, x).shape == (6, 64, 3)
    huge = ScaledLinear.init(pn.random.key(0), 10**6, 10**6, device="meta")
    print(f"on meta: {pn.tree.count(huge):,} parameters")


def main() -> None:
    for test in (
        test_equals_the_reference,
        test_derivatives,
        test_batches,
        test_per_sample_gradients,
        test_jit,
        test_as_a_module,
        test_shape_error,
    ):
        test()
        print(f"{test.__name__:28} {test.__doc__}")
    print()
    use_it()


if __name__ == "__main__":
    main()
