"""infer_columns: look at raw tables, propose how to read each column, and say why."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from twotower.data.columns import Categorical, Column, Numeric, Text, Timestamp, Vector
from twotower.data.columns.text import WORD
from twotower.data.columns.values import element_type, flat, is_list
from twotower.data.dataset import Source
from twotower.data.raw import RawTable
from twotower.data.times import BOUNDS, UNITS
from twotower.errors import unknown
from twotower.schema import Tags

LOOKED_AT = 100_000  # rows of each table
FEW = 50  # a number with so few values names a category
OWN_VALUE = 0.9  # share of distinct values from which on a text tells nothing but its row
SKEWED = 20.0  # a largest value so many times the median asks for a logarithm
WORDS = 3.0  # words in a text on average, from which on it is read word by word
SINCE = 4e8  # 1982 as seconds since 1970; smaller numbers may count anything

USER_NAMES = (
    "user_id",
    "userid",
    "user",
    "customer_id",
    "customer",
    "visitor_id",
    "visitorid",
    "member_id",
    "client_id",
)
ITEM_NAMES = ("item_id", "itemid", "item", "product_id", "article_id", "movie_id", "movieid", "asin", "sku", "track_id")
OUTCOMES = re.compile(
    r"^(rating|label|target|clicks?|clicked|purchased?|bought|liked?|conversion|converted|dwell.*|watch_time|review.*|summary|"
    r"comment.*|votes?|helpful.*)$"
)
TIMES = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|at|start|end|created|updated)$")
IDS = re.compile(r"(^|_)(id|code|type|group)$|Id$")
SESSIONS = re.compile(r"(^|_)(session|request|event|row)_?(id)?$")
PRICE = r"^\s*[$€£]\s*\d+([.,]\d+)*\s*$|^\s*\d+[.,]\d+\s*$"


@dataclass(frozen=True, eq=False)
class Inferred:
    """What `infer_columns` proposes.

    Args:
        columns: declarations for a Preprocessor, by column; change what you know better.
        report: a row for each raw column: column, type, nulls (share), distinct, read_as, tags, why. `read_as` is null for
            columns that are left out.
    """

    columns: dict[str, Column]
    report: pl.DataFrame

    def __str__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_width_chars=160, fmt_str_lengths=90, tbl_hide_dataframe_shape=True):
            return str(self.report)


@dataclass(frozen=True)
class _Roles:
    user: str | None
    item: str
    item_ids: pl.Series


Verdict = tuple[Column | None, str]


def infer_columns(*tables: Source | object, user: str | None = None, item: str | None = None) -> Inferred:
    """Propose how to read every column of some raw tables, and whose feature it is.

    The first 100,000 rows of each table are looked at. A column is the item's if it stands in a table of items, or takes one
    value for each item in the events; the user's likewise; else it belongs to the event, which is the query's side. What is
    known only after the event, such as a rating, is proposed as a target, which no tower reads.

    Args:
        tables: events, and tables of items and users, of any kind that Preprocessor takes.
        user, item: the id columns; by default those of a usual name, such as user_id and item_id.

    Returns:
        Inferred: the declarations, and a report that says why.

    Raises:
        ValueError: no table, an unknown column, or no item id by a usual name.

    Example:
        >>> found = infer_columns({"user_id": [1, 1, 2], "item_id": [7, 8, 7], "rating": [4, 5, 1], "note": ["x", "x", "x"]})
        >>> found.columns["rating"]
        Numeric(tags=(<Tags.REGRESSION: 'regression'>,), scale=None, fill=None, indicator=False, source=None)
        >>> found.report.select("column", "read_as", "why").row(3)
        ('note', None, 'left out: it has one value only')
    """
    if not tables:
        raise ValueError("infer_columns needs at least one table: the events.")
    frames = [RawTable(table).head(LOOKED_AT) for table in tables]
    names = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    item = _named(item, names, ITEM_NAMES, "item")
    user = _named(user, names, USER_NAMES, "user") if user is not None or _usual(names, USER_NAMES) else None
    for name in filter(None, (item, user)):
        frames = _with_ids_of_one_type(frames, name)
    roles = _Roles(user, item, pl.concat([f[item].drop_nulls() for f in frames if item in f.columns]).unique())
    columns: dict[str, Column] = {}
    rows = []
    for name in names:
        holders = [frame for frame in frames if name in frame.columns]
        raw = holders[0][name] if len(holders) == 1 else _joined([h.select(name) for h in holders])
        sides = _sides(name, holders, roles)
        column, why = _verdict(name, raw, sides, roles)
        if column is not None:
            columns[name] = column
        rows.append(
            {
                "column": name,
                "type": str(raw.dtype),
                "nulls": raw.null_count() / max(len(raw), 1),
                "distinct": flat(raw).n_unique(),
                "read_as": None if column is None else type(column).__name__,
                "tags": "" if column is None else ", ".join(t.value for t in column.tags),  # type: ignore[attr-defined]
                "why": why,
            }
        )
    kinds = {"nulls": pl.Float64, "distinct": pl.Int64, "read_as": pl.String}
    return Inferred(columns, pl.DataFrame(rows, schema_overrides=kinds))


def ids_of_one_type(columns: Mapping[str, pl.Series]) -> list[pl.Series]:
    """One id column of several tables, as one type, by which they can be joined.

    Args:
        columns: the column of each table, by what the table is called.

    Raises:
        ValueError: numbers and texts, or numbers that are not whole.
    """
    held = list(columns.values())
    if len({ids.dtype for ids in held}) <= 1:
        return held
    kind = pl.Int64() if all(ids.dtype.is_numeric() for ids in held) else pl.String()
    made = [id_as(ids, kind) for ids in held]
    found = [ids for ids in made if ids is not None]
    if len(found) < len(held):
        types = ", ".join(f"{ids.dtype} in {table}" for table, ids in columns.items())
        raise ValueError(
            f"the ids {held[0].name!r} are {types}; expected one type, or whole numbers. Cast the column in one of the tables."
        )
    return found


def id_as(ids: pl.Series, kind: pl.DataType) -> pl.Series | None:
    """Ids as another type; None where that would change one, or where one is a number and the other a text."""
    texts = (pl.String, pl.Categorical, pl.Enum)
    if ids.dtype == kind:
        return ids
    if not (ids.dtype.is_numeric() and kind.is_numeric()) and not (ids.dtype in texts and kind in texts):
        return None
    made = ids.cast(kind, strict=False)
    return made if made.cast(ids.dtype, strict=False).eq_missing(ids).all() else None


def _with_ids_of_one_type(frames: list[pl.DataFrame], name: str) -> list[pl.DataFrame]:
    own = {f"table {number}": frame[name] for number, frame in enumerate(frames, 1) if name in frame.columns}
    made = iter(ids_of_one_type(own))
    return [frame.with_columns(next(made)) if name in frame.columns else frame for frame in frames]


def _joined(frames: Sequence[pl.DataFrame]) -> pl.Series:
    return pl.concat(frames, how="vertical_relaxed").to_series()


def _usual(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The columns of a usual name, the most usual first; prefixes such as click_article_id count."""
    lower = {name.lower(): name for name in names}
    exact = [lower[u] for u in usual if u in lower]
    return exact or [name for u in usual for low, name in lower.items() if low.endswith("_" + u) and "_" in u]


