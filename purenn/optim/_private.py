"""What torch's optimisers are made of and does not export."""

from typing import Any

import torch

#: Where ``_foreach_add``, ``_fused_adam_`` and the like are; their types are not known to checkers.
kernels: Any = torch
