"""Interactions gathered into queries: who is asked, what is right, and what was seen before."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from twotower.data.arrow import to_tensor
from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.errors import unknown

PLACE, COUNT, ROW = "__place", "__count", "__row"  # columns of its own, beside whatever names the data has


@dataclass(frozen=True, eq=False)
class RankingTask:
    """Q queries, each with its positives and seen items among N candidates.

    Args:
        queries: one row for each query, with the columns that tell queries apart.
        first: (Q,) the row of the data that each query comes from first.
        positives: rows of candidate positions, none twice.
        num_positives: (Q,) all positives of a query, those outside the catalogue too.
        seen: rows of candidate positions that are not to be recommended.
        num_candidates: N.
    """

    queries: Dataset
    first: Int[Tensor, "Q"]
    positives: Ragged
    num_positives: Int[Tensor, "Q"]
    seen: Ragged
    num_candidates: int


def ranking_task(
    data: Dataset,
    *,
    query: Sequence[str],
    candidate: str,
    candidates: Int[Tensor, "N"] | pl.Series,
    seen: Dataset | None = None,
    seen_by: Sequence[str] | None = None,
) -> RankingTask:
    """Gather interactions into queries.

    Rows that agree in all `query` columns are one query, and their distinct candidates its positives. Warns about
    positives outside the catalogue, which count as missed, and about positives that were seen before, which cannot be
    recommended and are left out.

    Args:
        data: interactions.
        query: the columns that tell queries apart.
        candidate: the candidate id column.
        candidates: (N,) the distinct ids of the catalogue; a Series where they are strings.
        seen: earlier interactions; their candidates are taken out of the ranking of the same query.
        seen_by: the columns by which `seen` rows belong to a query; by default all `query` columns.

    Raises:
        ValueError: a column is missing, or there are no positives.
    """
    keys = list(seen_by or query)
    columns = list(dict.fromkeys([*query, *keys]))
    check_columns(data, [*columns, candidate], "the evaluation data")
    ids = pl.Series(candidate, candidates.numpy() if isinstance(candidates, Tensor) else candidates)
    places = ids.to_frame().with_columns(pl.int_range(len(ids), dtype=pl.Int64).alias(PLACE))
    for name in columns:
        missing = data.table.column(name).null_count
        if missing:
            raise ValueError(f"column {name!r}, which tells queries apart, is null in {missing} rows; fill it first.")
    check_ids(data, candidate, "the evaluation data")
    frame = (
        data.to_polars().select(*columns, same_kind(data, candidate, ids, "the evaluation data")).with_row_index(ROW)
    )
    frame = frame.unique([*columns, candidate], keep="first", maintain_order=True)
    if seen is not None:
        check_columns(seen, [*keys, candidate], "the data of seen items")
        past = (
            seen.to_polars()
            .select(same_kind(seen, name, frame[name], "the data of seen items") for name in [*keys, candidate])
            .unique()
        )
        fresh = frame.join(past, on=[*keys, candidate], how="anti", maintain_order="left")
        warn_if(len(frame) - len(fresh), "positives were seen before by the same query; they are left out.")
        frame = fresh
    frame = frame.join(places, on=candidate, how="left", maintain_order="left")
    warn_if(frame[PLACE].null_count(), "positives are not in the catalogue; they count as missed.")
    if not len(frame):
        raise ValueError("there is no positive to evaluate: every row was seen before, or the data is empty.")
    grouped = frame.group_by(columns, maintain_order=True)
    queries = grouped.agg(pl.col(PLACE).drop_nulls(), pl.len().cast(pl.Int64).alias(COUNT), pl.col(ROW).first())
    hidden = Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(len(queries) + 1, dtype=torch.int64))
    if seen is not None:
        by_query = past.join(places, on=candidate).group_by(keys).agg(PLACE)
        hidden = _ragged(queries.select(keys).join(by_query, on=keys, how="left", maintain_order="left")[PLACE])
    return RankingTask(
        queries=Dataset(queries.select(columns), data.schema.select_by_name([n for n in query if n in data.schema])),
        first=torch.from_numpy(queries[ROW].to_numpy().astype("int64")),
        positives=_ragged(queries[PLACE]),
        num_positives=torch.from_numpy(queries[COUNT].to_numpy().copy()),
        seen=hidden,
        num_candidates=len(ids),
    )


def same_kind(data: Dataset, name: str, like: pl.Series, what: str) -> pl.Expr:
    """A column as the type of another one; ValueError where values could not be equal: numbers and texts, or fractions as ids."""
    own, kind = data.to_polars().schema[name], like.dtype
    texts = (pl.String, pl.Categorical, pl.Enum)
    if own.is_integer() and kind.is_integer():
        return pl.col(name).cast(kind, strict=False)  # what does not fit is no id there
    if own == kind or (own in texts and kind in texts):
        return pl.col(name).cast(kind)
    if own.is_nested() and kind.is_nested():
        return pl.col(name).cast(kind)
    raise ValueError(f"column {name!r} is {own} in {what}, and {kind} elsewhere in this evaluation; cast one of them.")


def check_ids(data: Dataset, name: str, what: str) -> None:
    """ValueError for missing ids."""
    missing = data.table.column(name).null_count
    if missing:
        raise ValueError(
            f"column {name!r} of {what} is null in {missing} of {len(data)} rows; drop them or fill them first."
        )


def warn_of_unknown(data: Dataset, names: Sequence[str], remedy: str) -> None:
    """Values outside the vocabulary share an id: users would be one query, items one positive."""
    for name in names:
        unknown_id = data.schema[name].properties.get("unknown_id") if name in data.schema else None
        if unknown_id is not None:
            rows = int(data.to_polars()[name].is_between(1, unknown_id).sum())
            warn_if(
                rows,
                f"rows hold values of {name!r} that the Preprocessor did not know; they share the ids 1 to "
                f"{unknown_id} and {remedy}",
            )


def check_columns(data: Dataset, names: Sequence[str], what: str) -> None:
    """ValueError for a column that the data lacks."""
    for name in names:
        if name not in data.column_names:
            raise ValueError(f"{what} lacks a column. {unknown('column', name, data.column_names)}")


def warn_if(count: int, what: str) -> None:
    """Warn of a number of rows, if there are any."""
    if count:
        warnings.warn(f"{count} {what}", stacklevel=4)


def _ragged(lists: pl.Series) -> Ragged:
    rows = to_tensor(lists.fill_null([]).cast(pl.List(pl.Int64)).to_arrow(), lists.name)
    assert isinstance(rows, Ragged)
    return rows
