"""The routes, in process: answers as the Retriever's own, and for everything else an error that says why."""

import asyncio
import json
import pickle
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

import twotower as tt
from twotower.serving import service as service_module
from twotower.serving.app import make_app
from twotower.serving.live import Live, bundle_folder
from twotower.serving.settings import Limits, Settings

from . import serving_world as world

SMALL = Limits(body_bytes=20_000, k=50, questions=5, list_length=30, timeout=20.0)
QUERY = {"user_id": 3, "age": 20.5, "history": ["i4", "i7"]}
Client = TestClient[Any]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of the same items, `one` and `two`."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("one", "two")):
        world.make_retriever(seed).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[Client]:
    front, _ = make_app(Live(bundles / "one"), Settings(limits=SMALL, watch=0, explorer=False))
    with TestClient(front) as made:
        yield made


@pytest.fixture
def served(bundles: Path, tmp_path: Path) -> Path:
    """A copy of bundle `one`, to be harmed."""
    shutil.copytree(bundles / "one", tmp_path / "served")
    return tmp_path / "served"


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> tt.Retriever:
    return tt.Retriever.load(bundles / "one")


def post(client: Client, body: object, path: str = "/recommend", status: int = 200) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def same(found: list[dict[str, Any]], expected: Any) -> None:
    """Ids, and scores bit for bit."""
    assert [one["id"] for one in found] == expected["item_id"].to_list()
    scores = np.array([one["score"] for one in found], dtype=np.float32)
    assert scores.tobytes() == expected["score"].to_numpy().astype(np.float32).tobytes()


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


def test_about(client: Client, bundles: Path) -> None:
    info = client.get("/").json()
    assert (info["name"], info["items"], info["users"], info["history"]) == ("one", 200, "user_id", "history")
    assert info["metrics"] == {"recall_at_10": 0.25}
    assert info["manifest"] == json.loads((bundles / "one" / "manifest.json").read_text())
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
        (b'{"query": {"age": ' + b"[" * 9000, 400, "nested too deep"),
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


def test_open_inference_protocol(client: Client, retriever: tt.Retriever) -> None:
    version = client.get("/").json()["version"]
    assert client.get("/v2").json() == {"name": "twotower", "version": tt.__version__, "extensions": []}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/one/ready").json() == {"name": "one", "ready": True}
    about = client.get(f"/v2/models/one/versions/{version}").json()
    assert about["inputs"] == [
        {"name": "user_id", "datatype": "INT64", "shape": [-1]},
        {"name": "age", "datatype": "FP64", "shape": [-1]},
        {"name": "history", "datatype": "BYTES", "shape": [-1, -1]},
    ]
    tensors = [
        {"name": "age", "shape": [2], "datatype": "FP32", "data": [20.5, 3]},
        {"name": "user_id", "shape": [2, 1], "datatype": "INT64", "data": [[3], [4]]},
        {
            "name": "history", "shape": [2, 2], "datatype": "BYTES", "data": [["i4", "i7"], ["i1", ""]],
            "parameters": {"lengths": "2,1"},
        },
    ]  # fmt: skip
    asked = {"id": "7", "inputs": tensors, "parameters": {"k": 3}, "outputs": [{"name": "scores"}, {"name": "ids"}]}
    found = post(client, asked, "/v2/models/one/infer")
    assert (found["model_name"], found["model_version"], found["id"]) == ("one", version, "7")
    scores, ids = found["outputs"]
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [2, 3])
    queries = [QUERY, {"user_id": 4, "age": 3.0, "history": ["i1"]}]
    expected = retriever.recommend(queries, k=3)
    assert (ids["datatype"], ids["data"]) == ("BYTES", expected["item_id"].to_list())
    assert scores["data"] == expected["score"].to_list()
    everything = post(client, asked | {"outputs": []}, f"/v2/models/one/versions/{version}/infer")
    assert everything["outputs"][2] == {"name": "counts", "shape": [2], "datatype": "INT64", "data": [3, 3]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": []}, "the inputs are []"),
        ({"parameters": {"k": "many"}}, "not a whole number"),
        ({"parameters": {"kk": 3}}, "unknown parameter 'kk'"),
        ({"outputs": [{"name": "what"}]}, "there is no output 'what'"),
        ({"user_id": {"datatype": "WHAT"}}, "has datatype 'WHAT'"),
        ({"user_id": {"data": ["3"]}}, "is declared INT64, but holds '3'"),
        ({"user_id": {"data": [True]}}, "is declared INT64, but holds True"),
        ({"user_id": {"data": [3, 4]}}, "has shape [1], but 2 values"),
        ({"user_id": {"shape": [2], "data": [3, 4]}}, "different numbers of rows"),
        ({"user_id": {"shape": [-1]}}, "has shape [-1]"),
        ({"history": {"shape": [1]}}, "expected [rows, length]"),
        ({"history": {"parameters": {"lengths": "3"}}}, "expected 1 numbers up to 2"),
        ({"history": {"data": [["i1"], "i2"]}}, "mixes lists and values"),
        ({"age": {"data": [1], "datatype": "BYTES"}}, "is declared BYTES, but holds 1"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Any], says: str, client: Client) -> None:
    tensors = {
        "user_id": {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [3]},
        "age": {"name": "age", "shape": [1], "datatype": "FP64", "data": [3.0]},
        "history": {"name": "history", "shape": [1, 2], "datatype": "BYTES", "data": ["i1", "i2"]},
    }
    asked: dict[str, Any] = {"inputs": [tensor | change.get(name, {}) for name, tensor in tensors.items()]}
    asked |= {name: value for name, value in change.items() if name not in tensors}
    assert says in post(client, asked, "/v2/models/one/infer", 422)["error"]


