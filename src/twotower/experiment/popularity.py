"""The popularity of late, from the times of the training rows."""

import polars as pl

from twotower.blocks.prior import PopularityPrior
from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.data.times import seconds
from twotower.models.base import RetrievalModelV2


def set_popularity(
    config: Config, events: pl.DataFrame, learnt: pl.DataFrame, preprocessor: Preprocessor, model: RetrievalModelV2
) -> None:
    """Give the prior of the candidate tower, if it has one, the shares of what it is trained on, and of the events of late.

    Args:
        config: names the columns.
        events: all that is known.
        learnt: the rows that the next fit is given, which may be some of them.
        preprocessor: encodes the items.
        model: as built, or grown.
    """
    item, time = config.data.item, config.data.time
    for prior in model.candidate.modules():
        if isinstance(prior, PopularityPrior):
            assert time is not None
            ids, trained = (preprocessor.transform(rows.select(item)).to_polars()[item] for rows in (events, learnt))
            prior.count(ids, events[time] if events[time].dtype.is_numeric() else seconds(events[time]), trained)
