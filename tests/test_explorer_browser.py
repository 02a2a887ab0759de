"""The explorer in a real browser: typing, clicking, filtering, and the map."""

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import twotower as tt
from tests.explorer_world import COUNT, odd_retriever

pytest.importorskip("litestar")
pytest.importorskip("jinja2")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright")

import uvicorn
from litestar import Litestar
from playwright.sync_api import sync_playwright

from twotower.serving.explorer.routes import explorer_routes
from twotower.serving.explorer.site import Site, address

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def retriever() -> tt.Retriever:
    return odd_retriever()


@pytest.fixture(scope="module")
def server(retriever: tt.Retriever) -> Iterator[str]:
    site = Site(retriever)
    config = uvicorn.Config(
        Litestar(explorer_routes(lambda: site)), port=0, log_level="error", lifespan="off", ws="none"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not running.started and time.monotonic() < until:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """A page that must ask nobody else and complain of nothing."""
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    opened.set_default_timeout(60_000)
    complaints: list[str] = []
    opened.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request", lambda asked: None if asked.url.startswith((server, "data:,")) else complaints.append(asked.url)
    )
    opened.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield opened
    opened.close()
    assert complaints == []


def test_from_a_search_to_an_item_and_the_map(page: Any, server: str, retriever: tt.Retriever) -> None:
    page.goto(f"{server}/explore")
    page.fill("#find", "o/dd ü")
    page.wait_for_selector("#hits0 [role=option]")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#find", "aria-activedescendant") == "hits0-0"
    page.keyboard.press("Enter")
    page.wait_for_url("**/explore/user/o%2Fdd%20%C3%BC")
    assert page.locator(".results > li").count() == 10
    first = retriever.recommend_users(["o/dd ü"], k=1)["item_id"][0]
    assert page.locator(".results .what > a").first.get_attribute("href") == address("/explore", "item", first)

    page.click(".filters > summary")
    page.fill("#k", "5")
    page.click(".picks > summary >> nth=0")
    page.check("label:has-text('War') >> xpath=../input")
    page.click("button:has-text('Apply')")
    page.wait_for_url("**/explore/user/o%2Fdd%20%C3%BC?**")
    assert sorted(page.url.split("?")[1].split("&")) == ["in.genres=War", "k=5"]
    wanted = retriever.recommend_users(["o/dd ü"], k=5, where={"genres": "War"})["title"].to_list()
    shown = page.locator(".results .what > a").all_inner_texts()
    assert shown == [title or shown[at] for at, title in enumerate(wanted)]
    assert page.is_checked("label:has-text('War') >> xpath=../input")

    page.click(".results .what > a >> nth=0")
    page.wait_for_selector(".map canvas")
    assert page.locator("h1").inner_text() == shown[0]
    assert page.locator(".map .told a").inner_text() == shown[0]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_map_is_drawn_and_leads_to_items(page: Any, server: str) -> None:
    page.goto(f"{server}/explore/map")
    page.wait_for_selector(".map canvas")
    page.wait_for_function("document.querySelector('[data-map]').map.drawn")
    assert f"{COUNT} items by" in page.locator(".told").inner_text()
    colors = page.evaluate(
        """() => { const c = document.querySelector('.map canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const found = new Set();
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 150) found.add(`${d[i] >> 5},${d[i + 1] >> 5},${d[i + 2] >> 5}`);
        return found.size; }"""
    )
    assert colors >= 3  # of the groups
    page.focus(".map canvas")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    title = page.locator(".map .tip").inner_text()
    assert page.locator(".told a").inner_text() == title
    page.wait_for_url("**/explore/map#*")
    assert page.url.endswith(",1.500")
    x, y = page.evaluate("(() => { const m = document.querySelector('[data-map]').map; return m.place(m.hover); })()")
    box = page.locator(".map canvas").bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    assert page.locator(".map .tip").is_visible()
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_selector(
        "h1:has-text('Film'), h1:has-text('ridge'), h1:has-text('cript'), h1:has-text('item_id'), h1:has-text('Brücke')"
    )
    assert "/explore/item" in page.url


def test_a_history_is_picked_by_typing(page: Any, server: str, retriever: tt.Retriever) -> None:
    page.goto(f"{server}/explore/query")
    page.fill("#add", "brucke")
    page.click("#hits1 [role=option] >> nth=0")
    page.wait_for_url("**history=..*")
    assert page.locator(".picked label").all_inner_texts() == ["Die Brücke"]
    assert page.locator(".results > li").count() == 10
    best = retriever.recommend([{"city": None, "asked": 10.0, "past": [".."]}], k=10, exclude=[[".."]])["title"][0]
    assert best is None or page.locator(".results .what > a").first.inner_text() == best
    page.uncheck(".picked input")
    page.click("button:has-text('Ask')")
    page.wait_for_url(lambda url: "history" not in url)
    assert page.locator(".picked").count() == 0


def test_pages_work_without_a_script(browser: Any, server: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(f"{server}/explore")
    opened.fill("#find", "film 12")
    opened.click("button:has-text('Search')")
    opened.click("main a:has-text('Film 12')")
    assert opened.locator("h1").inner_text() == "Film 12"
    assert opened.locator(".results > li").count() == 10
    assert "The map needs JavaScript." in opened.locator(".map").inner_text()
    opened.goto(f"{server}/explore/query")
    opened.fill("#add", "brucke")
    opened.click("button:has-text('Ask')")
    assert opened.locator(".picked label").all_inner_texts() == ["Die Brücke"]
    context.close()
