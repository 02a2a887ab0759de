"""What the recommended lists hold, whatever is right: coverage, novelty, popularity and diversity, as records.

All read `Lists`: the places of the recommended candidates in the catalogue, and what is known of candidates and queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.data.ragged import Ragged
from twotower.errors import choose


@dataclass(frozen=True, eq=False)
class Lists:
    """The first K candidates of Q queries among N.

    Args:
        places: (Q, K) their places in the catalogue, best first; -1 where none is left.
        counts: (N,) training events of each candidate.
        events: all training events, those of other items too.
        known_items: how many items there are in the training events and the candidates together.
        profile: (Q,) the mean of `counts` over the training events of the query's user; nan without any.
        features: by column, the codes (0, 1, ...) of each candidate: rows of a Ragged, (N lists).
    """

    places: Int[Tensor, "Q K"]
    counts: Float[Tensor, "N"]
    events: int
    known_items: int
    profile: Float[Tensor, "Q"]
    features: Mapping[str, Ragged] = field(default_factory=dict)

    def mean(self, values: Float[Tensor, "N"], k: int) -> Float[Tensor, "Q"]:
        """The mean of the candidates' values over each list; nan for an empty one."""
        places = self.places[:, :k]
        there = places >= 0
        return torch.where(there, values[places.clamp(min=0)], 0.0).sum(1) / there.sum(1)


@dataclass(frozen=True)
class ExposureMetric(ABC):
    """A number about the first k of every list."""

    k: int = 10
    reads_train: ClassVar[bool] = False  # whether it means anything without training events

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"a cut-off k must be at least 1, got {self.k}.")

    @property
    @abstractmethod
    def name(self) -> str:
        """Such as novelty_at_10."""


class ListMetric(ExposureMetric):
    """One value for each list."""

    @abstractmethod
    def __call__(self, lists: Lists) -> Float[Tensor, "Q"]:
        """(Q,) nan where a list has none."""


class CatalogMetric(ExposureMetric):
    """One number for all lists together."""

    @abstractmethod
    def __call__(self, lists: Lists) -> float:
        """Over all queries."""


@dataclass(frozen=True)
class NoveltyAt(ListMetric):
    """Mean of -log2 p over the list, in bits: how surprising its items are.

    p = (events + 1) / (all events + all items), of the training data and the catalogue, so that an item without training events
    has a finite one. Vargas and Castells,
    "Rank and Relevance in Novelty and Diversity Metrics for Recommender Systems", RecSys 2011, without the discounts.
    """

    reads_train = True

    @property
    def name(self) -> str:
        return f"novelty_at_{self.k}"

    def __call__(self, lists: Lists) -> Float[Tensor, "Q"]:
        return lists.mean(-((lists.counts + 1) / (lists.events + lists.known_items)).log2(), self.k)


@dataclass(frozen=True)
class PopularityLiftAt(ListMetric):
    """How much more popular the list is than what its user chose before: mean count of the list / of the profile - 1.

    0 is as popular as the user's own taste, 1 twice as popular; nan for users without training events, who are left out of
    the mean. Abdollahpouri et al., "The Unfairness of Popularity Bias in Recommendation", RMSE workshop at RecSys 2019,
    there over groups of users.
    """

    reads_train = True

    @property
    def name(self) -> str:
        return f"popularity_lift_at_{self.k}"

    def __call__(self, lists: Lists) -> Float[Tensor, "Q"]:
        return lists.mean(lists.counts, self.k) / lists.profile - 1


@dataclass(frozen=True)
class DiversityAt(ListMetric):
    """1 - the mean cosine between the items of a list, two by two, by one of their columns.

    A value of the column, or each of a list of values, is a direction of its own; an item without values is like no other.
    nan for lists of fewer than two. Ziegler et al., "Improving Recommendation Lists Through Topic Diversification", WWW 2005.

    Args:
        k: the cut-off.
        column: the candidates' column, such as "genres".
    """

    column: str = "category"

    @property
    def name(self) -> str:
        return f"diversity_of_{self.column}_at_{self.k}"

    def __call__(self, lists: Lists) -> Float[Tensor, "Q"]:
        codes = choose("column of the candidates", self.column, lists.features)
        places = lists.places[:, : self.k]
        row, _ = torch.nonzero(places >= 0, as_tuple=True)
        items = codes.take(places[places >= 0])
        length = items.lengths().double()
        owner = items.row_of_value()
        # |sum of unit vectors|^2 = sum of squares + the cosines of all ordered pairs
        width = int(codes.values.max()) + 1 if len(codes.values) else 1
        cell, at = (row[owner] * width + items.values).unique(return_inverse=True)
        total = torch.zeros(len(cell), dtype=torch.float64).index_add(0, at, length[owner].rsqrt())
        whole = torch.zeros(len(places), dtype=torch.float64).index_add(0, cell // width, total.square())
        own = torch.zeros(len(places), dtype=torch.float64).index_add(0, row, (length > 0).double())
        number = (places >= 0).sum(1).double()
        pairs = number * (number - 1)
        return torch.where(pairs > 0, 1 - (whole - own) / pairs, torch.nan)


@dataclass(frozen=True)
class CoverageAt(CatalogMetric):
    """Share of the catalogue that stands in any list."""

    @property
    def name(self) -> str:
        return f"coverage_at_{self.k}"

    def __call__(self, lists: Lists) -> float:
        return float((_exposure(lists, self.k) > 0).double().mean())


@dataclass(frozen=True)
class GiniAt(CatalogMetric):
    """The Gini index of how often the catalogue's items are recommended: 0 all equally often, near 1 a few alone."""

    @property
    def name(self) -> str:
        return f"gini_at_{self.k}"

    def __call__(self, lists: Lists) -> float:
        often = _exposure(lists, self.k).sort().values
        ranks = torch.arange(1, len(often) + 1, dtype=torch.float64)
        return float(((2 * ranks - len(often) - 1) * often).sum() / (len(often) * often.sum()))


def _exposure(lists: Lists, k: int) -> Float[Tensor, "N"]:
    """How often each candidate is recommended."""
    places = lists.places[:, :k]
    return torch.bincount(places[places >= 0], minlength=len(lists.counts)).double()
