"""What a run makes of its tables before anything is trained, on made-up events."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from twotower.config.config import Config
from twotower.data.inference import infer_columns
from twotower.experiment.folder import Run
from twotower.experiment.measuring import make_evaluator
from twotower.experiment.recommending import Desk, _ids
from twotower.experiment.run import encode, evaluate_run, fit_model, train_run
from twotower.experiment.tables import read_interactions, read_tables
from twotower.experiment.tuning import tune

ROWS = 300


def events(**more: Any) -> pl.DataFrame:
    """20 users, 15 items, one event at each moment."""
    rng = np.random.default_rng(0)
    base = {"who": rng.integers(0, 20, ROWS), "what": rng.integers(0, 15, ROWS), "at": np.arange(ROWS)}
    return pl.DataFrame(base | more)


def config_of(folder: Path, changes: dict[str, Any] | None = None, **tables: pl.DataFrame) -> Config:
    """A config whose tables are written into the folder; `interactions` are `events()` unless given."""
    data: dict[str, Any] = {"user": "who", "item": "what", "time": "at"}
    for name, table in ({"interactions": events()} | tables).items():
        table.write_parquet(folder / f"{name}.parquet")
        data[name] = str(folder / f"{name}.parquet")
    columns = {
        "what": {"kind": "categorical", "tags": ["item_id"]},
        "who": {"kind": "categorical", "tags": ["user_id"]},
    }
    evaluation = {"metrics": ["recall_at_5"], "slices": [], "baselines": ["popularity"], "remove_seen": False}
    config = Config.from_dict({"data": data, "columns": columns, "evaluation": evaluation})
    return config.with_changes(changes or {})


@pytest.mark.parametrize(
    ("table", "column", "said"),
    [
        ("users", "what", "data.users: .*users.parquet holds the column 'what', which in data.interactions"),
        ("users", "at", "data.users: .* holds the column 'at'"),
        ("items", "who", "data.items: .* holds the column 'who'"),
        ("users", "town", "'town' is read, but stands both in data.users and in data.interactions. Rename it"),
    ],
)
def test_no_table_takes_the_place_of_the_event(tmp_path: Path, table: str, column: str, said: str) -> None:
    owner = {"users": "who", "items": "what"}[table]
    own = pl.DataFrame({owner: range(20), column: range(20)})
    town = {"columns.town": {"kind": "categorical", "tags": ["user"]}}
    config = config_of(tmp_path, town, interactions=events(town=["a"] * ROWS), **{table: own})
    with pytest.raises(ValueError, match=said):
        read_tables(config)


def test_an_id_that_cannot_be_one_of_the_data_is_nobodys() -> None:
    whole = _ids([3, "4", "5.0", 6.0, "abc", "7.5", None, float("nan"), 2**70], pl.Int32())
    assert whole.to_list() == [3, 4, 5, 6, None, None, None, None, None]
    assert _ids([3, 4.0, None], pl.String()).to_list() == ["3", "4", None]
    assert _ids(["3", 4], pl.Float64()).to_list() == [3.0, 4.0]


def positive(folder: Path, values: list[Any], rule: dict[str, Any]) -> tuple[int, list[str]]:
    """How many rows a rule keeps of a column, and the notes."""
    table = events(stars=pl.Series(values * (ROWS // len(values)), strict=False))
    config = config_of(folder, {"data.positive": {"column": "stars", **rule}}, interactions=table)
    notes: list[str] = []
    return len(read_interactions(config, config.data.interactions, "data.interactions", notes)), notes


def test_refused_rows_are_told_of(tmp_path: Path) -> None:
    for hole in (None, float("nan")):
        kept, notes = positive(tmp_path, [5.0, 4.0, 1.0, hole], {"at_least": 4})
        assert (kept, notes) == (
            150,
            [
                "data.positive keeps 150 of 300 rows of data.interactions; it refuses 75, and 75 have no 'stars', which counts as "
                "refused."
            ],
        )
    assert positive(tmp_path, [5.0, 4.0], {"at_least": 4}) == (300, [])


@pytest.mark.parametrize(
    ("values", "one_of", "kept"),
    [
        ([5.0, 4.0, None], [5], 100),
        ([5, 4, 3], [5.0, "4"], 200),
        ([0.5, 1.0, 1.5], [0.5, 1], 200),
        (["buy", "view", None], ["buy"], 100),
        ([True, False], [True], 150),
    ],
)
def test_one_of_compares_numbers_as_numbers(tmp_path: Path, values: list[Any], one_of: list[Any], kept: int) -> None:
    assert positive(tmp_path, values, {"one_of": one_of})[0] == kept


def test_values_that_occur_nowhere_are_named(tmp_path: Path) -> None:
    assert "Of one_of 'buys' occur nowhere." in positive(tmp_path, ["buy", "view"], {"one_of": ["buy", "buys"]})[1][0]
    with pytest.raises(
        ValueError, match="keeps none of the 300 rows .* Of one_of 9, 'x', True occur nowhere. 'stars' holds"
    ):
        positive(tmp_path, [1, 2], {"one_of": [9, "x", True]})


def test_the_k_core_tells_what_it_leaves_out(tmp_path: Path) -> None:
    rare = pl.concat([events(), pl.DataFrame({"who": [99], "what": [99], "at": [ROWS]})])
    _, [note] = read_tables(config_of(tmp_path, {"data.k_core": 2}, interactions=rare))
    assert note.startswith("data.k_core: 2 keeps 300 of 301 rows, 20 of 21 'who', 15 of 16 'what'")


def test_nan_is_no_id(tmp_path: Path) -> None:
    table = events().with_columns(pl.when(pl.col("at") < 3).then(float("nan")).otherwise(pl.col("who")).alias("who"))
    with pytest.raises(ValueError, match="data.user: 3 of 300 rows of data.interactions have no 'who'"):
        read_tables(config_of(tmp_path, interactions=table))


@pytest.mark.parametrize("key", ["split.seed", "training.seed", "evaluation.seed", "tune.seed"])
def test_seeds_are_not_below_zero(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: got -1"):
        config_of(tmp_path, {key: -1})


def test_a_history_with_a_split_by_user_is_cut_in_time(tmp_path: Path) -> None:
    tables, _ = read_tables(config_of(tmp_path, {"history": {"length": 3}, "split.kind": "user"}))
    last = tables.train.group_by("who").agg(pl.col("at").max())
    assert tables.test.join(last, on="who").filter(pl.col("at") <= pl.col("at_right")).is_empty()


@pytest.mark.parametrize("kind", [pl.Int32, pl.UInt64, pl.Float64])
def test_whole_ids_of_other_types_are_joined(tmp_path: Path, kind: type[pl.DataType]) -> None:
    items = pl.DataFrame({"what": range(15)}).with_columns(pl.col("what").cast(kind))
    users = pl.DataFrame({"who": range(20)}).with_columns(pl.col("who").cast(kind))
    tables, notes = read_tables(config_of(tmp_path, items=items, users=users))
    assert notes == []
    assert tables.items.schema["what"] == tables.train.schema["what"] == pl.Int64
    found = infer_columns(events(), items, users, user="who", item="what")
    assert set(found.columns) >= {"who", "what"}
    later = events().head(9).with_columns(pl.col("who", "what").cast(kind))
    config = config_of(tmp_path)
    assert make_evaluator(config, read_tables(config)[0], "later", later).queries.users("who").dtype == pl.Int64


@pytest.mark.parametrize("made", [pl.col("what").cast(pl.String), pl.col("what") + 0.5])
def test_ids_that_cannot_be_the_same_are_named(tmp_path: Path, made: pl.Expr) -> None:
    items = pl.DataFrame({"what": range(15)}).with_columns(made)
    said = f"the ids 'what' are Int64 in data.interactions, {items.schema['what']} in data.items; expected one type"
    with pytest.raises(ValueError, match=said):
        read_tables(config_of(tmp_path, items=items))
    with pytest.raises(ValueError, match="the ids 'what' are Int64 in table 1, "):
        infer_columns(events(), items, user="who", item="what")
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match=r"in the later rows, and Int64 in the run's training rows"):
        make_evaluator(config, read_tables(config)[0], "later", events().with_columns(made))


def test_every_event_is_a_query_whatever_it_holds(tmp_path: Path) -> None:
    table = events(event=[None, "tv", "web"] * (ROWS // 3), at=np.arange(ROWS) // 10)
    twice = pl.concat([table, table])
    changes = {"evaluation.query": "event", "columns.event": {"kind": "categorical", "tags": ["context"]}}
    config = config_of(tmp_path, changes, interactions=twice)
    tables, _ = read_tables(config)
    evaluator = make_evaluator(config, tables, "test", tables.test)
    assert len(evaluator.queries) == len(tables.test)
    assert evaluator.queries.select(["who", "event"]).to_polars()["event"].null_count()
    assert evaluator.keys == ("event_", "who")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"model.dims": {"choices": [4]}}, "model.dims=4 may be drawn, but is no config: .*dims"),
        ({"model.dim": {"low": -1, "high": 8}}, "model.dim=-1 may be drawn"),
        ({"model.dropout": {"low": 0.5, "high": 2}}, "model.dropout=2.0 may be drawn"),
        ({"model.loss": {"choices": ["softmax", "hard"]}}, "model.loss='hard' may be drawn"),
    ],
)
def test_what_may_be_drawn_is_checked_before_the_tables_are_read(
    tmp_path: Path, space: dict[str, Any], said: str
) -> None:
    pytest.importorskip("optuna")
    config = config_of(tmp_path, {"tune.space": space})
    with pytest.raises(ValueError, match=said):
        tune(config, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_search_is_replaced_only_once_the_new_tables_are_read(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    small = {"training.epochs": 1, "tune.trials": 1, "tune.space": {"model.dim": {"choices": [4]}}}
    config = config_of(tmp_path, small)
    tune(config, tmp_path / "t")
    before = (tmp_path / "t" / "trials.csv").read_text()
    for broken, said in (
        (config.with_changes({"data.interactions": [str(tmp_path / "gone.parquet")]}), "no Parquet file at"),
        (config.with_changes({"evaluation.slices": ["brand"]}), "unknown slice 'brand'"),
    ):
        with pytest.raises(ValueError, match=said):
            tune(broken, tmp_path / "t", overwrite=True)
        assert (tmp_path / "t" / "trials.csv").read_text() == before
        with pytest.raises(ValueError, match=said):
            tune(broken, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert len(tune(config.with_changes({"training.epochs": 2}), tmp_path / "t", overwrite=True).trials) == 1


def test_later_rows_that_the_rule_refuses_are_told_of(tmp_path: Path) -> None:
    stars = pl.Series([5, 1, 4] * (ROWS // 3))
    changes = {"data.positive": {"column": "stars", "at_least": 4}, "training.epochs": 1, "training.refit": False}
    run = train_run(config_of(tmp_path, changes, interactions=events(stars=stars)), tmp_path / "run")
    events(at=np.arange(ROWS) + ROWS, stars=stars).head(30).write_parquet(tmp_path / "later.parquet")
    said: list[str] = []
    evaluate_run(run, data=tmp_path / "later.parquet", say=said.append)
    note = f"data.positive keeps 20 of 30 rows of {tmp_path / 'later.parquet'}; it refuses 10, and 0 have no 'stars', which"
    assert any(text.startswith(note) for text in said)
    assert any(text.startswith(note) for name, text in run.findings() if name == "left out")


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("als", "implicit", "implicit"), ("bpr", "implicit", "implicit"),
    ("ease", "scipy", "baselines"), ("item_knn", "scipy", "baselines")],
)  # fmt: skip
def test_what_a_baseline_needs_is_looked_for_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    config = config_of(tmp_path, {"evaluation.baselines": ["popularity"], "training.epochs": 1})
    run = train_run(config, tmp_path / "run")
    find = importlib.import_module

    def without(wanted: str) -> Any:
        if wanted.startswith(module):
            raise ImportError(f"No module named '{module}'")
        return find(wanted)

    monkeypatch.setattr("twotower.errors.importlib.import_module", without)
    said = rf"evaluation.baselines: '{name}' needs {module}, .*pip install 'twotower\[{extra}\]'. Or leave '{name}' out"
    with pytest.raises(ValueError, match=said):
        train_run(config.with_changes({"evaluation.baselines": ["popularity", name]}), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    text = (tmp_path / "run" / "resolved.yaml").read_text()
    (tmp_path / "run" / "resolved.yaml").write_text(text.replace("baselines: [popularity]", f"baselines: [{name}]"))
    with pytest.raises(ValueError, match=said):
        evaluate_run(Run(run.folder))
    assert [e.name for e in evaluate_run(Run(run.folder), baselines=False)] == ["model"]


HOLD = """
import sys, time
from twotower.experiment.lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_writes_to_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"training.epochs": 1, "training.refit": False})
    for folder in (tmp_path / "new", train_run(config, tmp_path / "run").folder):
        before = sorted(folder.rglob("*"))
        with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            said = rf"{folder} is in use: process {other.pid} on .* \(`-c {folder}`, since .*\) writes to it. Wait for its end"
            for overwrite in (False, True):
                with pytest.raises(ValueError, match=said):
                    train_run(config, folder, overwrite=overwrite)
            if before:
                with pytest.raises(ValueError, match=said):
                    evaluate_run(Run(folder))
            other.kill()
        # a killed process leaves its files but not its lock
        assert (folder / ".lock").exists()
        train_run(config, folder, resume=True)
        if before:
            assert sorted(folder.rglob("*")) == before
        assert evaluate_run(Run(folder))
        assert not list(folder.glob(".*"))


