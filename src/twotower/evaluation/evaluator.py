"""Evaluator: one question, asked of any model or baseline in the same way."""

import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import polars as pl
import torch
from torch import Tensor

from twotower.data.arrow import to_tensor
from twotower.data.dataset import Dataset, Source
from twotower.data.ragged import Ragged
from twotower.errors import explain_options, unknown
from twotower.evaluation.queries import Queries
from twotower.evaluation.ranking import Ranked, ScoreQueries, check_cut_off, rank
from twotower.evaluation.result import POSITIVES, RECOMMENDED, Estimate, Evaluation, SliceEstimates, estimates
from twotower.evaluation.slices import SliceBy, make_slices, reading_train, tail_count
from twotower.evaluation.statistics import bootstrap
from twotower.evaluation.task import check_columns, ranking_task, same_kind, warn_if, warn_of_unknown
from twotower.exposure import CatalogMetric, DiversityAt, Lists
from twotower.measures import AnyMetrics, resolve_all
from twotower.schema import Schema
from twotower.tags import Tags


@runtime_checkable
class Ranker(Protocol):
    """What an Evaluator asks of a model: scores of some queries with all candidates."""

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """A function from the numbers of some queries (T,) to a tensor of their scores (T, N), higher being better.

        They are compared as float32. The tensor is written into, and done with before the next one is asked for: give a new one or
        a buffer, no table that you keep.

        Args:
            queries: Q of them, each with its columns.
            candidates: one row for each of the N candidates.
        """
        ...


