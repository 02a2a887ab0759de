"""How well a query tower ranks vectors of candidates, as a model's `evaluate` and a TopKEncoder's ask it."""

from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.data.dataset import Dataset
from twotower.encoder import Tower, embed
from twotower.evaluation.ranking import ScoreQueries, rank, score_vectors
from twotower.evaluation.task import RankingTask, ranking_task, warn_of_unknown
from twotower.metrics import RankingMetric
from twotower.schema import Schema
from twotower.tags import Tags


def evaluate_ranking(score: ScoreQueries, task: RankingTask, metrics: Sequence[RankingMetric]) -> dict[str, Tensor]:
    """The metrics' values for every query, (Q,) each, by name.

    Args:
        score: gives the scores (T, N) of some queries with every candidate; higher is better.
        task: who is asked and what is right.
        metrics: at any cut-offs up to N.
    """
    ranked = rank(score, task, max(metric.k for metric in metrics))
    return {metric.name: metric(ranked.hits, task.num_positives) for metric in metrics}


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
        warn_of_unknown(
            data,
            tower.schema.select_by_tag(Tags.USER_ID).column_names,
            "may be ranked as one. Keep the raw id in another column and give it as group.",
        )
    task = ranking_task(
        data,
        query=list(dict.fromkeys([*([group] if group else []), *tower.schema.column_names])),
        candidate=candidate,
        candidates=ids,
        seen=seen,
        seen_by=None if seen is None else [group or _user_id(tower.schema)],
    )
    score = score_vectors(embed(tower, task.queries, batch_size), vectors)
    values = evaluate_ranking(score, task, metrics)
    return {name: float(value.mean()) for name, value in values.items()}


def _user_id(query: Schema) -> str:
    ids = query.select_by_tag(Tags.USER_ID).column_names
    if len(ids) != 1:
        raise ValueError(
            f"to leave out seen items, evaluate must know whose they are: the query tower has {ids} tagged 'user_id'. "
            "Give group='<the column that names the user>'."
        )
    return ids[0]


def in_batch_relevance(
    query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"], ids: Int[Tensor, "B"], k: int
) -> Int[Tensor, "B k"]:
    """(B, k) 1 at the rank of the row's own candidate among the batch's other ids; a sampled view, not the catalogue."""
    scores = query @ candidate.T
    own = scores.diagonal()[:, None]
    others = ids[:, None] != ids[None, :]
    rank = ((scores >= own) & others).sum(1)
    return (torch.arange(k, device=ids.device)[None, :] == rank[:, None]).to(torch.int64)
