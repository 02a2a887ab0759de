"""Attributes as Qdrant's JSON holds them, and back."""

import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import polars as pl

from twotower.indexes.filters import DataType, column_kind

Json = Any


def payload(value: Any) -> Json:
    """A value as Qdrant's JSON holds it: times in UTC, nan as missing."""
    if isinstance(value, list):
        return [payload(item) for item in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dt.date):
        when = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)
        utc = when.replace(tzinfo=dt.timezone.utc) if when.tzinfo is None else when.astimezone(dt.timezone.utc)
        return utc.isoformat()
    return value


def moment(nanoseconds: int, name: str) -> Json:
    """A time as Qdrant's JSON holds it; ValueError if it is finer than microseconds."""
    if nanoseconds % 1000:
        raise ValueError(
            f"Qdrant compares times by microseconds, and what attribute {name!r} is compared with is finer."
        )
    return payload(dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=nanoseconds // 1000))


def column(name: str, values: list[Json], dtype: DataType) -> pl.Series:
    """The attribute whose values `_payload` gave."""
    kind = column_kind(dtype)
    plain: Any = {"text": pl.String, "flag": pl.Boolean, "time": pl.Datetime("us", "UTC")}.get(
        kind.removeprefix("list of ")
    )
    if plain is None:
        inner = innermost(dtype)
        plain = inner if not inner.is_numeric() or inner.is_integer() else pl.Float64()
        if plain == pl.Float64:
            values = [_each(float, value) for value in values]  # JSON may hold 1.0 as 1
    elif kind.endswith("time"):
        values = [_each(dt.datetime.fromisoformat, value) for value in values]
    made = pl.Series(name, values, dtype=pl.List(plain) if kind.startswith("list of ") else plain)
    return made.cast(dtype)


def _each(change: Callable[[Any], Any], value: Json) -> Json:
    if isinstance(value, list):
        return [_each(change, item) for item in value]
    return None if value is None else change(value)


def innermost(dtype: DataType) -> DataType:
    """Of a list, the type of what it holds."""
    return dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else dtype


def payload_schema(dtype: DataType) -> str:
    """The kind of payload index that a server makes for an attribute."""
    kind = column_kind(dtype).removeprefix("list of ")
    if kind == "number":
        return "integer" if innermost(dtype).is_integer() else "float"
    return {"text": "keyword", "flag": "bool", "time": "datetime"}.get(kind, "keyword")


def check_held(attributes: pl.DataFrame | None) -> None:
    """Refuse values that Qdrant would round: numbers from 2^63 on, and times finer than microseconds."""
    for name, dtype in ({} if attributes is None else attributes.schema).items():
        inner = innermost(dtype)
        if inner != pl.UInt64 and not (isinstance(inner, pl.Datetime) and inner.time_unit == "ns"):
            continue
        column = attributes[name]  # type: ignore[index]
        values = (column.explode() if inner is not dtype else column).drop_nulls()
        if inner == pl.UInt64 and (values >= 2**63).any():
            raise ValueError(f"attribute {name!r} holds numbers from 2^63 on, which Qdrant cannot hold.")
        if inner != pl.UInt64 and (values.to_physical() % 1000 != 0).any():
            raise ValueError(f"attribute {name!r} holds nanoseconds, Qdrant microseconds: cast it to Datetime('us').")
