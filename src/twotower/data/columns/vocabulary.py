"""Vocabulary: distinct values and their ids."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
import polars as pl

from twotower.data.columns.values import FEW, buckets_of, hash_of

MISSING = 0  # the id of a null, and of nothing else
UNKNOWN = 1  # the first id of values that the vocabulary does not hold
SEARCHED = 16  # a column this many times shorter than the vocabulary is looked up by binary search
HELD = 1_000_000  # counts that may wait to be summed


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The values of one or more columns by id.

    Ids are 0 for null, 1 to `oov_buckets` for values that are not here, by their hash, and from then on the values in their
    order.

    Args:
        name: of the column that owns it, which is the name of its domain and of its embedding table.
        values: (n,) distinct Int64 or String values.
        oov_buckets: how many ids the unknown values share.
    """

    name: str
    values: pl.Series
    oov_buckets: int = 1

    @property
    def first(self) -> int:
        """The id of the first value."""
        return UNKNOWN + self.oov_buckets

    @property
    def largest_id(self) -> int:
        """The largest id that `encode` can give."""
        return self.first + len(self.values) - 1

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that another list of values, or another order of them, does not have."""
        text = f"{self.oov_buckets}\0{self.values.dtype}\0" + "\0".join(map(str, self.values))
        return sha256(text.encode()).hexdigest()[:16]

    def encode(self, values: pl.Series) -> pl.Series:
        """(n,) Int64 ids of flat values of the vocabulary's type."""
        if len(values) <= FEW:
            return self._few(values)
        searched = len(values) * SEARCHED < len(self.values)
        known = self._searched(values) if searched else self._replaced(values)
        if self.oov_buckets == 1:
            unknown = pl.Series([UNKNOWN], dtype=pl.Int64)
        else:
            unknown = UNKNOWN + buckets_of(values.set(known.is_not_null(), None), self.oov_buckets)
        ids = pl.DataFrame({"value": values, "known": known}).select(
            pl.when(pl.col("value").is_null())
            .then(MISSING)
            .when(pl.col("known").is_null())
            .then(unknown)
            .otherwise(pl.col("known"))
            .cast(pl.Int64)
            .alias("id")
        )
        return ids["id"]

    def decode(self, ids: pl.Series) -> pl.Series:
        """The values of the ids; those of null and of unknown values give null.

        Raises:
            ValueError: an id that `encode` cannot give, or no whole number.
        """
        if not (ids.dtype.is_integer() or ids.dtype == pl.Null):
            raise ValueError(f"ids of {self.name!r} must be whole numbers, got {ids.dtype}.")
        if len(ids) and (ids.min() < 0 or ids.max() > self.largest_id):  # type: ignore[operator]
            raise ValueError(
                f"ids of {self.name!r} go from 0 to {self.largest_id}, got {ids.min()!r} to {ids.max()!r}."
            )
        place = ids.cast(pl.Int64) - self.first
        return self.values.gather(pl.select(pl.when(place >= 0).then(place)).to_series())

    def _few(self, values: pl.Series) -> pl.Series:
        """`encode` without a query to Polars, each of which takes longer than looking up a few values."""
        ordered, ids = self._sorted
        keys = ordered.to_numpy() if ordered.dtype == pl.Int64 else ordered
        made = []
        for value in values.to_list():
            place = 0 if value is None else bisect_left(keys, value)  # type: ignore[type-var]
            if value is None:
                made.append(MISSING)
            elif place < len(keys) and keys[place] == value:
                made.append(ids[place])
            else:
                made.append(UNKNOWN + (hash_of(str(value)) % self.oov_buckets if self.oov_buckets > 1 else 0))
        return pl.Series("id", made, dtype=pl.Int64)

    def _replaced(self, values: pl.Series) -> pl.Series:
        ids = pl.Series(np.arange(self.first, self.first + len(self.values)))
        return values.replace_strict(self.values, ids, default=None, return_dtype=pl.Int64)

    def _searched(self, values: pl.Series) -> pl.Series:
        ordered, ids = self._sorted
        place = ordered.search_sorted(values.fill_null(ordered[0])).clip(0, len(ordered) - 1)
        found = ordered.gather(place).eq_missing(values)
        return ids.gather(place).set(~found, None)

    @cached_property
    def _sorted(self) -> tuple[pl.Series, pl.Series]:
        order = self.values.arg_sort()
        return self.values.gather(order), order.cast(pl.Int64) + self.first


def grown(
    held: Vocabulary | None,
    name: str,
    counts: Iterable[pl.DataFrame],
    min_count: int,
    max_size: int | None,
    oov_buckets: int,
) -> Vocabulary:
    """The vocabulary with the new values of some tables after those that it holds, whose ids stay.

    Args:
        held: what is known already; None for nothing.
        name, oov_buckets: of a vocabulary that begins.
        counts: tables (value, count); a value may stand in several.
        min_count: new values that occur fewer times in these tables stay out.
        max_size: the most values that the vocabulary may have in all.

    Raises:
        ValueError: a vocabulary that begins without any value, or new values of another type.
    """
    summed = _merged(counts)
    if held is None:
        if summed is None:
            raise ValueError(f"column {name!r} holds nothing but nulls: there is no vocabulary to learn. Leave it out.")
        return Vocabulary(name, _ranked(summed, min_count, max_size), oov_buckets)
    if summed is None:
        return held
    if summed["value"].dtype != held.values.dtype:
        raise ValueError(
            f"the vocabulary of {name!r} was learnt from {held.values.dtype} values, but the new tables hold "
            f"{summed['value'].dtype}."
        )
    new = summed.filter(~pl.col("value").is_in(held.values.implode()))
    room = None if max_size is None else max(max_size - len(held.values), 0)
    return Vocabulary(held.name, pl.concat([held.values, _ranked(new, min_count, room)]), held.oov_buckets)


def _merged(counts: Iterable[pl.DataFrame]) -> pl.DataFrame | None:
    """One row for each distinct value of several tables (value, count), with its summed count; None for no table."""
    held: list[pl.DataFrame] = []
    rows = distinct = 0
    for part in counts:
        held.append(part)
        rows += len(part)
        if rows > 4 * distinct + HELD:  # keeps the memory within a multiple of what is distinct
            held = [_summed(held)]
            rows = distinct = len(held[0])
    return _summed(held) if held else None


def _summed(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).group_by("value").agg(pl.col("count").sum())


def _ranked(counts: pl.DataFrame, min_count: int, max_size: int | None) -> pl.Series:
    """The values seen often enough, frequent first, ties by value; the first `max_size` of them."""
    kept = counts.filter(pl.col("count") >= min_count).sort(["count", "value"], descending=[True, False])
    return kept["value"].alias("") if max_size is None else kept["value"].head(max_size).alias("")
