"""The routes, in process: answers as the Retriever's own, and for everything else an error that says why."""

import gzip
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from litestar.testing import TestClient

import twotower as tt
from twotower.serving.app import make_app
from twotower.serving.live import Live
from twotower.serving.settings import Settings

from . import serving_world as world
from .serving_world import QUERY, Client, post, same


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.saved(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    with world.asking(bundle) as made:
        yield made


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> tt.Retriever:
    return tt.Retriever.load(bundle)


def test_answers_are_the_retrievers_bit_for_bit(client: Client, retriever: tt.Retriever) -> None:
    same(post(client, {"query": QUERY, "k": 7})["results"], retriever.recommend([QUERY], k=7))
    same(post(client, {"user": 5})["results"], retriever.recommend_users([5]))
    same(client.get("/recommend/5?k=4&seen=true").json()["results"], retriever.recommend_users([5], k=4, seen=True))
    asked = {"history": ["i3", "i4"], "context": {"age": 3.0}, "where": {"price": {"gte": 5}}}
    expected = retriever.recommend_histories([["i3", "i4"]], context={"age": 3.0}, where={"price": {"gte": 5}})
    same(post(client, asked)["results"], expected)
    same(client.get("/similar/i9?k=3").json()["results"], retriever.similar(["i9"], k=3))
    several = post(client, [{"query": QUERY, "k": 7}, {"user": 99}, {"item": "i9", "k": 3}])
    same(several[0]["results"], retriever.recommend([QUERY], k=7))
    assert several[1]["status"] == 404
    same(several[2]["results"], retriever.similar(["i9"], k=3))


def test_what_is_shown_of_items(client: Client) -> None:
    (one,) = post(client, {"user": 5, "k": 1})["results"]
    shown = world.ITEMS.filter(item_id=one["id"]).select("price", "title", "genres").to_dicts()[0]
    assert one["fields"] == shown  # all but the vector
    (one,) = post(client, {"user": 5, "k": 1, "fields": ["vector", "title"]})["results"]
    assert set(one["fields"]) == {"vector", "title"}
    assert post(client, {"user": 5, "k": 1, "fields": []})["results"][0]["fields"] == {}
    assert client.get("/items/i3?fields=title").json() == {"id": "i3", "fields": {"title": "Title 3"}}
    found = client.get("/items?search=TITLE 19&limit=3").json()["items"]
    assert [item["id"] for item in found] == ["i19", "i190", "i191"]
    assert [item["id"] for item in client.get("/items?search=i177").json()["items"]] == ["i177"]
    assert len(client.get("/items").json()["items"]) == 10
    assert client.get("/items?search=nothing like it").json() == {"items": []}


def test_items_are_found_as_in_the_explorer(bundle: Path) -> None:
    """The same items in the same order, the best first; without a text they are the first of the table."""
    front, _ = make_app(Live(bundle), Settings(watch=0))
    with TestClient(front) as client:
        for text in ("title", "1", "i19", "tit 7", "war", "WÄR drama", "none of them"):
            found = [item["id"] for item in client.get("/items", params={"search": text, "limit": 8}).json()["items"]]
            hits = client.get("/explore/search.json", params={"q": text, "kind": "item"}).json()["hits"]
            assert found == [hit["id"] for hit in hits]
        best = client.get("/items", params={"search": "war 19"}).json()["items"]
        wanted = {f"i{n}" for n in range(world.N_ITEMS) if "19" in str(n) and n % 4 >= 2}  # these are of War too
        assert {item["id"] for item in best} == wanted
        for text in ("", " "):
            first = client.get("/items", params={"search": text, "limit": 3}).json()["items"]
            assert [item["id"] for item in first] == ["i0", "i1", "i2"]


def test_heads_of_answers(client: Client) -> None:
    """HEAD is GET without the body, and what a route does not take is told with what it takes."""
    for path in ("/health/live", "/recommend/3", "/items/i3", "/schema", "/nowhere", "/recommend/3?k=0"):
        got = client.get(path)
        asked = client.head(path)
        assert (asked.status_code, asked.headers["content-length"]) == (got.status_code, got.headers["content-length"])
    assert client.head("/reload").status_code == 405
    assert client.put("/recommend").headers["allow"] == "POST, OPTIONS"


def test_about(client: Client, bundle: Path) -> None:
    info = client.get("/").json()
    assert (info["name"], info["items"], info["users"], info["history"]) == ("one", 200, "user_id", "history")
    assert info["metrics"] == {"recall_at_10": 0.25}
    assert info["manifest"] == json.loads((bundle / "manifest.json").read_text())
    assert info["query"] == {"user_id": "INT64", "age": "FP64", "history": "list of BYTES"}
    assert client.get("/health/live").json() == {"live": True}
    assert client.get("/health/ready").json() == {"ready": True, "refused": None, "version": info["version"]}
    page = client.get("/schema").text
    assert "POST" in page
    assert "://" not in page  # nothing is loaded from elsewhere


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b'{"query": {"age": NaN}}', 400, "null for what is not known"),
        (b'{"query": {"age": 1e999}}', 422, "out of range"),
        (b'{"user": "\xff"}', 400, "UTF-8"),
        (b"[" * 9000, 422, "another form"),
        (b'{"query": {"age": [[[[[1]]]]]}}', 422, "deeper than 4 levels"),
        (b'{"usr": 3}', 422, "unknown field `usr`"),
        (b'{"user": 3, "k": "5"}', 422, r"`\$.k`"),
        (b'{"user": 3.5}', 422, r"`\$.user`"),
        (b'{"user": true}', 422, r"`\$.user`"),
        (b'{"user": 3, "k": 51}', 422, "at most 50 items"),
        (b'{"user": 3, "k": 0}', 422, "at least 1"),
        (b'{"user": 3, "k": 99999999999999999999}', 422, "k"),
        (b'{"user": 99}', 404, "nothing is known of the user 99"),
        (b'{"item": "i999"}', 404, "no item has the id"),
        (b"{}", 422, "ask in one way"),
        (b"[]", 422, "0 questions"),
        (b'[{"user": 1},{"user": 1},{"user": 1},{"user": 1},{"user": 1},{"user": 1}]', 422, "6 questions"),
        (b'[{"user": 3, "k": 51}]', 422, "at most 50 items"),
        (json.dumps({"user": 3, "exclude": ["i1"] * 31}).encode(), 422, "exclude has 31 elements"),
        (json.dumps({"query": QUERY | {"history": ["i1"] * 31}}).encode(), 422, "query has 31 elements"),
        (json.dumps({"user": 3, "where": {"price": {"in": [1] * 31}}}).encode(), 422, "where has 31 elements"),
        (json.dumps({"user": 3, "where": {"price": "x"}}).encode(), 422, "give a number"),
        (json.dumps({"query": QUERY | {"age": "old"}}).encode(), 422, "age"),
        (json.dumps({"query": QUERY | {"age": 10**400}}).encode(), 422, "."),
        (json.dumps({"query": QUERY | {"user_id": {"a": 1}}}).encode(), 422, "holds Struct"),
        (b'{"user": "\\ud800"}', 400, "no JSON"),
        (b"x" * 20_001, 413, "larger than 20000 bytes"),
    ],
)
def test_bad_bodies_are_refused_with_a_reason(body: bytes, status: int, says: str, client: Client) -> None:
    response = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    with pytest.raises(ValueError, match=says):
        raise ValueError(response.text)
    assert set(response.json()) <= {"error", "hint"}


