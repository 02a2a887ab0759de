"""What a report is made from, and what its page is made of."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from twotower.evaluation import Evaluation
from twotower.serving.retriever import Retriever


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report is computed from.

    Args:
        title: of the page.
        config: how the model was made, as YAML text; may be empty.
        history: one row for each epoch: epoch, loss, val_<metric>, health_<name>; may be empty.
        evaluations: of one Evaluator on raw tables: the model's first, then the baselines'.
        train: the raw training interactions.
        items: the raw items, one row each.
        user, item: the columns of their ids.
        retriever: the trained one.
        findings: what health found in training, as (name, text).
        environment: versions, hardware, dates, by name; the page holds no date but from here.
        test: the raw interactions that were to be predicted; without them the page cannot tell which recommendations were right.
        time: the column of `train` that orders a user's interactions; by default "timestamp" if there is one, else the
            order of the rows.
    """

    title: str
    config: str
    history: pl.DataFrame
    evaluations: list[Evaluation]
    train: pl.DataFrame
    items: pl.DataFrame
    user: str
    item: str
    retriever: Retriever
    findings: list[tuple[str, str]]
    environment: dict[str, object]
    test: pl.DataFrame | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ValueError(
                "a report needs at least one evaluation, the model's: evaluations=[evaluator(retriever), ...]."
            )


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
