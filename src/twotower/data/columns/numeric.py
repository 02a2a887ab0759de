"""Numeric and Age: numbers, scaled."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import narwhals as nw
import numpy as np
import polars as pl

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, holding, keep_tags
from twotower.data.raw import RawTable
from twotower.data.times import UNITS, moments
from twotower.errors import choose
from twotower.schema import ColumnSchema, Tags
from twotower.tags import TARGETS, TagSet

SCALES = {
    "standard": "mean 0, deviation 1",
    "log": "sign(x) log(1 + |x|), then as standard",
    "min-max": "0 to 1",
}
WHOLE = 2**53  # from here on float64 rounds whole numbers
LARGEST = 1e140  # the sum of the squares of numbers up to this one fits float64


@dataclass(frozen=True)
class Numeric(Column):
    """A number, as float32.

    Args:
        tags: what the column means; `Tags.CONTINUOUS` is added unless it is a target.
        scale: "standard" subtracts the mean and divides by the standard deviation of the data it was fitted on; "log" does so
            after sign(x) log(1 + |x|), for prices and counts; "min-max" maps the smallest value to 0 and the largest to
            1, and later values beyond them outside; None leaves the number as it is, for targets and weights.
        fill: what stands for a null or NaN: a raw value, or "mean". None makes them errors.
        indicator: add a column `<name>_missing`, 1 where the value was null or NaN.
        source: the raw column to read; by default the one of the same name.

    Raises:
        ValueError: an unknown scale or fill, or an indicator without `fill`; in use: missing numbers without `fill`, infinite
            ones, whole ones from 2^53 on, which float64 would round, and those that scaled are more than float32 can hold.
    """

    kind: ClassVar[str] = "numeric"
    tags: Tagged = ()
    scale: str | None = "standard"
    fill: float | str | None = None
    indicator: bool = False
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)
        object.__setattr__(self, "fill", checked_fill(self.scale, self.fill, self.indicator))

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or name,)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        source = self.reads(name)[0]
        queries = (q.select(nw.col(source).alias("x")) for t in holding(tables, [source]) for q in t.queries([source]))
        return _Scaled(name, self, learn_scaling(source, queries, self.scale, self.fill))

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Scaled(name, self, Scaling(**state))

    def raw(self, name: str, raw: pl.DataFrame) -> pl.Series:
        """The numbers before scaling."""
        return raw[self.reads(name)[0]]


@dataclass(frozen=True)
class Age(Column):
    """The time from one moment to another of the same row, as float32: the age of an account or an item at the event.

    Args:
        since, until: the raw columns of the two moments: dates, times, ISO texts or integers since 1970.
        tags: what the column means; `Tags.CONTINUOUS` is added.
        unit: of the age: "seconds", "minutes", "hours", "days" or "weeks".
        time_unit: of integer moments: "s", "ms", "us" or "ns".
        scale, fill, indicator: as in Numeric; a null in either moment is a missing age. Negative ages are kept.

    An age that depends on the event is a feature of the query side. For an item's age the candidates' vectors hold only
    as long as the moment that they were made for.

    Raises:
        ValueError: unknown units, or as in Numeric.
    """

    kind: ClassVar[str] = "age"
    since: str
    until: str
    tags: Tagged = ()
    unit: str = "days"
    time_unit: str = "s"
    scale: str | None = "log"
    fill: float | str | None = None
    indicator: bool = False

    def __post_init__(self) -> None:
        keep_tags(self)
        object.__setattr__(self, "fill", checked_fill(self.scale, self.fill, self.indicator))
        choose("unit", self.unit, AGE_UNITS)
        choose("time_unit", self.time_unit, UNITS)

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.since, self.until)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        parts = (self.raw(name, part) for t in holding(tables, self.reads(name)) for part in t.parts(self.reads(name)))
        queries = (nw.from_native(part.alias("x").to_frame().lazy()) for part in parts)
        return _Scaled(name, self, learn_scaling(name, queries, self.scale, self.fill))

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Scaled(name, self, Scaling(**state))

    def raw(self, name: str, raw: pl.DataFrame) -> pl.Series:
        """The ages in `unit`."""
        start, end = (moments(raw[column], self.time_unit).dt.epoch("us") for column in (self.since, self.until))
        return ((end - start) / (10**6 * AGE_UNITS[self.unit])).alias(name)


AGE_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 7 * 86400}


@dataclass(frozen=True)
class Scaling:
    """x' = (f(x) - shift) / width, with f the logarithm or nothing; `fill` is x' of a missing value."""

    log: bool
    shift: float
    width: float
    fill: float | None

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Scaled numbers, nan kept."""
        return ((_log(x) if self.log else x) - self.shift) / self.width

    def invert(self, scaled: np.ndarray) -> np.ndarray:
        """Raw numbers."""
        x = scaled * self.width + self.shift
        return np.sign(x) * np.expm1(np.abs(x)) if self.log else x


