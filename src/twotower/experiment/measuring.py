"""Evaluators on raw tables, for the model while it trains, for the finished Retriever, and for the baselines."""

from collections.abc import Callable

import polars as pl

from twotower import baselines as rivals
from twotower.baselines import Baseline
from twotower.config.config import Config
from twotower.data.dataset import Dataset
from twotower.data.inference import id_as
from twotower.data.preprocessor import Preprocessor
from twotower.data.times import seconds
from twotower.encoder import embed
from twotower.errors import need
from twotower.evaluation import Evaluation, Evaluator, Queries, ScoreQueries, score_vectors
from twotower.experiment.rows import queries
from twotower.experiment.tables import Tables
from twotower.models.base import RetrievalModelV2

MODEL = "model"  # its name among the evaluations


class RawRanker:
    """A model in training, asked by raw tables; what its Retriever will answer.

    Args:
        model: as it stands.
        preprocessor: encodes for it.
    """

    def __init__(self, model: RetrievalModelV2, preprocessor: Preprocessor) -> None:
        self.model = model
        self.preprocessor = preprocessor

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """As in Ranker."""
        asked = queries.select(self.preprocessor.raw_columns(self.model.query.schema.column_names))
        read = self.preprocessor.raw_columns(self.model.candidate.schema.column_names)
        vectors = embed(self.model.candidate, self.preprocessor.transform(candidates.select(read)))
        return score_vectors(embed(self.model.query, self.preprocessor.transform(asked)), vectors)


def make_evaluator(config: Config, tables: Tables, part: str, data: pl.DataFrame) -> Evaluator:
    """The question that is asked of the model and the baselines alike.

    Args:
        config: what is measured.
        tables: of the run.
        part: "validation", "test", or the name of later rows.
        data: the part's positives.
    """
    known, asked = tables.before(part), config.evaluation
    rows = queries(config, _like_training(config, tables.train, part, data), known, tables.users)
    event = free_name(rows, "event")
    if asked.query == "event":
        rows = rows.with_row_index(event)  # events may be equal in all that the tables say, or lack some of it
    return Evaluator(
        rows,
        candidates=tables.items,
        seen=known if asked.remove_seen else None,
        train=known if config.training.refit and part != "validation" else tables.train,
        user=config.data.user,
        item=config.data.item,
        query=config.data.user if asked.query == "user" else [event, config.data.user],
        metrics=asked.metrics,
        slices=asked.slices,
        confidence=asked.confidence,
        seed=asked.seed,
    )


def measure_baselines(
    config: Config, tables: Tables, part: str, evaluator: Evaluator, say: Callable[[str], None]
) -> list[Evaluation]:
    """The config's baselines, each learnt from all that was known before the part."""
    known = tables.before(part)
    found = []
    for name in config.baselines:
        say(f"measuring {name}")
        found.append(evaluator(BASELINES[name](config, known, tables.items), name=name))
    return found


def check_baselines(config: Config) -> None:
    """Say before the training, not after it, that what a baseline needs is not installed.

    Raises:
        ValueError: a module that cannot be imported, and the extra that brings it.
    """
    for name in config.baselines:
        for module, extra in NEEDED.get(name, ()):
            try:
                need(module, f"evaluation.baselines: {name!r}", extra)
            except ImportError as error:
                raise ValueError(f"{error} Or leave {name!r} out of evaluation.baselines.") from error


def _like_training(config: Config, train: pl.DataFrame, part: str, data: pl.DataFrame) -> pl.DataFrame:
    """The part with ids of the types that training had; later rows may come from another writer."""
    for name in (config.data.user, config.data.item):
        made = id_as(data[name], train.schema[name])
        if made is None:
            raise ValueError(
                f"the ids {name!r} are {data.schema[name]} in the {part} rows, and {train.schema[name]} in the run's training "
                "rows, and cannot be that without loss. Cast the column of those rows."
            )
        data = data.with_columns(made)
    return data


def free_name(rows: pl.DataFrame, name: str) -> str:
    """A name that no column has."""
    while name in rows.columns:
        name += "_"
    return name


def _simple(kind: Callable[..., Baseline]) -> Callable[[Config, pl.DataFrame, pl.DataFrame], Baseline]:
    def make(config: Config, known: pl.DataFrame, items: pl.DataFrame) -> Baseline:
        return kind(Dataset(known), config.data.user, config.data.item, Dataset(items))

    return make


def _recent(config: Config, known: pl.DataFrame, items: pl.DataFrame) -> Baseline:
    time = config.data.time
    assert time is not None
    events = known.with_columns(seconds(known[time]))
    return rivals.RecentPopularity(
        Dataset(events),
        config.data.user,
        config.data.item,
        Dataset(items),
        time=time,
        window=config.evaluation.recent_days * 86400,
    )


BASELINES: dict[str, Callable[[Config, pl.DataFrame, pl.DataFrame], Baseline]] = {
    "popularity": _simple(rivals.Popularity),
    "recent_popularity": _recent,
    "item_knn": _simple(rivals.ItemKNN),
    "ease": _simple(rivals.EASE),
    "als": _simple(rivals.ImplicitALS),
    "bpr": _simple(rivals.ImplicitBPR),
}

SPARSE = ("scipy.sparse", "baselines")
NEEDED: dict[str, tuple[tuple[str, str], ...]] = {
    "item_knn": (SPARSE,),
    "ease": (SPARSE, ("scipy.linalg.lapack", "baselines")),
    "als": (SPARSE, ("implicit.cpu.als", "implicit")),
    "bpr": (SPARSE, ("implicit.cpu.bpr", "implicit")),
}
