"""HistoryGRU: a recurrent network over the history."""

import torch
from torch import Tensor, nn

from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.history.groups import group_by_length
from twotower.data.ragged import Ragged
from twotower.errors import explain_options
from twotower.loops import last_gru_states

# a group costs its length in steps, one after the other, so there are few: one for each doubling
STEPS_PER_OCTAVE = 1


class HistoryGRU(HistoryEncoder):
    """The state of a gated recurrent unit after the last item.

    The encoder of GRU4Rec (Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016),
    on item vectors in place of one-hot codes. Lists of similar length go through it together, which on the CPU is several
    times as fast for long lists as PyTorch's packed sequences.

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
        if torch.compiler.is_exporting():
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [[getattr(self.gru, f"{kind}_l{layer}") for kind in kinds] for layer in range(self.layers)]
            return last_gru_states(vectors.values, vectors.offsets, weights)
        groups = group_by_length(vectors, STEPS_PER_OCTAVE)
        parts = groups.split(vectors.values.index_select(0, groups.source))
        states = [self.gru(part.transpose(0, 1))[0].transpose(0, 1).flatten(0, 1) for part in parts]
        slot = groups.slot[vectors.offsets[1:] - 1] if last else groups.slot
        return torch.cat(states).index_select(0, slot)
