"""Raw queries in, raw ids out, by query, user, history and item."""

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


USERS = pl.DataFrame({"user_id": [f"u{n}" for n in range(7)], "seen": [[3_000_000_000 + n, 5] for n in range(7)]})


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
    return tt.Retriever(model, preprocessor, ITEMS, users=tt.ParquetFeatures(USERS, key="user_id"))


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
    with pytest.raises(ValueError, match=r"a query needs \['user_id'\], but one has \['user'\]: 'user_id' is missing"):
        retriever.recommend([{"user": "u1"}])
    with pytest.raises(ValueError, match=r"but these queries have .* and 0 rows"):
        retriever.recommend([])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.recommend([{"user_id": "u1"}], k=0)
    with pytest.raises(ValueError, match="column 'user_id' holds Int64, but its vocabulary was learnt from String"):
        retriever.recommend([{"user_id": 3}])
    with pytest.raises(ValueError, match="a different id in each row; found 11 distinct of 22"):
        tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, pl.concat([ITEMS, ITEMS]))


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


def test_users_are_looked_up_and_do_not_get_what_they_have_seen(retriever: tt.Retriever) -> None:
    asked = ["u5", "u1", "u5"]
    found = retriever.recommend_users(asked, k=4)
    by_hand = retriever.recommend(
        [{"user_id": u} for u in asked], k=4, exclude=[[3_000_000_005], [3_000_000_001], [3_000_000_005]]
    )
    assert found.equals(by_hand)
    again = retriever.recommend_users(asked, k=4, seen=True)
    assert again.equals(retriever.recommend([{"user_id": u} for u in asked], k=4))
    more = retriever.recommend_users(["u5"], k=11, exclude=[[3_000_000_001]])
    assert set(ITEMS["item_id"]) - set(more["item_id"]) == {3_000_000_001, 3_000_000_005}
    with pytest.raises(ValueError, match="nothing is known of 1 of 2 users, such as 'who'"):
        retriever.recommend_users(["u1", "who"])
    with pytest.raises(ValueError, match="there is no feature store"):
        bare = tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, ITEMS)
        bare.recommend_users(["u1"])
    with pytest.raises(ValueError, match=r"the feature store lacks \['user_id'\]"):
        users = tt.ParquetFeatures({"id": [1]}, key="id")
        tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, ITEMS, users=users)


def test_filters_and_whitelists_are_the_ranking_with_the_others_struck_out(retriever: tt.Retriever) -> None:
    everything = retriever.recommend([{"user_id": "u3"}, {"user_id": None}], k=11)
    dear = retriever.recommend(
        [{"user_id": "u3"}, {"user_id": None}], k=4, where={"price": {"gte": 4}, "title": {"ne": "film 7"}}
    )
    expected = everything.filter((pl.col("price") >= 4) & (pl.col("title") != "film 7"))
    expected = expected.with_columns(rank=pl.col("query").cum_count().over("query").cast(pl.Int64)).filter(
        pl.col("rank") <= 4
    )
    assert dear.equals(expected)
    some = [3_000_000_002, 3_000_000_009, 77]
    assert set(retriever.recommend([{"user_id": "u3"}], only=some)["item_id"]) == set(some[:2])
    near = retriever.similar([3_000_000_002], where={"price": {"lt": 4}})
    assert sorted(near["price"]) == [0.0, 1.0, 3.0]
    assert near["score"].is_sorted(descending=True)
    with pytest.raises(ValueError, match="unknown attribute 'prise'"):
        retriever.recommend([{"user_id": "u3"}], where={"prise": 3})


def test_a_history_without_a_tower_that_reads_it_goes_by_its_items(retriever: tt.Retriever) -> None:
    history = [3_000_000_002, 3_000_000_007]
    found = retriever.recommend_histories([history, history[:1]], k=5)
    unit = torch.nn.functional.normalize(retriever.bundle.vectors, dim=1)
    near = unit @ torch.nn.functional.normalize((unit[2] + unit[7]) / 2, dim=0)
    near[[2, 7]] = -2
    assert found["item_id"][:5].to_list() == [3_000_000_000 + i for i in near.topk(5).indices.tolist()]
    assert found["score"][:5].to_list() == pytest.approx(near.topk(5).values.tolist(), abs=1e-6)
    assert found["item_id"][5:].to_list() == retriever.similar(history[:1], k=5)["item_id"].to_list()
    assert 3_000_000_002 in retriever.recommend_histories([history], seen=True)["item_id"]
    assert retriever.recommend_histories([[5, *history]], k=5).equals(found.filter(pl.col("query") == 0))
    for nothing in ([5], []):
        with pytest.raises(ValueError, match="a history holds no item that is known"):
            retriever.recommend_histories([history, nothing])


