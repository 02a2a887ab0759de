"""The explorer's pages: what they say, whatever ids, titles and addresses hold."""

import html
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest

import twotower as tt
from tests.explorer_world import COUNT, EVIL, IDS, ITEMS, ODD, USERS, odd_retriever, plain_retriever

pytest.importorskip("litestar")
pytest.importorskip("jinja2")

from litestar import Litestar
from litestar.testing import TestClient

from tests.explorer_pages import Page, get, harmless, results, visiting
from twotower.serving.explorer.routes import explorer_routes
from twotower.serving.explorer.site import Site, address


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    return odd_retriever()


@pytest.fixture(scope="module")
def client(retriever: tt.Retriever) -> Iterator[TestClient[Any]]:
    with visiting(retriever) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[TestClient[Any]]:
    held = Site(plain_retriever())
    with TestClient(Litestar(explorer_routes(lambda: held))) as made:
        yield made


def test_the_first_page_says_what_the_bundle_holds(client: TestClient[Any], plain: TestClient[Any]) -> None:
    page = get(client, "")
    for words in (
        f"items {COUNT}",
        "users 6",
        "vector width 8",
        "created 2026-11-29 11:53",
        "Recall@10 0.25",
        "past categorical, 42 ids, a list",
    ):
        assert words in page.text, words
    assert "/explore/user/u1" in page.all("a", "href")
    page = get(plain, "/")
    assert "no users: it was saved without a feature store" in page.text
    assert "Nothing was kept with the bundle" in page.text


@pytest.mark.parametrize("raw", IDS[: len(ODD) + 1])
def test_every_item_has_a_page_whatever_its_id(client: TestClient[Any], retriever: tt.Retriever, raw: str) -> None:
    answer = client.get(address("/explore", "item", raw))
    page = Page(answer)
    assert page.status == 200, page.text
    harmless(page)
    # blanks are one in `text`, and there is nothing else in an id of blanks
    assert f"item_id {' '.join(raw.split())}" in page.text
    near = retriever.similar([raw], k=10)
    assert results(page) == [address("/explore", "item", other) for other in near["item_id"]]
    assert f"{near['score'][0]:.3f}".replace("-", "−") in page.text


@pytest.mark.parametrize("raw", USERS["user_id"].to_list()[:4])
def test_every_user_has_a_page_with_history_recommendations_and_why(
    client: TestClient[Any], retriever: tt.Retriever, raw: str
) -> None:
    page = Page(client.get(address("/explore", "user", raw), params={"k": 7}))
    assert page.status == 200, page.text
    harmless(page)
    best = retriever.recommend_users([raw], k=7)
    assert results(page) == [address("/explore", "item", item) for item in best["item_id"]]
    why = tt.explain(retriever, raw, best["item_id"].to_list())
    assert f"{why[0].contributions[0].adds:+.3f}".replace("-", "−") in page.text
    assert "asked" in page.text
    assert page.text.count("may not be missing") == 7
    if raw == "u1":
        assert f"{why[0].nearest[0][1]:.2f}".replace("-", "−") in page.text
        assert "4 items, the latest first. 1 of them is not in this bundle." in page.text
    if raw == "fresh":
        assert "Nothing: this user has no history." in page.text


def test_users_that_have_seen_all_or_cannot_be_encoded(client: TestClient[Any]) -> None:
    page = get(client, "/user/all")
    assert "No items are left: this user has seen all of them." in page.text
    page = get(client, "/user/all", seen=1)
    assert len(results(page)) == 10
    assert page.text.count("seen before") == 11  # each, and the checkbox
    page = get(client, "/user/bare", 400)
    assert "This cannot be answered" in page.text
    assert "asked" in page.text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/user/nobody", "Nothing is known of the user 'nobody' of 6 in the feature store"),
        ("/user/%3Cscript%3E", "Nothing is known of the user '<script>'"),
        ("/user/%FF%00", "Nothing is known of the user"),
        ("/user", "This address names no user"),
        ("/item/nothing", "No item has the id 'nothing'"),
        ("/item", "This address names no item"),
        ("/elsewhere/at/all", "There is no such page"),
        ("/static/../routes.py", ""),
        ("/static/routes.py", "There is no such file"),
        ("/map?color=nope", "cannot be coloured by 'nope': choose one of genres, "),
    ],
)
def test_what_is_not_there_says_what_to_do(client: TestClient[Any], path: str, words: str) -> None:
    assert words in get(client, path, 404).text


