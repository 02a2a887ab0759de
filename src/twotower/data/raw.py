"""RawTable: a table of raw values of any engine, read in parts or asked through Narwhals."""

import tempfile
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
        self.dataset = Dataset(source) if self._query is None else None  # type: ignore[arg-type]
        self.columns = self._query.collect_schema().names() if self.dataset is None else self.dataset.column_names  # type: ignore[union-attr]

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """The rows of some columns, or of all, as frames of about 250,000 rows at least (the last may be shorter)."""
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
        for frame in self._frames(self.columns):
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
            if isinstance(values.collect_schema()["value"], (nw.List, nw.Array)):
                values = values.explode("value")
            counted = values.filter(~nw.col("value").is_null()).group_by("value").agg(nw.len().alias("count"))
            yield counted.collect(backend="polars").to_native().with_columns(pl.col("count").cast(pl.Int64))

    def _frames(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        for name in columns:
            if name not in self.columns:
                raise ValueError(unknown("column", name, self.columns))
        if self.dataset is not None:
            yield from self.dataset.frames(columns)
            return
        assert self._query is not None
        query = self._query.select(*columns)
        native = query.to_native()
        if not isinstance(native, pl.LazyFrame) and hasattr(native, "__arrow_c_stream__"):
            reader = pa.RecordBatchReader.from_stream(native)
            for batch in reader:
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame
            return
        if isinstance(native, pl.LazyFrame):  # a query may give more rows than memory holds
            with tempfile.TemporaryDirectory() as folder:
                native.sink_parquet(f"{folder}/rows.parquet", row_group_size=PART_ROWS)
                yield from Dataset(f"{folder}/rows.parquet").frames(columns)
            return
        yield query.collect(backend="polars").to_native()
