"""Two-tower retrieval: from raw interaction tables to recommendations."""

from importlib import import_module
from typing import TYPE_CHECKING

from twotower.blocks.cross import CrossBlock
from twotower.blocks.embedding import Embeddings
from twotower.blocks.history.bag import HistoryBag
from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.history.gru import HistoryGRU
from twotower.blocks.history.transformer import HistoryTransformer
from twotower.blocks.inputs import InputBlockV2
from twotower.blocks.mlp import MLPBlock
from twotower.blocks.normalize import L2Norm
from twotower.blocks.numbers import Continuous, ContinuousEmbedding
from twotower.blocks.pooling import AttentionPooling
from twotower.blocks.pretrained import PretrainedEmbeddings
from twotower.blocks.prior import PopularityPrior, PriorWeight
from twotower.blocks.table import EmbeddingTable, infer_embedding_dim
from twotower.bundle import Bundle, load_bundle, save_bundle
from twotower.candidates import Candidates, Draw, Step, TopK
from twotower.data.catalog import Catalog
from twotower.data.columns import (
    Age,
    Bucketized,
    Categorical,
    Hashed,
    Numeric,
    PretrainedVectors,
    Text,
    Timestamp,
    Vector,
)
from twotower.data.dataset import Dataset, sample_batch, unique_rows_by_features
from twotower.data.histories import build_histories, latest_histories
from twotower.data.inference import Inferred, infer_columns
from twotower.data.interactions import load_interactions
from twotower.data.leaks import LeakWarning, check_leaks
from twotower.data.loader import Loader, MappedLoader
from twotower.data.movielens import MovieLens, load_movielens
from twotower.data.preprocessor import Preprocessor
from twotower.data.ragged import Ragged
from twotower.data.sources import MovieTweetings, load_movietweetings
from twotower.data.splits import k_core, leave_last_out, split_at_random, split_by_time, split_by_user
from twotower.data.synthetic.generate import generate_data, generate_world
from twotower.data.synthetic.raw import RawTables
from twotower.data.synthetic.world import World
from twotower.data.targets import ToTarget
from twotower.encoder import EmbeddingEncoder, Encoder
from twotower.evaluation import Difference, Estimate, Evaluation, Evaluator, SliceBy, SliceEstimates, compare, tabulate
from twotower.exposure import CatalogMetric, CoverageAt, DiversityAt, GiniAt, ListMetric, NoveltyAt, PopularityLiftAt
from twotower.feature_stores.base import Features, FeatureStore
from twotower.feature_stores.parquet import ParquetFeatures
from twotower.feature_stores.redis import RedisFeatures
from twotower.feature_stores.sqlite import SQLiteFeatures
from twotower.health.record import Health, HealthWarning, ListHealth, TowerHealth
from twotower.indexes.base import Index
from twotower.indexes.exact import ExactIndex
from twotower.indexes.filters import Filter
from twotower.indexes.flat import FlatIndex
from twotower.indexes.hnsw import HNSWIndex
from twotower.indexes.ivf import IVFIndex
from twotower.indexes.kinds import load_index
from twotower.indexes.qdrant import QdrantIndex
from twotower.indexes.recall import LowRecallWarning
from twotower.indexes.report import index_report
from twotower.indexes.scann import ScaNNIndex
from twotower.logits import LearnedTemperature
from twotower.metrics import (
    AvgPrecisionAt,
    HitRateAt,
    MRRAt,
    NDCGAt,
    PrecisionAt,
    RankingMetric,
    RecallAt,
)
from twotower.models.base import RetrievalModelV2
from twotower.models.matrix_factorization import MatrixFactorizationModelV2
from twotower.models.two_tower import TwoTowerModel, TwoTowerModelV2
from twotower.models.youtube_dnn import YoutubeDNNRetrievalModelV2
from twotower.optimizers import make_optimizer
from twotower.outputs import BinaryOutput, ContrastiveOutput, DotProduct, RegressionOutput
from twotower.report import ReportData, write_report
from twotower.samplers.base import CandidateSampler
from twotower.samplers.catalog import CatalogSampler
from twotower.samplers.cross_batch import CrossBatchSampler
from twotower.samplers.explicit import ColumnSampler
from twotower.samplers.frequency import CountFrequency, Frequency
from twotower.samplers.hard import HardNegativeSampler
from twotower.samplers.in_batch import InBatchSamplerV2
from twotower.samplers.popularity import PopularityBasedSamplerV2, PopularitySampler
from twotower.samplers.streaming import StreamingFrequency
from twotower.samplers.uniform import UniformSampler
from twotower.schema import (
    ColumnSchema,
    Domain,
    Schema,
    create_categorical_column,
    create_continuous_column,
)
from twotower.schema_io import load_schema, save_schema
from twotower.serving.explaining import Contribution, Explanation, explain
from twotower.serving.retriever import Retriever
from twotower.tags import Tags, TagSet
from twotower.top_k import TopKEncoder
from twotower.training.history import History

