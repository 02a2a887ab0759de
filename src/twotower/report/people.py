"""A few users: what they chose, what they would get, and what was right."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from twotower.evaluation.result import RECOMMENDED
from twotower.report.catalogue import Catalogue
from twotower.report.record import ReportData
from twotower.report.scores import chosen_items
from twotower.report.words import chosen, metric_name, number

HISTORY, SHOWN = 8, 10


@dataclass(frozen=True)
class Recommended:
    """One place of a list."""

    title: str
    about: str
    right: bool


@dataclass(frozen=True)
class Person:
    """One query.

    Args:
        kind: why this one is shown.
        name: its keys.
        value: the main metric, in words.
        history: the last titles chosen, the newest first; `more` are left out.
        recommended: the first of the list.
        right: what was chosen next, with where it stood in the list; None when that is not known.
    """

    kind: str
    name: str
    value: str
    history: list[str]
    more: int
    recommended: list[Recommended]
    right: list[tuple[str, str]] | None


def people(data: ReportData, catalogue: Catalogue, metric: str) -> list[Person]:
    """Up to five, drawn at a fixed seed over levels of activity and success."""
    values = data.evaluations[0].values
    if not len(values):
        return []
    counts = (
        data.train.select(pl.col(data.user).cast(values.schema[data.evaluations[0].user]))
        .group_by(data.user)
        .len("events")
    )
    asked = values.select(pl.col(data.evaluations[0].user).alias(data.user))
    events = asked.join(counts, on=data.user, how="left", maintain_order="left")["events"].fill_null(0).to_numpy()
    worth = values[metric].fill_nan(0).to_numpy() if metric else np.zeros(len(values))
    right = None if data.test is None else chosen_items(data, values)
    return [_person(data, catalogue, metric, right, kind, row) for kind, row in _choose(events, worth)]


def _choose(events: np.ndarray, worth: np.ndarray) -> list[tuple[str, int]]:
    """Kinds and rows; a kind without anyone is left out, and nobody is shown twice."""
    known = events > 0
    middle = np.median(events[known]) if known.any() else 0
    busy = np.quantile(events[known], 0.9) if known.any() else 0
    kinds = {
        "A list that was right": known
        & (worth > 0)
        & (worth >= np.quantile(worth[worth > 0], 0.75) if (worth > 0).any() else False),
        "A list that missed": known & (worth == 0) & (events >= middle),
        "A new user, without history": ~known,
        "A user with a short history": known & (events <= min(3, middle)),
        "One of the most active users": known & (events >= busy),
    }
    rng = np.random.default_rng(0)
    found: list[tuple[str, int]] = []
    for kind, mask in kinds.items():
        rows = [row for row in np.flatnonzero(mask) if row not in [r for _, r in found]]
        if rows:
            found.append((kind, int(rng.choice(rows))))
    return found


def _person(
    data: ReportData, catalogue: Catalogue, metric: str, right: pl.DataFrame | None, kind: str, row: int
) -> Person:
    evaluation = data.evaluations[0]
    values = evaluation.values.row(row, named=True)
    titles, before = catalogue.titles(), _history(data, values[evaluation.user])
    listed = values[RECOMMENDED] or []
    next_ones: list[object] | None = None
    if right is not None:
        ids = right.filter(pl.col("query") == row)["id"].cast(evaluation.values.schema[RECOMMENDED].inner)  # type: ignore[attr-defined]
        next_ones = [item for item in ids if item in listed or item not in before]
    about = {
        r["id"]: _about(r) for r in catalogue.frame.filter(pl.col("id").is_in(listed[:SHOWN])).iter_rows(named=True)
    }
    shown = [
        Recommended(titles.get(i, str(i)), about.get(i, ""), next_ones is not None and i in next_ones)
        for i in listed[:SHOWN]
    ]
    return Person(
        kind=kind,
        name=", ".join(f"{key} {_key(values[key])}" for key in evaluation.keys),
        value=f"{metric_name(metric)} {number(values[metric])}" if metric else "",
        history=[titles.get(item, str(item)) for item in before[-HISTORY:][::-1]],
        more=max(0, len(before) - HISTORY),
        recommended=shown,
        right=None if next_ones is None else [(titles.get(i, str(i)), _where(i, listed)) for i in next_ones],
    )


def _history(data: ReportData, user: object) -> list[object]:
    """Ids of the training events of a user, oldest first."""
    own = data.train.filter(pl.col(data.user) == pl.lit(user, dtype=data.train.schema[data.user]))
    time = data.time or ("timestamp" if "timestamp" in own.columns else None)
    ordered = own.sort(time, maintain_order=True) if time else own
    return list(ordered[data.item].cast(data.items.schema[data.item]).to_list())


def _about(row: dict[str, object]) -> str:
    category = ", ".join(row["category"])  # type: ignore[arg-type]
    times = chosen(int(row["events"]))  # type: ignore[call-overload]
    return f"{category} · {times}" if category else times


def _where(item: object, listed: list[object]) -> str:
    return f"at place {listed.index(item) + 1}" if item in listed else f"not among the first {len(listed)}"


def _key(value: object) -> str:
    words = str(value)
    return words if len(words) <= 40 else words[:39] + "…"
