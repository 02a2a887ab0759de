"""The popularity of late, from the times of the training rows: how fast it fades, and the shares that the prior takes."""

from itertools import pairwise

import numpy as np
import polars as pl
import torch

from twotower.blocks.prior import PopularityPrior
from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.data.times import seconds
from twotower.models.base import RetrievalModelV2

FLOOR = 0.1  # of an event, for each id: what nobody chose of late is not impossible
HALVINGS = 12  # half-lives to try: the whole time that the rows span, a half of it, a quarter and so on
AHEAD, BLOCKS = 0.2, 10  # the last fifth of the rows is foretold, a tenth of it at a time from all before it


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
    priors = [part for part in model.candidate.modules() if isinstance(part, PopularityPrior)]
    if not priors:
        return
    item, time = config.data.item, config.data.time
    assert time is not None
    rows = events.sort(time, maintain_order=True)
    ids, own = (preprocessor.transform(each.select(item)).to_polars()[item].to_numpy() for each in (rows, learnt))
    asked = rows[time] if rows[time].dtype.is_numeric() else seconds(rows[time])
    times, size = asked.to_numpy().astype(np.float64), priors[0].column.cardinality
    late = faded_counts(ids, times, times[-1], half_life(ids, times), size)
    for prior in priors:
        prior.set_shares(trained=shares(np.bincount(own, minlength=size)), served=shares(late))


def shares(counts: np.ndarray) -> torch.Tensor:
    """Counts (ids,) as shares of all, relative to the mean share of the ids that were chosen: 1 for what is chosen as often."""
    counted = counts + FLOOR
    return torch.from_numpy(counted / counted.sum() * max(1, (counts > 0).sum())).float()


def faded_counts(ids: np.ndarray, times: np.ndarray, now: float, half_life: float, size: int) -> np.ndarray:
    """(size,) events of each id, each one worth a half for every half-life that it is older than `now`."""
    return np.bincount(ids, 0.5 ** ((now - times) / half_life), minlength=size).astype(
        np.float64
    )  # whole numbers if empty


def half_life(ids: np.ndarray, times: np.ndarray) -> float:
    """How long until an event counts half, so that faded counts foretell best what is chosen next.

    Tenths of the last fifth of the rows are foretold in turn, each from the rows before it; the half-life of the largest
    likelihood is taken, of the whole span of time, a half of it, a quarter and so on. Nothing after the rows is looked at.

    Args:
        ids: (rows,) from 0 on, in order of time.
        times: (rows,) in any unit.
    """
    span = float(times[-1] - times[0]) or 1.0
    tried = [span / 2**halvings for halvings in range(HALVINGS + 1)]
    return max(tried, key=lambda each: _likelihood(ids, times, each))


def _likelihood(ids: np.ndarray, times: np.ndarray, half_life: float) -> float:
    """The sum of the log shares that the foretold rows had."""
    edges = np.unique(np.linspace(len(ids) * (1 - AHEAD), len(ids), BLOCKS + 1).astype(int))
    size, total = int(ids.max()) + 1, 0.0
    now = times[min(edges[0], len(ids) - 1)]
    counts = faded_counts(ids[: edges[0]], times[: edges[0]], now, half_life, size)
    for start, stop in pairwise(edges):
        block, later = slice(start, stop), times[min(stop, len(ids) - 1)]
        share = (counts + FLOOR) / (counts + FLOOR).sum()
        total += float(np.log(share[ids[block]]).sum())
        counts *= 0.5 ** ((later - now) / half_life)
        counts += faded_counts(ids[block], times[block], later, half_life, size)
        now = later
    return total
