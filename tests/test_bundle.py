"""Bundles: verified on loading, refused by name, and whole after a kill at any point of the writing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import safetensors.torch
import torch

import twotower as tt
from twotower import Categorical, Numeric, Tags, files

ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(30)],
        "price": [float(n % 7) for n in range(30)],
        "title": [f"T{n}" for n in range(30)],
    }
)
EVENTS = pl.DataFrame({"user_id": [n % 9 for n in range(120)], "item_id": [f"i{(n * n) % 30}" for n in range(120)]})
USERS = pl.DataFrame({"user_id": range(9), "seen": [[f"i{n}", "gone"] for n in range(9)]})


def make(seed: int) -> tt.Retriever:
    columns = {"user_id": Categorical(Tags.USER_ID), "item_id": Categorical(Tags.ITEM_ID), "price": Numeric(Tags.ITEM)}
    preprocessor = tt.Preprocessor(columns).fit(EVENTS, ITEMS)
    schema = preprocessor.schema
    torch.manual_seed(seed)
    query, candidate = (tt.Encoder(schema.select_by_tag(t), tt.MLPBlock([8])) for t in (Tags.USER, Tags.ITEM))
    users = tt.ParquetFeatures(USERS, key="user_id")
    model = tt.TwoTowerModelV2(query, candidate)
    return tt.Retriever(model, preprocessor, ITEMS, users=users, metrics={"recall_at_10": 0.25})


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    return make(0)


def answers(retriever: tt.Retriever) -> pl.DataFrame:
    return retriever.recommend([{"user_id": n} for n in range(9)], k=30)


def test_what_is_in_it_comes_back(retriever: tt.Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "bundle")
    again = tt.Retriever.load(tmp_path / "bundle")
    assert answers(again).equals(answers(retriever))
    assert again.bundle.items.equals(ITEMS)
    assert again.bundle.metrics == {"recall_at_10": 0.25}
    assert again.recommend_users([3, 5], k=4).equals(retriever.recommend_users([3, 5], k=4))
    assert torch.equal(again.bundle.vectors, retriever.bundle.vectors)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["items"] == 30
    assert manifest["files"]["users.sqlite"]["bytes"] == (tmp_path / "bundle" / "users.sqlite").stat().st_size
    assert not list((tmp_path / "bundle").rglob("*.p*kl*"))


def test_a_bundle_may_leave_out_what_is_known_of_users(retriever: tt.Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "bundle")
    retriever.save(tmp_path / "bundle", users=False)
    assert not [
        f for f in (tmp_path / "bundle").rglob("*") if f.is_file() and b"gone" in f.read_bytes()
    ]  # what was seen
    again = tt.Retriever.load(tmp_path / "bundle")
    assert answers(again).equals(answers(retriever))
    with pytest.raises(ValueError, match=r"no feature store to look users up in: give .*Retriever.load\(..., users=\)"):
        again.recommend_users([3])
    brought = tt.Retriever.load(tmp_path / "bundle", users=tt.ParquetFeatures(USERS, key="user_id"))
    assert brought.recommend_users([3, 5], k=4).equals(retriever.recommend_users([3, 5], k=4))


def test_added_and_deleted_items_are_saved_too(tmp_path: Path) -> None:
    retriever = make(1)
    retriever.delete(["i3", "i29"])
    retriever.upsert(pl.DataFrame({"item_id": ["new", "i4"], "price": [3.0, 100.0], "title": ["New", "Four"]}))
    found = answers(retriever)
    assert set(found["item_id"]) == set(ITEMS["item_id"]) - {"i3", "i29"} | {"new"}
    fresh = tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, retriever.bundle.items)
    # two items encoded alone may differ in the last bit from the same two among thirty, and so may their ranks where they tie
    again, once = (table.sort("query", "item_id").drop("rank") for table in (answers(fresh), found))
    assert again.drop("score").equals(once.drop("score"))
    assert again["score"].to_list() == pytest.approx(once["score"].to_list(), rel=1e-5, abs=1e-6)
    retriever.save(tmp_path / "bundle")
    assert answers(tt.Retriever.load(tmp_path / "bundle")).equals(found)
    with pytest.raises(ValueError, match="no item has the id 'i3'"):
        retriever.delete(["i4", "i3"])
    with pytest.raises(ValueError, match="must have the columns of the others"):
        retriever.upsert(pl.DataFrame({"item_id": ["x"], "price": [1.0]}))
    assert answers(retriever).equals(found)


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "add"])
def test_harm_to_any_file_is_found_and_named(harm: str, retriever: tt.Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "whole")
    for file in sorted(f for f in (tmp_path / "whole").rglob("*") if f.is_file() and f.name != "manifest.json"):
        name = file.relative_to(tmp_path / "whole").as_posix()
        shutil.copytree(tmp_path / "whole", tmp_path / "bundle", dirs_exist_ok=True)
        harmed, content = tmp_path / "bundle" / name, file.read_bytes()
        if harm == "remove":
            harmed.unlink()
        elif harm == "add":
            harmed.with_name("more").touch()
            name = harmed.with_name("more").relative_to(tmp_path / "bundle").as_posix()
        else:
            harmed.write_bytes(content[:-1] if harm == "cut" else bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(ValueError, match=f"{name}(,| is missing| was changed)"):
            tt.Retriever.load(tmp_path / "bundle")
        shutil.rmtree(tmp_path / "bundle")


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"format": 1, "twotower": "0.0.1"}', "[]", '{"format": 2}', '{"format": 2, "files": {"a": 1}}'],
)
def test_a_manifest_that_cannot_be_read_says_so(content: str, retriever: tt.Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "bundle")
    (tmp_path / "bundle" / "manifest.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"manifest.json (was changed or cut short|holds no object|lacks)|has format 1, written"
    ):
        tt.Retriever.load(tmp_path / "bundle")


def sign(folder: Path) -> None:
    """A manifest for what lies there now, as somebody would write it who swaps a part on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text())
    from twotower.files import sha256_of

    names = [f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json"]
    manifest["files"] = {
        f.relative_to(folder).as_posix(): {"sha256": sha256_of(f), "bytes": f.stat().st_size} for f in names
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("index", "the index .* was built from another model/weights.safetensors"),
        ("model", "the index .* was built from another model/weights.safetensors"),
    ],
)
def test_a_part_of_another_bundle_is_refused_by_name(
    part: str, says: str, retriever: tt.Retriever, tmp_path: Path
) -> None:
    retriever.save(tmp_path / "one")
    make(7).save(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / part)
    shutil.copytree(tmp_path / "other" / part, tmp_path / "one" / part)
    with pytest.raises(ValueError, match=f"{part}/.* was changed"):
        tt.Retriever.load(tmp_path / "one")
    sign(tmp_path / "one")
    with pytest.raises(ValueError, match=says):
        tt.Retriever.load(tmp_path / "one")


