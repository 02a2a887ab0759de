"""RawTable: a table of raw values of any engine, read in parts or asked through Narwhals."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import narwhals as nw
import polars as pl
import pyarrow as pa

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown

PART_ROWS = 250_000


class RawTable:
    """Raw values: files, tables in memory, or a query of another engine that has not run yet.

    Args:
        source: what a Dataset takes; a Polars LazyFrame; a DuckDB relation, a PySpark DataFrame or an Ibis table.

    Raises:
        ValueError: a source that is none of these.
    """

    def __init__(self, source: "Source | object") -> None:
        frame = nw.from_native(source, pass_through=True)  # type: ignore[call-overload]
        self._query: nw.LazyFrame[Any] | None = frame if isinstance(frame, nw.LazyFrame) else None
        self._rows: str | None = None
        self.dataset = Dataset(source) if self._query is None else None  # type: ignore[arg-type]
        self.columns = self._query.collect_schema().names() if self.dataset is None else self.dataset.column_names  # type: ignore[union-attr]

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """The rows of some columns, or of all, as frames of about 250,000 rows at least (the last may be shorter).

        A table without rows gives one frame without rows, so that its types are known.
        """
        held: list[pl.DataFrame] = []
        for frame in self._frames(list(self.columns if columns is None else columns)):
            held.append(frame)
            if sum(len(part) for part in held) >= PART_ROWS:
                yield pl.concat(held)
                held = []
        if held:
            yield pl.concat(held)

    def head(self, rows: int) -> pl.DataFrame:
        """The first rows."""
        if self._query is not None:
            return self._query.head(rows).collect(backend="polars").to_native()
        held: list[pl.DataFrame] = []
        for frame in self._frames(list(self.columns)):
            held.append(frame.head(rows - sum(len(part) for part in held)))
            if sum(len(part) for part in held) >= rows:
                break
        return pl.concat(held)

    def queries(self, columns: Sequence[str]) -> Iterator[nw.LazyFrame[Any]]:
        """The same rows for the table's own engine to count and sum: the whole table at once, or Polars part by part."""
        if self._query is not None:
            yield self._query.select(*columns)
            return
        for part in self.parts(columns):
            yield nw.from_native(part.lazy())

    def is_list(self, column: str) -> bool:
        """Whether each row of a column holds a list."""
        if self._query is not None:
            return isinstance(self._query.collect_schema()[column], (nw.List, nw.Array))
        assert self.dataset is not None
        kind = self.dataset.arrow_schema.field(column).type
        return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)

    def counts(self, column: str) -> Iterator[pl.DataFrame]:
        """Tables (value, count) that together say how often each value occurs; lists by their elements, nulls not."""
        for query in self.queries([column]):
            values = query.select(nw.col(column).alias("value"))
            kind = values.collect_schema()["value"]
            if isinstance(kind, nw.Array):
                values = values.select(nw.col("value").cast(nw.List(kind.inner)))
            if isinstance(kind, (nw.List, nw.Array)):
                values = values.explode("value")
            counted = values.filter(~nw.col("value").is_null()).group_by("value").agg(nw.len().alias("count"))
            yield counted.collect(backend="polars").to_native().with_columns(pl.col("count").cast(pl.Int64))

    def _frames(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        """The rows in whatever pieces they come; at least one, without rows if there are none, so that the types are known."""
        for name in columns:
            if name not in self.columns:
                raise ValueError(unknown("column", name, self.columns))
        if self.dataset is not None:
            yield from _stored(self.dataset, columns)
            return
        assert self._query is not None
        native = self._query.to_native()
        if isinstance(native, pl.LazyFrame):
            yield from _stored(self._written(native), columns)
            return
        query = self._query.select(*columns)
        native = query.to_native()
        if not hasattr(native, "__arrow_c_stream__"):
            yield query.collect(backend="polars").to_native()
            return
        reader = pa.RecordBatchReader.from_stream(native)
        yield _frame(reader.schema.empty_table())
        for batch in reader:
            yield _frame(batch)

    def _written(self, query: pl.LazyFrame) -> Dataset:
        """The rows of a query in a temporary file, written once: it may give more rows than memory holds."""
        if self._rows is None:
            folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._rows = f"{folder}/rows.parquet"
            query.sink_parquet(self._rows, row_group_size=PART_ROWS)
        return Dataset(self._rows)


def _stored(dataset: Dataset, columns: list[str]) -> Iterator[pl.DataFrame]:
    yield _frame(pa.schema([dataset.arrow_schema.field(name) for name in columns]).empty_table())
    yield from dataset.frames(columns)


def _frame(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
