"""Ranking metrics: functions of ranked relevance, and the records that name them.

`relevance` (Q, K) is 1 where the item at that rank, best first, is a positive of the query; `positives` (Q,) counts
all positives of the query, found or not. Every function gives one value for each query, (Q,); a query without
positives gives 0. NDCG is binary. Formulas follow Manning, Raghavan and Schuetze, "Introduction to Information
Retrieval", chapter 8.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from twotower.errors import choose

Relevance = Num[Tensor, "Q K"]
Positives = Num[Tensor, "Q"]
PerQuery = Float[Tensor, "Q"]


def recall_at(relevance: Relevance, positives: Positives, k: int, capped: bool = True) -> PerQuery:
    """Hits in the first k over min(k, positives), or over all positives when not `capped`.

    Example:
        >>> recall_at(torch.tensor([[0, 1, 0]]), torch.tensor([4]), k=3)
        tensor([0.3333])
    """
    most = positives.clamp(max=k) if capped else positives
    return _first(relevance, k).sum(1) / most.clamp(min=1)


def precision_at(relevance: Relevance, positives: Positives, k: int) -> PerQuery:
    """Hits in the first k over k."""
    return _first(relevance, k).sum(1) / k


def hit_rate_at(relevance: Relevance, positives: Positives, k: int) -> PerQuery:
    """1 if any of the first k is a hit."""
    return _first(relevance, k).amax(1)


def mrr_at(relevance: Relevance, positives: Positives, k: int) -> PerQuery:
    """1 / rank of the first hit, 0 if it is not among the first k."""
    return (_first(relevance, k) / _ranks(relevance, k)).amax(1)


def average_precision_at(relevance: Relevance, positives: Positives, k: int) -> PerQuery:
    """Precision at each hit, summed, over min(k, positives)."""
    hits = _first(relevance, k)
    return (hits * hits.cumsum(1) / _ranks(relevance, k)).sum(1) / positives.clamp(min=1, max=k)


def ndcg_at(relevance: Relevance, positives: Positives, k: int) -> PerQuery:
    """Sum of 1 / log2(rank + 1) over the hits, divided by its value for min(k, positives) hits at the top."""
    gain = 1 / torch.log2(_ranks(relevance, k) + 1)
    ideal = torch.cat([gain.new_zeros(1), gain.cumsum(0)])[positives.clamp(max=k).long()]
    return (_first(relevance, k) * gain).sum(1) / torch.where(ideal > 0, ideal, 1.0)


def novelty_at(ids: Int[Tensor, "Q K"], probabilities: Float[Tensor, "items"], k: int) -> Float[Tensor, ""]:
    """Mean of -log p over the first k recommended ids of every query (Merlin's NoveltyAt)."""
    return -probabilities[ids[:, :k]].log().mean()


def popularity_bias_at(ids: Int[Tensor, "Q K"], probabilities: Float[Tensor, "items"], k: int) -> Float[Tensor, ""]:
    """Mean of p over the first k recommended ids of every query (Merlin's PopularityBiasAt)."""
    return probabilities[ids[:, :k]].mean()


def coverage_at(ids: Int[Tensor, "Q K"], num_items: int, k: int) -> float:
    """Share of the items that stand among the first k of any query (Merlin's ItemCoverageAt)."""
    return len(ids[:, :k].unique()) / num_items


def rank_labels(labels: Num[Tensor, "Q N"], scores: Num[Tensor, "Q N"]) -> tuple[Num[Tensor, "Q N"], Num[Tensor, "Q"]]:
    """Sort 0/1 labels by falling score; a positive stands behind the negatives of its score (ties lose).

    Returns:
        (relevance, positives) as the metrics take them.

    Example:
        >>> rank_labels(torch.tensor([[1, 0, 0]]), torch.tensor([[5.0, 5.0, 1.0]]))
        (tensor([[0, 1, 0]]), tensor([1]))
    """
    negatives_first = torch.argsort(labels, dim=1, stable=True)
    order = torch.argsort(scores.gather(1, negatives_first), dim=1, descending=True, stable=True)
    return labels.gather(1, negatives_first.gather(1, order)), labels.sum(1)


@dataclass(frozen=True)
class RankingMetric(ABC):
    """A metric at a cut-off k."""

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"a cut-off k must be at least 1, got {self.k}.")

    @property
    @abstractmethod
    def name(self) -> str:
        """Such as recall_at_10."""

    @abstractmethod
    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        """One value for each query."""


