"""Vector and PretrainedVectors: vectors that come with the data, in the rows or in a table by id."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, holding, keep_tags, no_way_back
from twotower.data.columns.categorical import coded
from twotower.data.columns.values import plain
from twotower.data.columns.vocabulary import Vocabulary
from twotower.data.raw import RawTable
from twotower.errors import unknown
from twotower.files import PathLike
from twotower.schema import ColumnSchema, Tags
from twotower.tags import several_tags


@dataclass(frozen=True)
class Vector(Column):
    """A vector in every row, a list of W numbers, as it is: (B, W) float32.

    Args:
        tags: what the column means; `Tags.EMBEDDING` is added.
        source: the raw column to read; by default the one of the same name.

    Raises:
        ValueError: in use, lists of different lengths, and missing or infinite numbers.
    """

    kind: ClassVar[str] = "vector"
    tags: Tagged = ()
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or name,)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        source = self.reads(name)[0]
        parts = (part[source] for table in holding(tables, [source]) for part in table.parts([source]))
        first = next((part for part in parts if len(part)), None)
        if first is None:
            raise ValueError(f"column {name!r} has no rows to learn the width of its vectors from.")
        return _Inline(name, self, matrix(first.head(1), source).shape[1])

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Inline(name, self, state["width"])


class _Inline(Learnt):
    def __init__(self, name: str, column: Vector, width: int) -> None:
        super().__init__(name, lists=True)
        self.column = column
        self.width = width

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        source = self.column.reads(self.name)[0]
        vectors = matrix(raw[source], source, self.width)
        return [pl.Series(self.name, vectors, dtype=pl.Array(pl.Float32, self.width))]

    def schema(self) -> list[ColumnSchema]:
        lengths = {"value_count": {"min": self.width, "max": self.width}}
        tags = (*several_tags(self.column.tags), Tags.EMBEDDING)
        return [ColumnSchema(self.name, tags, dtype="float32", properties=lengths)]

    def inverse(self, codes: pl.Series) -> pl.Series:
        raise no_way_back(self.name, "a vector")

    def state(self) -> Json:
        return {"width": self.width}


@dataclass(frozen=True)
class PretrainedVectors(Column):
    """Vectors of a table by id, such as text or image embeddings: the column holds the id's row in `Preprocessor.vectors`.

    The rows themselves stay out of the data and are looked up in the tower:
    `PretrainedEmbeddings(schema, vectors=preprocessor.vectors)`. Id 0 is null and 1 an id that the table lacks; their vectors
    are zeros. The vectors lie in a file and are mapped into memory, not read.

    Args:
        vectors: the table: a Parquet path, folder or glob, or a dict of columns such as {"item_id": ids, "vector": (N, W)
            array}. It may have more ids than the data. `Preprocessor.extend(vectors=...)` adds those of new ids.
        tags: what the column means; `Tags.EMBEDDING` is added.
        id_column, vector_column: the table's columns.
        source: the raw column of ids, or of lists of them, to look up; by default `id_column`.

    Raises:
        ValueError: a table with missing or repeated ids, vectors of different widths, or numbers that are not finite.
    """

    kind: ClassVar[str] = "pretrained_vectors"
    vectors: Any
    tags: Tagged = ()
    id_column: str = "id"
    vector_column: str = "vector"
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or self.id_column,)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        ids, known.vectors[name] = mapped(self.parts(), name)
        known.vocabularies[name] = Vocabulary(name, ids)
        source = self.reads(name)[0]
        return _Looked(name, self, known, any(t.is_list(source) for t in holding(tables, [source])))

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Looked(name, self, known, state["lists"])

    def to_json(self) -> Json:
        """The declaration, without the table: its ids and vectors are saved beside."""
        own = {
            "tags": self.tags,
            "id_column": self.id_column,
            "vector_column": self.vector_column,
            "source": self.source,
        }
        return {"kind": self.kind, "vectors": None} | own

    def parts(self) -> Iterator[tuple[pl.Series, np.ndarray]]:
        """The table's ids and vectors, part by part.

        Raises:
            ValueError: no table, as after loading, or one without these columns.
        """
        table = self.vectors
        if table is None:
            raise ValueError(
                "the table of vectors is not saved with the Preprocessor; declare PretrainedVectors with it to fit."
            )
        if isinstance(table, Mapping):
            for column in (self.id_column, self.vector_column):
                if column not in table:
                    raise ValueError(f"the table of vectors lacks a column. {unknown('column', column, table)}")
        if isinstance(table, Mapping) and isinstance(table.get(self.vector_column), np.ndarray):
            ids = pl.Series(table[self.id_column])
            vectors = table[self.vector_column]
            if vectors.ndim != 2 or len(vectors) != len(ids):
                raise ValueError(
                    f"vectors must be an array (N, W) with one row for each of the {len(ids)} ids, got {vectors.shape}."
                )
            for first in range(0, len(ids), PART):
                yield ids[first : first + PART], vectors[first : first + PART]
            return
        for part in RawTable(table).parts([self.id_column, self.vector_column]):
            yield part[self.id_column], matrix(part[self.vector_column], self.vector_column)


PART = 100_000


class _Looked(Learnt):
    def __init__(self, name: str, column: PretrainedVectors, known: Known, lists: bool) -> None:
        super().__init__(name, lists)
        self.column = column
        self.known = known

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        (source,) = self.column.reads(self.name)
        vocabulary = self.known.vocabularies[self.name]
        return [coded(raw[source], source, vocabulary, self.lists, "PretrainedVectors").alias(self.name)]

    def schema(self) -> list[ColumnSchema]:
        vocabulary = self.known.vocabularies[self.name]
        properties = {
            "domain": {"min": 0, "max": vocabulary.largest_id, "name": self.name},
            "unknown_id": 1,
            "vocabulary": vocabulary.fingerprint,
        }
        tags = (*several_tags(self.column.tags), Tags.EMBEDDING)
        return [
            ColumnSchema(
                self.name, tags, dtype="int64", is_list=self.lists, is_ragged=self.lists, properties=properties
            )
        ]

    def inverse(self, codes: pl.Series) -> pl.Series:
        return self.known.vocabularies[self.name].decode(codes)

    def state(self) -> Json:
        return {"lists": self.lists}


def matrix(raw: pl.Series, name: str, width: int | None = None) -> np.ndarray:
    """(n, W) float32 of a column of lists; W is that of the first row unless given.

    Raises:
        ValueError: no lists, lists of different lengths, and missing or infinite numbers.
    """
    if not isinstance(raw.dtype, (pl.List, pl.Array)):
        raise ValueError(f"column {name!r} is declared a vector, but holds {raw.dtype}: expected lists of numbers.")
    lengths = raw.arr.len() if isinstance(raw.dtype, pl.Array) else raw.list.len()
    wanted = (lengths[0] if len(lengths) else 0) if width is None else width
    wrong = int((lengths.fill_null(0) != (wanted or 0)).sum()) or raw.null_count()
    if wrong:
        raise ValueError(
            f"column {name!r} must hold {wanted} numbers a row; {wrong} of {len(raw)} rows hold others, or null."
        )
    values = raw.explode() if len(raw) else pl.Series([], dtype=pl.Float32)
    made = values.cast(pl.Float32).fill_null(float("nan")).to_numpy().reshape(len(raw), wanted)
    if not np.isfinite(made).all():
        raise ValueError(f"column {name!r} has vectors with missing or infinite numbers. Repair them first.")
    return made


def more_vectors(column: PretrainedVectors, name: str, known: Known) -> None:
    """Add the ids and vectors of the column's table to `known`, after those that it holds; ids that it holds keep theirs.

    Raises:
        ValueError: vectors of another width, or as for a first table.
    """
    held, vectors = known.vocabularies[name], known.vectors[name]
    ids, more = mapped(column.parts(), name)
    if more.shape[1] != vectors.shape[1]:
        raise ValueError(f"the vectors of {name!r} are {vectors.shape[1]} numbers wide, the new ones {more.shape[1]}.")
    if ids.dtype != held.values.dtype:
        raise ValueError(f"the ids of {name!r} are {held.values.dtype}, but {ids.dtype} in the new table.")
    new = (~ids.is_in(held.values.implode())).arg_true()
    old = ((held.values[n : n + PART], vectors[n + 2 : n + 2 + PART]) for n in range(0, len(held.values), PART))
    added = ((ids.gather(new[n : n + PART]), more[new[n : n + PART].to_numpy() + 2]) for n in range(0, len(new), PART))
    joined, known.vectors[name] = mapped(chain(old, added), name)
    known.vocabularies[name] = Vocabulary(name, joined)


def mapped(parts: Iterator[tuple[pl.Series, np.ndarray]], name: str) -> tuple[pl.Series, np.ndarray]:
    """Ids, and their vectors after two rows of zeros in a temporary file that is mapped into memory.

    The file goes when the array does.
    """
    found: list[pl.Series] = []
    width: int | None = None
    with tempfile.TemporaryFile() as file:
        for ids, vectors in parts:
            if width is None:
                width = vectors.shape[1]
                file.write(np.zeros((2, width), np.float32).tobytes())
            if vectors.shape[1] != width:
                raise ValueError(
                    f"the vectors of {name!r} are {width} numbers wide, but some rows have {vectors.shape[1]}."
                )
            if not np.isfinite(vectors).all():
                raise ValueError(f"the vectors of {name!r} hold missing or infinite numbers. Repair them first.")
            file.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
            found.append(plain(ids.alias(""), name, "an id"))
        if width is None:
            raise ValueError(f"the table of vectors of {name!r} is empty.")
        ids = pl.concat(found)
        if ids.null_count() or ids.n_unique() < len(ids):
            raise ValueError(
                f"the table of vectors of {name!r} needs a different id in each row; {ids.null_count()} of {len(ids)} are "
                f"null and {len(ids) - ids.n_unique()} repeat."
            )
        file.flush()
        return ids, np.memmap(file, dtype=np.float32, mode="c", shape=(len(ids) + 2, width))


def save_vectors(vectors: np.ndarray, path: Path) -> None:
    """Write an array as .npy, by pieces."""
    held = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=vectors.shape)
    for first in range(0, len(vectors), PART):
        held[first : first + PART] = vectors[first : first + PART]
    held.flush()


def load_vectors(path: PathLike) -> np.ndarray:
    """An array that `save_vectors` wrote, mapped into memory."""
    return np.load(os.fspath(path), mmap_mode="c", allow_pickle=False)
