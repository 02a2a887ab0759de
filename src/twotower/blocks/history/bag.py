"""HistoryBag: the weighted mean or sum of the latest items."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.history.groups import group_by_length
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options

COMBINERS = {"mean": True, "sum": False}
WEIGHTS = ("decay", "positions")
# a new bag's weight falls by a factor e in ten items
FIRST_RATE = 0.1


class HistoryBag(HistoryEncoder):
    """The mean or sum of the latest items, recent ones weighted by what is learnt: sum_k w_k v_k (/ sum_k w_k).

    v_0 is the latest item's vector, v_1 that of the one before. Beside the plain `sequence_combiner="mean"` it
    has weights, a window, a learnt vector for the empty list, and a state after every item.

    Args:
        dim: D, the width of the vectors.
        combiner: "mean" divides by the sum of the weights, "sum" does not.
        weights: None weighs all items alike; "decay" learns one rate, w_k = exp(-rate k), which starts at 0.1;
            "positions" learns a weight for each of the latest `max_length` places, which start alike.
        max_length: read the latest so many items; None for all.
        output_dim: the width of the states, by a linear layer; None leaves them D wide, without a layer.

    Raises:
        ValueError: an unknown combiner or kind of weights, or "positions" without max_length.

    Example:
        >>> lists = Ragged(torch.tensor([[2.0], [4.0], [9.0]]), torch.tensor([0, 2, 2, 3]))
        >>> bag = HistoryBag(dim=1)
        >>> bag(lists).tolist(), bag.states(lists).values.tolist()
        ([[3.0], [0.0], [9.0]], [[2.0], [3.0], [9.0]])
    """

    @explain_options
    def __init__(
        self,
        dim: int,
        combiner: str = "mean",
        *,
        weights: str | None = None,
        max_length: int | None = None,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(dim, output_dim, max_length)
        self.combiner = combiner
        self.weights = weights
        self._divides = choose("combiner", combiner, COMBINERS)
        start = None
        if weights is not None:
            choose("weights", weights, dict.fromkeys(WEIGHTS))
            start = torch.tensor(math.log(math.expm1(FIRST_RATE)))
        if weights == "positions":
            if max_length is None:
                raise ValueError(
                    'HistoryBag(weights="positions") learns a weight for each place, so it needs max_length.'
                )
            start = torch.zeros(max_length)
        # "decay": softplus of it is the rate; "positions": the logarithms of the weights
        self.raw = None if start is None else nn.Parameter(start)
        self.project = nn.Identity() if output_dim is None else nn.Linear(dim, output_dim)

    def rates(self, length: int | torch.SymInt) -> Tensor:
        """(length,) the present weights, that of the latest item first."""
        back = torch.arange(cast(int, length), device=self.empty.device, dtype=self.empty.dtype)
        if self.raw is None:
            return torch.ones_like(back)
        return (self.raw[:length] if self.weights == "positions" else -F.softplus(self.raw) * back).exp()

    def encode(self, vectors: Ragged, last: bool) -> Tensor:
        """As in HistoryEncoder."""
        return self.project(self._last(vectors) if last else self._every(vectors))

    def _last(self, vectors: Ragged) -> Tensor:
        row, lengths = vectors.row_of_value(), vectors.lengths()
        weight = self.rates(cast(int, lengths.max().item()))
        back = vectors.offsets[1:][row] - 1 - torch.arange(row.shape[0], device=row.device)
        weighted = vectors.values * weight[back, None]
        total = weighted.new_zeros(vectors.num_rows, self.dim).index_add(0, row, weighted)
        return total / weight.cumsum(0)[lengths - 1, None] if self._divides else total

    def _every(self, vectors: Ragged) -> Tensor:
        groups = group_by_length(vectors)
        weight = self.rates(int(vectors.lengths().max()))
        states = []
        for part in groups.split(vectors.values.index_select(0, groups.source)):
            place = torch.arange(part.shape[1], device=part.device)
            back = place[:, None] - place
            mix = weight[back.clamp(0, len(weight) - 1)].tril().to(part.dtype)
            if self._divides:
                mix = mix / mix.sum(1, keepdim=True)
            states.append((mix @ part).flatten(0, 1))
        return torch.cat(states).index_select(0, groups.slot)
