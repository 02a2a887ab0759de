"""What is known of every user of a run, as a feature store serves it."""

import polars as pl

from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.experiment.rows import with_latest_history, with_users
from twotower.experiment.tables import Tables
from twotower.feature_stores.base import SEEN
from twotower.models.base import RetrievalModelV2


def user_features(config: Config, tables: Tables, model: RetrievalModelV2, preprocessor: Preprocessor) -> pl.DataFrame:
    """A row for each user of the run's rows: the id, the raw columns that the query tower reads, and the items seen.

    The history and the context are those of the end of the data: the user's last row, asked at the latest time.
    """
    needed = preprocessor.raw_columns(model.query.schema.column_names)
    user, time = config.data.user, config.data.time
    rows = tables.before("everything")
    rows = rows.filter(pl.col(user).is_not_null())
    if time is not None:
        rows = rows.sort(time, maintain_order=True)
    last = rows.unique(user, keep="last", maintain_order=True)
    if tables.users is not None:  # those who did nothing yet are known as well
        last = last.join(tables.users.select(user), on=user, how="full", coalesce=True, maintain_order="left_right")
    found = with_latest_history(config, with_users(config, last, tables.users), rows)
    if time is not None:
        found = found.with_columns(pl.lit(rows[time].max(), dtype=rows.schema[time]).alias(time))
    seen = rows.group_by(user, maintain_order=True).agg(pl.col(config.data.item).alias(SEEN))
    columns = list(dict.fromkeys([user, *needed]))
    return (
        found.select(columns)
        .join(seen, on=user, how="left", maintain_order="left")
        .with_columns(pl.col(SEEN).fill_null([]))
    )
