"""Products of matrices in what inductor compiles for the CPU.

**Many pairs of small matrices.** torch leaves them to its linear-algebra library, whose start for every pair takes as
long as a product of matrices with some tens of rows. As loops of vectors in the compiler's own source, with sizes that
it knows, they take 0.45 to 0.9 of that time on processors that the library is not made for, and up to a quarter less
where it is. Such products are what vmap makes of layers whose parameters differ from task to task or from model to
model, of attention, and of the gradients of single examples.

**A bias.** torch writes it to every row of the result and lets the library add the product. If it is added afterwards,
inductor does so in the loop of what follows.
"""

import functools
import importlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, library

from purenn.transforms._operation import LIBRARY

_SOURCE = f"{__package__}._small_products_source"
_DTYPES = (torch.float32, torch.float64)
#: The most rows and columns of a product, and the most terms of its numbers: as many columns of the second matrix as
#: are multiplied at a time stay in a processor's nearest cache.
_MOST, _MOST_TERMS = 512, 128
#: If the second matrix must be turned: the most numbers that it has, and the fewest rows and columns of a product.
_TURNED, _FEWEST = 8192, 8
#: The most multiplications of one product where the library is made for the processor.
_MOST_MULTIPLICATIONS = {torch.float32: 64**3, torch.float64: 32**3}

LIBRARY.define("small_products(Tensor left, Tensor right) -> Tensor")
LIBRARY.impl("small_products", torch.bmm, "CompositeExplicitAutograd")


@functools.partial(library.register_fake, "purenn::small_products", lib=LIBRARY)
def _fake(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(*left.shape[:2], right.shape[2])


def options_for_products() -> dict[str, Any]:
    """Options for inductor to compile products so; none where the user has a pass in the place of ours."""
    from torch._inductor import config

    if config.post_grad_custom_post_pass:
        return {}
    # Of all passes the last, which sees every operation with its sizes. And our source has no place for what follows.
    return {"post_grad_custom_post_pass": _pass(), "epilogue_fusion": False}


@functools.cache
def _pass() -> Any:
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Products(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            for node in graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default):
                _add_bias_afterwards(graph, node)
            if not pick_vec_isa():  # for this processor the compiler has no vectors
                return
            for node in graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default):
                if _is_small(*[arg.meta["val"] for arg in node.args]):
                    importlib.import_module(_SOURCE)  # tells inductor what it is
                    node.target = torch.ops.purenn.small_products.default

        def uuid(self) -> Any:
            files = (__file__, str(Path(__file__).with_name(f"{_SOURCE.rpartition('.')[2]}.py")))
            return get_hash_for_files(files, extra=str(library_is_made_for_processor()))

    return Products()


def _add_bias_afterwards(graph: fx.Graph, node: fx.Node) -> None:
    bias, left, right = cast("tuple[fx.Node, fx.Node, fx.Node]", node.args)
    value = node.meta["val"]
    # Below float32 the library adds it before it rounds.
    if node.kwargs or bias.meta["val"].dim() != 1 or value.dtype not in _DTYPES:
        return
    with graph.inserting_before(node):
        product = graph.call_function(torch.ops.aten.mm.default, (left, right))
        added = graph.call_function(torch.ops.aten.add.Tensor, (product, bias))
    for new in (product, added):
        new.meta.update(node.meta)
    node.replace_all_uses_with(added)
    graph.erase_node(node)


@functools.cache
def library_is_made_for_processor() -> bool:
    """Whether products are MKL's, on a processor of the same maker."""
    if not torch.backends.mkl.is_available():
        return False
    described = Path("/proc/cpuinfo")
    return "GenuineIntel" in (described.read_text() if described.exists() else platform.processor())


def _is_small(left: Tensor, right: Tensor) -> bool:
    sizes: Sequence[Any] = *left.shape, right.shape[2]
    if left.device.type != "cpu" or left.dtype not in _DTYPES:
        return False
    if not all(isinstance(size, int) for size in sizes):
        return False
    count, rows, terms, columns = sizes
    turned = right.stride(2) != 1
    if turned and (min(rows, columns) < _FEWEST or terms * columns > _TURNED):
        return False
    larger = rows * terms * columns > _MOST_MULTIPLICATIONS[left.dtype] or (turned and left.dtype == torch.float64)
    if larger and library_is_made_for_processor():
        return False
    # With an axis of length 1 it is a sum of products, which inductor joins with the operations around.
    return min(rows, columns) > 1 and count > 0 and 0 < terms <= _MOST_TERMS and max(rows, columns) <= _MOST