def test_a_body_that_is_nested_deep_is_refused(client: Client) -> None:
    """By the reader of JSON where Python's stack ends first, by the limit on values otherwise."""
    body = b'{"query": {"age": ' + b"[" * 9000 + b"]" * 9000 + b"}}"
    response = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert "nested too deep" in response.text or "nested deeper than 4 levels" in response.text


def test_a_body_is_taken_as_it_is(client: Client) -> None:
    headers = {"content-type": "application/json; charset=utf-8", "content-encoding": "identity"}
    assert client.post("/recommend", content=b'{"user": 3}', headers=headers).status_code == 200
    response = client.post("/recommend", content=gzip.compress(b'{"user": 3}'), headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["error"]) == (415, "the body is encoded as 'gzip'.")


def test_a_body_in_pieces_is_measured_too(client: Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    response = client.post("/recommend", content=pieces(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]) == (413, "the body is larger than 20000 bytes.")


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nowhere", 404, "/schema lists the routes"),
        ("PUT", "/recommend", 405, "does not take this method"),
        ("POST", "/recommend", 415, "not application/json"),
        ("GET", "/recommend/x", 404, "ids are whole numbers"),
        ("GET", "/recommend/99", 404, "nothing is known"),
        ("GET", "/recommend/" + "9" * 30, 404, "ids are whole numbers"),
        ("GET", "/recommend/3?k=many", 422, "expected a whole number"),
        ("GET", "/recommend/3?k=51", 422, "at most 50"),
        ("GET", "/recommend/3?seen=1", 422, "expected true or false"),
        ("GET", "/recommend/3?kk=1", 422, "unknown parameter 'kk'"),
        ("GET", "/recommend/3?k=1&k=2", 422, "came twice"),
        ("GET", "/recommend/3?fields=what", 422, "unknown field 'what'"),
        ("GET", "/items/what", 404, "no item has the id 'what'"),
        ("GET", "/items/a/b%2Fc", 404, "no item has the id 'a/b/c'"),
        ("GET", "/items/i3?fields=what", 422, "unknown field"),
        ("GET", "/items?limit=0", 422, "limit must be 1 to 100"),
        ("GET", "/similar/what", 404, "no item has the id"),
        ("GET", "/v2/models/what", 404, "there is no model 'what'"),
        ("GET", "/v2/models/one/versions/7", 404, "of version '7'"),
    ],
)
def test_bad_paths_say_so(method: str, path: str, status: int, says: str, client: Client) -> None:
    response = client.request(method, path, headers={"content-type": "text/plain"})
    assert response.status_code == status, response.text
    assert says in response.text
    assert set(response.json()) <= {"error", "hint"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"user": 3, "fields": ["title", "title"]}, "more than once"),
        (
            [{"user": 3, "k": 50}, {"user": 4, "k": 50}, {"user": 5, "k": 1}],
            "101 items together, but a body may ask for 100",
        ),
    ],
)
def test_an_answer_is_bounded(body: object, says: str, client: Client) -> None:
    response = client.post("/recommend", json=body)
    assert response.status_code == 422, response.text
    assert says in response.text
    assert client.post("/recommend", json=[{"user": 3, "k": 50}, {"user": 4, "k": 50}]).status_code == 200


def test_ids_of_64_bits(client: Client) -> None:
    for number in (2**62, -(2**63), 2**63 - 1):
        response = client.get(f"/recommend/{number}")
        assert (response.status_code, f"nothing is known of the user {number}" in response.text) == (404, True)
    assert "whole number" in client.get(f"/recommend/{2**64}").text


def test_nothing_on_the_way_unpickles(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("pickle was called")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    found: list[str] = []

    def hook(event: str, _: object) -> None:
        if event == "pickle.find_class" and watching:
            found.append(event)

    watching = True
    sys.addaudithook(hook)
    front, _ = make_app(Live(bundle), Settings(watch=0, explorer=False))
    with TestClient(front) as client:
        assert client.get("/recommend/3").status_code == 200
        assert client.get("/similar/i3").status_code == 200
        post(client, None, "/reload")
    watching = False
    assert found == []
