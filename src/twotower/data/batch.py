"""A batch is a dict of columns: a tensor for scalars and fixed lists, a Ragged for lists."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twotower.data.ragged import Ragged
from twotower.errors import unknown
from twotower.schema import ColumnSchema, Schema

Batch = dict[str, Tensor | Ragged]


def batch_size(batch: Mapping[str, Tensor | Ragged]) -> int:
    """The number of rows, the same in every column."""
    sizes = {name: len(column) for name, column in batch.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"a batch needs at least one column and as many rows in each; got {sizes}.")
    return next(iter(sizes.values()))


def take(batch: Mapping[str, Tensor | Ragged], rows: Tensor) -> Batch:
    """The given rows (M,) of every column."""
    return {name: c.take(rows) if isinstance(c, Ragged) else c.index_select(0, rows) for name, c in batch.items()}


def concat(batches: Sequence[Mapping[str, Tensor | Ragged]]) -> Batch:
    """The rows of all batches, in order."""
    if len(batches) == 1:
        return dict(batches[0])
    return {name: _joined([batch[name] for batch in batches]) for name in batches[0]}


def _joined(columns: list[Tensor | Ragged]) -> Tensor | Ragged:
    ragged = [c for c in columns if isinstance(c, Ragged)]
    return Ragged.concat(ragged) if ragged else torch.cat([c for c in columns if isinstance(c, Tensor)])


def to_device(batch: Mapping[str, Tensor | Ragged], device: torch.device | str) -> Batch:
    """Every column on the device."""
    return {name: column.to(device, non_blocking=True) for name, column in batch.items()}


def in_precision(batch: Mapping[str, Tensor | Ragged], dtype: torch.dtype) -> Batch:
    """Numbers in a precision; ids stay."""
    return {name: c.to(dtype) if isinstance(c, Tensor) and c.is_floating_point() else c for name, c in batch.items()}


def column(batch: Mapping[str, Tensor | Ragged], name: str) -> Tensor | Ragged:
    """One column; ValueError with the columns that came when it is missing."""
    if name not in batch:
        raise ValueError(f"the batch lacks a column. {unknown('column', name, batch)}")
    return batch[name]


def scalar_column(batch: Mapping[str, Tensor | Ragged], name: str) -> Tensor:
    """One column of one value a row, (B,), such as ids, targets and weights."""
    values = column(batch, name)
    if isinstance(values, Ragged) or values.ndim != 1:
        raise ValueError(f"column {name!r} must hold one value a row, shape (B,), but holds lists.")
    return values


def example_batch(schema: Schema, rows: int = 2) -> Batch:
    """The smallest batch that the schema allows: zeros, one element a list. It shows layers their input widths."""
    return {c.name: _example_column(c, rows) for c in schema}


def _example_column(schema: ColumnSchema, rows: int) -> Tensor | Ragged:
    dtype = torch.int64 if schema.int_domain is not None else torch.float32
    if schema.is_list and not schema.is_ragged and schema.value_count is not None:
        return torch.zeros(rows, int(schema.value_count.max), dtype=dtype)
    if schema.is_list:
        return Ragged(torch.zeros(rows, dtype=dtype), torch.arange(rows + 1))
    return torch.zeros(rows, dtype=dtype)