def test_a_tower_that_gives_other_vectors_is_refused(retriever: tt.Retriever, tmp_path: Path) -> None:
    """Even if every file says that it belongs there."""
    retriever.save(tmp_path / "bundle")
    file = tmp_path / "bundle" / "model" / "weights.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(n for n in weights if n.startswith("candidate") and n.endswith("weight") and weights[n].shape[0] == 8)
    safetensors.torch.save_file(weights | {name: weights[name] * 1.5}, file)
    from twotower.files import sha256_of

    built = tmp_path / "bundle" / "index" / "built-from.json"
    built.write_text(json.dumps(json.loads(built.read_text()) | {"model/weights.safetensors": sha256_of(file)}))
    sign(tmp_path / "bundle")
    with pytest.raises(ValueError, match="the candidate tower .* gives other vectors than its index holds"):
        tt.Retriever.load(tmp_path / "bundle")


def test_a_folder_whose_name_looks_like_a_pattern_is_read_itself(retriever: tt.Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "run[1]")
    other = make(3)
    other.delete([f"i{n}" for n in range(20)])
    other.save(tmp_path / "run1")
    assert tt.Retriever.load(tmp_path / "run[1]").bundle.items.equals(ITEMS)


def test_a_column_that_the_bundle_keeps_for_itself_is_refused(retriever: tt.Retriever) -> None:
    with pytest.raises(ValueError, match="a column '__key', which a bundle keeps for itself"):
        tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, ITEMS.with_columns(__key=pl.lit(1)))


