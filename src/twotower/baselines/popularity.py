"""The same items for everyone: those of most events, ever or lately."""

from datetime import timedelta

import polars as pl
from jaxtyping import Float
from torch import Tensor

from twotower.baselines.base import Baseline, above_zero, checked_ids
from twotower.data.dataset import Dataset


class Popularity(Baseline):
    """Items by the number of their training events.

    Items of one count have one score; the evaluator ranks the positives last among them.

    Attributes:
        counts: (N,) events of each item.

    Example:
        >>> from twotower.baselines import Popularity
        >>> popular = Popularity(tt.Dataset({"user": [1, 1, 2], "item": ["a", "b", "b"]}), "user", "item")
        >>> popular.items.to_list(), popular.scores(pl.Series([7])).tolist()
        (['a', 'b'], [[1.0, 2.0]])
    """

    def learn(self, events: pl.DataFrame) -> None:
        """Count."""
        self.counts = self.counts_of(events[self.item])

    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """The counts, for each user."""
        return self.counts.repeat(len(checked_ids(users, "users")), 1)


class RecentPopularity(Baseline):
    """Items by the number of their events in the last `window` of the training data; among equals, of all events.

    An event counts if it is less than `window` older than the newest one. The score is the count in the window plus a fraction
    below 1 that grows with the count of all events, so that items without recent events are still in order. Tastes drift: where
    there are times, this is harder to beat than Popularity (Ji et al., "A Re-visit of the Popularity Baseline in Recommender
    Systems", SIGIR 2020).

    Args:
        train, user, item, catalog: as of every Baseline.
        time: the column of `train` that says when.
        window: how long ago counts: a number in the unit of a numeric time column, such as 14 * 86400 for two weeks of
            seconds, or a timedelta for dates and datetimes.

    Attributes:
        counts: (N,) events of each item in the window.

    Raises:
        ValueError: as every Baseline; times are null or neither numbers nor dates; the window is not above zero or of
            another kind than the times.
    """

    def __init__(
        self,
        train: Dataset,
        user: str,
        item: str,
        catalog: Dataset | None = None,
        *,
        time: str,
        window: float | timedelta,
    ) -> None:
        above_zero("window", window.total_seconds() if isinstance(window, timedelta) else window)
        self.time = time
        self.window = window
        super().__init__(train, user, item, catalog, also=[time])

    def learn(self, events: pl.DataFrame) -> None:
        """Count the events of the window, and all."""
        times = events[self.time]
        dated = times.dtype in (pl.Date, pl.Datetime)
        if not dated and not times.dtype.is_numeric():
            raise ValueError(f"column {self.time!r} must hold numbers, dates or datetimes, got {times.dtype}.")
        if dated != isinstance(self.window, timedelta):
            raise ValueError(
                f"column {self.time!r} is {times.dtype}, window is {self.window!r}: give a timedelta for dates and datetimes, "
                "and a number in the column's own unit for numbers."
            )
        unknown = times.null_count() + (int(times.is_nan().sum()) if times.dtype.is_float() else 0)
        if unknown:
            raise ValueError(f"column {self.time!r} has no time in {unknown} rows; drop or fill them first.")
        recent = events.filter(pl.col(self.time).max() - pl.col(self.time) < self.window)
        every = self.counts_of(events[self.item])
        self.counts = self.counts_of(recent[self.item])
        self._ranked = self.counts + every / (every.max() + 1)

    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """Recent counts and a fraction for all events, for each user."""
        return self._ranked.repeat(len(checked_ids(users, "users")), 1)
