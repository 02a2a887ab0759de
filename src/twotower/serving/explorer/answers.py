"""What the pages say: about the bundle, a user, an item and a query."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from twotower.models.base import RetrievalModelV2
from twotower.report.words import metric_name
from twotower.serving.explaining import Contribution, Explanation, explain, nearest_in
from twotower.serving.explorer.asking import Asked
from twotower.serving.explorer.item_map import frequent
from twotower.serving.explorer.showing import Card, words
from twotower.serving.explorer.site import Site
from twotower.serving.items import RawId

SOME = 8  # users and items on the first page
HISTORY = 40  # items of a history that are shown, the latest ones
BAR = 60  # half the width of a bar


@dataclass(frozen=True)
class Bar:
    """A contribution, its value in words, and the bar that draws it, `BAR` wide to each side of its middle."""

    contribution: Contribution
    value: str
    left: float
    width: float


@dataclass(frozen=True)
class Line:
    """One place of a list of items.

    Args:
        card: of the item.
        score: inner product or cosine.
        seen: whether the user has seen it.
        near: the nearest items of the history, with their cosines.
        bars: what the columns of the query add.
    """

    card: Card
    score: float
    seen: bool = False
    near: list[tuple[Card, float]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class History:
    """Items of a user, the latest first.

    Args:
        cards: up to HISTORY of them.
        total: how many there are.
        gone: how many of them are no items of this bundle.
    """

    cards: list[Card]
    total: int
    gone: int


def facts(site: Site, created: str | None) -> dict[str, Any]:
    """What the first page says of the bundle."""
    bundle, retriever = site.retriever.bundle, site.retriever
    numbers = {"items": f"{len(site.items):,}", "vector width": str(bundle.index.dim), "index": bundle.index.kind}
    if bundle.users is not None:
        numbers = {"users": f"{len(bundle.users):,}", **numbers}
    if created:
        numbers["created"] = created[:16].replace("T", " ")
    often = frequent(retriever, SOME)
    return {
        "numbers": numbers,
        "towers": towers(bundle.model, retriever.bundle.preprocessor.columns),
        "metrics": [(metric_name(name), words(float(value))) for name, value in bundle.metrics.items()],
        "users": some_users(site),
        "key": bundle.users.key if bundle.users is not None else "",
        "often": bool(often),
        "items": site.shown.cards(often or site.items.table[site.items.id_name].head(SOME).to_list()),
        "columns": [(name, str(kind)) for name, kind in site.items.table.schema.items()],
    }


def some_users(site: Site) -> list[tuple[RawId, int]]:
    """A few users to begin with, and how long their histories are."""
    users = site.retriever.bundle.users
    ids = users.some_ids(SOME) if users is not None else []
    if users is None or not ids:
        return []
    features = users.look_up(ids)
    column = site.retriever.history_column
    rows = features.rows[column].to_list() if column is not None else [None] * len(ids)
    return [(raw, len({*(row or ()), *seen})) for raw, row, seen in zip(ids, rows, features.seen, strict=True)]


def towers(model: RetrievalModelV2, columns: Any) -> list[tuple[str, list[tuple[str, str]], int]]:
    """Name, columns read with what they hold, and number of weights of both towers."""
    made = []
    for name, tower in (("Query tower", model.query), ("Candidate tower", model.candidate)):
        read = []
        for column in tower.schema:
            what = columns[column.name].kind.replace("_", " ") if column.name in columns else str(column.dtype)
            if column.int_domain is not None:
                what += f", {column.int_domain.max + 1:,} ids"
            read.append((column.name, what + (", a list" if column.is_list else "")))
        made.append((name, read, sum(weight.numel() for weight in tower.parameters())))
    return made


def history_of(site: Site, ids: Sequence[RawId]) -> History:
    """The latest items of a list that has the latest last."""
    each = list(dict.fromkeys(reversed(ids)))
    known = [raw for raw in each if raw in site.items]
    return History(site.shown.cards(known[:HISTORY]), len(each), len(each) - len(known))


def to_user(site: Site, raw: RawId, asked: Asked) -> list[Line]:
    """Recommendations to a user of the feature store.

    Raises:
        ValueError: what is known of the user cannot be encoded.
    """
    users = site.retriever.bundle.users
    assert users is not None
    found = site.retriever.recommend_users([raw], asked.k, seen=asked.seen, where=asked.where)
    ids = found[site.items.id_name].to_list()
    return _explained(site, found, explain(site.retriever, raw, ids), set(users.look_up([raw]).seen[0]))


def to_query(site: Site, query: dict[str, object], history: Sequence[RawId], asked: Asked) -> tuple[list[Line], bool]:
    """Recommendations to a query with a history, and whether the query tower was asked.

    A tower that reads no history is asked if the query says anything; otherwise the history is answered by its own items.

    Raises:
        ValueError: the query cannot be encoded.
    """
    retriever = site.retriever
    hidden = None if asked.seen or not history else [list(history)]
    if retriever.history_column is None and history and all(value is None for value in query.values()):
        found = retriever.recommend_histories([list(history)], asked.k, seen=asked.seen, where=asked.where)
        near = nearest_in(retriever, found[site.items.id_name].to_list(), history)
        explanations = [
            Explanation(raw, score, some, [])
            for raw, score, some in zip(found[site.items.id_name], found["score"], near, strict=True)
        ]
        return _explained(site, found, explanations, set(history)), False
    if retriever.history_column is not None:
        query = {**query, retriever.history_column: list(history)}
    found = retriever.recommend([query], asked.k, hidden, where=asked.where)
    why = explain(retriever, query, found[site.items.id_name].to_list(), history=history)
    return _explained(site, found, why, set(history)), True


def similar_to(site: Site, raw: RawId, asked: Asked) -> list[Line]:
    """The nearest items of an item by cosine."""
    found = site.retriever.similar([raw], asked.k, where=asked.where)
    cards = site.shown.cards(found[site.items.id_name].to_list())
    return [Line(card, score) for card, score in zip(cards, found["score"].to_list(), strict=True)]


def _explained(site: Site, found: pl.DataFrame, why: Sequence[Explanation], seen: set[RawId]) -> list[Line]:
    ids = found[site.items.id_name].to_list()
    cards = site.shown.by_id([*ids, *(raw for one in why for raw, _ in one.nearest)])
    largest = max((abs(c.adds) for one in why for c in one.contributions if c.adds is not None), default=0.0) or 1.0
    return [
        Line(
            cards[raw],
            score,
            raw in seen,
            [(cards[near], cosine) for near, cosine in one.nearest],
            [_bar(site, contribution, largest) for contribution in one.contributions],
        )
        for raw, score, one in zip(ids, found["score"].to_list(), why, strict=True)
    ]


def _bar(site: Site, contribution: Contribution, largest: float) -> Bar:
    share = 0.0 if contribution.adds is None or not math.isfinite(contribution.adds) else contribution.adds / largest
    width = round(BAR * abs(share), 1)
    value = words(contribution.value, 3)
    if contribution.column == site.retriever.history_column and isinstance(contribution.value, list):
        value = f"{len(contribution.value)} {'item' if len(contribution.value) == 1 else 'items'}"
    return Bar(contribution, value, BAR if share >= 0 else BAR - width, width)
