"""TopKEncoder against matmul + sort; ids come back as themselves."""

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import twotower as tt
from tests.worlds import clubs, id_column, towers
from twotower import Tags

USER = tt.Schema([id_column("user_id", Tags.USER_ID, 99)])
USERS = tt.Dataset({"user_id": list(range(100))}, USER)


def tower(width: int = 8) -> tt.Encoder:
    torch.manual_seed(0)
    return tt.Encoder(USER, tt.MLPBlock([width], no_activation_last_layer=True))


def test_it_is_matmul_and_sort() -> None:
    encoder, vectors = tower(), torch.randn(1000, 8)
    top = tt.TopKEncoder(encoder, vectors, k=5)
    found = top.predict(USERS, batch_size=32)
    assert found.scores.shape == found.ids.shape == (100, 5)
    with torch.no_grad():
        scores = encoder.eval()(USERS.batch()) @ vectors.T
    expected = scores.sort(dim=1, descending=True)
    assert torch.equal(found.ids, expected.indices[:, :5])
    torch.testing.assert_close(found.scores, expected.values[:, :5])
    small_tiles = tt.ExactIndex(vectors, tile=7).search(encoder(USERS.batch()), 5)
    assert torch.equal(small_tiles[1], found.ids)


def test_k_by_call() -> None:
    top = tt.TopKEncoder(tower(), torch.randn(50, 8), k=5)
    batch = USERS.batch()
    assert top(batch).ids.shape == (100, 5)
    assert top(batch, k=20).ids.shape == (100, 20)
    assert top.predict(USERS, k=30).ids.shape == (100, 30)
    with pytest.raises(ValueError, match="k must be from 1 to the number of candidates, 50; got 51"):
        top(batch, k=51)


def test_big_ids_and_string_ids_come_back() -> None:
    vectors = torch.randn(3, 8)
    big = tt.TopKEncoder(tower(), vectors, identifiers=[3_000_000_000, 7, 2**40], k=3)
    assert set(big(USERS.batch()).ids[0].tolist()) == {3_000_000_000, 7, 2**40}
    named = tt.TopKEncoder(tower(), vectors, identifiers=["a", "b", "c"], k=3)
    found = named.predict(USERS)
    assert isinstance(found.ids, np.ndarray)
    assert set(found.ids[0]) == {"a", "b", "c"}
    frame = named.batch_predict(USERS, k=2, columns=["user_id"])
    assert frame.column_names == ["user_id", "score_0", "score_1", "id_0", "id_1"]
    assert frame.to_polars()["id_0"].to_list() == found.ids[:, 0].tolist()


def test_candidates_can_be_replaced() -> None:
    top = tt.TopKEncoder(tower(), torch.randn(10, 8), k=1)
    target = torch.zeros(4, 8)
    with torch.no_grad():
        target[2] = top.query_encoder.eval()(USERS.batch())[0] * 100
    top.index_candidates(target, [10, 11, 12, 13])
    assert top(USERS.batch()).ids[0].tolist() == [12]


def test_errors() -> None:
    encoder = tower()
    with pytest.raises(ValueError, match="no candidates yet"):
        tt.TopKEncoder(encoder)(USERS.batch())
    with pytest.raises(ValueError, match=r"candidates must be \(N, 8\) like the query tower's vectors, got \(10, 9\)"):
        tt.TopKEncoder(encoder, torch.randn(10, 9))
    with pytest.raises(ValueError, match=r"must be \(N, 8\).*got \(10,\)"):
        tt.TopKEncoder(encoder, torch.randn(10))
    with pytest.raises(ValueError, match="10 candidate vectors came with 9 ids"):
        tt.TopKEncoder(encoder, torch.randn(10, 8), identifiers=list(range(9)))
    with pytest.raises(ValueError, match="must be unique: 1 of 3 repeat"):
        tt.TopKEncoder(encoder, torch.randn(3, 8), identifiers=[1, 2, 1])
    with pytest.raises(
        ValueError, match="unknown topk_layer 'hnws': choose from 'brute-force-topk', .* Did you mean 'hnsw'"
    ):
        tt.TopKEncoder(encoder, topk_layer="hnws")
    with pytest.raises(ValueError, match="must be integers or strings, got double"):
        tt.TopKEncoder(encoder, torch.randn(2, 8), identifiers=[0.5, 1.5])  # type: ignore[list-item]


def test_from_a_model() -> None:
    train = clubs(rows=1000)
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    top = model.to_top_k_encoder(k=7)
    users = tt.unique_rows_by_features(train, Tags.USER)
    items = tt.unique_rows_by_features(train, Tags.ITEM)
    again = model.to_top_k_encoder(items, k=7)
    assert torch.equal(top.predict(users).ids, again.predict(users).ids)
    flat = model.to_top_k_encoder(strategy="flat", index_options={"exact_below": 0}, k=7)
    assert torch.equal(top.predict(users).ids, flat.predict(users).ids)
    with pytest.raises(ValueError, match="must be unique"):
        model.to_top_k_encoder(train)
    # ids that no tower reads: raw ones from another column
    raw = tt.Dataset(items.table.append_column("raw", items.table["item_id"].cast("string")), items.schema)
    named = model.to_top_k_encoder(raw, candidate_id="raw", k=2)
    assert named.predict(users).ids[0].tolist() == [str(i) for i in top.predict(users).ids[0, :2].tolist()]


