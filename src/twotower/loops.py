"""Loops that a graph of PyTorch's export can hold. Shapes are not checked in here: the checks would be traced with them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def last_gru_states(values: Tensor, offsets: Tensor, weights: Sequence[Sequence[Tensor]]) -> Tensor:
    """The state of a gated recurrent unit after the last element of each list, as of nn.GRU.

    It takes as many steps as the longest list has elements. PyTorch traces no nn.GRU over lists of any length.

    Args:
        values, offsets: (total, D) and (B + 1,) of a Ragged; an empty list must not begin at `total`.
        weights: of each layer, (3 H, D) and (3 H, H) matrices, and two biases (3 H,), in nn.GRU's order.

    Returns:
        (B, H); zeros for an empty list.
    """
    # PyTorch has a loop of this kind, but no public name for it yet
    from torch._higher_order_ops.while_loop import while_loop

    begin, length = offsets[:-1], offsets[1:] - offsets[:-1]
    longest = length.max()

    def goes_on(step: Tensor, *states: Tensor) -> Tensor:
        return step < longest

    def take_step(step: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        read = values.index_select(0, begin + torch.minimum(step, (length - 1).clamp(min=0)))
        on = (step < length)[:, None]
        after = []
        for state, (into, over, into_bias, over_bias) in zip(states, weights, strict=True):
            reset_in, keep_in, new_in = F.linear(read, into, into_bias).chunk(3, 1)
            reset, keep, new = F.linear(state, over, over_bias).chunk(3, 1)
            keep = (keep_in + keep).sigmoid()
            new = (new_in + (reset_in + reset).sigmoid() * new).tanh()
            read = torch.where(on, new + keep * (state - new), state)
            after.append(read)
        return step + 1, *after

    start = [values.new_zeros(length.shape[0], layer[1].shape[1]) for layer in weights]
    states: tuple[Tensor, ...] = while_loop(goes_on, take_step, (torch.zeros_like(longest), *start))
    return states[-1]
