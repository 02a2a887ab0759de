"""Reading the explorer's pages, and what holds for each of them."""

from html.parser import HTMLParser
from typing import Any

from litestar import Litestar
from litestar.testing import TestClient

import twotower as tt
from twotower.serving.explorer.routes import explorer_routes
from twotower.serving.explorer.site import POLICY, Site


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


def visiting(retriever: tt.Retriever) -> TestClient[Any]:
    """Asks the pages of a bundle that was taken in at a known time."""
    site = Site(retriever)
    return TestClient(Litestar(explorer_routes(lambda: site, lambda: "2026-11-29T11:53:00+00:00")))


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
