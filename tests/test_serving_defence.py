"""What strangers may send: bounded before it costs anything, and refused with a reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient

from twotower.serving.app import make_app
from twotower.serving.live import Live
from twotower.serving.settings import Limits, Settings

from . import serving_world as world

QUERY = {"user_id": 3, "age": 20.5, "history": ["i4", "i7"]}
Client = TestClient[Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("defence")
    world.make_retriever(0).save(folder / "one")
    return folder / "one"


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    front, _ = make_app(Live(bundle), Settings(limits=Limits(questions=5, k=50), watch=0, explorer=False))
    with TestClient(front) as made:
        yield made


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
    tensors = {
        "user_id": {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [3]},
        "age": {"name": "age", "shape": [1], "datatype": "FP64", "data": [3.0]},
        "history": {"name": "history", "shape": [1, 2], "datatype": "BYTES", "data": ["i1", "i2"]},
    }
    asked: dict[str, Any] = {"inputs": [tensor | change.get(name, {}) for name, tensor in tensors.items()]}
    asked |= {name: value for name, value in change.items() if name not in tensors}
    response = client.post("/v2/models/one/infer", content=json.dumps(asked))
    assert response.status_code == 422, response.text
    assert says in response.text
