"""Preprocessor: raw tables to ids and numbers, learnt once, saved, and the same in training and serving."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl
import torch

from twotower.data.columns import (
    Categorical,
    Column,
    Numeric,
    Text,
    Vocabulary,
    categorical_schema,
    learn_scale,
    learn_vocabulary,
    numbers,
    words,
)
from twotower.data.dataset import Dataset, Source
from twotower.errors import choose, unknown
from twotower.files import PathLike, folder_written_aside
from twotower.schema import ColumnSchema, Schema, Tags
from twotower.tags import TARGETS, TagSet, several_tags

FORMAT = 1
KINDS: dict[str, type[Column]] = {"categorical": Categorical, "text": Text, "numeric": Numeric}


class Preprocessor:
    """Encodes raw columns; what it learnt travels with the model.

    Args:
        columns: how to read each column, by name.

    Example:
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
        self.vocabularies: dict[str, Vocabulary] = {}
        self.scales: dict[str, tuple[float, float]] = {}
        self.lists: set[str] = set()
        for name, column in self.columns.items():
            share = column.share if isinstance(column, Categorical) else None
            if share is not None and (share not in self.columns or self._vocabulary_name(share) != share):
                owners = [n for n in self.columns if self._vocabulary_name(n) == n]
                raise ValueError(f"{name!r} cannot share a vocabulary. {unknown('column', share, owners)}")

    def fit(self, *tables: Source) -> "Preprocessor":
        """Learn vocabularies and scales from all tables together: a column may stand in several of them.

        Raises:
            ValueError: a declared column is in none of the tables, or holds something else than declared.
        """
        frames = [Dataset(table).to_polars() for table in tables]
        found: dict[str, list[pl.Series]] = {}
        for name, column in self.columns.items():
            found[name] = [self._tokens(column, f[name]) for f in frames if name in f.columns]
            if not found[name]:
                seen = sorted({n for f in frames for n in f.columns})
                raise ValueError(f"a declared column is in none of the tables. {unknown('column', name, seen)}")
        self.lists = {n for n, cs in found.items() if any(isinstance(c.dtype, pl.List) for c in cs)}
        self.scales = {
            n: learn_scale(n, found[n]) for n, c in self.columns.items() if isinstance(c, Numeric) and c.scale
        }
        self.vocabularies = {}
        for name, column in self.columns.items():
            if isinstance(column, (Categorical, Text)) and self._vocabulary_name(name) == name:
                sharing = [c for n in self.columns if self._vocabulary_name(n) == name for c in found[n]]
                self.vocabularies[name] = learn_vocabulary(name, sharing, column.min_count)
        return self

    def transform(self, table: Source) -> Dataset:
        """The table with its declared columns encoded, and the Schema of those.

        Other columns pass through as they are. The Schema does not name them, so no tower reads them; they serve for
        splitting, grouping and display.
        """
        self._check_fitted()
        frame = Dataset(table).to_polars()
        names = [name for name in self.columns if name in frame.columns]
        if not names:
            raise ValueError(f"the table has none of the columns {list(self.columns)}; it has {frame.columns}.")
        encoded = [self._encode(name, frame[name]).alias(name) for name in names]
        return Dataset(frame.with_columns(encoded), self.schema.select_by_name(names))

    def fit_transform(self, table: Source) -> Dataset:
        """`fit` and `transform` on one table."""
        return self.fit(table).transform(table)

    def inverse(self, column: str, ids: Sequence[int] | torch.Tensor | pl.Series) -> list[object]:
        """The raw values of encoded ids; None for the ids of missing and unknown values."""
        self._check_fitted()
        name = self._vocabulary_name(column)
        if name is None:
            raise ValueError(f"column {column!r} has no vocabulary. " + unknown("column", column, self.vocabularies))
        codes = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        return self.vocabularies[name].decode(pl.Series(codes, dtype=pl.Int64)).to_list()

    @property
    def schema(self) -> Schema:
        """The Schema of all columns after `transform`."""
        self._check_fitted()
        return Schema([self._column_schema(name, column) for name, column in self.columns.items()])

    def save(self, path: PathLike) -> None:
        """Write a folder: preprocessor.json, and one Parquet file for each vocabulary."""
        self._check_fitted()
        with folder_written_aside(path, "preprocessor.json") as folder:
            for number, vocabulary in enumerate(self.vocabularies.values()):
                vocabulary.values.alias("value").to_frame().write_parquet(folder / f"vocabulary-{number}.parquet")
            kinds = {kind: name for name, kind in KINDS.items()}
            text = {
                "format": FORMAT,
                "columns": {n: {"kind": kinds[type(c)]} | asdict(c) for n, c in self.columns.items()},
                "vocabularies": list(self.vocabularies),
                "scales": self.scales,
                "lists": sorted(self.lists),
            }
            (folder / "preprocessor.json").write_text(json.dumps(text, indent=2))

    @classmethod
    def load(cls, path: PathLike) -> "Preprocessor":
        """Read what `save` wrote."""
        file = Path(path) / "preprocessor.json"
        if not file.exists():
            raise ValueError(f"no preprocessor at {path}: {file.name} is missing. Give the folder that save() wrote.")
        text = json.loads(file.read_text())
        if text["format"] != FORMAT:
            raise ValueError(f"{file} has format {text['format']}, this version reads {FORMAT}: update twotower.")
        columns = {name: _declaration(dict(entry)) for name, entry in text["columns"].items()}
        loaded = cls(columns)
        for number, name in enumerate(text["vocabularies"]):
            values = pl.read_parquet(Path(path) / f"vocabulary-{number}.parquet")["value"]
            loaded.vocabularies[name] = Vocabulary(name, values)
        loaded.scales = {name: (mean, deviation) for name, (mean, deviation) in text["scales"].items()}
        loaded.lists = set(text["lists"])
        return loaded

    def _check_fitted(self) -> None:
        if not (self.vocabularies or self.scales or self.lists) and any(
            not isinstance(c, Numeric) or c.scale for c in self.columns.values()
        ):
            raise ValueError("the Preprocessor has learnt nothing yet: call fit(table) first.")

    def _vocabulary_name(self, name: str) -> str | None:
        column = self.columns.get(name)
        if isinstance(column, Categorical):
            return column.share or name
        return name if isinstance(column, Text) else None

    @staticmethod
    def _tokens(column: Column, raw: pl.Series) -> pl.Series:
        return words(raw) if isinstance(column, Text) else raw

    def _encode(self, name: str, raw: pl.Series) -> pl.Series:
        vocabulary = self._vocabulary_name(name)
        if vocabulary is None:
            mean, deviation = self.scales.get(name, (0.0, 1.0))
            return ((numbers(raw) - mean) / deviation).cast(pl.Float32)
        tokens = self._tokens(self.columns[name], raw)
        if tokens.dtype == pl.Null and name in self.lists:
            tokens = tokens.cast(pl.List(pl.Null))
        if isinstance(tokens.dtype, pl.List) != (name in self.lists):
            expected = "lists" if name in self.lists else "one value a row"
            raise ValueError(f"column {name!r} was learnt from {expected}, but now holds {tokens.dtype}.")
        return self.vocabularies[vocabulary].encode(tokens)

    def _column_schema(self, name: str, column: Column) -> ColumnSchema:
        vocabulary = self._vocabulary_name(name)
        if vocabulary is not None:
            return categorical_schema(
                name, several_tags(column.tags), self.vocabularies[vocabulary], name in self.lists
            )
        given = TagSet(column.tags)
        tags = given if any(tag in given for tag in TARGETS) else given + Tags.CONTINUOUS
        return ColumnSchema(name, tags, dtype="float32", is_list=False)


def _declaration(entry: dict[str, object]) -> Column:
    kind = choose("kind of column", str(entry.pop("kind")), KINDS)
    entry["tags"] = tuple(entry["tags"])  # type: ignore[arg-type]
    return kind(**entry)  # type: ignore[arg-type]
