"""Health: one measurement of a model in training."""

from dataclasses import dataclass, fields
from typing import Any

SKIPPED = (
    "step",
    "epoch_end",
    "trained",
    "constant_input",
    "rows",
    "distinct_candidates",
    "catalog",
    "candidates",
    "queries",
)


class HealthWarning(UserWarning):
    """What `fit` found wrong with the model in training: the symptom with its number, the likely cause, what to do.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=HealthWarning)  # or "error", to stop training at the first
    """


@dataclass(frozen=True)
class TowerHealth:
    """One tower's vectors of up to 1,024 distinct queries or candidates of a batch, in evaluation mode.

    Args:
        effective_rank: in how many directions they spread, as a share of D; 0 when all are equal.
        spread: their variance over the mean square of their lengths: 1 around 0, 0 when all are equal.
        mean_cosine: of two different ids.
        dead_dimensions: the share of the D numbers that are the same in all vectors.
        norm: the mean length.
        norm_spread: the lengths' standard deviation over their mean; 0 for normalised towers.
        gradient_norm: of all the tower's parameters, before clipping; tables shared by both towers count in both. nan
            when nothing in the tower is trained, and before the first measured step.
        trained: whether any parameter is.
        constant_input: whether all of the tower's columns are the same in all of the data.
    """

    effective_rank: float
    spread: float
    mean_cosine: float
    dead_dimensions: float
    norm: float
    norm_spread: float
    gradient_norm: float
    trained: bool
    constant_input: bool


@dataclass(frozen=True)
class ListHealth:
    """The 10 best of up to 10,000 candidates (a uniform sample of the catalogue) for up to 256 queries of a batch.

    Args:
        tail_share: the share of tail items among all places. The head is the most popular items that together have 80 %
            of the training interactions, the tail all others.
        tail_interactions: the tail's share of the interactions of the ranked candidates, to compare with.
        distinct_items: different items in the lists, of the most that could stand there.
        overlap: the mean share of a list that stands in another query's list too.
        candidates, queries: how many were ranked, and for how many.
    """

    tail_share: float
    tail_interactions: float
    distinct_items: float
    overlap: float
    candidates: int
    queries: int


@dataclass(frozen=True)
class Health:
    """One measurement; `values()` is what `fit` logs.

    Args:
        step: optimiser steps so far.
        epoch_end: whether an epoch ended here.
        query, candidate: the towers.
        logit_spread: the standard deviation, over candidates, of a query's logits <q, c> / T; nan without a temperature.
        personal_share: the share of that variance which depends on who asks; the rest is one ranking for everybody.
        norm_popularity: rank correlation of candidates' lengths with how often they occur in the training data; nan when
            all have one length.
        temperature: T of the first contrastive output, nan without one.
        rows: of the batch.
        duplicate_queries, duplicate_candidates: the share of the batch's rows whose query or candidate stands in another
            row too; of queries nan when no column tells them apart.
        distinct_candidates: in the batch.
        catalog: how many candidates there are.
        lists: what queries would get; None between the first measurement and the end of an epoch.
    """

    step: int
    epoch_end: bool
    query: TowerHealth
    candidate: TowerHealth
    logit_spread: float
    personal_share: float
    norm_popularity: float
    temperature: float
    rows: int
    duplicate_queries: float
    duplicate_candidates: float
    distinct_candidates: int
    catalog: int
    lists: ListHealth | None

    @property
    def gradient_ratio(self) -> float:
        """The query tower's gradient norm over the candidate tower's; inf when the latter is 0."""
        query, candidate = self.query.gradient_norm, self.candidate.gradient_norm
        return query / candidate if candidate else float("inf")

    def values(self) -> dict[str, float]:
        """Name to number, such as {"health_query_effective_rank": .4, "health_overlap": .1}; lists' only when taken."""
        parts: dict[str, Any] = {"": self, "query_": self.query, "candidate_": self.candidate}
        found = {
            f"health_{prefix}{name}": getattr(part, name) for prefix, part in parts.items() for name in _numbers(part)
        }
        if self.lists is not None:
            found |= {f"health_{name}": getattr(self.lists, name) for name in _numbers(self.lists)}
        return found | {"health_gradient_ratio": self.gradient_ratio}


@dataclass(frozen=True)
class Setting:
    """What of a model and its training a cause can lie in.

    Args:
        learning_rate: the largest of the optimiser's.
        corrected: whether the first contrastive output corrects for sampling bias.
        in_batch: whether its negatives come from the batch, and not from the whole catalogue as well.
        learnt_temperature: (minimum, maximum) of a temperature that is learnt, None for a fixed one.
    """

    learning_rate: float
    corrected: bool
    in_batch: bool
    learnt_temperature: tuple[float, float] | None


def _numbers(part: Any) -> list[str]:
    return [f.name for f in fields(part) if f.name not in (*SKIPPED, "query", "candidate", "lists")]
