"""Counts that fade: how fast is told by the events themselves."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

FLOOR = 0.1  # of an event, for each id: what nobody chose of late is not impossible
HALVINGS = 12  # half-lives to try: the whole time that the rows span, a half of it, a quarter and so on
AHEAD, BLOCKS = 0.2, 10  # the last fifth of the rows is foretold, a tenth of it at a time from all before it


def shares(counts: np.ndarray) -> Tensor:
    """Counts (ids,) as shares of all, relative to the mean share of the ids that were chosen: 1 for what is chosen as often."""
    counted = counts + FLOOR
    return torch.from_numpy(counted / counted.sum() * max(1, (counts > 0).sum())).float()


def faded_counts(ids: np.ndarray, times: np.ndarray, now: float, half_life: float, size: int) -> np.ndarray:
    """(size,) events of each id, each one worth a half for every half-life that it is older than `now`."""
    counts = np.bincount(ids, 0.5 ** ((now - times) / half_life), minlength=size)
    return counts.astype(np.float64)  # of no events they are whole numbers


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