def test_a_history_goes_through_a_tower_that_reads_it() -> None:
    columns = {
        "item_id": Categorical(Tags.ITEM_ID),
        "past": Categorical(Tags.USER, share="item_id"),
        "age": Numeric(Tags.USER),
    }
    events = EVENTS.with_columns(past=pl.lit([3_000_000_001, 3_000_000_002]), age=pl.lit(30.0))
    preprocessor = tt.Preprocessor(columns).fit(events, ITEMS.select("item_id"))
    query, candidate = (
        tt.Encoder(preprocessor.schema.select_by_tag(t), tt.MLPBlock([8])) for t in (Tags.USER, Tags.ITEM)
    )
    retriever = tt.Retriever(tt.TwoTowerModelV2(query, candidate), preprocessor, ITEMS)
    assert retriever.history_column == "past"
    history = [3_000_000_004, 3_000_000_009]
    found = retriever.recommend_histories([history], k=3, context={"age": 31.0})
    by_hand = retriever.recommend([{"past": history, "age": 31.0}], k=3, exclude=[history])
    assert found.equals(by_hand)
    with pytest.raises(ValueError, match="column 'age' has .* missing numbers"):
        retriever.recommend_histories([history])
    assert not found["item_id"].is_in(history).any()


def test_an_answer_does_not_depend_on_who_else_asks(retriever: tt.Retriever) -> None:
    """Bit for bit: the same query alone, with another, and among many."""
    many = [{"user_id": f"u{n % 8}"} for n in range(100)]
    together = retriever.recommend(many, k=5)
    for rows in (1, 2, 3, 7, 31, 33):
        some = retriever.recommend(many[:rows], k=5)
        assert some.equals(together.filter(pl.col("query") < rows))


@pytest.mark.parametrize(
    ("queries", "says"),
    [
        ([{"user_id": "u1"}, {"user_id": 3}], "values of several types: int, str"),
        ([{"user_id": "u1"}, {}], r"one has \[\]: 'user_id' is missing"),
        ([{"user_id": {"a": 1}}], "holds Struct"),
        ([{"user_id": ["u1"]}], "user_id"),
        (["u1"], "got a list with a str"),
    ],
)
def test_nothing_in_a_query_is_ignored_or_made_to_fit(
    queries: list[object], says: str, retriever: tt.Retriever
) -> None:
    with pytest.raises(ValueError, match=says):
        retriever.recommend(queries)  # type: ignore[arg-type]


def test_ids_of_another_type_could_never_be_left_out(retriever: tt.Retriever) -> None:
    asked = [{"user_id": "u3"}]
    for wrong in (["3000000001"], [3_000_000_001.0], [True]):
        with pytest.raises(ValueError, match="ids of items are integers, as column 'item_id' holds them; got"):
            retriever.recommend(asked, exclude=[wrong])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="ids of items are integers"):
            retriever.recommend(asked, only=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ids of items are integers"):
            retriever.recommend_histories([wrong])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="ids of items are integers"):
            retriever.similar(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids come in a list, got 'film'"):
        retriever.recommend(asked, exclude=["film"])
    seen = USERS.with_columns(pl.col("seen").cast(pl.List(pl.String)))
    with pytest.raises(ValueError, match="lists seen items as String, but the items' ids are Int64"):
        users = tt.ParquetFeatures(seen, key="user_id")
        tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, ITEMS, users=users)


def test_a_context_may_hold_lists_and_goes_before_what_is_stored() -> None:
    columns = {
        "item_id": Categorical(Tags.ITEM_ID),
        "past": Categorical(Tags.USER, share="item_id"),
        "age": Numeric(Tags.USER),
    }
    events = EVENTS.with_columns(past=pl.lit([3_000_000_001, 3_000_000_002]), age=pl.lit(30.0))
    preprocessor = tt.Preprocessor(columns).fit(events, ITEMS.select("item_id"))
    query, candidate = (
        tt.Encoder(preprocessor.schema.select_by_tag(t), tt.MLPBlock([8])) for t in (Tags.USER, Tags.ITEM)
    )
    users = pl.DataFrame({"id": [1, 2], "past": [[3_000_000_003], []], "age": [31.0, None]})
    store = tt.ParquetFeatures(users, key="id")
    retriever = tt.Retriever(tt.TwoTowerModelV2(query, candidate), preprocessor, ITEMS, users=store)
    now = {"past": [3_000_000_004, 3_000_000_009], "age": 20.0}
    found = retriever.recommend_users([1, 2, 1], k=3, context=now)
    assert found.equals(retriever.recommend([now] * 3, k=3))
    with pytest.raises(ValueError, match="the model does not read 'ages'"):
        retriever.recommend_users([1], context={"ages": 3})
    with pytest.raises(
        ValueError, match="nothing is known of 1 of 2 users, such as 7"
    ):  # and not that its age is missing
        retriever.recommend_users([1, 7])


def test_nothing_asked_and_nothing_left(retriever: tt.Retriever, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for found in (retriever.recommend_users([]), retriever.recommend_histories([]), retriever.similar([])):
        assert found.columns == ["query", "rank", "score", "item_id", "price", "title"]
        assert not len(found)
    empty = tt.Retriever(retriever.bundle.model, retriever.bundle.preprocessor, ITEMS)
    empty.delete(ITEMS["item_id"].to_list())
    assert not len(empty.recommend([{"user_id": "u1"}]))
    empty.save(tmp_path / "bundle")
    again = tt.Retriever.load(tmp_path / "bundle")
    assert not len(again.recommend([{"user_id": "u1"}]))
    again.upsert(ITEMS)
    assert again.recommend([{"user_id": "u1"}]).equals(retriever.recommend([{"user_id": "u1"}]))
