"""Evaluation: what was measured, for all queries, for slices and for each query; and two of them compared."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from twotower.errors import choose
from twotower.evaluation.statistics import Interval, level_of, sign_flip_test
from twotower.files import PathLike, folder_written_aside

RECOMMENDED, POSITIVES = "recommended", "positives"  # columns of `values`: the list, and how many positives there are


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Args:
        mean: over the queries where the metric is defined; nan without any.
        low, high: the ends of its bootstrap interval; nan for numbers about all lists together, and with fewer than ten users.
        count: those queries.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{_short(self.low)}, {_short(self.high)}]"
        return _short(self.mean) + interval


@dataclass(frozen=True)
class SliceEstimates:
    """The metrics of one slice.

    Args:
        queries: that it holds; of a slice of items, the queries with a positive among them.
        positives: that it holds.
        metrics: by name; nothing for an empty slice.
    """

    queries: int
    positives: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an Evaluator measured of one ranker.

    Args:
        name: of the ranker.
        metrics: by name, over all queries.
        slices: by name.
        values: one row for each query: its keys, its number of positives, each metric, and the ids recommended, best first.
        queries, positives, candidates: their numbers.
        keys: the columns of `values` that tell queries apart.
        user: the one that tells users apart.
        confidence: of the intervals.
        seconds: that ranking and measuring took.

    Example:
        >>> evaluation = Evaluator(test, candidates=items, seen=train)(model)      # doctest: +SKIP
        >>> print(evaluation)                                                      # doctest: +SKIP
        >>> evaluation["recall_at_10"].mean                                        # doctest: +SKIP
    """

    name: str
    metrics: Mapping[str, Estimate]
    slices: Mapping[str, SliceEstimates]
    values: pl.DataFrame
    queries: int
    positives: int
    candidates: int
    keys: tuple[str, ...]
    user: str
    confidence: float = 0.95
    seconds: float = field(default=0.0, compare=False)

    def __getitem__(self, metric: str) -> Estimate:
        """A metric over all queries."""
        return choose("metric of this evaluation", metric, self.metrics)

    def __str__(self) -> str:
        head = f"{self.name}: {self.queries:,} queries, {self.positives:,} positives, {self.candidates:,} candidates"
        lines = [f"  {name:<24} {estimate}" for name, estimate in self.metrics.items()]
        for name, part in self.slices.items():
            shown = next(iter(part.metrics.items()), None)
            lines.append(f"  {name:<24} " + (f"{shown[0]} {shown[1]}, " if shown else "") + f"{part.queries:,} queries")
        return "\n".join([head, *lines])

    def means(self) -> dict[str, float]:
        """The means alone."""
        return {name: estimate.mean for name, estimate in self.metrics.items()}

    def save(self, path: PathLike) -> None:
        """Write a folder: evaluation.json, and values.parquet with one row for each query. It appears whole or not at all."""
        with folder_written_aside(path, "evaluation.json") as folder:
            self.values.write_parquet(folder / "values.parquet")
            (folder / "evaluation.json").write_text(json.dumps(self._text(), indent=1))

    @classmethod
    def load(cls, path: PathLike) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            ValueError: there is none.
        """
        file = Path(path) / "evaluation.json"
        if not file.exists():
            raise ValueError(f"no evaluation at {path}: it has no evaluation.json. Evaluation.save writes one.")
        text = json.loads(file.read_text())
        text["metrics"] = _estimates(text["metrics"])
        text["slices"] = {
            name: SliceEstimates(part["queries"], part["positives"], _estimates(part["metrics"]))
            for name, part in text["slices"].items()
        }
        return cls(
            values=pl.read_parquet(file.with_name("values.parquet"), glob=False), **text | {"keys": tuple(text["keys"])}
        )

    def _text(self) -> dict[str, Any]:
        plain = ("name", "queries", "positives", "candidates", "keys", "user", "confidence", "seconds")
        slices = {
            name: {"queries": part.queries, "positives": part.positives, "metrics": _plain(part.metrics)}
            for name, part in self.slices.items()
        }
        return {name: getattr(self, name) for name in plain} | {"metrics": _plain(self.metrics), "slices": slices}


@dataclass(frozen=True)
class Difference:
    """One metric of two rankers on the same queries.

    Args:
        metric: its name.
        first, second: the means.
        difference: of the means, first - second.
        low, high: the ends of its interval: all differences that the test behind p does not refuse; nan with fewer than ten users.
        p: of a paired randomisation test: how likely a difference as large is when the two are alike.
        better, worse: the shares of the queries where the first has the higher and the lower value.
        confidence: of the interval, which leaves out 0 exactly if p is below 1 - confidence.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    better: float
    worse: float
    confidence: float = 0.95

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """What the first is beside the second: unclear where p is at least 1 - confidence, so that 0 lies in the interval."""
        if self.p >= level_of(self.confidence):
            return "unclear"
        return "better" if self.difference > 0 else "worse"

    def __str__(self) -> str:
        return (
            f"{self.metric}: {_short(self.first)} against {_short(self.second)}, {self.difference:+.4f} "
            f"[{self.low:+.4f}, {self.high:+.4f}], p = {self.p:.4f}, better for {self.better:.1%} of the queries, worse for "
            f"{self.worse:.1%}"
        )


