"""What infer_columns proposes for tables whose meaning is known."""

import datetime

import numpy as np
import polars as pl
import pytest

import twotower as tt
from twotower import Tags

ROWS = 2000


def shop() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(0)
    items = pl.DataFrame(
        {
            "product_id": [f"p{n}" for n in range(200)],
            "title": [f"large red thing number {n}" for n in range(200)],
            "price": rng.lognormal(2, 2, 200),
            "weight": [None if n % 4 == 0 else float(n) for n in range(200)],
            "categories": [["a", "b"][: n % 3] for n in range(200)],
            "bought_with": [[f"p{(n + k) % 200}" for k in range(3)] for n in range(200)],
            "image": [list(map(float, rng.normal(size=4))) for _ in range(200)],
            "url": [f"https://shop/{n}" for n in range(200)],
            "listed": ["$1.50" if n % 2 else "$20.00" for n in range(200)],
            "currency": ["EUR"] * 200,
        }
    )
    users = pl.DataFrame(
        {
            "customer_id": range(300),
            "age": rng.integers(18, 90, 300),
            "since": [datetime.date(2020, 1, 1 + n % 28) for n in range(300)],
        }
    )
    events = pl.DataFrame(
        {
            "customer_id": rng.integers(0, 300, ROWS),
            "product_id": [f"p{n}" for n in rng.integers(0, 200, ROWS)],
            "session_id": range(ROWS),
            "clicked_at": 1_600_000_000_000 + rng.integers(0, 10**9, ROWS),
            "device": rng.choice(["phone", "desk"], ROWS),
            "rating": rng.integers(1, 6, ROWS),
            "bought": rng.integers(0, 2, ROWS),
            "review": ["so good indeed"] * (ROWS - 1) + ["bad"],
        }
    ).with_columns(brand=pl.col("product_id").str.slice(0, 2), country=pl.col("customer_id") % 7)
    return events, items, users


def test_what_a_shop_logs() -> None:
    found = tt.infer_columns(*shop())
    both = (Tags.USER, Tags.CONTEXT)
    assert found.columns == {
        "customer_id": tt.Categorical(Tags.USER_ID),
        "product_id": tt.Categorical(Tags.ITEM_ID),
        "clicked_at": tt.Timestamp(both, unit="ms"),
        "device": tt.Categorical(both),
        "rating": tt.Numeric(Tags.REGRESSION, scale=None),
        "bought": tt.Numeric(Tags.BINARY_CLASSIFICATION, scale=None),
        "brand": tt.Categorical(Tags.ITEM),
        "country": tt.Categorical(Tags.USER),
        "title": tt.Text(Tags.ITEM),
        "price": tt.Numeric(Tags.ITEM, scale="log"),
        "weight": tt.Numeric(Tags.ITEM, fill="mean", indicator=True),
        "categories": tt.Categorical(Tags.ITEM),
        "bought_with": tt.Categorical(Tags.ITEM, share="product_id"),
        "image": tt.Vector(Tags.ITEM),
        "age": tt.Numeric(Tags.USER),
        "since": tt.Timestamp(Tags.USER),
    }
    why = dict(found.report.select("column", "why").iter_rows())
    assert why["session_id"].startswith("left out: it names a session")
    assert why["review"] == "left out: it comes after the event, and is unknown when recommending"
    assert why["url"] == "left out: addresses, or data in a text"
    assert why["listed"].startswith("left out: numbers written as text")
    assert why["currency"] == "left out: it has one value only"
    assert "25% are missing" in why["weight"]
    assert "why" in str(found)


def test_its_proposal_fits_and_trains() -> None:
    events, items, users = shop()
    made = tt.Preprocessor(tt.infer_columns(events, items, users).columns).fit(events, items, users)
    train = made.transform(events.join(items, on="product_id").join(users, on="customer_id"))
    features = train.schema.excluding_targets()
    query, candidate = (tt.Encoder(features.select_by_tag(side), tt.MLPBlock([8])) for side in (Tags.USER, Tags.ITEM))
    model = tt.TwoTowerModelV2(query, candidate)
    model.compile()
    model.fit(train, batch_size=256, verbose=False, health_steps=0)
    assert model.loss(tt.sample_batch(train, 64)).isfinite()


def test_names_that_are_not_usual_are_asked_for() -> None:
    with pytest.raises(ValueError, match="no column is named like an id of the item among .*say it, item="):
        tt.infer_columns({"who": [1], "what": [2]})
    with pytest.raises(ValueError, match="unknown column 'wat'"):
        tt.infer_columns({"who": [1], "what": [2]}, item="wat")
    with pytest.raises(ValueError, match="at least one table"):
        tt.infer_columns()
    found = tt.infer_columns({"who": [1, 1, 2], "what": [2, 3, 3]}, user="who", item="what")
    assert found.columns == {"who": tt.Categorical(Tags.USER_ID), "what": tt.Categorical(Tags.ITEM_ID)}


def test_ids_that_are_missing_are_told() -> None:
    found = tt.infer_columns({"user_id": [1, 1, 2, None], "item_id": ["a", None, None, "b"]}, {"item_id": ["a", "b"]})
    why = dict(found.report.select("column", "why").iter_rows())
    assert why["item_id"].startswith("the item's id; 2 of 6 rows have none: no tower knows the item of these rows")
    assert why["user_id"].startswith("the user's id; 1 of 4 rows have none")
    whole = tt.infer_columns({"user_id": [1], "item_id": ["a"]}).report["why"].to_list()
    assert whole == ["the user's id", "the item's id"]


def test_only_the_first_rows_are_looked_at(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("twotower.data.inference.LOOKED_AT", 3)
    frame = pl.DataFrame({"item_id": [1, 2, 3, 4], "kind": ["a", "b", "a", None]})
    frame.write_parquet(tmp_path / "x.parquet", row_group_size=2)
    for table in (frame, frame.lazy(), tmp_path / "x.parquet"):
        assert tt.infer_columns(table).report["nulls"].to_list() == [0.0, 0.0]


def test_small_numbers_in_lists_are_ids_of_items_by_accident() -> None:
    genres = [[n % 20, (n + 7) % 20] for n in range(200)]  # every one of them is an item's id too
    related = [[(n + 1) % 200, (n + 2) % 200] for n in range(200)]
    found = tt.infer_columns({"item_id": list(range(200)), "genres": genres, "related": related})
    assert found.columns["genres"] == tt.Categorical(Tags.ITEM)
    assert found.columns["related"] == tt.Categorical(Tags.ITEM, share="item_id")
