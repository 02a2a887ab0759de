"""The popularity of late, from the times of the training rows."""

import numpy as np
import polars as pl

from twotower.blocks.prior import PopularityPrior
from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.data.times import seconds
from twotower.models.base import RetrievalModelV2
from twotower.models.positions import all_targets


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
            ids = preprocessor.transform(events.select(item)).to_polars()[item]
            prior.count(
                ids,
                events[time] if events[time].dtype.is_numeric() else seconds(events[time]),
                _positives(config, learnt, preprocessor, model),
            )


def _positives(config: Config, learnt: pl.DataFrame, preprocessor: Preprocessor, model: RetrievalModelV2) -> np.ndarray:
    """The encoded items that the rows train: their own and, on every position, those of their histories."""
    encoded = preprocessor.transform(learnt)
    if config.history is None or not config.history.every_position:
        return encoded.to_polars()[config.data.item].to_numpy()
    return all_targets(model.query, model.candidate_id, config.history.column, encoded).ids.numpy()
