"""From parts to rows that towers read: the user's columns joined, the history, and one moment of asking for each query."""

import polars as pl

from twotower.config.config import Config
from twotower.data.histories import build_histories, latest_histories
from twotower.experiment.tables import Tables, item_columns


def training_rows(config: Config, tables: Tables) -> pl.DataFrame:
    """Raw rows to fit the Preprocessor and the towers on, with the features of user and item.

    What the candidate tower reads comes from the items, in training as in serving.
    """
    rows = with_users(config, tables.train, tables.users)
    if config.history is not None:
        rows = build_histories(rows, **_events(config))  # type: ignore[arg-type]
    items = tables.items.select(config.data.item, *item_columns(config))
    mine = [name for name in items.columns if name in rows.columns and name != config.data.item]
    return rows.drop(mine).join(items, on=config.data.item, how="left", maintain_order="left")


def queries(config: Config, part: pl.DataFrame, known: pl.DataFrame, users: pl.DataFrame | None) -> pl.DataFrame:
    """Rows to be predicted, asked from what was known before.

    With evaluation.query "user" the query's columns are those of the user's first row in the part: one moment of asking.
    """
    rows = with_users(config, part, users)
    if config.data.time is not None:
        rows = rows.sort(config.data.time, maintain_order=True)
    if config.evaluation.query == "user":
        asked = [name for name in rows.columns if name not in (config.data.user, config.data.item)]
        rows = rows.with_columns(pl.col(asked).first().over(config.data.user))
    return with_latest_history(config, rows, known)


def with_users(config: Config, rows: pl.DataFrame, users: pl.DataFrame | None) -> pl.DataFrame:
    """The users' columns beside the rows; but for the id no column is in both, which `read_tables` has seen to."""
    if users is None:
        return rows
    return rows.join(users, on=config.data.user, how="left", maintain_order="left")


def with_latest_history(config: Config, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """What each row's user did in the known rows; an empty list for one who is not there."""
    if config.history is None:
        return rows
    latest = latest_histories(known, **_events(config))  # type: ignore[arg-type]
    joined = rows.join(latest, on=config.data.user, how="left", maintain_order="left")
    return joined.with_columns(pl.col(config.history.column).fill_null([]))


def own_rows(config: Config, rows: pl.DataFrame) -> pl.DataFrame:
    """For training on every position: rows whose histories do not overlap, so that each event is learnt once."""
    if config.history is None or not config.history.every_position:
        return rows
    back = pl.col(config.data.time or "").rank("ordinal", descending=True).over(config.data.user) - 1
    return rows.filter(back % (config.history.length + 1) == 0)


def _events(config: Config) -> dict[str, object]:
    assert config.history is not None
    assert config.data.time is not None
    return {
        "user": config.data.user,
        "item": config.data.item,
        "time": config.data.time,
        "length": config.history.length,
        "name": config.history.column,
    }