class _Scaled(Learnt):
    def __init__(self, name: str, column: Numeric | Age, scaling: Scaling) -> None:
        super().__init__(name, lists=False)
        self.column = column
        self.scaling = scaling

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        values = self.column.raw(self.name, raw)
        x = numbers(values, values.name)
        missing = np.isnan(x)
        with np.errstate(over="ignore"):  # what overflows is told below
            scaled = self.scaling.apply(x)
            if missing.any():
                if self.scaling.fill is None:
                    raise _holes(values.name, int(missing.sum()), len(x))
                scaled[missing] = self.scaling.fill
            made = scaled.astype(np.float32)
        if not np.isfinite(made).all():
            row = int(np.argmin(np.isfinite(made)))
            raise ValueError(
                f"column {values.name!r} holds {values[row]!r} in row {row}, which scaled is {scaled[row]:.3g}: more than float32 "
                'can hold. Repair it, or take scale="log".'
            )
        out = [pl.Series(self.name, made)]
        if self.column.indicator:
            out.append(pl.Series(self.name + "_missing", missing.astype(np.float32)))
        return out

    def schema(self) -> list[ColumnSchema]:
        given = TagSet(self.column.tags)
        tags = given if any(tag in given for tag in TARGETS) else given + Tags.CONTINUOUS
        names = [self.name, self.name + "_missing"] if self.column.indicator else [self.name]
        return [ColumnSchema(name, tags, dtype="float32", is_list=False) for name in names]

    def inverse(self, codes: pl.Series) -> pl.Series:
        return pl.Series(self.scaling.invert(codes.cast(pl.Float64).to_numpy()))

    def state(self) -> Json:
        return asdict(self.scaling)


def checked_fill(scale: str | None, fill: float | str | None, indicator: bool) -> float | str | None:
    """`fill` with a number as Python's; ValueError for options of Numeric that do not exist or do not go together."""
    if scale is not None:
        choose("scale", scale, SCALES)
    if not isinstance(indicator, bool):
        raise ValueError(f"indicator must be True or False, got {indicator!r}.")
    if indicator and fill is None:
        raise ValueError(
            'indicator=True marks missing values, which are errors without fill; give fill="mean" or a number.'
        )
    if fill is None:
        return None
    if isinstance(fill, str):
        return choose("fill", fill, {"mean": "mean"})
    return finite_number(fill, "fill must be a finite number or 'mean'")


