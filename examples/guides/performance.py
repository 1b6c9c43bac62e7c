"""Performance habits.

    python examples/guides/performance.py
    python examples/guides/performance.py --backend inductor

Times are of this machine and this moment, as ratios of two ways to compute the same numbers. What is asserted are the
numbers, and whatever can be counted: kept bytes, traces, nodes of a graph, places in memory.

The default backend of `pn.jit` is inductor, torch's compiler. This guide uses "eager", which runs the traced graph as
it is: that starts at once, and takes away Python's part of the time only.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, Sequential, Stack, Tanh


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], repeats: int = 7) -> str:
    """How many times as long the first takes: the median of pairs, after one run of each to warm up."""

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    slow()
    fast()
    return f"{statistics.median(seconds(slow) / seconds(fast) for _ in range(repeats)):.1f} x"


def network(key: Tensor, width: int = 64, depth: int = 4) -> Sequential:
    keys = pn.random.split(key, depth)
    members = [member for k in keys for member in (Linear.init(k, width, width), Tanh())]
    return Sequential.of(*members)


def loss(p: Sequential, x: Tensor) -> Tensor:
    return p(x).square().mean()


def batch_natively(p: Sequential, x: Tensor) -> None:
    # Layers take leading batch axes. vmap is for what they cannot express: a gradient for each sample, many models.
    torch.testing.assert_close(pn.vmap(p)(x), p(x))
    print("a batch by vmap instead of natively:", ratio(lambda: pn.vmap(p)(x), lambda: p(x)))


def stay_lean(p: Sequential, x: Tensor) -> None:
    # The outermost `pn.grad` runs on plain autograd and builds one graph; torch.func.grad builds a second one, in case
    # someone differentiates again. So take one gradient, not one of each part, and leave requires_grad alone: a model
    # whose leaves require grad asks for the second graph, too.
    raw = torch.func.grad(loss)
    assert pn.tree.allclose(pn.grad(loss)(p, x), raw(p, x))
    print("torch.func.grad instead of pn.grad:", ratio(lambda: raw(p, x), lambda: pn.grad(loss)(p, x)))


def choose_the_order(p: Sequential, x: Tensor) -> None:
    # The mean gradient of many tasks can be had in several orders: vmap of the gradient, gradient of a sum of mapped
    # losses, a loop. The numbers are the same, the times are not, and which is best depends on the model, the device
    # and on whether it is jitted. `pn.meta.grad` goes by a rule, which `pn.meta.choose` explains; `how` overrules it.
    def adapted(p: Sequential, x: Tensor) -> Tensor:
        grads = pn.grad(loss)(p, x)
        return loss(pn.tree.map(lambda w, g: w - 0.1 * g, p, grads), x)

    tasks = x.view(8, -1, x.shape[-1])
    chosen = pn.meta.grad(adapted)
    for how in ("vmap", "loop"):
        other = pn.meta.grad(adapted, how)
        assert pn.tree.allclose(other(p, tasks), chosen(p, tasks), atol=1e-6)
        times = ratio(lambda other=other: other(p, tasks), lambda: chosen(p, tasks), 5)
        print(f"second-order MAML of 8 tasks, {how} instead of {pn.meta.choose(adapted, p, tasks).how}:", times)


def ask_for_norms(p: Sequential, x: Tensor) -> None:
    # Gradients of single samples are large. If what you want of them is a norm, a clipped sum or inner products, ask a
    # record, which never makes them.
    def every() -> Tensor:
        each = pn.vmap(pn.grad(loss), (None, 0))(p, x)
        return torch.stack([leaf.flatten(1).square().sum(1) for leaf in pn.tree.leaves(each)]).sum(0).sqrt()

    def norms() -> Tensor:
        return pn.per_sample.norms(loss)(p, (x,))

    torch.testing.assert_close(norms(), every(), rtol=1e-4, atol=1e-6)
    print("norms by way of all gradients, instead of by a record:", ratio(every, norms, 5))


def jit_whole_steps(p: Sequential, x: Tensor, backend: str) -> None:
    # Compile the largest pure function that there is, usually a whole training step: loss, gradient, optimiser.
    optimizer = pn.optim.adam(1e-3)

    def step(p: Sequential, state: Any, x: Tensor) -> tuple[Sequential, Any]:
        return optimizer.step(p, pn.grad(loss)(p, x), state)

    state = optimizer.init(p)
    compiled = pn.jit(step, backend=backend)
    assert pn.tree.allclose(compiled(p, state, x)[0], step(p, state, x)[0], atol=1e-5)
    print(f"a training step without jit ({backend}):", ratio(lambda: step(p, state, x), lambda: compiled(p, state, x)))

    # The more transformations, the more there is to gain, for they are Python's work: of a traced function only the
    # operations are left.
    def rows(p: Sequential, x: Tensor) -> Sequential:
        return pn.vmap(pn.grad(loss), (None, 0))(p, x)

    traced = pn.jit(rows, backend=backend)
    assert pn.tree.allclose(traced(p, x), rows(p, x), atol=1e-5)
    print(f"vmap(grad) without jit ({backend}):", ratio(lambda: rows(p, x), lambda: traced(p, x), 5))

    # It is traced once for each kind of arguments. So keep shapes fixed (drop or pad the last batch), and pass numbers
    # that change as tensors: each Python number would be a program of its own.
    compiled(p, state, x[:7])
    assert compiled.cache_info().misses == 2
    scaled = pn.jit(lambda x, rate: rate * x, backend="eager")
    for rate in (0.1, 0.2, 0.3):
        scaled(x, rate)
    assert scaled.cache_info().misses == 3
    for rate in (0.1, 0.2, 0.3):
        scaled(x, torch.tensor(rate))
    assert scaled.cache_info().misses == 4
    print("three Python numbers are three traces, three tensors are one:", scaled.cache_info())


def donate(x: Tensor, backend: str) -> None:
    # Old parameters are worthless after a step. Donated, their memory holds the new ones.
    step = pn.jit(lambda w, x: w - 0.1 * (w - x), donate_argnums=0, backend=backend)
    w = torch.zeros_like(x)
    place = w.data_ptr()
    new = step(w, x)
    torch.testing.assert_close(new, 0.1 * x)
    assert new.data_ptr() == place
    print("donated: the new parameters are where the old ones were")


def one_buffer(p: Sequential, x: Tensor) -> None:
    # Many small leaves mean many small kernels and many small messages. A contiguous tree is one stretch of memory, and
    # an optimiser's step on it one kernel. That counts on a GPU, to which each kernel is sent by itself; on a CPU
    # making the views may cost more than it saves. Measure.
    grads, optimizer = pn.grad(loss)(p, x), pn.optim.adam(1e-3)
    q, flat = pn.tree.contiguous(p), pn.tree.contiguous(grads)
    state, flat_state = optimizer.init(p), optimizer.init(q)
    assert pn.tree.allclose(optimizer.step(q, flat, flat_state)[0], optimizer.step(p, grads, state)[0])
    assert len({leaf.untyped_storage().data_ptr() for leaf in pn.tree.leaves(q)}) == 1
    separate = ratio(lambda: optimizer.step(p, grads, state), lambda: optimizer.step(q, flat, flat_state))
    print("a step of adam on separate leaves instead of one buffer:", separate)


def kept_bytes(call: Callable[[], Any]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return kept


def remember_less(x: Tensor) -> None:
    # Memory is what a deep model runs out of. With remat a block keeps its input and is computed again when needed: a
    # third more time, and a fraction of the memory. It works with the outermost pn.grad and with plain autograd.
    def deep(remat: bool) -> Callable[[], Any]:
        p = Stack.init(pn.random.key(2), 16, lambda key: network(key, depth=2), remat=remat)
        return lambda: pn.grad(loss)(p, x)

    keeping, again = (kept_bytes(deep(remat)) for remat in (False, True))
    assert again < 0.5 * keeping
    print(f"sixteen blocks keep {keeping / 1024:.0f} KiB for the backward pass, with remat {again / 1024:.0f} KiB")


def compile_one_block(x: Tensor) -> None:
    # Equal layers in a Stack are one loop with one compiled body, however many there are.
    def nodes(depth: int) -> int:
        stack = Stack.init(pn.random.key(3), depth, lambda key: network(key, depth=1))
        return len(pn.jit(lambda p, x: p(x), backend="eager").lower(stack, x).graph.graph.nodes)

    def written_out(depth: int) -> int:
        members = network(pn.random.key(3), depth=depth)
        return len(pn.jit(lambda p, x: p(x), backend="eager").lower(members, x).graph.graph.nodes)

    assert nodes(4) == nodes(32)
    print(f"nodes of a graph of 4 and of 32 layers: {nodes(4)}, {nodes(32)} as a Stack, ", end="")
    print(f"{written_out(4)}, {written_out(32)} written out")


def main() -> None:
    parser = argparse.ArgumentParser(description="Performance habits, with the ratios of this machine.")
    parser.add_argument("--backend", default="eager", help="of pn.jit: eager or inductor (default: eager)")
    backend = parser.parse_args().backend
    torch.set_num_threads(1)
    p, x = network(pn.random.key(0)), pn.random.normal(pn.random.key(1), (64, 64))
    batch_natively(p, x)
    stay_lean(p, x)
    choose_the_order(p, x)
    ask_for_norms(p, x)
    jit_whole_steps(p, x, backend)
    donate(x, backend)
    one_buffer(p, x)
    remember_less(x)
    compile_one_block(x)


if __name__ == "__main__":
    main()
