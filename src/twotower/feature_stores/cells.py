"""Typed rows as plain cells (integers, floats, text), as SQLite and Redis hold them, and back without loss."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

Cell = int | float | str | None
NOT_A_NUMBER = "NaN"  # a cell of text: SQLite would make a null of the number


def schema_to_text(schema: pl.Schema) -> str:
    """The schema as text: Arrow's own form, in base 64."""
    return base64.b64encode(pl.DataFrame(schema=schema).to_arrow().schema.serialize().to_pybytes()).decode()


def schema_from_text(text: str) -> pl.Schema:
    """What `schema_to_text` wrote."""
    arrow = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    return pl.DataFrame(pl.from_arrow(arrow.empty_table())).schema


def check_storable(schema: pl.Schema) -> None:
    """ValueError for a column that plain cells cannot hold, or names that SQLite takes for one."""
    names: dict[bytes, str] = {}
    for name in schema:
        folded = name.encode().lower()  # as SQLite does: the case of ASCII letters alone
        if folded in names:
            raise ValueError(
                f"columns {names[folded]!r} and {name!r} differ only in the case of letters, which SQLite does not tell "
                "apart. Rename one."
            )
        names[folded] = name
    for name, kind in schema.items():
        plain = kind.inner if isinstance(kind, pl.List) else kind
        if not (plain.is_integer() or plain.is_float() or plain.is_temporal() or plain in (pl.String, pl.Boolean)):
            raise ValueError(
                f"column {name!r} holds {kind}; a feature store keeps numbers, text, booleans, times, and lists of them. "
                "Cast it, or leave it out."
            )


def to_cells(frame: pl.DataFrame) -> list[tuple[Cell, ...]]:
    """A tuple of cells for each row: times as whole numbers, lists as JSON text, and the text "NaN" for what is no number."""
    columns = []
    for series in frame:
        if series.dtype == pl.UInt64:  # SQLite's integers have a sign: the same bits
            series = series.reinterpret(signed=True)
        # times, in lists too, as numbers since 1970 in their own unit: nothing is lost
        plain = series.to_physical().to_list()
        if series.dtype.is_float() and series.is_nan().any():
            plain = [NOT_A_NUMBER if v is not None and math.isnan(v) else v for v in plain]
        columns.append([None if v is None else json.dumps(v) for v in plain] if series.dtype == pl.List else plain)
    return list(zip(*columns, strict=True))


def from_cells(rows: Sequence[Sequence[Any]], schema: pl.Schema) -> pl.DataFrame:
    """The rows with their types again."""
    columns = []
    for number, (name, kind) in enumerate(schema.items()):
        cells: list[Any] = [row[number] for row in rows]
        if isinstance(kind, pl.List):
            cells = [None if cell is None else json.loads(cell) for cell in cells]
        elif kind == pl.Boolean:
            cells = [None if cell is None else bool(cell) for cell in cells]
        elif kind.is_float():
            cells = [math.nan if cell == NOT_A_NUMBER else cell for cell in cells]
        physical = pl.Int64 if kind == pl.UInt64 else pl.Series(name, [], dtype=kind).to_physical().dtype
        series = pl.Series(name, cells, dtype=physical)
        columns.append(series.reinterpret(signed=False) if kind == pl.UInt64 else series.cast(kind))
    return pl.DataFrame(columns)
