"""The explorer's pages: what they say, whatever ids, titles and addresses hold."""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import torch

import twotower as tt
from tests.explorer_world import COUNT, EVIL, IDS, ITEMS, ODD, USERS, odd_retriever, plain_retriever

pytest.importorskip("litestar")
pytest.importorskip("jinja2")

from litestar import Litestar
from litestar.testing import TestClient

from twotower.serving.explorer.routes import explorer_routes
from twotower.serving.explorer.site import POLICY, Site, address


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    return odd_retriever()


@pytest.fixture(scope="module")
def client(retriever: tt.Retriever) -> Iterator[TestClient[Any]]:
    site = Site(retriever)
    with TestClient(Litestar(explorer_routes(lambda: site, lambda: "2026-11-29T11:53:00+00:00"))) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[TestClient[Any]]:
    held = Site(plain_retriever())
    with TestClient(Litestar(explorer_routes(lambda: held))) as made:
        yield made


class Page(HTMLParser):
    """The text, links, fields and tags of a page."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.status = answer.status_code
        self.headers = answer.headers
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(answer.text)
        self.text = " ".join(self.text.split())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def all(self, tag: str, name: str) -> list[str]:
        return [attributes[name] or "" for found, attributes in self.tags if found == tag and name in attributes]


def get(client: TestClient[Any], path: str, status: int = 200, **params: Any) -> Page:
    answer = client.get(f"/explore{path}", params=params or None, follow_redirects=True)
    page = Page(answer)
    assert page.status == status, (path, params, page.text[:600])
    assert answer.headers["content-security-policy"] == POLICY
    harmless(page)
    return page


def harmless(page: Page) -> None:
    """Nothing runs, loads or is sent but what the explorer itself serves, under a policy without any exception."""
    assert "unsafe" not in POLICY
    scripts = page.all("script", "src")
    assert len([tag for tag, _ in page.tags if tag == "script"]) == len(scripts) == 1
    for tag, name in (("script", "src"), ("link", "href"), ("a", "href"), ("form", "action")):
        for url in page.all(tag, name):
            assert url.startswith(("/explore", "#", "data:,")), (tag, url)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "i", "u", "object", "style")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]


def results(page: Page) -> list[str]:
    """The addresses of the items in the list of results, in order."""
    found, inside = [], False
    for tag, attributes in page.tags:
        inside = inside or (tag == "ol" and attributes.get("class") == "results")
        if inside and tag == "div" and attributes.get("class") == "what":
            found.append("")
        elif inside and tag == "a" and found and not found[-1]:
            found[-1] = attributes["href"] or ""
    return found


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


def test_the_map_is_made_once_and_tells_where_an_item_lies(client: TestClient[Any], retriever: tt.Retriever) -> None:
    page = get(client, "/map")
    assert page.all("select", "id") == ["color"]
    for _ in range(600):
        answer = client.get("/explore/map.json", params={"color": "genres", "item": "a/b"})
        if answer.status_code == 200:
            break
    made = answer.json()
    assert made["state"] == "ready"
    assert len(made["x"]) == len(made["y"]) == len(made["titles"]) == len(made["urls"]) == COUNT
    assert all(0 <= value <= 1 for value in made["x"] + made["y"])
    at = made["focus"]["at"]
    assert made["focus"]["own"]
    assert made["titles"][at] == EVIL
    assert made["urls"][at] == "/explore/item/a%2Fb"
    by_name = dict(zip(made["urls"], (made["names"][group] for group in made["groups"]), strict=True))
    assert by_name["/explore/item/a%2Fb"] == "War"  # the rarer of its two
    assert by_name["/explore/item?id=.."] == "others"
    assert made["names"][-1] == "others"
    assert client.get("/explore/map.json", params={"item": "nothing"}).status_code == 404


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


def test_maps_are_the_same_every_time_and_place_what_they_do_not_draw(
    retriever: tt.Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twotower.serving.explorer import item_map

    one, other = item_map.draw(retriever), item_map.draw(retriever)
    assert one.how == "t-SNE"
    assert (one.places == other.places).all()
    monkeypatch.setattr(item_map, "OFTEN", 3)
    monkeypatch.setattr(item_map, "SAMPLED", 9)
    monkeypatch.setattr(item_map.importlib.util, "find_spec", lambda name: None)
    made = item_map.ItemMap(retriever)
    made.wait()
    assert made.points is not None
    assert made.points.how == "PCA"
    ids = made.points.ids
    assert len(set(ids)) == 12
    assert set(retriever.bundle.preprocessor.vocabulary("item_id").head(3)) <= set(ids)
    assert made.place_of(ids[5]) == (5, True)
    away = next(raw for raw in IDS if raw not in ids)
    units = torch.nn.functional.normalize(retriever.bundle.vectors, dim=1)
    cosines = {raw: float(units[IDS.index(away)] @ units[IDS.index(raw)]) for raw in ids}
    assert made.place_of(away) == (ids.index(max(cosines, key=cosines.__getitem__)), False)


def test_principal_components_by_hand() -> None:
    """Three points on a line: their distances stay, the second component is nothing; one point lies in the middle."""
    from twotower.serving.explorer.item_map import principal, scaled

    places = principal(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
    assert places[:, 0].tolist() == pytest.approx([-5, 0, 5])
    assert places[:, 1].tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert scaled(places)[:, 0].tolist() == pytest.approx([0, 0.5, 1])
    assert scaled(principal(torch.tensor([[1.0, 2.0]]))).tolist() == [[0.5, 0.5]]
    assert principal(torch.tensor([[1.0], [3.0]]))[:, 0].tolist() == pytest.approx([-1, 1])


def test_a_map_that_fails_says_so(retriever: tt.Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    from twotower.serving.explorer import item_map

    def fail(held: object) -> None:
        raise MemoryError("too many")

    monkeypatch.setattr(item_map, "draw", fail)
    site = Site(retriever)
    with TestClient(Litestar(explorer_routes(lambda: site))) as client:
        for _ in range(50):
            answer = client.get("/explore/map.json").json()
            if answer["state"] != "computing":
                break
        assert answer == {"state": "failed", "error": "MemoryError: too many"}


def test_items_without_a_title_are_called_by_their_id(client: TestClient[Any]) -> None:
    page = Page(client.get(address("/explore", "item", "//x//")))
    assert "item_id //x//" in page.text
    assert ITEMS["title"][1] is None
