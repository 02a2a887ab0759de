"""What the pages need of one bundle, made once for it; and the pages as text."""

import hashlib
import threading
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from twotower.serving.explorer.asking import FilterField, filter_fields
from twotower.serving.explorer.forms import QueryField, query_fields
from twotower.serving.explorer.item_map import ItemMap
from twotower.serving.explorer.showing import Shown, words
from twotower.serving.items import RawId
from twotower.serving.retriever import Retriever
from twotower.serving.searching import ItemSearch

ROOT = "/explore"
# everything comes from the server itself; nothing stands in the pages' own text
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
STATIC = {"explorer.css": "text/css", "explorer.js": "text/javascript"}


class Site:
    """One Retriever and how it is shown; the parts that take a while are made when a page first needs them.

    Args:
        retriever: with the items. Where items are added to it or taken away, another Site is to be made.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.items = retriever.items
        self.map = ItemMap(retriever)
        self._lock = threading.RLock()
        self._shown: Shown | None = None
        self._search: ItemSearch | None = None
        self._fields: list[FilterField] | None = None
        self._query: list[QueryField] | None = None

    @property
    def shown(self) -> Shown:
        """How the items are shown."""
        with self._lock:
            if self._shown is None:
                self._shown = Shown(self.items)
            return self._shown

    @property
    def search(self) -> ItemSearch:
        """The items by their words."""
        with self._lock:
            if self._search is None:
                self._search = ItemSearch(self.items, self.shown.title)
            return self._search

    @property
    def fields(self) -> list[FilterField]:
        """What the items can be filtered by."""
        with self._lock:
            if self._fields is None:
                self._fields = filter_fields(self.items.attributes, [self.items.id_name])
            return self._fields

    @property
    def query(self) -> list[QueryField]:
        """What a query may be made of."""
        with self._lock:
            if self._query is None:
                self._query = query_fields(self.retriever)
            return self._query

    @property
    def colors(self) -> list[str]:
        """The columns that the map can be coloured by, the category first."""
        named = [one.column for one in self.fields if one.picks]
        return sorted(named, key=lambda name: name != self.shown.category)


class Pages:
    """The templates, and the files that go with them."""

    def __init__(self) -> None:
        # titles and names come from anywhere: every value is escaped
        self._environment = Environment(
            loader=PackageLoader("twotower.serving.explorer", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["words"] = words
        self.static = {name: _read(name) for name in STATIC}
        self.versions = {name: hashlib.sha256(body).hexdigest()[:12] for name, body in self.static.items()}

    def render(self, name: str, base: str, **values: Any) -> str:
        """A page as text.

        Args:
            name: of the template.
            base: where the explorer stands on the server.
            values: what the template names.
        """
        return self._environment.get_template(name).render(
            base=base,
            item_url=lambda raw: address(base, "item", raw),
            user_url=lambda raw: address(base, "user", raw),
            static_url=lambda file: f"{base}/static/{file}?v={self.versions[file]}",
            **values,
        )


def address(base: str, kind: str, raw: RawId) -> str:
    """The page of an item or a user, whatever signs its id has."""
    text = str(raw)
    # a browser takes dots for steps between folders, and slashes at an end are lost on the way
    if text.strip(".") == "" or text.startswith("/") or text.endswith("/") or "//" in text:
        return f"{base}/{kind}?id={quote(text, safe='')}"
    return f"{base}/{kind}/{quote(text, safe='')}"


def _read(name: str) -> bytes:
    body = (files("twotower.serving.explorer") / "static" / name).read_bytes()
    if name.endswith(".css"):  # the report's colours
        body = (files("twotower.report") / "templates" / "colors.css").read_bytes() + body
    return body
