"""Parts of an evaluation: queries of one kind, and positives of one kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from twotower.errors import unknown
from twotower.evaluation.queries import Queries

TAIL = 0.2  # the share of the training events that the tail's items hold together


@dataclass(frozen=True)
class SliceBy:
    """A column to slice by, with names for its values.

    Args:
        column: of the candidates (the positives with each value are then measured apart) or else of the evaluation data
            (the queries are).
        labels: names of values, such as {3: "Drama"} for codes.
        most: how many values at most, the most frequent first; numbers with more distinct values are cut into quarters.
    """

    column: str
    labels: Mapping[object, str] = field(default_factory=dict)
    most: int = 10

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"slices by {self.column!r}: most must be at least 1, got {self.most}.")


@dataclass(frozen=True, eq=False)
class Slices:
    """Named masks: (Q,) of queries, and (N,) of candidates."""

    queries: dict[str, Bool[Tensor, "Q"]]
    items: dict[str, Bool[Tensor, "N"]]


# which candidates, of their training events (N,) and the most events that an item of the tail has
ITEM_SLICES: dict[str, Callable[[Float[Tensor, "N"], float], Bool[Tensor, "N"]]] = {
    "cold_items": lambda counts, tail: counts == 0,
    "warm_items": lambda counts, tail: counts > 0,
    "tail_items": lambda counts, tail: (counts > 0) & (counts <= tail),
    "head_items": lambda counts, tail: counts > tail,
}
# which queries, of their users' training events (Q,)
QUERY_SLICES: dict[str, Callable[[Float[Tensor, "Q"]], Bool[Tensor, "Q"]]] = {
    "new_users": lambda events: events == 0,
    "known_users": lambda events: events > 0,
}


def make_slices(
    asked: Sequence[str | SliceBy],
    *,
    counts: Float[Tensor, "N"],
    tail: float,
    events: Float[Tensor, "Q"],
    candidates: pl.DataFrame,
    queries: Queries,
) -> Slices:
    """The masks of the slices that were asked for.

    Args:
        asked: "cold_items" (no training events), "warm_items", "tail_items" (the least popular, which together hold at most a
            fifth of the training events), "head_items" (the more popular), "new_users" (no training events),
            "known_users"; or columns.
        counts: (N,) training events of each candidate.
        tail: the most events that an item of the tail has.
        events: (Q,) training events of each query's user.
        candidates: their columns, one row each.
        queries: of which a column may be read.

    Raises:
        ValueError: no such slice or column, or a column that differs between rows of one query.
    """
    made = Slices({}, {})
    for entry in asked:
        by = SliceBy(entry) if isinstance(entry, str) else entry
        if by.column in ITEM_SLICES:
            made.items[by.column] = ITEM_SLICES[by.column](counts, tail)
        elif by.column in QUERY_SLICES:
            made.queries[by.column] = QUERY_SLICES[by.column](events)
        elif by.column in candidates.columns:
            made.items.update(_by_value(candidates[by.column], by))
        elif by.column in queries.column_names:
            made.queries.update(_by_value(queries.select([by.column]).to_polars()[by.column], by))
        else:
            known = [*ITEM_SLICES, *QUERY_SLICES, *candidates.columns, *queries.column_names]
            raise ValueError(unknown("slice", by.column, known))
    return made


def reading_train(asked: Sequence[str | SliceBy]) -> list[str]:
    """Those of the slices that mean nothing without training events."""
    names = [entry if isinstance(entry, str) else entry.column for entry in asked]
    return [name for name in names if name in ITEM_SLICES or name in QUERY_SLICES]


def tail_count(counts: Float[Tensor, "items"]) -> float:
    """The most events that an item of the tail has: all items with as few hold at most a fifth of the events."""
    values, number = counts.unique(return_counts=True)
    inside = (values * number).cumsum(0) <= TAIL * counts.sum()
    return float(values[inside].max()) if bool(inside.any()) else 0.0


def _by_value(column: pl.Series, by: SliceBy) -> dict[str, Bool[Tensor, "M"]]:
    """One mask for each value, or for each quarter of many ordered ones; a list is in the slice of each of its values.

    What is beyond the most frequent values is "others", and what has no value "none".
    """
    rows = pl.DataFrame({"row": pl.int_range(len(column), eager=True), "value": column})
    if isinstance(column.dtype, (pl.List, pl.Array)):
        rows = rows.explode("value")
    rows = rows.drop_nulls().unique(maintain_order=True)
    kind = rows.schema["value"]
    if kind.is_float():
        rows = rows.filter(pl.col("value").is_not_nan())
    if (kind.is_numeric() or kind.is_temporal()) and not by.labels and rows["value"].n_unique() > by.most:
        masks = _quarters(rows, by.column, len(column))
    else:
        often = rows["value"].value_counts(sort=True).sort("count", "value", descending=[True, False])["value"]
        masks = {}
        for value in often[: by.most]:
            at = rows.filter(pl.col("value") == value)["row"]
            masks[f"{by.column} = {by.labels.get(value, value)}"] = _mask(at, len(column))
        others = rows.filter(pl.col("value").is_in(often[by.most :].implode()))["row"]
        masks |= {f"{by.column}: others": _mask(others, len(column))} if len(others) else {}
    empty = ~_mask(rows["row"], len(column))
    return masks | ({f"{by.column}: none": empty} if bool(empty.any()) else {})


def _quarters(rows: pl.DataFrame, name: str, size: int) -> dict[str, Bool[Tensor, "M"]]:
    """Four groups of about the same size; equal values stay together."""
    ordered = rows["value"].sort()
    cuts = [ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75)]
    cuts = [cut for cut in dict.fromkeys(cuts) if cut < ordered[-1]]
    masks, low = {}, None
    for high in [*cuts, None]:
        inside = pl.lit(True) if low is None else pl.col("value") > low
        inside = inside if high is None else inside & (pl.col("value") <= high)
        label = f"{name} <= {high}" if low is None else f"{name} > {low}" + ("" if high is None else f" to {high}")
        masks[label] = _mask(rows.filter(inside)["row"], size)
        low = high
    return masks


def _mask(rows: pl.Series, size: int) -> Bool[Tensor, "M"]:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(rows.to_numpy().astype("int64"))] = True
    return mask