def test_save_and_load(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for identifiers in ([3_000_000_000, 1, 2], ["x", "y", "z"]):
        top = tt.TopKEncoder(tower(), torch.randn(3, 8), identifiers=identifiers, k=2)
        top.save(tmp_path / "top")
        again = tt.TopKEncoder.load(tmp_path / "top")
        assert again.k == 2
        one, other = top.predict(USERS), again.predict(USERS)
        torch.testing.assert_close(one.scores, other.scores)
        assert np.array_equal(one.ids, other.ids)


def test_evaluate_is_the_models_evaluate() -> None:
    train, test = clubs(rows=1000), clubs(rows=200, seed=2)
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    top = model.to_top_k_encoder(k=5)
    assert top.evaluate(test, "item_id") == pytest.approx(model.evaluate(test))
    films = [f"film {i}" for i in model.catalog.ids.tolist()]
    named = tt.TopKEncoder(top.query_encoder, top.index.vectors_of(top.index.keys), films)
    words = pl.format("film {}", pl.col("item_id")).alias("film")
    as_text = tt.Dataset(test.to_polars().with_columns(words), test.schema)
    assert named.evaluate(as_text, "film") == pytest.approx(model.evaluate(test))
    with pytest.raises(ValueError, match="the evaluation data lacks a column. unknown column 'item'"):
        top.evaluate(test, "item")


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw", "scann", "qdrant"])
def test_every_kind_of_index(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    encoder, vectors, names = tower(), torch.randn(300, 8), [f"film {n}" for n in range(300)]
    exact = tt.TopKEncoder(encoder, vectors, names, k=4).predict(USERS)
    options = {"location": str(tmp_path / "store")} if kind == "qdrant" else {}
    top = tt.TopKEncoder(encoder, vectors, names, topk_layer=kind, index_options=options, k=4)
    found = top.predict(USERS)
    assert np.array_equal(found.ids, exact.ids)
    torch.testing.assert_close(found.scores, exact.scores)
    top.save(tmp_path / "top")
    if isinstance(top.index, tt.QdrantIndex):
        top.index.close()
    again = tt.TopKEncoder.load(tmp_path / "top")
    assert type(again.index) is type(top.index)
    assert np.array_equal(again.predict(USERS).ids, exact.ids)


def test_an_index_with_options_or_already_built(tmp_path) -> None:  # type: ignore[no-untyped-def]
    encoder, vectors = tower(), torch.randn(300, 8)
    options = {"nlist": 20, "exact_below": 0, "queries": torch.randn(50, 8), "target_recall": 1.0}
    top = tt.TopKEncoder(encoder, vectors, topk_layer=tt.IVFIndex, index_options=options)
    assert isinstance(top.index, tt.IVFIndex)
    assert top.index.nlist == 20
    top.save(tmp_path / "top")
    again = tt.TopKEncoder.load(tmp_path / "top").index_candidates(
        vectors[:200]
    )  # once more the same kind, with the options
    assert isinstance(again.index, tt.IVFIndex)
    assert (again.index.nlist, len(again.index)) == (20, 200)
    with pytest.raises(TypeError, match="IVFIndex: unknown option 'nlists'.*Did you mean 'nlist'"):
        tt.TopKEncoder(encoder, vectors, topk_layer="ivf", index_options={"nlists": 3})

    keys = torch.arange(300) * 10
    built = tt.TopKEncoder(encoder, topk_layer=tt.ExactIndex(vectors, keys), k=3)
    expected = tt.TopKEncoder(encoder, vectors, keys, k=3).predict(USERS)
    assert torch.equal(built.predict(USERS).ids, expected.ids)
    best = int(expected.ids[0, 0])
    built.index.delete([best])  # the index's keys are the ids
    assert best not in built.predict(USERS).ids
    built.save(tmp_path / "built")
    assert torch.equal(tt.TopKEncoder.load(tmp_path / "built").predict(USERS).ids, built.predict(USERS).ids)
    with pytest.raises(ValueError, match="an Index that is built holds its candidates"):
        tt.TopKEncoder(encoder, vectors, topk_layer=tt.ExactIndex(vectors))
    with pytest.raises(ValueError, match="the index holds vectors of width 9, the query tower gives 8"):
        tt.TopKEncoder(encoder, topk_layer=tt.ExactIndex(torch.randn(3, 9)))


@pytest.mark.parametrize("ids", [[3_000_000_000 + n for n in range(50)], [f"film {n}" for n in range(50)]])
@pytest.mark.parametrize("stored", [False, True])
def test_predictions_are_written_as_they_are_made(ids, stored, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("twotower.top_k.ROW_GROUP", 32)
    top = tt.TopKEncoder(tower(), torch.randn(50, 8), ids, k=3)
    frame = USERS.to_polars().with_columns(name=pl.format("user {}", "user_id"))
    frame.write_parquet(tmp_path / "users.parquet", row_group_size=41)
    users = tt.Dataset(tmp_path / "users.parquet" if stored else frame, USER)
    expected = top.batch_predict(users, columns=["name"]).to_polars()
    written = top.batch_predict(users, 10, columns=["name"], path=tmp_path / "out" / "top.parquet")
    assert_frame_equal(written.to_polars(), expected)  # but for the rounding of batches of another size
    assert written.files is not None
    assert len(written.files.groups) == 3  # in parts: at least 32 rows each
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["top.parquet"]


def test_what_breaks_off_leaves_the_old_predictions(tmp_path) -> None:  # type: ignore[no-untyped-def]
    top = tt.TopKEncoder(tower(), torch.randn(50, 8), k=3)
    file = tmp_path / "top.parquet"
    top.batch_predict(USERS, path=file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="must be from 1"):
        top.batch_predict(USERS, k=51, path=file)
    with pytest.raises(ValueError, match="unknown column 'user'"):
        top.batch_predict(USERS, columns=["user"], path=file)
    with pytest.raises(ValueError, match="no rows"):
        top.batch_predict(tt.Dataset(USERS.table.slice(0, 0), USER), path=file)
    assert file.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["top.parquet"]