def test_a_bundle_without_users_texts_and_history(plain: TestClient[Any]) -> None:
    assert "This bundle knows no users" in get(plain, "/user/1", 404).text
    assert "No item has the id 'one'" in get(plain, "/item/one", 404).text
    assert "No item has the id '99'" in get(plain, "/item/99", 404).text
    assert len(results(get(plain, "/item/12"))) == 3
    page = get(plain, "/query", age=20)
    assert "Nothing is asked yet" in page.text
    page = get(plain, "/query", **{"q.age": "20", "q.hobby": "go"})
    assert len(results(page)) == 4
    page = get(plain, "/query", ask=1)  # a stranger
    assert len(results(page)) == 4
    page = get(plain, "/query", history="12")
    assert "items nearest to the mean of the history's items by cosine" in page.text
    assert len(results(page)) == 3
    assert "What each column adds" not in page.text.replace("What each column adds is the score", "")
    assert get(plain, "/query", 400, **{"q.age": "old"}).text.count("'old' is not a number") == 1
    assert "is of a map" not in get(plain, "/map").text


def test_search(client: TestClient[Any], plain: TestClient[Any]) -> None:
    page = get(client, "/search", q="brucke")
    assert "1 found." in page.text
    assert "/explore/item?id=.." in page.all("a", "href")
    page = get(client, "/search", q="u1")
    assert "/explore/user/u1" in page.all("a", "href")
    assert "No item has this id" in page.text
    assert EVIL in get(client, "/search", q="<script>").text
    assert "Write the id of a user, or" in get(client, "/search").text
    assert "Write the id of an item" in get(plain, "/search", q=" ").text
    hits = client.get("/explore/search.json", params={"q": "u1"}).json()["hits"]
    assert [(hit["kind"], hit["url"]) for hit in hits] == [("user", "/explore/user/u1")]
    hits = client.get("/explore/search.json", params={"q": "film 1", "kind": "item"}).json()["hits"]
    assert [hit["title"] for hit in hits][:3] == ["Film 10", "Film 11", "Film 12"]
    assert len(hits) == 8
    for text in ("%", "_", "\x00", "a" * 5000, "🦆", "‮", "[", "*"):
        get(client, "/search", q=text)


def test_a_query_is_asked_as_it_is_filled_in(client: TestClient[Any], retriever: tt.Retriever) -> None:
    page = get(client, "/query")
    assert "Nothing is asked yet" in page.text
    assert "The model needs asked." in page.text
    assert page.all("option", "selected") == []
    # a history that the model would recommend again, if it might
    around = {"city": "Rome", "asked": 12.5}
    history = retriever.recommend([{**around, "past": ["a/b", "i5"]}], k=2)["item_id"].to_list()
    history = retriever.recommend([{**around, "past": history}], k=2)["item_id"].to_list()
    page = get(client, "/query", **{"q.city": "Rome", "q.asked": "12.5", "history": history, "k": 4})
    query = {"city": "Rome", "asked": 12.5, "past": history}
    best = retriever.recommend([query], k=4, exclude=[history])
    assert results(page) == [address("/explore", "item", raw) for raw in best["item_id"]]
    why = tt.explain(retriever, query, best["item_id"].to_list())
    for contribution in why[0].contributions:
        if contribution.adds is not None:
            assert f"{contribution.adds:+.3f}".replace("-", "−") in page.text
    seen = get(client, "/query", **{"q.city": "Rome", "q.asked": "12.5", "history": history, "k": 4, "seen": 1})
    best = retriever.recommend([query], k=4)
    assert set(history) & set(best["item_id"]), "otherwise this shows nothing"
    assert results(seen) == [address("/explore", "item", raw) for raw in best["item_id"]]


