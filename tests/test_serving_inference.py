"""The Open Inference Protocol: tensors in, tensors out, and nothing built of what they only claim to hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import twotower as tt

from . import serving_world as world
from .serving_world import QUERY, Client, post


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


def asked_with(change: dict[str, Any]) -> dict[str, Any]:
    """A good request with some of its parts changed."""
    tensors = {
        "user_id": {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [3]},
        "age": {"name": "age", "shape": [1], "datatype": "FP64", "data": [3.0]},
        "history": {"name": "history", "shape": [1, 2], "datatype": "BYTES", "data": ["i1", "i2"]},
    }
    asked: dict[str, Any] = {"inputs": [tensor | change.get(name, {}) for name, tensor in tensors.items()]}
    return asked | {name: value for name, value in change.items() if name not in tensors}


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
    asked = asked_with(change)
    assert says in post(client, asked, "/v2/models/one/infer", 422)["error"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"history": {"shape": [1_000_000_000, 0], "data": []}}, "different numbers of rows"),
        ({name: {"shape": [10**9, 0][: 1 + (name == "history")], "data": []} for name in QUERY}, "1000000000 rows"),
        ({name: {"shape": [6, 0][: 1 + (name == "history")], "data": []} for name in QUERY}, "6 rows"),
        ({name: {"shape": [0, 0][: 1 + (name == "history")], "data": []} for name in QUERY}, "0 rows"),
        ({"history": {"shape": [1, 10**30]}}, "expected [rows, length]"),
        ({"age": {"data": [10**400]}}, "beyond a double"),
        ({"user_id": {"data": [10**400]}}, "a whole number beyond 64 bits"),
        ({"user_id": {"data": [2**63]}}, "is declared INT64, but holds"),
        ({"user_id": {"data": [200], "datatype": "INT8"}}, "is declared INT8, but holds 200"),
        ({"history": {"data": [10**400, "i1"]}}, "is declared BYTES, but holds a whole number beyond"),
        ({"parameters": {"k": 10**400}}, "parameter k is a whole number beyond 64 bits"),
    ],
)
def test_tensors_are_bounded_before_they_are_built(change: dict[str, Any], says: str, client: Client) -> None:
    asked = asked_with(change)
    response = client.post("/v2/models/one/infer", content=json.dumps(asked))
    assert response.status_code == 422, response.text
    assert says in response.text
