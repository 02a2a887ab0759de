"""What a test should not know: checks of two parts of an event table."""

import warnings
from collections.abc import Sequence

import polars as pl
import polars.selectors as cs

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown


class LeakWarning(UserWarning):
    """Something of the test events can be seen in training."""


def check_leaks(
    train: Source,
    test: Source,
    *,
    user: str,
    item: str,
    time: str | None = None,
    history: str | None = None,
    known_since: str | Sequence[str] = (),
) -> list[str]:
    """Warn of what makes a test figure too good, and return the findings; an empty list is good news.

    Looked for: test events whose user and item stand in train too; with `time`, train events that are later than the
    first test event of their user, or of anybody; with `history`, events whose list holds their own item, and train events
    whose list holds an item of a later test event of their user (without `time`: of any) that no earlier train event explains;
    with `known_since`, features that came to be after their event.

    Args:
        train, test: the parts.
        user, item: the columns of users and items.
        time: the column of times, in both parts.
        history: a column of lists of earlier items, in either part.
        known_since: columns of times at which a row's features came to be known, such as an article's publication.

    Raises:
        ValueError: a column that a part lacks, or of another kind than the one it is compared with; `known_since` without
            `time`.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     [found] = check_leaks({"u": [1, 2], "i": [5, 6]}, {"u": [1], "i": [5]}, user="u", item="i")
        >>> found[:75]
        '1 of 1 test events (100.0 %) have a user and item that stand in train too: '
    """
    if known_since and time is None:
        raise ValueError("known_since is compared with the time of an event: give time=<its column> too.")
    features = [known_since] if isinstance(known_since, str) else list(known_since)
    times = [*([time] if time is not None else []), *features]
    parts = {"train": Dataset(train).to_polars(), "test": Dataset(test).to_polars()}
    for part in parts.values():
        for column in [user, item, *times]:
            if column not in part.columns:
                raise ValueError(unknown("column", column, part.columns))
    if history is not None and not any(history in part.columns for part in parts.values()):
        raise ValueError(unknown("column", history, parts["train"].columns))
    parts = {name: _as_text(part) for name, part in parts.items()}
    for compared, kind_of in (([user], _kind), ([item], _kind), (times, _kind_of_time)):
        _alike(
            {f"{name} {column!r}": kind_of(part.schema[column]) for name, part in parts.items() for column in compared}
        )
    parts = {name: _with_lists(name, part, item, history) for name, part in parts.items()}
    findings = [_repeated(parts["train"], parts["test"], user, item)]
    if time is not None:
        findings += _future(parts["train"], parts["test"], user, time)
    for name, part in parts.items():
        if history is not None and history in part.columns:
            findings.append(_own_item(name, part, item, history))
        findings += [_too_early(name, part, str(time), column) for column in features]
    if history is not None and history in parts["train"].columns:
        findings.append(_future_in_history(parts["train"], parts["test"], user, item, time, history))
    found = [finding for finding in findings if finding]
    for finding in found:
        warnings.warn(finding, LeakWarning, stacklevel=2)
    return found


def _as_text(part: pl.DataFrame) -> pl.DataFrame:
    """Categories as the texts that they stand for, which compare with others."""
    return part.with_columns(cs.by_dtype(pl.Categorical, pl.Enum).cast(pl.String))


def _with_lists(name: str, part: pl.DataFrame, item: str, history: str | None) -> pl.DataFrame:
    """The part with its histories as lists of the items' kind."""
    if history is None or history not in part.columns:
        return part
    kind = part.schema[history]
    if not isinstance(kind, (pl.List, pl.Array)):
        raise ValueError(f"the history {history!r} of {name} must hold lists of items, but is {kind}.")
    inner = pl.String if isinstance(kind.inner, (pl.Categorical, pl.Enum)) else kind.inner
    if inner == pl.Null:  # all lists are empty
        inner = part.schema[item]
    part = part.with_columns(pl.col(history).cast(pl.List(inner)))
    lists = part.select(pl.col(history).explode()).schema[history]
    _alike({f"{name} {item!r}": _kind(part.schema[item]), f"the lists of {name} {history!r}": _kind(lists)})
    return part


