"""The C++ source of products of small matrices, as a template of inductor's."""

from typing import Any

import torch
from torch._inductor import ir, lowering  # the latter before templates, which it imports itself
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP
from torch._inductor.select_algorithm import realize_inputs
from torch._inductor.utils import parallel_num_threads

# A block of a product is some rows times some vectors of columns, whose sums stay in registers while all of their terms
# are added; `tail` says how many numbers the last of the vectors has. Templates are shared by all products of a source.
_TEMPLATES = """
#ifndef PURENN_SMALL_PRODUCTS
#define PURENN_SMALL_PRODUCTS
namespace small_products {

struct Steps { int64_t inner, left_row, left_column, right_row, product_row; };

template <typename number, int rows, int vectors, int tail>
C10_NOINLINE void block(const number* left, const number* right, number* product, const Steps& steps) {
    using Vector = at::vec::Vectorized<number>;
    constexpr int width = Vector::size();
    Vector sums[rows][vectors];
    #pragma GCC unroll 32
    for (int i = 0; i < rows; ++i)
        #pragma GCC unroll 32
        for (int j = 0; j < vectors; ++j) sums[i][j] = Vector(number(0));
    for (int64_t k = 0; k < steps.inner; ++k) {
        Vector row[vectors];
        #pragma GCC unroll 32
        for (int j = 0; j < vectors; ++j)
            row[j] = Vector::loadu(right + k * steps.right_row + j * width, j == vectors - 1 ? tail : width);
        #pragma GCC unroll 32
        for (int i = 0; i < rows; ++i) {
            Vector factor(left[i * steps.left_row + k * steps.left_column]);
            #pragma GCC unroll 32
            for (int j = 0; j < vectors; ++j) sums[i][j] = at::vec::fmadd(factor, row[j], sums[i][j]);
        }
    }
    #pragma GCC unroll 32
    for (int i = 0; i < rows; ++i)
        #pragma GCC unroll 32
        for (int j = 0; j < vectors; ++j)
            sums[i][j].store(product + i * steps.product_row + j * width, j == vectors - 1 ? tail : width);
}

template <typename number, int height, int vectors, int tail>
inline void columns(const number* left, const number* right, number* product, const Steps& steps) {
    constexpr int registers = sizeof(at::vec::Vectorized<number>) >= 64 ? 32 : 16;
    constexpr int blocks = (height * vectors + registers - vectors - 2) / (registers - vectors - 1);
    constexpr int rows = (height + blocks - 1) / blocks;
    constexpr int rest = height % rows;
    int i = 0;
    for (; i + rows <= height; i += rows)
        block<number, rows, vectors, tail>(left + i * steps.left_row, right, product + i * steps.product_row, steps);
    if constexpr (rest > 0)
        block<number, rest, vectors, tail>(left + i * steps.left_row, right, product + i * steps.product_row, steps);
}

template <typename number, int height, int breadth>
inline void product(const number* left, const number* right, number* product, const Steps& steps) {
    constexpr int width = at::vec::Vectorized<number>::size();
    constexpr int most = 4 * width;
    constexpr int whole = (breadth - 1) / most * most;
    constexpr int vectors = (breadth - whole + width - 1) / width;
    for (int j = 0; j < whole; j += most) columns<number, height, 4, width>(left, right + j, product + j, steps);
    constexpr int tail = breadth - whole - (vectors - 1) * width;
    columns<number, height, vectors, tail>(left, right + whole, product + whole, steps);
}

}  // namespace small_products
#endif
"""
# Multiplications from which it pays to divide them among threads.
_WORTH_THREADS = 1 << 18


class _SmallProducts(CppTemplate):
    def __init__(self, left: Any, right: Any) -> None:
        shape = [*left.get_size()[:2], right.get_size()[2]]
        layout = ir.FixedLayout(left.get_device(), left.get_dtype(), shape)
        super().__init__("small_products", [left, right], layout, parallel_num_threads())

    def render(self, *, kernel: Any, template_buffer_node: Any = None, **_: Any) -> str:
        left, right = self.input_nodes
        product = template_buffer_node or self.output_node
        signature = kernel.def_kernel({"lefts": left, "rights": right}, {"products": product})
        lefts, rights, products = [kernel.index(node, [0, 0, 0]) for node in (left, right, product)]
        count, rows, inner, columns = map(int, (*left.get_size(), right.get_size()[2]))
        left_step, left_row, left_column = map(int, left.get_stride())
        right_step, right_row, right_column = map(int, right.get_stride())
        number, turn, threads = DTYPE_TO_CPP[left.get_dtype()], "", ""
        if right_column != 1:
            turn = f"""
        alignas(64) {number} turned[{inner * columns}];
        at::vec::transpose_mxn<{number}>(right, {right_column}, turned, {columns}, {columns}, {inner});
        right = turned;"""
            right_row = columns
        if self.num_threads > 1 and count * rows * inner * columns >= _WORTH_THREADS:
            threads = f"#pragma omp parallel for num_threads({self.num_threads})"
        return f"""{self.header().getvalue()}{_TEMPLATES}
extern "C"
{signature} {{
    const small_products::Steps steps{{{inner}, {left_row}, {left_column}, {right_row}, {columns}}};
    {threads}
    for (int64_t n = 0; n < {count}; ++n) {{
        const {number}* left = &{lefts} + n * {left_step};
        const {number}* right = &{rights} + n * {right_step};{turn}
        small_products::product<{number}, {rows}, {columns}>(left, right, &{products} + n * {rows * columns}, steps);
    }}
}}
"""


@lowering.register_lowering(torch.ops.purenn.small_products.default, type_promotion_kind=None)
def _lowered(left: Any, right: Any) -> Any:
    left, right = realize_inputs(left, right)
    if 1 not in right.get_stride()[1:]:
        right = ir.ExternKernel.require_contiguous(right)
    return _SmallProducts(left, right).generate().output_node()