def test_a_token_opens_all_but_health(bundles: Path) -> None:
    front, _ = make_app(Live(bundles / "one"), Settings(token="sesame-open", watch=0, explorer=False))
    with TestClient(front) as client:
        paths = ["/", "/recommend/3", "/metrics", "/schema", "/nowhere", "/items", "/v2", "/healthy"]
        for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in paths:
            for sent in (None, "Bearer sesame-ope", "sesame-open", "Bearer ü"):
                headers = {} if sent is None else {b"authorization": sent.encode("latin-1")}
                response = client.get(path, headers=headers)  # type: ignore[arg-type]
                if path != "/healthy":
                    assert response.status_code == 401
                    assert response.headers["www-authenticate"] == "Bearer"
        opened = {"authorization": "Bearer sesame-open"}
        assert [client.get(path, headers=opened).status_code for path in paths] == [
            200,
            200,
            200,
            200,
            404,
            200,
            200,
            404,
        ]
        assert client.post("/reload").status_code == 401
    for token in ("short", "with a space", "ünïcödé-token"):
        with pytest.raises(ValueError, match="at least 8 ASCII characters"):
            Settings(token=token)
    assert "sesame" not in repr(Settings(token="sesame-open"))


def test_a_new_bundle_is_served_and_a_broken_one_refused(served: Path, bundles: Path, retriever: tt.Retriever) -> None:
    other = tt.Retriever.load(bundles / "two")
    front, _ = make_app(Live(served), Settings(watch=0, explorer=False))
    with TestClient(front) as client:
        first = client.get("/").json()["version"]
        same(post(client, {"user": 5})["results"], retriever.recommend_users([5]))
        weights = served / "model" / "weights.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1])
        refusal = post(client, None, "/reload", 409)
        assert "model/weights.safetensors was changed or cut short" in refusal["error"]
        assert f"{first} is served on" in refusal["hint"]
        same(post(client, {"user": 5})["results"], retriever.recommend_users([5]))
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert "cut short" in ready.json()["refused"]
        weights.write_bytes(whole)
        other.save(served)
        assert post(client, None, "/reload")["version"] != first
        same(post(client, {"user": 5})["results"], other.recommend_users([5]))
        assert client.get("/health/ready").json()["refused"] is None
        counted = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }
        assert counted["twotower_reloads_total", "served"] == 1
        assert counted["twotower_reloads_total", "refused"] == 1
        assert counted["twotower_bundle_refused",] == 0
        assert counted["twotower_requests_total", "recommend", "200"] == 3
        assert counted["twotower_requests_total", "reload", "409"] == 1
        assert counted["twotower_batch_size_count",] == 3
        assert counted["twotower_items",] == 200
        shutil.rmtree(served)
        assert "manifest.json is missing" in post(client, None, "/reload", 409)["error"]
        same(post(client, {"user": 5})["results"], other.recommend_users([5]))


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_manifest_is_watched(served: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that is broken for a while, as one that is copied file by file, is served once it is whole."""
    monkeypatch.setattr(service_module, "RETRY", (0.05,))
    front, service = make_app(Live(served), Settings(watch=0.02, explorer=False))
    with TestClient(front) as client:
        first = client.get("/").json()["version"]
        shutil.copy(bundles / "two" / "manifest.json", served / "manifest.json")  # the files do not fit it yet
        wait_for(lambda: client.get("/health/ready").json()["refused"] is not None)
        assert client.get("/").json()["version"] == first
        assert client.get("/recommend/3").status_code == 200
        shutil.copytree(bundles / "two", served, dirs_exist_ok=True)
        wait_for(lambda: client.get("/").json()["version"] != first)
        assert client.get("/health/ready").json()["refused"] is None
        # put back what is served after something broken: nothing is wrong any more
        text = (served / "manifest.json").read_text()
        (served / "manifest.json").write_text("{")
        wait_for(lambda: service.live.refused is not None)
        (served / "manifest.json").write_text(text)
        wait_for(lambda: service.live.refused is None)


def test_no_request_fails_while_bundles_come_and_go(served: Path, bundles: Path, retriever: tt.Retriever) -> None:
    """Every answer is that of the one bundle or of the other."""
    both = [retriever, tt.Retriever.load(bundles / "two")]
    expected = {tuple(r.recommend_users([5])["score"].to_list()) for r in both}
    front, _ = make_app(Live(served), Settings(watch=0, explorer=False))
    seen, failed, stop = set(), [], threading.Event()

    def load(client: Client) -> None:
        while not stop.is_set():
            response = client.post("/recommend", json={"user": 5})
            if response.status_code == 200:
                seen.add(tuple(np.float32(one["score"]).item() for one in response.json()["results"]))
            else:
                failed.append(response.text)

    with TestClient(front) as client:
        threads = [threading.Thread(target=load, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            both[1 - number % 2].save(served)
            post(client, None, "/reload")
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert seen == expected


class Held:
    """Answers that wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        work = service_module.answer

        def wait(*arguments: Any) -> Any:
            self.begun.set()
            assert self.go.wait(30)
            return work(*arguments)

        monkeypatch.setattr(service_module, "answer", wait)


def dropped(front: Any, reason: str) -> float:
    value = front.instruments.registry.get_sample_value("twotower_dropped_total", {"reason": reason})
    assert value is not None
    return float(value)


def asked(front: Any, *bodies: object) -> list[httpx.Response]:
    """Bodies asked one right after the other, without waiting for answers."""

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(front)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))

    return asyncio.run(main())


