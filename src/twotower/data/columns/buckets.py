"""Bucketized: numbers cut into buckets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, holding, keep_tags, no_way_back
from twotower.data.columns.categorical import id_schema
from twotower.data.columns.numeric import finite_number, numbers
from twotower.data.columns.values import whole
from twotower.data.raw import RawTable
from twotower.schema import ColumnSchema

HELD = 2**18  # distinct values of which the counts are exact


@dataclass(frozen=True)
class Bucketized(Column):
    """A number cut into buckets, each with an id and so an embedding; 0 is null or NaN.

    Args:
        tags: what the column means; `Tags.CATEGORICAL` is added.
        buckets: how many, of about as many rows each (quantiles of the data it was fitted on; fewer where values repeat);
            of a column of more than 262,144 distinct values they are within (1 + log2(rows / 262,144)) / 262,144 of the rows);
            or the boundaries themselves, rising. A bucket holds its lower boundary and not its upper one.
        source: the raw column to read; by default the one of the same name.

    Raises:
        ValueError: fewer than two buckets, or boundaries that do not rise.
    """

    kind: ClassVar[str] = "bucketized"
    tags: Tagged = ()
    buckets: int | tuple[float, ...] = 10
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)
        if not isinstance(self.buckets, (list, tuple, np.ndarray)):
            object.__setattr__(self, "buckets", whole("buckets", self.buckets, least=2))
            return
        expected = "buckets must be a number of buckets, or finite rising boundaries"
        bounds = tuple(finite_number(b, expected) for b in self.buckets)
        if not bounds or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"{expected}; got {self.buckets}.")
        object.__setattr__(self, "buckets", bounds)

    def boundaries(self) -> tuple[float, ...]:
        """The boundaries, if they were declared."""
        return () if isinstance(self.buckets, int) else self.buckets

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or name,)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        bounds = self.boundaries()
        if isinstance(self.buckets, int):
            source = self.reads(name)[0]
            counts = (c for table in holding(tables, [source]) for c in table.counts(source))
            bounds = quantile_boundaries(source, counts, self.buckets)
        return _Cut(name, self, bounds)

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Cut(name, self, tuple(state["boundaries"]))


class _Cut(Learnt):
    def __init__(self, name: str, column: Bucketized, boundaries: tuple[float, ...]) -> None:
        super().__init__(name, lists=False)
        self.column = column
        self.boundaries = boundaries

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        source = self.column.reads(self.name)[0]
        x = numbers(raw[source], source, infinite=True)
        ids = 1 + np.searchsorted(np.array(self.boundaries), x, side="right")
        return [pl.Series(self.name, np.where(np.isnan(x), 0, ids).astype(np.int64))]

    def schema(self) -> list[ColumnSchema]:
        domain = {"min": 0, "max": len(self.boundaries) + 1, "name": self.name}
        return [id_schema(self.name, self.column.tags, False, {"domain": domain})]

    def inverse(self, codes: pl.Series) -> pl.Series:
        raise no_way_back(self.name, "cut into buckets")

    def state(self) -> Json:
        return {"boundaries": list(self.boundaries)}


def quantile_boundaries(name: str, counts: Iterable[pl.DataFrame], buckets: int) -> tuple[float, ...]:
    """Boundaries that cut counted values (value, count) into parts of about as many rows each; every bound is a value."""
    typed = (c.with_columns(pl.Series("value", numbers(c["value"], name))).drop_nans("value") for c in counts)
    held = thinned_counts(typed)
    if held is None or not len(held):
        raise ValueError(f"column {name!r} has no values to learn its buckets from.")
    values, below = held["value"].to_numpy(), np.cumsum(held["count"].to_numpy())
    # the first value before which at least k / n of the rows lie
    wanted = below[-1] * np.arange(1, buckets) / buckets
    first = np.searchsorted(below, wanted - 1e-9 * below[-1], side="left") + 1
    return tuple(float(v) for v in np.unique(values[first[first < len(values)]]))


def thinned_counts(parts: Iterable[pl.DataFrame]) -> pl.DataFrame | None:
    """Summed counts (value, count) by rising value, with neighbours put together where there are many; None for no table.

    Up to HELD distinct values are exact. Beyond, blocks of about HELD values are thinned to HELD runs of about as many rows,
    each under its largest value, and two blocks of one age are joined and thinned again, as the digits of a binary counter. A
    thinning shifts less than 1 / HELD of its rows past any value, so of R rows at most (1 + log2(R / HELD)) / HELD are
    counted as below a value too few, and none too many. No more than about HELD (3 + log2(R / HELD)) values are held.
    """
    ages: list[pl.DataFrame | None] = []
    held: list[pl.DataFrame] = []
    for part in parts:
        held.append(part)
        if sum(len(h) for h in held) <= HELD:
            continue
        held = [_summed(held)]
        if len(held[0]) > HELD:
            block, age = _thinned(held[0]), 0
            while age < len(ages) and (older := ages[age]) is not None:
                block, ages[age] = _thinned(_summed([older, block])), None
                age += 1
            ages[age:] = [block, *ages[age + 1 :]]
            held = []
    left = held + [block for block in ages if block is not None]
    return _summed(left) if left else None


def _summed(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).group_by("value").agg(pl.col("count").sum()).sort("value")


def _thinned(counts: pl.DataFrame) -> pl.DataFrame:
    """At most HELD runs of neighbours: those before whose rows the same number of HELD-ths of all rows lie."""
    run = (pl.col("count").cum_sum() - pl.col("count")) * HELD // pl.col("count").sum()
    return (
        counts.group_by(run.alias("run"), maintain_order=True)
        .agg(pl.col("value").last(), pl.col("count").sum())
        .drop("run")
    )
