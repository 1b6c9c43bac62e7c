"""Which axes of a transformer's weights to cut, so that devices share the work of every layer."""

from typing import Any

from purenn.errors import SelectionError
from purenn.layers import (
    GEGLU,
    GroupedQueryAttention,
    MultiheadAttention,
    SwiGLU,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from purenn.models import GPT2MLP, ViTBlock
from purenn.tree import named_leaves, select

_GATED = {"gate_proj.weight": 0, "gate_proj.bias": 0, "up_proj.weight": 0, "up_proj.bias": 0, "down_proj.weight": 1}
_TWO_LINEAR = {"linear1.weight": 0, "linear1.bias": 0, "linear2.weight": 1}
#: The first map of every pair is cut by its outputs and the second by its inputs, so that what lies between them, heads
#: or hidden units, is cut too and stays where it is.
_CUTS: dict[type, dict[str, int]] = {
    MultiheadAttention: {
        "in_proj_weight": 0,
        "in_proj_bias": 0,
        "q_proj_weight": 0,
        "k_proj_weight": 0,
        "v_proj_weight": 0,
        "out_proj.weight": 1,
    },
    GroupedQueryAttention: {
        "q_proj.weight": 0,
        "q_proj.bias": 0,
        "k_proj.weight": 0,
        "k_proj.bias": 0,
        "v_proj.weight": 0,
        "v_proj.bias": 0,
        "o_proj.weight": 1,
    },
    TransformerEncoderLayer: _TWO_LINEAR,
    TransformerDecoderLayer: _TWO_LINEAR,
    ViTBlock: {"mlp.0.weight": 0, "mlp.0.bias": 0, "mlp.3.weight": 1},
    # Its weights have inputs first.
    GPT2MLP: {"c_fc.weight": 1, "c_fc.bias": 0, "c_proj.weight": 0},
    SwiGLU: _GATED,
    GEGLU: _GATED,
}


def transformer_rules(p: Any) -> dict[str, int]:
    """The rules by which `shard` cuts a transformer for tensor parallelism along a mesh of one axis.

    In attention and in MLPs the first weights are cut by their outputs, the last by their inputs; embeddings, norms and
    everything else is copied to every device. A layer then sends its output twice in the forward pass, and its gradient
    twice in the backward pass. Where queries, keys and values are one weight, its thirds are exchanged as well; GPT-2's
    attention, which reads them from one axis of its output, is not cut.

    Args:
        p: a model with attention layers, transformer layers, gated MLPs, or blocks of GPT-2 or ViT.

    Returns:
        Path of each weight or bias that is cut -> its axis.

    Raises:
        SelectionError: there is nothing of that kind in the model.

    Source:
        Shoeybi et al.: Megatron-LM, Training Multi-Billion Parameter Language Models Using Model Parallelism, 2019,
        section 3.

    Example:
        >>> import purenn as pn
        >>> from purenn.layers import SwiGLU
        >>> pn.distributed.transformer_rules(SwiGLU.init(pn.random.key(0), 4, 8, bias=False))
        {'gate_proj.weight': 0, 'up_proj.weight': 0, 'down_proj.weight': 1}
    """
    there = {path for path, _ in named_leaves(p)}
    rules = {
        path: axis
        for cls, cuts in _CUTS.items()
        for place in select(p).instances(cls).names
        for name, axis in cuts.items()
        if (path := f"{place}.{name}" if place else name) in there
    }
    if not rules:
        known = ", ".join(cls.__name__ for cls in _CUTS)
        raise SelectionError(f"transformer_rules: a {type(p).__name__} has no part that it knows: {known}.")
    return rules
