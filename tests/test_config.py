"""The config: what it reads, what it says about mistakes, and the page that lists its keys."""

import runpy
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import twotower as tt
from twotower.config.columns import declare, meanings, options_of
from twotower.config.config import Config, changed
from twotower.config.drafting import Given, draft, entry_of
from twotower.config.yaml_file import read_value, read_yaml, write_yaml
from twotower.data.columns import KINDS
from twotower.experiment.build import build_model

ROOT = Path(__file__).parents[1]
BASE: dict[str, Any] = {
    "data": {"interactions": "clicks.parquet", "user": "who", "item": "what", "time": "at"},
    "columns": {
        "what": {"kind": "categorical", "tags": ["item_id"]},
        "who": {"kind": "categorical", "tags": ["user_id"]},
        "price": {"kind": "numeric", "tags": ["item"], "scale": "log"},
    },
}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.batch_size", "big", "training.batch_size: got 'big', expected a whole number of at least 1."),
        ("training.batch_size", True, "training.batch_size: got True, expected a whole number of at least 1."),
        ("training.batch_size", 0, "training.batch_size: got 0, expected a whole number of at least 1."),
        ("training.learning_rate", "fast", "training.learning_rate: got 'fast', expected a number above 0."),
        ("training.epoch", 3, "training.epoch: unknown key 'epoch'"),
        ("training.epoch", 3, "Did you mean 'epochs'?"),
        ("trainin.epochs", 3, "trainin: unknown section 'trainin'"),
        ("training.optimizer", "adm", "training.optimizer: unknown optimizer 'adm'"),
        ("model.query_layers", [64, "x"], "model.query_layers.1: got 'x', expected a whole number of at least 1."),
        ("model.temperature", "hot", "model.temperature: got 'hot', expected a number above 0 or one of 'learned'."),
        ("model.negatives", ["in-bath"], "unknown sampler of negatives 'in-bath'"),
        ("model.negatives", [{"in-batch": 5}], "negatives: 'in-batch' takes no number"),
        ("history.encoder", "lstm", "history.encoder: got 'lstm', expected one of 'mean', 'bag', 'gru', 'transformer'."),
        ("history.heads", 2, "history: heads means nothing to encoder 'mean'"),
        ("history", {"every_position": True}, "history: every_position needs encoder"),
        ("history", {"column": "price"}, "history.column: 'price' is declared in columns too"),
        ("split", {"kind": "last", "test": 0.2}, "split: kind 'last' counts rows"),
        ("split", {"kind": "time", "last": 2}, "split: last belongs to kind 'last'"),
        ("split", {"validation": 0.5, "test": 0.5}, "split: validation and test take 1 of the rows"),
        ("data.time", None, "history"),
        ("data.positive", {"column": "stars"}, "data.positive: say which values to keep"),
        ("data.interactions", [], "data.interactions: got []"),
        ("columns.price.scal", "log", "columns.price.scal: unknown option of a numeric column 'scal'"),
        ("columns.price.scale", "logg", "unknown scale 'logg'"),
        ("columns.price.indicator", 3, "columns.price.indicator: got 3, expected true or false."),
        ("columns.price.tags", ["itm"], "columns.price.tags: unknown tag 'itm'"),
        ("columns.price.kind", "number", "columns.price.kind: got 'number', expected one of 'age'"),
        ("columns.price", {"kind": "age", "tags": ["user"], "since": "a"}, "columns.price.until: is missing"),
        ("columns.what", {"kind": "hashed", "tags": ["item_id"]}, "columns.what: is data.item, expected {kind: categorical"),
        ("columns.what.min_count", 5, "columns.what: is data.item, of which every value is a candidate"),
        ("columns.price.tags", ["item_id"], "columns.price.tags: item_id belongs to data.item"),
        ("evaluation.metrics", ["recal_at_3"], "evaluation.metrics: unknown metric 'recal_at'"),
        ("tune.metric", "recall_at_3", "tune.metric: unknown metric of evaluation.metrics 'recall_at_3'"),
        ("training.stop_early", {"monitor": "loss"}, "training.stop_early.monitor: unknown metric"),
        ("tune.space", {"split.test": {"low": 0.1, "high": 0.2}}, "space: 'split.test' cannot be searched"),
        ("tune.space", {"model.dim": {"low": 5, "high": 3}}, "tune.space.model.dim: expected low < high"),
        ("tune.space", {"model.dim": {"low": "a", "high": 3}}, "tune.space.model.dim.low: got 'a', expected a number"),
        ("tune.space", {"model.dim": {"choices": [1], "low": 3}}, "tune.space.model.dim: give either choices, or low and high."),
    ],
)  # fmt: skip
def test_a_mistake_is_named(key: str, value: Any, said: str) -> None:
    base = changed(BASE, "history", {}) if said == "history" else BASE
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Config.from_dict(changed(base, key, value))
    assert said in str(caught.value)