def finite_number(value: object, expected: str) -> float:
    """An option as Python's float; ValueError beginning with what was expected."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{expected}, got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def numbers(raw: pl.Series, name: str, infinite: bool = False) -> np.ndarray:
    """(n,) float64 with nan for null and NaN; text and, unless allowed, infinite numbers are errors."""
    if not (raw.dtype.is_numeric() or raw.dtype in (pl.Boolean, pl.Null)):
        raise ValueError(f"column {name!r} is declared a number, but holds {raw.dtype}; cast it first.")
    x = raw.cast(pl.Float64).to_numpy()  # a null is nan
    if raw.dtype.is_integer() and (np.abs(x) >= WHOLE).any():
        row = int(np.argmax(np.abs(x) >= WHOLE))
        raise _too_long(name, raw[row])
    if not infinite and np.isinf(x).any():
        raise ValueError(
            f"column {name!r} has {int(np.isinf(x).sum())} infinite numbers in {len(x)} rows; repair them first."
        )
    return x


def learn_scaling(
    name: str, queries: Iterable[nw.LazyFrame[Any]], scale: str | None, fill: float | str | None
) -> Scaling:
    """The scaling of the numbers in the column "x" of some queries, all together.

    Raises:
        ValueError: text, infinite numbers, missing ones without `fill`, or no number at all.
    """
    log = scale == "log"
    found = [_moments(query, name, log) for query in queries]
    rows, count, infinite = (sum(part[key] for part in found) for key in ("rows", "count", "infinite"))
    if infinite:
        raise ValueError(f"column {name!r} has {infinite} infinite numbers in {rows} rows; repair them first.")
    if count < rows and fill is None:
        raise _holes(name, rows - count, rows)
    if scale is None and fill != "mean":
        return Scaling(False, 0.0, 1.0, None if fill is None else float(fill))
    some = [part for part in found if part["count"]]
    if not some:
        raise ValueError(f"column {name!r} has no values to learn its mean from.")
    largest = max((part[key] for part in some for key in ("low", "high")), key=abs)
    if abs(largest) > LARGEST and not log:
        raise ValueError(
            f"column {name!r} holds {largest!r}: numbers beyond {LARGEST:.0e} have no mean and deviation in float64. Repair them, "
            'or take scale="log".'
        )
    mean = math.fsum(part["mean"] * part["count"] for part in some) / count
    spread = math.fsum((part["var"] + (part["mean"] - mean) ** 2) * part["count"] for part in some) / count
    low, high = min(part["min"] for part in some), max(part["max"] for part in some)
    shift, width = {"min-max": (low, high - low), None: (0.0, 1.0)}.get(scale, (mean, math.sqrt(spread)))
    made = Scaling(log, shift, width or 1.0, None)
    if fill is None:
        return made
    filled = (mean - made.shift) / made.width if fill == "mean" else float(made.apply(np.array([float(fill)]))[0])
    return Scaling(log, made.shift, made.width, filled)


def _moments(query: nw.LazyFrame[Any], name: str, log: bool) -> dict[str, Any]:
    """Count, mean, variance and range of one query, the missing and the infinite left out; low and high before the log."""
    kind = query.collect_schema()["x"]
    if not (kind.is_numeric() or kind == nw.Boolean or kind == nw.Unknown):
        raise ValueError(f"column {name!r} is declared a number, but holds {kind}; cast it first.")
    x = nw.col("x").cast(nw.Float64)
    rows = query.select(nw.len().alias("rows"))
    held = query.select(x).filter(~nw.col("x").is_null()).filter(~nw.col("x").is_nan())
    finite = held.filter(nw.col("x").is_finite())
    if log:
        size = nw.col("x").abs() + 1.0
        finite = finite.select(nw.when(nw.col("x") < 0).then(size.log() * -1.0).otherwise(size.log()).alias("x"))
    x = nw.col("x")
    stats = finite.select(
        nw.len().alias("count"), x.mean().alias("mean"), x.var(ddof=0).alias("var"), x.min().alias("min"), x.max().alias("max")
    )  # fmt: skip
    made = {key: value[0] for key, value in _collected(stats).items()}
    made["rows"] = _collected(rows)["rows"][0]
    made |= {
        key: value[0]
        for key, value in _collected(
            held.select(nw.len().alias("held"), x.min().alias("low"), x.max().alias("high"))
        ).items()
    }
    made["infinite"] = made["held"] - made["count"]
    if kind.is_integer() and made["held"] and max(-made["low"], made["high"]) >= WHOLE:
        raise _too_long(name, int(max(made["low"], made["high"], key=abs)))
    return made


def _collected(query: nw.LazyFrame[Any]) -> dict[str, list[Any]]:
    return query.collect(backend="polars").to_native().to_dict(as_series=False)


def _log(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(np.abs(x))


def _too_long(name: str, value: float) -> ValueError:
    return ValueError(
        f"column {name!r} holds {value!r}, but as numbers whole ones are exact below 2^53 only. If it is an id, declare it "
        "Categorical or Hashed; if rounding does no harm, cast it to Float64 first."
    )


def _holes(name: str, missing: int, rows: int) -> ValueError:
    return ValueError(
        f'column {name!r} has {missing} missing numbers in {rows} rows; declare what stands for them, such as fill="mean" or '
        "fill=0.0, or fill them first."
    )
