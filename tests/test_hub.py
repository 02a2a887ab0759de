"""A Retriever to a hub and back, through a stand-in for its API. No test has spoken to a real hub."""

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import polars as pl
import pytest
import torch
import yaml

import twotower as tt
from twotower import Tags

EVENTS = pl.DataFrame({"user_id": [f"u{i % 7}" for i in range(70)], "item_id": [(i * i) % 11 for i in range(70)]})
ITEMS = pl.DataFrame(
    {"item_id": list(range(11)), "words": [["a", "b"][: i % 3] for i in range(11)], "title": ["|"] * 11}
)


class Folders:
    """Keeps repositories as folders; takes what the real API takes."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[tuple[str, dict[str, Any]]]()

    def _noted(self, method: str, **given: Any) -> None:
        real = getattr(huggingface_hub.HfApi, method)
        inspect.signature(real).bind(None, **given)  # TypeError for an argument that it does not know
        self.calls.append((method, given))

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        self._noted("create_repo", repo_id=repo_id, repo_type=repo_type, private=private, exist_ok=exist_ok)
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, commit_message: str, delete_patterns: str
    ) -> None:
        given = {"repo_id": repo_id, "repo_type": repo_type, "folder_path": folder_path}
        self._noted("upload_folder", **given, commit_message=commit_message, delete_patterns=delete_patterns)
        assert delete_patterns == "*"
        shutil.rmtree(self.root / repo_id)
        shutil.copytree(folder_path, self.root / repo_id)

    def snapshot_download(self, repo_id: str, *, repo_type: str, revision: str | None) -> str:
        self._noted("snapshot_download", repo_id=repo_id, repo_type=repo_type, revision=revision)
        return str(self.root / repo_id)


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    columns = {
        "user_id": tt.Categorical(Tags.USER_ID),
        "item_id": tt.Categorical(Tags.ITEM_ID),
        "words": tt.Categorical(Tags.ITEM),
    }
    preprocessor = tt.Preprocessor(columns).fit(EVENTS, ITEMS.select("item_id", "words"))
    sides = (preprocessor.schema.select_by_tag(tag) for tag in (Tags.USER, Tags.ITEM))
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(*(tt.Encoder(side, tt.MLPBlock([4])) for side in sides))
    return tt.Retriever(model, preprocessor, ITEMS)


@pytest.fixture
def api(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "hub")


def test_there_and_back(retriever: tt.Retriever, api: Folders, tmp_path: Path) -> None:
    tt.push_to_hub(retriever, "me/films", license="apache-2.0", api=api)
    again = tt.load_from_hub("me/films", revision="abc", api=api)
    queries = [{"user_id": "u3"}, {"user_id": "nobody"}]
    assert again.recommend(queries, k=5).equals(retriever.recommend(queries, k=5))
    methods = [(method, given.get("private"), given.get("revision")) for method, given in api.calls]
    assert methods == [("create_repo", True, None), ("upload_folder", None, None), ("snapshot_download", None, "abc")]
    assert not Path(api.calls[1][1]["folder_path"]).exists()  # the folder aside is gone

    (api.root / "me/films/stale.bin").write_bytes(b"old")
    retriever.save(tmp_path / "bundle")
    tt.push_to_hub(tmp_path / "bundle", "me/films", license="other", private=False, api=api)
    assert not (api.root / "me/films/stale.bin").exists()
    assert api.calls[-2][1]["private"] is False


def test_the_card(retriever: tt.Retriever, api: Folders) -> None:
    metrics = {"recall_at_10": 0.12345678, "ndcg_at_10": 0.05}
    tt.push_to_hub(retriever, "me/films", license="cc-by-4.0", description="Of **films**.", metrics=metrics, api=api)
    card = (api.root / "me/films/README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    assert yaml.safe_load(head)["library_name"] == "twotower"
    for text in (
        "# films\n",
        "the best of 11 items",
        "Of **films**.",
        "| query | user_id | ids | 9 |",  # seven users, the missing and the unknown one
        "| candidate | words | ids, a list | 4 |",
        "| recall_at_10 | 0.1235 |\n| ndcg_at_10 | 0.05 |",
        "`item_id`, `words`, `title`",
        f"twotower {tt.__version__}",
    ):
        assert text in body


def test_what_is_known_of_users_stays_here_unless_asked_for(
    retriever: tt.Retriever, api: Folders, tmp_path: Path
) -> None:
    store = tt.ParquetFeatures({"user_id": ["u1", "u2"], "seen": [[8675309], [1]]}, key="user_id")
    origin = {"config": "s3://secret"}
    bundle = replace(retriever.bundle, users=store, origin=origin)
    tt.save_bundle(bundle, tmp_path / "bundle")
    assert b"8675309" in (tmp_path / "bundle" / "users.sqlite").read_bytes()
    tt.push_to_hub(tmp_path / "bundle", "me/films", license="other", api=api)
    files = [f for f in (api.root / "me/films").rglob("*") if f.is_file()]
    assert not [f.name for f in files if b"8675309" in f.read_bytes() or b"secret" in f.read_bytes()]
    card = (api.root / "me/films/README.md").read_text()
    assert "raw ids among them, of users too (`user_id`). It holds nothing else of users" in card
    with pytest.raises(ValueError, match="no feature store"):
        tt.load_from_hub("me/films", api=api).recommend_users(["u1"])
    again = tt.load_from_hub("me/films", users=store, api=api)
    assert 1 not in again.recommend_users(["u2"], k=11)["item_id"].to_list()

    tt.push_to_hub(tmp_path / "bundle", "me/films", license="other", users=True, api=api)
    assert "**It holds what is known of 2 users**" in (api.root / "me/films/README.md").read_text()
    assert tt.load_from_hub("me/films", api=api).recommend_users(["u1"], k=1).height == 1


def test_the_snippet_of_the_card_runs(
    retriever: tt.Retriever, api: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    tt.push_to_hub(retriever, "me/films", license="other", api=api)
    (snippet,) = re.findall(r"```python\n(.*?)```", (api.root / "me/films/README.md").read_text(), re.DOTALL)
    exec(snippet.replace("load_from_hub('me/films')", "load_from_hub('me/films', api=api)"), {"api": api})
    assert "item_id" in capsys.readouterr().out


def test_an_evaluation_brings_its_intervals(retriever: tt.Retriever, api: Folders) -> None:
    evaluation = tt.Evaluator(
        EVENTS.unique(), candidates=ITEMS, user="user_id", item="item_id", metrics=["recall_at_3"]
    )(retriever)
    tt.push_to_hub(retriever, "me/films", license="other", metrics=evaluation, api=api)
    card = (api.root / "me/films/README.md").read_text()
    assert f"| recall_at_3 | {evaluation['recall_at_3']} |" in card
    assert "7 queries" in card


def test_the_example_must_be_a_query(retriever: tt.Retriever, api: Folders) -> None:
    tt.push_to_hub(retriever, "me/films", license="other", example={"user_id": "u5"}, api=api)
    assert "[{'user_id': 'u5'}]" in (api.root / "me/films/README.md").read_text()
    for wrong in ({"user": "u5"}, {"user_id": 5}, {"user_id": object()}):
        with pytest.raises(ValueError, match="give example="):
            tt.push_to_hub(retriever, "me/films", license="other", example=wrong, api=api)
    assert len(api.calls) == 2  # refused before anything was asked of the hub


def test_a_damaged_bundle_is_refused(retriever: tt.Retriever, api: Folders) -> None:
    tt.push_to_hub(retriever, "me/films", license="other", api=api)
    manifest = json.loads((api.root / "me/films/manifest.json").read_text())
    assert "README.md" not in manifest["files"]  # its text may be edited on the hub
    (api.root / "me/films/README.md").write_text("edited")
    tt.load_from_hub("me/films", api=api)
    (api.root / "me/films/items.parquet").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"damaged: items.parquet was changed"):
        tt.load_from_hub("me/films", api=api)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"the model hub needs huggingface_hub.*twotower\[hub\]"):
        tt.load_from_hub("me/films")
