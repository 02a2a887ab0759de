"""What the pages show of items and of values: a title, a line about it, words for numbers and lists."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from twotower.report.catalogue import as_lists, category_column, title_column
from twotower.serving.items import Items, RawId

NOTHING = "–"
LISTED = 12  # elements of a list that are written out
LONGEST = 400  # characters of a text
BESIDE = 3  # columns in the line about an item


@dataclass(frozen=True)
class Card:
    """One item in a list.

    Args:
        id: the raw id.
        title: its title, or its id where it has none.
        about: a line of other things; may be empty.
    """

    id: RawId
    title: str
    about: str


class Shown:
    """How the items of one bundle are shown.

    Args:
        items: of the Retriever.

    Attributes:
        title: the column of titles, "" if there is none.
        category: a column of few values, "" if there is none.
    """

    def __init__(self, items: Items) -> None:
        self.items = items
        self.title = title_column(items.table, items.id_name)
        self.category = category_column(items.table, (items.id_name, self.title))
        short = [name for name, kind in items.table.schema.items() if _in_a_line(kind)]
        others = [name for name in short if name not in (items.id_name, self.title, self.category)]
        self.beside = ([self.category] if self.category else []) + others[: BESIDE - bool(self.category)]

    def cards(self, ids: Sequence[RawId]) -> list[Card]:
        """A card for each id, in order.

        Raises:
            ValueError: an id that is no item.
        """
        rows = self.items.at(self.items.keys_of(ids))
        return [self._card(row) for row in rows.iter_rows(named=True)]

    def by_id(self, ids: Sequence[RawId]) -> dict[RawId, Card]:
        """The cards of those ids that are items."""
        known = [raw for raw in dict.fromkeys(ids) if raw in self.items]
        return {card.id: card for card in self.cards(known)}

    def fields(self, raw: RawId) -> list[tuple[str, str]]:
        """All columns of an item but its title, by name."""
        row = self.items.at(self.items.keys_of([raw])).row(0, named=True)
        return [(name, words(value)) for name, value in row.items() if name != self.title]

    def groups(self, ids: Sequence[RawId], column: str) -> pl.Series:
        """The values of a column as lists of texts."""
        return as_lists(self.items.at(self.items.keys_of(ids)), column)

    def _card(self, row: Mapping[str, object]) -> Card:
        title = str(row[self.title] or "").strip() if self.title else ""
        told = [self._told(name, row[name]) for name in self.beside if words(row[name]) != NOTHING]
        raw = row[self.items.id_name]
        assert isinstance(raw, (int, str))
        return Card(raw, title or f"{self.items.id_name} {raw}", " · ".join(told))

    def _told(self, name: str, value: object) -> str:
        """Texts speak for themselves, numbers need their name."""
        kind = self.items.table.schema[name]
        return words(value, 4) if name == self.category or _is_text(kind) else f"{name} {words(value)}"


def words(value: object, most: int = LISTED) -> str:
    """A value as a reader wants it.

    Example:
        >>> words(["a", "b"]), words(None), words(0.12345), words(True), words(1378000000.0)
        ('a, b', '–', '0.1235', 'yes', '1378000000')
    """
    if isinstance(value, (list, tuple)):
        value = [element for element in value if element is not None]
    if value is None or value == "" or value == [] or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list):
        more = f" … ({len(value)} in all)" if len(value) > most else ""
        return ", ".join(words(element) for element in value[:most]) + more
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat(" ") if isinstance(value, dt.datetime) else value.isoformat()
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _is_text(kind: pl.DataType) -> bool:
    return kind in (pl.String, pl.Categorical, pl.Enum)


def _in_a_line(kind: pl.DataType) -> bool:
    if isinstance(kind, pl.List):
        return _is_text(kind.inner)  # type: ignore[arg-type]
    return _is_text(kind) or kind.is_numeric() or kind.is_temporal() or kind == pl.Boolean