def test_queries_that_cannot_be_asked_say_why(client: TestClient[Any]) -> None:
    page = get(client, "/query", 400, ask=1)
    assert "asked may not be missing for this model: give a number, such as 10." in page.text
    assert "'soon' is not a number" in get(client, "/query", 400, **{"q.asked": "soon"}).text
    assert "it takes one value" in get(client, "/query", 400, **{"q.asked": "1\n2"}).text
    page = get(client, "/query", 400, **{"history": ["nothing", "i1"], "q.asked": "1"})
    assert "No item has the id 'nothing'" in page.text
    assert "No item has 'nothing' as its id or in its texts." in get(client, "/query", 400, add="nothing").text
    # ids and cities that training did not know are unknown, not wrong
    assert len(results(get(client, "/query", **{"q.city": EVIL, "q.asked": "1"}))) == 10


def test_an_item_is_added_to_the_history_by_words(client: TestClient[Any]) -> None:
    answer = client.get("/explore/query?history=i1&q.asked=3&add=brucke", follow_redirects=False)
    assert answer.status_code == 302
    page = get(client, answer.headers["location"].removeprefix("/explore"))
    fields = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [f["value"] for f in fields if f.get("name") == "history"] == ["i1", ".."]
    again = client.get("/explore/query?history=i1&add=i1", follow_redirects=False)
    assert again.headers["location"].count("i1") == 1


def test_another_bundle_is_shown_as_soon_as_it_serves(retriever: tt.Retriever) -> None:
    held = [Site(retriever)]
    with TestClient(Litestar(explorer_routes(lambda: held[0]))) as client:
        assert f"items {COUNT}" in get(client, "").text
        other = plain_retriever()
        held[0] = Site(other)
        assert "items 4" in get(client, "").text
        other.delete([12])
        held[0] = Site(other)
        assert "items 3" in get(client, "").text
        assert "No item has the id '12'" in get(client, "/item/12", 404).text


def test_static_files_are_kept_by_the_browser_until_they_change(client: TestClient[Any]) -> None:
    page = get(client, "")
    for url in [*page.all("script", "src"), *(u for u in page.all("link", "href") if u.startswith("/"))]:
        answer = client.get(url)
        assert answer.status_code == 200
        assert re.search(r"\?v=[0-9a-f]{12}$", url)
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].startswith(("text/css", "text/javascript"))
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text


def test_a_server_below_a_path_has_links_below_it(retriever: tt.Retriever) -> None:
    site = Site(retriever)
    with TestClient(Litestar(explorer_routes(lambda: site)), root_path="/films") as client:
        page = Page(client.get("/explore/item/i1"))
        links = page.all("a", "href") + page.all("script", "src") + page.all("form", "action")
        assert all(url.startswith(("/films/explore", "#")) for url in links), links


def test_a_failure_is_told_in_words(retriever: tt.Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(retriever)
    with TestClient(Litestar(explorer_routes(lambda: site))) as client:
        users = retriever.bundle.users
        assert users is not None

        def broken(ids: object) -> None:
            raise ConnectionError("secret")

        monkeypatch.setattr(users, "look_up", broken)
        page = get(client, "/user/u1", 500)
        assert "The server failed to make this page (ConnectionError)" in page.text
        assert "secret" not in page.text


def test_addresses_come_back_as_the_id() -> None:
    for raw in ODD:
        url = address("/explore", "item", raw)
        assert html.escape(url) == url.replace("&", "&amp;")
        assert quote(raw, safe="") in url or urlencode({"id": raw}) in url
    assert address("/explore", "item", -5) == "/explore/item/-5"
    assert address("", "user", "..") == "/user?id=.."


def test_items_without_a_title_are_called_by_their_id(client: TestClient[Any]) -> None:
    page = Page(client.get(address("/explore", "item", "//x//")))
    assert "item_id //x//" in page.text
    assert ITEMS["title"][1] is None
