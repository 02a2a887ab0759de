"""The night's tables, checked against what the live bundle knows before anything is learnt of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from twotower.config.config import Config
from twotower.data.dataset import Dataset
from twotower.data.inference import id_as
from twotower.errors import unknown
from twotower.experiment.tables import item_columns, latest_items, read_interactions, read_owners
from twotower.nightly.known import Known


@dataclass(frozen=True, eq=False)
class Fresh:
    """What a night brings.

    Args:
        rows: positive rows after all known ones; none on an empty night.
        items: all candidates from now on, or None if the night brought no table of them.
        users: features of the users, or None.
        skipped: rows that were known before and were left out, as asked.
        notes: what else was left out, in words.
    """

    rows: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    skipped: int
    notes: tuple[str, ...]


def read_fresh(
    known: Known,
    live_items: pl.DataFrame,
    interactions: Sequence[str],
    items: Sequence[str] | None,
    users: Sequence[str] | None,
    skip_known: bool,
) -> Fresh:
    """Read and check.

    Raises:
        ValueError: a column is missing or of another type than before; rows that are not after the known ones, unless
            `skip_known` leaves them out; a table of users that the config knows nothing of.
    """
    config, notes = known.config, list[str]()
    rows = known.rows.clear()
    if len(Dataset(list(interactions))):
        given = read_interactions(config, tuple(interactions), "the fresh interactions", notes)
        rows = as_before(given, known.rows.clear(), "the fresh interactions")
    new, skipped = _after(known, rows, skip_known)
    table = None
    if items is not None:
        table = as_before(read_owners(config, tuple(items), config.data.item, "data.items"), live_items, "the items")
        if not len(table):
            raise ValueError(f"the items, {', '.join(items)}, have no rows: there would be nothing to recommend.")
    people = known.users
    if users is not None:
        if known.users is None:
            raise ValueError("users are given, but the config has no data.users: its model reads nothing of them.")
        given = as_before(read_owners(config, tuple(users), config.data.user, "data.users"), known.users, "the users")
        people = pl.concat([known.users.join(given, on=config.data.user, how="anti", maintain_order="left"), given])
    if skipped:
        notes.append(f"{skipped:,} rows are not after the newest known one; they are skipped, as asked.")
    return Fresh(new, table, people, skipped, tuple(notes))


def as_before(table: pl.DataFrame, before: pl.DataFrame, what: str) -> pl.DataFrame:
    """The columns of an earlier table, of the same types; ids of another width are cast where none changes.

    Raises:
        ValueError: a column is missing, or is of another type.
    """
    made = []
    for name, kind in before.schema.items():
        if name not in table.columns:
            raise ValueError(f"{what} lack a column that was there before. {unknown('column', name, table.columns)}")
        column = table[name]
        both_whole = column.dtype.is_integer() and kind.is_integer()
        cast = id_as(column, kind) if both_whole or column.dtype == pl.Null else column
        if cast is None or cast.dtype != kind:
            some = column.drop_nulls().head(1).to_list()
            raise ValueError(
                f"column {name!r} of {what} holds {column.dtype}" + (f", such as {some[0]!r}" if some else "")
                + f"; before it held {kind}. Write it as before: what was learnt of it would not hold."
            )  # fmt: skip
        made.append(cast)
    return pl.DataFrame(made)


def catalogue(config: Config, live_items: pl.DataFrame, fresh: Fresh, learnt: pl.DataFrame) -> pl.DataFrame:
    """All candidates after the night: the night's table of items, or the live ones and those of the rows that are learnt.

    Args:
        config: of the run.
        live_items: the candidates before.
        fresh: what the night brings.
        learnt: rows to learn, which may name new items.
    """
    if fresh.items is not None:
        return fresh.items
    needed = [name for name in live_items.columns if name != config.data.item]
    if config.data.items is not None or not set(needed) <= set(learnt.columns) & set(item_columns(config)):
        return live_items
    latest = latest_items(config, learnt).select(live_items.columns)
    rest = live_items.join(latest, on=config.data.item, how="anti", maintain_order="left")
    return pl.concat([rest, as_before(latest, live_items, "the fresh interactions")])


def _after(known: Known, rows: pl.DataFrame, skip_known: bool) -> tuple[pl.DataFrame, int]:
    """The rows after the known ones, and how many others were left out."""
    time = known.time
    last: Any = known.rows[time].max()
    if not len(rows):
        return rows, 0
    later = rows.filter(pl.col(time) > last)
    overlap = len(rows) - len(later)
    if overlap and not skip_known:
        raise ValueError(
            f"{overlap:,} of {len(rows):,} fresh rows are not after the newest row that the live bundle knows ({time} = {last}): "
            "they would be learnt twice, or come too late to be placed. Give later rows alone, or --skip-known (skip_known=True), "
            "which leaves the others out and says how many."
        )
    return later, overlap
