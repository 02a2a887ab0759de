"""A small Retriever whose query tower reads an id, a number and a history, for the tests of serving."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from litestar.testing import TestClient

import twotower as tt
from twotower import Categorical, Numeric, Tags
from twotower.serving.app import make_app
from twotower.serving.live import Live
from twotower.serving.settings import Limits, Settings

SMALL = Limits(body_bytes=20_000, k=50, questions=5, results=100, list_length=30, timeout=20.0)
QUERY = {"user_id": 3, "age": 20.5, "history": ["i4", "i7"]}
Client = TestClient[Any]
N_ITEMS, N_USERS = 200, 40
ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(N_ITEMS)],
        "price": [float(n % 17) for n in range(N_ITEMS)],
        "title": [f"Title {n}" for n in range(N_ITEMS)],
        "genres": [["Drama", "War", "Noir"][: n % 4] for n in range(N_ITEMS)],
        "vector": [[0.5, float(n)] for n in range(N_ITEMS)],
    }
)


def users(seed: int = 0) -> pl.DataFrame:
    """Features of people, all of whom have seen something."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": range(N_USERS),
            "age": random.random(N_USERS) * 60,
            "history": [[f"i{m}" for m in random.integers(0, N_ITEMS, 1 + n % 5)] for n in range(N_USERS)],
            "seen": [[f"i{m}" for m in random.integers(0, N_ITEMS, 8)] + ["gone"] for _ in range(N_USERS)],
        }
    )


def make_retriever(seed: int = 0) -> tt.Retriever:
    """Untrained towers serve as well as any."""
    random = np.random.default_rng(seed)
    events = pl.DataFrame(
        {
            "user_id": random.integers(0, N_USERS, 400),
            "item_id": [f"i{n}" for n in random.integers(0, N_ITEMS, 400)],
            "age": random.random(400) * 60,
            "history": [[f"i{m}" for m in random.integers(0, N_ITEMS, 1 + n % 6)] for n in range(400)],
        }
    )
    columns = {
        "user_id": Categorical(Tags.USER_ID),
        "item_id": Categorical(Tags.ITEM_ID),
        "age": Numeric(Tags.USER),
        "history": Categorical(Tags.USER, share="item_id"),
        "price": Numeric(Tags.ITEM),
    }
    preprocessor = tt.Preprocessor(columns).fit(events, ITEMS)
    torch.manual_seed(seed)
    query, candidate = (
        tt.Encoder(preprocessor.schema.select_by_tag(tag), tt.MLPBlock([16, 12], no_activation_last_layer=True))
        for tag in (Tags.USER, Tags.ITEM)
    )
    return tt.Retriever(
        tt.TwoTowerModelV2(query, candidate),
        preprocessor,
        ITEMS,
        users=tt.ParquetFeatures(users(seed), key="user_id"),
        metrics={"recall_at_10": 0.25},
    )


def saved(folder: Path) -> Path:
    """The bundle of the Retriever, called `one`."""
    make_retriever().save(folder / "one")
    return folder / "one"


def asking(bundle: Path) -> Client:
    """Asks the routes in process, under small limits."""
    front, _ = make_app(Live(bundle), Settings(limits=SMALL, watch=0, explorer=False))
    return TestClient(front)


def post(client: Client, body: object, path: str = "/recommend", status: int = 200) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def same(found: list[dict[str, Any]], expected: Any) -> None:
    """Ids, and scores bit for bit."""
    assert [one["id"] for one in found] == expected["item_id"].to_list()
    scores = np.array([one["score"] for one in found], dtype=np.float32)
    assert scores.tobytes() == expected["score"].to_numpy().astype(np.float32).tobytes()


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def dropped(front: Any, reason: str) -> float:
    value = front.instruments.registry.get_sample_value("twotower_dropped_total", {"reason": reason})
    assert value is not None
    return float(value)
