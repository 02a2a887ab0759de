"""Histories: what a user did before, as a list column."""

from numbers import Integral

import numpy as np
import polars as pl
import pyarrow as pa

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown


def build_histories(
    events: Source, *, user: str, item: str, time: str, length: int = 20, name: str = "history"
) -> pl.DataFrame:
    """Add to every event the user's earlier items, oldest first: those with a time strictly before the event's.

    The event itself and others at the same moment are not in its history, so nothing of the target leaks.

    Args:
        events: a table of interactions.
        user, item, time: its columns.
        length: keep only the latest so many items.
        name: of the new column.

    Returns:
        The events in their first order, with the list column.

    Example:
        >>> events = {"user": [1, 1, 2, 1], "item": ["a", "b", "c", "d"], "t": [10, 20, 20, 30]}
        >>> build_histories(events, user="user", item="item", time="t", length=1)["history"].to_list()
        [[], ['a'], [], ['b']]
    """
    frame = _checked(events, [user, item, time], length)
    if "__row" in frame.columns:
        raise ValueError("the events have a column '__row', a name that build_histories takes for itself: rename it.")
    if name in (*frame.columns, "__row"):
        raise ValueError(f"the events have a column {name!r} already; give the histories another name.")
    ordered = frame.with_row_index("__row").sort([user, time, "__row"])
    users, times = ordered[user].rle_id().to_numpy(), ordered[time].to_numpy()
    rows = np.arange(len(ordered))
    new_user = np.r_[True, users[1:] != users[:-1]] if len(rows) else np.empty(0, bool)
    new_moment = new_user | np.r_[True, times[1:] != times[:-1]] if len(rows) else new_user
    first = np.maximum.accumulate(np.where(new_user, rows, 0))
    stop = np.maximum.accumulate(np.where(new_moment, rows, 0))
    lists = _slices(ordered[item], np.maximum(first, stop - length), stop)
    return ordered.with_columns(lists.alias(name)).sort("__row").drop("__row")


def latest_histories(
    events: Source, *, user: str, item: str, time: str, length: int = 20, name: str = "history"
) -> pl.DataFrame:
    """One row for each user: all their items up to now, oldest first, the latest `length` of them.

    These are the histories to recommend from, after the last event.

    Example:
        >>> events = {"user": [1, 1, 2], "item": ["a", "b", "c"], "t": [10, 20, 20]}
        >>> latest_histories(events, user="user", item="item", time="t").rows()
        [(1, ['a', 'b']), (2, ['c'])]
    """
    frame = _checked(events, [user, item, time], length)
    if name == user:
        raise ValueError(f"the column of users is {name!r} already; give the histories another name.")
    return frame.sort(time, maintain_order=True).group_by(user).agg(pl.col(item).tail(length).alias(name)).sort(user)


def _checked(events: Source, columns: list[str], length: int) -> pl.DataFrame:
    frame = Dataset(events).to_polars()
    for column in columns:
        if column not in frame.columns:
            raise ValueError(unknown("column", column, frame.columns))
        if frame[column].null_count():
            raise ValueError(f"column {column!r} has {frame[column].null_count()} nulls; a history cannot place them.")
        if frame[column].dtype.is_float() and frame[column].is_nan().any():
            raise ValueError(f"column {column!r} holds nan; a history cannot place it.")
    if not isinstance(length, Integral) or isinstance(length, bool) or length < 1:
        raise ValueError(f"a history needs a whole number length >= 1, got {length}.")
    return frame


def _slices(values: pl.Series, start: np.ndarray, stop: np.ndarray) -> pl.Series:
    """The lists values[start[i]:stop[i]]."""
    lengths = stop - start
    offsets = np.r_[0, lengths.cumsum()]
    places = np.arange(offsets[-1])
    places += np.repeat(start - offsets[:-1], lengths)
    flat = values.gather(places).to_arrow()
    lists = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat))
    assert isinstance(lists, pl.Series)
    return lists
