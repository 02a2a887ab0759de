"""The command, from the tables to recommendations, on a made-up shop whose answer is known: people stay with a taste."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from typer.testing import CliRunner

import twotower as tt
from twotower.baselines import Popularity
from twotower.cli import show
from twotower.cli.app import app
from twotower.config.config import Config
from twotower.experiment import recommending
from twotower.experiment.recommending import Desk
from twotower.experiment.run import best_epoch, encode, fit_model
from twotower.experiment.tuning import tune

CONFIG = """\
data: {interactions: clicks.parquet, items: goods.parquet, users: people.parquet, user: who, item: what, time: at}
columns:
  what: {kind: categorical, tags: [item_id]}
  taste: {kind: categorical, tags: [item]}
  town: {kind: categorical, tags: [user]}
  device: {kind: categorical, tags: [context]}
history: {length: 5}
model: {dim: 8, query_layers: [], candidate_layers: [], temperature: 0.2}
training: {epochs: 3, batch_size: 64, learning_rate: 0.05, seed: 5, health_steps: 0}
evaluation: {metrics: [recall_at_5, ndcg_at_5, coverage_at_5], slices: [cold_items, new_users],
  baselines: [popularity], remove_seen: false}
"""
TASTES, GOODS, PEOPLE, CLICKS = 4, 40, 60, 1200

SHARES = (1 / np.arange(1, 11)) / (1 / np.arange(1, 11)).sum()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each person clicks goods of one taste, the first ones most; good 39 is in the items alone, person 59 is new in the test."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    who = rng.integers(0, PEOPLE - 1, CLICKS)
    who[-20:] = PEOPLE - 1
    what = who % TASTES + TASTES * rng.choice(GOODS // TASTES, CLICKS, p=SHARES)
    what[what == GOODS - 1] -= TASTES
    events = {
        "who": who,
        "what": [f"g{n:02}" for n in what],
        "at": np.arange(CLICKS),
        "device": rng.choice(["tv", "web"], CLICKS),
    }
    pl.DataFrame(events).write_parquet(folder / "clicks.parquet")
    goods = {"what": [f"g{n:02}" for n in range(GOODS)], "taste": [f"t{n % TASTES}" for n in range(GOODS)]}
    pl.DataFrame(goods | {"title": [f"Good {n}" for n in range(GOODS)]}).write_parquet(folder / "goods.parquet")
    pl.DataFrame({"who": range(PEOPLE), "town": [f"o{n % 3}" for n in range(PEOPLE)]}).write_parquet(
        folder / "people.parquet"
    )
    (folder / "shop.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def run(shop: Path) -> Path:
    """A finished run, made by the command."""
    folder = shop / "runs" / "first"
    told = call("train", shop / "shop.yaml", "--run", folder)
    assert "The model beats" in told
    assert "recall_at_5" in told
    return folder


def call(*arguments: object, code: int = 0) -> str:
    """What a verb printed; user errors come as the ValueErrors that main tells with exit code 2."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=100)
    if done.exit_code == 2:
        assert code == 2, done.output
        return done.output + done.stderr
    if isinstance(done.exception, ValueError):
        assert code == 2, str(done.exception)
        return str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert code == done.exit_code == 0
    return done.output


def same(one: tt.Evaluation, other: tt.Evaluation) -> None:
    assert one.means() == other.means()
    assert one.values.equals(other.values)


def test_a_run_holds_what_is_needed_to_judge_it(shop: Path, run: Path) -> None:
    opened = tt.Run(run)
    assert (run / "config.yaml").read_text() == CONFIG
    assert opened.complete
    assert opened.history()["epoch"].to_list() == [1, 2, 3]
    environment = opened.environment()
    assert environment["versions"]["twotower"] == tt.__version__
    assert {"data", "train", "refit", "baselines"} <= set(environment["seconds"])
    metrics = json.loads((run / "metrics.json").read_text())["validation"]
    assert set(metrics) == {"model", "popularity"}
    found = opened.evaluations("validation")
    assert [e.name for e in found] == ["model", "popularity"]
    assert metrics["model"]["recall_at_5"]["mean"] == found[0]["recall_at_5"].mean
    # the five most clicked of the ten goods of a taste have .78 of its clicks; the most clicked of each taste .34
    assert found[0]["recall_at_5"].mean > 0.6 > 1.2 * found[1]["recall_at_5"].mean
    tables = opened.tables()
    assert [len(t) for t in (tables.train, tables.validation, tables.test)] == [960, 120, 120]
    assert tables.train["at"].max() < tables.validation["at"].min() < tables.test["at"].min()


