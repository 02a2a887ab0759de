"""The bundle of a run: what serves its model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.errors import need
from twotower.experiment.features import user_features
from twotower.experiment.tables import Tables
from twotower.feature_stores.parquet import ParquetFeatures
from twotower.indexes.kinds import INDEXES, MakeIndex, index_kind
from twotower.models.base import RetrievalModelV2
from twotower.serving.encoding import embed_rows
from twotower.serving.retriever import Retriever

NEEDED = {
    "flat": ("faiss", "index"),
    "ivf": ("faiss", "index"),
    "hnsw": ("faiss", "index"),
    "scann": ("scann", "scann"),
}
TUNED = ("ivf", "hnsw", "scann")  # kinds whose recall is measured when they are made
ASKED = 1000  # people whose queries it is measured by


def check_index(config: Config) -> None:
    """Say before the training, not after it, that what the index needs is not installed.

    Raises:
        ValueError: a module that cannot be imported, and the extra that brings it.
    """
    if config.serving.index in NEEDED:
        module, extra = NEEDED[config.serving.index]
        try:
            need(module, f"serving.index: {config.serving.index!r}", extra)
        except ImportError as error:
            raise ValueError(f"{error} Or give serving.index: exact.") from error


def users_of(config: Config, tables: Tables, preprocessor: Preprocessor) -> ParquetFeatures:
    """What is known of the users, made before the training: what no store can hold is said then."""
    return ParquetFeatures(user_features(config, tables, preprocessor), key=config.data.user)


def save_run_bundle(
    folder: Path,
    config: Config,
    tables: Tables,
    model: RetrievalModelV2,
    preprocessor: Preprocessor,
    users: ParquetFeatures,
    metrics: Mapping[str, float],
) -> None:
    """Write what serves the model, with what it was worth on the validation part."""
    index = _index(config, model, preprocessor, users)
    Retriever(model, preprocessor, tables.items, index=index, users=users, metrics=metrics).save(
        folder, users=config.serving.users
    )


def _index(config: Config, model: RetrievalModelV2, preprocessor: Preprocessor, users: ParquetFeatures) -> MakeIndex:
    """The kind that the config names; what it finds is measured by people's queries, not by candidates."""
    wanted = config.serving
    if wanted.index not in TUNED:
        return index_kind(wanted.index)
    people = users.look_up(users.some_ids(ASKED)).rows.select(preprocessor.raw_columns(model.query.schema.column_names))
    asked = embed_rows(model.query, preprocessor, people)
    return partial(INDEXES[wanted.index], queries=asked, target_recall=wanted.target_recall)  # type: ignore[call-arg]
