"""Preprocessor: raw tables to ids and numbers, learnt once, saved, and the same in training and serving."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from twotower.data.arrow import to_batch
from twotower.data.batch import Batch
from twotower.data.columns import KINDS, Column
from twotower.data.columns.base import Known, Learnt
from twotower.data.columns.values import is_list, on_values
from twotower.data.columns.vectors import PretrainedVectors, load_vectors, more_vectors, save_vectors
from twotower.data.columns.vocabulary import Vocabulary
from twotower.data.dataset import Dataset, Source
from twotower.data.ragged import Ragged
from twotower.data.raw import RawTable
from twotower.errors import choose, unknown
from twotower.files import PathLike, folder_written_aside
from twotower.schema import Schema
from twotower.schema_io import save_schema

FORMAT = 2
INT32_MAX = 2**31 - 1
ROW_GROUP = 100_000  # rows; small enough for a shuffle buffer to mix many of them


class Preprocessor:
    """Encodes raw columns; what it learnt travels with the model.

    Args:
        columns: how to read each column, by the name of the encoded column: `Categorical`, `Hashed`, `Text`, `Numeric`, `Age`,
            `Bucketized`, `Timestamp`, `Vector` or `PretrainedVectors`. A raw column may be read in several ways, under
            different names (`source`). `infer_columns` proposes them from the tables.

    Tables, where they are asked for, are all that a Dataset takes (files too large for memory among them), Polars LazyFrames,
    and queries of other engines that Narwhals reads: DuckDB relations, PySpark DataFrames, Ibis tables. These count and sum
    in their own engine. The codes are the same from all.

    Example:
        >>> from twotower import Categorical, Numeric, Tags
        >>> preprocessor = Preprocessor({"user": Categorical(Tags.USER_ID), "age": Numeric(Tags.USER)})
        >>> data = preprocessor.fit({"user": ["ann", "bob", "ann"], "age": [30, 40, 50]}).transform(
        ...     {"user": ["bob", "eve", None], "age": [40, 40, 40]})
        >>> data.table.to_pydict()
        {'user': [3, 1, 0], 'age': [0.0, 0.0, 0.0]}
        >>> preprocessor.inverse("user", [2, 3, 1])
        ['ann', 'bob', None]
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)
        self._known = Known()
        self._learnt: dict[str, Learnt] = {}
        self._readable_from: dict[tuple[str, ...], list[str]] = {}  # what was found for the columns of earlier tables
        for name, column in self.columns.items():
            if not isinstance(column, Column):
                raise ValueError(
                    f"column {name!r} must be declared by Categorical(...), Numeric(...) or another kind of column, got {column!r}."
                )
            owner = column.group(name)
            if owner != name and not self._owns_vocabulary(owner, type(column)):
                owners = [n for n, c in self.columns.items() if self._owns_vocabulary(n, type(column)) and n != name]
                raise ValueError(f"{name!r} cannot share a vocabulary. {unknown('column', owner, owners)}")

    # ---- learning

    def fit(self, *tables: Source | object) -> "Preprocessor":
        """Learn vocabularies and scales from all tables together: a column may stand in several of them.

        Raises:
            ValueError: a declared column is in none of the tables, or holds something else than declared.
        """
        raw = [RawTable(table) for table in tables]
        for name, column in self.columns.items():
            for source in column.reads(name):
                if not any(source in table.columns for table in raw):
                    seen = {n for table in raw for n in table.columns}
                    raise ValueError(f"a declared column is in none of the tables. {unknown('column', source, seen)}")
            if not any(set(column.reads(name)) <= set(table.columns) for table in raw):
                raise ValueError(
                    f"{name!r} reads {list(column.reads(name))}, but no table has them all: join the tables first."
                )
        known, learnt = Known(), dict[str, Learnt]()
        for name in self._owners_first():
            learnt[name] = self.columns[name].learn(name, raw, self.columns, known)
        _check_domains(Schema([c for column in learnt.values() for c in column.schema()]))
        self._readable_from.clear()
        self._known, self._learnt = known, {name: learnt[name] for name in self.columns}
        return self

    def extend(self, *tables: Source | object, vectors: Mapping[str, object] | None = None) -> "Preprocessor":
        """A Preprocessor that knows the new ids of more tables as well; this one stays as it is.

        Codes that were given stay: new values follow after the old ones, by falling frequency in these tables, where they must
        reach `min_count`; `max_size` bounds the whole. Scales and buckets stay as they are.

        Args:
            tables: as in fit.
            vectors: for a PretrainedVectors column, the table that holds the vectors of new ids.

        Raises:
            ValueError: not fitted yet, tables with none of the columns, or columns of other types than before.

        Example:
            >>> from twotower import Categorical
            >>> monday = Preprocessor({"item": Categorical()}).fit({"item": ["a", "a", "b"]})
            >>> tuesday = monday.extend({"item": ["c", "b"]})
            >>> tuesday.transform({"item": ["a", "b", "c"]}).table.to_pydict()
            {'item': [2, 3, 4]}
        """
        self._check_fitted()
        raw = [RawTable(table) for table in tables]
        sources = {source for name, column in self.columns.items() for source in column.reads(name)}
        if raw and not any(sources & set(table.columns) for table in raw):
            raise ValueError(
                f"the tables have none of the columns {sorted(sources)}; they have {[t.columns for t in raw]}."
            )
        made = Preprocessor(self.columns)
        made._known = Known(dict(self._known.vocabularies), dict(self._known.vectors))
        for name in self._owners_first():
            self.columns[name].extend(name, raw, self.columns, made._known)
        for name, table in (vectors or {}).items():
            column = self.columns.get(name)
            if not isinstance(column, PretrainedVectors):
                names = [n for n, c in self.columns.items() if isinstance(c, PretrainedVectors)]
                raise ValueError(f"vectors belong to PretrainedVectors columns. {unknown('column', name, names)}")
            more_vectors(replace(column, vectors=table), name, made._known)
        made._learnt = {n: c.restore(n, self._learnt[n].state(), made._known) for n, c in self.columns.items()}
        return made

    # ---- encoding

    def transform(self, table: Source | object) -> Dataset:
        """The table with its declared columns encoded, in memory, and the Schema of those.

        Other columns pass through as they are. The Schema does not name them, so no tower reads them; they serve for
        splitting, grouping and display. A dict of single values is one row. A declared column whose raw columns are not there
        is left out: a query need not bring the items' columns.

        Raises:
            ValueError: not fitted yet, none of the columns, or values of another type than before.
        """
        return self._dataset(pl.concat(list(self._encoded(table))))

    def encode_frame(self, frame: pl.DataFrame, schema: Schema) -> Batch:
        """A schema's columns of a Polars frame as tensors: `transform(frame).batch(schema)` in a fraction of the time where
        there are few rows."""
        self._check_fitted()
        columns = {series.name: series for series in [*frame, *self._columns(frame, self._readable(frame.columns))]}
        lacking = [name for name in schema.column_names if name not in columns]
        if lacking:
            raise ValueError(f"the data lacks a column. {unknown('column', lacking[0], columns)}")
        return to_batch(pa.table({name: columns[name].to_arrow() for name in schema.column_names}), schema)

    def fit_transform(self, table: Source | object) -> Dataset:
        """`fit` and `transform` on one table."""
        return self.fit(table).transform(table)

    def transform_to_parquet(self, table: Source | object, path: PathLike) -> Dataset:
        """`transform` for tables larger than memory: read, encoded and written part by part.

        The folder holds `part.parquet`, with row groups of 100,000 rows and ids as int32 where they fit, and the Schema beside
        it. It is written aside, and takes the place of an older one only when it is complete.

        Returns:
            Dataset: of the folder, opened and not read.
        """
        with folder_written_aside(path, "part.parquet") as folder:
            schema, writer = Schema(), None
            try:
                for frame in self._encoded(table):
                    dataset = self._dataset(frame)
                    schema = dataset.schema
                    rows = _narrowed(frame, schema).to_arrow()
                    writer = pq.ParquetWriter(folder / "part.parquet", rows.schema) if writer is None else writer
                    writer.write_table(rows.cast(writer.schema), row_group_size=ROW_GROUP)
            finally:
                if writer is not None:
                    writer.close()
            save_schema(schema, folder / ".merlin" / "schema.json")
        return Dataset(path)

    def inverse(self, column: str, ids: Sequence[object] | torch.Tensor | Ragged | pl.Series) -> list[object]:
        """The raw values of encoded ones, in lists where they come in lists; None for missing and unknown ids.

        Raises:
            ValueError: a column whose encoding keeps too little (hashes, buckets, calendar parts), or ids outside the domain.
        """
        self._check_fitted()
        if column not in self._learnt:
            raise ValueError(unknown("column", column, self.columns))
        listed = ids.to_lists() if isinstance(ids, Ragged) else ids.tolist() if isinstance(ids, torch.Tensor) else ids
        return on_values(pl.Series(listed), self._learnt[column].inverse).to_list()

    # ---- what it knows

    @property
    def schema(self) -> Schema:
        """The Schema of all columns after `transform`."""
        self._check_fitted()
        return Schema([c for learnt in self._learnt.values() for c in learnt.schema()])

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """The vectors of PretrainedVectors columns, (largest id + 1, W) float32 each, mapped into memory."""
        return dict(self._known.vectors)

    def vocabulary(self, column: str) -> pl.Series:
        """The raw values that have an id of their own, in the order of their ids.

        Raises:
            ValueError: a column without a vocabulary.
        """
        owner = self.columns[column].group(column) if column in self.columns else column
        if owner not in self._known.vocabularies:
            raise ValueError(
                f"column {column!r} has no vocabulary. " + unknown("column", column, self._known.vocabularies)
            )
        return self._known.vocabularies[owner].values

    def raw_columns(self, encoded: Sequence[str]) -> list[str]:
        """The raw columns from which some encoded ones are made."""
        self._check_fitted()
        makers = [n for n, learnt in self._learnt.items() if any(c.name in encoded for c in learnt.schema())]
        return list(dict.fromkeys(source for n in makers for source in self.columns[n].reads(n)))

    # ---- files

    def save(self, path: PathLike) -> None:
        """Write a folder: preprocessor.json, a Parquet file for each vocabulary, a .npy file for each table of vectors."""
        self._check_fitted()
        with folder_written_aside(path, "preprocessor.json") as folder:
            for number, vocabulary in enumerate(self._known.vocabularies.values()):
                vocabulary.values.alias("value").to_frame().write_parquet(folder / f"vocabulary-{number}.parquet")
            for number, vectors in enumerate(self._known.vectors.values()):
                save_vectors(vectors, folder / f"vectors-{number}.npy")
            text = {
                "format": FORMAT,
                "columns": {name: column.to_json() for name, column in self.columns.items()},
                "learnt": {name: learnt.state() for name, learnt in self._learnt.items()},
                "vocabularies": [[v.name, v.oov_buckets] for v in self._known.vocabularies.values()],
                "vectors": list(self._known.vectors),
            }
            (folder / "preprocessor.json").write_text(json.dumps(text, indent=2))

    @classmethod
    def load(cls, path: PathLike) -> "Preprocessor":
        """Read what `save` wrote."""
        folder = Path(path)
        file = folder / "preprocessor.json"
        if not file.exists():
            raise ValueError(f"no preprocessor at {path}: {file.name} is missing. Give the folder that save() wrote.")
        try:
            text = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is damaged: {error}. Save the Preprocessor again.") from error
        if text.get("format") != FORMAT:
            raise ValueError(
                f"{file} has format {text.get('format')}, this version reads {FORMAT}: fit the Preprocessor again."
            )
        files = [f"vocabulary-{n}.parquet" for n in range(len(text["vocabularies"]))]
        files += [f"vectors-{n}.npy" for n in range(len(text["vectors"]))]
        missing = [name for name in files if not (folder / name).exists()]
        if missing:
            raise ValueError(f"the preprocessor at {path} is damaged: {missing} are missing. Save it again.")
        loaded = cls({name: _declaration(dict(entry)) for name, entry in text["columns"].items()})
        known = loaded._known
        for number, (name, oov_buckets) in enumerate(text["vocabularies"]):
            values = pl.read_parquet(folder / f"vocabulary-{number}.parquet", glob=False)["value"].alias("")
            known.vocabularies[name] = Vocabulary(name, values, oov_buckets)
        for number, name in enumerate(text["vectors"]):
            known.vectors[name] = load_vectors(folder / f"vectors-{number}.npy")
        loaded._learnt = {n: c.restore(n, text["learnt"][n], known) for n, c in loaded.columns.items()}
        return loaded

    # ---- inside

    def _check_fitted(self) -> None:
        if not self._learnt:
            raise ValueError("the Preprocessor has learnt nothing yet: call fit(table) first.")

    def _owns_vocabulary(self, name: str, kind: type[Column]) -> bool:
        return isinstance(self.columns.get(name), kind) and self.columns[name].group(name) == name

    def _owners_first(self) -> list[str]:
        return sorted(self.columns, key=lambda name: self.columns[name].group(name) != name)

    def _encoded(self, table: Source | object) -> Iterator[pl.DataFrame]:
        """The parts of a table, encoded."""
        self._check_fitted()
        raw = RawTable(self.rows(table) if isinstance(table, Mapping) else table)
        names = self._readable(raw.columns)
        for frame in raw.parts():
            yield frame.with_columns(self._columns(frame, names))

    def _columns(self, frame: pl.DataFrame, names: Sequence[str]) -> list[pl.Series]:
        return [series for name in names for series in self._learnt[name].encode(frame)]

    def _readable(self, columns: Sequence[str]) -> list[str]:
        """The declared columns that can be made from some raw ones."""
        if tuple(columns) in self._readable_from:
            return self._readable_from[tuple(columns)]
        names = [name for name, column in self.columns.items() if set(column.reads(name)) <= set(columns)]
        if not names:
            wanted = list(dict.fromkeys(s for n, c in self.columns.items() for s in c.reads(n)))
            raise ValueError(f"the table has none of the columns {wanted}; it has {list(columns)}.")
        made = {c.name: name for name in names for c in self._learnt[name].schema()}
        for encoded, name in made.items():
            if encoded in columns and encoded not in self.columns[name].reads(name):
                raise ValueError(
                    f"the encoded column {encoded!r} would replace a raw column of that name, from which it is not made. "
                    f"Declare {name!r} under another name, or leave the raw column out."
                )
        self._readable_from[tuple(columns)] = names
        return names

    def _dataset(self, frame: pl.DataFrame) -> Dataset:
        return Dataset(frame, Schema([c for c in self.schema if c.name in frame.columns]))

    def rows(self, table: Mapping[str, object]) -> Mapping[str, object]:
        """A dict of columns as it is; of a dict that is one row, its columns of one row.

        A dict is one row if a value is no list, or if that of a column which holds lists is a list of single values.
        """
        lists = [s for n, learnt in self._learnt.items() if learnt.lists for s in self.columns[n].reads(n)]
        one = any(not _holds_many(v) for v in table.values()) or any(_one_list(table[s]) for s in lists if s in table)
        return {name: [value] for name, value in table.items()} if one else table


