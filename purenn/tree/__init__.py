"""What a model is: immutable trees of tensors, and everything that is done to them."""

from purenn.tree._applies import applies, is_stateful
from purenn.tree._checkpointer import Checkpointer
from purenn.tree._compare import Comparison, allclose, equal
from purenn.tree._container import Layer, container
from purenn.tree._contiguous import contiguous
from purenn.tree._fields import buffer, is_container, static
from purenn.tree._files import load, metadata, save
from purenn.tree._holes import HOLE, Alias
from purenn.tree._map import leaves, map, named_leaves
from purenn.tree._move import count, device, to
from purenn.tree._partition import combine, freeze, partition, unfreeze
from purenn.tree._replace import replace
from purenn.tree._select import Selection, select
from purenn.tree._stack import stack, unstack
from purenn.tree._summary import Summary, summary
from purenn.tree._ties import tie, untie

__all__ = [
    "HOLE",
    "Alias",
    "Checkpointer",
    "Comparison",
    "Layer",
    "Selection",
    "Summary",
    "allclose",
    "applies",
    "buffer",
    "combine",
    "container",
    "contiguous",
    "count",
    "device",
    "equal",
    "freeze",
    "is_container",
    "is_stateful",
    "leaves",
    "load",
    "map",
    "metadata",
    "named_leaves",
    "partition",
    "replace",
    "save",
    "select",
    "stack",
    "static",
    "summary",
    "tie",
    "to",
    "unfreeze",
    "unstack",
    "untie",
]