# a writer that is killed at its n-th opening, renaming, making or removing of a file, or call of the system's exchange
WRITER = """
import os, signal, sys
import twotower as tt
old, target, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
retriever = tt.Retriever.load(old)
retriever.recommend([{"user_id": 1}])
events = []
def hook(event, arguments):
    watched = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "ctypes.dlsym", "shutil.rmtree")
    if watched or (event == "open" and target in str(arguments[0])):
        events.append(event)
        if len(events) == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
retriever.save(target)
print(*events)
"""


def test_a_kill_at_any_step_leaves_a_whole_bundle(retriever: tt.Retriever, tmp_path: Path) -> None:
    """What lies at the path is the old bundle or the new one, and the next writer clears up what the killed ones left."""
    retriever.save(tmp_path / "old")
    new = make(5)
    new.save(tmp_path / "new")
    target = tmp_path / "served"
    shutil.copytree(tmp_path / "old", target)
    before, after = answers(retriever), answers(new)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def write(at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / "new"), str(target), str(at)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    events = write(0).stdout.split()
    exchange = events.index("ctypes.dlsym") + 1
    assert 15 < exchange < len(events) - 10  # much is written before, and the old bundle is removed after
    shutil.rmtree(target)
    shutil.copytree(tmp_path / "old", target)
    for at in (exchange // 2, exchange, exchange + 1):
        assert write(at).returncode == -signal.SIGKILL
        found = answers(tt.Retriever.load(target))
        assert found.equals(before) or found.equals(after), (
            f"neither the old nor the new bundle after a kill at step {at}"
        )
        if found.equals(after):
            shutil.rmtree(target)
            shutil.copytree(tmp_path / "old", target)
    assert write(0).returncode == 0
    assert answers(tt.Retriever.load(target)).equals(after)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# the same for the folder alone, without the library's imports, at every step
FOLDER_WRITER = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
at, steps = int(sys.argv[3]), 0
def hook(event, arguments):
    global steps
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "ctypes.dlsym", "shutil.rmtree", "os.scandir"):
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
with files.folder_written_aside(sys.argv[2], "mark") as folder:
    for name in ("a", "b", "mark"):
        (folder / name).write_text("new")
print(steps)
"""


def test_a_folder_is_whole_after_a_kill_at_every_step(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def write(at: int) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in ("a", "b", "mark"):
            (target / name).write_text("old")
        command = [sys.executable, "-c", FOLDER_WRITER, files.__file__, str(target), str(at)]
        return subprocess.run(command, capture_output=True, text=True)

    steps = int(write(0).stdout)
    assert steps > 12
    seen, at = set(), 1
    while (
        writer := write(at)
    ).returncode != 0:  # a writer clears up after the killed one before it: more steps than at first
        assert writer.returncode == -signal.SIGKILL
        found = {(target / name).read_text() for name in ("a", "b", "mark")}
        assert len(found) == 1, f"a mixture after a kill at step {at}"
        seen |= found
        at += 1
    assert at > steps
    assert seen == {"old", "new"}
    assert write(0).returncode == 0
    assert os.listdir(tmp_path) == ["folder"]


def test_without_the_systems_exchange_a_kill_between_two_renames_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange_call", lambda: None)
    for text in ("old", "new"):
        with files.folder_written_aside(tmp_path / "f", "mark") as folder:
            (folder / "mark").write_text(text)
    assert (tmp_path / "f" / "mark").read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]
    (tmp_path / "f").rename(tmp_path / f".f.{'0' * 32}.old")
    files.restore_folder(tmp_path / "f")
    assert (tmp_path / "f" / "mark").read_text() == "new"
