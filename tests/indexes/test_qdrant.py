"""QdrantIndex: what it saves, and that no file tells it where to go."""

import datetime as dt
import json
import pickle
import sqlite3
from pathlib import Path

import polars as pl
import pytest
import qdrant_client
import torch

import twotower as tt

VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.7]])
KEYS = [7, 3, 2**40]
ATTRIBUTES = pl.DataFrame(
    {
        "year": pl.Series([1994, None, 2003], dtype=pl.UInt16),
        "price": [1.0, None, 2.5],
        "half": pl.Series([0.1, 0.2, None], dtype=pl.Float32),
        "cost": pl.Series(["1.10", "2.25", None]).cast(pl.Decimal(10, 2)),
        "brand": pl.Series(["a", "b", None], dtype=pl.Categorical),
        "size": pl.Series(["S", None, "L"], dtype=pl.Enum(["S", "L"])),
        "on_sale": [True, None, False],
        "added": [dt.date(2024, 5, 31), None, dt.date(1960, 1, 1)],
        "seen": [dt.datetime(2024, 5, 31, 12, 0, 0, 5), None, dt.datetime(1960, 1, 1)],
        "zoned": pl.Series([dt.datetime(2024, 5, 31, 12), None, dt.datetime(2024, 1, 1)]).dt.replace_time_zone(
            "Europe/Berlin"
        ),
        "milli": pl.Series([dt.datetime(2024, 5, 31, 12), None, None], dtype=pl.Datetime("ms")),
        "genres": [["Drama", "War"], [], None],
        "numbers": pl.Series([[1, 2], [3, 4], None], dtype=pl.Array(pl.Int32, 2)),
        "weights": pl.Series([[0.5, 1.0], [None], None], dtype=pl.List(pl.Float32)),
        "days": [[dt.date(2024, 5, 31)], [], None],
        "nothing": [None, None, None],
    }
)


def test_what_is_saved_is_what_was_given(tmp_path: Path) -> None:
    tt.QdrantIndex(VECTORS, KEYS, ATTRIBUTES, exact=True).save(tmp_path / "index")
    assert sorted(file.name for file in (tmp_path / "index").iterdir()) == [
        "attributes.parquet",
        "index.json",
        "rows.safetensors",
    ]
    again = tt.QdrantIndex.load(tmp_path / "index")
    assert again.exact
    assert torch.equal(again.vectors_of(KEYS), VECTORS)
    kept = pl.read_parquet(tmp_path / "index" / "attributes.parquet")
    assert kept.schema == ATTRIBUTES.schema
    at = torch.tensor(KEYS).argsort().tolist()  # Qdrant gives them by key
    assert kept.rows() == ATTRIBUTES[at].rows()
    again.delete(KEYS)
    again.save(tmp_path / "empty")
    assert len(tt.load_index(tmp_path / "empty")) == 0


class RanError(Exception):
    pass


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise __import__('tests.indexes.test_qdrant', fromlist=['RanError']).RanError",)


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "store"])
def test_no_file_names_where_to_connect(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of somebody else's would get the API key, or run the pickles that lie in an embedded store."""
    tt.QdrantIndex(VECTORS, KEYS).save(tmp_path / "index")
    if where == "store":
        where = str(tmp_path / where)
        tt.QdrantIndex(VECTORS, KEYS, location=where).close()
        (file,) = Path(where).rglob("*.sqlite")
        with sqlite3.connect(file) as points:
            points.execute("UPDATE points SET point = ?", (pickle.dumps(Bomb()),))
        points.close()
        with pytest.raises(RanError):  # the bomb is real
            tt.QdrantIndex(VECTORS, KEYS, location=where, replace=True)
    text = json.loads((tmp_path / "index" / "index.json").read_text())
    for part in (text, text["options"]):
        part |= {"location": where, "url": where, "path": where, "collection": "candidates", "api_key": "x"}
    (tmp_path / "index" / "index.json").write_text(json.dumps(text))
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    made = []
    client = qdrant_client.QdrantClient
    monkeypatch.setattr(
        qdrant_client, "QdrantClient", lambda *where, **more: made.append((where, more)) or client(*where, **more)
    )
    for load in (tt.load_index, tt.QdrantIndex.load):
        assert torch.equal(load(tmp_path / "index").vectors_of(KEYS), VECTORS)
    assert made == [((":memory:",), {})] * 2


def test_the_key_goes_to_the_server_that_the_caller_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tt.QdrantIndex(VECTORS, KEYS).save(tmp_path / "index")
    monkeypatch.setenv("QDRANT_API_KEY", "from the environment")
    made = []
    client = qdrant_client.QdrantClient
    monkeypatch.setattr(qdrant_client, "QdrantClient", lambda **how: made.append(how) or client(":memory:"))
    tt.QdrantIndex.load(tmp_path / "index", location="https://one", api_key="given")
    tt.QdrantIndex.load(tmp_path / "index", location="https://two")
    assert made == [
        {"url": "https://one", "api_key": "given"},
        {"url": "https://two", "api_key": "from the environment"},
    ]
    with pytest.raises(ValueError, match="api_key is for a server's URL, and location is ':memory:'"):
        tt.QdrantIndex.load(tmp_path / "index", api_key="given")


def test_a_saved_index_fills_the_collection_asked_for(tmp_path: Path) -> None:
    tt.QdrantIndex(VECTORS, KEYS, ATTRIBUTES).save(tmp_path / "index")
    store = str(tmp_path / "store")
    first = tt.QdrantIndex.load(tmp_path / "index", location=store, collection="films")
    assert (first.location, first.collection, len(first)) == (store, "films", 3)
    first.delete([7])
    first.close()
    with pytest.raises(ValueError, match="has a collection 'films' already: give another name, or replace=True"):
        tt.QdrantIndex.load(tmp_path / "index", location=store, collection="films")
    again = tt.QdrantIndex.load(tmp_path / "index", location=store, collection="films", replace=True)
    assert again.keys.tolist() == sorted(KEYS)
    again.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pl.Series([1, 2, 2**63], dtype=pl.UInt64), r"'x' holds numbers from 2\^63 on"),
        (pl.Series([[1], [], [2**63]], dtype=pl.List(pl.UInt64)), r"'x' holds numbers from 2\^63 on"),
        (pl.Series([0, None, 1001], dtype=pl.Int64).cast(pl.Datetime("ns")), "'x' holds nanoseconds"),
    ],
)
def test_what_qdrant_would_round_is_refused(values: pl.Series, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tt.QdrantIndex(VECTORS, KEYS, pl.DataFrame({"x": values}))


def test_conditions_that_qdrant_would_round_are_refused() -> None:
    times = [dt.datetime(2024, 1, day) for day in (1, 2, 3)]
    index = tt.QdrantIndex(VECTORS, KEYS, pl.DataFrame({"x": pl.Series([1, 2, 3], dtype=pl.UInt64), "time": times}))
    for asked, message in (
        ({"x": 2**63}, r"no numbers from 2\^63 on"),
        ({"x": {"gt": 2**53 + 1}}, "as floats"),
        (
            {"time": {"gt": "2024-01-01T00:00:00.000000001"}},
            "by microseconds, and what attribute 'time' is .* is finer",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(VECTORS, 1, where=tt.Filter.parse(asked))
