"""What Hugging Face's transformers do that depends on values, and the forms that do not.

Its mask utilities and checks ask whether they are being traced. Its mixtures of experts loop over the experts that are
chosen by some token; in the forms here every expert is asked, and those that are not chosen count for nothing.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bridge._pure_replaced import Replacement
from bridge._pure_values import is_unknown


def _no_values(*values: Any) -> bool:
    return any(isinstance(value, Tensor) and is_unknown(value) for value in values)


def _experts_at_once(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_interface(self: Any, implementation: str, default: Callable[..., Any]) -> Any:
        return original(self, "grouped_mm" if implementation == "eager" else implementation, default)

    return get_interface


def _switch_experts(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, hidden_states: Tensor, selected_experts: Tensor, routing_weights: Tensor) -> Tensor:
        return _weighted(self, hidden_states, selected_experts * routing_weights.unsqueeze(-1))

    return forward


def _nllb_experts(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, hidden_states: Tensor, router_mask: Tensor, router_probs: Tensor) -> Tensor:
        chosen = F.one_hot(router_mask, num_classes=self.num_experts)
        kept = self.token_dropout if self.training else lambda y: y * (1 - self.moe_token_dropout)
        return _weighted(self, hidden_states, chosen * router_probs.unsqueeze(-1), kept)

    return forward


def _weighted(experts: Any, x: Tensor, weights: Tensor, kept: Callable[[Tensor], Tensor] = lambda y: y) -> Tensor:
    """The sum of what the experts make of each token, times their weights ``[tokens, choices, experts]`` for it."""
    by_expert = weights.sum(1).unsqueeze(-1).unbind(1)
    parts = [kept(experts[f"expert_{n}"](x) * weight) for n, weight in enumerate(by_expert)]
    return sum(parts[1:], start=parts[0]).to(x.dtype)


#: What takes their places in transformations.
HUGGING_FACE = tuple(
    Replacement(f"transformers.{owner}", name, make)
    for owner, name, make in (
        ("utils.import_utils", "is_fake_tensor", lambda original: _no_values),
        ("integrations.moe.ExpertsInterface", "get_interface", _experts_at_once),
        (
            "models.switch_transformers.modeling_switch_transformers.SwitchTransformersExperts",
            "forward",
            _switch_experts,
        ),
        ("models.nllb_moe.modeling_nllb_moe.NllbMoeExperts", "forward", _nllb_experts),
    )
)
