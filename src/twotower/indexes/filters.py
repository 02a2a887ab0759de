"""Filter: conditions on the attributes of candidates, such as a genre, a price or a date."""

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl

from twotower.errors import unknown

DataType = Any  # of Polars; its classes and instances both serve
Scalar = str | bool | int | float | Decimal | dt.date | dt.datetime
COMPARISONS: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "eq": lambda column, value: column == value,
    "ne": lambda column, value: column != value,
    "gt": lambda column, value: column > value,
    "gte": lambda column, value: column >= value,
    "lt": lambda column, value: column < value,
    "lte": lambda column, value: column <= value,
}
SETS = ("in", "not_in")
OPERATORS = (*COMPARISONS, *SETS)
NEGATIONS = {"ne": "eq", "not_in": "in"}
RANGES = ("gt", "gte", "lt", "lte")
INT64, UINT64 = range(-(2**63), 2**63), range(2**64)
FRACTION = re.compile(r"(.{8}.\d{6}|.{10}.\d\d:\d\d:\d\d)[.,](\d+)(.*)")  # of a second, in an ISO text
NANOSECONDS = {"ms": 10**6, "us": 1000, "ns": 1}
DAY = 86_400 * 10**9
BEYOND = 10**38  # what is larger than every number of a column


@dataclass(frozen=True)
class Condition:
    """One column compared with values.

    Args:
        column: the attribute.
        operator: of OPERATORS.
        values: one for a comparison, any number for "in" and "not_in".
        kind: "text", "flag", "number" or "time"; keeps True apart from 1.
    """

    column: str
    operator: str
    values: tuple[Scalar, ...]
    kind: str

    @property
    def operand(self) -> Any:
        """The list of a set's values, or the one value."""
        return list(self.values) if self.operator in SETS else self.values[0]


@dataclass(frozen=True)
class Filter:
    """Conditions on the attributes of candidates that must all hold. A missing value meets no condition.

    Two filters with the same conditions are equal, in whatever order they were given.

    Args:
        conditions: as `parse` gives them.

    Example:
        >>> films = pl.DataFrame({"year": [1994, 2003, None], "genres": [["Drama"], ["Drama", "War"], ["War"]]})
        >>> Filter.parse({"genres": "Drama", "year": {"gte": 1990, "lt": 2000}}).mask(films)
        array([ True, False, False])
        >>> Filter.parse({"genres": {"in": ["War", "Noir"]}}).mask(films)
        array([False,  True,  True])
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, conditions: Mapping[Any, object]) -> "Filter":
        """A filter from a dict, as JSON holds it.

        Args:
            conditions: for each attribute a value that it must equal, or a dict of operator to value, all of which must hold:
                eq, ne, gt, gte, lt, lte with one value; in, not_in with a list. On an attribute that is a list, eq and in ask
                whether it holds the value, or one of them; ne and not_in whether it does not. Dates are dates or ISO texts.

        Raises:
            ValueError: no condition, an unknown operator, or a value that no attribute can have.
        """
        if not isinstance(conditions, Mapping) or not conditions:
            raise ValueError(f"a filter is a dict of attribute to value or operators, got {conditions!r}.")
        found = []
        for column, asked in conditions.items():
            if not isinstance(column, str):
                raise ValueError(f"a filter names attributes by texts, got {column!r}.")
            operators = asked if isinstance(asked, Mapping) else {"eq": asked}
            if not operators:
                raise ValueError(f"the filter of {column!r} is empty: give a value, or one of {', '.join(OPERATORS)}.")
            found += [_condition(column, operator, value) for operator, value in operators.items()]
        return cls(tuple(sorted(set(found), key=repr)))

    def mask(self, attributes: pl.DataFrame) -> np.ndarray:
        """Which rows meet all conditions, (N,) bool.

        Raises:
            ValueError: an attribute that is not there, or a value that cannot be compared with its column.
        """
        exact = [_expression(condition, attributes) for condition in self.conditions]
        met = attributes.select(pl.all_horizontal(exact).fill_null(False).alias("met"))["met"]
        return np.array(met.to_numpy(), dtype=bool)


def _condition(column: str, operator: str, value: object) -> Condition:
    if operator not in OPERATORS:
        raise ValueError(f"the filter of {column!r}: {unknown('operator', str(operator), OPERATORS)}")
    where = f"the filter {{{column!r}: {{{operator!r}: {value!r}}}}}"
    if operator in SETS:
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
            raise ValueError(f"{where} needs a list of values.")
        values = tuple(_scalar(item, where) for item in value)
    else:
        if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
            raise ValueError(f"{where} needs one value; {{'in': [...]}} asks for one of several.")
        values = (_scalar(value, where),)
    kinds = {kind_of(item) for item in values}
    if len(kinds) > 1:
        raise ValueError(f"{where} mixes values of different kinds: {sorted(kinds)}.")
    kind = kinds.pop() if kinds else "number"
    if operator in RANGES and kind == "flag":
        raise ValueError(f"{where}: true and false have no order; use eq or ne.")
    if operator in SETS:
        values = tuple(sorted(set(values), key=repr))
    return Condition(column, operator, values, kind)


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, np.generic):
        value = str(value) if isinstance(value, np.datetime64) else value.item()
    if value is None:
        raise ValueError(f"{where}: a missing value meets no condition, so there is nothing to compare with None.")
    if not isinstance(value, (str, bool, int, float, Decimal, dt.date)):
        raise ValueError(f"{where}: values are texts, numbers, true or false, or dates, got a {type(value).__name__}.")
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} cannot be compared with.")
    if isinstance(value, int) and value not in INT64 and value not in UINT64:
        raise ValueError(f"{where}: {value} is beyond 64 bits.")
    return value


def kind_of(value: Scalar) -> str:
    """What a value is, in the words of Condition."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, (int, float, Decimal)) else "time"


