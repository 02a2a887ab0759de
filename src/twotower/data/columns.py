"""How one raw column becomes ids or numbers: the declarations, and the pure functions behind them."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from twotower.schema import ColumnSchema
from twotower.tags import Tag, Tags, several_tags

MISSING = 0  # the id of a null, and of nothing else
UNKNOWN = 1  # the id of a value that the vocabulary does not hold
INT64_MAX = 2**63 - 1
FIRST = 2  # the id of the most frequent value


@dataclass(frozen=True)
class Categorical:
    """Ids, names, categories, or lists of them: each distinct value gets an id.

    Ids are 0 for null, 1 for a value outside the vocabulary, then 2, 3, ... by falling frequency, ties in the order
    of the values.

    Args:
        tags: what the column means, such as `(Tags.ITEM_ID,)`; `Tags.CATEGORICAL` is added.
        min_count: values seen fewer times stay out of the vocabulary.
        share: use the vocabulary of this other column, and so its embedding table: a list of earlier items shares
            the item id's.
    """

    tags: Tag | tuple[Tag, ...] = ()
    min_count: int = 1
    share: str | None = None

    def __post_init__(self) -> None:
        _keep_tags(self)


@dataclass(frozen=True)
class Text:
    """Free text: its lower-case words, each with an id as in Categorical; the column becomes a list.

    Args:
        tags: what the column means; `Tags.CATEGORICAL` is added.
        min_count: words seen fewer times stay out of the vocabulary.
    """

    tags: Tag | tuple[Tag, ...] = ()
    min_count: int = 2

    def __post_init__(self) -> None:
        _keep_tags(self)


@dataclass(frozen=True)
class Numeric:
    """A number, as float32.

    Args:
        tags: what the column means; `Tags.CONTINUOUS` is added unless it is a target.
        scale: "standard" subtracts the mean and divides by the standard deviation of the data it was fitted on;
            None leaves the number as it is, for targets and weights.
    """

    tags: Tag | tuple[Tag, ...] = ()
    scale: str | None = "standard"

    def __post_init__(self) -> None:
        _keep_tags(self)
        if self.scale not in ("standard", None):
            raise ValueError(f"unknown scale {self.scale!r}: choose from 'standard', None.")


Column = Categorical | Text | Numeric


def _keep_tags(column: Column) -> None:
    """One tag alone becomes a tuple of one."""
    object.__setattr__(column, "tags", tuple(several_tags(column.tags)))


@dataclass(frozen=True)
class Vocabulary:
    """The values of one or more columns by id: `values[0]` has id 2."""

    name: str
    values: pl.Series

    @property
    def largest_id(self) -> int:
        return FIRST + len(self.values) - 1 if len(self.values) else UNKNOWN

    def encode(self, raw: pl.Series) -> pl.Series:
        """Ids of the values; lists give lists, a null list an empty one."""
        values = same_kind(raw, self.values.dtype)
        if isinstance(values.dtype, pl.List):
            return values.fill_null([]).list.eval(self._ids(pl.element()))
        return values.to_frame().select(self._ids(pl.col(values.name))).to_series()

    def decode(self, ids: pl.Series) -> pl.Series:
        """The values of the ids; ids 0 and 1 stand for no value and give null."""
        if len(ids) and (ids.min() < 0 or ids.max() > self.largest_id):  # type: ignore[operator]
            raise ValueError(
                f"ids of {self.name!r} go from 0 to {self.largest_id}, got {ids.min()!r} to {ids.max()!r}."
            )
        known = ids.cast(pl.Int64) - FIRST
        return self.values.gather(pl.select(pl.when(known >= 0).then(known)).to_series())

    def _ids(self, value: pl.Expr) -> pl.Expr:
        ids = pl.Series(range(FIRST, FIRST + len(self.values)), dtype=pl.Int64)
        known = value.replace_strict(self.values, ids, default=UNKNOWN, return_dtype=pl.Int64)
        return pl.when(value.is_null()).then(MISSING).otherwise(known)


def learn_vocabulary(name: str, columns: Iterable[pl.Series], min_count: int) -> Vocabulary:
    """Count the values of all columns (lists: their elements) and order them: frequent first, ties by value."""
    flat = [plain(c).explode() if isinstance(c.dtype, pl.List) else plain(c) for c in columns]
    kinds = sorted({str(c.dtype) for c in flat})
    if len(kinds) > 1:
        raise ValueError(
            f"the vocabulary of {name!r} would mix {' and '.join(kinds)}; make the columns one type first."
        )
    counted = (
        pl.concat([c.alias("value") for c in flat])
        .to_frame()
        .drop_nulls()
        .group_by("value")
        .len()
        .filter(pl.col("len") >= min_count)
        .sort(["len", "value"], descending=[True, False])
    )
    return Vocabulary(name, counted["value"])


def words(text: pl.Series) -> pl.Series:
    """Lower-case runs of letters and digits, a list for each text."""
    if text.dtype != pl.String:
        raise ValueError(f"column {text.name!r} is declared Text, but holds {text.dtype}.")
    return text.str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")


def learn_scale(name: str, columns: Iterable[pl.Series]) -> tuple[float, float]:
    """Mean and standard deviation (1 for a constant column) over all columns."""
    both = pl.concat([numbers(c) for c in columns])
    mean, deviation = both.mean(), both.std(ddof=0)
    if mean is None or deviation is None:
        raise ValueError(f"column {name!r} has no values to learn its mean from.")
    return float(mean), float(deviation) or 1.0  # type: ignore[arg-type]


def numbers(raw: pl.Series) -> pl.Series:
    """Float64 values; nulls, NaN and text are errors."""
    if not (raw.dtype.is_numeric() or raw.dtype == pl.Boolean):
        raise ValueError(f"column {raw.name!r} is declared Numeric, but holds {raw.dtype}.")
    values = raw.cast(pl.Float64).rename("")
    holes = len(values) - int(values.is_finite().sum())
    if holes:
        raise ValueError(
            f"column {raw.name!r} has {holes} missing or infinite numbers in {len(raw)} rows; fill them first."
        )
    return values


def plain(raw: pl.Series) -> pl.Series:
    """Integers as Int64 and text as String, inside lists too, so that int32 and int64 ids are the same ids."""
    inner = raw.dtype.inner if isinstance(raw.dtype, pl.List) else raw.dtype
    if inner == pl.UInt64:
        largest = (raw.explode() if isinstance(raw.dtype, pl.List) else raw).max()
        if largest is not None and largest > INT64_MAX:  # type: ignore[operator]
            raise ValueError(f"column {raw.name!r} holds {largest!r}, more than int64 can; make its ids text first.")
    if inner.is_integer() or inner == pl.Boolean:
        target: pl.DataType = pl.Int64()
    elif inner == pl.String or inner in (pl.Categorical, pl.Enum):
        target = pl.String()
    else:
        raise ValueError(
            f"column {raw.name!r} is declared Categorical, but holds {raw.dtype}: expected integers or text."
        )
    return raw.cast(pl.List(target) if isinstance(raw.dtype, pl.List) else target)


def same_kind(raw: pl.Series, kind: pl.DataType) -> pl.Series:
    """The column as the vocabulary's type; all-null columns have any type, others must match."""
    inner = raw.dtype.inner if isinstance(raw.dtype, pl.List) else raw.dtype
    if inner == pl.Null:
        return raw.cast(pl.List(kind) if isinstance(raw.dtype, pl.List) else kind)
    values = plain(raw)
    came = values.dtype.inner if isinstance(values.dtype, pl.List) else values.dtype
    if came != kind:
        raise ValueError(f"column {raw.name!r} holds {came}, but its vocabulary was learnt from {kind} values.")
    return values


def categorical_schema(name: str, tags: Iterable[Tag], vocabulary: Vocabulary, is_list: bool) -> ColumnSchema:
    """The schema of an encoded column; columns that share a vocabulary share the domain's name."""
    properties = {
        "domain": {"min": 0, "max": vocabulary.largest_id, "name": vocabulary.name},
        "unknown_id": UNKNOWN,
    }
    return ColumnSchema(
        name,
        (*tags, Tags.CATEGORICAL),
        dtype="int64",
        is_list=is_list,
        is_ragged=is_list,
        properties=properties,
    )
