"""Features in memory, from a table or a Parquet file."""

from collections.abc import Sequence

import polars as pl

from twotower.data.dataset import Source
from twotower.feature_stores.base import FeatureStore, RawId, check_key, read_table
from twotower.feature_stores.sqlite import SQLiteFeatures
from twotower.files import PathLike


class ParquetFeatures(FeatureStore):
    """A table of features held in memory, such as a Parquet file that a nightly job writes.

    Args:
        table: a path or a table: the key, raw query columns and, if wanted, `seen`.
        key: the id column.

    Raises:
        ValueError: no such column, or ids that repeat or are missing.

    Example:
        >>> store = ParquetFeatures({"user": [1, 2], "age": [30, 40], "seen": [["a"], []]}, key="user")
        >>> found = store.look_up([2, 7])
        >>> found.rows["age"].to_list(), found.known
        ([40, None], [True, False])
    """

    def __init__(self, table: Source, key: str) -> None:
        frame = read_table(table)
        check_key(frame, key)
        super().__init__(key, frame.schema)
        self._take(frame)

    def _take(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self._row = {raw: number for number, raw in enumerate(frame[self.key].to_list())}

    def __len__(self) -> int:
        return len(self._frame)

    def rows_of(self, ids: Sequence[RawId]) -> pl.DataFrame:
        return self._frame[[self._row[raw] for raw in ids if raw in self._row]]

    def some_ids(self, count: int) -> list[RawId]:
        return self._frame[self.key].head(count).to_list()

    def put(self, table: Source) -> None:
        """Add or replace rows in memory; the file stays as it is."""
        new = self.check_table(table)
        self._take(pl.concat([self._frame.join(new, on=self.key, how="anti", maintain_order="left"), new]))

    def remove(self, ids: Sequence[RawId]) -> None:
        gone = pl.Series(self.check_ids(ids), dtype=self.schema[self.key])
        self._take(self._frame.filter(~pl.col(self.key).is_in(gone.implode())))

    def write_sqlite(self, path: PathLike) -> None:
        SQLiteFeatures.create(path, self._frame, self.key)
