"""Between Arrow columns and tensors: int64 ids, float32 numbers, Ragged lists; anything else is an error."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from twotower.data.batch import Batch
from twotower.data.ragged import Ragged
from twotower.schema import Schema


def to_batch(table: pa.Table, schema: Schema, narrow: bool = False) -> Batch:
    """The schema's columns of a table as tensors.

    Args:
        table, schema: rows, and the columns to take of them.
        narrow: leave int32 columns as they are and share Arrow's memory, which must not be written to; `widen` makes
            the usual int64 of what is taken from them.

    Raises:
        ValueError: a column is text, has nulls, does not fit int64, or holds ids outside its domain.
    """
    batch: Batch = {}
    for column in schema:
        tensor = to_tensor(table.column(column.name), column.name, narrow)
        if column.int_domain is not None:
            _check_domain(tensor, column.name, int(column.int_domain.max))
        batch[column.name] = tensor
    return batch


def widen(batch: Batch) -> Batch:
    """int32 columns as int64."""
    return {name: _widened(column) for name, column in batch.items()}


def _widened(column: Tensor | Ragged) -> Tensor | Ragged:
    if isinstance(column, Ragged):
        return Ragged(column.values.long(), column.offsets) if column.values.dtype == torch.int32 else column
    return column.long() if column.dtype == torch.int32 else column


def to_tensor(column: pa.ChunkedArray | pa.Array, name: str, narrow: bool = False) -> Tensor | Ragged:
    """One Arrow column as a tensor (B,), (B, L) for fixed-size lists, or a Ragged for lists."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # a table without rows has no chunk to combine
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        raise ValueError(
            f"column {name!r} has {array.null_count} nulls in {len(array)} rows. Fill or remove them before; "
            "Preprocessor gives missing values an id of their own."
        )
    if pa.types.is_fixed_size_list(array.type):
        return _numbers(array.flatten(), name, narrow).reshape(len(array), array.type.list_size)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets = torch.from_numpy(array.offsets.to_numpy().astype(np.int64))
        return Ragged(_numbers(array.flatten(), name, narrow), offsets - offsets[0])
    return _numbers(array, name, narrow)


def from_batch(batch: Batch) -> pa.Table:
    """Tensors as an Arrow table; (B, L) becomes a fixed-size list, Ragged a list."""
    return pa.table({name: from_tensor(column) for name, column in batch.items()})


def from_tensor(column: Tensor | Ragged) -> pa.Array:
    """One column of a batch as an Arrow array."""
    if isinstance(column, Ragged):
        return pa.LargeListArray.from_arrays(column.offsets.cpu().numpy(), pa.array(column.values.cpu().numpy()))
    values = column.detach().cpu().numpy()
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def table_of_columns(columns: Mapping[str, Any]) -> pa.Table:
    """A dict of columns as a table: what Arrow takes, Polars series, and tensors and arrays of one or two dimensions.

    Raises:
        ValueError: a name that is no text, values that are no column, or columns of different lengths.
    """
    arrays = {name: _array(name, values) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns are of different lengths: {lengths}. Give each one value a row.")
    return pa.table(arrays)


def table_of_records(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as dicts; what a row lacks is null."""
    names = dict.fromkeys(name for row in records for name in row)
    return table_of_columns({name: [row.get(name) for row in records] for name in names})


def _array(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if not isinstance(name, str):
        raise ValueError(f"a column's name must be text, got {name!r} of type {type(name).__name__}.")
    if isinstance(values, (str, bytes)):
        raise ValueError(f"column {name!r} is one text, {values!r}: give a list with one value a row.")
    try:
        if isinstance(values, pl.Series):
            return values.to_arrow()
        if isinstance(values, (Tensor, np.ndarray)) and (values.ndim not in (1, 2) or values.shape[1:] == (0,)):
            raise ValueError(f"it has shape {tuple(values.shape)}")
        if isinstance(values, (Tensor, Ragged)):
            return from_tensor(values)
        if isinstance(values, np.ndarray) and values.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        return pa.array(values)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(
            f"column {name!r} cannot be read: {error}. Expected one value of one kind a row: numbers, texts or lists of them; or a "
            "tensor or array of one or two dimensions."
        ) from error


def _numbers(array: pa.Array, name: str, narrow: bool) -> Tensor:
    if array.null_count:
        raise ValueError(f"column {name!r} has lists with {array.null_count} nulls inside. Remove or fill them before.")
    kind = array.type
    dtype: type = np.int64
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pa.types.is_integer(kind):
        if kind == pa.uint64() and len(array) and pc.max(array).as_py() > np.iinfo(np.int64).max:
            raise ValueError(
                f"column {name!r} is uint64 and holds {pc.max(array)}, more than int64 can. Encode it first."
            )
    elif pa.types.is_floating(kind):
        dtype = np.float32
    else:
        raise ValueError(
            f"column {name!r} is {kind}, but towers read integers and floats. Encode it with twotower.Preprocessor, "
            "or leave it out of the schema (schema.excluding_by_name)."
        )
    if narrow and len(array) and kind in (pa.int32(), pa.float32()):
        values = torch.utils.dlpack.from_dlpack(array)
    else:
        # Arrow's memory is read-only; a copy keeps in-place work from corrupting it
        values = torch.from_numpy(array.to_numpy(zero_copy_only=False).astype(dtype, copy=True))
    # a sum is finite only where all its terms are; it is the fast test, and the slow one decides
    if dtype is np.float32 and not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise ValueError(
            f"column {name!r} holds {int((~values.isfinite()).sum())} nan or infinite numbers. Fill them before."
        )
    return values


def _check_domain(column: Tensor | Ragged, name: str, largest: int) -> None:
    values = column.values if isinstance(column, Ragged) else column
    if values.numel() == 0:
        return
    if values.is_floating_point():
        raise ValueError(f"column {name!r} has an integer domain, but holds floats. Cast it, or correct the schema.")
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high > largest:
        raise ValueError(
            f"column {name!r} holds ids from {low} to {high}, but its domain is 0 to {largest}. Correct the schema's "
            "domain, or encode the column with twotower.Preprocessor."
        )
