"""Timestamp: moments to the parts of the calendar."""

import difflib
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, keep_tags, no_way_back
from twotower.data.columns.categorical import id_schema
from twotower.data.raw import RawTable
from twotower.data.times import UNITS, moments
from twotower.errors import choose
from twotower.schema import ColumnSchema

# the part's name: how many values it has, and its number from 0
PARTS: dict[str, tuple[int, Callable[[pl.Expr], pl.Expr]]] = {
    "minute": (60, lambda t: t.dt.minute().cast(pl.Int64)),
    "hour": (24, lambda t: t.dt.hour().cast(pl.Int64)),
    "weekday": (7, lambda t: t.dt.weekday().cast(pl.Int64) - 1),
    "hour_of_week": (168, lambda t: (t.dt.weekday().cast(pl.Int64) - 1) * 24 + t.dt.hour()),
    "day": (31, lambda t: t.dt.day().cast(pl.Int64) - 1),
    "week": (53, lambda t: t.dt.week().cast(pl.Int64) - 1),
    "month": (12, lambda t: t.dt.month().cast(pl.Int64) - 1),
    "quarter": (4, lambda t: t.dt.quarter().cast(pl.Int64) - 1),
}


@dataclass(frozen=True)
class Timestamp(Column):
    """A moment, as ids of calendar parts: the columns `<name>_<part>`, whose id is 1 + the part from 0, and 0 for null.

    Args:
        tags: what the columns mean; `Tags.CATEGORICAL` is added.
        parts: of "minute", "hour", "weekday" (Monday first), "hour_of_week", "day", "week" (ISO 8601), "month", "quarter".
        unit: of integers since 1970 (UTC): "s", "ms", "us" or "ns". Dates, times and ISO 8601 texts need none; texts with and
            without a clock time or a zone may stand in one column.
        time_zone: in which the parts are told, such as "America/Sao_Paulo"; times without a zone count as UTC.
        source: the raw column to read; by default the one of the same name.

    The age of something at an event is Age; time as a number is Numeric.

    Raises:
        ValueError: an unknown part, unit or time zone, no part, and in use: other types, texts that are no times, or years
            outside 1900 to 2200, which a wrong unit gives.

    Example:
        >>> from twotower import Preprocessor
        >>> made = Preprocessor({"asked": Timestamp(parts=("hour", "weekday"))}).fit({"asked": [0]})
        >>> made.transform({"asked": ["1970-01-01T05:30:00", None]}).select(["asked_hour", "asked_weekday"]).table.to_pydict()
        {'asked_hour': [6, 0], 'asked_weekday': [4, 0]}
    """

    kind: ClassVar[str] = "timestamp"
    tags: Tagged = ()
    parts: tuple[str, ...] = ("hour", "weekday")
    unit: str = "s"
    time_zone: str = "UTC"
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)
        object.__setattr__(self, "parts", (self.parts,) if isinstance(self.parts, str) else tuple(self.parts))
        choose("unit", self.unit, UNITS)
        for part in self.parts:
            choose("part", part, PARTS)
        if not self.parts:
            raise ValueError(f"a Timestamp needs at least one part of {', '.join(PARTS)}.")
        _check_zone(self.time_zone)

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or name,)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        return _Calendar(name, self)

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Calendar(name, self)


class _Calendar(Learnt):
    def __init__(self, name: str, column: Timestamp) -> None:
        super().__init__(name, lists=False)
        self.column = column

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        column = self.column
        told = moments(raw[column.reads(self.name)[0]], column.unit).dt.convert_time_zone(column.time_zone)
        wanted = [(1 + PARTS[part][1](pl.col("t"))).fill_null(0).alias(f"{self.name}_{part}") for part in column.parts]
        return told.alias("t").to_frame().select(wanted).get_columns()

    def schema(self) -> list[ColumnSchema]:
        names = {part: f"{self.name}_{part}" for part in self.column.parts}
        domains = {part: {"min": 0, "max": PARTS[part][0], "name": name} for part, name in names.items()}
        return [id_schema(names[p], self.column.tags, False, {"domain": domains[p]}) for p in self.column.parts]

    def inverse(self, codes: pl.Series) -> pl.Series:
        raise no_way_back(self.name, "told by parts of the calendar")

    def state(self) -> Json:
        return {}


def _check_zone(time_zone: str) -> None:
    try:  # Polars has a list of its own, and is the one that will be asked; it takes "" for UTC
        pl.Series([0]).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(time_zone or "none")
    except (pl.exceptions.PolarsError, TypeError) as error:
        close = difflib.get_close_matches(str(time_zone), zoneinfo.available_timezones(), n=1)
        raise ValueError(
            f"unknown time_zone {time_zone!r}: expected a name of the IANA database, such as "
            f"{(close or ['America/Sao_Paulo'])[0]!r}."
        ) from error
