"""Parts of an evaluation: queries of one kind, and positives of one kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from twotower.errors import unknown

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


ITEM_SLICES: dict[str, Callable[[Float[Tensor, "N"]], Bool[Tensor, "N"]]] = {
    "cold_items": lambda counts: counts == 0,
    "warm_items": lambda counts: counts > 0,
    "tail_items": lambda counts: _in_tail(counts) & (counts > 0),
    "head_items": lambda counts: ~_in_tail(counts),
}
QUERY_SLICES: dict[str, Callable[[Float[Tensor, "Q"]], Bool[Tensor, "Q"]]] = {
    "new_users": lambda events: events == 0,
    "known_users": lambda events: events > 0,
}


def make_slices(
    asked: list[str | SliceBy],
    *,
    counts: Float[Tensor, "N"],
    events: Float[Tensor, "Q"],
    candidates: pl.DataFrame,
    queries: pl.DataFrame,
) -> Slices:
    """The masks of the slices that were asked for.

    Args:
        asked: "cold_items" (no training events), "warm_items", "tail_items" (the least popular, which together hold a fifth
            of the training events), "head_items" (the others), "new_users" (no training events), "known_users"; or columns.
        counts: (N,) training events of each candidate.
        events: (Q,) training events of each query's user.
        candidates: their columns, one row each.
        queries: the columns of each query's first row.

    Raises:
        ValueError: no such slice or column.
    """
    made = Slices({}, {})
    for by in asked:
        name = by if isinstance(by, str) else by.column
        if name in ITEM_SLICES:
            made.items[name] = ITEM_SLICES[name](counts)
        elif name in QUERY_SLICES:
            made.queries[name] = QUERY_SLICES[name](events)
        elif name in candidates.columns:
            made.items.update(_by_value(candidates[name], by if isinstance(by, SliceBy) else SliceBy(by)))
        elif name in queries.columns:
            made.queries.update(_by_value(queries[name], by if isinstance(by, SliceBy) else SliceBy(by)))
        else:
            known = [*ITEM_SLICES, *QUERY_SLICES, *candidates.columns, *queries.columns]
            raise ValueError(unknown("slice", name, known))
    return made


def _in_tail(counts: Float[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """The rarest candidates whose events together are at most a fifth of all."""
    order = counts.argsort(stable=True)
    tail = torch.zeros(len(counts), dtype=torch.bool)
    tail[order] = counts[order].double().cumsum(0) <= TAIL * counts.sum()
    return tail


def _by_value(column: pl.Series, by: SliceBy) -> dict[str, Bool[Tensor, "M"]]:
    """One mask for each value, or for each quarter of many numbers; a list is in the slice of each of its values."""
    rows = pl.DataFrame({"row": pl.int_range(len(column), eager=True), "value": column})
    if isinstance(column.dtype, (pl.List, pl.Array)):
        rows = rows.explode("value")
    rows = rows.drop_nulls().unique(maintain_order=True)
    if rows.schema["value"].is_numeric() and not by.labels and rows["value"].n_unique() > by.most:
        return _quarters(rows, by.column, len(column))
    often = rows["value"].value_counts(sort=True).sort("count", "value", descending=[True, False])
    masks = {}
    for value in often["value"][: by.most]:
        at = rows.filter(pl.col("value") == value)["row"]
        masks[f"{by.column} = {by.labels.get(value, value)}"] = _mask(at, len(column))
    return masks


def _quarters(rows: pl.DataFrame, name: str, size: int) -> dict[str, Bool[Tensor, "M"]]:
    """Four groups of about the same size; equal numbers stay together."""
    cuts = sorted({float(rows["value"].quantile(q, "nearest") or 0.0) for q in (0.25, 0.5, 0.75)})
    masks, low = {}, None
    for high in [*cuts, None]:
        inside = pl.lit(True) if low is None else pl.col("value") > low
        inside = inside if high is None else inside & (pl.col("value") <= high)
        label = f"{name} <= {high:g}" if low is None else f"{name} > {low:g}" + (f" to {high:g}" if high else "")
        masks[label] = _mask(rows.filter(inside)["row"], size)
        low = high
    return {label: mask for label, mask in masks.items() if bool(mask.any())}


def _mask(rows: pl.Series, size: int) -> Bool[Tensor, "M"]:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(rows.to_numpy().astype("int64"))] = True
    return mask
