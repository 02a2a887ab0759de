"""The house rules that a machine can check: the public names, the order of imports, the length of files."""

import ast
import inspect
from pathlib import Path

import pytest

import twotower as tt

SOURCE = Path(tt.__file__).parent
# the straight line of docs/decisions/0001-layout.md: a file imports only from files that stand before it
LINE = [
    "errors", "devices", "loops", "files", "tags", "schema", "schema_io", "data.ragged", "data.batch", "data.arrow",
    "data.fading", "data.parquet", "data.dataset", "data.raw", "data.times", "data.columns.values", "data.columns.vocabulary",
    "data.columns.base", "data.columns.categorical", "data.columns.hashed", "data.columns.times",
    "data.columns.numeric", "data.columns.buckets", "data.columns.text", "data.columns.vectors", "data.columns",
    "data.preprocessor", "data.inference", "data.splits", "data.leaks", "data.histories", "data.stream",
    "data.loader", "data.targets", "data.catalog", "data.delimited", "data.movielens", "data.sources",
    "data.interactions", "data.synthetic.schemas", "data.synthetic.roles", "data.synthetic.features",
    "data.synthetic.laws", "data.synthetic.raw", "blocks.initializers", "blocks.pooling", "blocks.history.base",
    "blocks.history.groups", "blocks.history.bag", "blocks.history.gru", "blocks.history.transformer",
    "blocks.id_dropout", "blocks.table", "blocks.embedding", "blocks.numbers", "blocks.pretrained", "blocks.inputs",
    "blocks.mlp", "blocks.cross", "blocks.normalize", "blocks.prior", "metrics", "saving", "encoder", "distinct", "candidates",
    "logits", "losses.softmax", "losses.pairwise", "losses.pointwise", "losses.fused", "losses", "samplers.base",
    "samplers.frequency", "samplers.streaming", "samplers.in_batch", "samplers.uniform", "samplers.weighted",
    "samplers.popularity", "samplers.catalog", "samplers.cross_batch", "samplers.explicit", "samplers.hard",
    "samplers", "outputs.base", "outputs.known", "outputs.contest", "outputs.contrastive", "outputs.targets",
    "outputs", "optimizers.rows", "optimizers.split", "optimizers.clipping", "optimizers.schedule", "optimizers",
    "health.measures", "health.record", "health.findings", "training.compiled", "training.history",
    "training.checkup", "training.watch", "training.checkpoint", "training.lightning", "exposure", "measures",
    "evaluation.task", "evaluation.queries", "evaluation.ranking", "evaluation.tower", "evaluation.statistics",
    "evaluation.slices", "evaluation.result", "evaluation.evaluator", "evaluation", "training.early_stopping",
    "data.synthetic.world", "data.synthetic.generate", "baselines.base", "baselines.popularity", "baselines.matrix",
    "baselines.item_knn", "baselines.ease", "baselines.implicit_models", "baselines", "indexes.filters",
    "indexes.base", "indexes.rows", "indexes.scan", "indexes.local", "indexes.exact", "indexes.faiss_part",
    "indexes.recall", "indexes.flat", "indexes.ivf", "indexes.hnsw", "indexes.scann", "indexes.payloads",
    "indexes.qdrant", "indexes.kinds", "indexes.report", "top_k", "models.parts", "models.positions",
    "models.scoring", "models.storing", "models.growing", "models.base", "models.two_tower",
    "models.matrix_factorization", "models.youtube_dnn", "feature_stores.base", "feature_stores.cells",
    "feature_stores.sqlite", "feature_stores.parquet", "feature_stores.redis", "bundle", "serving.encoding",
    "serving.items", "serving.queries", "serving.retriever", "export.inputs", "export.graph", "export.checking",
    "export.tower", "export.vectors", "export.card", "export.hub", "serving.explaining", "serving.searching",
    "report.record", "report.words", "report.plots", "report.comparison", "report.curves", "report.catalogue",
    "report.exposure", "report.scores", "report.item_map", "report.people", "report.page", "report",
    "serving.problems", "serving.cards", "serving.requests", "serving.batching", "serving.inputs",
    "serving.settings", "serving.instruments", "serving.reading", "serving.waiting", "serving.explorer.showing",
    "serving.explorer.asking", "serving.explorer.forms", "serving.explorer.item_map", "serving.explorer.site",
    "serving.explorer.answers", "serving.explorer.routes", "serving.live", "serving.service", "serving.front",
    "serving.oip", "serving.openapi",
    "serving.app", "serving.protocol", "serving.server", "config.yaml_file", "config.describe", "config.columns",
    "config.sections", "config.mistakes", "config.config", "config.drafting", "experiment.tables",
    "experiment.rows", "experiment.features", "experiment.bundling", "experiment.popularity", "experiment.build",
    "experiment.measuring", "experiment.lock", "experiment.folder", "experiment.run", "experiment.recommending",
    "experiment.tuning",
    "nightly.rules", "nightly.known", "nightly.fresh", "nightly.learning", "nightly.judging", "nightly.publishing",
    "nightly.verdict", "nightly.refresh", "cli.show", "cli.common", "cli.progress", "cli.init", "cli.train",
    "cli.evaluate", "cli.compare", "cli.recommend", "cli.refresh", "cli.report", "cli.serve", "cli.tune", "cli.app",
    "__main__",
]  # fmt: skip


