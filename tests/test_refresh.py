"""The nightly refresh, in a shop whose answer is known: people stay with a taste, until some change it."""

import hashlib
import http.server
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import twotower as tt
from twotower.cli.app import app
from twotower.experiment.lock import held
from twotower.experiment.tables import Tables
from twotower.nightly import publishing, verdict
from twotower.nightly.judging import Served, affinity
from twotower.nightly.known import Affinity, Ledger, read_known

TASTES, GOODS, PEOPLE, BASE, NIGHT = 4, 40, 120, 4000, 1600
SHARES = (1 / np.arange(1, 11)) / (1 / np.arange(1, 11)).sum()
MOVED = 10  # of people whose number ends so, three of ten, the taste changes in the first night
RULES = tt.RefreshRules(rate=1.0, epochs=3, margin=0.1)
CONFIG = {
    "data": {"user": "who", "item": "what", "time": "at"},
    "columns": {
        "what": {"kind": "categorical", "tags": ["item_id"]},
        "taste": {"kind": "categorical", "tags": ["item"]},
        "who": {"kind": "categorical", "tags": ["user_id"]},
    },
    "history": {"length": 5},
    "model": {"dim": 8, "query_layers": [], "candidate_layers": [], "temperature": 0.2},
    "training": {"epochs": 4, "batch_size": 128, "learning_rate": 0.05, "health_steps": 0},
    "evaluation": {"metrics": ["recall_at_5", "ndcg_at_5", "coverage_at_5"], "slices": ["cold_items", "new_users"],
                   "baselines": [], "remove_seen": False},
}  # fmt: skip


def taste_of(who: np.ndarray, moved: bool) -> np.ndarray:
    return np.where(moved & (who % MOVED < 3), who + 1, who) % TASTES