if TYPE_CHECKING:
    from twotower.config.config import Config
    from twotower.experiment.folder import Run
    from twotower.experiment.run import evaluate_run, train_run
    from twotower.export.hub import load_from_hub, push_to_hub
    from twotower.export.inputs import flat_inputs
    from twotower.export.tower import export_tower
    from twotower.export.vectors import export_embeddings
    from twotower.nightly.publishing import rollback
    from twotower.nightly.refresh import Refreshed, refresh
    from twotower.nightly.rules import RefreshRules
    from twotower.training.early_stopping import CatalogEarlyStopping

# imported when they are first asked for: pydantic and Lightning take seconds, and a serving process needs neither
LATER = {
    "CatalogEarlyStopping": "twotower.training.early_stopping",
    "Config": "twotower.config.config",
    "RefreshRules": "twotower.nightly.rules",
    "Refreshed": "twotower.nightly.refresh",
    "Run": "twotower.experiment.folder",
    "evaluate_run": "twotower.experiment.run",
    "export_embeddings": "twotower.export.vectors",
    "export_tower": "twotower.export.tower",
    "flat_inputs": "twotower.export.inputs",
    "load_from_hub": "twotower.export.hub",
    "push_to_hub": "twotower.export.hub",
    "refresh": "twotower.nightly.refresh",
    "rollback": "twotower.nightly.publishing",
    "train_run": "twotower.experiment.run",
}


def __getattr__(name: str) -> object:
    if name not in LATER:
        raise AttributeError(f"module 'twotower' has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


__version__ = "0.1.0"
__all__ = [
    "Age",
    "AttentionPooling",
    "AvgPrecisionAt",
    "BinaryOutput",
    "Bucketized",
    "Bundle",
    "CandidateSampler",
    "Candidates",
    "Catalog",
    "CatalogEarlyStopping",
    "CatalogMetric",
    "CatalogSampler",
    "Categorical",
    "ColumnSampler",
    "ColumnSchema",
    "Config",
    "Continuous",
    "ContinuousEmbedding",
    "ContrastiveOutput",
    "Contribution",
    "CountFrequency",
    "CoverageAt",
    "CrossBatchSampler",
    "CrossBlock",
    "Dataset",
    "Difference",
    "DiversityAt",
    "Domain",
    "DotProduct",
    "Draw",
    "EmbeddingEncoder",
    "EmbeddingTable",
    "Embeddings",
    "Encoder",
    "Estimate",
    "Evaluation",
    "Evaluator",
    "ExactIndex",
    "Explanation",
    "FeatureStore",
    "Features",
    "Filter",
    "FlatIndex",
    "Frequency",
    "GiniAt",
    "HNSWIndex",
    "HardNegativeSampler",
    "Hashed",
    "Health",
    "HealthWarning",
    "History",
    "HistoryBag",
    "HistoryEncoder",
    "HistoryGRU",
    "HistoryTransformer",
    "HitRateAt",
    "IVFIndex",
    "InBatchSamplerV2",
    "Index",
    "Inferred",
    "InputBlockV2",
    "L2Norm",
    "LeakWarning",
    "LearnedTemperature",
    "ListHealth",
    "ListMetric",
    "Loader",
    "LowRecallWarning",
    "MLPBlock",
    "MRRAt",
    "MappedLoader",
    "MatrixFactorizationModelV2",
    "MovieLens",
    "MovieTweetings",
    "NDCGAt",
    "NoveltyAt",
    "Numeric",
    "ParquetFeatures",
    "PopularityBasedSamplerV2",
    "PopularityLiftAt",
    "PopularityPrior",
    "PopularitySampler",
    "PrecisionAt",
    "Preprocessor",
    "PretrainedEmbeddings",
    "PretrainedVectors",
    "PriorWeight",
    "QdrantIndex",
    "Ragged",
    "RankingMetric",
    "RawTables",
    "RecallAt",
    "RedisFeatures",
    "RefreshRules",
    "Refreshed",
    "RegressionOutput",
    "ReportData",
    "RetrievalModelV2",
    "Retriever",
    "Run",
    "SQLiteFeatures",
    "ScaNNIndex",
    "Schema",
    "SliceBy",
    "SliceEstimates",
    "Step",
    "StreamingFrequency",
    "TagSet",
    "Tags",
    "Text",
    "Timestamp",
    "ToTarget",
    "TopK",
    "TopKEncoder",
    "TowerHealth",
    "TwoTowerModel",
    "TwoTowerModelV2",
    "UniformSampler",
    "Vector",
    "World",
    "YoutubeDNNRetrievalModelV2",
    "build_histories",
    "check_leaks",
    "compare",
    "create_categorical_column",
    "create_continuous_column",
    "evaluate_run",
    "explain",
    "export_embeddings",
    "export_tower",
    "flat_inputs",
    "generate_data",
    "generate_world",
    "index_report",
    "infer_columns",
    "infer_embedding_dim",
    "k_core",
    "latest_histories",
    "leave_last_out",
    "load_bundle",
    "load_from_hub",
    "load_index",
    "load_interactions",
    "load_movielens",
    "load_movietweetings",
    "load_schema",
    "make_optimizer",
    "push_to_hub",
    "refresh",
    "rollback",
    "sample_batch",
    "save_bundle",
    "save_schema",
    "split_at_random",
    "split_by_time",
    "split_by_user",
    "tabulate",
    "train_run",
    "unique_rows_by_features",
    "write_report",
]
