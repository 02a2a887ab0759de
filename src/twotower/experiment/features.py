"""What is known of every user of a run, as a feature store serves it."""

import polars as pl

from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.experiment.rows import with_latest_history, with_users
from twotower.experiment.tables import Tables
from twotower.feature_stores.base import SEEN, check_key
from twotower.feature_stores.cells import check_storable
from twotower.tags import Tags


def user_features(config: Config, tables: Tables, preprocessor: Preprocessor) -> pl.DataFrame:
    """A row for each user of all parts: the id, the raw columns that the query tower reads, and the items seen.

    History and context are those of the end of the data: the user's last row, asked at the latest time.

    Raises:
        ValueError: a column that a feature store cannot hold.
    """
    needed = preprocessor.raw_columns(preprocessor.schema.select_by_tag(Tags.USER).column_names)
    user, time = config.data.user, config.data.time
    rows = tables.before("everything")
    rows = rows.filter(pl.col(user).is_not_null())
    if time is not None:
        rows = rows.sort(time, maintain_order=True)
    last = rows.unique(user, keep="last", maintain_order=True)
    if tables.users is not None:  # those who did nothing yet are known as well
        known = tables.users.select(user).filter(pl.col(user).is_not_null())
        last = last.join(known, on=user, how="full", coalesce=True, maintain_order="left_right")
    found = with_latest_history(config, with_users(config, last, tables.users), rows)
    if time is not None:
        found = found.with_columns(pl.lit(rows[time].max(), dtype=rows.schema[time]).alias(time))
    seen = rows.group_by(user, maintain_order=True).agg(pl.col(config.data.item).alias(SEEN))
    table = found.select(list(dict.fromkeys([user, *needed]))).join(seen, on=user, how="left", maintain_order="left")
    table = _plain(table.with_columns(pl.col(SEEN).fill_null([])))
    check_key(table, user)
    check_storable(table.schema)
    return table


def _plain(table: pl.DataFrame) -> pl.DataFrame:
    """Categories as text and arrays as lists, as raw queries have them."""
    kinds: dict[str, pl.DataType] = {}
    for name, kind in table.schema.items():
        if isinstance(kind, pl.Array):
            kinds[name] = pl.List(kind.inner)
        elif isinstance(kind, (pl.Categorical, pl.Enum)):
            kinds[name] = pl.String()
    return table.cast(kinds)  # type: ignore[arg-type]
