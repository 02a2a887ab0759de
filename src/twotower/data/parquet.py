"""Parquet files, read whole or row group by row group; an error names the file, the row group and the column."""

import glob
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.arrow import to_batch
from twotower.data.batch import Batch
from twotower.errors import unknown
from twotower.files import PathLike
from twotower.schema import Schema

# handles that one set of files keeps open: those of more files are opened again
OPEN_FILES = 16


@dataclass(frozen=True)
class RowGroup:
    """A part of a file.

    Args:
        path: the file.
        number: which of its row groups.
        rows: how many rows it holds.
        values: how many values each column holds; a list's elements count one by one.
    """

    path: str
    number: int
    rows: int
    values: dict[str, int]


class ParquetFiles:
    """Some files with the same columns, in any order; opening reads their footers alone.

    Args:
        paths: files, or URLs that fsspec knows, such as "s3://bucket/part.parquet".

    Raises:
        ValueError: a file that is no Parquet, or whose columns are not those of the first.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.groups: list[RowGroup] = []
        self.schema: pa.Schema = None
        # by thread as well: a reader shared by two threads fails, or waits forever (it keeps what it prefetches for one call)
        self._open: dict[tuple[int, str], Any] = {}
        self._footers: dict[str, Any] = {}
        for path in self.paths:
            footer = self._file(path)
            self._check(path, footer.schema_arrow)
            self.schema = footer.schema_arrow if self.schema is None else self.schema
            for number in range(footer.metadata.num_row_groups):
                group = footer.metadata.row_group(number)
                values: dict[str, int] = {}
                for leaf in (group.column(n) for n in range(group.num_columns)):
                    name = leaf.path_in_schema.split(".")[0]
                    values[name] = values.get(name, 0) + leaf.num_values
                self.groups.append(RowGroup(path, number, group.num_rows, values))

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(group.rows for group in self.groups)

    def size_in_memory(self, columns: Sequence[str]) -> int:
        """Bytes that some columns take as tensors, eight for each value at most."""
        return 8 * sum(group.values.get(name, 0) for group in self.groups for name in columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of some columns, or of all."""
        names = self.schema.names if columns is None else columns
        return self._joined([self.read_group(group, names) for group in self.groups], names)

    def read_group(self, group: RowGroup, columns: Sequence[str]) -> pa.Table:
        """The rows of one row group, the columns in this order."""
        self._known(columns)
        try:
            return self._rows(group, columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{group.path}, row group {group.number}{self._damaged(group, columns)}: the file is damaged, or changed since it "
                f"was opened: {error}. Write it anew."
            ) from error

    def batch_of(self, groups: Sequence[RowGroup], schema: Schema, narrow: bool = False) -> Batch:
        """The rows of some row groups as tensors; `narrow` as in `to_batch`."""
        tables = [self.read_group(group, schema.column_names) for group in groups]
        try:
            return to_batch(self._joined(tables, schema.column_names), schema, narrow)
        except ValueError as error:
            self._blame(groups, tables, schema)
            raise error

    def _joined(self, tables: Sequence[pa.Table], columns: Sequence[str]) -> pa.Table:
        # a file without rows may have no row group
        return pa.concat_tables(tables) if tables else self.schema.empty_table().select(list(columns))

    def _rows(self, group: RowGroup, columns: Sequence[str]) -> pa.Table:
        return self._file(group.path).read_row_group(group.number, list(columns)).select(list(columns))

    def _damaged(self, group: RowGroup, columns: Sequence[str]) -> str:
        """The first column that cannot be read, as a part of an error."""
        for name in columns:
            try:
                self._rows(group, [name])
            except (pa.ArrowException, OSError):
                return f", column {name!r}"
        return ""

    def _blame(self, groups: Sequence[RowGroup], tables: Sequence[pa.Table], schema: Schema) -> None:
        """The same error with the name of the first row group that has it."""
        for group, table in zip(groups, tables, strict=True):
            try:
                to_batch(table, schema)
            except ValueError as error:
                raise ValueError(f"{group.path}, row group {group.number}: {error}") from error

    def _known(self, columns: Sequence[str] | None) -> None:
        for name in columns or []:
            if name not in self.schema.names:
                raise ValueError(f"{self.paths[0]}: {unknown('column', name, self.schema.names)}")

    def _file(self, path: str) -> Any:
        key = (threading.get_ident(), path)
        file = self._open.get(key)
        if file is None:
            file = self._opened(path)
            if len(self._open) >= OPEN_FILES:
                # only forgotten, not closed: a reading thread may be at work on it
                self._open.pop(next(iter(tuple(self._open))), None)
            self._open[key] = file
        return file

    def _opened(self, path: str) -> Any:
        try:
            source = fsspec.open(path, "rb").open() if "://" in path else path
            file = pq.ParquetFile(source)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as Parquet: {error}. Is it whole, and not another format by this name?"
            ) from error
        if not file.metadata.equals(self._footers.setdefault(path, file.metadata)):
            raise ValueError(f"{path} was written anew since it was opened. Make the Dataset again.")
        return file

    def _check(self, path: str, schema: pa.Schema) -> None:
        if self.schema is None:
            return
        expected, found = ({field.name: field.type for field in s} for s in (self.schema, schema))
        for name in expected:
            if name not in found:
                raise ValueError(f"{path} lacks the column {name!r} that {self.paths[0]} has.")
            if found[name] != expected[name]:
                raise ValueError(
                    f"{path}: column {name!r} is {found[name]}, but {expected[name]} in {self.paths[0]}. Write all files with one "
                    "type for each column."
                )
        more = [name for name in found if name not in expected]
        if more:
            raise ValueError(
                f"{path} has the columns {more} more than {self.paths[0]}. Write all files with the same columns."
            )


def parquet_files(path: PathLike) -> list[str]:
    """The Parquet files that a path means: a file, all of a folder and its subfolders, or a glob of either; of a URL too.

    Of a folder these are its *.parquet, sorted, without hidden ones: no name in their path begins with "." or "_". The
    `key=value` of subfolders are not made columns.
    """
    text = os.fspath(path)
    if "://" in text:
        found = _remote(text)
    else:
        found = [file for match in matches(text) for file in (_of_folder(match) if os.path.isdir(match) else [match])]
    if not found:
        raise ValueError(f"no Parquet file at {text!r}: expected a file, a folder with *.parquet in it, or a glob.")
    return found


def matches(path: str) -> list[str]:
    """The files and folders that a local path or glob means."""
    return [path] if os.path.exists(path) else sorted(glob.glob(path))


def _of_folder(folder: str) -> list[str]:
    files = (os.path.join(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(file for file in files if _is_part(os.path.relpath(file, folder)))


def _is_part(inside: str) -> bool:
    names = inside.replace(os.sep, "/").split("/")
    return names[-1].endswith(".parquet") and not any(name.startswith((".", "_")) for name in names)


def _remote(url: str) -> list[str]:
    files, path = fsspec.core.url_to_fs(url)
    found = []
    for match, what in sorted(files.glob(path.rstrip("/"), detail=True).items()):
        if what["type"] == "directory":
            found += sorted(name for name in files.find(match) if _is_part(name[len(match) :].strip("/")))
        else:
            found.append(match)
    return [files.unstrip_protocol(name) for name in found]
