"""Splits of an event table into training and test data, the k-core, and checks that nothing of the test leaks.

Every split returns (train, test) as Polars frames that hold each event once, in its first order.
"""

from numbers import Integral

import polars as pl

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown

Parts = tuple[pl.DataFrame, pl.DataFrame]


def split_by_time(events: Source, time: str, test_fraction: float = 0.1) -> Parts:
    """Train on the past, test on what came after: one cut in time for everybody.

    Args:
        events: a table with a time column.
        time: the name of a column that can be sorted, such as seconds since 1970.
        test_fraction: the share of events after the cut, in (0, 1). Events at the very moment of the cut all go to
            the test part, so it may be a little larger.

    Returns:
        (train, test) as Polars frames in their first order; every train time is before every test time.

    Raises:
        ValueError: no events, unknown column, nulls in it, a fraction outside (0, 1), or a part that would be empty.

    Example:
        >>> train, test = split_by_time({"item": ["a", "b", "c", "d"], "t": [4, 1, 3, 2]}, "t", test_fraction=0.25)
        >>> train["item"].to_list(), test["item"].to_list()
        (['b', 'c', 'd'], ['a'])
    """
    frame = _checked(events, [time], test_fraction)
    ordered = frame[time].sort()
    cut = ordered[min(len(ordered) - 1, round(len(ordered) * (1 - test_fraction)))]
    return _parts(frame, frame[time] >= cut, f"a cut at {time} = {cut}")


def split_at_random(events: Source, test_fraction: float = 0.1, seed: int = 0) -> Parts:
    """A share of all events, whoever's they are, for tables without times; it lets a model learn from a user's future.

    Args:
        events: a table.
        test_fraction: the share of events to test, in (0, 1); rounded to whole events.
        seed: of the draw, which is the same on every machine for one version of Polars.

    Raises:
        ValueError: no events, a fraction outside (0, 1), or a part that would be empty.

    Example:
        >>> train, test = split_at_random({"item": list(range(10))}, test_fraction=0.2)
        >>> len(train), len(test)
        (8, 2)
    """
    frame = _checked(events, [], test_fraction)
    drawn = pl.Series(range(len(frame))).shuffle(seed) < round(len(frame) * test_fraction)
    return _parts(frame, drawn, f"test_fraction={test_fraction}")


def split_by_user(
    events: Source, user: str, test_fraction: float = 0.2, *, time: str | None = None, seed: int = 0
) -> Parts:
    """A share of every user's events: the latest ones, or without a time column any.

    Args:
        events: a table.
        user: the column of users.
        test_fraction: the share of a user's events to test, in (0, 1), rounded down: a user of few events may have none
            there, and every user keeps one to train on.
        time: a column that can be sorted; of events at one moment those further down in the table are later.
        seed: of the draw without times.

    Raises:
        ValueError: no events, unknown column, nulls in it, a fraction outside (0, 1), or a part that would be empty.

    Example:
        >>> events = {"user": [1, 1, 1, 2], "item": ["a", "b", "c", "d"], "t": [3, 1, 2, 9]}
        >>> split_by_user(events, "user", 0.4, time="t")[1]["item"].to_list()
        ['a']
    """
    frame = _checked(events, [user] if time is None else [user, time], test_fraction)
    order = pl.Series(range(len(frame))).shuffle(seed) if time is None else None
    from_last = _place_from_last(frame, user, frame[time] if order is None and time is not None else order)
    held = frame.select(pl.len().over(user)).to_series()
    # a product such as 0.2 * 5 may come out a little below the whole number
    return _parts(frame, from_last < (held * test_fraction + 1e-9).floor(), f"test_fraction={test_fraction}")


def leave_last_out(events: Source, user: str, time: str, last: int = 1) -> Parts:
    """Every user's last events to test, for next-item protocols; users with no more than these stay in train.

    For validation data too, split the train part once more.

    Args:
        events: a table.
        user: the column of users.
        time: a column that can be sorted; of events at one moment those further down in the table are later.
        last: how many events of a user to test.

    Raises:
        ValueError: no events, unknown column, nulls in it, last below 1, or no user with more events than `last`.

    Example:
        >>> events = {"user": [1, 1, 2, 1], "item": ["a", "b", "c", "d"], "t": [1, 5, 2, 5]}
        >>> leave_last_out(events, "user", "t")[1]["item"].to_list()
        ['d']
    """
    frame = _checked(events, [user, time])
    if not isinstance(last, Integral) or isinstance(last, bool) or last < 1:
        raise ValueError(f"leave_last_out needs a whole number last >= 1, got {last}.")
    held = frame.select(pl.len().over(user)).to_series()
    from_last = _place_from_last(frame, user, frame[time])
    return _parts(frame, (from_last < last) & (held > last), f"leaving out the last {last} events of a user")


def k_core(events: Source, *, user: str, item: str, k: int = 5) -> pl.DataFrame:
    """The largest part of a table in which every user and every item has at least k events, in its first order.

    Args:
        events: a table.
        user, item: its columns.
        k: the least number of events.

    Raises:
        ValueError: no events, unknown column, nulls in it, k below 1, or nothing left.

    Example:
        >>> events = {"user": [1, 1, 2, 2, 3], "item": ["a", "b", "a", "b", "b"]}
        >>> k_core(events, user="user", item="item", k=2)["user"].to_list()
        [1, 1, 2, 2]
    """
    frame = _checked(events, [user, item])
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"a core needs a whole number k >= 1, got {k}.")
    size = -1
    while len(frame) != size:
        size = len(frame)
        frame = frame.filter((pl.len().over(user) >= k) & (pl.len().over(item) >= k))
    if not size:
        raise ValueError(f"no event is left in the {k}-core: lower k.")
    return frame


def _checked(events: Source, columns: list[str], fraction: float = 0.5) -> pl.DataFrame:
    frame = Dataset(events).to_polars()
    for column in columns:
        if column not in frame.columns:
            raise ValueError(unknown("column", column, frame.columns))
        if frame[column].null_count():
            raise ValueError(
                f"column {column!r} has {frame[column].null_count()} nulls: such events cannot be placed. Filter them first."
            )
        if frame[column].dtype.is_float() and frame[column].is_nan().any():
            raise ValueError(f"column {column!r} holds nan: such events cannot be placed. Filter them first.")
    if not len(frame):
        raise ValueError(
            "the table has no rows: there are no events to divide. Give one with events, or look at its filters."
        )
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {fraction}.")
    return frame


def _place_from_last(frame: pl.DataFrame, user: str, order: pl.Series | None) -> pl.Series:
    """(rows,) 0 for a user's last event, 1 for the one before, ..."""
    assert order is not None
    placed = pl.DataFrame({"user": frame[user], "order": order}).with_row_index("row")
    backwards = placed.sort(["order", "row"], descending=True)
    return backwards.with_columns(pl.int_range(pl.len()).over("user").alias("place")).sort("row")["place"]


def _parts(frame: pl.DataFrame, tested: pl.Series, what: str) -> Parts:
    train, test = frame.filter(~tested), frame.filter(tested)
    if not len(train) or not len(test):
        raise ValueError(f"{what} leaves one part of {len(frame)} events empty.")
    return train, test
