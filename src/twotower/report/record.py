"""What a report is made from, and what its page is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown
from twotower.evaluation import Evaluation
from twotower.serving.retriever import Retriever


@dataclass(frozen=True, eq=False, init=False)
class ReportData:
    """Everything that a report is computed from.

    Tables are given as anything that Dataset reads: Polars, pandas or Arrow, a dict of columns, Parquet files.

    Args:
        title: of the page.
        evaluations: of one Evaluator on raw tables: the model's first, then the baselines'.
        train: the raw training interactions.
        items: the raw items, one row each.
        user, item: the columns of their ids.
        retriever: the trained one.
        config: how the model was made, as YAML text; may be empty.
        history: one row for each epoch: epoch, loss, val_<metric>, health_<name>; None for none.
        findings: what health found in training, as (name, text).
        environment: versions, hardware, dates, by name; the page holds no date but from here.
        test: the raw interactions that were to be predicted; without them the page cannot tell which recommendations were right.
        time: the column of `train` that orders a user's interactions; by default "timestamp" if there is one, else the
            order of the rows.
        display: the column of `items` to show for an item; by default a title is looked for.
        category: the column of `items` that colours the map; by default one of few values is looked for.

    Raises:
        ValueError: there is no evaluation, or a table lacks a column that is named.
    """

    title: str
    evaluations: list[Evaluation]
    train: pl.DataFrame
    items: pl.DataFrame
    user: str
    item: str
    retriever: Retriever
    config: str
    history: pl.DataFrame
    findings: list[tuple[str, str]]
    environment: dict[str, object]
    test: pl.DataFrame | None
    time: str | None
    display: str | None
    category: str | None

    def __init__(
        self,
        title: str,
        *,
        evaluations: Sequence[Evaluation],
        train: Source,
        items: Source,
        user: str,
        item: str,
        retriever: Retriever,
        config: str = "",
        history: Source | None = None,
        findings: Sequence[tuple[str, str]] = (),
        environment: Mapping[str, object] | None = None,
        test: Source | None = None,
        time: str | None = None,
        display: str | None = None,
        category: str | None = None,
    ) -> None:
        given = {
            "title": title, "evaluations": list(evaluations), "train": _frame(train), "items": _frame(items), "user": user,
            "item": item, "retriever": retriever, "config": config, "findings": list(findings),
            "history": pl.DataFrame() if history is None else _frame(history), "environment": dict(environment or {}),
            "test": None if test is None else _frame(test), "time": time, "display": display, "category": category,
        }  # fmt: skip
        for name, value in given.items():
            object.__setattr__(self, name, value)  # a frozen dataclass has no other way
        if not self.evaluations:
            raise ValueError(
                "a report needs at least one evaluation, the model's: evaluations=[evaluator(retriever), ...]."
            )
        _check_columns("train", self.train, user=user, item=item, time=time)
        _check_columns("items", self.items, item=item, display=display, category=category)
        if self.test is not None:
            _check_columns("test", self.test, item=item)


def _frame(table: Source) -> pl.DataFrame:
    return table if isinstance(table, pl.DataFrame) else Dataset(table).to_polars()


def _check_columns(table: str, frame: pl.DataFrame, **named: str | None) -> None:
    for role, column in named.items():
        if column is not None and column not in frame.columns:
            raise ValueError(f"{role}={column!r} is no column of {table}. {unknown('column', column, frame.columns)}")


@dataclass(frozen=True)
class Table:
    """Text in rows; the first column names the row, the others are numbers unless `words` says otherwise."""

    columns: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    strong: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader needs beside it.

    Args:
        name: its id on the page.
        title: what it shows.
        plot: Plotly's JSON.
        read: how to read it, in one sentence.
        alarm: what would be alarming, in one sentence.
        table: the same numbers as text.
        alt: one sentence in place of the picture.
        wide: over the whole width of the page.
    """

    name: str
    title: str
    plot: dict[str, Any]
    read: str
    alarm: str
    table: Table
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page; `notes` are sentences, also of what is missing and of what was sampled."""

    name: str
    title: str
    lead: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
