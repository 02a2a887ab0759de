"""Splits of an event table into training and test data."""

import polars as pl

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown


def split_by_time(events: Source, time: str, test_fraction: float = 0.1) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Train on the past, test on what came after: one cut in time for everybody.

    Args:
        events: a table with a time column.
        time: the name of a column that can be sorted, such as seconds since 1970.
        test_fraction: the share of events after the cut, in (0, 1). Events at the very moment of the cut all go to
            the test part, so it may be a little larger.

    Returns:
        (train, test) as Polars frames in their first order; every train time is before every test time.

    Raises:
        ValueError: unknown column, nulls in it, a fraction outside (0, 1), or a part that would be empty.

    Example:
        >>> train, test = split_by_time({"item": ["a", "b", "c", "d"], "t": [4, 1, 3, 2]}, "t", test_fraction=0.25)
        >>> train["item"].to_list(), test["item"].to_list()
        (['b', 'c', 'd'], ['a'])
    """
    frame = Dataset(events).to_polars()
    if time not in frame.columns:
        raise ValueError(unknown("column", time, frame.columns))
    if frame[time].null_count():
        raise ValueError(
            f"column {time!r} has {frame[time].null_count()} nulls: events without a time cannot be split."
        )
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}.")
    ordered = frame[time].sort()
    cut = ordered[min(len(ordered) - 1, round(len(ordered) * (1 - test_fraction)))]
    train, test = frame.filter(pl.col(time) < cut), frame.filter(pl.col(time) >= cut)
    if not len(train) or not len(test):
        raise ValueError(f"a cut at {time} = {cut} leaves one part of {len(frame)} events empty.")
    return train, test