def column_kind(dtype: DataType) -> str:
    """What a column's values are, in the words of Condition; "list of ..." for lists, "" for what no filter can ask."""
    if isinstance(dtype, (pl.List, pl.Array)):
        inner = column_kind(pl.Series(dtype=dtype.inner).dtype)
        return f"list of {inner}" if inner in ("text", "flag", "number", "time") else ""
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return "time"
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return "text"
    if isinstance(dtype, pl.Boolean):
        return "flag"
    return "number" if dtype.is_numeric() else ""


def checked(condition: Condition, attributes: pl.DataFrame) -> tuple[str, list[Any]]:
    """The column's kind and the condition's values as the column can be compared with them: times in nanoseconds since 1970.

    Raises:
        ValueError: the column is not there, or of another kind than the values.
    """
    name = condition.column
    if name not in attributes.columns:
        raise ValueError(
            f"the filter asks for what the candidates lack: {unknown('attribute', name, attributes.columns)}"
        )
    dtype = attributes.schema[name]
    kind = column_kind(dtype)
    inner = kind.removeprefix("list of ")
    fits = inner == condition.kind or (inner == "time" and condition.kind == "text") or not condition.values
    if dtype == pl.Null:
        return "null", []
    if not inner or not fits:
        raise ValueError(
            f"the filter compares attribute {name!r}, of type {dtype}, with {condition.operand!r}: "
            + (f"give a {inner}." if inner else "texts, numbers, flags, dates and lists of them can be filtered.")
        )
    if kind != inner and condition.operator in RANGES:
        raise ValueError(
            f"attribute {name!r} is a list: it can be asked for eq, ne, in and not_in, not {condition.operator}."
        )
    if kind != inner and isinstance(dtype, pl.Array) and dtype.shape and len(dtype.shape) > 1:
        raise ValueError(f"attribute {name!r} holds lists of lists, which cannot be filtered.")
    innermost = dtype.inner if kind != inner else dtype  # type: ignore[attr-defined]
    if inner == "number":
        return kind, [_number(value, name, pl.Series(dtype=innermost).dtype) for value in condition.values]
    if (
        isinstance(innermost, pl.Enum)
        and condition.operator in RANGES
        and condition.values[0] not in innermost.categories
    ):
        asked, known = str(condition.values[0]), innermost.categories.to_list()
        raise ValueError(f"attribute {name!r} is an Enum: {unknown('category', asked, known)}")
    return kind, [_time(value, name) for value in condition.values] if inner == "time" else list(condition.values)


def _number(value: Any, column: str, dtype: DataType) -> int | float | Decimal:
    """As the column would hold it: 0.1 is another number in Float32 than in Float64, and a tenth in Decimal."""
    if dtype.is_float():
        held = float(pl.Series([float(value)], dtype=pl.Float64).cast(dtype)[0])
        if not math.isfinite(held):
            raise ValueError(f"attribute {column!r} is of type {dtype}, which holds no number as large as {value}.")
        return held
    if not dtype.is_integer():
        return Decimal(str(value))
    if not isinstance(value, int) and value == int(value):
        value = int(value)
    if isinstance(value, int) and value not in INT64 and not (dtype == pl.UInt64 and value in UINT64):
        raise ValueError(f"attribute {column!r} is of type {dtype}, which holds no number as large as {value}.")
    number: int | float | Decimal = value
    return number


