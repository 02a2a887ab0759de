"""Ragged: lists of different lengths as one flat tensor and its row boundaries."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Ragged:
    """B lists in two tensors: row i is `values[offsets[i]:offsets[i + 1]]`.

    Args:
        values: (total, ...) the elements of all rows, one row after the other.
        offsets: (B + 1,) int64; starts at 0, never falls, ends at `total`.

    Raises:
        ValueError: offsets that are not one-dimensional int64, or are empty. `check` looks at their content too.

    Example:
        >>> rows = Ragged.from_lists([[5, 7], [], [9]])
        >>> rows.lengths().tolist(), rows.to_lists()
        ([2, 0, 1], [[5, 7], [], [9]])
    """

    # no dataclass: the Trainer maps over the fields of dataclasses, and refuses frozen ones
    __slots__ = ("offsets", "values")

    def __init__(self, values: Tensor, offsets: Tensor) -> None:
        if offsets.ndim != 1 or offsets.dtype != torch.int64 or offsets.shape[0] == 0:
            raise ValueError(
                f"Ragged offsets must be int64 of shape (B + 1,), got {offsets.dtype} of shape {tuple(offsets.shape)}. "
                "Ragged.from_lists makes them from lists."
            )
        self.values = values
        self.offsets = offsets

    def __repr__(self) -> str:
        return f"Ragged(values={self.values}, offsets={self.offsets})"

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[float]], dtype: torch.dtype | None = None) -> "Ragged":
        """Make a Ragged from lists; ids default to int64, numbers to float32."""
        flat = [value for row in rows for value in row]
        if dtype is None:
            dtype = torch.float32 if any(isinstance(value, float) for value in flat) else torch.int64
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return cls(torch.tensor(flat, dtype=dtype), _offsets(lengths))

    @classmethod
    def concat(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The rows of all parts, in order."""
        return cls(torch.cat([part.values for part in parts]), _offsets(torch.cat([part.lengths() for part in parts])))

    def check(self) -> "Ragged":
        """Return self if the offsets fit the values, else raise ValueError."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        if first != 0 or last != len(self.values) or bool((self.lengths() < 0).any()):
            raise ValueError(
                f"Ragged offsets must start at 0, never fall and end at the number of values, {len(self.values)}; "
                f"these start at {first} and end at {last}."
            )
        return self

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_rows(self) -> int:
        """B; what len() gives, but a symbol while PyTorch traces with symbolic sizes."""
        return self.offsets.shape[0] - 1

    @property
    def device(self) -> torch.device:
        return self.values.device

    def lengths(self) -> Tensor:
        """(B,) the length of each row."""
        return self.offsets[1:] - self.offsets[:-1]

    def row_of_value(self) -> Tensor:
        """(total,) the row that each value belongs to."""
        if torch.compiler.is_exporting():  # ONNX cannot repeat each row by a number of its own
            begins = self.offsets.new_zeros(self.values.shape[0] + 1)
            begins = begins.index_add(0, self.offsets[1:-1], torch.ones_like(self.offsets[1:-1]))
            return begins.cumsum(0)[:-1]
        rows = torch.arange(self.num_rows, device=self.device)
        return torch.repeat_interleave(rows, self.lengths(), output_size=self.values.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Ragged":
        """Both tensors on the device."""
        return Ragged(
            self.values.to(device, non_blocking=non_blocking), self.offsets.to(device, non_blocking=non_blocking)
        )

    def take(self, rows: Tensor) -> "Ragged":
        """The given rows (M,), in that order; rows may repeat."""
        start = self.offsets.index_select(0, rows)
        lengths = self.offsets.index_select(0, rows + 1) - start
        offsets = _offsets(lengths)
        # each taken value sits at its row's start plus its place within the row
        place = torch.repeat_interleave(start - offsets[:-1], lengths, output_size=int(offsets[-1]))
        place += torch.arange(len(place), device=self.device)
        return Ragged(self.values.index_select(0, place), offsets)

    def latest(self, length: int) -> "Ragged":
        """The rows cut to their last `length` elements; shorter rows stay whole."""
        kept = self.lengths().clamp(max=length)
        place_from_end = self.offsets[1:][self.row_of_value()] - torch.arange(self.values.shape[0], device=self.device)
        return Ragged(self.values[place_from_end <= length], _offsets(kept))

    def to_lists(self) -> list[list[float]]:
        """Plain Python lists."""
        values, offsets = self.values.tolist(), self.offsets.tolist()
        return [values[offsets[i] : offsets[i + 1]] for i in range(len(self))]


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