def test_each_mistake_has_a_line_of_its_own_and_its_place_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(
        "data: {interactions: a.parquet, user: who, item: what}\n"
        "columns:\n"
        "  what: {kind: categorical, tags: [item_id]}\n"
        "  who: {kind: categorical, tags: user_id}\n"
        "training:\n"
        "  epochs: none\n"
        "  batch_size: 2.5\n"
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Config.load(file)
    assert str(caught.value).splitlines() == [
        "shop.yaml:6: training.epochs: got 'none', expected a whole number of at least 1.",
        "shop.yaml:7: training.batch_size: got 2.5, expected a whole number of at least 1.",
    ]
    with pytest.raises(ValueError, match=r"^--set training.epochs: got 'x'"):
        Config.load(file, {"training.epochs": "x", "training.batch_size": 2})


def test_a_history_after_a_random_split_is_refused_when_the_config_is_read(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(
        "data: {interactions: a.parquet, user: who, item: what, time: at}\n"
        "columns:\n"
        "  what: {kind: categorical, tags: [item_id]}\n"
        "history: {length: 3}\n"
        "split:\n"
        "  kind: random\n"
    )
    with pytest.raises(
        ValueError, match=r"^shop.yaml:6: split.kind: 'random' does not go with history: a history at test time"
    ):
        Config.load(file)
    assert Config.load(file, {"split.kind": "user"}).split_kind == "user"


def test_yaml_as_people_mean_it(tmp_path: Path) -> None:
    assert [read_value(v) for v in ("1e-3", "2E5", "no", "true", "2024-01-31", "7", ".5", "[1, a]", "null")] == [
        0.001, 200000.0, "no", True, "2024-01-31", 7, 0.5, [1, "a"], None,
    ]  # fmt: skip
    twice = tmp_path / "twice.yaml"
    twice.write_text("model:\n  dim: 3\n  dim: 4\n")
    with pytest.raises(ValueError, match=r"twice.yaml:3: model.dim is given twice"):
        read_yaml(twice)
    twice.write_text("model: [\n")
    with pytest.raises(ValueError, match=r"twice.yaml:\d: this is no YAML"):
        read_yaml(twice)
    with pytest.raises(ValueError, match="there is no config .*gone.yaml"):
        read_yaml(tmp_path / "gone.yaml")


def test_paths_are_relative_to_the_file_and_all_keys_read_back(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "c.yaml"
    file.write_text(
        Config.from_dict(changed(BASE, "data.interactions", ["../a.parquet", "s3://b/c.parquet"])).to_yaml()
    )
    config = Config.load(file, {"training.learning_rate": read_value("1e-3")})
    assert config.data.interactions == (str(tmp_path / "a.parquet"), "s3://b/c.parquet")
    assert config.training.learning_rate == 0.001
    file.write_text(config.to_yaml())
    assert Config.load(file) == config
    for kind in ("last", "user", "random"):
        split = config.with_changes({"split": {"kind": kind}})
        assert Config.from_dict(split.to_dict()).to_dict() == split.to_dict()


def test_columns_mean_the_library_s_declarations() -> None:
    cases = {
        "{kind: text, tags: [item], ngram_range: [1, 2]}": tt.Text(tt.Tags.ITEM, ngram_range=(1, 2)),
        "{kind: timestamp, tags: [context], parts: [hour]}": tt.Timestamp(
            (tt.Tags.USER, tt.Tags.CONTEXT), parts=("hour",)
        ),
        "{kind: hashed, tags: [user], buckets: 9, source: [a, b]}": tt.Hashed(
            tt.Tags.USER, buckets=9, source=("a", "b")
        ),
        "{kind: numeric, tags: item, fill: mean}": tt.Numeric(tt.Tags.ITEM, fill="mean"),
        "{kind: bucketized, tags: [item], buckets: [1, 2.5]}": tt.Bucketized(tt.Tags.ITEM, buckets=(1.0, 2.5)),
        "{kind: age, tags: [user], since: born, until: at}": tt.Age("born", "at", tt.Tags.USER),
        "{kind: categorical, tags: [user_id], oov_buckets: 4}": tt.Categorical(tt.Tags.USER_ID, oov_buckets=4),
    }
    for text, declaration in cases.items():
        assert declare(read_value(text)) == declaration
        assert declare(entry_of(declaration)) == declaration


def test_every_option_of_a_column_is_described() -> None:
    for kind, declaration in KINDS.items():
        assert set(options_of(declaration)) <= set(meanings(declaration)), kind


def test_a_draft_says_why_and_is_a_config(tmp_path: Path) -> None:
    rows = 60
    events = {
        "user_id": [n % 7 for n in range(rows)], "item_id": [f"i{n % 5}" for n in range(rows)],
        "rating": [n % 5 + 1 for n in range(rows)],
        "ts": [1_700_000_000 + 1000 * n for n in range(rows)], "session_id": list(range(rows)),
    }  # fmt: skip
    pl.DataFrame(events).write_parquet(tmp_path / "log.parquet")
    made = draft(Given((str(tmp_path / "log.parquet"),)), tmp_path)
    (tmp_path / "c.yaml").write_text(made.text)
    config = Config.load(tmp_path / "c.yaml")
    assert (config.data.user, config.data.item, config.data.time) == ("user_id", "item_id", "ts")
    assert config.history is not None
    assert "  # positive: {column: rating, at_least: 3}" in made.text
    assert "# session_id: Int64  # left out: it names a session" in made.text
    assert set(config.columns) == {"item_id"}
    assert (
        "  # ts: {kind: timestamp, tags: [context]}  # a time in s since 1970: its hour and weekday are read: left out"
        in made.text
    )
    assert config.model.popularity == "recent"
    assert (
        "  # asked_at: {kind: bucketized, tags: [context], buckets: 20, source: ts}  # the moment: left out"
        in made.text
    )
    pl.DataFrame(events).drop("ts").write_parquet(tmp_path / "timeless.parquet")
    (tmp_path / "timeless.yaml").write_text(draft(Given((str(tmp_path / "timeless.parquet"),)), tmp_path).text)
    assert Config.load(tmp_path / "timeless.yaml").model.popularity == "learned"
    with pytest.raises(ValueError, match="unknown column of the interactions 'tim'"):
        draft(Given((str(tmp_path / "log.parquet"),), time="tim"), tmp_path)


def test_the_page_of_all_keys_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["config_page"]()
    assert (ROOT / "docs" / "config.md").read_text() == made, "run python docs/make_reference.py"


def test_words_are_written_so_that_they_are_read_as_words() -> None:
    for word in ("1e5", "1.5", "no", "true", "a b " * 100 + "c"):
        assert read_value(write_yaml(word)) == word


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_a_config_written_out_whole_corrects_as_it_did(loss: str) -> None:
    """With every key given, as in resolved.yaml, a loss that goes without the correction still does."""
    config = Config.from_dict(BASE | {"model": {"loss": loss}})
    rows = {"who": ["a", "b"], "what": ["x", "y"], "price": [1.0, 2.0]}
    preprocessor = tt.Preprocessor(config.declarations()).fit(rows)
    models = [build_model(each, preprocessor) for each in (config, Config.from_dict(config.to_dict()))]
    outputs = [model.outputs[0] for model in models]
    assert [output.logq_sampling_correction for output in outputs] == [True, True]  # as the loss wants it
