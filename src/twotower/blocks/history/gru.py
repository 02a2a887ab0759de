"""HistoryGRU: a recurrent network over the history."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from twotower.blocks.history.base import HistoryEncoder
from twotower.data.ragged import Ragged
from twotower.errors import explain_options


class HistoryGRU(HistoryEncoder):
    """The state of a gated recurrent unit after the last item.

    The encoder of GRU4Rec (Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016),
    on item vectors in place of one-hot codes. No padding: the lists are packed.

    Args:
        dim: D, the width of the vectors.
        layers: GRUs on top of each other.
        dropout: between the layers.
        max_length: read the latest so many items; None for all.
        output_dim: the width of the GRU's state; None for D.

    Raises:
        ValueError: a number below 1, or dropout without a second layer.

    Example:
        >>> lists = Ragged(torch.randn(3, 8), torch.tensor([0, 2, 2, 3]))
        >>> encoder = HistoryGRU(dim=8, output_dim=16)
        >>> encoder(lists).shape, encoder.states(lists).values.shape
        (torch.Size([3, 16]), torch.Size([3, 16]))
    """

    @explain_options
    def __init__(
        self,
        dim: int,
        layers: int = 1,
        *,
        dropout: float = 0.0,
        max_length: int | None = None,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(dim, output_dim, max_length)
        if layers < 1 or not 0 <= dropout < 1 or (dropout and layers == 1):
            raise ValueError(
                f"HistoryGRU needs layers >= 1 and dropout in [0, 1), which works between layers, so 0 with one layer; got "
                f"layers={layers} and dropout={dropout}."
            )
        self.layers = layers
        self.dropout = dropout
        self.gru = nn.GRU(dim, output_dim or dim, layers, dropout=dropout)

    def encode(self, vectors: Ragged, last: bool) -> Tensor:
        """As in HistoryEncoder."""
        place, sizes = time_major(vectors)
        states = self.gru(PackedSequence(vectors.values.index_select(0, place), sizes))[0].data
        slot = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=place.device))
        return states.index_select(0, slot[vectors.offsets[1:] - 1] if last else slot)


def time_major(lists: Ragged) -> tuple[Tensor, Tensor]:
    """The values of all lists (total,), first elements before second ones and longest lists first, and the number of each.

    Example:
        >>> time_major(Ragged.from_lists([[5], [6, 7]]))
        (tensor([1, 0, 2]), tensor([2, 1]))
    """
    lengths, row = lists.lengths(), lists.row_of_value()
    order = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    step = torch.arange(len(row), device=row.device) - lists.offsets[row]
    return (step * len(lists) + rank[row]).argsort(), torch.bincount(step).cpu()