def modules() -> dict[str, Path]:
    names = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if path.read_text().strip() and name != "__init__":
            names[name] = path
    return names


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports at run time: not those under `if TYPE_CHECKING`."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in typing_only:
            base = node.module.removeprefix("twotower").lstrip(".")
            if node.module.startswith("twotower"):
                known = modules()
                names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
                found |= {name if name in known else base for name in names}
    return found


def test_every_module_stands_in_the_line() -> None:
    assert set(modules()) == set(LINE)


@pytest.mark.parametrize("name", LINE)
def test_imports_go_back_along_the_line(name: str) -> None:
    before = set(LINE[: LINE.index(name)])
    later = {used for used in imports(modules()[name]) if used not in before}
    assert not later, f"{name} imports {later}, which stands after it"


PUBLIC = [
    "Age", "AttentionPooling", "AvgPrecisionAt", "BinaryOutput", "Bucketized", "Bundle", "CandidateSampler",
    "Candidates", "Catalog", "CatalogEarlyStopping", "CatalogMetric", "CatalogSampler", "Categorical",
    "ColumnSampler", "ColumnSchema", "Config", "Continuous", "ContinuousEmbedding", "ContrastiveOutput",
    "Contribution", "CountFrequency", "CoverageAt", "CrossBatchSampler", "CrossBlock", "Dataset", "Difference",
    "DiversityAt", "Domain", "DotProduct", "Draw", "EmbeddingEncoder", "EmbeddingTable", "Embeddings", "Encoder",
    "Estimate", "Evaluation", "Evaluator", "ExactIndex", "Explanation", "FeatureStore", "Features", "Filter",
    "FlatIndex", "Frequency", "GiniAt", "HNSWIndex", "HardNegativeSampler", "Hashed", "Health", "HealthWarning",
    "History", "HistoryBag", "HistoryEncoder", "HistoryGRU", "HistoryTransformer", "HitRateAt", "IVFIndex",
    "InBatchSamplerV2", "Index", "Inferred", "InputBlockV2", "L2Norm", "LeakWarning", "LearnedTemperature",
    "ListHealth", "ListMetric", "Loader", "LowRecallWarning", "MLPBlock", "MRRAt", "MappedLoader",
    "MatrixFactorizationModelV2", "MovieLens", "MovieTweetings", "NDCGAt", "NoveltyAt", "Numeric",
    "ParquetFeatures", "PopularityBasedSamplerV2", "PopularityLiftAt", "PopularityPrior", "PopularitySampler", "PrecisionAt",
    "Preprocessor", "PretrainedEmbeddings", "PretrainedVectors", "PriorWeight", "QdrantIndex", "Ragged", "RankingMetric",
    "RawTables", "RecallAt", "RedisFeatures", "RefreshRules", "Refreshed", "RegressionOutput", "ReportData",
    "RetrievalModelV2", "Retriever", "Run", "SQLiteFeatures", "ScaNNIndex", "Schema", "SliceBy", "SliceEstimates",
    "Step", "StreamingFrequency", "TagSet", "Tags", "Text", "Timestamp", "ToTarget", "TopK", "TopKEncoder",
    "TowerHealth", "TwoTowerModel", "TwoTowerModelV2", "UniformSampler", "Vector", "World",
    "YoutubeDNNRetrievalModelV2", "build_histories", "check_leaks", "compare", "create_categorical_column",
    "create_continuous_column", "evaluate_run", "explain", "export_embeddings", "export_tower", "flat_inputs",
    "generate_data", "generate_world", "index_report", "infer_columns", "infer_embedding_dim", "k_core",
    "latest_histories", "leave_last_out", "load_bundle", "load_from_hub", "load_index", "load_interactions",
    "load_movielens", "load_movietweetings", "load_schema", "make_optimizer", "push_to_hub", "refresh", "rollback",
    "sample_batch", "save_bundle", "save_schema", "split_at_random", "split_by_time", "split_by_user", "tabulate",
    "train_run", "unique_rows_by_features", "write_report",
]  # fmt: skip


