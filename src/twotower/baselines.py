"""What a model must beat: popularity, and neighbours of the user's items. They rank in the model's own evaluator."""

from abc import ABC, abstractmethod

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from twotower.data.dataset import Dataset
from twotower.evaluation import Queries, ScoreQueries, evaluate_ranking, ranking_task
from twotower.metrics import Metrics, resolve_metrics


class Baseline(ABC):
    """Ranks items for users from interactions alone.

    Args:
        train: interactions.
        user, item: the names of their id columns.
        catalog: the items to rank, one row each; by default the distinct items of `train`.
    """

    def __init__(self, train: Dataset, user: str, item: str, catalog: Dataset | None = None) -> None:
        self.user = user
        self.item = item
        items = (train if catalog is None else catalog).to_polars()[item].unique().sort()
        self.items = torch.from_numpy(items.to_numpy().astype(np.int64))
        self.learn(train.to_polars().select(user, item))

    @abstractmethod
    def learn(self, events: pl.DataFrame) -> None:
        """Take what the baseline needs from the training events."""

    @abstractmethod
    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """The score of every item for some users, in the order of `items`."""

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """The scores of the candidates for the queries' users, as an Evaluator asks them."""
        users = queries.select([self.user]).to_polars()[self.user]
        places = torch.from_numpy(self.positions(candidates.to_polars()[self.item]))
        return lambda rows: self.scores(users[rows.numpy()])[:, places]

    def evaluate(self, data: Dataset, seen: Dataset | None = None, metrics: Metrics | None = None) -> dict[str, float]:
        """The means of the metrics, each user of `data` being one query; `seen` items are not ranked again."""
        task = ranking_task(data, query=[self.user], candidate=self.item, candidates=self.items, seen=seen)
        users = task.queries.to_polars()[self.user]
        values = evaluate_ranking(lambda rows: self.scores(users[rows.numpy()]), task, resolve_metrics(metrics))
        return {name: float(value.mean()) for name, value in values.items()}

    def positions(self, items: pl.Series) -> np.ndarray:
        """Where items stand among `items`; ValueError for one that is not in the catalogue."""
        wanted = torch.from_numpy(items.to_numpy().astype(np.int64))
        place = torch.searchsorted(self.items, wanted).clamp(max=len(self.items) - 1)
        if not torch.equal(self.items[place], wanted):
            missing = wanted[self.items[place] != wanted].unique()
            raise ValueError(f"{len(missing)} training items are not in the catalogue, such as {missing[:5].tolist()}.")
        return place.numpy()


class Popularity(Baseline):
    """The same for everyone: items by the number of their training events."""

    def learn(self, events: pl.DataFrame) -> None:
        """Count."""
        counts = np.bincount(self.positions(events[self.item]), minlength=len(self.items))
        self.counts = torch.from_numpy(counts).float()

    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """The counts, for each user."""
        return self.counts.repeat(len(users), 1)


class ItemKNN(Baseline):
    """The sum, over the user's items, of their cosine with the item: |A and B| / (sqrt(|A| |B|) + shrink).

    Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001. Only the `neighbors`
    nearest items of each item count. A user without training events gets the popular items, which also decide ties.
    """

    neighbors = 100
    shrink = 10.0

    def learn(self, events: pl.DataFrame) -> None:
        """Cosines between the items' user sets."""
        distinct = events.unique()
        columns = self.positions(distinct[self.item])
        self._users = pl.DataFrame({self.user: distinct[self.user].unique()}).with_row_index("row")
        rows = distinct.join(self._users, on=self.user, maintain_order="left")["row"].to_numpy()
        shape = (len(self._users), len(self.items))
        self._events = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        together = (self._events.T @ self._events).tocoo()
        size = np.sqrt(np.asarray(self._events.sum(0)).ravel())
        weight = together.data / (size[together.row] * size[together.col] + self.shrink)
        self._weights = _keep_largest(together.row, together.col, weight, self.neighbors, len(self.items))
        counts = np.asarray(self._events.sum(0)).ravel()
        self._popular = torch.from_numpy(counts / (counts.max() + 1)).float()

    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """Neighbour scores; popularity, far smaller than any cosine, where there are none."""
        rows = (
            users.cast(self._users.schema[self.user])
            .to_frame(self.user)
            .join(self._users, on=self.user, how="left", maintain_order="left")["row"]
        )
        known = rows.is_not_null().to_numpy()
        scores = (1e-6 * self._popular).repeat(len(users), 1)
        scores[torch.from_numpy(known)] += torch.from_numpy(
            (self._events[rows.drop_nulls().to_numpy()] @ self._weights).toarray()
        )
        return scores


def _keep_largest(row: np.ndarray, column: np.ndarray, weight: np.ndarray, most: int, size: int) -> sp.csr_matrix:
    """The `most` largest weights of each row, the diagonal left out."""
    off = row != column
    row, column, weight = row[off], column[off], weight[off].astype(np.float32)
    order = np.lexsort((-weight, row))
    row, column, weight = row[order], column[order], weight[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < most
    return sp.csr_matrix((weight[kept], (row[kept], column[kept])), shape=(size, size))