def compare(
    first: Evaluation, second: Evaluation, metrics: Sequence[str] | None = None, seed: int = 0
) -> list[Difference]:
    """Two evaluations of the same queries, paired query by query.

    Args:
        first, second: of one Evaluator, or of two with the same data.
        metrics: names; by default all that both have for each query.
        seed: of the resampling.

    Raises:
        ValueError: the evaluations are of other queries, positives or numbers of candidates, or lack a metric.
    """
    _check_same_question(first, second, metrics or ())
    both = [name for name in first.metrics if name in second.metrics and name in first.values.columns]
    keys = list(first.keys)
    joined = _paired(first, second, keys)
    cluster = joined[first.user].rank("dense").to_numpy().astype(np.int64) - 1
    found = []
    for name in both if metrics is None else metrics:
        choose("metric of both evaluations", name, dict.fromkeys(both))
        one, other = joined[name].to_numpy(), joined[f"{name}__other"].to_numpy()
        apart = one - other
        known = ~np.isnan(apart)
        if not known.any():
            if metrics is not None:
                raise ValueError(f"{name!r} is defined for no query of both {first.name!r} and {second.name!r}.")
            continue
        p, interval = sign_flip_test(apart[known], cluster[known], confidence=first.confidence, seed=seed)
        found.append(
            Difference(
                metric=name,
                first=float(one[known].mean()),
                second=float(other[known].mean()),
                difference=float(apart[known].mean()),
                low=interval.low,
                high=interval.high,
                p=p,
                better=float((apart[known] > 0).mean()),
                worse=float((apart[known] < 0).mean()),
                confidence=first.confidence,
            )
        )
    return found


def tabulate(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """One row for each evaluation: its name, then each metric's mean and the ends of its interval."""
    rows = []
    for evaluation in evaluations:
        row: dict[str, object] = {"name": evaluation.name}
        for name, estimate in evaluation.metrics.items():
            row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row)
    return pl.DataFrame(rows)


def estimates(names: Sequence[str], values: Sequence[np.ndarray], intervals: Sequence[Interval]) -> dict[str, Estimate]:
    """Means, intervals and numbers of defined values, by name."""
    made = {}
    for name, value, interval in zip(names, values, intervals, strict=True):
        known = value[~np.isnan(value)]
        mean = float(known.mean()) if len(known) else math.nan
        made[name] = Estimate(mean, interval.low, interval.high, len(known))
    return made


def _check_same_question(first: Evaluation, second: Evaluation, metrics: Sequence[str]) -> None:
    whole = [name for name in metrics if name in first.metrics and name not in first.values.columns]
    if whole:
        raise ValueError(f"{whole} are numbers about all lists together, without a value for each query to be paired.")
    if first.candidates != second.candidates:
        raise ValueError(
            f"{first.name!r} ranked {first.candidates} candidates and {second.name!r} {second.candidates}: these figures do not "
            "compare. Evaluate both with one Evaluator."
        )


def _paired(first: Evaluation, second: Evaluation, keys: list[str]) -> pl.DataFrame:
    if first.keys != second.keys:
        raise ValueError(
            f"queries are told apart by {keys} in {first.name!r} and by {list(second.keys)} in {second.name!r}."
        )
    a, b = first.values, second.values
    if a.select(keys).equals(b.select(keys)):  # one evaluator's: the same queries in the same order
        others = b.select(pl.exclude(*keys).name.suffix("__other"))
        return _same_positives(pl.concat([a, others], how="horizontal"), first, second)
    joined = a.join(b, on=keys, suffix="__other", maintain_order="left")
    if len(joined) != len(a) or len(joined) != len(b):
        raise ValueError(
            f"{first.name!r} and {second.name!r} were measured on other queries: {len(a)} and {len(b)}, {len(joined)} in "
            "common. Evaluate both with one Evaluator."
        )
    return _same_positives(joined, first, second)


def _same_positives(joined: pl.DataFrame, first: Evaluation, second: Evaluation) -> pl.DataFrame:
    other = int((joined[POSITIVES] != joined[f"{POSITIVES}__other"]).sum())
    if other:
        raise ValueError(
            f"{first.name!r} and {second.name!r} were asked for other positives of {other} of {len(joined)} queries. Evaluate both "
            "with one Evaluator."
        )
    return joined


def _estimates(text: Mapping[str, Sequence[Any]]) -> dict[str, Estimate]:
    def read(value: float | None) -> float:
        return math.nan if value is None else value

    return {name: Estimate(read(e[0]), read(e[1]), read(e[2]), int(e[3])) for name, e in text.items()}


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, list[float | int | None]]:
    """JSON has no nan."""

    def write(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {name: [write(e.mean), write(e.low), write(e.high), e.count] for name, e in metrics.items()}


def _short(value: float) -> str:
    """Such as .2627, -.0041 and 12.35."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
