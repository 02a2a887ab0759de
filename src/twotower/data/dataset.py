"""Dataset: a table and its Schema; from Parquet, Arrow, Polars, pandas or a dict."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union, runtime_checkable

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from twotower.data.arrow import table_of_columns, table_of_records, to_batch
from twotower.data.batch import Batch
from twotower.data.parquet import ParquetFiles, matches, parquet_files
from twotower.errors import unknown
from twotower.files import PathLike, written_aside
from twotower.schema import Schema, Tags, schema_from_arrow
from twotower.schema_io import find_schema, save_schema

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class ArrowTabular(Protocol):
    """Anything that speaks the Arrow PyCapsule interface: Arrow, Polars, pandas >= 2.2, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Source = Union[
    PathLike, Sequence[PathLike], ArrowTabular, Mapping[str, Any], Sequence[Mapping[str, Any]], pl.LazyFrame, "Dataset"
]


class Dataset:
    """A table of interactions, users or items, with the Schema that says how to read it.

    Files are opened by their footers; rows are read when they are asked for, and only the columns that are.

    Args:
        source: path or URL of a Parquet file, a folder or a glob of them, a list of paths, an Arrow / Polars / pandas
            table, a Polars LazyFrame, a dict of columns (tensors and 2-d arrays too), a list of rows as dicts (what one lacks
            is null), or another Dataset.
        schema: the columns to read as features. Without it: the schema file stored beside the data
            (`.merlin/schema.json` or `schema.pbtxt`; all that lie beside several paths must agree), else names and types
            alone, without tags or domains.

    Raises:
        ValueError: no such file, values that are no column, two columns of one name, or the schema names columns that the
            table lacks.

    Example:
        >>> data = Dataset({"user_id": [1, 2], "item_id": [7, 3_000_000_000]})
        >>> data.num_rows, data.column_names
        (2, ['user_id', 'item_id'])
    """

    def __init__(self, source: Source, schema: Schema | None = None) -> None:
        held, stored = _read(source, schema is None)
        self.files = held if isinstance(held, ParquetFiles) else None
        self._table = held if isinstance(held, pa.Table) else None
        twice = sorted(name for name, count in Counter(held.schema.names).items() if count > 1)
        if twice:
            raise ValueError(f"the data has several columns of one name: {twice}. Rename them.")
        known = stored if schema is None else schema
        self.schema = schema_from_arrow(held.schema) if known is None else known
        for name in self.schema.column_names:
            if name not in self.column_names:
                raise ValueError(
                    f"the schema names a column that the data lacks. {unknown('column', name, self.column_names)}"
                )

    @property
    def table(self) -> pa.Table:
        """All rows and columns, read from the files at the first call."""
        if self._table is None:
            assert self.files is not None
            self._table = self.files.read()
        return self._table

    @property
    def num_rows(self) -> int:
        return int(self._table.num_rows) if self._table is not None else self._stored().num_rows

    @property
    def column_names(self) -> list[str]:
        return list(self.arrow_schema.names)

    @property
    def arrow_schema(self) -> pa.Schema:
        """The columns as they are stored."""
        return self._table.schema if self._table is not None else self._stored().schema

    def _stored(self) -> ParquetFiles:
        assert self.files is not None  # a dataset has a table or files
        return self.files

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"Dataset({self.num_rows:,} rows)\n{self.schema!r}"

    def select(self, columns: Schema | str | Sequence[str]) -> "Dataset":
        """Only these columns, in this order."""
        chosen = [columns] if isinstance(columns, str) else columns
        names = chosen.column_names if isinstance(chosen, Schema) else list(chosen)
        for name in names:
            if name not in self.column_names:
                raise ValueError(unknown("column", name, self.column_names))
        kept = [name for name in names if name in self.schema]
        return Dataset(self._columns(names), columns if isinstance(columns, Schema) else self.schema[kept])

    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Some columns as Polars frames that together hold all rows: one of a table, one for each row group of files."""
        if self._table is not None:
            yield _frame(self._table.select(columns))
            return
        for group in self._stored().groups:
            yield _frame(self._stored().read_group(group, columns))

    def _columns(self, names: list[str]) -> pa.Table:
        return self._table.select(names) if self._table is not None else self._stored().read(names)

    def with_schema(self, schema: Schema) -> "Dataset":
        """The same rows read with another schema."""
        return Dataset(self, schema)

    def head(self, rows: int = 5) -> "Dataset":
        """The first rows."""
        return Dataset(self.table.slice(0, rows), self.schema)

    def batch(self, schema: Schema | None = None) -> Batch:
        """The columns of the schema as tensors, all rows at once."""
        wanted = self.schema if schema is None else schema
        for name in wanted.column_names:
            if name not in self.column_names:
                raise ValueError(f"the data lacks a column. {unknown('column', name, self.column_names)}")
        if self._table is not None:
            return to_batch(self._table.select(wanted.column_names), wanted)
        return self._stored().batch_of(self._stored().groups, wanted)

    def to_polars(self) -> pl.DataFrame:
        """A Polars frame over the same memory."""
        return _frame(self.table)

    def to_pandas(self) -> "pd.DataFrame":
        """A pandas frame; pandas must be installed."""
        return self.table.to_pandas()

    def to_parquet(self, path: PathLike) -> None:
        """Write `path/part.parquet` and `path/.merlin/schema.json`, each aside and then renamed."""
        folder = Path(path)
        with written_aside(folder / "part.parquet") as aside:
            pq.write_table(self.table, aside, compression="zstd")
        save_schema(self.schema, folder / ".merlin" / "schema.json")


def unique_rows_by_features(dataset: Dataset, features_tag: Tags | str, grouping_tag: Tags | str = Tags.ID) -> Dataset:
    """One row for each id: the columns with `features_tag`, the first row of every distinct `grouping_tag` id.

    Args:
        dataset: for example interactions with user and item columns.
        features_tag: the columns to keep, such as `Tags.ITEM`.
        grouping_tag: which of them holds the id.

    Raises:
        ValueError: not exactly one column has both tags.

    Example:
        >>> schema = Schema([ColumnSchema("user", tags=[Tags.USER_ID], dtype="int64"),
        ...                  ColumnSchema("age", tags=[Tags.USER], dtype="int64")])
        >>> rows = Dataset({"user": [1, 1, 2], "age": [30, 30, 41]}, schema)
        >>> unique_rows_by_features(rows, Tags.USER).table.to_pydict()
        {'user': [1, 2], 'age': [30, 41]}
    """
    schema = dataset.schema.select_by_tag(features_tag)
    ids = schema.select_by_tag(grouping_tag).column_names
    if len(ids) != 1:
        raise ValueError(
            f"expected one column tagged {features_tag} and {grouping_tag}, found {ids} among {schema.column_names}."
        )
    frame = dataset.select(schema).to_polars().unique(ids, keep="first", maintain_order=True)
    return Dataset(frame, schema)


def sample_batch(dataset: Dataset, batch_size: int, shuffle: bool = False, seed: int = 0) -> Batch:
    """The first rows of a dataset as a batch, or `shuffle`d ones drawn with `seed`."""
    if shuffle:
        order = torch.randperm(dataset.num_rows, generator=torch.Generator().manual_seed(seed))
        return Dataset(dataset.table.take(order[:batch_size].numpy()), dataset.schema).batch()
    return dataset.head(batch_size).batch()


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # a table, not a single column
    return frame


def _read(source: Source, with_schema: bool) -> tuple[pa.Table | ParquetFiles, Schema | None]:
    if isinstance(source, Dataset):
        return source.files if source._table is None else source._table, source.schema
    if isinstance(source, pl.LazyFrame):
        return pa.table(source.collect()), None
    if isinstance(source, Mapping):
        return table_of_columns(source), None
    if isinstance(source, (str, os.PathLike)):
        return _read_files([source], with_schema)
    if isinstance(source, Sequence):
        return _read_list(source, with_schema)
    if not hasattr(source, "__arrow_c_stream__"):
        raise ValueError(
            f"cannot read a {type(source).__name__} as a table; give a Parquet path, an Arrow, Polars or pandas table, "
            "a dict of columns, or a list of rows as dicts."
        )
    return pa.table(source), None


def _read_list(source: Sequence[Any], with_schema: bool) -> tuple[pa.Table | ParquetFiles, Schema | None]:
    if not source:
        raise ValueError("an empty list is no table: expected paths of Parquet files, or rows as dicts.")
    if all(isinstance(row, Mapping) for row in source):
        return table_of_records(source), None
    for part in source:
        if not isinstance(part, (str, os.PathLike)):
            raise ValueError(
                f"a list must hold paths alone, or rows as dicts alone, got a {type(part).__name__}. Give a table of one "
                "column as a dict: {name: values}."
            )
    return _read_files(source, with_schema)


def _read_files(paths: Sequence[PathLike], with_schema: bool) -> tuple[ParquetFiles, Schema | None]:
    files = {os.fspath(path): parquet_files(path) for path in paths}
    stored = _stored_schema(files) if with_schema else None
    return ParquetFiles([file for found in files.values() for file in found]), stored


def _stored_schema(files: Mapping[str, Sequence[str]]) -> Schema | None:
    """The one schema that lies beside some local paths, or else beside their files."""
    find = cache(find_schema)  # many files lie in one folder
    found: dict[str, Schema] = {}
    for path, own in files.items():
        if "://" in path:
            continue
        folders = (place if os.path.isdir(place) else os.path.dirname(place) for place in matches(path))
        beside = [(folder, find(folder or ".")) for folder in dict.fromkeys(folders)]
        if all(schema is None for _, schema in beside):
            beside = [(folder, find(folder or ".")) for folder in dict.fromkeys(map(os.path.dirname, own))]
        found |= {folder: schema for folder, schema in beside if schema is not None}
    first = next(iter(found), "")
    for folder, schema in found.items():
        if schema != found[first]:
            raise ValueError(
                f"the schemas stored beside {first!r} and {folder!r} differ. Give the one to read by: schema=..., for example "
                "load_schema of one of them."
            )
    return found.get(first)