def _kind(dtype: pl.DataType) -> str:
    return "integers" if dtype.is_integer() else str(dtype)


def _kind_of_time(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime):
        return f"moments in {dtype.time_zone}" if dtype.time_zone else "dates"
    return "numbers" if dtype.is_numeric() else "dates" if dtype == pl.Date else str(dtype)


def _alike(kinds: dict[str, str]) -> None:
    if len(set(kinds.values())) > 1:
        raise ValueError(f"columns that are compared hold different kinds: {kinds}. Cast them to one.")


def _share(count: int, total: int, what: str) -> str:
    return f"{count} of {total} {what} ({100 * count / total:.1f} %)"


def _repeated(train: pl.DataFrame, test: pl.DataFrame, user: str, item: str) -> str:
    count = len(test.join(train.select(user, item).unique(), on=[user, item], how="semi"))
    if not count:
        return ""
    return (
        f"{_share(count, len(test), 'test events')} have a user and item that stand in train too: a model can repeat what it saw. "
        "Remove repeats before the split, or filter seen items in evaluate and read the figure as one of repeats."
    )


def _future(train: pl.DataFrame, test: pl.DataFrame, user: str, time: str) -> list[str]:
    first = test.group_by(user).agg(pl.col(time).min().alias("__first"))
    own = len(train.join(first, on=user).filter(pl.col(time) > pl.col("__first")))
    if own:
        return [
            f"{_share(own, len(train), 'train events')} are later than the first test event of their user: the model learns from "
            "what the user did afterwards. Split by time, or leave out each user's last events."
        ]
    later = int((train[time] > test[time].min()).sum())
    if not later:
        return []
    return [
        f"{_share(later, len(train), 'train events')} are later than the first test event of anybody: the model knows what "
        "became popular. That is the way of leave-last-out protocols; split_by_time for an honest forecast."
    ]


def _own_item(name: str, part: pl.DataFrame, item: str, history: str) -> str:
    count = part.select(pl.col(history).list.contains(pl.col(item)).fill_null(False).sum()).item()
    if not count:
        return ""
    return (
        f"{_share(count, len(part), f'{name} events')} have their own item in {history!r}: the answer is in the question, unless "
        "users do come back to items. Make histories with build_histories, which takes strictly earlier events."
    )


def _future_in_history(
    train: pl.DataFrame, test: pl.DataFrame, user: str, item: str, time: str | None, history: str
) -> str:
    at = pl.lit(0) if time is None else pl.col(time)
    before = pl.lit(-1) if time is None else pl.col(time)
    pair = {"user": pl.col(user), "item": pl.col(item)}
    coming = test.select(**pair, coming=at).group_by("user", "item").agg(pl.col("coming").max())
    past = train.select(**pair, past=before).group_by("user", "item").agg(pl.col("past").min())
    rows = train.select(user=pl.col(user), at=at, item=pl.col(history)).with_row_index("row").explode("item")
    known = rows.join(coming, on=["user", "item"]).join(past, on=["user", "item"], how="left")
    early = known.filter(pl.col("coming") >= pl.col("at"), pl.col("past").is_null() | (pl.col("past") >= pl.col("at")))
    count = early["row"].n_unique()
    if not count:
        return ""
    return (
        f"{_share(count, len(train), 'train events')} have an item in {history!r} that their user comes to only in a test event: "
        "the model reads the answer while it learns. Make histories with build_histories, which takes strictly earlier events."
    )


def _too_early(name: str, part: pl.DataFrame, time: str, column: str) -> str:
    count = int((part[column] > part[time]).sum())
    if not count:
        return ""
    return (
        f"{_share(count, len(part), f'{name} events')} have a {column!r} after their own {time!r}: the feature was not known then. "
        "Join the features as they were at the time of the event."
    )