def _check_domains(schema: Schema) -> None:
    """ValueError when two columns of one domain count different ids: they would share an embedding table."""
    size: dict[str, tuple[str, float]] = {}
    for column in schema:
        if column.int_domain is None:
            continue
        first, largest = size.setdefault(column.int_domain.name or column.name, (column.name, column.int_domain.max))
        if largest != column.int_domain.max:
            raise ValueError(
                f"columns {first!r} and {column.name!r} have one domain, {column.int_domain.name!r}, but ids up to {largest} and "
                f"{column.int_domain.max}: give them equal buckets, or domains of their own."
            )


def _holds_many(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))


def _one_list(value: object) -> bool:
    """Whether the value of a list column is one row's list, and not the lists of several rows."""
    return isinstance(value, (list, tuple, np.ndarray)) and not any(v is None or _holds_many(v) for v in value)


def _narrowed(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Ids as int32 where their domain allows it."""
    small = [c.name for c in schema if c.int_domain is not None and c.int_domain.max <= INT32_MAX]
    kinds = {n: pl.List(pl.Int32) if is_list(frame[n]) else pl.Int32 for n in small}
    return frame.cast(kinds)  # type: ignore[arg-type]


def _declaration(entry: dict[str, object]) -> Column:
    kind = choose("kind of column", str(entry.pop("kind")), KINDS)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})
