"""Debugging and errors.

    python examples/guides/debugging.py

Every error of purenn is a class of `pn.errors` that is a ValueError, a TypeError or whatever else fits as well. Its
text says where, what was expected, what came, and what to do. This guide makes the usual mistakes and prints what is
said to them; then it shows the tools for faults that raise nothing: wrong gradients, NaN, keys used twice, needless
tracing, layers that do not learn.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import purenn as pn
from purenn import errors
from purenn.layers import Lambda, Linear, ReLU, Sequential, sequential


def raises(kind: type[Exception], call: Callable[[], Any], *words: str) -> None:
    """Print the error of a call, and check its class and some words of it."""
    text = ""
    try:
        call()
    except kind as error:
        text = f"{type(error).__name__}: {error}"
    assert text, f"{kind.__name__} was expected"
    assert all(word in text for word in words), text
    print(f"\n{text}")


def network() -> Sequential:
    k1, k2 = pn.random.split(pn.random.key(0))
    return Sequential.of(Linear.init(k1, 4, 8), ReLU(), Linear.init(k2, 8, 2))


def usual_mistakes(p: Sequential, x: Tensor) -> None:
    print("--- usual mistakes")
    # An input of the wrong shape, deep in a model.
    raises(errors.ShapeError, lambda: p(torch.ones(5, 3)), "in_features=4")

    # A gradient of something that is no number, or of something that has none.
    raises(errors.GradientError, lambda: pn.grad(lambda p: p(x))(p), "scalar")
    raises(errors.GradientError, lambda: pn.grad(lambda n: n.sum())(torch.arange(3)), "nothing to differentiate")

    # Axes that do not belong together.
    loss = pn.vmap(lambda p, x, target: F.cross_entropy(p(x), target), (None, 0, 0))
    raises(errors.BatchingError, lambda: loss(p, x, torch.zeros(4, dtype=torch.int64)), "differ in length")

    # Python control flow on values that there are many of. The line is named.
    def positive(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    raises(errors.BatchingError, lambda: pn.vmap(positive)(x), "torch.where", "debugging.py")

    # Writing into what must not change.
    def doubled(p: Sequential) -> Tensor:
        p[0].weight.mul_(2)
        return p(x).sum()

    raises(errors.MutationError, lambda: pn.grad(doubled)(p), "in place")

    # Trees that do not fit, names that are not there.
    raises(errors.StructureError, lambda: pn.tree.map(torch.add, p, p[0]), "Sequential", "Linear")
    raises(errors.ContainerError, lambda: pn.replace(p[0], wieght=x), "'wieght'", "weight")
    raises(errors.SelectionError, lambda: pn.tree.select(p).paths("encoder.**").get(), "encoder.**", "layers.0.weight")

    # A file that does not fit: everything that is wrong is listed at once.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pn.save(path, p)
        other = Sequential.of(Linear.init(pn.random.key(0), 4, 9), ReLU())
        raises(errors.CheckpointError, lambda: pn.load(path, like=other), "layers.0.weight", "layers.2.bias")


def why_is_there_no_gradient(p: Sequential, x: Tensor) -> None:
    # A leaf that does not learn: frozen, a buffer, an integer, or not used? `explain` says it for each.
    p = pn.tree.freeze(p, "layers.0.bias")
    found = pn.explain(lambda p: p[0](x).sum(), p)
    print("\n--- why is there no gradient?")
    print(found)
    assert "it is frozen" in str(found)
    assert "the value does not depend on it" in str(found)


def what_is_inside(p: Sequential, x: Tensor) -> None:
    # `capture` returns the outputs of layers by path: under vmap, grad and jit as well, where print and hooks are no
    # use.
    _, outputs = pn.capture(sequential, "layers.*")(p, x)
    print("\n--- what is inside?")
    for path, output in outputs.items():
        print(f"{path}: {list(output.shape)}, {(output == 0).double().mean():.0%} zeros")
    assert list(outputs) == ["layers.0", "layers.1", "layers.2"]

    # `perturb` gives the gradient with respect to an output in the middle.
    zeros = pn.tree.map(torch.zeros_like, {"layers.1": outputs["layers.1"]})
    gradients = pn.grad(lambda d: pn.perturb(sequential, "layers.1")(d, p, x).sum())(zeros)
    torch.testing.assert_close(gradients["layers.1"], p[2].weight.sum(0).expand(5, 8))


def where_does_the_nan_come_from(x: Tensor) -> None:
    # The loss is NaN: which layer was the first? With `check_numerics` the error names it, forward or backward.
    k1, k2 = pn.random.split(pn.random.key(1))
    p = Sequential.of(Linear.init(k1, 4, 2), Lambda(torch.sqrt), Linear.init(k2, 2, 1))
    print("\n--- where does the NaN come from?", end="")
    raises(errors.NumericsError, lambda: pn.check_numerics(sequential)(p, x), "'layers.1' (Lambda)")


def is_my_gradient_right() -> None:
    # A derivative written by hand, with a mistake in it: finite differences find out.
    wrong = pn.custom_vjp(lambda x: x.sin())
    wrong.defvjp(lambda x: (x.sin(), x), lambda x, cotangent: (cotangent * x.sin(),))
    print("\n--- is my gradient right?", end="")
    point = torch.ones(2, dtype=torch.float64)
    raises(errors.GradientError, lambda: pn.check_grads(wrong, (point,), order=1, modes=("reverse",)), "argument 0")


def are_my_random_numbers_independent() -> None:
    # Two draws from one key are the same numbers, and nothing looks wrong. Run a test under `strict`.
    def two_draws(key: Tensor) -> Tensor:
        return pn.random.normal(key, (2,)) + pn.random.normal(key, (2,))

    print("\n--- are my random numbers independent?", end="")
    with pn.random.strict():
        raises(errors.KeyReuseError, lambda: two_draws(pn.random.key(2)), "used twice", "debugging.py")


def why_is_it_traced_again(x: Tensor) -> None:
    # A jitted function is traced for each kind of arguments. If that happens more often than you think, set a limit.
    step = pn.assert_max_traces(1)(pn.jit(lambda x, rate: x * rate, backend="eager"))
    step(x, 0.1)
    print("\n--- why is it traced again?", end="")
    raises(errors.TraceError, lambda: step(x, 0.2), "0.1", "0.2")

    # A Python number is a part of the program, a tensor is data.
    again = pn.assert_max_traces(1)(pn.jit(lambda x, rate: x * rate, backend="eager"))
    for rate in (0.1, 0.2, 0.3):
        again(x, torch.tensor(rate))


def what_has_changed(p: Sequential) -> None:
    # Two models that should be the same, and are not.
    q = pn.tree.select(p).paths("layers.2.bias").apply(lambda bias: bias + 0.5)
    print("\n--- what has changed?")
    print(repr(pn.tree.equal(p, q)))
    assert not pn.tree.equal(p, q)
    assert pn.tree.equal(p, q).path == "layers.2.bias"


def what_do_the_numbers_look_like(p: Sequential, x: Tensor) -> None:
    # Gradients that vanish, a layer that does not learn, a step that is far too long: seen at a glance in figures by
    # path, which are matplotlib's. (`pn.plots.TensorBoard` writes the same step by step.)
    grads, optimizer = pn.grad(lambda p: p(x).square().mean())(p), pn.optim.adam(1e-3)
    updates, _ = optimizer.update(grads, optimizer.init(p), p)
    figures = {
        "gradients": pn.plots.histograms(grads, title="gradients"),
        "magnitudes": pn.plots.magnitudes(grads, title="sizes of gradients"),
        "ratios": pn.plots.update_ratios(p, updates, title="updates against weights"),
        "difference": pn.plots.difference(p, pn.optim.apply_updates(p, updates), title="after a step"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in figures.items():
            figure.savefig(Path(folder) / f"{name}.png")
        drawn = sorted(path.name for path in Path(folder).iterdir())
    print("\n--- what do the numbers look like?")
    print("drawn:", ", ".join(drawn))


def main() -> None:
    torch.set_num_threads(1)
    p, x = network(), pn.random.normal(pn.random.key(3), (5, 4))
    usual_mistakes(p, x)
    why_is_there_no_gradient(p, x)
    what_is_inside(p, x)
    where_does_the_nan_come_from(x)
    is_my_gradient_right()
    are_my_random_numbers_independent()
    why_is_it_traced_again(x)
    what_has_changed(p)
    what_do_the_numbers_look_like(p, x)


if __name__ == "__main__":
    main()
