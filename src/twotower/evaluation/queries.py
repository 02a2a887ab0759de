"""Queries: what a ranker reads of those that an evaluation asks."""

from collections.abc import Sequence

import polars as pl
from jaxtyping import Int
from torch import Tensor

from twotower.data.dataset import Dataset
from twotower.evaluation.task import check_columns


class Queries:
    """The queries of an evaluation, of which rankers and slices read the columns that they need.

    Args:
        data: the evaluation data.
        keys: the columns that tell queries apart.
        first: (Q,) the row of the data that each query comes from first.
    """

    def __init__(self, data: Dataset, keys: Sequence[str], first: Int[Tensor, "Q"]) -> None:
        self._data = data
        self._keys = list(keys)
        self._first = first.numpy()

    def __len__(self) -> int:
        return len(self._first)

    @property
    def column_names(self) -> list[str]:
        """The columns of the evaluation data."""
        return self._data.column_names

    def select(self, names: Sequence[str]) -> Dataset:
        """One row for each query with these columns.

        Raises:
            ValueError: a column is missing, or differs between rows of one query.
        """
        check_columns(self._data, names, "the evaluation data")
        frame = self._data.to_polars()
        asked = [name for name in dict.fromkeys(names) if name not in self._keys]
        rows = frame.select([*self._keys, *asked]).unique()
        known = rows.select(self._keys).n_unique()
        if len(rows) > known:
            varying = [name for name in asked if rows.select([*self._keys, name]).n_unique() > known]
            raise ValueError(
                f"{varying} are read of a query, but differ between rows of one query (queries are told apart by {self._keys}). "
                f"Give Evaluator query={[*self._keys, *varying]}."
            )
        schema = self._data.schema.select_by_name([name for name in names if name in self._data.schema])
        return Dataset(frame.select(names)[self._first], schema)

    def users(self, name: str) -> pl.Series:
        """The user of each query."""
        return self._data.to_polars()[name][self._first]
