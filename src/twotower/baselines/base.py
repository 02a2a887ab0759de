"""What every baseline is: it learns from interactions, and scores items for users."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twotower.data.dataset import Dataset
from twotower.evaluation import Queries, ScoreQueries, evaluate_ranking, ranking_task
from twotower.metrics import Metrics, resolve_metrics

LOWEST = torch.finfo(torch.float32).min  # of an item that a baseline does not know: finite, so above a seen item
SCORES_AT_ONCE = 2**26  # 256 MB of float32
ID, PLACE = "__id", "__place"


class Baseline(ABC):
    """Ranks items for users from interactions alone.

    A score compares items for one user; scores of different users are not to be compared.

    Args:
        train: interactions, one row each, at least one.
        user, item: the names of their id columns: integers or strings, without nulls.
        catalog: the items to rank; by default the distinct items of `train`. Items of `train` that are not in it still
            teach what goes together, and are not ranked.
        also: further columns of `train` that `learn` reads.

    Attributes:
        items: (N,) the distinct ids of `train` and `catalog` together, sorted.
        candidates: the distinct ids of the catalogue, sorted: what `evaluate` ranks.

    Raises:
        ValueError: a column is missing, ids are null or neither integers nor strings, the catalogue's ids are of another
            kind than those of `train`, or there are no events.
    """

    def __init__(
        self, train: Dataset, user: str, item: str, catalog: Dataset | None = None, *, also: Sequence[str] = ()
    ) -> None:
        self.user = user
        self.item = item
        events = train.select(list(dict.fromkeys([user, item, *also]))).to_polars()
        if not len(events):
            raise ValueError("there is no event to learn from: train has no rows.")
        trained = checked_ids(events[item], f"column {item!r} of train")
        events = events.with_columns(checked_ids(events[user], f"column {user!r} of train"), trained)
        self.items = self.candidates = trained.unique().sort()
        if catalog is not None:
            listed = checked_ids(catalog.select(item).to_polars()[item], f"column {item!r} of the catalogue")
            self.candidates = same_kind(listed, trained, "the catalogue", "train").unique().sort()
            self.items = pl.concat([self.items, self.candidates]).unique().sort()
        self.learn(events)

    @abstractmethod
    def learn(self, events: pl.DataFrame) -> None:
        """Take what the baseline needs from the training events.

        Args:
            events: the user, item and `also` columns of `train`; ids are Int64 or String.
        """

    @abstractmethod
    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """The score of every item for some users, in the order of `items`, float32, finite and above `LOWEST`.

        The tensor is the caller's to write into. A user without training events gets the popular items.

        Args:
            users: (T,) ids, without nulls.
        """

    def score_candidates(
        self, users: pl.Series, candidates: pl.Series
    ) -> Callable[[Tensor], Float[Tensor, "T candidates"]]:
        """A function that scores candidates for users, whatever rows they come from.

        Args:
            users: (Q,) ids, known or not.
            candidates: the ids to score, in any order; one that is not among `items` gets the score `LOWEST`, below every
                known item.

        Returns:
            a function of row numbers of `users`, (T,), that gives a new tensor (T, candidates), in their order.

        Raises:
            ValueError: ids are null, or of another kind than those of the training data.
        """
        asked = checked_ids(users, "users")
        places = place(same_kind(checked_ids(candidates, "candidates"), self.items, "candidates", "train"), self.items)
        # unknown ids take the column that is added behind the items
        columns = torch.from_numpy(places.fill_null(len(self.items)).to_numpy().copy())
        all_in_order = torch.equal(columns, torch.arange(len(self.items)))  # picking would cost more than ranking
        most = max(1, SCORES_AT_ONCE // len(self.items))

        def score(rows: Tensor) -> Tensor:
            parts = [self.scores(asked.gather(part.numpy())) for part in rows.cpu().split(most)]
            if not all_in_order:
                parts = [F.pad(part, (0, 1), value=LOWEST).index_select(1, columns) for part in parts]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return score

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """The scores of the candidates for the queries' users, as an Evaluator asks for them."""
        users = queries.select([self.user]).to_polars()[self.user]
        return self.score_candidates(users, candidates.to_polars()[self.item])

    def evaluate(
        self,
        data: Dataset,
        seen: Dataset | None = None,
        metrics: Metrics | None = None,
        candidates: pl.Series | None = None,
    ) -> dict[str, float]:
        """The means of the metrics, each user of `data` being one query.

        Args:
            data: the interactions to find.
            seen: earlier interactions; a user's items there are not ranked again.
            metrics: names or records, as the models' `evaluate` takes them.
            candidates: the distinct ids to rank; by default the catalogue, or without one all items of `train`.
        """
        ranked = self.candidates if candidates is None else checked_ids(candidates, "candidates")
        if ranked.n_unique() < len(ranked):
            raise ValueError(
                f"candidates repeat ids, such as {ranked.filter(ranked.is_duplicated())[0]!r}; use unique()."
            )
        task = ranking_task(data, query=[self.user], candidate=self.item, candidates=ranked, seen=seen)
        score = self.score_candidates(task.queries.to_polars()[self.user], ranked)
        values = evaluate_ranking(score, task, resolve_metrics(metrics))
        return {name: float(value.mean()) for name, value in values.items()}

    def positions(self, items: pl.Series) -> np.ndarray:
        """Where ids stand among `items`, int64; ValueError for one that is not among them."""
        places = place(checked_ids(items, "ids"), self.items)
        if places.null_count():
            missing = items.filter(places.is_null()).unique()
            raise ValueError(
                f"{len(missing)} ids are neither in train nor in the catalogue, such as {missing.sort()[:5].to_list()}."
            )
        return places.to_numpy()

    def counts_of(self, items: pl.Series) -> Float[Tensor, "N"]:
        """How often each of `items` occurs in a column of ids."""
        return torch.from_numpy(np.bincount(self.positions(items), minlength=len(self.items))).float()


def checked_ids(ids: pl.Series, what: str) -> pl.Series:
    """Ids as Int64 or String; ValueError for nulls and other types."""
    if ids.null_count():
        raise ValueError(f"{what}: {ids.null_count()} of {len(ids)} ids are null; fill them or drop their rows first.")
    if ids.dtype.is_integer():
        return ids.cast(pl.Int64)
    if ids.dtype in (pl.String, pl.Categorical, pl.Enum):
        return ids.cast(pl.String)
    raise ValueError(f"{what}: ids must be integers or strings, got {ids.dtype}; cast them first.")


def same_kind(ids: pl.Series, others: pl.Series, what: str, their: str) -> pl.Series:
    """The ids, if they can be compared with the others."""
    if ids.dtype != others.dtype:
        raise ValueError(f"the ids of {what} are {ids.dtype}, those of {their} {others.dtype}; cast one of them.")
    return ids


def place(ids: pl.Series, among: pl.Series) -> pl.Series:
    """(T,) where ids stand among distinct others, Int64; null where they do not."""
    table = among.to_frame(ID).with_columns(pl.int_range(len(among), dtype=pl.Int64).alias(PLACE))
    return (
        same_kind(ids, among, "a request", "train")
        .to_frame(ID)
        .join(table, on=ID, how="left", maintain_order="left")[PLACE]
    )


def at_least(name: str, value: float, least: float) -> None:
    """ValueError if an option is too small, or nan."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def above_zero(name: str, value: float) -> None:
    """ValueError if an option is not positive."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")
