"""Features in an SQLite file: larger than memory, readable by anything, updated while a server reads it."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from twotower.data.dataset import Source
from twotower.feature_stores.base import FeatureStore, RawId, check_key, read_table
from twotower.feature_stores.cells import Cell, check_storable, from_cells, schema_from_text, schema_to_text, to_cells
from twotower.files import PathLike, written_aside

AT_ONCE = 10_000  # rows turned into cells, and ids asked for, at a time
PATIENCE = 10.0  # seconds that one who writes waits for another


class SQLiteFeatures(FeatureStore):
    """A table of features in an SQLite file, one row for each id.

    Lists are JSON text, times whole numbers since 1970 and NaN the text "NaN" in the file, so that any SQLite client can read
    them; `look_up` gives the types of the table that was written. Threads may share a store. When `create` puts another file in
    its place, all of them go on with that if it has the same columns, and raise if not. SQLite knows a file by its path: a
    `put` or `remove` at the very moment of a replacement may fail with "disk I/O error", and is to be made again.

    Args:
        path: the file that `create` wrote.
        read_only: refuse to write, and expect nobody else to: for a file in a bundle. The store goes on reading the file that it
            opened when another takes its place.

    Raises:
        ValueError: no such file, or another database.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "users.sqlite"
        >>> store = SQLiteFeatures.create(file, {"user": ["ann", "bob"], "age": [30, 40]}, key="user")
        >>> store.put({"user": ["ann"], "age": [31]})
        >>> store.look_up(["bob", "ann"]).rows["age"].to_list()
        [40, 31]
    """

    def __init__(self, path: PathLike, *, read_only: bool = False) -> None:
        self.path = Path(path).resolve()
        self.read_only = read_only
        self._threads = threading.local()
        self._one_at_a_time = threading.Lock()
        if not self.path.is_file():
            raise ValueError(f"no feature store at {self.path}. SQLiteFeatures.create(path, table, key) writes one.")
        try:
            first = self._connect()
            about = dict(first.execute("SELECT name, value FROM about"))
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is no feature store ({error}). SQLiteFeatures.create writes one.") from error
        super().__init__(about["key"], schema_from_text(about["schema"]))
        # one for all threads, made now: SQLite opens by path alone, and later another file may stand there
        self._shared = first if read_only else None
        if not read_only:
            first.close()

    @classmethod
    def create(cls, path: PathLike, table: Source, key: str) -> "SQLiteFeatures":
        """Write a new file, in place of an older one only when it is complete.

        Args:
            path: where.
            table: the key, raw query columns and, if wanted, `seen`.
            key: the id column.

        Raises:
            ValueError: ids that repeat or are missing, or columns that SQLite cannot hold.
        """
        frame = read_table(table)
        check_key(frame, key)
        check_storable(frame.schema)
        with ExitStack() as until_replaced, written_aside(path) as file:
            database = sqlite3.connect(file)
            try:
                database.execute("PRAGMA journal_mode = OFF")  # the file is new: a crash leaves nothing to mend
                database.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT)")
                about = {"key": key, "schema": schema_to_text(frame.schema)}
                database.executemany("INSERT INTO about VALUES (?, ?)", about.items())
                columns = ", ".join(_quoted(n) + (" PRIMARY KEY" if n == key else "") for n in frame.columns)
                database.execute(f"CREATE TABLE features ({columns}) WITHOUT ROWID")
                _insert(database, frame)
                database.commit()
            finally:
                database.close()
            until_replaced.enter_context(_nobody_writes(Path(path).resolve()))
        return cls(path)

    def __len__(self) -> int:
        return int(self._ask("SELECT count(*) FROM features")[0][0])

    def rows_of(self, ids: Sequence[RawId]) -> pl.DataFrame:
        names = ", ".join(map(_quoted, self.schema))
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), AT_ONCE):
            part = [cell for (cell,) in self._key_cells(ids[start : start + AT_ONCE])]
            places = ", ".join("?" * len(part))
            asked = f"SELECT {names} FROM features WHERE {_quoted(self.key)} IN ({places})"
            found += self._ask(asked, part)
        return from_cells(found, self.schema)

    def some_ids(self, count: int) -> list[RawId]:
        key = _quoted(self.key)
        found = self._ask(f"SELECT {key} FROM features ORDER BY {key} LIMIT ?", [count])
        return from_cells(found, pl.Schema({self.key: self.schema[self.key]}))[self.key].to_list()

    def put(self, table: Source) -> None:
        self._check_writable()
        frame = self.check_table(table)
        with self._writing() as database:
            _insert(database, frame)

    def remove(self, ids: Sequence[RawId]) -> None:
        self._check_writable()
        checked = self._key_cells(self.check_ids(ids))
        with self._writing() as database:
            database.executemany(f"DELETE FROM features WHERE {_quoted(self.key)} = ?", checked)

    def write_sqlite(self, path: PathLike) -> None:
        with written_aside(path) as file:
            self._ask("VACUUM INTO ?", [str(file)])

    def _key_cells(self, ids: Sequence[RawId]) -> list[tuple[Cell, ...]]:
        return to_cells(pl.DataFrame({self.key: list(ids)}, schema={self.key: self.schema[self.key]}))

    def _check_writable(self) -> None:
        if self.read_only:
            raise ValueError(
                f"the feature store {self.path} was opened to be read only; create one of its own to write to."
            )

    def _ask(self, asked: str, values: Sequence[Cell] = ()) -> list[tuple[Any, ...]]:
        if self._shared is not None:
            with self._one_at_a_time:
                return self._shared.execute(asked, values).fetchall()
        while True:
            try:
                return self._connection().execute(asked, values).fetchall()
            except sqlite3.OperationalError:
                self._raise_unless_replaced()

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection to the file that stands at the path now, of a store that may be written to."""
        held: tuple[tuple[int, int], sqlite3.Connection] | None = getattr(self._threads, "held", None)
        while held is None or held[0] != self._file():
            if held is not None:
                held[1].close()
            held = self._threads.held = (self._file(), self._connect())  # and again, if it is replaced in between
            about = dict(held[1].execute("SELECT name, value FROM about"))
            if about["key"] != self.key or schema_from_text(about["schema"]) != self.schema:
                del self._threads.held
                raise ValueError(
                    f"{self.path} was written anew with other columns than {list(self.schema)}. Open the store again."
                )
        return held[1]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the file that stands at the path; `create` puts no other there meanwhile."""
        while True:
            try:
                database = self._connection()
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                self._raise_unless_replaced()
                continue
            with database:
                if self._threads.held[0] == self._file():
                    yield database
                    return

    def _raise_unless_replaced(self) -> None:
        """Within an exception: SQLite may trip over a file that is replaced while it reads; then the new one is asked."""
        held = getattr(self._threads, "held", None)
        if held is None or held[0] == self._file():
            raise

    def _file(self) -> tuple[int, int]:
        """Which file stands at the path."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            raise ValueError(f"the feature store {self.path} is gone. SQLiteFeatures.create writes one.") from None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        mode = "mode=ro&immutable=1" if self.read_only else "mode=rw"
        address = f"{self.path.as_uri()}?{mode}"
        # by its own thread, or one at a time; dropped in any
        return sqlite3.connect(address, uri=True, timeout=PATIENCE, check_same_thread=False, factory=_Connection)


class _Connection(sqlite3.Connection):
    """Closed with its thread, or with the store, when nobody holds it any more."""

    def __del__(self) -> None:
        self.close()


@contextmanager
def _nobody_writes(path: Path) -> Iterator[None]:
    """While another file takes the place of a store: the journal of a writer would be taken for the new file's."""
    if not path.is_file() or os.name != "posix":  # elsewhere a file that is open cannot be replaced
        yield
        return
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=PATIENCE)) as old:
        try:
            old.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise
        yield  # what is no database, or cannot be written, nobody writes to


def _insert(database: sqlite3.Connection, frame: pl.DataFrame) -> None:
    places = ", ".join("?" * frame.width)
    for part in frame.iter_slices(AT_ONCE):
        database.executemany(f"INSERT OR REPLACE INTO features VALUES ({places})", to_cells(part))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
