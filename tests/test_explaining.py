"""Why an item has its score, by towers whose every number can be counted on fingers."""

import polars as pl
import pytest
import torch

import twotower as tt
from twotower import Categorical, Numeric, Tags
from twotower.serving.explaining import may_be_missing

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]})
EVENTS = pl.DataFrame({"city": ["x", "y", "x", "y"], "asked": [0.0, 2.0, 0.0, 2.0], "item_id": ["a", "b", "c", "d"]})
# of the items a, b, c, d in this order
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [-1.0, 0.0]])


def hand_made(users: tt.FeatureStore | None = None, history: bool = False) -> tt.Retriever:
    """Item vectors as above; that of a query is (city + asked + mean of the past, 0).

    The city x counts 1, y 2 and none 0; asked is scaled to -1 for 0 and 1 for 2; an item of the past counts 1, 2, 3, 4.
    """
    columns: dict[str, tt.Categorical | tt.Numeric] = {
        "city": Categorical(Tags.USER),
        "asked": Numeric(Tags.USER),
        "item_id": Categorical(Tags.ITEM_ID),
    }
    if history:
        columns["past"] = Categorical(Tags.USER, share="item_id")
    events = EVENTS.with_columns(past=pl.concat_list("item_id")) if history else EVENTS
    preprocessor = tt.Preprocessor(columns).fit(events, ITEMS)
    schema = preprocessor.schema
    inputs = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=1))
    query, candidate = (
        tt.Encoder(inputs.select_by_tag(tag), tt.MLPBlock([2], no_activation_last_layer=True))
        for tag in (Tags.USER, Tags.ITEM)
    )
    model = tt.TwoTowerModelV2(query, candidate)
    with torch.no_grad():
        for name, weight in query.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.shape[0] == 2:  # the dense layer: the sum of all inputs, and nothing
                weight.copy_(torch.tensor([[1.0], [0.0]]).expand_as(weight))
            else:  # a table: codes 0 for missing, 1 for unknown, then the values
                weight.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0])[: len(weight), None])
    retriever = tt.Retriever(model, preprocessor, ITEMS, users=users)
    retriever.bundle.index.upsert(retriever.items.keys, VECTORS, retriever.items.attributes)
    return retriever


def test_a_column_adds_the_score_less_the_score_without_it() -> None:
    """The query is (1 + 1, 0), without its city (1, 0): scores 2 * 3 and 1 * 3 for c = (3, 4), 2 * -1 and 1 * -1 for d."""
    retriever = hand_made()
    c, d = tt.explain(retriever, {"city": "x", "asked": 2.0}, ["c", "d"])
    assert (c.item, d.item) == ("c", "d")
    assert (c.score, d.score) == (pytest.approx(6), pytest.approx(-2))
    assert (c.contributions[0].adds, d.contributions[0].adds) == (pytest.approx(3), pytest.approx(-1))
    assert (c.contributions[0].column, c.contributions[0].value, c.contributions[0].note) == ("city", "x", "")
    asked = c.contributions[1]
    assert (asked.column, asked.value, asked.adds, asked.note) == ("asked", 2.0, None, "may not be missing")
    assert [may_be_missing(retriever, name) for name in ("city", "asked")] == [True, False]


def test_scores_are_those_of_the_recommendations() -> None:
    retriever = hand_made()
    query = {"city": "y", "asked": 0.0}
    table = retriever.recommend([query], k=4)
    found = tt.explain(retriever, query, table["item_id"].to_list())
    assert [e.score for e in found] == pytest.approx(table["score"].to_list(), abs=1e-6)


def test_a_value_that_is_missing_adds_nothing() -> None:
    (why,) = tt.explain(hand_made(), {"city": None, "asked": 1.0}, ["b"])
    assert why.contributions[0].adds == pytest.approx(0.0, abs=1e-7)


def test_the_nearest_of_a_history_by_hand() -> None:
    """cos(c, a) = 3/5, cos(c, b) = 8/(2*5) = 4/5, cos(c, d) = -3/5; an item is not near itself, and "gone" is no item."""
    retriever = hand_made()
    query = {"city": "x", "asked": 0.0}
    (why,) = tt.explain(retriever, query, ["c"], history=["a", "d", "gone", "c", "b", "a"])
    assert why.nearest == [("b", pytest.approx(0.8)), ("a", pytest.approx(0.6)), ("d", pytest.approx(-0.6))]
    (why,) = tt.explain(retriever, query, ["c"], history=["a", "b"], nearest=1)
    assert why.nearest == [("b", pytest.approx(0.8))]
    assert tt.explain(retriever, query, ["c"], history=["gone"])[0].nearest == []
    assert tt.explain(retriever, query, ["c"])[0].nearest == []
    with pytest.raises(ValueError, match="no item has the id 'gone'"):
        tt.explain(retriever, query, ["gone"])
    with pytest.raises(ValueError, match="nearest must be at least 1"):
        tt.explain(retriever, query, ["c"], nearest=0)


def test_users_bring_their_row_what_they_have_seen_and_their_history() -> None:
    rows = pl.DataFrame(
        {"user": [1, 2], "city": ["x", None], "asked": [0.0, 2.0], "past": [["b"], None], "seen": [["b", "d"], []]}
    )
    retriever = hand_made(tt.ParquetFeatures(rows, key="user"), history=True)
    (why,) = tt.explain(retriever, 1, ["c"])  # (1 - 1 + 2, 0)
    assert why.score == pytest.approx(6)
    assert {c.column: c.adds for c in why.contributions} == {
        "city": pytest.approx(3),
        "asked": None,
        "past": pytest.approx(6),
    }
    assert [near for near, _ in why.nearest] == ["b", "d"]
    by_query = tt.explain(retriever, {"city": "x", "asked": 0.0, "past": ["b"]}, ["c"])
    assert by_query[0].contributions == why.contributions
    assert [near for near, _ in by_query[0].nearest] == ["b"]
    assert tt.explain(retriever, 2, ["c"])[0].nearest == []
    with pytest.raises(ValueError, match="nothing is known of the user 9"):
        tt.explain(retriever, 9, ["c"])
    with pytest.raises(ValueError, match="there is no feature store"):
        tt.explain(hand_made(), 1, ["c"])