class Evaluator:
    """Ranks all candidates for every query of the evaluation data, and measures the lists.

    Tables may be raw or encoded, as the rankers need them: a Retriever and the baselines read raw tables, a model reads
    encoded ones. What it measures is a mean over queries; intervals come from resampling users. Ties lose.

    Args:
        data: interactions to be predicted, such as the test set.
        candidates: the catalogue, one row for each candidate: the id, and what rankers and slices read. A part of it ranks
            that part alone (a whitelist); positives outside count as missed.
        seen: earlier interactions; their items are not ranked again for the same user.
        train: the training interactions, from which popularity, cold items and new users are known; by default `seen`.
        user: the column that tells users apart; by default the one tagged USER_ID, or the only one of `query`.
        item: the column of candidate ids; by default the one tagged ITEM_ID.
        query: the columns that tell queries apart; by default `user`. With columns that differ from row to row, such as the
            hour of asking, every distinct combination is a query of its own.
        target: a column whose rows above 0 are the positives, such as "click"; by default all rows are.
        metrics: names such as "recall_at_20", "full_recall_at_20", "coverage_at_20", "diversity_of_genres_at_20", or records;
            by default recall, NDCG, MRR, hit rate and coverage at 10.
        slices: "cold_items", "warm_items", "tail_items", "head_items", "new_users", "known_users", columns of the candidates or
            of the data, or SliceBy records.
        confidence: of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: a missing column, ids that are missing or of different types, a measure of popularity without
            training events, no such metric or slice, a metric at more than there are candidates, nothing to evaluate.

    Example:
        >>> from twotower.baselines import Popularity
        >>> train = {"user_id": [1, 1, 2, 3], "item_id": [7, 8, 7, 9]}
        >>> test = {"user_id": [2, 3], "item_id": [8, 7]}
        >>> evaluator = Evaluator(test, candidates={"item_id": [7, 8, 9]}, seen=train, user="user_id", item="item_id",
        ...                       metrics=["recall_at_1"], slices=["new_users"])
        >>> popular = evaluator(Popularity(Dataset(train), "user_id", "item_id"))
        >>> popular["recall_at_1"].mean  # 8 and 9 tie for user 2, and ties lose
        0.5
    """

    @explain_options
    def __init__(
        self,
        data: Source,
        *,
        candidates: Source,
        seen: Source | None = None,
        train: Source | None = None,
        user: str | None = None,
        item: str | None = None,
        query: str | Sequence[str] | None = None,
        target: str | None = None,
        metrics: AnyMetrics | None = None,
        slices: Sequence[str | SliceBy] = (),
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, such as .95, got {confidence}.")
        data = Dataset(data)
        keys = [query] if isinstance(query, str) else list(query or ())
        self.item = item or _tagged(data.schema, Tags.ITEM_ID, "item")
        self.user = user or (keys[0] if len(keys) == 1 else _tagged(data.schema, Tags.USER_ID, "user"))
        self.keys = tuple(dict.fromkeys([*keys, self.user]))
        if target is not None:
            check_columns(data, [target], "the evaluation data")
            data = Dataset(data.to_polars().filter(pl.col(target) > 0), data.schema)
        warn_of_unknown(
            data,
            [self.user, self.item],
            "count as one. Keep the raw id in another column and give it as user, or rank raw tables with a Retriever.",
        )
        self.metrics = resolve_all(metrics)
        self.confidence, self.seed = confidence, seed
        self.candidates = _distinct(Dataset(candidates), self.item)
        check_cut_off(self.metrics.k, len(self.candidates))
        self._features = {
            m.column: _codes(self.candidates, m.column) for m in self.metrics.lists if isinstance(m, DiversityAt)
        }
        ids = self.candidates.to_polars()[self.item]
        past = None if seen is None else Dataset(seen)
        self.task = ranking_task(
            data, query=list(self.keys), candidate=self.item, candidates=ids, seen=past, seen_by=[self.user]
        )
        self.queries = Queries(data, self.keys, self.task.first)
        self._learn(past if train is None else Dataset(train), slices)
        self._slices = make_slices(
            slices,
            counts=self._counts,
            tail=self._tail,
            events=self._events,
            candidates=self.candidates.to_polars(),
            queries=self.queries,
        )
        if self._slices.items and not self.metrics.ranking:
            raise ValueError("slices of items need a metric of hits, such as 'recall_at_10'.")

    def _learn(self, train: Dataset | None, slices: Sequence[str | SliceBy]) -> None:
        """Popularity of the candidates, and what the users' own items have of it."""
        ids, users = self.candidates.to_polars()[self.item], self.queries.users(self.user)
        if train is None:
            needing = [m.name for m in (*self.metrics.lists, *self.metrics.catalog) if m.reads_train] + reading_train(
                slices
            )
            if needing:
                raise ValueError(f"{needing} are measured from the training events: give train= (or seen=).")
            nobody = torch.zeros(len(users), dtype=torch.float64)
            self._counts, self._events, self._profile = (
                torch.zeros(len(ids), dtype=torch.float64),
                nobody,
                nobody * torch.nan,
            )
            self._tail, self._all = 0.0, (0, len(ids))
            return
        check_columns(train, [self.user, self.item], "the training data")
        known_ids = [(self.user, users), (self.item, ids)]
        events = train.to_polars().select(same_kind(train, name, like, "the training data") for name, like in known_ids)
        popular = events.drop_nulls(self.item).group_by(self.item).agg(__count=pl.len().cast(pl.Float64))
        by_user = events.join(popular, on=self.item).group_by(self.user)
        own = by_user.agg(__number=pl.len().cast(pl.Float64), __mean=pl.col("__count").mean())
        counts = ids.to_frame().join(popular, on=self.item, how="left", maintain_order="left")["__count"].fill_null(0)
        known = users.to_frame().join(own, on=self.user, how="left", maintain_order="left")
        self._counts = torch.from_numpy(counts.to_numpy().copy())
        self._events = torch.from_numpy(known["__number"].fill_null(0).to_numpy().copy())
        self._profile = torch.from_numpy(known["__mean"].fill_null(float("nan")).to_numpy().copy())
        self._tail = tail_count(torch.from_numpy(popular["__count"].to_numpy().copy()))
        self._all = (len(events), len(popular) + int((counts == 0).sum()))

    def __call__(self, ranker: Ranker, name: str | None = None) -> Evaluation:
        """Measure a model, a Retriever, a baseline: anything with `score_queries`.

        Args:
            ranker: what to measure.
            name: for tables; by default its class's.
        """
        started = time.perf_counter()
        chosen = self.metrics
        with torch.no_grad():
            ranked = rank(ranker.score_queries(self.queries, self.candidates), self.task, chosen.k)
        values = {m.name: m(ranked.hits, self.task.num_positives).double().numpy() for m in chosen.ranking}
        lists = Lists(ranked.places, self._counts, *self._all, self._profile, self._features)
        values |= {m.name: m(lists).double().numpy() for m in chosen.lists}
        overall, slices = self._summaries(values, ranked)
        overall |= self._of_all(lists, chosen.catalog)
        return Evaluation(
            name=name or type(ranker).__name__,
            metrics={m.name: overall[m.name] for m in chosen.given},
            slices=slices,
            values=self._table(values, ranked),
            queries=len(self.queries),
            positives=int(self.task.num_positives.sum()),
            candidates=self.task.num_candidates,
            keys=self.keys,
            user=self.user,
            confidence=self.confidence,
            seconds=time.perf_counter() - started,
        )

    def _summaries(
        self, values: dict[str, np.ndarray], ranked: Ranked
    ) -> tuple[dict[str, Estimate], dict[str, SliceEstimates]]:
        """Estimates over all queries, and of every slice."""
        users = self.queries.users(self.user).rank("dense").to_numpy().astype(np.int64) - 1
        everyone = np.ones(len(users), dtype=bool)
        counts = self.task.num_positives.numpy()
        parts = [(everyone, values, counts)]
        parts += [(mask.numpy(), values, counts) for mask in self._slices.queries.values()]
        parts += [self._of_items(mask, ranked) for mask in self._slices.items.values()]
        arrays = [
            np.stack([v[mask] for v in part.values()], axis=1) if part else np.empty((mask.sum(), 0))
            for mask, part, _ in parts
        ]
        intervals = bootstrap(
            arrays,
            [users[mask] for mask, _, _ in parts],
            num_clusters=int(users.max()) + 1,
            confidence=self.confidence,
            seed=self.seed,
        )
        made = [
            SliceEstimates(int(mask.sum()), int(number[mask].sum()), estimates(list(part), list(array.T), interval))
            for (mask, part, number), array, interval in zip(parts, arrays, intervals, strict=True)
        ]
        names = [*self._slices.queries, *self._slices.items]
        return dict(made[0].metrics), dict(zip(names, made[1:], strict=True))

    def _of_items(self, mask: Tensor, ranked: Ranked) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """The queries with positives among some candidates, and the metrics with these positives alone."""
        positives = self.task.positives
        number = torch.bincount(positives.row_of_value()[mask[positives.values]], minlength=len(self.queries))
        hits = ranked.hits * (mask[ranked.places.clamp(min=0)] & (ranked.places >= 0))
        values = {m.name: m(hits, number).double().numpy() for m in self.metrics.ranking}
        return number.numpy() > 0, values, number.numpy()

    def _of_all(self, lists: Lists, metrics: Sequence[CatalogMetric]) -> dict[str, Estimate]:
        return {m.name: Estimate(m(lists), np.nan, np.nan, len(self.queries)) for m in metrics}

    def _table(self, values: dict[str, np.ndarray], ranked: Ranked) -> pl.DataFrame:
        """One row for each query."""
        asked = (
            self.queries.select(self.keys)
            .to_polars()
            .with_columns(pl.Series(POSITIVES, self.task.num_positives.numpy()))
        )
        ids = self.candidates.to_polars()[self.item]
        there = ranked.places >= 0
        lists = pl.DataFrame(
            {"row": torch.nonzero(there)[:, 0].numpy(), RECOMMENDED: ids[ranked.places[there].numpy()]}
        )
        by_row = lists.group_by("row", maintain_order=True).agg(RECOMMENDED)
        rows = pl.DataFrame({"row": np.arange(len(asked))}).join(by_row, on="row", how="left", maintain_order="left")
        return asked.with_columns(pl.Series(name, array) for name, array in values.items()).with_columns(
            rows[RECOMMENDED]
        )


def _tagged(schema: Schema, tag: Tags, what: str) -> str:
    names = schema.select_by_tag(tag).column_names
    if len(names) != 1:
        raise ValueError(
            f"which column is the {what}? The evaluation data's schema has {names} tagged {tag.value!r}. "
            f"Give {what}='<the column>'."
        )
    return names[0]


def _distinct(candidates: Dataset, item: str) -> Dataset:
    """One row for each id, the first; ids that stand for nobody are no candidates."""
    check_columns(candidates, [item], "the candidates' data")
    frame = candidates.to_polars()
    unknown_id = candidates.schema[item].properties.get("unknown_id") if item in candidates.schema else None
    kept = frame.drop_nulls(item) if unknown_id is None else frame.filter(pl.col(item) > unknown_id)
    warn_if(len(frame) - len(kept), f"candidates have no id, or one that the Preprocessor did not know, in {item!r}.")
    return Dataset(kept.unique(item, keep="first", maintain_order=True), candidates.schema)


def _codes(candidates: Dataset, name: str) -> Ragged:
    """The distinct values of each row as numbers; nothing for null."""
    frame = candidates.to_polars()
    if name not in frame.columns:
        raise ValueError(f"diversity reads a column of the candidates. {unknown('column', name, frame.columns)}")
    column = frame[name]
    many = column.dtype if isinstance(column.dtype, (pl.List, pl.Array)) else None
    rows = pl.DataFrame({"row": pl.int_range(len(column), eager=True), "value": column})
    rows = (rows.explode("value") if many else rows).drop_nulls().unique(maintain_order=True)
    rows = rows.with_columns(code=pl.col("value").rank("dense").cast(pl.Int64) - 1).group_by("row").agg("code")
    lists = pl.DataFrame({"row": pl.int_range(len(column), eager=True)}).join(
        rows, on="row", how="left", maintain_order="left"
    )
    made = to_tensor(lists["code"].fill_null([]).cast(pl.List(pl.Int64)).to_arrow(), name)
    assert isinstance(made, Ragged)
    return made
