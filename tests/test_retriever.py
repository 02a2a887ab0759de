"""Raw queries in, raw ids out; the same after save and load; a damaged bundle is refused."""

import polars as pl
import pytest
import torch

import twotower as tt
from twotower import Categorical, Numeric, Tags

EVENTS = pl.DataFrame(
    {"user_id": [f"u{i % 7}" for i in range(70)], "item_id": [3_000_000_000 + (i * i) % 11 for i in range(70)]}
)
ITEMS = pl.DataFrame({"item_id": [3_000_000_000 + i for i in range(11)], "price": [float(i) for i in range(11)]})
ITEMS = ITEMS.with_columns(title=pl.lit("film ") + pl.col("price").cast(pl.Int64).cast(pl.String))


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    preprocessor = tt.Preprocessor(
        {
            "user_id": Categorical((Tags.USER_ID,)),
            "item_id": Categorical((Tags.ITEM_ID,)),
            "price": Numeric((Tags.ITEM,)),
        }
    ).fit(EVENTS, ITEMS)
    train = preprocessor.transform(EVENTS.join(ITEMS, on="item_id"))
    torch.manual_seed(0)
    query, candidate = (tt.Encoder(train.schema.select_by_tag(t), tt.MLPBlock([8])) for t in (Tags.USER, Tags.ITEM))
    model = tt.TwoTowerModelV2(query, candidate)
    model.fit(train, epochs=2, batch_size=16, verbose=False, catalog=preprocessor.transform(ITEMS))
    return tt.Retriever(model, preprocessor, ITEMS)


def test_recommendations_are_the_towers_dot_products(retriever: tt.Retriever) -> None:
    found = retriever.recommend([{"user_id": "u3"}, {"user_id": "nobody"}], k=4)
    assert found.columns == ["query", "rank", "score", "item_id", "price", "title"]
    assert found["query"].to_list() == [0] * 4 + [1] * 4
    assert found["rank"].to_list() == [1, 2, 3, 4] * 2
    model, preprocessor = retriever.bundle.model, retriever.bundle.preprocessor
    with torch.no_grad():
        query = model.query(preprocessor.transform({"user_id": ["u3", "nobody"]}).batch())
        items = model.candidate(preprocessor.transform(ITEMS).batch())
    best = (query @ items.T).topk(4)
    assert found["item_id"].to_list() == [3_000_000_000 + i for i in best.indices.flatten().tolist()]
    assert found["score"].to_list() == pytest.approx(best.values.flatten().tolist())
    assert found["title"][0] == f"film {best.indices[0, 0].item()}"


def test_the_same_after_save_and_load(retriever: tt.Retriever, tmp_path) -> None:  # type: ignore[no-untyped-def]
    retriever.save(tmp_path / "bundle")
    again = tt.Retriever.load(tmp_path / "bundle")
    queries = pl.DataFrame({"user_id": ["u1", None, "u6"]})
    assert again.recommend(queries, k=5).equals(retriever.recommend(queries, k=5))
    assert again.similar([3_000_000_004], k=3).equals(retriever.similar([3_000_000_004], k=3))


def test_excluded_items_do_not_come(retriever: tt.Retriever) -> None:
    everything = retriever.recommend([{"user_id": "u3"}], k=11)["item_id"].to_list()
    left = retriever.recommend([{"user_id": "u3"}], k=11, exclude=[[*everything[:4], 5]])
    assert left["item_id"].to_list() == everything[4:]
    assert left["rank"].to_list() == list(range(1, 8))
    with pytest.raises(ValueError, match="one list for each of the 1 queries, got 2"):
        retriever.recommend([{"user_id": "u3"}], exclude=[[], []])


def test_similar_items_by_cosine(retriever: tt.Retriever) -> None:
    found = retriever.similar([3_000_000_002], k=3)
    vectors = torch.nn.functional.normalize(retriever.bundle.vectors, dim=1)
    cosine = vectors @ vectors[2]
    cosine[2] = -2
    assert found["item_id"].to_list() == [3_000_000_000 + i for i in cosine.topk(3).indices.tolist()]
    with pytest.raises(ValueError, match=r"no item has the id 5 \(1 of 2 ids are unknown\)"):
        retriever.similar([3_000_000_002, 5])


def test_wrong_queries_say_so(retriever: tt.Retriever) -> None:
    with pytest.raises(ValueError, match=r"a query needs \['user_id'\], but these queries have \['user'\]"):
        retriever.recommend([{"user": "u1"}])
    with pytest.raises(ValueError, match=r"but these queries have .* and 0 rows"):
        retriever.recommend([])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.recommend([{"user_id": "u1"}], k=0)
    with pytest.raises(ValueError, match="column 'user_id' holds Int64, but its vocabulary was learnt from String"):
        retriever.recommend([{"user_id": 3}])
    with pytest.raises(ValueError, match="a different id in each row; found 11 distinct of 22"):
        tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, pl.concat([ITEMS, ITEMS]))


@pytest.mark.parametrize("name", ["vectors.safetensors", "model/weights.safetensors", "items.parquet"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_bundle_is_refused_by_name(name: str, harm: str, retriever: tt.Retriever, tmp_path) -> None:  # type: ignore[no-untyped-def]
    retriever.save(tmp_path / "bundle")
    file = tmp_path / "bundle" / name
    content = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"is damaged: {name} is missing|{name} was changed or cut short"):
        tt.Retriever.load(tmp_path / "bundle")
    with pytest.raises(ValueError, match="no bundle at"):
        tt.Retriever.load(tmp_path)


def test_one_query_needs_no_list(retriever: tt.Retriever) -> None:
    assert retriever.recommend({"user_id": "u3"}, k=4).equals(retriever.recommend([{"user_id": "u3"}], k=4))


def test_codes_of_another_preprocessor_are_refused(retriever: tt.Retriever) -> None:
    """Of one size, so that nothing else would tell."""
    model, own = retriever.bundle.model, retriever.bundle.preprocessor
    turned = EVENTS.with_columns(
        user_id=pl.lit("u") + (6 - pl.col("user_id").str.slice(1).cast(pl.Int64)).cast(pl.String)
    )
    turned = pl.concat([turned, turned.filter(pl.col("user_id") == "u6")])
    other = tt.Preprocessor(own.columns).fit(turned, ITEMS)
    assert other.schema["user_id"].int_domain == own.schema["user_id"].int_domain
    assert other.vocabulary("user_id").to_list() != own.vocabulary("user_id").to_list()
    with pytest.raises(ValueError, match="column 'user_id' was trained on other ids than this Preprocessor gives"):
        tt.Retriever(model, other, ITEMS)
    grown = own.extend({"user_id": ["newcomer"]})
    with pytest.raises(ValueError, match="after preprocessor.extend, call model.extend"):
        tt.Retriever(model, grown, ITEMS)
