"""Running a loop over the leading axis of tensors: which parts of it, and where a step's results go."""

import functools
from typing import Any

import torch
from torch import Tensor, fx

from purenn.transforms._operation import Tensors, empty
from purenn.transforms._program import Program, program
from purenn.transforms._unused import with_results


def run_scan(
    carry: Tensors, xs: Tensors, constants: Tensors, length: int, reverse: bool, remat: bool, step: str
) -> list[Tensor]:
    """The last carry and the stacked results. Steps write into the stacks, so that nothing is copied there."""
    made, count = program(step), len(carry)
    stacked = [empty(result, length) for result in made.results[count:]]
    if not length:
        return [*[tensor.clone() for tensor in carry], *stacked]
    writer, before = _written(made, count)
    order = range(length)[::-1] if reverse else range(length)
    columns, rows = [stack.unbind(0) for stack in stacked], [x.unbind(0) for x in xs]
    # By tensor that a step writes, the places of all steps. A step reads the carry while it writes the next one: it
    # takes two places in turn, or is stacked, as the next step finds it.
    places: list[list[Tensor]] = []
    for n, result in enumerate(made.results[:count]):
        turns = empty(result), empty(result)
        if n in before:
            column = columns[before[n]]
            column[order[0]].copy_(carry[n])
            places.append([*[column[entry] for entry in order[1:]], turns[0]])
        else:
            places.append([turns[number % 2] for number in range(length)])
    places += [[column[entry] for entry in order] for n, column in enumerate(columns) if n not in before.values()]
    for entry, own in zip(order, zip(*places, strict=True), strict=False):
        writer.run_into(own, *carry, *[row[entry] for row in rows], *constants)
        carry = own[:count]
    return [*carry, *stacked]


@functools.cache
def _written(made: Program, count: int) -> tuple[Program, dict[int, int]]:
    # The step without results that are the carry as it was before; and by entry of the carry, which result that was.
    given, before = made.graph.graph.find_nodes(op="placeholder"), dict[int, int]()
    returned: Any = made.graph.graph.output_node().args[0]
    for n, result in enumerate(returned[count:]):
        if result.target is torch.ops.aten.clone.default and result.args[0] in given[:count]:
            before.setdefault(given.index(result.args[0]), n)
    left = [n for n in range(len(made.results)) if n - count not in before.values()]
    return (made.part(range(len(given)), left) if before else made), before


def shortened(call: fx.Node, used: list[int]) -> tuple[tuple[Any, ...], list[int]]:
    """The arguments of a loop that computes little more than the results that are used, and which it has."""
    arguments: Any = call.args
    *tensors, length, reverse, remat, name = arguments
    step, count = program(name), len(tensors[0])
    results, more = set[int](), set(used)
    given: list[fx.Node] = []
    while more:
        # What is used may need the carry, and so the results of the step before.
        results |= more
        given = with_results(step.graph, sorted(results)).graph.find_nodes(op="placeholder")
        more = {n for n in range(count) if given[n].users} - results
    inputs = [n for n, node in enumerate(given) if (n in results if n < count else node.users)]
    kept = sorted(results)
    if (len(inputs), len(kept)) != (len(given), len(step.results)):
        step = step.part(inputs, kept)
    start, parts = 0, []
    for part in tensors:
        parts.append([part[n - start] for n in inputs if start <= n < start + len(part)])
        start += len(part)
    return (*parts, length, reverse, remat, step.name), kept
