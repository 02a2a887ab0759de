"""Features of users and items that are functions of their ids and tell of their latent vectors."""

import numpy as np
import pyarrow as pa

from twotower.schema import ColumnSchema, Schema
from twotower.tags import Tags

Array = np.ndarray
LONGEST = 4  # of lists whose schema does not say


def feature_table(ids: ColumnSchema, features: Schema, vectors: Array, rng: np.random.Generator) -> pa.Table:
    """One row for each id of the domain, from the smallest to the largest, with its features.

    Every feature looks at the vectors from one direction; the first D of them from directions at right angles, so that
    together they tell all of it.

    Args:
        ids: the id column.
        features: the other columns; integers need a domain.
        vectors: (ids, D) latent vectors.
        rng: draws the directions and the lengths of lists.

    Raises:
        ValueError: a column of text, or of integers without a domain.
    """
    domain = id_range(ids)
    width = vectors.shape[1]
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    views = _standard(vectors @ basis)
    columns = {ids.name: pa.array(np.arange(domain.start, domain.stop, dtype=ids.dtype or "int64"))}
    seen = 0
    for column in features:
        if column.is_list:
            lengths = _lengths(column, len(vectors), rng)
            longest = int(lengths.max())
            columns[column.name] = _lists(column, views[:, [(seen + n) % width for n in range(longest)]], lengths)
            seen += longest
        else:
            columns[column.name] = pa.array(_values(column, views[:, seen % width], 0, 1))
            seen += 1
    return pa.table(columns)


def id_range(column: ColumnSchema) -> range:
    """All ids of a column's domain."""
    if column.int_domain is None:
        raise ValueError(
            f'column {column.name!r} needs an integer domain to draw from: properties={{"domain": {{"min": 0, "max": ...}}}}.'
        )
    return range(int(column.int_domain.min), int(column.int_domain.max) + 1)


def context_column(column: ColumnSchema, rows: int, rng: np.random.Generator) -> pa.Array:
    """A column of neither side: noise."""
    noise = rng.normal(size=(rows, 1))
    if not column.is_list:
        return pa.array(_values(column, noise[:, 0], 0, 1))
    lengths = _lengths(column, rows, rng)
    return _lists(column, rng.normal(size=(rows, int(lengths.max()))), lengths)


def _values(column: ColumnSchema, view: Array, part: int, parts: int) -> Array:
    """A number for each view, in the column's domain; integers from one of `parts` equal stretches of it."""
    if column.int_domain is not None:
        choices = id_range(column)
        start, stop = (len(choices) * p // parts for p in (part, part + 1))
        rank = np.empty(len(view), np.int64)
        rank[np.argsort(view, kind="stable")] = np.arange(len(view))
        return (choices.start + start + rank * (stop - start) // len(view)).astype(column.dtype or "int64")
    if (column.dtype is not None and "float" not in column.dtype) or Tags.CATEGORICAL in column.tags:
        raise ValueError(
            f"column {column.name!r} ({column.dtype or 'no dtype'}) cannot be made up: expected floats, or integers with a "
            'domain, properties={"domain": {"min": 0, "max": ...}}.'
        )
    bounds = column.float_domain
    if bounds is not None and bounds.is_bounded:
        view = bounds.min + (bounds.max - bounds.min) / (1 + np.exp(-view))
    return view.astype(column.dtype or "float32")


def _lengths(column: ColumnSchema, rows: int, rng: np.random.Generator) -> Array:
    """How long each list is: as the schema's value_count allows, and no longer than there are values."""
    count = column.value_count
    low = 1 if count is None else int(count.min)
    high = max(low, LONGEST) if count is None or not np.isfinite(count.max) else int(count.max)
    if column.int_domain is not None:
        high = min(high, len(id_range(column)))
        if low > high:
            raise ValueError(f"column {column.name!r} wants lists of {low} different values, but has only {high}.")
    return rng.integers(low, high, size=rows, endpoint=True)


def _lists(column: ColumnSchema, views: Array, lengths: Array) -> pa.Array:
    """Lists whose n-th element tells of the n-th view; integers from a stretch of the domain of its own."""
    longest = views.shape[1]
    elements = np.stack([_values(column, views[:, n], n, longest) for n in range(longest)], axis=1)
    if not column.is_ragged:
        return pa.FixedSizeListArray.from_arrays(pa.array(elements.reshape(-1)), longest)
    kept = np.arange(longest) < lengths[:, None]
    return pa.LargeListArray.from_arrays(np.r_[0, lengths.cumsum()], pa.array(elements[kept]))


def _standard(vectors: Array) -> Array:
    spread = vectors.std(axis=0)
    return (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)
