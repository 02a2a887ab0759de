"""A first config from the tables themselves, with the reason for each column as a comment."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twotower.config.columns import TAGS, options_of
from twotower.config.config import Config
from twotower.config.yaml_file import write_yaml
from twotower.data.columns import KINDS, Column, Timestamp
from twotower.data.inference import TIMES, Inferred, infer_columns
from twotower.data.raw import RawTable
from twotower.errors import unknown
from twotower.tags import TARGETS, Tags, several_tags

HEAD = """\
# Written by `twotower init` from a look at the tables; change what you know better. docs/config.md lists every key.
"""


@dataclass(frozen=True)
class Given:
    """What the draft is made from.

    Args:
        interactions: paths of the Parquet of who did what.
        items, users: paths, if there are such tables.
        user, item, time: columns, where their names do not say so.
    """

    interactions: tuple[str, ...]
    items: str | None = None
    users: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None


@dataclass(frozen=True)
class Draft:
    """A config as text.

    Args:
        text: the YAML.
        notes: what the reader should know at once.
    """

    text: str
    notes: list[str]


def draft(given: Given, folder: Path) -> Draft:
    """Propose a config.

    Args:
        given: the tables.
        folder: where the config will lie; paths become relative to it.

    Raises:
        ValueError: a file or column that is not there, or no column is named like an id of the users or items.
    """
    tables = [
        list(given.interactions),
        *([given.items] if given.items else []),
        *([given.users] if given.users else []),
    ]
    found = infer_columns(*tables, user=given.user, item=given.item)
    events = RawTable(list(given.interactions)).head(100_000)
    item = next(name for name, column in found.columns.items() if _tagged(column, Tags.ITEM_ID))
    user = next((name for name, column in found.columns.items() if _tagged(column, Tags.USER_ID)), None)
    if user is None:
        raise ValueError(f"no column is named like an id of the user among {events.columns}: say it, --user <column>.")
    time = _time(given.time, events, found)
    lines = [HEAD, "data:"]
    paths = [_relative(path, folder) for path in given.interactions]
    lines.append(f"  interactions: {_inline(paths if len(paths) > 1 else paths[0])}")
    lines += [
        f"  {key}: {_inline(_relative(path, folder))}"
        for key, path in (("items", given.items), ("users", given.users))
        if path
    ]
    lines += [f"  user: {_inline(user)}", f"  item: {_inline(item)}"]
    lines += (
        [f"  time: {_inline(time)}"]
        if time
        else ["  # time: <column>  # none was found; splits by time and histories need it"]
    )
    lines += _positive(found, events)
    lines += [
        "",
        "# How each column is read, and by whose tower. What is commented out was left out for the reason beside it.",
        "columns:",
    ]
    for row in found.report.iter_rows(named=True):
        column = _column(row, found, user if time else None)
        if row["column"] == time:  # hours that training never saw, and others that it saw once, tell of the moment too
            column = [
                f"{re.sub('^  (?=[^# ])', '  # ', line)}: left out, as model.popularity follows the times"
                for line in column
            ]
        lines += column
        if row["column"] == time and events[row["column"]].dtype.is_numeric():
            moment = {"kind": "bucketized", "tags": ["context"], "buckets": 20, "source": time}
            why = "the moment: left out, since model.popularity counts what is popular now"
            lines.append(f"  # asked_at: {_inline(moment)}  # {why}")
    lines += _rest(time)
    text = "\n".join(lines) + "\n"
    notes = [f"users: {user}; items: {item}; time: {time or 'none found'}"]
    left = [row["column"] for row in found.report.iter_rows(named=True) if row["column"] not in found.columns]
    notes += [f"left out: {', '.join(left)}; the config says why"] if left else []
    return Draft(text, notes)


def entry_of(column: Column) -> dict[str, Any]:
    """A declaration as it stands in a config; options at their defaults are left out."""
    kind = next(name for name, declaration in KINDS.items() if type(column) is declaration)
    names: dict[tuple[Any, ...], str] = {tags: name for name, tags in TAGS.items()}
    own = tuple(several_tags(column.tags))  # type: ignore[attr-defined]
    tags = [names[own]] if own in names else [names[(tag,)] for tag in own if (tag,) in names]
    entry: dict[str, Any] = {"kind": kind, "tags": tags}
    for name, option in options_of(type(column)).items():
        value = getattr(column, name)
        if option.default is dataclasses.MISSING or value != option.default:
            entry[name] = list(value) if isinstance(value, tuple) else value
    return entry


def _column(row: dict[str, Any], found: Inferred, user: str | None) -> list[str]:
    """The lines of one column."""
    name, why = row["column"], row["why"]
    column = found.columns.get(name)
    if column is None:
        return [f"  # {_inline(name)}: {row['type']}  # {why}"]
    if set(several_tags(column.tags)) & set(TARGETS):  # type: ignore[attr-defined]
        return [f"  # {_inline(name)}: {row['type']}  # {why}"]
    line = f"{_inline(name)}: {_inline(entry_of(column))}"
    if name == user:
        return [f"  # {line}  # {why}: left out, since the history says more and serves new users too"]
    return [f"  {line}  # {why}"]


def _rest(time: str | None) -> list[str]:
    history = [
        "",
        "# What the user did before, as a feature of the query.",
        "history:",
        "  length: 20",
        "  encoder: mean  # or bag, gru, transformer",
    ]
    split = (
        "time  # one cut for everybody: trained on the past, measured on what came after"
        if time
        else "random  # there is no time"
    )
    return [
        *(history if time else []),
        "",
        "split:",
        f"  kind: {split}",
        "  validation: 0.1",
        "  test: 0.1",
        "",
        "model:",
        "  dim: 64",
        "  temperature: 0.1",
        "  dropout: 0.2",
        *(
            ["  popularity: recent  # counted, recent events most; the towers learn what differs from person to person"]
            if time
            else []
        ),
        "",
        "training:",
        "  epochs: 20  # at most: it stops when the validation no longer gains",
        "  batch_size: 1024",
        "  learning_rate: 0.002",
        "",
        "evaluation:",
        f"  metrics: {_inline(list(Config.model_fields['evaluation'].default.metrics))}  # the first is the main one",
        f"  baselines: [popularity, {'recent_popularity, ' if time else ''}item_knn]",
    ]


def _positive(found: Inferred, events: pl.DataFrame) -> list[str]:
    """A hint where a column looks like the outcome of an event, or like its kind."""
    outcomes = [n for n, c in found.columns.items() if set(several_tags(c.tags)) & set(TARGETS) and n in events.columns]  # type: ignore[attr-defined]
    if not outcomes:
        return []
    middle = float(events[outcomes[0]].cast(pl.Float64).drop_nans().median() or 0.0)  # type: ignore[arg-type]
    rule = f"{{column: {_inline(outcomes[0])}, at_least: {middle:g}}}"
    return [f"  # positive: {rule}  # every row counts; take this in to keep good ones alone"]


def _time(given: str | None, events: pl.DataFrame, found: Inferred) -> str | None:
    if given is not None and given not in events.columns:
        raise ValueError(unknown("column of the interactions", given, events.columns))
    read = [n for n in events.columns if isinstance(found.columns.get(n), Timestamp) and not events[n].null_count()]
    numbers = [
        n
        for n in events.columns
        if TIMES.search(n.lower()) and events[n].dtype.is_numeric() and not events[n].null_count()
    ]
    return given or next(iter([*read, *numbers]), None)


def _tagged(column: Column, tag: Tags) -> bool:
    return tag in several_tags(column.tags)  # type: ignore[attr-defined]


def _relative(path: str, folder: Path) -> str:
    return path if "://" in path else os.path.relpath(os.path.abspath(path), os.path.abspath(folder))


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(k)}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return write_yaml(value, width=1_000_000).removesuffix("...\n").strip()
