"""The explorer's map: made once, the same every time, and every item has a place on it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import twotower as tt
from tests.explorer_world import COUNT, EVIL, IDS, odd_retriever

pytest.importorskip("litestar")
pytest.importorskip("jinja2")

from litestar import Litestar
from litestar.testing import TestClient

from tests.explorer_pages import get, visiting
from twotower.serving.explorer.routes import explorer_routes
from twotower.serving.explorer.site import Site


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    return odd_retriever()


@pytest.fixture(scope="module")
def client(retriever: tt.Retriever) -> Iterator[TestClient[Any]]:
    with visiting(retriever) as made:
        yield made


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