def _time(value: Any, column: str) -> int:
    """Nanoseconds since 1970 in UTC, which a time without a zone is in; a date is its midnight."""
    finer = getattr(value, "nanosecond", 0)  # of pandas
    if isinstance(value, str):
        value, finer = _without_fraction(value)
    try:
        when = dt.datetime.fromisoformat(value.replace("Z", "+00:00")) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(
            f"attribute {column!r} is a date, but {value!r} is no ISO date such as '2024-05-31'."
        ) from None
    if finer is None:
        raise ValueError(f"attribute {column!r} is compared by nanoseconds, and the time given is finer.")
    if not isinstance(when, dt.datetime):
        when = dt.datetime(when.year, when.month, when.day)
    since = when.replace(tzinfo=None) - dt.datetime(1970, 1, 1) - (when.utcoffset() or dt.timedelta())
    return since // dt.timedelta(microseconds=1) * 1000 + finer


def _without_fraction(text: str) -> tuple[str, int | None]:
    """An ISO text without its fraction of a second, and that in nanoseconds; None if it is finer."""
    found = FRACTION.fullmatch(text)
    if found is None:
        return text, 0
    digits = found[2].rstrip("0")
    return found[1] + found[3], int(digits.ljust(9, "0")) if len(digits) <= 9 else None


def _expression(condition: Condition, attributes: pl.DataFrame) -> pl.Expr:
    kind, values = checked(condition, attributes)
    column, dtype = pl.col(condition.column), attributes.schema[condition.column]
    if kind == "null":
        return column.is_not_null()
    if not kind.startswith("list of "):
        return _compared(column, condition.operator, values, dtype)
    inner = pl.Series(dtype=dtype.inner).dtype  # type: ignore[attr-defined]
    lists = column.cast(pl.List(inner)) if isinstance(dtype, pl.Array) else column
    asked = NEGATIONS.get(condition.operator, condition.operator)
    holds = lists.list.eval(_compared(pl.element(), asked, values, inner).fill_null(False)).list.any()
    return ~holds if condition.operator in NEGATIONS else holds


def _compared(column: pl.Expr, operator: str, values: list[Any], dtype: DataType) -> pl.Expr:
    """A column, or the elements of a list column, with values that `checked` gave."""
    ranked = isinstance(dtype, pl.Enum) and operator in RANGES
    if ranked or dtype.is_integer() or dtype.is_decimal() or isinstance(dtype, (pl.Date, pl.Datetime)):
        return _compared_exactly(column.to_physical().cast(pl.Int128), operator, [_units(v, dtype) for v in values])
    kept: Any = dtype if dtype.is_float() or dtype == pl.Boolean else pl.String
    # nan would compare as larger than anything
    column = column.fill_nan(None) if dtype.is_float() else column.cast(kept)
    if operator in SETS:
        return _among(column, pl.Series(values, dtype=kept), operator)
    return COMPARISONS[operator](column, pl.lit(values[0], dtype=kept))


def _compared_exactly(column: pl.Expr, operator: str, values: list[Fraction]) -> pl.Expr:
    """A column of whole numbers with any numbers: none of it lies between two that follow each other."""
    if operator in RANGES:
        below = max(-BEYOND, min(math.floor(values[0]), BEYOND))
        if below != values[0]:
            operator = "gt" if operator in ("gt", "gte") else "lte"
        return COMPARISONS[operator](column, pl.lit(below, dtype=pl.Int128))
    whole = [int(value) for value in values if value.denominator == 1 and abs(value) < BEYOND]
    return _among(column, pl.Series(whole, dtype=pl.Int128), "not_in" if operator in NEGATIONS else "in")


def _among(column: pl.Expr, values: pl.Series, operator: str) -> pl.Expr:
    met = column.is_in(values.implode())
    return met if operator == "in" else ~met & column.is_not_null()


def _units(value: Any, dtype: DataType) -> Fraction:
    """A value in what the column counts: days, nanoseconds, hundredths, places in an Enum's order."""
    if isinstance(dtype, pl.Enum):
        return Fraction(dtype.categories.to_list().index(value))
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return Fraction(value, NANOSECONDS[dtype.time_unit] if isinstance(dtype, pl.Datetime) else DAY)
    return Fraction(value) * (10**dtype.scale if isinstance(dtype, pl.Decimal) else 1)
