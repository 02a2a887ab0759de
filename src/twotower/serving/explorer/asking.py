"""From the address of a page to what is asked: filters, how many, and whether what was seen may come again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from twotower.errors import unknown
from twotower.indexes.filters import DataType, Filter, column_kind
from twotower.serving.explorer.showing import words

MOST_CHOICES = 100  # of a list to pick from; columns of more values take a text
FEW_CHOICES = 3  # that are offered even where every item has its own
USUAL_K, MOST_K = 10, 200
Pairs = Sequence[tuple[str, str]]
FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class FilterField:
    """One column that a page can filter by.

    Args:
        column: its name.
        kind: of the values: "text", "number", "time" or "flag".
        picks: values with how often they occur, the most frequent first; none where there are too many, or for a range.
        range: whether it is asked for its smallest and largest value, which `low` and `high` say in words.
    """

    column: str
    kind: str
    picks: list[tuple[str, int]] = field(default_factory=list)
    range: bool = False
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Asked:
    """What an address asks.

    Args:
        where: the filter; None for none.
        k: how many.
        seen: whether items that were seen may come again.
        given: the parameters of the filters as they stand in the address, to fill in the form.
        errors: what cannot be understood, in words.
    """

    where: Filter | None
    k: int
    seen: bool
    given: dict[str, list[str]]
    errors: list[str]


def filter_fields(attributes: pl.DataFrame, but: Sequence[str]) -> list[FilterField]:
    """A field for each column that a filter can ask about; vectors are left out."""
    made = [_field(attributes[name]) for name in attributes.columns if name not in but]
    return [one for one in made if one is not None]


def read_asked(pairs: Pairs, fields: Sequence[FilterField], schema: pl.Schema) -> Asked:
    """What an address asks: `in.genres=Drama&min.year=1990&k=20&seen=1`.

    Args:
        pairs: the parameters, in order; others than those of filters, k and seen are left alone.
        fields: what can be filtered.
        schema: the types of the columns.
    """
    by_name = {one.column: one for one in fields}
    given: dict[str, list[str]] = {}
    where: dict[str, dict[str, object]] = {}
    errors: list[str] = []
    for name, value in pairs:
        way, dot, column = name.partition(".")
        if not dot or way not in ("in", "min", "max") or not value.strip():
            continue
        given.setdefault(name, []).append(value)
        try:
            if column not in by_name:
                raise ValueError(unknown("column", column, by_name))
            _add(where.setdefault(column, {}), way, value, by_name[column], schema[column])
        except ValueError as error:
            errors.append(f"The filter of {column!r}: {error}")
    parsed = None
    if where and not errors:
        try:
            parsed = Filter.parse(where)
            parsed.mask(pl.DataFrame(schema=schema))  # whether the values can be compared with their columns
        except ValueError as error:
            errors.append(str(error))
    k, wrong = _k(dict(pairs).get("k", ""))
    return Asked(parsed, k, dict(pairs).get("seen", "") not in ("", "0"), given, errors + wrong)


def _add(conditions: dict[str, object], way: str, value: str, asked: FilterField, dtype: DataType) -> None:
    typed = _typed(value, asked, dtype)
    if way == "in":
        listed = conditions.setdefault("in", [])
        assert isinstance(listed, list)
        listed.append(typed)
    elif not asked.range:
        raise ValueError("it holds no numbers or dates, so it has no smallest and largest value.")
    else:
        conditions["gte" if way == "min" else "lte"] = typed


def _typed(value: str, asked: FilterField, dtype: DataType) -> object:
    if asked.kind == "flag":
        if value not in FLAGS:
            raise ValueError(f"{value!r} is neither true nor false.")
        return FLAGS[value]
    if asked.kind != "number":
        return value
    inner = dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else dtype
    try:
        return int(value)
    except ValueError:
        number = number_of(value)
    if number is None:
        raise ValueError(f"{value!r} is no number; write it like 7 or 7.5.")
    return number if not inner.is_integer() or not number.is_integer() else int(number)


def number_of(value: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value.strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _k(value: str) -> tuple[int, list[str]]:
    if not value:
        return USUAL_K, []
    if not value.isascii() or not value.isdigit() or len(value) > 9 or not 1 <= int(value) <= MOST_K:
        return USUAL_K, [f"How many: {value!r} is no whole number from 1 to {MOST_K}."]
    return int(value), []


def _field(column: pl.Series) -> FilterField | None:
    kind = column_kind(column.dtype)
    inner = kind.removeprefix("list of ")
    listed = kind != inner
    if not kind or (listed and inner not in ("text", "flag", "number")):
        return None
    if listed and column.dtype.inner.is_float():  # type: ignore[attr-defined]
        return None
    if not listed and inner in ("number", "time"):
        known = column.drop_nulls()
        if not len(known):
            return None
        return FilterField(column.name, inner, range=True, low=words(known.min()), high=words(known.max()))
    values = (column.explode() if listed else column).drop_nulls().cast(pl.String)
    if not len(values):
        return None
    if values.n_unique() > min(MOST_CHOICES, max(FEW_CHOICES, len(column) // 2)):  # titles are nothing to choose from
        return FilterField(column.name, inner)
    counts = values.value_counts(sort=True).sort("count", column.name, descending=[True, False])
    return FilterField(column.name, inner, picks=list(counts.iter_rows()))