def test_figures_are_those_of_the_same_steps_by_hand(run: Path) -> None:
    opened = tt.Run(run)
    tables, config = opened.tables(), opened.config
    preprocessor, rows = encode(config, tables)
    model, _ = fit_model(config, tables, preprocessor, rows)
    latest = tt.latest_histories(tables.train, user="who", item="what", time="at", length=5)
    people = pl.read_parquet(run / "data" / "users.parquet")
    asked = tables.validation.join(people, on="who", how="left", maintain_order="left").join(
        latest, on="who", how="left", maintain_order="left"
    )
    asked = asked.with_columns(pl.col("device").first().over("who"), pl.col("history").fill_null([]))
    evaluator = tt.Evaluator(
        asked,
        candidates=tables.items,
        train=tables.train,
        user="who",
        item="what",
        metrics=["recall_at_5", "ndcg_at_5", "coverage_at_5"],
    )
    found = {e.name: e for e in opened.evaluations("validation")}
    by_hand = evaluator(tt.Retriever(model, preprocessor, tables.items))
    assert by_hand.means() == found["model"].means()
    popular = evaluator(Popularity(tt.Dataset(tables.train), "who", "what", tt.Dataset(tables.items)))
    assert popular.means() == found["popularity"].means()


class Kill(Callback):
    """The machine goes down at an epoch's end, once its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("killed")


@pytest.mark.parametrize("fits", [0, 1])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(shop: Path, run: Path, tmp_path: Path, fits: int) -> None:
    class KillLater(Kill):
        fits_done = 0

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if self.fits_done == fits:
                super().on_train_epoch_start(trainer, pl_module)

        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.fits_done += 1

    config = Config.load(shop / "shop.yaml")
    with pytest.raises(RuntimeError, match="killed"):
        tt.train_run(config, tmp_path / "broken", callbacks=[KillLater(1)])
    assert not tt.Run(tmp_path / "broken").complete
    told = call("train", shop / "shop.yaml", "--run", tmp_path / "broken", code=2)
    assert "a run that was broken off" in told
    assert "--resume" in told
    call("train", shop / "shop.yaml", "--run", tmp_path / "broken", "--resume")
    again, first = tt.Run(tmp_path / "broken"), tt.Run(run)
    assert again.history().equals(first.history())
    same(again.evaluations("validation")[0], first.evaluations("validation")[0])
    same(tt.evaluate_run(again)[0], tt.evaluate_run(first)[0])


def test_evaluate_on_the_test_and_on_later_rows(shop: Path, run: Path, tmp_path: Path) -> None:
    told = call("evaluate", run)
    assert "The model beats" in told
    assert "new_users" in told
    found = tt.evaluate_run(tt.Run(run))
    assert found[0].slices["cold_items"].queries == 0  # nobody clicked good 39
    assert found[0].candidates == GOODS  # but it is ranked
    assert found[0].slices["new_users"].queries == 1
    assert "measured before" in call("evaluate", run)
    assert "training.refit" in call("evaluate", run, "--on", "validation", "--overwrite", code=2)
    later = tmp_path / "later.parquet"
    pl.DataFrame({"who": [3], "what": ["g03"], "at": [5000], "device": ["tv"]}).write_parquet(later)
    assert "1 query, 1 positive, 40 items ranked" in call("evaluate", run, "--data", later)
    assert "has evaluations on" in call("evaluate", run, "--data", later, code=2)
    namesake = tmp_path / "test.parquet"
    pl.read_parquet(later).write_parquet(namesake)
    assert "1 query, 1 positive, 40 items ranked" in call("evaluate", run, "--data", namesake)
    same(tt.evaluate_run(tt.Run(run))[0], found[0])  # the run's own test is what it was


def test_a_model_that_loses_to_popularity_is_told_so(shop: Path, tmp_path: Path) -> None:
    lazy = [
        "--set",
        "training.epochs=1",
        "--set",
        "training.learning_rate=1e-9",
        "--set",
        "training.refit=false",
        "--set",
        "history=null",
        "--set",
        "columns.town.tags=[context]",
    ]
    told = call("train", shop / "shop.yaml", "--run", tmp_path / "lazy", *lazy)
    assert "The model LOSES to" in told
    assert tt.Run(tmp_path / "lazy").config.training.learning_rate == 1e-9
    retriever, found = tt.Run(tmp_path / "lazy").retriever(), tt.Run(tmp_path / "lazy").evaluations("validation")
    assert retriever.bundle.preprocessor.vocabulary("what").len() <= GOODS - 1  # good 39 goes by its features
    anew = tt.evaluate_run(tt.Run(tmp_path / "lazy"), "validation", overwrite=True)
    same(anew[0], found[0])


def test_the_index_of_the_bundle_is_that_of_the_config(shop: Path, tmp_path: Path) -> None:
    options = ["--set", "training.epochs=1", "--set", "serving.index=ivf", "--set", "serving.target_recall=1.0"]
    call("train", shop / "shop.yaml", "--run", tmp_path / "ivf", *options)
    call("train", shop / "shop.yaml", "--run", tmp_path / "exact", *options[:2])
    ivf, exact = (tt.Run(tmp_path / name).retriever() for name in ("ivf", "exact"))
    assert isinstance(ivf.bundle.index, tt.IVFIndex)
    assert ivf.bundle.index.target_recall == 1.0
    assert ivf.recommend_users([7, 8], k=5).equals(exact.recommend_users([7, 8], k=5))
    assert "serving.index: got 'best', expected" in call(
        "train", shop / "shop.yaml", "--run", tmp_path / "x", "--set", "serving.index=best", code=2
    )


def test_compare(shop: Path, run: Path, tmp_path: Path) -> None:
    call("train", shop / "shop.yaml", "--run", tmp_path / "other", "--set", "model.dim=4")
    told = call("compare", run, tmp_path / "other")
    assert "model.dim: 8 against 4" in told
    [apart] = tt.compare(
        tt.evaluate_run(tt.Run(tmp_path / "other"))[0], tt.evaluate_run(tt.Run(run))[0], metrics=["recall_at_5"]
    )
    assert f"{apart.difference:+.4f}" in told
    assert "two run folders or more" in call("compare", run, code=2)


def test_recommend(run: Path, tmp_path: Path) -> None:
    desk = Desk(tt.Run(run))
    asked = desk.look_up([7]).rows.row(0, named=True)
    rows = tt.Run(run).tables().before("everything").sort("at", maintain_order=True)
    history = rows.filter(pl.col("who") == 7)["what"].to_list()
    assert asked["history"] == history[-5:]
    assert asked["town"] == "o1"
    told = json.loads(call("recommend", run, "--user", 7, "-k", 4, "--json"))
    by_hand = desk.retriever.recommend([{name: asked[name] for name in desk.needed}], k=4)
    assert [row["what"] for row in told] == by_hand["what"].to_list()
    assert {row["taste"] for row in told} == {"t3"}
    unseen = json.loads(call("recommend", run, "--user", 7, "-k", 40, "--no-seen", "--json"))
    assert {row["what"] for row in unseen} == {f"g{n:02}" for n in range(GOODS)} - set(history)
    assert "Good" in call("recommend", run, "--user", 7)
    query = json.dumps({name: asked[name] for name in desk.needed})
    assert json.loads(call("recommend", run, "--query", query, "-k", 4, "--json"))[0]["what"] == told[0]["what"]
    assert "is missing" in call("recommend", run, "--query", "{}", code=2)
    extra = json.dumps({name: asked[name] for name in desk.needed} | {"twon": "o1"})
    assert "unknown column 'twon'" in call("recommend", run, "--query", extra, code=2)
    assert "is no JSON" in call("recommend", run, "--query", "{", code=2)
    assert "nothing is known of 1 of 1 users, such as who '999'" in call("recommend", run, "--user", 999, code=2)
    assert "such as who 'abc'" in call("recommend", run, "--user", "abc", code=2)
    assert desk.look_up([7.0]).rows.equals(desk.look_up([7]).rows)
    for nobody in (None, 7.5, "7.5"):
        with pytest.raises(ValueError, match="nothing is known of 1 of 2 users"):
            desk.look_up([7, nobody])
    assert "say for whom" in call("recommend", run, code=2)
    pl.DataFrame({"who": [7, 8, 59]}).write_parquet(tmp_path / "people.parquet")
    many = ["--users-file", tmp_path / "people.parquet", "--out", tmp_path / "lists.parquet", "-k", 4]
    call("recommend", run, *many)
    lists = pl.read_parquet(tmp_path / "lists.parquet")
    assert lists.filter(pl.col("who") == 7)["what"].to_list() == [row["what"] for row in told]
    assert len(lists) == 12
    assert "is there already" in call("recommend", run, *many, code=2)


def test_many_users_are_written_as_they_come(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommending, "AT_ONCE", 8)
    people = [*range(PEOPLE - 1, -1, -1)]
    pl.DataFrame({"who": people}).write_parquet(tmp_path / "people.parquet")
    for option in ("--seen", "--no-seen"):
        out = tmp_path / f"{option}.parquet"
        told = call("recommend", run, "--users-file", tmp_path / "people.parquet", "--out", out, "-k", 4, option)
        assert f"{4 * PEOPLE:,} rows for 60 users are in" in told
        assert pq.ParquetFile(out).num_row_groups == 8  # of 60 users
        lists, desk = pl.read_parquet(out), Desk(tt.Run(run))
        alone = pl.concat([desk.recommend([who], 4, option == "--seen") for who in people])
        assert lists.equals(alone)


def test_piped_output_is_neither_cut_nor_wrapped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a file or another program gets it, whatever terminal the command was typed in."""
    long = "word " * 60
    wide = pl.DataFrame({"rank": [1], "score": [0.5]} | {f"column_{n}": [long.strip()] for n in range(12)})
    wide.write_parquet(tmp_path / "wide.parquet")
    shown = f"""
import polars as pl
import twotower as tt
from twotower.cli import common, show
common.say({long!r})
show.show_items(pl.read_parquet({str(tmp_path / "wide.parquet")!r}), "t")
found = tt.Evaluation.load({str(run / "evaluations" / "validation" / "model")!r})
show.show_evaluations([found] * 9, "Validation")
"""
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert f"· {long}".rstrip() in [line.rstrip() for line in lines]
    assert sum(line.count(long.strip()) for line in lines) == 1 + 12
    assert sum(line.split().count("model") for line in lines) == 9
    assert [line.count(".") for line in lines if line.strip().startswith("recall_at_5")] == [9]
    monkeypatch.setattr(show, "console", Console(width=90))
    show.show_items(wide, "t")
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 90
    assert "Not shown for want of room: column_4, column_5" in narrow