def test_an_old_run_is_replaced_whole_and_a_folder_that_was_made_for_nothing_goes(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"training.epochs": 1, "training.refit": False})
    folder = train_run(config, tmp_path / "run").folder
    (folder / "notes.txt").write_text("of the old run")
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (folder / "resolved.yaml").unlink()  # as a kill in the middle of replacing would leave it
    train_run(config, folder, overwrite=True)
    assert not (folder / "notes.txt").exists()
    assert (tmp_path / "interactions.parquet").exists()
    gone = config.with_changes({"data.interactions": [str(tmp_path / "gone.parquet")]})
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(ValueError, match="no Parquet file at"):
            train_run(gone, tmp_path / name)
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "new").exists()


class Rates(Callback):
    """The learning rate of each epoch's first step."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.seen: list[float] = []
        self.dies_at = dies_at

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.dies_at:
            raise RuntimeError("killed")
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_refit_follows_the_course_of_the_rates_up_to_the_best_epoch(tmp_path: Path) -> None:
    changes = {
        "training.epochs": 4,
        "training.schedule": "linear",
        "training.learning_rate": 0.4,
        "training.batch_size": 24,
        "training.stop_early": None,
    }
    config = config_of(tmp_path, changes)
    tables, _ = read_tables(config)
    preprocessor, rows = encode(config, tables)
    whole, part = Rates(), Rates()
    fit_model(config, tables, preprocessor, rows, callbacks=[whole])
    assert whole.seen == pytest.approx([0.4, 0.3, 0.2, 0.1])
    model, history = fit_model(config, tables, preprocessor, rows, epochs=2, callbacks=[part])
    assert part.seen == pytest.approx([0.4, 0.3])
    assert history.epochs == 2
    for stop, left in ((1, 1), (2, 0)):  # killed after one epoch, and after all of them
        folder = tmp_path / f"checkpoints {stop}"
        options: dict[str, Any] = {"epochs": 2, "checkpoints": folder}
        if stop == 1:
            with pytest.raises(RuntimeError, match="killed"):
                fit_model(config, tables, preprocessor, rows, callbacks=[Rates(dies_at=1)], **options)
        else:
            fit_model(config, tables, preprocessor, rows, **options)
        rest = Rates()
        again, _ = fit_model(config, tables, preprocessor, rows, callbacks=[rest], **options)
        assert len(rest.seen) == left
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


SMALL = {"training.epochs": 2, "training.batch_size": 64, "model.dim": 8, "training.health_steps": 0}


@pytest.mark.parametrize("kind", ["last", "random", "user"])
def test_each_split_and_baseline_from_the_config_to_the_figures(tmp_path: Path, kind: str) -> None:
    split: dict[str, Any] = {"kind": "last", "last": 2} if kind == "last" else {"kind": kind, "test": 0.2}
    rivals = ["popularity", "recent_popularity", "item_knn", "ease", "als", "bpr"]
    history = {} if kind == "random" else {"history": {"length": 5}}
    config = config_of(tmp_path, SMALL | history | {"split": split, "evaluation.baselines": rivals})
    run = train_run(config, tmp_path / "run")
    tables = run.tables()
    assert len(tables.train) + len(tables.validation) + len(tables.test) == ROWS
    if kind == "last":
        for part in (tables.validation, tables.test):
            assert part.group_by("who").len()["len"].to_list() == [2] * 20
    if kind != "random":  # nobody's test lies before what they are known by
        before, after = tables.before("test").group_by("who").agg("at"), tables.test.group_by("who").agg("at")
        both = before.join(after, on="who").select(pl.col("at").list.max(), pl.col("at_right").list.min())
        assert (both["at"] < both["at_right"]).all()
    found = evaluate_run(run)
    assert [e.name for e in found] == ["model", *rivals]
    assert all(0 < e["recall_at_5"].mean < 1 for e in found)
    assert found[0].queries == tables.test["who"].n_unique()


def test_a_bundle_without_users_is_still_asked_for_them_by_its_own_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, SMALL | {"history": {"length": 5}})
    with_users = train_run(config, tmp_path / "with")
    without = train_run(config.with_changes({"serving.users": False}), tmp_path / "without")
    assert (with_users.folder / "bundle" / "users.sqlite").exists()
    assert not list((without.folder / "bundle").rglob("users*"))
    assert without.retriever().bundle.users is None
    asked = [3, 7, 11]
    assert Desk(without).recommend(asked, k=4).equals(Desk(with_users).recommend(asked, k=4))


@pytest.mark.parametrize("encoder", ["gru", "transformer"])
def test_every_position_of_the_history_from_the_config(tmp_path: Path, encoder: str) -> None:
    """Everyone goes round the items one by one: what comes next hangs on the last item alone, so recall at 1 is near 1."""
    steps = np.arange(800)
    table = pl.DataFrame({"who": steps % 20, "what": (steps // 20 + steps % 20) % 15, "at": steps})
    changes = SMALL | {
        "history": {"length": 4, "encoder": encoder, "every_position": True, "dropout": 0.0},
        "columns": {"what": {"kind": "categorical", "tags": ["item_id"]}},
        "model.query_layers": [], "model.candidate_layers": [], "model.dim": 16, "training.epochs": 15, "training.batch_size": 32,
        "training.learning_rate": 0.03, "evaluation.metrics": ["recall_at_1"], "training.refit": False, "training.stop_early": None,
    }  # fmt: skip
    run = train_run(config_of(tmp_path, changes, interactions=table), tmp_path / "run")
    assert run.retriever().bundle.model.compiled.every_position == "history"
    asked = [{"history": [(start + n) % 15 for n in range(4)]} for start in range(15)]
    best = run.retriever().recommend(asked, k=1)
    right = sum(best["what"].to_numpy() == (np.arange(15) + 4) % 15)
    assert right >= 13


def test_a_trial_below_the_median_is_broken_off(tmp_path: Path) -> None:
    """People stay with their own item; a learning rate of nothing finds no one's, so that such trials end early."""
    pytest.importorskip("optuna")
    mine = events(what=np.random.default_rng(0).integers(0, 20, ROWS)).with_columns(what=pl.col("who"))
    space = {"training.learning_rate": {"choices": [0.1, 1e-9]}}
    changes = SMALL | {
        "training.epochs": 4,
        "tune.trials": 8,
        "tune.space": space,
        "training.stop_early": {"patience": 9},
    }
    config = config_of(tmp_path, changes, interactions=mine)
    found = tune(config, tmp_path / "t")
    assert found.config.training.learning_rate == 0.1
    states = {rate: set(part["state"]) for (rate,), part in found.trials.group_by("training.learning_rate")}
    assert "pruned" in states["1e-09"]
    assert "complete" in states["0.1"]
    assert found.trials.filter(pl.col("state") == "pruned")["value"].null_count() == sum(
        found.trials["state"] == "pruned"
    )
    whole = tune(config.with_changes({"tune.prune": False}), tmp_path / "u", trials=7)
    assert set(whole.trials["state"]) == {"complete"}
    again = tune(config, tmp_path / "t", trials=9, resume=True)  # those that were broken off count
    assert len(again.trials) == 9