def _named(given: str | None, names: Sequence[str], usual: Sequence[str], what: str) -> str:
    if given is not None:
        if given not in names:
            raise ValueError(unknown("column", given, names))
        return given
    found = _usual(names, usual)
    if not found:
        raise ValueError(
            f"no column is named like an id of the {what} among {list(names)}: say it, {what}=<the column>."
        )
    return found[0]


def _sides(name: str, holders: Sequence[pl.DataFrame], roles: _Roles) -> tuple[Tags, ...]:
    """Whose feature a column is."""
    has_item = all(roles.item in frame.columns for frame in holders)
    has_user = all(roles.user in frame.columns for frame in holders)
    if has_item and not has_user:
        return (Tags.ITEM,)
    if has_user and not has_item:
        return (Tags.USER,)
    if not has_item:
        return (Tags.USER, Tags.CONTEXT)
    if all(_follows(frame, name, roles.item) for frame in holders):
        return (Tags.ITEM,)
    if all(_follows(frame, name, str(roles.user)) for frame in holders):
        return (Tags.USER,)
    return (Tags.USER, Tags.CONTEXT)


def _follows(frame: pl.DataFrame, name: str, owner: str) -> bool:
    """Whether a column has one value for each id, where an id has several rows."""
    if name == owner:
        return False
    grouped = (
        frame.select(owner, name).drop_nulls(owner).group_by(owner).agg(pl.col(name).n_unique().alias("n"), pl.len())
    )
    repeated = grouped.filter(pl.col("len") > 1)
    return len(repeated) > 0 and bool((repeated["n"] == 1).all())


def _verdict(name: str, raw: pl.Series, sides: tuple[Tags, ...], roles: _Roles) -> Verdict:
    if name == roles.item:
        return Categorical(Tags.ITEM_ID), "the item's id" + _nulls(
            raw, "no tower knows the item of these rows: leave them out"
        )
    if name == roles.user:
        return Categorical(Tags.USER_ID), "the user's id" + _nulls(raw, "they are one user to the tower")
    values = flat(raw).drop_nulls()
    if values.n_unique() <= 1 and not is_list(raw):
        return None, "left out: it has one value only" if len(values) else "left out: it is empty"
    if SESSIONS.search(name.lower()):
        return None, "left out: it names a session or a row, which will not come again"
    if is_list(raw):
        return _list_verdict(raw, values, sides, roles)
    kind = values.dtype
    if OUTCOMES.match(name.lower()) and not kind.is_numeric():
        return None, "left out: it comes after the event, and is unknown when recommending"
    if OUTCOMES.match(name.lower()):
        binary = set(values.unique().to_list()) <= {0, 1}
        tag = Tags.BINARY_CLASSIFICATION if binary else Tags.REGRESSION
        return Numeric(tag, scale=None), "an outcome of the event, unknown when recommending: a target, no feature"
    if kind == pl.Boolean:
        return Categorical(sides), "true or false"
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        return Timestamp(sides), "a time: its hour and weekday are read"
    if kind == pl.String or kind in (pl.Categorical, pl.Enum):
        return _text_verdict(raw, values.cast(pl.String), sides)
    if kind.is_numeric():
        return _number_verdict(name, raw, values, sides)
    return None, f"left out: {kind} has no reading here"


