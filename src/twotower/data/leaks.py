"""What a test should not know: checks of two parts of an event table."""

import warnings
from collections.abc import Sequence

import polars as pl

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
    known_since: Sequence[str] = (),
) -> list[str]:
    """Warn of what makes a test figure too good, and return the findings; an empty list is good news.

    Looked for: test events whose user and item stand in train too; with `time`, train events that are later than the
    first test event of their user, or of anybody; with `history`, events whose list holds their own item; with `known_since`,
    features that came to be after their event.

    Args:
        train, test: the parts.
        user, item: the columns of users and items.
        time: the column of times, in both parts.
        history: a column of lists of earlier items, in either part.
        known_since: columns of times at which a row's features came to be known, such as an article's publication.

    Raises:
        ValueError: a column that a part lacks; `known_since` without `time`.

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
    parts = {"train": Dataset(train).to_polars(), "test": Dataset(test).to_polars()}
    for part in parts.values():
        for column in [user, item, *([time] if time else []), *known_since]:
            if column not in part.columns:
                raise ValueError(unknown("column", column, part.columns))
    if history is not None and not any(history in part.columns for part in parts.values()):
        raise ValueError(unknown("column", history, parts["train"].columns))
    findings = [_repeated(parts["train"], parts["test"], user, item)]
    if time is not None:
        findings += _future(parts["train"], parts["test"], user, time)
    for name, part in parts.items():
        if history is not None and history in part.columns:
            findings.append(_own_item(name, part, item, history))
        findings += [_too_early(name, part, str(time), column) for column in known_since]
    found = [finding for finding in findings if finding]
    for finding in found:
        warnings.warn(finding, LeakWarning, stacklevel=2)
    return found


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


def _too_early(name: str, part: pl.DataFrame, time: str, column: str) -> str:
    count = int((part[column] > part[time]).sum())
    if not count:
        return ""
    return (
        f"{_share(count, len(part), f'{name} events')} have a {column!r} after their own {time!r}: the feature was not known then. "
        "Join the features as they were at the time of the event."
    )
