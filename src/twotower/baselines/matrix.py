"""Baselines that learn from the matrix of users and items: who had what."""

from abc import abstractmethod

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.baselines.base import Baseline, checked_ids, place
from twotower.errors import need

FALLBACK = -(2.0**23)  # float32 holds whole numbers exactly up to twice that


class MatrixBaseline(Baseline):
    """Learns from the matrix of users and items, 1 where there is an event; a pair that occurs twice counts once.

    Users without training events get the popular items: their scores lie near -2^23, below every score of a known user, and
    rise with the number of an item's users.
    """

    def learn(self, events: pl.DataFrame) -> None:
        """Make the matrix, (users, N), and fit."""
        pairs = events.select(self.user, self.item).unique()
        self.users = pairs[self.user].unique().sort()
        rows = place(pairs[self.user], self.users).to_numpy()
        columns = self.positions(pairs[self.item])
        sparse = need("scipy.sparse", type(self).__name__, "baselines")
        shape = (len(self.users), len(self.items))
        self.matrix = sparse.csr_matrix((np.ones(len(pairs), np.float32), (rows, columns)), shape=shape)
        self.popularity = self.counts_of(pairs[self.item])
        _, rank = self.popularity.unique(return_inverse=True)
        self._for_unknown = FALLBACK + rank.float()
        self.fit()

    @abstractmethod
    def fit(self) -> None:
        """Learn from `matrix`, (users, N) csr float32, and `popularity`, (N,) the users of each item."""

    @abstractmethod
    def score_rows(self, rows: Int[np.ndarray, "R"]) -> Float[Tensor, "R N"]:
        """The scores of all items for some rows of `matrix`, float32."""

    def scores(self, users: pl.Series) -> Float[Tensor, "T N"]:
        """Scores of known users; popular items for others."""
        rows = place(checked_ids(users, "users"), self.users)
        scores = self._for_unknown.repeat(len(users), 1)
        scores[torch.from_numpy(rows.is_not_null().to_numpy().copy())] = self.score_rows(rows.drop_nulls().to_numpy())
        return scores
