"""What the form of a query asks for, and what is made of it."""

import datetime as dt

import polars as pl
import pytest
import torch

import twotower as tt
from twotower import Bucketized, Categorical, Hashed, Numeric, Tags, Text, Timestamp
from twotower.serving.explorer.forms import QueryField, query_fields, read_query, typed_id
from twotower.serving.explorer.showing import words

EVENTS = pl.DataFrame(
    {
        "item": ["a", "b", "a", "b"],
        "tags": [["x", "y"], ["x"], [], ["z"]],
        "shop": [7, 8, 7, 9],
        "spent": [1.0, 2.0, 3.0, 6.0],
        "age": [20, 30, 40, 50],
        "when": ["2024-05-31", "2024-06-01", None, "2024-06-02T10:00:00"],
        "wish": ["red shoes", "blue", "", "shoes"],
        "device": ["p1", "p2", "p3", "p4"],
    }
)
COLUMNS = {
    "item": Categorical(Tags.ITEM_ID),
    "tags": Categorical(Tags.USER),
    "shop": Categorical(Tags.USER),
    "spent": Numeric(Tags.USER),
    "age": Bucketized(Tags.USER, buckets=(30.0,)),
    "when": Timestamp(Tags.USER, parts=("weekday",)),
    "wish": Text(Tags.USER, min_count=1),
    "device": Hashed(Tags.USER, buckets=4),
}


def retriever(users: pl.DataFrame | None = None) -> tt.Retriever:
    preprocessor = tt.Preprocessor(COLUMNS).fit(EVENTS)
    torch.manual_seed(0)
    towers = [tt.Encoder(preprocessor.schema.select_by_tag(tag), tt.MLPBlock([4])) for tag in (Tags.USER, Tags.ITEM)]
    store = None if users is None else tt.ParquetFeatures(users, key="user")
    return tt.Retriever(tt.TwoTowerModelV2(*towers), preprocessor, {"item": ["a", "b"]}, users=store)


def test_fields_are_what_the_declarations_say() -> None:
    held = retriever()
    found = {one.name: (one.kind, one.listed, one.needed, one.picks) for one in query_fields(held)}
    assert found == {
        "tags": ("text", True, False, ["x", "y", "z"]),
        "shop": ("whole", False, False, ["7", "8", "9"]),
        "spent": ("number", False, True, []),
        "age": ("number", False, False, []),
        "when": ("moment", False, False, []),
        "wish": ("text", False, False, []),
        "device": ("text", False, False, []),
    }
    examples = {one.name: one.example for one in query_fields(held)}
    assert examples["spent"] == "3"  # the mean
    assert examples["shop"] == "7"
    given = {
        "tags": "x\n z \n",
        "shop": "8",
        "spent": "1e1",
        "age": "-3.5",
        "when": "2024-05-31",
        "wish": "shoes",
        "device": "9",
    }
    query, errors = read_query(query_fields(held), given)
    assert errors == []
    assert query == {
        "tags": ["x", "z"], "shop": 8, "spent": 10.0, "age": -3.5, "when": "2024-05-31", "wish": "shoes", "device": "9"
    }  # fmt: skip
    assert len(held.recommend(query, k=2)) == 2
    query, errors = read_query(query_fields(held), {"spent": "3", "when": "1717113600"})
    assert query == dict.fromkeys(COLUMNS.keys() - {"item"}) | {"spent": 3.0, "when": 1717113600}
    assert len(held.recommend(query, k=2)) == 2


def test_a_feature_store_tells_the_types() -> None:
    users = EVENTS.drop("item").with_columns(
        user=pl.Series([1, 2, 3, 4]), when=pl.Series([dt.datetime(2024, 5, 31)] * 4)
    )
    fields = query_fields(retriever(users))
    assert {one.name: one.kind for one in fields}["when"] == "time"
    assert {one.name: one.example for one in fields} == {
        "tags": "", "shop": "7", "spent": "1", "age": "20", "when": "2024-05-31 00:00:00", "wish": "red shoes", "device": "p1"
    }  # fmt: skip
    query, errors = read_query(fields, {one.name: one.example for one in fields})
    assert errors == []
    assert query["when"] == dt.datetime(2024, 5, 31)
    assert query["age"] == 20


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("whole", "1.5", "'1.5' is not a whole number"),
        ("whole", "x", "'x' is not a whole number"),
        ("number", "nan", "'nan' is not a number"),
        ("number", "1e999", "'1e999' is not a number"),
        ("time", "soon", "'soon' is not a date or a time"),
        ("flag", "yes", "'yes' is neither true nor false"),
        ("text", "a\nb", "it takes one value"),
        ("text", " ", "may not be missing for this model"),
    ],
)
def test_what_does_not_fit_is_told(kind: str, text: str, words: str) -> None:
    _, errors = read_query([QueryField("c", kind, False, True, "")], {"c": text})
    assert len(errors) == 1
    assert words in errors[0]


def test_ids_are_of_the_type_of_their_column() -> None:
    assert typed_id("007", pl.String()) == "007"
    assert typed_id("-7", pl.Int64()) == -7
    for text in ("7.0", "1_000", "seven", "", "٧", "9" * 30):
        assert typed_id(text, pl.Int64()) is None, text


def test_values_in_words() -> None:
    for value, said in (
        (1994, "1994"), (-0.5, "-0.5"), (1e20, "1e+20"), ([], "–"), ([None], "–"), (["a", None], "a"), (b"xy", "2 bytes"),
        (dt.date(2024, 5, 31), "2024-05-31"), (dt.time(10), "10:00:00"), (False, "no"), (list(range(20)), "0, 1 … (20 in all)"),
        (float("nan"), "–"), ("x" * 500, "x" * 399 + "…"),
    ):  # fmt: skip
        assert words(value, 2) == said
