"""Which arguments of a layer's `init` are sizes of its input, and where in the input they are found.

A rule is a dict: name of the argument = dimension of the first input, or (number of the input, dimension). A class of
your own states its rule as the class variable ``input_sizes``.
"""

from collections.abc import Mapping

from purenn.layers.adaptive_softmax import AdaptiveLogSoftmaxWithLoss
from purenn.layers.attention import MultiheadAttention
from purenn.layers.attention_grouped import GroupedQueryAttention
from purenn.layers.attention_single import SelfAttention
from purenn.layers.bilinear import Bilinear
from purenn.layers.capsule import (
    AttentionRouting,
    Capsules,
    ClassCapsules2d,
    ConvCapsules2d,
    DynamicRouting,
    PrimaryCapsules,
)
from purenn.layers.conv import Conv1d, Conv2d, Conv3d
from purenn.layers.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from purenn.layers.conv_unfold import UnfoldConv2d
from purenn.layers.depthwise import DepthwiseSeparableConv2d
from purenn.layers.gated import GEGLU, SwiGLU
from purenn.layers.linear import Linear, LinearActivation, ScaledLinear
from purenn.layers.norm import LayerNorm, RMSNorm, UnbiasedLayerNorm
from purenn.layers.norm_batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from purenn.layers.norm_group import GroupNorm
from purenn.layers.norm_instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from purenn.layers.norm_rms import GatedRMSNorm, PartialRMSNorm, ZeroCenteredRMSNorm
from purenn.layers.norm_running import RunningNorm
from purenn.layers.position import LearnedPosition
from purenn.layers.recurrent import GRU, LSTM, RNN
from purenn.layers.recurrent_cells import GRUCell, LSTMCell, RNNCell
from purenn.layers.scale import LearnableScale
from purenn.layers.squeeze_excitation import SqueezeExcitation
from purenn.layers.transformer import Transformer, TransformerDecoder, TransformerEncoder
from purenn.layers.transformer_layer import TransformerDecoderLayer, TransformerEncoderLayer

Rule = Mapping[str, int | tuple[int, int]]

_ROWS: tuple[tuple[tuple[type, ...], Rule], ...] = (
    ((Linear, LinearActivation, ScaledLinear, GEGLU, SwiGLU, AdaptiveLogSoftmaxWithLoss), {"in_features": -1}),
    ((Bilinear,), {"in1_features": (0, -1), "in2_features": (1, -1)}),
    ((RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell), {"input_size": -1}),
    (
        (LayerNorm, RMSNorm, UnbiasedLayerNorm, ZeroCenteredRMSNorm, GatedRMSNorm, PartialRMSNorm),
        {"normalized_shape": -1},
    ),
    ((MultiheadAttention, SelfAttention, GroupedQueryAttention), {"embed_dim": -1}),
    (
        (TransformerEncoderLayer, TransformerDecoderLayer, TransformerEncoder, TransformerDecoder, Transformer),
        {"d_model": -1},
    ),
    ((LearnedPosition,), {"dim": -1}),
    ((DynamicRouting, Capsules), {"in_caps": -2, "in_dim": -1}),
    ((AttentionRouting,), {"in_caps": -2}),
    ((ConvCapsules2d, ClassCapsules2d), {"in_types": -4, "in_dim": -1}),
    # Counted from the end, so that a single example will do for a batch.
    ((Conv1d, ConvTranspose1d), {"in_channels": -2}),
    ((Conv2d, ConvTranspose2d, UnfoldConv2d, DepthwiseSeparableConv2d, PrimaryCapsules), {"in_channels": -3}),
    ((Conv3d, ConvTranspose3d), {"in_channels": -4}),
    ((SqueezeExcitation,), {"channels": -3}),
    ((InstanceNorm1d,), {"num_features": -2}),
    ((InstanceNorm2d, LearnableScale), {"num_features": -3}),
    ((InstanceNorm3d,), {"num_features": -4}),
    # These take batches only, of any number of further dimensions.
    ((BatchNorm1d, BatchNorm2d, BatchNorm3d, RunningNorm), {"num_features": 1}),
    ((GroupNorm,), {"num_channels": 1}),
)

_RULES = {cls: rule for classes, rule in _ROWS for cls in classes}


def rule_of(cls: type) -> Rule:
    """The rule of a class: its own, or that of its nearest base class."""
    for base in cls.__mro__:
        rule = vars(base).get("input_sizes", _RULES.get(base))
        if rule is not None:
            return rule
    return {}
