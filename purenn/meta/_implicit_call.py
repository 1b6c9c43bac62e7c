"""One call of a function made by `implicit`: its solution, and the equations that define it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purenn._modes import is_traced
from purenn.errors import ConvergenceError, GradientError, ShapeError
from purenn.meta._implicit_levels import one_example, physical, transformed
from purenn.meta._implicit_operation import LinearSystem, Tensors, solution
from purenn.meta._implicit_solvers import LinearSolver
from purenn.transforms._custom import Frame
from purenn.transforms._leaves import scalar_output, split_aux, take_apart
from purenn.tree._map import filled, flatten_with_holes, structures_differ
from purenn.tree._walk import Structure, fits, quoted, short


class Setting(NamedTuple):
    """What `implicit` was given.

    Attributes:
        solve: finds the solution.
        kind: what the condition is, "stationary", "fixed_point" or "root".
        condition: a function of the solution and of the arguments of `solve`.
        solver: of the linear systems of the derivatives.
        solution_tolerance: the largest root mean square of the equations at the solution, None for any.
        has_aux: whether `solve` returns more than the solution.
    """

    solve: Callable[..., Any]
    kind: str
    condition: Callable[..., Any]
    solver: LinearSolver
    solution_tolerance: float | None
    has_aux: bool


class Found(NamedTuple):
    """The structure of what `solve` has returned.

    Attributes:
        structure: of the solution.
        constants: its leaves that are no tensors, None in the place of the others.
        chosen: the places of its leaves that the equations define.
        others: the places of its other tensors.
        aux_spec: the structure of the auxiliary output.
        aux_constants: its leaves that are no tensors.
    """

    structure: Structure
    constants: list[Any]
    chosen: list[int]
    others: list[int]
    aux_spec: Any
    aux_constants: list[Any]

    def tree(self, results: Tensors) -> Any:
        """The solution with some tensors in it."""
        leaves = list(self.constants)
        for place, tensor in zip([*self.chosen, *self.others], results, strict=False):
            leaves[place] = tensor
        return self.structure.rebuild(leaves)

    def aux(self, results: Tensors) -> Any:
        """The auxiliary output with some tensors in it."""
        rest = iter(results[len(self.chosen) + len(self.others) :])
        return optree.tree_unflatten(self.aux_spec, [next(rest) if x is None else x for x in self.aux_constants])


class Call:
    """A problem in the sense of `_implicit_operation`."""

    def __init__(self, setting: Setting, args: tuple, kwargs: dict[str, Any]) -> None:
        self._names = tuple(kwargs)
        given: Any = (*args, *kwargs.values())
        leaves, spec = optree.tree_flatten(given)
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._setting, self._frame = setting, Frame.of(leaves, places, spec)
        self._tensors = [leaves[place] for place in places]
        self._found: Found | None = None

    @torch.compiler.disable(reason="pn.implicit runs uncompiled within torch.compile; pn.jit compiles it")
    def run(self) -> Any:
        """The solution, differentiable, and the auxiliary output if there is one."""
        tensors, self._tensors = self._tensors, []
        try:
            results = solution(self, tensors)
        except RuntimeError as error:
            if "escaped from inside a function being vmapped" in str(error):
                raise self._closes_over("batched") from error
            raise
        self._require_closed(results, tensors)
        tree = self.found.tree(results)
        return (tree, self.found.aux(results)) if self._setting.has_aux else tree

    @property
    def found(self) -> Found:
        """The structure of the results, known once there are some."""
        assert self._found is not None
        return self._found

    @property
    def size(self) -> int:
        """The number of tensors that the equations define."""
        return len(self.found.chosen)

    def _arguments(self, tensors: Tensors) -> tuple[tuple, dict[str, Any]]:
        values = self._frame.args(tensors)
        count = len(values) - len(self._names)
        return values[:count], dict(zip(self._names, values[count:], strict=True))

    def solve(self, tensors: Tensors) -> list[Tensor]:
        """The results: what the equations define, other tensors of the solution, those of the auxiliary output.

        Raises:
            GradientError: there is nothing to differentiate, or the condition closes over what is differentiated.
            ConvergenceError: it is no solution.
        """
        args, kwargs = self._arguments(tensors)
        tree, aux = split_aux("implicit", self._setting.solve(*args, **kwargs), self._setting.has_aux)
        taken = take_apart(tree)
        _require_solution(taken.structure, taken.leaves, taken.chosen)
        others = [n for n, x in enumerate(taken.leaves) if isinstance(x, Tensor) and n not in set(taken.chosen)]
        extra, spec = optree.tree_flatten(aux)
        self._found = Found(
            taken.structure, _without_tensors(taken.leaves), taken.chosen, others, spec, _without_tensors(extra)
        )
        own = {id(tensor) for tensor in tensors}
        results = [taken.leaves[n] for n in (*taken.chosen, *others)] + [x for x in extra if isinstance(x, Tensor)]
        results = [x.detach().clone() if id(x) in own else x.detach() for x in results]
        return self._checked(results, tensors)

    def _require_closed(self, results: Tensors, tensors: Tensors) -> None:
        # Of arguments that no transformation follows, none should follow the equations. Within a level of functorch
        # gradients in the condition leave no graph of their own.
        unknown, *rest = [
            [one_example(x) for x in part] for part in (results[: self.size], results[self.size :], tensors)
        ]

        def residual(*values: Tensor) -> list[Tensor]:
            return self.residual([*values, *rest[0]], rest[1])

        for equation in torch.func.vjp(residual, *unknown)[0]:
            found = transformed(equation)
            if found:
                raise self._closes_over(found)

    def _closes_over(self, what: str) -> GradientError:
        return GradientError(
            f"implicit: solve or the {self._setting.kind} condition closes over a tensor that is being {what}, which "
            f"the derivative cannot see: make it an argument of both, or detach it if it is a constant."
        )

    def _checked(self, results: list[Tensor], tensors: Tensors) -> list[Tensor]:
        limit = self._setting.solution_tolerance
        if limit is None:
            return results
        values = torch.cat([equation.reshape(-1) for equation in self.residual(results, tensors)])
        size = values.square().mean().sqrt()
        if is_traced():
            return [torch.where(size <= limit, x, torch.nan) for x in results[: self.size]] + results[self.size :]
        if not physical(size <= limit).all():
            raise ConvergenceError(
                f"implicit: what the solver returned is no solution: the root mean square of the "
                f"{self._setting.kind} condition's equations is {physical(size).max().item():.1e} there, and "
                f"solution_tolerance={limit:g}."
            )
        return results

    def residual(self, results: Tensors, tensors: Tensors) -> list[Tensor]:
        """The equations' values: the gradient of an objective, ``x - g(x)`` of a fixed point, or those of a root."""
        args, kwargs = self._arguments(tensors)
        condition, unknown, others = self._setting.condition, list(results[: self.size]), results[self.size :]
        if self._setting.kind == "stationary":

            def objective(values: list[Tensor]) -> Tensor:
                value = condition(self.found.tree([*values, *others]), *args, **kwargs)
                return scalar_output("implicit, stationary", value)

            return list(torch.func.grad(objective)(unknown))
        tree = self.found.tree(results)
        values = self._like_solution(tree, condition(tree, *args, **kwargs))
        if self._setting.kind == "root":
            return values
        return [x - value for x, value in zip(unknown, values, strict=True)]

    def _like_solution(self, tree: Any, values: Any) -> list[Tensor]:
        kind, structure = self._setting.kind, self.found.structure
        items, spec = flatten_with_holes(values)
        if not fits(spec, structure.spec):
            raise structures_differ(f"implicit, solution and {kind} condition", filled(tree), filled(values))
        wanted, _ = flatten_with_holes(tree)
        for place in self.found.chosen:
            if not (isinstance(items[place], Tensor) and items[place].shape == wanted[place].shape):
                raise ShapeError(
                    f"implicit: the {kind} condition must return what looks like the solution, but "
                    f"{quoted(structure.paths[place])} is {short(wanted[place])} there and {short(items[place])} here."
                )
        return [items[place] for place in self.found.chosen]

    def inverse(self, results: Tensors, tensors: Tensors, right: Tensors, transposed: bool) -> list[Tensor]:
        """The solution of a linear system with the equations' derivative."""
        symmetric, counts = self._setting.kind == "stationary", (len(results), len(tensors))
        system = LinearSystem(self, self._setting.solver, counts, symmetric=symmetric, transposed=transposed)
        return solution(system, [*results, *tensors, *right])


def _without_tensors(leaves: list[Any]) -> list[Any]:
    return [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _require_solution(structure: Structure, leaves: list[Any], chosen: list[int]) -> None:
    if not chosen:
        raise GradientError(
            "implicit: the solution has nothing to differentiate: no leaf of what `solve` returns is a floating-point "
            "parameter that is not frozen."
        )
    for place in chosen:
        if leaves[place].is_complex():
            raise GradientError(
                f"implicit: {quoted(structure.paths[place])} of the solution is {short(leaves[place])}, but equations "
                f"are of real numbers: solve for torch.view_as_real(z)."
            )