def clicks(
    rows: int, start: int, *, moved: bool, people: int = PEOPLE, new: bool = False, seed: int = 0
) -> pl.DataFrame:
    """Each click is of a good of the person's taste, the first ones most; with `new` every third is of the taste's new good."""
    rng = np.random.default_rng(seed + start)
    who = rng.integers(0, people, rows)
    taste = taste_of(who, moved)
    what = taste + TASTES * rng.choice(GOODS // TASTES, rows, p=SHARES)
    what = np.where(new & (rng.random(rows) < 1 / 3), GOODS + taste, what)
    return pl.DataFrame({"who": who, "what": [f"g{n:02}" for n in what], "at": start + np.arange(rows)})


def goods(number: int = GOODS) -> pl.DataFrame:
    names = {"what": [f"g{n:02}" for n in range(number)], "taste": [f"t{n % TASTES}" for n in range(number)]}
    return pl.DataFrame(names | {"title": [f"Good {n}" for n in range(number)]})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and the tables of some nights."""
    folder = tmp_path_factory.mktemp("shop")
    clicks(BASE, 0, moved=False).write_parquet(folder / "clicks.parquet")
    goods().write_parquet(folder / "goods.parquet")
    data = {"interactions": str(folder / "clicks.parquet"), "items": str(folder / "goods.parquet")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tt.train_run(tt.Config.from_dict(CONFIG | {"data": CONFIG["data"] | data}), folder / "run")
    torch.set_num_threads(threads)
    clicks(NIGHT, BASE, moved=True, people=PEOPLE + 5, new=True).write_parquet(folder / "night.parquet")
    clicks(NIGHT, BASE, moved=False).write_parquet(folder / "same.parquet")
    clicks(NIGHT, BASE + NIGHT, moved=True, people=PEOPLE + 5, new=True).write_parquet(folder / "next.parquet")
    goods(GOODS + TASTES).write_parquet(folder / "more.parquet")
    return folder


@pytest.fixture
def live(shop: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, where it is served from."""
    shutil.copytree(shop / "run" / "bundle", tmp_path / "live")
    return tmp_path / "live"


def state(folder: Path) -> dict[str, str]:
    """Every file and its bytes, in short."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*") if f.is_file()
    }


def first_night(shop: Path, live: Path, **more: Any) -> tt.Refreshed:
    given = {"items": shop / "more.parquet", "run": shop / "run", "rules": RULES} | more
    return tt.refresh(live, given.pop("interactions", shop / "night.parquet"), **given)


def lists(live: Path, people: range, k: int = 5) -> list[list[str]]:
    """What people get by their id, with what the bundle knows of them."""
    found = tt.Retriever.load(live).recommend_users(list(people), k, seen=True)
    return found.group_by("query", maintain_order=True).agg("what")["what"].to_list()


def written(table: pl.DataFrame, path: Path) -> Path:
    table.write_parquet(path)
    return path


def test_tastes_change_and_the_bundle_follows(shop: Path, live: Path) -> None:
    before = state(live)
    found = first_night(shop, live)
    assert (found.outcome, found.reasons) == ("published", ())
    apart = found.comparison[0]
    # live knows neither the new taste of three of ten nor the new goods, which are a third of the clicks
    assert apart.metric == "recall_at_5"
    assert apart.first > apart.second + 0.15
    assert apart.low > 0
    assert state(live.with_name("live.previous")) == before
    people = range(0, PEOPLE)
    right = [
        np.mean([f"t{taste_of(np.array(who), True)}" == f"t{int(good[1:]) % TASTES}" for good in best])
        for who, best in zip(people, lists(live, people), strict=True)
    ]
    moved = np.array([who % MOVED < 3 for who in people])
    assert np.mean(np.array(right)[moved]) > 0.7
    assert np.mean(np.array(right)[~moved]) > 0.9
    # the new good of the taste is the most clicked one: it is among the best five of nearly all, people of the night included
    everyone = range(0, PEOPLE + 5)
    hold = [
        f"g{GOODS + taste_of(np.array(w), True)}" in best
        for w, best in zip(everyone, lists(live, everyone), strict=True)
    ]
    assert np.mean(hold) > 0.9
    report = json.loads(found.path.read_text()) if found.path else {}
    assert report["new"] == {"users": 5, "items": TASTES, "items_lost": 0}
    assert report["unknown_to_live"]["positives"] > 60
    assert report["metrics"]["new"]["recall_at_5"] == apart.first == tt.load_bundle(live).metrics["recall_at_5"]
    assert report["rows"]["fresh"] == NIGHT
    # the run's test rows were not learnt before
    assert report["rows"]["learnt"] == NIGHT - report["rows"]["held_out"] + len(tt.Run(shop / "run").tables().test)


def test_nights_follow_each_other_and_one_can_be_taken_back(shop: Path, live: Path) -> None:
    first = first_night(shop, live)
    one = state(live)
    with pytest.raises(ValueError, match="1,600 of 1,600 fresh rows are not after the newest row .* --skip-known"):
        tt.refresh(live, shop / "night.parquet", rules=RULES)
    both = [shop / "night.parquet", shop / "next.parquet"]
    again = tt.refresh(live, both, run=shop / "run", rules=RULES, skip_known=True)
    assert again.outcome == "published"
    assert again.report["rows"]["skipped"] == NIGHT
    assert again.report["night"] == 2
    held_before = first.report["rows"]["held_out"]
    assert again.report["rows"]["learnt"] == held_before + NIGHT - again.report["rows"]["held_out"]
    assert state(live.with_name("live.previous")) == one
    seen = tt.load_bundle(live).users.look_up([7]).seen[0]  # type: ignore[union-attr]
    every = pl.concat([pl.read_parquet(shop / f"{n}.parquet") for n in ("clicks", "night", "next")])
    assert seen == every.filter(pl.col("who") == 7)["what"].to_list()
    two = state(live)
    assert tt.rollback(live) == live
    assert state(live) == one
    assert state(live.with_name("live.previous")) == two
    once_more = tt.refresh(live, shop / "next.parquet", rules=RULES)
    assert once_more.report["rows"] == again.report["rows"] | {"skipped": 0}
    # the same rows in the same order; rounding may differ
    assert abs(once_more.comparison[0].first - again.comparison[0].first) < 0.03
    tables = {f.name for f in Ledger(live).folder.glob("*.parquet")}
    origins = [tt.load_bundle(p).origin for p in (live, live.with_name("live.previous"))]
    # a later refresh deletes the tables that neither bundle came from, and keeps the others
    kept = {name for origin in origins for part in ("learnt", "owed", "users") for name in origin[part]}
    assert kept <= tables
    tt.refresh(live, written(pl.read_parquet(shop / "next.parquet").clear(), shop / "empty.parquet"))
    assert {f.name for f in Ledger(live).folder.glob("*.parquet")} == kept


def shuffled(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("what").shuffle(3))


def renamed(rows: pl.DataFrame) -> pl.DataFrame:
    """A broken join: every good under the name of another."""
    names = goods(GOODS + TASTES)["what"]
    return rows.with_columns(pl.col("what").replace_strict(names, names.shuffle(1)))


def one_robot(rows: pl.DataFrame) -> pl.DataFrame:
    robot = pl.col("at") % 10 > 0
    return rows.with_columns(pl.when(robot).then(pl.lit("g07")).otherwise("what").alias("what"))


@pytest.mark.parametrize("poison", [shuffled, renamed, one_robot])
def test_a_poisoned_night_is_refused(
    shop: Path, live: Path, tmp_path: Path, poison: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    before = state(live)
    rows = poison(pl.read_parquet(shop / "same.parquet"))
    found = first_night(shop, live, interactions=written(rows, tmp_path / "poison.parquet"))
    assert found.outcome == "kept"
    assert found.reasons[0].startswith(
        "the rows look damaged: the live bundle ranks a person's own item above another's in "
    )
    assert state(live) == before
    assert not live.with_name("live.previous").exists()
    report = json.loads(found.path.read_text()) if found.path else {}
    assert report["outcome"] == "kept"
    assert report["affinity"]["now"]["share"] < 0.65 < report["affinity"]["before"]["share"]
    # nothing of it is known: rows of the same hours, in order, are taken
    assert first_night(shop, live).outcome == "published"


def test_a_forced_bad_night_does_not_turn_the_check_off(shop: Path, live: Path, tmp_path: Path) -> None:
    bad = [written(shuffled(pl.read_parquet(shop / f"{name}.parquet")), tmp_path / name) for name in ("night", "next")]
    forced = first_night(shop, live, interactions=bad[0], force=True)
    assert forced.outcome == "published"
    assert forced.reasons[0].startswith("the rows look damaged")
    again = first_night(shop, live, interactions=bad[1])
    assert again.reasons[0].startswith("the rows look damaged")
    assert again.report["affinity"]["before"] == forced.report["affinity"]["before"]


def test_the_reference_never_falls() -> None:
    good, bad, unsure = Affinity(0.8, 0.01), Affinity(0.7, 0.01), Affinity(0.55, 0.03)
    assert verdict.reference(good, bad, sound=True) == good
    assert verdict.reference(bad, good, sound=True) == good  # .78 at least, above .7
    assert verdict.reference(bad, Affinity(0.8, 0.06), sound=True) == bad  # .68 at least
    assert verdict.reference(bad, good, sound=False) == bad
    # .49 at least: it may be chance
    assert verdict.reference(unsure, bad, sound=True) == bad
    assert verdict.reference(unsure, unsure, sound=True) is None
    assert verdict.reference(None, good, sound=False) is None
    assert verdict.reference(good, None, sound=True) == good


def test_a_worse_bundle_is_refused_and_force_publishes_it(shop: Path, live: Path) -> None:
    before, bad = state(live), {"rules": tt.RefreshRules(rate=100.0), "interactions": shop / "same.parquet"}
    found = first_night(shop, live, **bad)
    assert found.outcome == "kept"
    assert found.reasons[0].startswith("the new bundle is worse than the live one: recall_at_5: ")
    assert state(live) == before
    forced = first_night(shop, live, **bad, force=True)
    assert forced.outcome == "published"
    assert forced.reasons == found.reasons
    assert tt.rollback(live) == live
    assert state(live) == before


def test_a_model_that_ran_away_is_never_published(shop: Path, live: Path) -> None:
    before = state(live)
    found = first_night(shop, live, rules=tt.RefreshRules(rate=1e38), force=True)
    assert found.outcome == "kept"
    assert "nan or infinite" in found.reasons[-1]
    assert state(live) == before


def test_lost_items_and_too_few_people_are_refused(shop: Path, live: Path, tmp_path: Path) -> None:
    few = written(goods(30), tmp_path / "few.parquet")
    found = first_night(shop, live, items=few)
    assert found.outcome == "kept"
    assert "10 of 40 items are gone, more than 10%" in found.reasons[0]
    rules = tt.RefreshRules(rate=1.0, epochs=3, margin=0.1, most_lost=0.26)
    assert first_night(shop, live, items=few, rules=rules).outcome == "published"
    assert set(tt.load_bundle(live).items["what"]) == set(goods(30)["what"])
    small = written(pl.read_parquet(shop / "next.parquet").head(20), tmp_path / "small.parquet")
    assert "fewer than ten people" in tt.refresh(live, small, rules=RULES).reasons[0]


def test_everyone_the_same_is_refused(shop: Path, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import twotower.nightly.refresh as module

    def constant(*given: Any) -> Any:
        model, preprocessor = real(*given)
        table = model.query.inputs.categorical.table("who").weight
        for weight in model.query.parameters():
            if weight is not table:
                weight.data.mul_(0.0).add_(0.5 if weight.ndim == 1 else 0.0)
        return model, preprocessor

    real = module.learn
    monkeypatch.setattr(module, "learn", constant)
    found = first_night(shop, live)
    assert found.outcome == "kept"
    assert "everyone gets the same items: two lists share " in found.reasons[-1]


def test_what_is_wrong_with_the_tables_is_said(shop: Path, live: Path, tmp_path: Path) -> None:
    night, before = pl.read_parquet(shop / "night.parquet"), state(live)

    def refused(said: str, rows: pl.DataFrame = night, **more: Any) -> None:
        with pytest.raises(ValueError, match=said):
            first_night(shop, live, interactions=written(rows, tmp_path / "x.parquet"), **more)

    late = night.with_columns(pl.col("at") - 10)
    refused("10 of 1,600 fresh rows are not after the newest row that the live bundle knows .at = 3999.", late)
    refused(
        "column 'what' of the fresh interactions holds Int64, such as 3", night.with_columns(what=pl.lit(3, pl.Int64))
    )
    refused("column 'at' of the fresh interactions holds Datetime", night.with_columns(pl.col("at").cast(pl.Datetime)))
    refused("column 'who' of the fresh interactions holds String", night.with_columns(pl.col("who").cast(pl.String)))
    refused("data.time: unknown column of the fresh interactions 'at'", night.rename({"at": "when"}))
    refused("data.time: 1 of 1,600 rows", night.with_columns(pl.when(pl.col("at") > BASE).then("at").alias("at")))
    refused("the items lack a column .* 'title'", items=written(goods().drop("title"), tmp_path / "i.parquet"))
    refused("the items, .* have no rows", items=written(goods().clear(), tmp_path / "i.parquet"))
    refused("the config has no data.users", users=written(pl.DataFrame({"who": [1]}), tmp_path / "u.parquet"))
    refused("asked of the run that made it, and no run holds it", run=None)
    with pytest.raises(ValueError, match="held_out is 0"):
        tt.RefreshRules(held_out=0)
    found = first_night(shop, live, interactions=written(night.clear(), tmp_path / "none.parquet"))
    assert found.outcome == "nothing"
    assert found.path is not None
    assert json.loads(found.path.read_text())["outcome"] == "nothing"
    wide = night.with_columns(pl.col("at").cast(pl.Int32), pl.col("who").cast(pl.Int16))
    assert first_night(shop, live, interactions=written(wide, tmp_path / "w.parquet")).outcome == "published"
    tt.rollback(live)
    assert state(live) == before


def test_times_in_another_unit_are_refused(shop: Path, live: Path, tmp_path: Path) -> None:
    rows = pl.read_parquet(shop / "night.parquet").with_columns(pl.col("at") * 1000)
    found = first_night(shop, live, interactions=written(rows, tmp_path / "ms.parquet"))
    assert found.outcome == "kept"
    assert "is 'at' written in another unit?" in found.reasons[0]


def test_one_wrong_clock_is_refused(shop: Path, live: Path, tmp_path: Path) -> None:
    before, night = state(live), pl.read_parquet(shop / "night.parquet")
    far = BASE - 1 + int(0.9 * BASE)  # 1,600 rows end at 5,599; this is 7,599, within what the known ones span
    rows = night.with_columns(at=pl.when(pl.col("at") == BASE + 700).then(far).otherwise("at"))
    found = first_night(shop, live, interactions=written(rows, tmp_path / "clock.parquet"))
    assert found.outcome == "kept"
    assert "of 1,600 fresh rows reach to 7599, further beyond the bulk of them, " in found.reasons[0]
    assert state(live) == before


def test_rows_that_are_all_known_are_told(shop: Path, live: Path, tmp_path: Path) -> None:
    rows = written(pl.read_parquet(shop / "clicks.parquet").tail(30), tmp_path / "old.parquet")
    found = first_night(shop, live, interactions=rows, skip_known=True)
    assert found.outcome == "kept"
    assert found.reasons[0].startswith("none of 30 rows is after the newest known one (at = 3999)")
    report = json.loads(found.path.read_text()) if found.path else {}
    assert report["reasons"] == list(found.reasons)
    assert report["rows"]["skipped"] == 30


def test_times_apart_and_times_to_come() -> None:
    known, bulk = pl.Series("at", range(0, 1000)), list(range(1000, 1200))
    # of 201 rows the 1st and the 99th percentile are those at places 2 and 198, 1002 and 1198: 196 apart
    assert verdict.apart(known, pl.Series("at", [*bulk, 1198 + 196])) is None
    assert "1002 to 1198" in str(verdict.apart(known, pl.Series("at", [*bulk, 1198 + 197])))
    days = [date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 3)]
    dated = pl.Series("at", [days[1]] * 200 + days[2:])
    assert verdict.apart(pl.Series("at", days[:1]), dated) is None  # the next day begins
    assert verdict.apart(pl.Series("at", days[:1]), pl.Series("at", [days[1]] * 200 + [date(2026, 1, 9)])) is not None
    now = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
    hours = pl.Series("at", [datetime(2026, 1, 3, 12), datetime(2026, 1, 3, 13)])
    for moments in (hours, hours.dt.replace_time_zone("UTC")):
        assert verdict.ahead(moments[:1], now) is None
        assert "1 of 2 fresh rows are of moments to come, up to 2026-01-03 13:00" in str(verdict.ahead(moments, now))
    assert verdict.ahead(pl.Series("at", days), now) is None
    assert verdict.ahead(pl.Series("at", [date(2026, 1, 4)]), now) is not None
    assert verdict.ahead(known, now) is None


@pytest.mark.parametrize("force", [False, True])
def test_a_night_that_repeats_what_people_had_is_kept_before_it_is_learnt(
    shop: Path, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    import twotower.nightly.refresh as module

    def learn(*given: Any) -> Any:
        raise AssertionError("it was learnt")

    monkeypatch.setattr(module, "learn", learn)
    run = tmp_path / "run"
    shutil.copytree(shop / "run", run)
    said = (run / "resolved.yaml").read_text()
    assert "remove_seen: false" in said
    (run / "resolved.yaml").write_text(said.replace("remove_seen: false", "remove_seen: true"))
    rows = pl.read_parquet(shop / "clicks.parquet").head(200).with_columns(pl.col("at") + BASE)
    found = first_night(shop, live, run=run, interactions=written(rows, tmp_path / "again.parquet"), force=force)
    assert found.outcome == "kept"
    assert "every row held out repeats an item that its person had before" in found.reasons[-1]
    assert found.path is not None


def test_another_runs_rows_are_refused(shop: Path, live: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "run", tmp_path / "other")
    first_night(shop, live)
    shutil.rmtree(tmp_path / "other" / "bundle")
    shutil.copytree(live, tmp_path / "other" / "bundle")
    shutil.copytree(shop / "run" / "bundle", tmp_path / "second")
    with pytest.raises(ValueError, match="holds another model than .* those of another run"):
        first_night(shop, tmp_path / "second", run=tmp_path / "other")
    with pytest.raises(ValueError, match="was refreshed since its training: it has learnt the test rows"):
        tt.evaluate_run(tt.Run(tmp_path / "other"))


def test_one_at_a_time(shop: Path, live: Path) -> None:
    with (
        held(Ledger(live).folder),
        pytest.raises(ValueError, match=r"live.refresh is in use: process \d+ on .* writes to it"),
    ):
        first_night(shop, live)
    with pytest.raises(ValueError, match="there is no bundle to go back to"):
        tt.rollback(live)
    assert not Ledger(live).folder.exists()


KILLED = """
import os, signal, sys
import twotower as tt
from twotower.nightly import publishing
def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(publishing, sys.argv[1], die)
rules = tt.RefreshRules(rate=1.0, epochs=3, margin=0.1)
tt.refresh(sys.argv[2], sys.argv[3] + "/night.parquet", items=sys.argv[3] + "/more.parquet", run=sys.argv[3] + "/run", rules=rules)
"""


@pytest.mark.parametrize(("step", "new"), [("exchange_folders", False), ("_keep", True)])
def test_a_kill_leaves_the_live_bundle_whole_and_the_next_night_works(
    shop: Path, live: Path, step: str, new: bool
) -> None:
    before = state(live)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(live), str(shop)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (state(live) != before) == new
    tt.Retriever.load(live)
    found = tt.refresh(live, shop / "next.parquet", rules=RULES) if new else first_night(shop, live)
    assert found.outcome == "published"
    assert found.report["night"] == (2 if new else 1)
    assert sorted(p.name for p in live.parent.iterdir()) == ["live", "live.previous", "live.refresh"]
    tt.rollback(live)
    assert (state(live) == before) != new


def test_both_are_asked_the_same_and_what_live_does_not_know_ranks_last(shop: Path, live: Path) -> None:
    retriever = tt.Retriever.load(live)
    known = read_known(retriever.bundle, live, shop / "run")
    rows, candidates = known.owed.head(50).with_columns(history=pl.lit(["g01"])), tt.Dataset(goods(GOODS + TASTES))
    evaluator = tt.Evaluator(rows, candidates=candidates, user="who", item="what", metrics=["recall_at_44"])
    scores = Served(retriever).score_queries(evaluator.queries, candidates)(torch.arange(2))
    assert torch.isneginf(scores[:, GOODS:]).all()
    exact = retriever.score_queries(evaluator.queries, tt.Dataset(goods()))(torch.arange(2))
    assert torch.equal(scores[:, :GOODS], exact)


def test_affinity_is_one_half_by_chance_and_counts_pairs(shop: Path, live: Path) -> None:
    retriever = tt.Retriever.load(live)
    known = read_known(retriever.bundle, live, shop / "run")
    empty = known.learnt.clear()
    tables = Tables(known.learnt, empty, empty, retriever.bundle.items, None)
    own = affinity(known.config, retriever, tables, known.owed, 0)
    chance = affinity(known.config, retriever, tables, shuffled(known.owed), 0)
    assert own is not None
    assert chance is not None
    # a person's own good is above the three quarters of other tastes, and above one half of its own taste's
    assert abs(own.share - (0.75 + 0.125)) < 0.05
    assert abs(chance.share - 0.5) < 4 * chance.error < 0.1
    assert affinity(known.config, retriever, tables, known.owed.head(20), 0) is None


def test_without_a_table_of_items_new_ones_come_from_the_rows(tmp_path: Path) -> None:
    with_taste = goods(GOODS + TASTES).drop("title")
    base = clicks(BASE, 0, moved=False).join(with_taste, on="what", how="left", maintain_order="left")
    data = {"interactions": str(written(base, tmp_path / "base.parquet"))}
    config = tt.Config.from_dict(CONFIG | {"data": CONFIG["data"] | data})
    tt.train_run(config.with_changes({"training.epochs": 2, "serving.users": False}), tmp_path / "run")
    night = clicks(NIGHT, BASE, moved=False, new=True).join(with_taste, on="what", how="left", maintain_order="left")
    found = tt.refresh(tmp_path / "run", written(night, tmp_path / "night.parquet"), rules=RULES)
    assert found.outcome == "published"
    assert len(tt.load_bundle(tmp_path / "run" / "bundle").items) == len(
        set(base["what"][: int(0.9 * BASE)]) | set(night["what"])
    )
    assert tt.load_bundle(tmp_path / "run" / "bundle").users is None  # as the config wishes, every night


def call(*arguments: object) -> tuple[int, str]:
    """The exit code and what was printed; a ValueError is what main tells with exit code 2."""
    done = CliRunner().invoke(app, ["refresh", *map(str, arguments)], terminal_width=120)
    if isinstance(done.exception, ValueError):
        return 2, str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_and_its_exit_codes(
    shop: Path, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200 if self.headers["Authorization"] else 401)
            self.end_headers()
            self.wfile.write(b'{"version": "1"}')

        def log_message(self, *given: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    night = ["--interactions", shop / "night.parquet", "--items", shop / "more.parquet", "--run", shop / "run"]
    rules = ["--rate", "1.0", "--epochs", "3", "--margin", "0.1"]
    try:
        monkeypatch.setenv("TWOTOWER_TOKEN", "secret")
        code, told = call(live, "--interactions", shop / "same.parquet", *night[2:], "--rate", 100)
        assert (code, "The live bundle is kept:" in told, asked) == (3, True, [])
        assert "worse than the live one" in told
        code, told = call(live, *night, *rules, "--notify", url)
        assert (code, "Published." in told) == (0, True)
        assert "New and live on the rows held out" in told
        assert asked == [("/reload", "Bearer secret")]
        code, told = call(live, *night[:4])
        assert (code, "are not after the newest row" in told) == (2, True)
        code, told = call(live, *night[:4], "--skip-known")
        assert (code, "none of 1,600 rows is after the newest known one" in told) == (3, True)
        monkeypatch.delenv("TWOTOWER_TOKEN")
        code, told = call(live, "--rollback", "--notify", url + "/admin/reload")
        assert (code, asked[-1]) == (4, ("/admin/reload", None))
        assert "401" in told
    finally:
        server.shutdown()
        server.server_close()
    assert call(live)[0] == 2
    assert call(live, "--rollback", *night)[0] == 2
    assert call(live, *night, "--held-out", "2")[0] == 2
    assert call(tmp_path / "nowhere", *night)[0] == 2


def test_the_commands_that_begin_anew_do_not_nest(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "refresh.md").read_text()
    commands = text.rpartition("```text\n")[2].partition("```")[0]
    commands = commands.replace("/srv/films", str(tmp_path)).replace("runs/second", str(tmp_path / "second"))
    for folder, content in (("live", "old"), ("second/bundle", "new")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "manifest.json").write_text(content)
    for _ in range(2):
        subprocess.run(["bash", "-ec", commands], check=True)
        assert [f.name for f in (tmp_path / "live").iterdir()] == ["manifest.json"]
        assert (tmp_path / "live" / "manifest.json").read_text() == "new"


ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/reload": (200, {}, b'{"version": "abc", "loaded": 1.0}'),
    "/away": (302, {"Location": "/stolen"}, b""),
    "/stolen": (200, {}, b'{"version": "abc"}'),
    "/login": (200, {}, b"<html>Who are you?</html>"),
    "/list": (200, {}, b'["version"]'),
    "/made": (201, {}, b'{"version": "abc"}'),
    "/damaged": (409, {}, b'{"error": "weights.safetensors is missing"}'),
}


def test_the_token_goes_to_the_named_server_and_its_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            code, headers, body = ANSWERS[self.path]
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET = answer  # noqa: N815

        def log_message(self, *given: object) -> None:
            pass

    monkeypatch.setenv("TWOTOWER_TOKEN", "secret")
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        publishing.notify(url)
        for path, said in {
            "/away": "302.*, to /stolen; it is not followed",
            "/login": "its answer, 200, is no JSON with a version",
            "/list": "its answer, 200, is no JSON with a version",
            "/made": "its answer, 201, is no JSON with a version",
            "/damaged": "409.*: weights.safetensors is missing",
        }.items():
            with pytest.raises(ValueError, match=said):
                publishing.notify(url + path)
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path, _ in asked] == ["/reload", "/away", "/login", "/list", "/made", "/damaged"]


@pytest.mark.parametrize(
    "wrong",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://[::1",
        "http://me:secret@host",
        "http://h ost",
    ],
)
def test_a_wrong_address_is_refused_before_any_work(wrong: str, tmp_path: Path) -> None:
    for work in (["--rollback"], ["--interactions", tmp_path / "none.parquet"]):
        code, told = call(tmp_path / "nowhere", *work, "--notify", wrong)
        assert (code, "expected an address such as" in told) == (2, True)


def test_the_example_refuses_the_broken_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["refresh_nightly.py", "--nights", "2", "--months", "2"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(Path(__file__).parents[1] / "examples" / "refresh_nightly.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    first, broken, second = re.findall(r"^(published|kept) in \d+ seconds(.*)$", printed, re.MULTILINE)
    assert (first[0], broken[0], second[0]) == ("published", "kept", "published")
    assert "the rows look damaged" in broken[1]
    for live, new in re.findall(r"live (\S+), refreshed (\S+),", printed):
        assert float(new) > 1.1 * float(live)
    assert "films again" in printed
