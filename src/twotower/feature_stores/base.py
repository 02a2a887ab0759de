"""FeatureStore: from a user's id to the raw query columns and the items already seen."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown
from twotower.files import PathLike

RawId = int | str
SEEN = "seen"


@dataclass(frozen=True, eq=False)
class Features:
    """What a store knows of B ids, in the order in which they were asked.

    Args:
        rows: (B rows) the key and the raw columns; nulls in the row of an unknown id.
        seen: B lists of raw item ids; empty for an unknown id, and where the store has no column `seen`.
        known: B booleans.
    """

    rows: pl.DataFrame
    seen: list[list[RawId]]
    known: list[bool]


class FeatureStore(ABC):
    """Looks up what a query needs by its id.

    A table of features has the key column, with a different id in each row, any raw columns that the query tower reads, and, if
    it is wanted, `seen`: the list of the items that the user has seen.

    Args:
        key: the id column.
        schema: the types of all columns.
    """

    def __init__(self, key: str, schema: pl.Schema) -> None:
        self.key = key
        self.schema = schema

    @abstractmethod
    def __len__(self) -> int:
        """How many ids are known."""

    @abstractmethod
    def rows_of(self, ids: Sequence[RawId]) -> pl.DataFrame:
        """The rows of those of the distinct ids that are known, in any order, with the store's schema."""

    @abstractmethod
    def some_ids(self, count: int) -> list[RawId]:
        """Up to `count` of the ids that are known, to look into the store by: always the same while nothing is written."""

    @abstractmethod
    def put(self, table: Source) -> None:
        """Add rows, or replace those of the same ids; all of the table or nothing.

        Raises:
            ValueError: other columns or types than the store's, or an id that repeats or is missing.
        """

    @abstractmethod
    def remove(self, ids: Sequence[RawId]) -> None:
        """Forget ids; those that are not known are passed over."""

    @abstractmethod
    def write_sqlite(self, path: PathLike) -> None:
        """Write all of it as a file that SQLiteFeatures reads."""

    def look_up(self, ids: Sequence[RawId]) -> Features:
        """The features of each id, in the order given; ids may repeat.

        Raises:
            ValueError: an id of another type than the key's, such as "42" where ids are integers.
        """
        checked = self.check_ids(ids)
        found = self.rows_of(list(dict.fromkeys(checked)))
        place = {raw: number for number, raw in enumerate(found[self.key].to_list())}
        # taken row by row: a join would wake all of Polars' threads for a single user
        at = pl.Series([place.get(raw) for raw in checked], dtype=pl.UInt32)
        columns = [column.gather(at) for column in found if column.name not in (self.key, SEEN)]
        rows = pl.DataFrame([pl.Series(self.key, checked, dtype=self.schema[self.key]), *columns])
        known = [raw in place for raw in checked]
        if SEEN not in self.schema:
            return Features(rows, [[] for _ in checked], known)
        return Features(rows, [items or [] for items in found[SEEN].gather(at).to_list()], known)

    def check_ids(self, ids: Sequence[RawId]) -> list[RawId]:
        """The ids, if all are of the key's type."""
        kind = self.schema[self.key]
        expected: type = int if kind.is_integer() else str
        wrong = [raw for raw in ids if not isinstance(raw, expected) or isinstance(raw, bool)]
        if wrong:
            raise ValueError(
                f"{self.key} holds {'integers' if expected is int else 'strings'} in the feature store ({kind}), but "
                f"{wrong[0]!r} is {type(wrong[0]).__name__}. Ask with ids as they stand in the data."
            )
        if expected is int:
            bounds = np.iinfo(str(kind).lower())
            beyond = [raw for raw in ids if not bounds.min <= int(raw) <= bounds.max]
            if beyond:
                raise ValueError(f"{self.key} holds {kind}, but {beyond[0]} is outside {bounds.min} to {bounds.max}.")
        return list(ids)

    def check_table(self, table: Source) -> pl.DataFrame:
        """A table of this store's schema, its columns in the store's order."""
        frame = read_table(table)
        lacking = [name for name in self.schema if name not in frame.columns]
        extra = [name for name in frame.columns if name not in self.schema]
        if lacking or extra:
            raise ValueError(
                f"the table must have the store's columns {list(self.schema)}; "
                + (f"it lacks {lacking}." if lacking else unknown("column", extra[0], list(self.schema)))
            )
        frame = frame.select(list(self.schema))
        other = [n for n, kind in self.schema.items() if frame.schema[n] not in (kind, pl.Null)]
        if other:
            raise ValueError(
                f"column {other[0]!r} holds {frame.schema[other[0]]}, but {self.schema[other[0]]} in the store; cast it before."
            )
        check_key(frame, self.key)
        return frame.cast(dict(self.schema))  # type: ignore[arg-type]


def read_table(table: Source) -> pl.DataFrame:
    """The table as a frame; ValueError for integers of 128 bits, which neither Arrow nor SQLite has."""
    if isinstance(table, pl.DataFrame):
        for name, kind in table.schema.items():
            if "Int128" in str(kind):  # in lists too
                raise ValueError(
                    f"column {name!r} holds {kind}; a feature store keeps integers of up to 64 bits. Cast it."
                )
    return Dataset(table).to_polars()


def check_key(frame: pl.DataFrame, key: str) -> None:
    """ValueError unless the key is there, of integers or strings, and different in each row."""
    if key not in frame.columns:
        raise ValueError(f"the table of features lacks its key. {unknown('column', key, frame.columns)}")
    ids = frame[key]
    if not (ids.dtype.is_integer() or ids.dtype == pl.String):
        raise ValueError(f"the key {key!r} must hold integers or strings, got {ids.dtype}.")
    if ids.null_count() or ids.n_unique() < len(ids):
        raise ValueError(
            f"the key {key!r} must have a different id in each row: {ids.null_count()} of {len(ids)} are missing, "
            f"{len(ids) - ids.n_unique()} repeat. Keep the latest row of each, such as frame.unique({key!r}, keep='last')."
        )
    if SEEN in frame.columns and not isinstance(frame.schema[SEEN], pl.List):
        raise ValueError(f"column {SEEN!r} must hold lists of item ids, got {frame.schema[SEEN]}.")
