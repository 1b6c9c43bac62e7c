"""Trees on many devices and in many processes: thin functions around torch.distributed."""

from purenn.distributed._checkpoint import load, save
from purenn.distributed._placed import gather, place_like, replicate, shard
from purenn.distributed._reduce import from_rank, mean, sum
from purenn.distributed._tensor_parallel import transformer_rules
from purenn.distributed._world import rank_key, rank_rows

__all__ = [
    "from_rank",
    "gather",
    "load",
    "mean",
    "place_like",
    "rank_key",
    "rank_rows",
    "replicate",
    "save",
    "shard",
    "sum",
    "transformer_rules",
]
