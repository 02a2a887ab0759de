"""How sure a mean is: bootstrap intervals, and a paired test with the interval that belongs to it, by whole users."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
DRAWS_AT_ONCE = 5_000_000  # of clusters, 40 MB
FEWEST = 10  # clusters below which resampling says nothing


class Interval(NamedTuple):
    """A percentile interval; nan where nothing was measured, or too little to resample."""

    low: float
    high: float


def bootstrap(
    parts: Sequence[np.ndarray], clusters: Sequence[np.ndarray], *, num_clusters: int, confidence: float, seed: int
) -> list[list[Interval]]:
    """Percentile intervals of means, each resample drawing whole clusters with replacement.

    Queries of one user are not independent, so that users are drawn and not queries. Efron and Tibshirani, "An Introduction
    to the Bootstrap", 1993, chapters 8 and 13.

    Args:
        parts: arrays (Q_s, M), such as one for each slice: a column for each metric, nan where undefined.
        clusters: for each part, (Q_s,) the cluster of each row, 0 to num_clusters - 1.
        num_clusters: of all parts; they share the resamples.
        confidence: such as .95.
        seed: of the draws.

    Returns:
        For each part an interval for each of its columns; nan with values of fewer than ten clusters.
    """
    rng = np.random.default_rng(seed)
    sums = [_by_cluster(values, cluster) for values, cluster in zip(parts, clusters, strict=True)]
    means: list[list[np.ndarray]] = [[] for _ in parts]
    chunk = max(1, DRAWS_AT_ONCE // num_clusters)
    for start in range(0, RESAMPLES, chunk):
        rows = min(chunk, RESAMPLES - start)
        drawn = rng.integers(0, num_clusters, (rows, num_clusters)) + num_clusters * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters).astype(float)
        for part, (there, total, number) in enumerate(sums):
            own = weights if len(there) == num_clusters else weights[:, there]
            with np.errstate(invalid="ignore"):  # a resample without any value has no mean
                means[part].append((own @ total) / (own @ number))
    tail = (1 - confidence) / 2
    return [
        [
            _percentiles(column, tail) if (number[:, m] > 0).sum() >= FEWEST else Interval(np.nan, np.nan)
            for m, column in enumerate(np.concatenate(part).T)
        ]
        for part, (_, _, number) in zip(means, sums, strict=True)
    ]


def sign_flip_test(
    differences: np.ndarray, clusters: np.ndarray, *, confidence: float, seed: int
) -> tuple[float, Interval]:
    """The two-sided p of a mean difference, and the interval of all differences that the same test does not refuse.

    Fisher's randomisation test for paired values: each cluster's sign is a coin's, and p = (extreme + 1) / (draws + 1), so that it
    is never 0. A difference d is tested by taking it from every value. With the sum T of N values, and the same A and B under a
    draw of signs, the draw is as extreme as the data where |A - d B| >= |T - d N|: between (T - A) / (N - B) and
    (T + A) / (N + B). So the interval is exact, and 0 lies in it exactly if p is at least 1 - confidence. Garthwaite, "Confidence
    Intervals from Randomization Tests", Biometrics 52, 1996, searches for the same ends.

    Args:
        differences: (Q,) defined values.
        clusters: (Q,) of each.
        confidence: such as .95.
        seed: of the draws.

    Returns:
        p, and the interval; nan with fewer than ten clusters, or too few draws for so high a confidence.
    """
    _, total, number = _by_cluster(differences[:, None], clusters)
    sums = np.concatenate([total, number], 1)
    rng, low, high = np.random.default_rng(seed), np.empty(2 * RESAMPLES), np.empty(2 * RESAMPLES)
    whole, count = sums.sum(0)
    rounding = 1e-12 * np.abs(total).sum() / count  # as large but for rounding is as large
    chunk = max(1, DRAWS_AT_ONCE // len(sums))
    for start in range(0, 2 * RESAMPLES, chunk):
        rows = slice(start, min(start + chunk, 2 * RESAMPLES))
        signs = rng.integers(0, 2, (rows.stop - start, len(sums)), dtype=np.int8) * 2.0 - 1
        drawn, signed = (signs @ sums).T
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.stack([(whole - drawn) / (count - signed), (whole + drawn) / (count + signed)])
        ends[:, np.abs(signed) == count] = [[-np.inf], [np.inf]]  # one sign for all is as extreme whatever is taken off
        low[rows], high[rows] = ends.min(0) - rounding, ends.max(0) + rounding
    p = float((((low <= 0) & (high >= 0)).sum() + 1) / (2 * RESAMPLES + 1))
    needed = math.ceil(level_of(confidence) * (2 * RESAMPLES + 1) - 1)  # draws, for p to reach the level
    if len(sums) < FEWEST or needed < 1:
        return p, Interval(np.nan, np.nan)
    found = Interval(float(np.sort(low)[needed - 1]), float(np.sort(high)[-needed]))
    return p, found if np.isfinite(found).all() else Interval(np.nan, np.nan)


def level_of(confidence: float) -> float:
    """The p below which a difference is not put down to chance: .05 for .95, without the rounding of 1 - .95."""
    return round(1 - confidence, 12)


def _by_cluster(values: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The clusters that occur (C,), and the sums and numbers of their defined values (C, M)."""
    there, at = np.unique(cluster, return_inverse=True)
    defined = ~np.isnan(values)
    total, number = np.zeros((2, len(there), values.shape[1]))
    np.add.at(total, at, np.where(defined, values, 0.0))
    np.add.at(number, at, defined)
    return there, total, number


def _percentiles(means: np.ndarray, tail: float) -> Interval:
    known = means[~np.isnan(means)]
    return Interval(*np.quantile(known, [tail, 1 - tail]).tolist()) if len(known) else Interval(np.nan, np.nan)
