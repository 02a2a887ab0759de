"""What every kind of column is: a declaration, and what is learnt from it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import polars as pl

from twotower.data.columns.values import whole
from twotower.data.columns.vocabulary import Vocabulary
from twotower.data.raw import RawTable
from twotower.schema import ColumnSchema
from twotower.tags import Tag, several_tags

Json = Any


@dataclass(frozen=True, eq=False)
class Known:
    """What the columns of one Preprocessor have learnt together, each thing under the name of the column that owns it.

    Args:
        vocabularies: of categories, words and rows of vectors.
        vectors: (ids, W) float32 arrays, memory-mapped.
    """

    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)


class Learnt(ABC):
    """One declared column after fitting.

    Args:
        name: of the encoded column, or the beginning of its names.
        lists: whether a raw row holds a list.
    """

    def __init__(self, name: str, lists: bool) -> None:
        self.name = name
        self.lists = lists

    @abstractmethod
    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        """The encoded columns of raw rows that hold all columns which the declaration reads."""

    @abstractmethod
    def schema(self) -> list[ColumnSchema]:
        """How to read the encoded columns, in the order of `encode`."""

    @abstractmethod
    def inverse(self, codes: pl.Series) -> pl.Series:
        """Raw values of flat encoded ones.

        Raises:
            ValueError: the encoding keeps too little to go back (see `no_way_back`).
        """

    @abstractmethod
    def state(self) -> Json:
        """What was learnt beside vocabularies and vectors, as JSON."""


@dataclass(frozen=True)
class Column(ABC):
    """A declaration of how to read one or more raw columns."""

    kind: ClassVar[str]  # the name in a saved file

    @abstractmethod
    def reads(self, name: str) -> tuple[str, ...]:
        """The raw columns, for an encoded column of that name."""

    @abstractmethod
    def group(self, name: str) -> str:
        """The name of the column that owns what this one learns: its own, unless it shares another's vocabulary."""

    @abstractmethod
    def learn(self, name: str, tables: Sequence[RawTable], columns: "Mapping[str, Column]", known: Known) -> Learnt:
        """Fit to the tables that hold the raw columns; columns that own something are fitted before those that share it."""

    @abstractmethod
    def extend(self, name: str, tables: Sequence[RawTable], columns: "Mapping[str, Column]", known: Known) -> None:
        """Add the new ids of more tables to `known`; scales and bounds stay as they are."""

    @abstractmethod
    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        """What `Learnt.state` described."""

    def to_json(self) -> Json:
        """The declaration as JSON."""
        return {"kind": self.kind} | asdict(self)


def keep_tags(column: object) -> None:
    """One tag alone becomes a tuple of one."""
    object.__setattr__(column, "tags", tuple(several_tags(column.tags)))  # type: ignore[attr-defined]


def keep_counts(column: object, *options: str) -> None:
    """Options that are whole numbers from 1 on, or None if that is their default, as Python's own; else ValueError."""
    for option in options:
        value, default = getattr(column, option), getattr(type(column), option)
        if value is not None or default is not None:
            object.__setattr__(column, option, whole(option, value))


def no_way_back(name: str, how: str) -> ValueError:
    """The error of an encoding that cannot be inverted."""
    return ValueError(f"column {name!r} cannot be inverted: it is {how}, which does not keep the raw values.")


def holding(tables: Sequence[RawTable], columns: Iterable[str]) -> list[RawTable]:
    """The tables that have all of some columns."""
    wanted = set(columns)
    return [table for table in tables if wanted <= set(table.columns)]


Tagged = Tag | tuple[Tag, ...]
