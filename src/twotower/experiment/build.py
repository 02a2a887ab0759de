"""From the config to a fitted Preprocessor and to two towers that are not trained yet."""

from collections.abc import Callable

import polars as pl
import torch

from twotower.blocks.embedding import Embeddings
from twotower.blocks.history.bag import HistoryBag
from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.history.gru import HistoryGRU
from twotower.blocks.history.transformer import HistoryTransformer
from twotower.blocks.inputs import InputBlockV2
from twotower.blocks.mlp import MLPBlock
from twotower.blocks.normalize import L2Norm
from twotower.blocks.pretrained import PretrainedEmbeddings
from twotower.blocks.prior import PopularityPrior, PriorWeight
from twotower.config.config import Config
from twotower.config.sections import History, Model, Training
from twotower.data.preprocessor import Preprocessor
from twotower.encoder import Encoder
from twotower.experiment.tables import Tables
from twotower.logits import LearnedTemperature
from twotower.models.base import RetrievalModelV2
from twotower.models.two_tower import TwoTowerModelV2
from twotower.samplers.base import CandidateSampler
from twotower.samplers.cross_batch import CrossBatchSampler
from twotower.samplers.hard import HardNegativeSampler
from twotower.samplers.popularity import PopularitySampler
from twotower.samplers.uniform import UniformSampler
from twotower.tags import Tags

COUNTED: dict[str, Callable[[int], CandidateSampler]] = {
    "uniform": UniformSampler,
    "popularity": PopularitySampler,
    "cross-batch": CrossBatchSampler,
    "hard": HardNegativeSampler,
}


def fit_preprocessor(config: Config, tables: Tables, rows: pl.DataFrame) -> Preprocessor:
    """Learn from the training rows; from the items only what describes them.

    An item that nobody chose in training has an id that nothing was learnt of: it is unknown to the tower, and goes by its
    features.
    """
    features = tables.items.drop(config.data.item)
    more = [features] if features.width else []
    if tables.users is not None:
        more += [tables.users.drop(config.data.user)] if tables.users.width > 1 else []
    return Preprocessor(config.declarations()).fit(rows, *more)


def build_model(config: Config, preprocessor: Preprocessor) -> RetrievalModelV2:
    """Two towers over one set of embedding tables, compiled; the weights are drawn from training.seed."""
    torch.manual_seed(config.training.seed)
    wanted, schema = config.model, preprocessor.schema
    candidate_columns = schema.select_by_tag(Tags.ITEM).column_names
    by_features = candidate_columns != [config.data.item]
    dim = wanted.embedding_dim or wanted.dim
    inputs = InputBlockV2(
        schema,
        categorical=Embeddings(
            schema.select_by_tag(Tags.CATEGORICAL),
            dim=dim,
            sequence_combiner=_combiner(config.history, dim),
            id_dropout={config.data.item: wanted.id_dropout} if by_features else 0.0,
        ),
        pretrained_embeddings=_vectors(preprocessor),
    )
    weight = prior = None
    if wanted.popularity == "recent":
        weight, prior = PriorWeight(), PopularityPrior(schema[config.data.item], float(wanted.temperature))
    query, candidate = (
        Encoder(
            inputs.select_by_tag(side), _layers(wanted, hidden), post=L2Norm() if wanted.normalize else None, prior=own
        )
        for side, hidden, own in (
            (Tags.USER, wanted.query_layers, weight),
            (Tags.ITEM, wanted.candidate_layers, prior),
        )
    )
    model = TwoTowerModelV2(
        query,
        candidate,
        logits_temperature=LearnedTemperature() if wanted.temperature == "learned" else float(wanted.temperature),
        negative_samplers=[_sampler(entry) for entry in wanted.negatives],
        logq_sampling_correction={"auto": True, "none": False}.get(wanted.correction, wanted.correction),
    )
    compile_model(config, model, config.training.learning_rate)
    return model


def compile_model(config: Config, model: RetrievalModelV2, learning_rate: float) -> None:
    """Choose how it is trained, as the config says but for the rate."""
    model.compile(
        optimizer=config.training.optimizer,
        loss=config.model.loss,
        learning_rate=learning_rate,
        table_optimizer=config.training.table_optimizer,
        schedule=config.training.schedule,
        warmup=config.training.warmup,
        every_position=config.history.column if config.history is not None and config.history.every_position else None,
    )


def trainer_options(training: Training) -> dict[str, object]:
    """What Lightning's Trainer is told."""
    clip: dict[str, object] = {} if training.gradient_clip is None else {"gradient_clip_val": training.gradient_clip}
    return {"accelerator": training.accelerator, "precision": training.precision} | clip


def _layers(wanted: Model, hidden: tuple[int, ...]) -> MLPBlock:
    return MLPBlock([*hidden, wanted.dim], no_activation_last_layer=True, dropout=wanted.dropout or None)


def _combiner(history: History | None, dim: int) -> dict[str, str | HistoryEncoder] | str:
    """How lists are pooled: the history by its encoder, others by their mean."""
    if history is None or history.encoder == "mean":
        return "mean"
    if history.encoder == "bag":
        return {history.column: HistoryBag(dim, weights="decay", max_length=history.length)}
    if history.encoder == "gru":
        layers = history.layers or 1
        return {history.column: HistoryGRU(dim, layers, dropout=history.dropout or 0.0, max_length=history.length)}
    dropout = 0.2 if history.dropout is None else history.dropout
    encoder = HistoryTransformer(
        dim, history.layers or 2, history.heads or 2, dropout=dropout, max_length=history.length
    )
    return {history.column: encoder}


def _vectors(preprocessor: Preprocessor) -> PretrainedEmbeddings | None:
    columns = preprocessor.schema.select_by_tag(Tags.EMBEDDING)
    return PretrainedEmbeddings(columns, vectors=preprocessor.vectors or None) if len(columns) else None


def _sampler(entry: str | dict[str, int]) -> str | CandidateSampler:
    if isinstance(entry, str):
        return entry
    ((name, number),) = entry.items()
    return COUNTED[name](number)
