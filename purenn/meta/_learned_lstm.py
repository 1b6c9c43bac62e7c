"""A learned optimiser with a memory: the same LSTM for every element of every leaf."""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.ops._recurrent import Weights, input_part, lstm_step
from purenn.optim import GradientTransformation
from purenn.optim._hyperparameters import Values
from purenn.optim._rule import OWN, Rule, optimizer
from purenn.tree import container, static

# Gradients below exp(-10) are seen as such, larger ones by their logarithm and sign.
_RANGE = 10.0


@container
class LSTMOptimizer:
    """Parameters of a learned optimiser with a memory.

    Attributes:
        weight_ih: of each layer ``[4 hidden, 2 or hidden]``, the gates in the order of `torch.nn.LSTM`.
        weight_hh: of each layer ``[4 hidden, hidden]``.
        bias: of each layer ``[4 hidden]``.
        weight_out: ``[1, hidden]``.
        bias_out: ``[1]``.
        step: the scale of the steps.
    """

    weight_ih: tuple[Tensor, ...]
    weight_hh: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    weight_out: Tensor
    bias_out: Tensor
    step: float = static(default=0.1)

    @classmethod
    def init(
        cls, key: Tensor, *, hidden: int = 20, depth: int = 2, step: float = 0.1, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Draw the network.

        Args:
            key: random key.
            hidden: the size of the memory of each layer. Default: 20.
            depth: the number of layers. Default: 2.
            step: the scale of the steps. Default: 0.1.
            dtype: of the network. Default: torch.float32.

        Raises:
            ArgumentError: no memory or no layer.
        """
        if hidden < 1 or depth < 1:
            raise ArgumentError(f"LSTMOptimizer: hidden and depth must be at least 1, got {hidden} and {depth}.")
        keys = iter(random.split(key, 2 * depth + 1).unbind(0))
        bound = hidden**-0.5

        def draw(rows: int, columns: int) -> Tensor:
            return random.uniform(next(keys), (rows, columns), low=-bound, high=bound, dtype=dtype)

        return cls(
            tuple([draw(4 * hidden, hidden if n else 2) for n in range(depth)]),
            tuple([draw(4 * hidden, hidden) for _ in range(depth)]),
            tuple([torch.zeros(4 * hidden, dtype=dtype, device=key.device) for _ in range(depth)]),
            draw(1, hidden),
            torch.zeros(1, dtype=dtype, device=key.device),
            step,
        )


@container
class LSTMOptimizerState:
    """State of `lstm_optimizer`.

    Attributes:
        count: number of steps done, an int64 scalar.
        hidden: what each layer has returned, a tree like the parameters, each leaf ``[*leaf, layers, hidden]``.
        cell: the memory of each layer, of the same shape.
    """

    count: Tensor
    hidden: Any
    cell: Any


def lstm_optimizer(p: LSTMOptimizer) -> GradientTransformation:
    """The optimiser that a LSTM is: to be used as `pn.optim.adam`, and differentiated with respect to `p`.

    Every element has a memory of its own and is moved by ``step`` times what the network returns for its gradient,
    which it sees as a logarithm and a sign. Meta-train it by `pn.grad` through the steps; to leave the second
    derivatives of the inner loss out, as the paper does, detach the gradients before `update`.

    Source:
        Andrychowicz et al.: Learning to Learn by Gradient Descent by Gradient Descent, 2016 (section 2.1).

    Example:
        >>> import torch, purenn as pn
        >>> p = pn.meta.LSTMOptimizer.init(pn.random.key(0))
        >>> optimizer, w = pn.meta.lstm_optimizer(p), {"w": torch.ones(3, 2)}
        >>> updates, state = optimizer.update(w, optimizer.init(w), w)
        >>> state.cell["w"].shape
        torch.Size([3, 2, 2, 20])
    """
    layers = [Weights(*parts) for parts in zip(p.weight_ih, p.weight_hh, p.bias, strict=True)]
    size = p.weight_out.shape[1]

    def begin(w: Tensor, _: Values) -> tuple[Tensor, Tensor]:
        zeros = p.weight_out.detach().new_zeros((*w.shape, len(layers), size), device=w.device)
        return zeros, zeros.clone()

    def direction(g: Tensor, w: Tensor, slots: tuple[Tensor, ...], values: Values) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, states = _seen(g).to(p.weight_out.dtype), []
        for layer, h, c in zip(layers, slots[0].unbind(-2), slots[1].unbind(-2), strict=True):
            states.append(lstm_step(input_part(x, layer), (h, c), layer))
            x = states[-1][0]
        hidden, cell = [torch.stack(parts, -2) for parts in zip(*states, strict=True)]
        return -p.step * F.linear(x, p.weight_out, p.bias_out).squeeze(-1), (hidden, cell)

    rule = Rule(
        name="lstm_optimizer",
        state=LSTMOptimizerState,
        slots=("hidden", "cell"),
        begin=begin,
        direction=direction,
        hyperparameters={"rate": 1.0},
        elementwise=False,
        takes_complex=False,
        decay=OWN,
    )
    return optimizer(rule)._replace(stepper=None)  # the fast path would not differentiate


def _seen(g: Tensor) -> Tensor:
    # The gradient [...] as two numbers of about one, [..., 2].
    large = g.abs() >= math.exp(-_RANGE)
    logarithm = torch.where(large, g.abs(), 1).log() / _RANGE
    first = torch.where(large, logarithm, -1)
    second = torch.where(large, g.sign(), math.exp(_RANGE) * g)
    return torch.stack([first, second], -1)