def test_public_names() -> None:
    """A name that comes or goes is a decision: change this list and CHANGELOG.md together."""
    assert sorted(tt.__all__) == sorted(PUBLIC)
    assert tt.__all__ == sorted(tt.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings_and_types(name: str) -> None:
    thing = getattr(tt, name)
    assert thing.__doc__
    assert len(thing.__doc__) > 20
    functions = (
        [thing]
        if inspect.isfunction(thing)
        else [m for n, m in vars(thing).items() if inspect.isfunction(m) and n[0] != "_"]
    )
    for function in functions:
        assert inspect.getdoc(function) or name.endswith("At"), f"{name}.{function.__name__} has no docstring"
        assert "return" in function.__annotations__, f"{name}.{function.__name__} has no return type"


def test_the_constructor_that_merlin_users_know() -> None:
    parameters = inspect.signature(tt.TwoTowerModelV2).parameters
    known = [
        "query_tower",
        "candidate_tower",
        "candidate_id_tag",
        "outputs",
        "logits_temperature",
        "negative_samplers",
        "schema",
    ]
    assert list(parameters)[:7] == known
    defaults = [parameters[name].default for name in known[2:]]
    assert defaults == [tt.Tags.ITEM_ID, None, 1.0, None, None]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[7:])
    assert tt.TwoTowerModel is tt.TwoTowerModelV2


def test_files_stay_small() -> None:
    long = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    # models.base is one class, signatures and docstrings of all its verbs; their work stands in parts, scoring and storing
    assert {name: lines for name, lines in long.items() if lines > (500 if name == "models.base" else 400)} == {}


def test_importing_the_package_does_not_import_heavy_parts() -> None:
    import subprocess
    import sys

    heavy = (
        "lightning",
        "torchmetrics",
        "pandas",
        "scipy",
        "plotly",
        "sklearn",
        "pydantic",
        "typer",
        "optuna",
        "faiss",
        "scann",
        "qdrant_client",
    )
    heavy = [
        "lightning", "torchmetrics", "pandas", "scipy", "plotly", "sklearn", "pydantic", "typer", "optuna", "onnx",
        "onnxruntime", "huggingface_hub",
    ]  # fmt: skip
    heavy = ("lightning", "torchmetrics", "pandas", "scipy", "plotly", "sklearn", "pydantic", "typer", "optuna")
    heavy += ("litestar", "jinja2")
    code = f"import sys, twotower; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