@dataclass(frozen=True)
class RecallAt(RankingMetric):
    """Hits in the first k over min(k, positives), or over all positives with `capped=False`."""

    capped: bool = True

    @property
    def name(self) -> str:
        return f"recall_at_{self.k}" if self.capped else f"full_recall_at_{self.k}"

    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        return recall_at(relevance, positives, self.k, self.capped)


@dataclass(frozen=True)
class PrecisionAt(RankingMetric):
    """Hits in the first k, over k."""

    @property
    def name(self) -> str:
        return f"precision_at_{self.k}"

    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        return precision_at(relevance, positives, self.k)


@dataclass(frozen=True)
class HitRateAt(RankingMetric):
    """1 if any of the first k is a hit, else 0."""

    @property
    def name(self) -> str:
        return f"hit_rate_at_{self.k}"

    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        return hit_rate_at(relevance, positives, self.k)


@dataclass(frozen=True)
class MRRAt(RankingMetric):
    """1 / rank of the first hit within k, else 0."""

    @property
    def name(self) -> str:
        return f"mrr_at_{self.k}"

    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        return mrr_at(relevance, positives, self.k)


@dataclass(frozen=True)
class AvgPrecisionAt(RankingMetric):
    """Precision at each hit within k, summed, over min(k, positives); named map_at_k."""

    @property
    def name(self) -> str:
        return f"map_at_{self.k}"

    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        return average_precision_at(relevance, positives, self.k)


@dataclass(frozen=True)
class NDCGAt(RankingMetric):
    """Discounted hits within k over the best possible; binary relevance."""

    @property
    def name(self) -> str:
        return f"ndcg_at_{self.k}"

    def __call__(self, relevance: Relevance, positives: Positives) -> PerQuery:
        return ndcg_at(relevance, positives, self.k)


Metrics = str | RankingMetric | Sequence[str | RankingMetric]

METRICS: dict[str, Callable[[int], RankingMetric]] = {
    "recall_at": RecallAt,
    "full_recall_at": partial(RecallAt, capped=False),
    "precision_at": PrecisionAt,
    "hit_rate_at": HitRateAt,
    "mrr_at": MRRAt,
    "mrr": MRRAt,
    "map_at": AvgPrecisionAt,
    "map": AvgPrecisionAt,
    "ndcg_at": NDCGAt,
    "ndcg": NDCGAt,
}
DEFAULT_METRICS: tuple[RankingMetric, ...] = (RecallAt(), MRRAt(), NDCGAt(), AvgPrecisionAt(), PrecisionAt())


def resolve_metrics(metrics: Metrics | None) -> tuple[RankingMetric, ...]:
    """Records from names such as "ndcg_at_20" (without a number: at 10), records, or the default five."""
    if metrics is None:
        return DEFAULT_METRICS
    given = [metrics] if isinstance(metrics, (str, RankingMetric)) else list(metrics)
    if not given:
        raise ValueError(f"give at least one metric, such as 'recall_at_10'; names are {sorted(METRICS)}.")
    return tuple(_by_name(metric) if isinstance(metric, str) else metric for metric in given)


def _by_name(name: str) -> RankingMetric:
    number = re.search(r"_(\d+)$", name)
    kind = choose("metric", name if number is None else name[: number.start()], METRICS)
    return kind(10 if number is None else int(number.group(1)))


def _first(relevance: Relevance, k: int) -> Float[Tensor, "Q k"]:
    if k > relevance.shape[1]:
        raise ValueError(f"a metric at k={k} needs {k} ranked items, but only {relevance.shape[1]} are there. Lower k.")
    return relevance[:, :k].to(torch.float32)


def _ranks(relevance: Relevance, k: int) -> Float[Tensor, "k"]:
    return torch.arange(1, k + 1, device=relevance.device, dtype=torch.float32)
