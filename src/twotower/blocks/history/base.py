"""HistoryEncoder: what every encoder of a user's history is."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.data.ragged import Ragged


class HistoryEncoder(nn.Module, ABC):
    """From lists of vectors, oldest first, to one state a list, or to a state after every element.

    It stands in `Embeddings(sequence_combiner={"history": encoder})`. States are causal: what comes after an element
    does not change the state there, and rows do not see each other. So the states of one pass over a list are what
    its prefixes would give, each encoded by itself, and all of them can be trained at once:
    `compile(every_position="history")`.

    An encoder of your own is a subclass with `encode`. While it is exported (`export_tower`), `encode` gets empty rows as
    well, and may give anything for them.

    Args:
        dim: D, the width of the vectors.
        output_dim: the width of the states; None for D.
        max_length: a longer list is cut to its latest `max_length` elements, as if the others had never been there; None
            reads all.

    An empty list gives `empty`, a vector that is learnt and starts at zero, so that a new user has a query too.

    Raises:
        ValueError: a number below 1, or (in forward) vectors of another width.
    """

    def __init__(self, dim: int, output_dim: int | None, max_length: int | None) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("output_dim", output_dim), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__} needs {name} >= 1, got {value}.")
        self.dim = dim
        self.output_dim = output_dim
        self.max_length = max_length
        self.empty = nn.Parameter(torch.zeros(output_dim or dim))

    @abstractmethod
    def encode(self, vectors: Ragged, last: bool) -> Tensor:
        """The states of lists of at least one element, at most `max_length` long.

        Args:
            vectors: (total, D) in B rows.
            last: whether only the state after the last element of each row is asked for.

        Returns:
            (total, width) one state after every element, or (B, width) the last ones.
        """

    def forward(self, vectors: Ragged) -> Float[Tensor, "B W"]:
        """The state after the last element of each row; `empty` for an empty row."""
        read = self._read(vectors)
        if torch.compiler.is_exporting():
            return self._traced(read)
        if not len(read.values):
            return self.empty.expand(len(read), -1)
        filled = read.lengths() > 0
        states = self.encode(_without_empty(read), last=True)
        place = filled.cumsum(0) * filled
        return torch.cat([self.empty[None].to(states.dtype), states]).index_select(0, place)

    def states(self, vectors: Ragged) -> Ragged:
        """The state after every element that is read: (total, width) in rows as long as the lists, up to max_length."""
        read = self._read(vectors)
        return Ragged(self._encoded(read), read.offsets)

    def states_from_start(self, vectors: Ragged) -> Ragged:
        """`states` with the state before the first element, `empty`, in front of each row: rows one longer."""
        read = self._read(vectors)
        states = self._encoded(read)
        every = torch.arange(len(states), device=states.device)
        source = torch.zeros(len(states) + len(read), dtype=torch.int64, device=states.device)
        source[every + read.row_of_value() + 1] = every + 1
        both = torch.cat([self.empty[None].to(states.dtype), states])
        return Ragged(both.index_select(0, source), read.offsets + torch.arange(len(read) + 1, device=states.device))

    def _traced(self, read: Ragged) -> Tensor:
        """`forward` without a choice by the data: `encode` sees the empty rows too, and what it says of them is not used."""
        # a last row of one zero: there is something to read even if all rows are empty, and at each row's beginning
        more = Ragged(
            torch.cat([read.values, read.values.new_zeros(1, self.dim)]),
            torch.cat([read.offsets, read.offsets[-1:] + 1]),
        )
        states = self.encode(more, last=True)[:-1]
        return torch.where(read.lengths()[:, None] > 0, states, self.empty.to(states.dtype))

    def _encoded(self, read: Ragged) -> Tensor:
        if not len(read.values):
            return self.empty.new_zeros(0, len(self.empty))
        return self.encode(_without_empty(read), last=False)

    def _read(self, vectors: Ragged) -> Ragged:
        width = vectors.values.shape[-1]
        if width != self.dim:
            raise ValueError(
                f"{type(self).__name__}(dim={self.dim}) reads vectors of width {self.dim}, got {width}. Give it the dim of the "
                "column's embedding table: Embeddings(schema, dim=...)."
            )
        return vectors if self.max_length is None else vectors.latest(self.max_length)


def _without_empty(rows: Ragged) -> Ragged:
    first = torch.ones(1, dtype=torch.bool, device=rows.device)
    return Ragged(rows.values, rows.offsets[torch.cat([first, rows.lengths() > 0])])
