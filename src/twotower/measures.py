"""All metrics by name, sorted by what they read: ranked hits, lists, or all lists together."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twotower.errors import choose
from twotower.exposure import (
    CatalogMetric,
    CoverageAt,
    DiversityAt,
    ExposureMetric,
    GiniAt,
    ListMetric,
    NoveltyAt,
    PopularityLiftAt,
)
from twotower.metrics import METRICS, HitRateAt, MRRAt, NDCGAt, RankingMetric, RecallAt

AnyMetric = RankingMetric | ExposureMetric
AnyMetrics = str | AnyMetric | Sequence[str | AnyMetric]

EXPOSURE_METRICS: dict[str, Callable[[int], ExposureMetric]] = {
    "coverage_at": CoverageAt,
    "gini_at": GiniAt,
    "novelty_at": NoveltyAt,
    "popularity_lift_at": PopularityLiftAt,
}
ALL: dict[str, Callable[[int], AnyMetric]] = {**METRICS, **EXPOSURE_METRICS}
DEFAULT: tuple[AnyMetric, ...] = (RecallAt(), NDCGAt(), MRRAt(), HitRateAt(), CoverageAt())


@dataclass(frozen=True)
class Chosen:
    """Metrics by kind.

    Args:
        given: all, in the order they were given.
        ranking, lists, catalog: those of each kind.
    """

    given: tuple[AnyMetric, ...]
    ranking: tuple[RankingMetric, ...]
    lists: tuple[ListMetric, ...]
    catalog: tuple[CatalogMetric, ...]

    @property
    def k(self) -> int:
        """The longest list that any of them reads."""
        return max(metric.k for metric in self.given)


def resolve_all(metrics: AnyMetrics | None) -> Chosen:
    """Records from names or records.

    Raises:
        ValueError: no metric, one twice, or an unknown name.
    """
    given = DEFAULT if metrics is None else (metrics,) if isinstance(metrics, (str, *_KINDS)) else tuple(metrics)
    made = tuple(_by_name(metric) if isinstance(metric, str) else metric for metric in given)
    names = [metric.name for metric in made]
    if not made or len(set(names)) < len(names):
        raise ValueError(
            f"give at least one metric, and each once, such as ['recall_at_10', 'ndcg_at_10']; got {names}."
        )
    return Chosen(
        made,
        tuple(m for m in made if isinstance(m, RankingMetric)),
        tuple(m for m in made if isinstance(m, ListMetric)),
        tuple(m for m in made if isinstance(m, CatalogMetric)),
    )


_KINDS = (RankingMetric, ExposureMetric)


def _by_name(name: str) -> AnyMetric:
    diversity = re.fullmatch(r"diversity_of_(.+)_at_(\d+)", name)
    if diversity is not None:
        return DiversityAt(int(diversity.group(2)), diversity.group(1))
    number = re.search(r"_(\d+)$", name)
    kind = choose("metric", name if number is None else name[: number.start()], ALL)
    return kind(10 if number is None else int(number.group(1)))
