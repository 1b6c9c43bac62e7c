"""Turning the failures of torch.func into errors that say what was wrong, where, and what to write instead."""

import contextlib
import linecache
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from purenn.errors import BatchingError, GradientError, MutationError, PurennError, TransformError

_OURS = (str(Path(__file__).parents[1]), os.path.dirname(torch.__file__))
_PYTHON = Path(os.__file__).parent


def place(error: BaseException) -> str:
    """The user's line on which an exception arose, as `` at model.py:12 (`x.add_(1)`)``; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if frame.filename.startswith(_OURS) or frame.lineno is None or "optree" in file.parts or file.parent == _PYTHON:
            continue
        line = linecache.getline(frame.filename, frame.lineno).strip()
        return f" at {os.path.basename(frame.filename)}:{frame.lineno}" + (f" (`{line}`)" if line else "")
    return ""


# What was wrong and what to do where a differentiated parameter is written to.
WRITTEN = (
    "the function writes in place into a parameter that is being differentiated",
    "Arguments are never changed: write `w = w + d` instead of `w.add_(d)` or `w += d`.",
)
# The same for a tensor that is no argument.
WRITTEN_OUTSIDE = (
    "the function writes in place into a tensor from outside of it",
    "Write `y = x + d` instead of `x.add_(d)`, and return what is to be kept.",
)
# (what torch says, our exception, what was wrong, what to do)
_KNOWN: tuple[tuple[str, type[PurennError], str, str], ...] = (
    (
        r"leaf Variable that requires grad is being used in an in-place operation|"
        r"view of a leaf Variable that requires grad",
        MutationError,
        *WRITTEN,
    ),
    (
        r"vmap: It looks like you're .*(data-dependent control flow|calling \.item\(\) on a Tensor)",
        BatchingError,
        "the function asks for the value of a batched tensor (`if`, `while`, bool(), int() or .item())",
        "The value differs from example to example: use torch.where(condition, a, b), or keep the number as a tensor.",
    ),
    (
        r"vmap: called random operation while in randomness error mode",
        BatchingError,
        "the function draws from torch's global generator, which vmap cannot split among the examples",
        "Draw from an explicit key: keys = pn.random.split(key, n), then vmap over the keys and use pn.random.normal, "
        "pn.random.bernoulli or a layer's key= option.",
    ),
    (
        r"vmap: inplace arithmetic\(self, \*extra_args\) is not possible|"
        r"vmap: .* is not possible because there exists a Tensor|"
        r"output with shape \[.*\] doesn't match the broadcast shape",
        MutationError,
        "the function writes in place a value larger than its target (a batched value into a tensor that is not)",
        "Write `y = x + b` instead of `x.add_(b)`; a tensor to be filled must be made from a batched one.",
    ),
    (
        r"Cannot access data pointer of Tensor that doesn't have storage",
        BatchingError,
        "the function asks for the data of a batched tensor (.numpy(), .tolist() or a pointer)",
        "Compute with torch, and call numpy outside.",
    ),
    (
        r"vmap: We do not support batching operators that can (support|output) dynamic shape|"
        r"vmap: Attempted to vmap over `mask` in torch\.masked_select",
        BatchingError,
        "the shape of a result depends on values (a boolean mask as an index, nonzero, unique)",
        "It would differ from example to example: use torch.where(mask, x, 0), or a fixed number of results.",
    ),
    (
        r"Batch norm got a batched tensor as input while the running_mean or running_var",
        MutationError,
        "a batch normalisation writes its running statistics in place, which are the same for all examples",
        "Use purenn.layers.batch_norm, which returns new ones, or make the module pure with bridge.from_module.",
    ),
    (
        r"it must override the setup_context staticmethod",
        TransformError,
        "a torch.autograd.Function without setup_context cannot be transformed",
        "Give it one and generate_vmap_rule = True, or write the rule with pn.custom_vjp.",
    ),
    (
        r"You tried to vmap over (?P<operation>\w+), but it does not have vmap support",
        BatchingError,
        "the torch.autograd.Function {operation} has no batching rule",
        "Set its generate_vmap_rule = True, or write the rule with pn.custom_vjp.",
    ),
    (
        r"You must implement the jvp function for custom autograd\.Function",
        GradientError,
        "a torch.autograd.Function has no derivative in forward mode",
        "Give it a jvp staticmethod, write the rule with pn.custom_jvp, or use reverse mode (pn.vjp, pn.jacrev).",
    ),
    (
        r"Batching rule not implemented for (?P<operation>[\w:.]*\w)|"
        r"vmap: we do not yet support (?P<other>[\w:.]*\w)|"
        r"vmap over (?P<third>torch\.\w+) isn't supported yet",
        BatchingError,
        "torch has no batching rule for {operation}",
        "Use the layer of purenn.layers for this operation, or write it in operations that have one.",
    ),
    (
        r"one of the variables needed for gradient computation has been modified by an inplace operation",
        MutationError,
        "the function overwrites in place a value that the gradient needs",
        "Write `y = f(x)` into a new name instead of changing x in place.",
    ),
    (
        r"attempted to call in-place operation .* that would mutate a captured Tensor",
        MutationError,
        *WRITTEN_OUTSIDE,
    ),
    (
        r"functions with out=\.\.\. arguments don't support automatic differentiation|"
        r"does not support it because it is an out= function",
        MutationError,
        "the function writes into a tensor by out=, which has no derivative",
        "Use the result of the call instead.",
    ),
    (
        r"You are attempting to call Tensor\.requires_grad_\(\)",
        TransformError,
        "the function calls requires_grad_() on a tensor that is being transformed",
        "Take derivatives within it with pn.grad or pn.vjp; they nest.",
    ),
    (
        r"backward\(\) called inside a functorch transform|"
        r"element 0 of tensors does not require grad and does not have a grad_fn",
        TransformError,
        "the function calls backward() or torch.autograd.grad, which see no tensor here that requires a gradient",
        "Take derivatives within it with pn.grad or pn.vjp; they nest.",
    ),
    (
        r"You are attempting to call Tensor\.retain_grad\(\)",
        TransformError,
        "the function calls retain_grad() on a tensor that is being transformed",
        "Gradients of intermediate values come from pn.perturb.",
    ),
    (
        r"mutating directly with `\.data`|accessing `data` under vmap|Can't detach views in-place",
        TransformError,
        "the function uses x.data, or detaches in place (x.detach_(), torch.tensor(x))",
        "Give the new value a name of its own: y = x + d, or y = x.detach().",
    ),
    (
        r"cannot resize variables that (require grad|has a forward grad)",
        MutationError,
        "the function resizes a tensor in place that is being differentiated",
        "Make a new one: x[:n], x.reshape(shape) or torch.cat.",
    ),
    (
        r"Cannot access storage of (BatchedTensorImpl|TensorWrapper)|"
        r"Only Tensors created explicitly by the user \(graph leaves\) support the deepcopy protocol",
        TransformError,
        "the function asks for the storage of a tensor that is being transformed (copy.deepcopy, pickle, torch.save)",
        "Copy by x.clone(); tensors are never changed here, so a copy is seldom needed.",
    ),
    (
        r"don't yet support saved tensor hooks|use_reentrant=True, torch.utils.checkpoint is incompatible",
        TransformError,
        "the function uses torch.utils.checkpoint, or other hooks of saved tensors, which torch.func does not know",
        "Recompute with pn.remat.",
    ),
    (
        r"Trying to use forward AD with (?P<operation>[\w:.]*\w) that does not support it",
        GradientError,
        "torch has no derivative in forward mode for {operation}",
        "Use reverse mode (pn.vjp, pn.jacrev; pn.jacrev(pn.grad(f)) is a Hessian), or write it in operations that have "
        "one.",
    ),
    (
        r"Can't call numpy\(\) on Tensor that requires grad",
        GradientError,
        "the function asks for the data (.numpy()) of a tensor that is being differentiated",
        "Compute with torch; if there shall be no derivative, write x.detach().numpy().",
    ),
    (
        r"derivative for (?P<operation>[\w:.]*\w) is not implemented|"
        r"the derivative for '(?P<other>[\w:. ]*\w)' is not implemented|"
        r"derivative for '(?P<third>[\w:.]*\w)' is not implemented|"
        r"Trying to backward through (?P<fourth>[\w:.]*\w) but no autograd formula was registered",
        GradientError,
        "torch has no derivative for {operation}",
        "Use the layer of purenn.layers for this operation, or write it in operations that have one.",
    ),
)


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """Within this context torch's errors about transformations arrive as ours, with the original as their cause."""
    try:
        yield
    except PurennError:
        raise
    except RuntimeError as error:
        text = str(error)
        for pattern, kind, wrong, fix in _KNOWN:
            found = re.search(pattern, text)
            if found:
                named = next((value for value in found.groupdict().values() if value), "")
                raise kind(f"{name}: {wrong.format(operation=named)}{place(error)}. {fix}") from error
        raise


def refuse_writes(name: str, paths: Sequence[str], before: Sequence[int], after: Sequence[int]) -> None:
    """Raise if a tensor has been written to meanwhile.

    Raises:
        MutationError: naming the first such path.
    """
    for path, then, now in zip(paths, before, after, strict=True):
        if then != now:
            raise MutationError(
                f"{name}: the function has written in place into its argument {path}. Arguments are never changed: "
                f"return the new value instead, as pn.replace(p, running_mean=new)."
            )
