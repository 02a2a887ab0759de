"""Raw values: one type for ids, the flat values of lists, and a hash that is the same everywhere."""

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import polars as pl
import pyarrow as pa

INT64_MAX = 2**63 - 1
FEW = 64  # values up to which a loop in Python is faster than a query to Polars


def whole(name: str, value: object, least: int = 1) -> int:
    """A count that is an option, as Python's int, which can be saved; NumPy's are taken.

    Raises:
        ValueError: a truth value, a number with a point, text, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}; give {name}={least} or more.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def element_type(raw: pl.Series) -> pl.DataType:
    """The type of a column's values: for lists, that of their elements."""
    return raw.dtype.inner if isinstance(raw.dtype, (pl.List, pl.Array)) else raw.dtype  # type: ignore[return-value]


def is_list(raw: pl.Series) -> bool:
    """Whether each row holds a list."""
    return isinstance(raw.dtype, (pl.List, pl.Array))


def flat(raw: pl.Series) -> pl.Series:
    """All values of a column one after the other, nulls inside lists too; a null list has none."""
    return _flat_and_offsets(raw)[0] if is_list(raw) else raw


def on_values(raw: pl.Series, function: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """A function of the values, applied within lists where the column holds lists; a null list becomes an empty one."""
    if not is_list(raw):
        return function(raw)
    values, offsets = _flat_and_offsets(raw)
    return lists(function(values), offsets, raw.name)


def lists(values: pl.Series, offsets: pa.Array, name: str) -> pl.Series:
    """Values cut into lists at the offsets (rows + 1,)."""
    joined = pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), values.to_arrow())
    made = pl.from_arrow(joined)
    assert isinstance(made, pl.Series)
    return made.alias(name)


def _flat_and_offsets(raw: pl.Series) -> tuple[pl.Series, pa.Array]:
    listed = raw.cast(pl.List(raw.dtype.inner)) if isinstance(raw.dtype, pl.Array) else raw
    array = (listed.fill_null([]) if listed.null_count() else listed).to_arrow()
    offsets = array.offsets
    values = pl.from_arrow(array.flatten())
    assert isinstance(values, pl.Series)
    return values, pa.compute.subtract(offsets, offsets[0])


def plain(raw: pl.Series, name: str, declared: str) -> pl.Series:
    """Flat values with integers as Int64 and text as String, so that int32 and int64 ids are the same ids.

    Raises:
        ValueError: values of another type, or an integer that int64 cannot hold.
    """
    kind = raw.dtype
    if kind == pl.UInt64 or kind in (pl.Int128, pl.UInt128):
        largest = raw.max()
        if largest is not None and largest > INT64_MAX:  # type: ignore[operator]
            raise ValueError(f"column {name!r} holds {largest!r}, more than int64 can; make its ids text first.")
    if kind.is_integer() or kind == pl.Boolean:
        return raw.cast(pl.Int64)
    if kind == pl.String or kind in (pl.Categorical, pl.Enum):
        return raw.cast(pl.String)
    raise ValueError(f"column {name!r} is declared {declared}, but holds {kind}: expected integers or text.")


def hash64(values: pl.Series) -> pl.Series:
    """(n,) UInt64, a function of each value alone: the first 8 bytes, little endian, of BLAKE2b-64 of its text in UTF-8.

    The text of an integer is its decimal digits, so that 7 and "7" hash alike. Null stays null.
    """
    if len(values) <= FEW:
        few = [None if value is None else hash_of(str(value)) for value in values.to_list()]
        return pl.Series(values.name, few, dtype=pl.UInt64)
    text = values.cast(pl.String)
    distinct = text.unique().drop_nulls()
    hashes = [hash_of(text) for text in distinct]
    return text.replace_strict(distinct, pl.Series(hashes, dtype=pl.UInt64), default=None, return_dtype=pl.UInt64)


def hash_of(text: str) -> int:
    """`hash64` of one text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def buckets_of(values: pl.Series, buckets: int) -> pl.Series:
    """(n,) Int64 in 0 to buckets - 1, by `hash64`; null stays null."""
    return (hash64(values) % buckets).cast(pl.Int64)