def _nulls(raw: pl.Series, meaning: str) -> str:
    return f"; {raw.null_count():,} of {len(raw):,} rows have none: {meaning}" if raw.null_count() else ""


def _list_verdict(raw: pl.Series, values: pl.Series, sides: tuple[Tags, ...], roles: _Roles) -> Verdict:
    lengths = raw.drop_nulls().list.len() if isinstance(raw.dtype, pl.List) else raw.drop_nulls().arr.len()
    kind = element_type(raw)
    if kind.is_float():
        if lengths.n_unique() == 1 and not raw.null_count():
            return Vector(sides), f"lists of {lengths[0]} numbers: a vector"
        return None, "left out: lists of numbers of different lengths"
    if not (kind.is_integer() or kind == pl.String):
        return None, f"left out: lists of {kind} have no reading here"
    if _are_items(values.unique(), roles.item_ids):
        owners = (Tags.ITEM,) if sides == (Tags.ITEM,) else (Tags.USER,)
        return Categorical(owners, share=roles.item), "lists of item ids: they share the item's vocabulary and vectors"
    if kind == pl.String and _words(values) >= WORDS:
        return Text(sides), "lists of texts, read word by word"
    return Categorical(sides), "lists of categories"


def _are_items(distinct: pl.Series, item_ids: pl.Series) -> bool:
    """Whether values are ids of items: small whole numbers are so by accident, so these must be many, and nearly all."""
    if distinct.dtype.is_integer() != item_ids.dtype.is_integer() or not len(distinct):
        return False
    known = float(distinct.cast(pl.String).is_in(item_ids.cast(pl.String).implode()).mean() or 0.0)  # type: ignore[arg-type]
    return known > 0.9 and len(distinct) > FEW if distinct.dtype.is_integer() else known > 0.1


def _text_verdict(raw: pl.Series, values: pl.Series, sides: tuple[Tags, ...]) -> Verdict:
    distinct, words = values.n_unique(), _words(values)
    if _share(values, r"^\s*(https?://|[\[{])") > 0.5:
        return None, "left out: addresses, or data in a text"
    if _share(values, PRICE) > 0.9 and values.str.len_chars().max() <= 12:  # type: ignore[operator]
        return None, "left out: numbers written as text; cast them to numbers first"
    if _share(values, r"^\d{4}-\d\d-\d\d") > 0.9:
        return Timestamp(sides), "times in ISO 8601: the hour and weekday are read"
    if words >= WORDS or (words >= 1.5 and distinct > OWN_VALUE * len(values)):
        return Text(sides), f"text of {words:.0f} words on average, read word by word"
    if distinct > OWN_VALUE * len(values) and distinct > FEW:
        return None, "left out: nearly every row has a value of its own, so there is nothing to learn from"
    rare = 2 if distinct > 1000 else 1
    return Categorical(sides, min_count=rare), f"{distinct:,} categories" + (
        ", those seen once left unknown" if rare > 1 else ""
    )


def _number_verdict(name: str, raw: pl.Series, values: pl.Series, sides: tuple[Tags, ...]) -> Verdict:
    whole = values.dtype.is_integer()
    low, high, distinct = float(values.min()), float(values.max()), values.n_unique()  # type: ignore[arg-type]
    if whole and TIMES.search(name.lower()):
        for unit, factor in UNITS.items():
            if SINCE * factor <= low and high < BOUNDS[1] * factor:
                return Timestamp(sides, unit=unit), f"a time in {unit} since 1970: its hour and weekday are read"
    if whole and IDS.search(name):
        return Categorical(sides), f"{distinct:,} categories, by its name"
    if whole and distinct <= FEW and distinct < len(values) / 4:
        return Categorical(sides), f"a whole number with {distinct} values: categories"
    holes = len(raw) - len(values.drop_nans() if values.dtype.is_float() else values)
    fill: str | None = "mean" if holes else None
    missing = f"; {holes / len(raw):.0%} are missing, which a column of its own says" if holes else ""
    median = float(values.median())  # type: ignore[arg-type]
    if low >= 0 and high > SKEWED * max(median, 1e-12):
        return Numeric(sides, scale="log", fill=fill, indicator=bool(holes)), "a skewed number: its logarithm" + missing
    return Numeric(sides, fill=fill, indicator=bool(holes)), "a number" + missing


def _share(values: pl.Series, pattern: str) -> float:
    return float(values.str.contains(pattern).mean() or 0.0)  # type: ignore[arg-type]


def _words(values: pl.Series) -> float:
    counted = values.cast(pl.String).str.count_matches(WORD)
    return float(counted.mean() or 0.0)  # type: ignore[arg-type]