def test_a_batch_larger_than_the_data_is_told_of(shop: Path, tmp_path: Path) -> None:
    small = ["--set", "training.epochs=1", "--set", "evaluation.baselines=[]"]
    told = call("train", shop / "shop.yaml", "--run", tmp_path / "run", *small, "--set", "training.batch_size=5000")
    said = (
        "training.batch_size is 5,000, but there are 960 rows to train on: an epoch is a single step, with all of them"
    )
    assert told.count(said) == 1
    assert any(said in text for _, text in tt.Run(tmp_path / "run").findings())


def test_report(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    call("report", run, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "popularity" in page
    assert "batch_size: 64" in page
    assert "is there already" in call("report", run, "--out", tmp_path / "page.html", code=2)


def test_tune_searches_the_validation_and_goes_on(shop: Path, tmp_path: Path) -> None:
    config = Config.load(shop / "shop.yaml").with_changes(
        {
            "tune.space": {
                "model.dim": {"choices": [4, 8]},
                "training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
            },
            "training.epochs": 2,
        }
    )
    first = tune(config, tmp_path / "t", trials=1)
    assert len(first.trials) == 1
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    told = call("tune", tmp_path / "c.yaml", "--run", tmp_path / "t", "--trials", 2, "--resume")
    trials = pl.read_csv(tmp_path / "t" / "trials.csv")
    assert trials["trial"].to_list() == [0, 1]
    assert trials["training.learning_rate"].n_unique() == 2
    assert trials["value"][0] == first.value
    best = Config.load(tmp_path / "t" / "best.yaml")
    row = trials.sort("value", nulls_last=True, descending=True).row(0, named=True)
    assert best.training.learning_rate == row["training.learning_rate"]
    assert "Next:" in told
    run = tt.train_run(best, tmp_path / "best")
    assert run.evaluations("validation")[0]["recall_at_5"].mean == pytest.approx(row["value"], abs=1e-6)
    assert not (tmp_path / "t" / "evaluations").exists()


def test_init_train_in_two_commands(shop: Path, tmp_path: Path) -> None:
    tables = [
        "--interactions",
        shop / "clicks.parquet",
        "--items",
        shop / "goods.parquet",
        "--users",
        shop / "people.parquet",
    ]
    assert "say it, --user" in call("init", *tables, "--item", "what", "--out", tmp_path / "a.yaml", code=2)
    named = ["--user", "who", "--item", "what", "--time", "at", "--out", tmp_path / "a.yaml"]
    assert "twotower train" in call("init", *tables, *named)
    assert "is there already" in call("init", *tables, *named, code=2)
    small = ["--set", "training.epochs=1", "--set", "model.dim=4", "--set", "evaluation.baselines=[popularity]"]
    call("train", tmp_path / "a.yaml", "--run", tmp_path / "run", *small)
    assert set(tt.Run(tmp_path / "run").config.columns) >= {"what", "town", "taste", "device"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.interactions=gone.parquet", "no Parquet file at"),
        ("data.user=whom", "data.user: unknown column of data.interactions 'whom'"),
        ("data.time=when", "data.time: unknown column of data.interactions 'when'"),
        ("data.items=people.parquet", "data.items: unknown column 'what'"),
        ("data.items=clicks.parquet", "data.items: expected one row for each 'what'"),
        ("data.positive={column: stars, at_least: 4}", "data.positive.column: unknown column of data.interactions 'stars'"),
        ("data.positive={column: device, one_of: [phone]}", "data.positive keeps none of the 1,200 rows"),
        ("data.positive={column: device, at_least: 4}", "data.positive: 'device' holds String"),
        ("columns.colour={kind: categorical, tags: [item]}", "columns.colour: unknown column of the items 'colour'"),
        ("columns.mood={kind: categorical, tags: [user]}", "columns.mood: unknown column of the interactions and users 'mood'"),
        ("evaluation.slices=[brand]", "unknown slice 'brand'"),
        ("evaluation.metrics=[recall_at_50]", "50"),
        ("training.epochs=-1", "training.epochs: got -1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(shop: Path, tmp_path: Path, change: str, said: str) -> None:
    for name in ("clicks", "goods", "people"):
        (tmp_path / f"{name}.parquet").symlink_to(shop / f"{name}.parquet")
    (tmp_path / "shop.yaml").write_text(CONFIG)
    assert said in call("train", tmp_path / "shop.yaml", "--run", tmp_path / "run", "--set", change, code=2)
    assert not (tmp_path / "run").exists()


def test_items_columns_that_recommendations_have_are_refused_before_training(shop: Path, tmp_path: Path) -> None:
    pl.read_parquet(shop / "goods.parquet").with_columns(score=1).write_parquet(tmp_path / "scored.parquet")
    change = f"data.items={tmp_path / 'scored.parquet'}"
    told = call("train", shop / "shop.yaml", "--run", tmp_path / "run", "--set", change, code=2)
    assert "the items have columns named score" in told
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_whole_is_not_asked(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "metrics.json").write_text('{"test": {}}')  # as an evaluation of an unfinished run would leave it
    for verb in (["evaluate"], ["report"], ["recommend", "--user", 7]):
        assert "is not whole: its training was broken off" in call(verb[0], broken, *verb[1:], code=2)


def test_runs_that_were_asked_otherwise_are_not_compared(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = (other / "resolved.yaml").read_text()
    assert "query: user" in text
    (other / "resolved.yaml").write_text(text.replace("query: user", "query: event"))
    told = call("compare", run, other, code=2)
    assert "were not asked the same on the test part" in told
    assert "evaluation.query: 'user' against 'event'" in told


def test_a_folder_is_known_by_its_marker(shop: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "twotower-run.json").write_text('{"kind": "tune", "version": 1}')
    for option in ("--resume", "--overwrite"):
        told = call("train", shop / "shop.yaml", "--run", other, option, code=2)
        assert "holds a search of `twotower tune`, not a run" in told
    (other / "twotower-run.json").unlink()
    assert "something else than a run" in call("train", shop / "shop.yaml", "--run", other, "--overwrite", code=2)
    assert (other / "bundle").exists()
    assert "nothing is left to do" in call("train", run / "resolved.yaml", "--run", run, "--resume")


def test_data_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from twotower.cli import common

    common.say("[red]a[/nope]")
    show.show_items(pl.DataFrame({"rank": [1], "score": [0.5], "[red]q[/nope]": ["[x]y[/z]"]}), "[b]t[/c]")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[red]a[/nope]", "[red]q[/nope]", "[x]y[/z]", "[b]t[/c]"))


def test_no_traceback_for_what_is_asked_wrongly(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from twotower.cli.common import stoppable

    train = ["train", shop / "shop.yaml", "--run", tmp_path / "run", "--set"]
    assert "--set a: got '[1'" in call(*train, "a=[1", code=2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert "training.accelerator: got 'gpu'" in call(*train, "training.accelerator=gpu", code=2)
    with pytest.raises(SystemExit) as left, stoppable("twotower train"):
        raise KeyboardInterrupt
    assert left.value.code == 130
    assert "stopped; go on with: twotower train" in capsys.readouterr().out


def test_nothing_is_overwritten_unasked(shop: Path, run: Path, tmp_path: Path) -> None:
    before = (run / "metrics.json").read_text()
    assert "holds a finished run. Give --resume" in call("train", shop / "shop.yaml", "--run", run, code=2)
    assert "nothing is left to do" in call("train", shop / "shop.yaml", "--run", run, "--resume")
    other = call("train", shop / "shop.yaml", "--run", run, "--resume", "--set", "model.dim=4", code=2)
    assert "was begun with another config: model.dim: 8 against 4. Go on" in other
    assert (run / "metrics.json").read_text() == before
    (tmp_path / "mine.txt").write_text("letters")
    assert "something else than a run" in call("train", shop / "shop.yaml", "--run", tmp_path, "--overwrite", code=2)
    assert (tmp_path / "mine.txt").read_text() == "letters"
    assert "no run at" in call("evaluate", tmp_path, code=2)


def test_options_are_checked_by_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from twotower.cli.app import main

    monkeypatch.setattr("sys.argv", ["twotower", "evaluate", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("no run at ")
    assert "Traceback" not in printed.err


def test_best_epoch() -> None:
    make: Callable[[float], Config] = lambda least: Config.from_dict(  # noqa: E731
        {
            "data": {"interactions": "a", "user": "u", "item": "i"},
            "columns": {
                "i": {"kind": "categorical", "tags": ["item_id"]},
                "u": {"kind": "categorical", "tags": ["user_id"]},
            },
            "training": {"stop_early": {"min_delta": least}},
        }
    )
    history = pl.DataFrame({"val_recall_at_10": [0.1, 0.3, 0.2, 0.31]})
    assert best_epoch(make(0.0), history) == 4
    assert best_epoch(make(0.05), history) == 2
    assert best_epoch(make(0.0).with_changes({"training.stop_early": None}), history) == 4  # all of them
