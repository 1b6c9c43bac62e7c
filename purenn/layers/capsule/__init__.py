"""Capsules: groups of neurons whose vector says what is there, and whose length or activation says how surely.

A layer of capsules makes votes, every input capsule one for every output capsule, and a routing that decides whose
votes count. `DynamicRouting` is both in one; `Capsules`, `ConvCapsules2d` and `ClassCapsules2d` take any routing.
"""

from purenn.layers.capsule._votes import Routed, Windows
from purenn.layers.capsule.agreement import AgreementRouting, agreement_routing
from purenn.layers.capsule.attention import AttentionRouting, attention_routing
from purenn.layers.capsule.connected import Capsules, capsules
from purenn.layers.capsule.convolution import (
    ClassCapsules2d,
    ConvCapsules2d,
    add_coordinates,
    class_capsules2d,
    conv_capsules2d,
)
from purenn.layers.capsule.dropout import CapsuleDropout, capsule_dropout
from purenn.layers.capsule.dynamic import DynamicRouting, dynamic_routing, routing
from purenn.layers.capsule.em import EMRouting, em_routing
from purenn.layers.capsule.inverted_attention import InvertedAttentionRouting, inverted_attention_routing
from purenn.layers.capsule.primary import PrimaryCapsules, primary_capsules
from purenn.layers.capsule.readout import capsule_lengths, mask_capsules
from purenn.layers.capsule.self_routing import SelfRouting, self_routing
from purenn.ops import squash, squash_exponential

__all__ = [
    "AgreementRouting",
    "AttentionRouting",
    "CapsuleDropout",
    "Capsules",
    "ClassCapsules2d",
    "ConvCapsules2d",
    "DynamicRouting",
    "EMRouting",
    "InvertedAttentionRouting",
    "PrimaryCapsules",
    "Routed",
    "SelfRouting",
    "Windows",
    "add_coordinates",
    "agreement_routing",
    "attention_routing",
    "capsule_dropout",
    "capsule_lengths",
    "capsules",
    "class_capsules2d",
    "conv_capsules2d",
    "dynamic_routing",
    "em_routing",
    "inverted_attention_routing",
    "mask_capsules",
    "primary_capsules",
    "routing",
    "self_routing",
    "squash",
    "squash_exponential",
]