def test_a_full_queue_is_told_at_once(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    settings = Settings(limits=Limits(questions=2), max_queue=2, watch=0, explorer=False)
    live = Live(bundles / "one")
    live.take(live.load())
    front, service = make_app(live, settings)
    timer = threading.Timer(0.3, held.go.set)
    timer.start()
    responses = asked(front, {"user": 1}, [{"user": 2}, {"user": 3}], {"user": 4}, {"user": 5})
    assert [r.status_code for r in responses] == [200, 200, 503, 503]
    assert responses[2].headers["retry-after"] == "1"
    assert "2 questions are waiting, 2 may" in responses[2].json()["error"]
    assert dropped(front, "full") == 2
    service.close()


def test_an_answer_that_takes_too_long(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    live = Live(bundles / "one")
    live.take(live.load())
    front, service = make_app(live, Settings(limits=Limits(timeout=0.05), watch=0, explorer=False))
    (response,) = asked(front, {"user": 1})
    assert (response.status_code, response.json()["error"]) == (504, "there was no answer within 0.05 s.")
    assert dropped(front, "timeout") == 1
    held.go.set()
    service.close()


def test_a_failure_of_ours_is_logged_and_not_told(
    bundles: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(service_module, "answer", broken)
    live = Live(bundles / "one")
    live.take(live.load())
    front, service = make_app(live, Settings(watch=0, explorer=False))
    (response,) = asked(front, {"user": 1})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "the secret of the house" in caplog.text
    service.close()


def test_nothing_on_the_way_unpickles(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    front, _ = make_app(Live(bundles / "one"), Settings(watch=0, explorer=False))
    with TestClient(front) as client:
        assert client.get("/recommend/3").status_code == 200
        assert client.get("/similar/i3").status_code == 200
        post(client, None, "/reload")
    watching = False
    assert found == []


def test_a_run_folder_serves_its_bundle(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "one", tmp_path / "run" / "bundle")
    assert Live(tmp_path / "run").name == "run"
    assert bundle_folder(tmp_path / "run") == tmp_path / "run" / "bundle"
    assert bundle_folder(tmp_path / "run" / "bundle") == tmp_path / "run" / "bundle"
    with pytest.raises(ValueError, match="no bundle at"):
        Live(tmp_path).load()


def test_every_route_is_described(client: Client, bundles: Path) -> None:
    described = client.get("/schema/openapi.json").json()["paths"]
    front, service = make_app(Live(bundles / "one"), Settings(explorer=False))
    service.close()
    app: Any = front.app
    found = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in app.routes
        for method in route.methods
        if method not in ("OPTIONS", "HEAD")
    }
    assert found == {(path, method) for path, operations in described.items() for method in operations}
