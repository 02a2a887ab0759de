"""The explorer's filters: the address says them, and the list is that of all items with the others struck out."""

from collections.abc import Iterator
from typing import Any

import pytest

import twotower as tt
from tests.explorer_world import COUNT, odd_retriever

pytest.importorskip("litestar")
pytest.importorskip("jinja2")

from litestar.testing import TestClient

from tests.explorer_pages import Page, get, results, visiting
from twotower.serving.explorer.site import address


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    return odd_retriever()


@pytest.fixture(scope="module")
def client(retriever: tt.Retriever) -> Iterator[TestClient[Any]]:
    with visiting(retriever) as made:
        yield made


def filtered(client: TestClient[Any], status: int = 200, **params: Any) -> Page:
    return get(client, "/item/i0", status, k=200, **params)


@pytest.mark.parametrize(
    ("params", "keep"),
    [
        ({"in.genres": "Drama"}, lambda row: "Drama" in row["genres"]),
        ({"in.genres": ["Drama", "<i>Noir</i>"]}, lambda row: {"Drama", "<i>Noir</i>"} & set(row["genres"])),
        ({"min.year": "1960", "max.year": "1970.5"}, lambda row: row["year"] and 1960 <= row["year"] <= 1970),
        ({"max.price": "1e0"}, lambda row: row["price"] <= 1),
        ({"in.color": "true"}, lambda row: row["color"] is True),
        ({"in.color": ["true", "false"]}, lambda row: row["color"] is not None),
        ({"min.day": "2020-01-20"}, lambda row: row["day"].day >= 20),
        ({"in.codes": "2"}, lambda row: 2 in row["codes"]),
        ({"in.title": "Die Brücke"}, lambda row: row["title"] == "Die Brücke"),
        (
            {"in.a b/c": "x", "min.year": "1980"},
            lambda row: row["a b/c"] == "x" and row["year"] and row["year"] >= 1980,
        ),
        ({"utm_source": "mail", "max.price": ""}, lambda row: True),
    ],
)
def test_filters_are_the_list_with_the_others_struck_out(
    client: TestClient[Any], retriever: tt.Retriever, params: dict[str, Any], keep: Any
) -> None:
    every = retriever.similar(["i0"], k=COUNT)
    wanted = [row["item_id"] for row in every.iter_rows(named=True) if keep(row)]
    page = filtered(client, **params)
    assert wanted
    assert results(page) == [address("/explore", "item", raw) for raw in wanted]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"min.year": "abc"}, "'abc' is no number"),
        ({"min.year": "nan"}, "'nan' is no number"),
        ({"min.year": "inf"}, "'inf' is no number"),
        ({"min.year": "9" * 40}, "beyond 64 bits"),
        ({"min.year": "9" * 5000}, ""),
        ({"min.title": "a"}, "it holds no numbers or dates"),
        ({"min.genres": "1"}, "it holds no numbers or dates"),
        ({"in.color": "maybe"}, "'maybe' is neither true nor false"),
        ({"min.day": "yesterday"}, "'yesterday' is no ISO date"),
        ({"in.nope": "1"}, "unknown column 'nope'"),
        ({"in.item_id": "i1"}, "unknown column 'item_id'"),
        ({"in.vector": "0.5"}, "unknown column 'vector'"),
        ({"in.<script>": "<img src=x>"}, "unknown column '<script>'"),
        ({"k": "0"}, "'0' is no whole number from 1 to 200"),
        ({"k": "201"}, "'201' is no whole number"),
        ({"k": "-1"}, "'-1' is no whole number"),
        ({"k": "١"}, "'١' is no whole number"),
        ({"k": "1e9"}, "'1e9' is no whole number"),
    ],
)
def test_hostile_filters_are_refused_in_words(client: TestClient[Any], params: dict[str, Any], words: str) -> None:
    page = get(client, "/item/i0", 400, **params)
    assert "This cannot be answered" in page.text
    assert words in page.text
    assert results(page) == []
    page = get(client, "/user/u1", 400, **params)
    assert words in page.text


def test_filters_that_let_nothing_through_say_so(client: TestClient[Any]) -> None:
    page = get(client, "/user/u1", **{"in.genres": "Polka"})
    assert "the filters let none through" in page.text
    assert "The filters let no other item through" in get(client, "/item/i0", **{"in.genres": "' OR 1=1"}).text


def test_the_form_holds_what_the_address_says(client: TestClient[Any]) -> None:
    page = get(client, "/user/u1", **{"in.genres": "<i>Noir</i>", "min.year": "1960", "k": 3, "seen": 1})
    fields = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [f["type"] for f in fields if f.get("name") == "in.title"] == ["text"]  # of too many values to pick from
    checked = {(f["name"], f["value"]) for f in fields if "checked" in f}
    assert checked == {("in.genres", "<i>Noir</i>"), ("seen", "1")}
    assert [f["value"] for f in fields if f.get("name") == "min.year"] == ["1960"]
    assert [f["value"] for f in fields if f.get("name") == "k"] == ["3"]
    ids = page.all("input", "id") + page.all("select", "id")
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(page.all("label", "for")), "a field without a label"


def test_empty_fields_are_dropped_from_the_address(client: TestClient[Any]) -> None:
    answer = client.get("/explore/item/a%2Fb?in.genres=Drama&min.year=&max.year=&k=5", follow_redirects=False)
    assert answer.status_code == 302
    assert answer.headers["location"] == "/explore/item/a%2Fb?in.genres=Drama&k=5"
    answer = client.get("//evil.example/explore/search?q=", follow_redirects=False)
    assert not answer.headers.get("location", "/").startswith("//")
