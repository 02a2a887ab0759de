"""Lists of similar length side by side, so that work within lists runs on plain tensors with little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from twotower.data.ragged import Ragged

# a symbol while PyTorch traces
Size = int | torch.SymInt
# lengths of 2 ** n to 2 ** (n + 1) are padded to one of so many: about a sixteenth of the slots is empty
STEPS_PER_OCTAVE = 4


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows in order of their padded lengths, each in as many slots; rows of one padded length are a group.

    Args:
        shapes: (rows, padded length) of each group.
        source: (S,) the value in each slot; a slot beyond the end of its row repeats the row's last value.
        position: (S,) the place of that value in its row.
        slot: (total,) the slot of each value.
        order: (B,) the rows in the groups' order.
        last: (B,) the slot of the last value of each row, rows in the groups' order.
    """

    shapes: Sequence[tuple[Size, Size]]
    source: Int[Tensor, "S"]
    position: Int[Tensor, "S"]
    slot: Int[Tensor, "total"]
    order: Int[Tensor, "B"]
    last: Int[Tensor, "B"]

    def split(self, slots: Tensor) -> Iterator[Tensor]:
        """(S, ...) as one view (rows, length, ...) for each group."""
        # one split: the gradient of many slices would be as many tensors of the full size
        parts = slots.split([rows * length for rows, length in self.shapes])
        for part, shape in zip(parts, self.shapes, strict=True):
            yield part.unflatten(0, shape)

    def split_rows(self, rows: Tensor) -> Iterator[Tensor]:
        """(B, ...), rows in the groups' order, as one view (rows, ...) for each group."""
        yield from rows.split([count for count, _ in self.shapes])


def group_by_length(lists: Ragged, steps: int = STEPS_PER_OCTAVE) -> Groups:
    """The groups of lists of at least one element; `steps` padded lengths for each doubling, none above the longest."""
    if torch.compiler.is_exporting():
        return _one_group(lists)
    lengths, device = lists.lengths(), lists.device
    padded = torch.minimum(padded_lengths(lengths, steps), lengths.max())
    order = padded.argsort(stable=True)
    size, length = padded[order], lengths[order]
    first = size.cumsum(0) - size
    kinds, counts = torch.unique_consecutive(size, return_counts=True)
    shapes = [(int(rows), int(slots)) for rows, slots in torch.stack([counts, kinds], 1).tolist()]
    row = torch.repeat_interleave(size, output_size=sum(rows * slots for rows, slots in shapes))
    position = torch.minimum(torch.arange(len(row), device=device) - first[row], length[row] - 1)
    source = lists.offsets[:-1][order][row] + position
    first_of_row = torch.empty_like(first).scatter_(0, order, first)
    place = torch.arange(len(lists.values), device=device)
    slot = place + torch.repeat_interleave(first_of_row - lists.offsets[:-1], lengths, output_size=len(place))
    return Groups(shapes, source, position, slot, order, first + length - 1)


def _one_group(lists: Ragged) -> Groups:
    """All rows in their order, padded to the longest: as many groups as lengths are none while PyTorch traces.

    A row may be empty if it is not the last; it gets one slot.
    """
    rows, lengths, device = lists.num_rows, lists.lengths().clamp(min=1), lists.device
    slots = cast(int, lengths.max().item())
    torch._check(slots >= 1)
    place = torch.arange(slots, device=device)
    position = torch.minimum(place, lengths[:, None] - 1)
    source = (lists.offsets[:-1, None] + position).flatten()
    order = torch.arange(rows, device=device)
    total = torch.arange(lists.values.shape[0], device=device)
    row = lists.row_of_value()
    slot = row * slots + total - lists.offsets[:-1][row]
    return Groups([(rows, slots)], source, position.flatten(), slot, order, order * slots + lengths - 1)


def padded_lengths(lengths: Int[Tensor, "B"], steps: int) -> Int[Tensor, "B"]:
    """Each length rounded up to the next of few: all up to 2 * steps, then so many for each doubling.

    Example:
        >>> padded_lengths(torch.tensor([1, 7, 8, 9, 16, 17, 50]), steps=4).tolist()
        [1, 7, 8, 10, 16, 20, 56]
    """
    octave = torch.frexp(lengths.double()).exponent.long() - 1  # 2 ** octave <= length
    step = (2**octave // steps).clamp(min=1)
    return (lengths + step - 1) // step * step
