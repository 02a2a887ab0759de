"""Ranking the whole catalogue for every query: which of the first k are positives."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.data.arrow import to_tensor
from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.encoder import Tower, embed
from twotower.errors import unknown
from twotower.metrics import RankingMetric
from twotower.schema import Schema
from twotower.tags import Tags

# scores of a tile of queries, given their numbers (T,): (T, candidates)
ScoreQueries = Callable[[Tensor], Tensor]
PLACE, COUNT = "__place", "__count"  # columns of its own, beside whatever names the data has
SCORES_IN_MEMORY = 2**26  # of one tile: 256 MB of float32


@dataclass(frozen=True, eq=False)
class RankingTask:
    """Q queries, each with its positives and seen items among N candidates.

    Args:
        queries: one row for each query, with the columns that tell queries apart.
        positives: rows of candidate positions, none twice.
        num_positives: (Q,) all positives of a query, those outside the catalogue too.
        seen: rows of candidate positions that are not to be recommended.
        num_candidates: N.
    """

    queries: Dataset
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
    _check_columns(data, [*columns, candidate], "the evaluation data")
    ids = pl.Series(candidate, candidates.numpy() if isinstance(candidates, Tensor) else candidates)
    places = ids.to_frame().with_columns(pl.int_range(len(ids), dtype=pl.Int64).alias(PLACE))
    for name in columns:
        missing = data.table.column(name).null_count
        if missing:
            raise ValueError(f"column {name!r}, which tells queries apart, is null in {missing} rows; fill it first.")
    frame = data.to_polars().select(*columns, candidate).cast({candidate: ids.dtype}).unique(maintain_order=True)
    if seen is not None:
        _check_columns(seen, [*keys, candidate], "the data of seen items")
        past = (
            seen.to_polars()
            .select(*keys, candidate)
            .unique()
            .cast({name: frame.schema[name] for name in [*keys, candidate]})
        )
        fresh = frame.join(past, on=[*keys, candidate], how="anti", maintain_order="left")
        _warn_if(len(frame) - len(fresh), "positives were seen before by the same query; they are left out.")
        frame = fresh
    frame = frame.join(places, on=candidate, how="left", maintain_order="left")
    _warn_if(frame[PLACE].null_count(), "positives are not in the catalogue; they count as missed.")
    if not len(frame):
        raise ValueError("there is no positive to evaluate: every row was seen before, or the data is empty.")
    grouped = frame.group_by(columns, maintain_order=True)
    queries = grouped.agg(pl.col(PLACE).drop_nulls(), pl.len().cast(pl.Int64).alias(COUNT))
    hidden = Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(len(queries) + 1, dtype=torch.int64))
    if seen is not None:
        by_query = past.join(places, on=candidate).group_by(keys).agg(PLACE)
        hidden = _ragged(queries.select(keys).join(by_query, on=keys, how="left", maintain_order="left")[PLACE])
    return RankingTask(
        queries=Dataset(queries.select(columns), data.schema.select_by_name(_in(data, query))),
        positives=_ragged(queries[PLACE]),
        num_positives=torch.from_numpy(queries[COUNT].to_numpy().copy()),
        seen=hidden,
        num_candidates=len(ids),
    )


def evaluate_ranking(score: ScoreQueries, task: RankingTask, metrics: Sequence[RankingMetric]) -> dict[str, Tensor]:
    """The metrics' values for every query, (Q,) each, by name.

    Args:
        score: gives the scores (T, N) of some queries with every candidate; higher is better.
        task: who is asked and what is right.
        metrics: at any cut-offs up to N.
    """
    k = max(metric.k for metric in metrics)
    if k > task.num_candidates:
        raise ValueError(
            f"a metric at k={k} needs at least {k} candidates; the catalogue has {task.num_candidates}. "
            f"Lower k, such as metrics=['recall_at_{task.num_candidates}']."
        )
    relevance = ranked_relevance(score, task, k)
    return {metric.name: metric(relevance, task.num_positives) for metric in metrics}


def evaluate_tower(
    tower: Tower,
    data: Dataset,
    candidate: str,
    ids: Int[Tensor, "N"] | pl.Series,
    vectors: Float[Tensor, "N D"],
    *,
    metrics: Sequence[RankingMetric],
    seen: Dataset | None = None,
    group: str | None = None,
    batch_size: int = 1024,
) -> dict[str, float]:
    """The means of the metrics when the query tower ranks the candidates' vectors for the queries of a dataset.

    Args:
        tower: the query tower; its columns, and `group` if given, tell queries apart.
        data: interactions.
        candidate: the column of the candidate ids.
        ids, vectors: the N candidates.
        metrics: at any cut-offs.
        seen: earlier interactions; whose they are is told by `group`, or else by the tower's USER_ID column.
        group: a column that tells users apart.
        batch_size: queries encoded at once.
    """
    if group is None:
        _warn_of_unknown_users(tower.schema, data)
    task = ranking_task(
        data,
        query=list(dict.fromkeys([*([group] if group else []), *tower.schema.column_names])),
        candidate=candidate,
        candidates=ids,
        seen=seen,
        seen_by=None if seen is None else [group or _user_id(tower.schema)],
    )
    queries = embed(tower, task.queries, batch_size).to(vectors.device)
    values = evaluate_ranking(lambda rows: queries[rows.to(queries.device)] @ vectors.T, task, metrics)
    return {name: float(value.mean()) for name, value in values.items()}


def _warn_of_unknown_users(query: Schema, data: Dataset) -> None:
    """Users outside the vocabulary share an id, and would be one query with the positives of all."""
    for column in query.select_by_tag(Tags.USER_ID):
        unknown_id = column.properties.get("unknown_id")
        if unknown_id is not None and column.name in data.column_names:
            rows = data.to_polars()[column.name].is_between(1, unknown_id).sum()
            _warn_if(
                int(rows),
                f"rows hold users that the Preprocessor did not know; they share the ids 1 to {unknown_id} of {column.name!r} and "
                "may be ranked as one. Keep the raw id in another column and give it as group.",
            )


def _user_id(query: Schema) -> str:
    ids = query.select_by_tag(Tags.USER_ID).column_names
    if len(ids) != 1:
        raise ValueError(
            f"to leave out seen items, evaluate must know whose they are: the query tower has {ids} tagged 'user_id'. "
            "Give group='<the column that names the user>'."
        )
    return ids[0]


def ranked_relevance(score: ScoreQueries, task: RankingTask, k: int) -> Int[Tensor, "Q k"]:
    """1 where the query's item at that rank is a positive; among equal scores positives come last (ties lose)."""
    tile = max(1, SCORES_IN_MEMORY // task.num_candidates)
    parts = []
    for rows in torch.arange(len(task.queries)).split(tile):
        scores = score(rows)
        seen, positives = task.seen.take(rows), task.positives.take(rows)
        scores[seen.row_of_value().to(scores.device), seen.values.to(scores.device)] = -torch.inf
        parts.append(_tile_relevance(scores, positives, k).cpu())
    return torch.cat(parts)


def _tile_relevance(scores: Float[Tensor, "T N"], positives: Ragged, k: int) -> Int[Tensor, "T k"]:
    is_positive = torch.zeros(scores.shape, dtype=torch.int8, device=scores.device)
    is_positive[positives.row_of_value().to(scores.device), positives.values.to(scores.device)] = 1
    best, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if bool(best[:, 0].isnan().any()):
        raise ValueError("the model scores candidates with nan; lower the learning rate or look for nan in its inputs.")
    found = is_positive.gather(1, places)
    # topk orders equal scores as it likes: where a positive has the score of its neighbour, put the row in order
    mixed = (best[:, 1:] == best[:, :-1]) & (found[:, 1:] != found[:, :-1])
    cut = (best[:, k - 1 : k] == best[:, k:]).any(1) & ((best == best[:, k - 1 : k]) & (found == 1)).any(1)
    relevance = found[:, :k].long()
    for row in torch.nonzero(mixed.any(1) | cut).flatten().tolist():
        relevance[row] = _ties_lose(scores[row], is_positive[row], k).long()
    return relevance


def _ties_lose(scores: Float[Tensor, "N"], is_positive: Int[Tensor, "N"], k: int) -> Int[Tensor, "k"]:
    negatives_first = torch.argsort(is_positive, stable=True)
    order = torch.argsort(scores[negatives_first], descending=True, stable=True)
    return is_positive[negatives_first[order[:k]]]


def in_batch_relevance(
    query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"], ids: Int[Tensor, "B"], k: int
) -> Int[Tensor, "B k"]:
    """(B, k) 1 at the rank of the row's own candidate among the batch's other ids; a sampled view, not the catalogue."""
    scores = query @ candidate.T
    own = scores.diagonal()[:, None]
    others = ids[:, None] != ids[None, :]
    rank = ((scores >= own) & others).sum(1)
    return (torch.arange(k, device=ids.device)[None, :] == rank[:, None]).to(torch.int64)


def _in(data: Dataset, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in data.schema]


def _check_columns(data: Dataset, names: Sequence[str], what: str) -> None:
    for name in names:
        if name not in data.column_names:
            raise ValueError(f"{what} lacks a column. {unknown('column', name, data.column_names)}")


def _warn_if(count: int, what: str) -> None:
    if count:
        warnings.warn(f"{count} {what}", stacklevel=4)


def _ragged(lists: pl.Series) -> Ragged:
    rows = to_tensor(lists.fill_null([]).cast(pl.List(pl.Int64)).to_arrow(), lists.name)
    assert isinstance(rows, Ragged)
    return rows
