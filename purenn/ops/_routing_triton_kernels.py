"""Dynamic routing for a GPU, in Triton: votes live in registers, those of one input capsule and some examples at once.

A *sweep* goes over the input capsules once: it makes the votes of each, their couplings from the state V, and adds up
the weighted votes. Every program has some examples and some of the input capsules. Nothing depends on the order in
which programs run. Arrays are those of `_routing_tiles`, contiguous, with an axis of models in front.

Tiles have powers of two as their sizes and are padded with zeros: N examples, OUT output capsules, D and K components.
"""

# Outside of Triton its functions have no types.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

# One compilation serves all of their values.
_NUMBERS = ["iteration", "iterations", "first", "before", "count", "in_caps", "width", "group", "rows"]


@triton.jit
def _components(capsules, valid, in_dim: tl.constexpr, K: tl.constexpr):
    """Where the components of input capsules are, [N, K], and which exist."""
    k = tl.arange(0, K)
    return capsules[:, None] + k[None, :], valid[:, None] & (k < in_dim)[None, :]


@triton.jit
def _pairs(
    number, in_caps, out_caps: tl.constexpr, out_dim: tl.constexpr, in_dim: tl.constexpr,
    OUT: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Where the matrices of one input capsule have their rows, [OUT * D], and which rows exist."""
    pair = tl.arange(0, OUT * D)
    o, d = pair // D, pair % D
    return ((o * in_caps + number) * out_dim + d) * in_dim, (o < out_caps) & (d < out_dim)


@triton.jit
def _matrices(
    W_of, number, in_caps, out_caps: tl.constexpr, out_dim: tl.constexpr, in_dim: tl.constexpr,
    OUT: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """All matrices of one input capsule, [K, OUT * D]."""
    rows, exist = _pairs(number, in_caps, out_caps, out_dim, in_dim, OUT, D)
    k = tl.arange(0, K)
    mask = (k < in_dim)[:, None] & exist[None, :]
    return tl.load(W_of + k[:, None] + rows[None, :], mask=mask, other=0.0)


@triton.jit
def _outputs(
    examples, stride, valid, out_caps: tl.constexpr, out_dim: tl.constexpr, OUT: tl.constexpr, D: tl.constexpr
):
    """Where output capsules [N, OUT, D] are in an array whose examples are a stride apart, and which of them exist."""
    o, d = tl.arange(0, OUT), tl.arange(0, D)
    inner = o[:, None] * out_dim + d[None, :]
    exist = (o < out_caps)[:, None] & (d < out_dim)[None, :]
    return (examples.to(tl.int64) * stride)[:, None, None] + inner[None], valid[:, None, None] & exist[None]


@triton.jit
def _couplings(votes, state, out_caps: tl.constexpr, LEAKY: tl.constexpr, OUT: tl.constexpr):
    """The softmax over the output capsules, [N, OUT]."""
    logits = tl.sum(votes * state, 2)
    logits = tl.where((tl.arange(0, OUT) < out_caps)[None, :], logits, float("-inf"))
    largest = tl.max(logits, 1)
    if LEAKY:
        largest = tl.maximum(largest, 0.0)
    found = tl.exp(logits - largest[:, None])
    total = tl.sum(found, 1)
    if LEAKY:
        total += tl.exp(-largest)
    return found / total[:, None]


@triton.jit
def _of_logits(couplings, votes, of_sum):
    """The gradient of the logits from that of the weighted sum, [N, OUT]."""
    of_couplings = tl.sum(votes * of_sum, 2)
    return couplings * (of_couplings - tl.sum(couplings * of_couplings, 1)[:, None])


@triton.jit(do_not_specialize=_NUMBERS)
def sweep(
    W, u, states, of_sums, parts, iteration, iterations, count, in_caps, width,
    out_caps: tl.constexpr, out_dim: tl.constexpr, in_dim: tl.constexpr,
    PULL: tl.constexpr, LEAKY: tl.constexpr,
    N: tl.constexpr, OUT: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The weighted sum of one iteration, or with PULL the gradient of its state, by `width` input capsules each.

    Grid: blocks of N examples, parts, models. Result: ``parts [parts, models, n, o, d]``.
    """
    part, model = tl.program_id(1), tl.program_id(2).to(tl.int64)
    examples = tl.program_id(0) * N + tl.arange(0, N)
    valid = examples < count
    size = out_caps * out_dim
    W_of = W + model * size * in_caps * in_dim
    u_of = u + model * count * in_caps * in_dim
    places, exist = _outputs(model * count + examples, iterations * size, valid, out_caps, out_dim, OUT, D)
    state = tl.load(states + iteration * size + places, mask=exist, other=0.0)
    of_sum = state
    if PULL:
        of_sum = tl.load(of_sums + iteration * size + places, mask=exist, other=0.0)
    total = tl.zeros_like(state)
    capsules = examples.to(tl.int64) * in_caps * in_dim
    for number in range(part * width, min(part * width + width, in_caps)):
        components, components_exist = _components(capsules + number * in_dim, valid, in_dim, K)
        x = tl.load(u_of + components, mask=components_exist, other=0.0).to(state.dtype)
        w = _matrices(W_of, number, in_caps, out_caps, out_dim, in_dim, OUT, D, K).to(state.dtype)
        votes = tl.dot(x, w, input_precision="ieee", out_dtype=state.dtype).reshape(N, OUT, D)
        weights = _couplings(votes, state, out_caps, LEAKY, OUT)
        if PULL:
            weights = _of_logits(weights, votes, of_sum)
        total += weights[:, :, None] * votes
    own = (part * tl.num_programs(2) + model) * count + examples
    places, exist = _outputs(own, size, valid, out_caps, out_dim, OUT, D)
    tl.store(parts + places, total, mask=exist)


@triton.jit
def _lengths(s):
    """The lengths of rows; see `purenn.ops.squash` for this function and the next."""
    largest = tl.max(tl.abs(s), 1)
    largest = tl.where(largest > 0, largest, 1.0)
    q = s / largest[:, None]
    return largest * tl.sqrt(tl.sum(q * q, 1))


@triton.jit
def _smaller(n):
    return tl.where(n > 1, 1 / tl.where(n > 1, n, 1.0), n)


@triton.jit
def _rows(rows, iterations, out_caps: tl.constexpr, out_dim: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """Where some output capsules of all examples are in the first of some iterations, [ROWS, D], and which exist."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, D)
    first = (row // out_caps * iterations * out_caps + row % out_caps) * out_dim
    return first[:, None] + d[None, :], (row < rows)[:, None] & (d < out_dim)[None, :]


@triton.jit(do_not_specialize=_NUMBERS)
def add_poses(
    sums, states, before, iterations, rows,
    out_caps: tl.constexpr, out_dim: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The states of the iterations from 1 up to `before`, from the sums of those earlier; that of 0 is zero."""
    places, exist = _rows(rows, iterations, out_caps, out_dim, ROWS, D)
    state = tl.zeros((ROWS, D), dtype=states.dtype.element_ty)
    for iteration in range(before):
        s = tl.load(sums + iteration * out_caps * out_dim + places, mask=exist, other=0.0)
        r = _smaller(_lengths(s))
        state += (r / (1 + r * r))[:, None] * s
        tl.store(states + (iteration + 1) * out_caps * out_dim + places, state, mask=exist)


@triton.jit(do_not_specialize=_NUMBERS)
def pull_poses(
    sums, of_pose, of_sums, iteration, iterations, rows,
    out_caps: tl.constexpr, out_dim: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The gradient of the sum of an iteration from that of its pose; see `pull_squash`."""
    places, exist = _rows(rows, 1, out_caps, out_dim, ROWS, D)
    g = tl.load(of_pose + places, mask=exist, other=0.0)
    places, exist = _rows(rows, iterations, out_caps, out_dim, ROWS, D)
    s = tl.load(sums + iteration * out_caps * out_dim + places, mask=exist, other=0.0)
    n = _lengths(s)
    r = _smaller(n)
    direction = s / tl.where(n > 0, n, 1.0)[:, None]
    slope = r * (1 - r * r) / ((1 + r * r) * (1 + r * r))
    slope = tl.where(n > 1, -slope, slope) * tl.sum(direction * g, 1)
    of_sum = (r / (1 + r * r))[:, None] * g + slope[:, None] * direction
    tl.store(of_sums + iteration * out_caps * out_dim + places, of_sum, mask=exist)


@triton.jit(do_not_specialize=_NUMBERS)
def gradients(
    W, u, states, of_sums, of_W, of_u, first, iterations, count, group, in_caps,
    out_caps: tl.constexpr, out_dim: tl.constexpr, in_dim: tl.constexpr,
    STOP: tl.constexpr, EACH: tl.constexpr, LEAKY: tl.constexpr,
    N: tl.constexpr, OUT: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradients of u and of W, summed over each group of examples, by all iterations from `first` on.

    With EACH W has a gradient for every example, and groups are only how examples are shared out.
    Grid: input capsules times groups, models.
    """
    number, which = tl.program_id(0) % in_caps, tl.program_id(0) // in_caps
    groups, model = tl.num_programs(0) // in_caps, tl.program_id(1).to(tl.int64)
    size = out_caps * out_dim
    W_of = W + model * size * in_caps * in_dim
    u_of = u + model * count * in_caps * in_dim
    w = _matrices(W_of, number, in_caps, out_caps, out_dim, in_dim, OUT, D, K).to(states.dtype.element_ty)
    found = tl.zeros((K, OUT * D), dtype=w.dtype)
    rows, rows_exist = _pairs(number, in_caps, out_caps, out_dim, in_dim, OUT, D)
    end = min(which * group + group, count)
    for start in range(which * group, end, N):
        examples = start + tl.arange(0, N)
        valid = examples < end
        capsules = (examples.to(tl.int64) * in_caps + number) * in_dim
        components, components_exist = _components(capsules, valid, in_dim, K)
        x = tl.load(u_of + components, mask=components_exist, other=0.0).to(w.dtype)
        votes = tl.dot(x, w, input_precision="ieee", out_dtype=w.dtype).reshape(N, OUT, D)
        of_votes = tl.zeros_like(votes)
        places, exist = _outputs(model * count + examples, iterations * size, valid, out_caps, out_dim, OUT, D)
        for iteration in range(first, iterations):
            state = tl.load(states + iteration * size + places, mask=exist, other=0.0)
            of_sum = tl.load(of_sums + iteration * size + places, mask=exist, other=0.0)
            couplings = _couplings(votes, state, out_caps, LEAKY, OUT)
            of_votes += couplings[:, :, None] * of_sum
            if not STOP:
                of_votes += _of_logits(couplings, votes, of_sum)[:, :, None] * state
        flat = of_votes.reshape(N, OUT * D)
        of_x = tl.dot(flat, tl.trans(w), input_precision="ieee", out_dtype=w.dtype)
        tl.store(of_u + model * count * in_caps * in_dim + components, of_x, mask=components_exist)
        if EACH:
            own = (model * count + examples) * size * in_caps * in_dim
            mask = valid[:, None] & rows_exist[None, :]
            for component in range(in_dim):
                column = tl.load(u_of + capsules + component, mask=valid, other=0.0).to(w.dtype)
                tl.store(of_W + own[:, None] + rows[None, :] + component, flat * column[:, None], mask=mask)
        else:
            found = tl.dot(tl.trans(x), flat, acc=found, input_precision="ieee", out_dtype=w.dtype)
    if not EACH:
        own = (model * groups + which) * size * in_caps * in_dim
        k = tl.arange(0, K)
        mask = (k < in_dim)[:, None] & rows_exist[None, :]
        tl.store(of_W + own + k[:, None] + rows[None, :], found, mask=mask)
