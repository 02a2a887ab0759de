"""The explorer's addresses: pages that let a person look into the bundle that is served."""

import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from litestar import MediaType, Request, Response, Router, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from twotower.report.item_map import OTHERS, color_groups
from twotower.serving.explorer.answers import facts, history_of, similar_to, to_query, to_user
from twotower.serving.explorer.asking import MOST_K, Asked, Pairs, read_asked
from twotower.serving.explorer.forms import read_query, typed_id
from twotower.serving.explorer.showing import words
from twotower.serving.explorer.site import POLICY, ROOT, STATIC, Pages, Site, address
from twotower.serving.items import RawId
from twotower.serving.problems import Problem
from twotower.serving.settings import Limits
from twotower.serving.waiting import Aside

Asking = Request[Any, Any, Any]
FOUND, SUGGESTED = 50, 8  # items on the page of a search, and below the field while somebody types
YEAR = 365 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


log = logging.getLogger(__name__)


class MissingError(Exception):
    """There is no such page; the text says what to do."""


def explorer_routes(
    current: Callable[[], Site], created: Callable[[], str | None] = lambda: None, aside: Aside | None = None
) -> list[ControllerRouterHandler]:
    """The pages under /explore, for a Litestar application.

    Args:
        current: gives the Site of the Retriever that serves now.
        created: gives the date of its bundle, as the manifest has it.
        aside: makes the pages, within a time; threads of their own and the server's usual time by default.

    Example:
        >>> from litestar import Litestar                                  # doctest: +SKIP
        >>> site = Site(retriever)                                         # doctest: +SKIP
        >>> Litestar(route_handlers=explorer_routes(lambda: site))         # doctest: +SKIP
    """
    explorer = _Explorer(current, created, aside or Aside(Limits().timeout, lambda why, count: None))
    works = {
        "/": explorer.home,
        "/search": explorer.search,
        "/search.json": explorer.suggest,
        "/user": explorer.user,
        "/user/{raw:path}": explorer.user,
        "/item": explorer.item,
        "/item/{raw:path}": explorer.item,
        "/query": explorer.query,
        "/map": explorer.map,
        "/map.json": explorer.points,
        "/static/{name:str}": explorer.file,
        "/{rest:path}": explorer.nothing,
    }
    handlers = [_handler(path, work, explorer) for path, work in works.items()]
    return [Router(ROOT, route_handlers=handlers, include_in_schema=False)]


def _handler(path: str, work: Callable[[Asking], Response[Any]], explorer: "_Explorer") -> HTTPRouteHandler:
    @get(path)
    async def handle(request: Asking) -> Response[Any]:
        given = _pairs(request)
        if any(
            not value for _, value in given
        ):  # a form sends its empty fields too; addresses to share hold what matters
            kept = urlencode([(name, value) for name, value in given if value])
            return Response(
                "", status_code=302, headers={**HEADERS, "Location": _here(request) + (f"?{kept}" if kept else "")}
            )
        try:
            return await explorer.aside.run(lambda: work(request), request)
        except MissingError as error:
            return explorer.page(request, "message.html", 404, title="Not found", text=str(error))
        except Problem as problem:
            text = f"{problem.error[:1].upper()}{problem.error[1:]} {problem.hint or ''}"
            made = explorer.page(request, "message.html", problem.status, title="No answer this time", text=text)
            made.headers.update(problem.headers)
            return made
        except Exception as error:  # a person looks at it: the server's own answer would be for programs
            log.exception("the explorer failed at %s", _here(request))
            text = f"The server failed to make this page ({type(error).__name__}). Its log says more; others may work."
            return explorer.page(request, "message.html", 500, title="Something went wrong", text=text)

    return handle


class _Explorer:
    def __init__(self, current: Callable[[], Site], created: Callable[[], str | None], aside: Aside) -> None:
        self.current, self.created, self.aside = current, created, aside
        self.pages = Pages()

    def page(self, request: Asking, name: str, status: int = 200, **values: Any) -> Response[Any]:
        given = dict(_pairs(request))
        text = self.pages.render(name, _base(request), asked_words=given.get("q", ""), **values)
        return Response(text, media_type=MediaType.HTML, status_code=status, headers=HEADERS)

    # ---- pages

    def home(self, request: Asking) -> Response[Any]:
        return self.page(request, "home.html", **facts(self.current(), self.created()))

    def search(self, request: Asking) -> Response[Any]:
        site, text = self.current(), dict(_pairs(request)).get("q", "").strip()
        user = _known_user(site, text)
        found = site.shown.cards(site.search.find(text, FOUND)) if text else []
        return self.page(
            request, "search.html", text=text, user=user, cards=found, most=FOUND,
            has_users=site.retriever.bundle.users is not None,
        )  # fmt: skip

    def user(self, request: Asking) -> Response[Any]:
        site = self.current()
        raw, features = self._user(site, _id(request, "user"))
        asked = _asked(request, site)
        column = site.retriever.history_column
        row = features.rows.row(0, named=True)
        history = list(dict.fromkeys([*(features.seen[0]), *(row.get(column) or [] if column else [])]))
        lines, errors = _tried(lambda: to_user(site, raw, asked), asked.errors, [])
        known = [(name, words(value)) for name, value in row.items() if name != column]
        return self.page(
            request, "user.html", 400 if errors else 200, raw=raw, known=known, lines=lines, errors=errors,
            history=history_of(site, history), reads=column is not None, has_seen=bool(features.seen[0]),
            **_form(site, asked),
        )  # fmt: skip

    def item(self, request: Asking) -> Response[Any]:
        site = self.current()
        raw = self._item(site, _id(request, "item"))
        asked = _asked(request, site)
        lines, errors = _tried(lambda: similar_to(site, raw, asked), asked.errors, [])
        site.map.start()
        # what may not be missing is filled in, so that the link leads to an answer
        after = {"history": raw, **{f"q.{one.name}": one.example for one in site.query if one.needed and one.example}}
        return self.page(
            request, "item.html", 400 if errors else 200, raw=raw, card=site.shown.cards([raw])[0],
            fields=site.shown.fields(raw), lines=lines, errors=errors, has_seen=False,
            map_url=f"{_base(request)}/map.json?{urlencode({'item': raw, **_color(site)})}",
            after_url=f"{_base(request)}/query?{urlencode(after)}", **_form(site, asked),
        )  # fmt: skip

    def query(self, request: Asking) -> Response[Any]:
        site, given = self.current(), _pairs(request)
        asked = _asked(request, site)
        values = dict(given)
        history, errors = self._history(site, [value for name, value in given if name == "history"])
        if "add" in values:
            found = site.search.find(values["add"], 1)
            if found:
                kept = [(n, v) for n, v in given if n != "add"] + [("history", str(found[0]))]
                if found[0] in history:
                    kept = kept[:-1]
                return Response(
                    "", status_code=302, headers={**HEADERS, "Location": f"{_here(request)}?{urlencode(kept)}"}
                )
            errors.append(f"No item has {values['add']!r} as its id or in its texts.")
        texts = {name[2:]: value for name, value in given if name.startswith("q.")}
        asking = bool(texts or history) or "ask" in values
        query, wrong = read_query(site.query, texts) if asking else ({}, [])
        alone = site.retriever.history_column is None and history and not texts
        problems = [*errors, *asked.errors, *([] if alone else wrong)]
        (lines, by_tower), problems = _tried(
            lambda: to_query(site, query, history, asked) if asking else ([], True), problems, ([], True)
        )
        return self.page(
            request, "query.html", 400 if problems else 200, query_fields=site.query, texts=texts, asking=asking, lines=lines,
            errors=problems, history=site.shown.cards(history), by_tower=by_tower, has_seen=bool(history),
            reads=site.retriever.history_column is not None, **_form(site, asked),
        )  # fmt: skip

    def map(self, request: Asking) -> Response[Any]:
        site = self.current()
        site.map.start()
        chosen = dict(_pairs(request)).get("color", "") or _color(site).get("color", "")
        if chosen and chosen not in site.colors:
            raise MissingError(
                f"The map cannot be coloured by {chosen!r}: choose one of {', '.join(site.colors) or 'no column'}."
            )
        url = f"{_base(request)}/map.json" + (f"?{urlencode({'color': chosen})}" if chosen else "")
        return self.page(request, "map.html", colors=site.colors, chosen=chosen, map_url=url, total=len(site.items))

    # ---- for the script

    def suggest(self, request: Asking) -> Response[Any]:
        site, given, base = self.current(), dict(_pairs(request)), _base(request)
        text = given.get("q", "").strip()
        user = _known_user(site, text) if given.get("kind") != "item" else None
        hits = (
            []
            if user is None
            else [
                {
                    "kind": "user",
                    "id": str(user),
                    "title": f"User {user}",
                    "about": "",
                    "url": address(base, "user", user),
                }
            ]
        )
        for card in site.shown.cards(site.search.find(text, SUGGESTED)):
            hits.append(
                {
                    "kind": "item",
                    "id": str(card.id),
                    "title": card.title,
                    "about": card.about,
                    "url": address(base, "item", card.id),
                }
            )
        return Response({"hits": hits}, headers=HEADERS)

    def points(self, request: Asking) -> Response[Any]:
        site, given, base = self.current(), dict(_pairs(request)), _base(request)
        site.map.start()
        points = site.map.points
        if points is None:
            state = {"state": "failed", "error": site.map.failed} if site.map.failed else {"state": "computing"}
            return Response(state, status_code=200 if site.map.failed else 202, headers=HEADERS)
        cards = site.shown.cards(points.ids)
        made: dict[str, Any] = {
            "state": "ready", "how": points.how, "total": len(site.items), "x": points.places[:, 0].round(4).tolist(),
            "y": points.places[:, 1].round(4).tolist(), "titles": [card.title for card in cards],
            "abouts": [card.about for card in cards], "urls": [address(base, "item", raw) for raw in points.ids],
        }  # fmt: skip
        color = given.get("color", "")
        if color in site.colors:
            groups = color_groups(site.shown.groups(points.ids, color))
            names = sorted(set(groups) - {OTHERS}, key=lambda name: (-groups.count(name), name))
            made |= {
                "names": [*names, OTHERS],
                "groups": [len(names) if g == OTHERS else names.index(g) for g in groups],
            }
        if "item" in given:
            at, own = site.map.place_of(self._item(site, given["item"]))
            made["focus"] = {"at": at, "own": own}
        return Response(made, headers=HEADERS)

    def file(self, request: Asking) -> Response[Any]:
        name = str(request.path_params["name"])
        if name not in STATIC:
            raise MissingError("There is no such file.")
        headers = {**HEADERS, "Cache-Control": f"public, max-age={YEAR}, immutable"}
        return Response(self.pages.static[name], media_type=STATIC[name], headers=headers)

    def nothing(self, request: Asking) -> Response[Any]:
        raise MissingError("There is no such page. Search for a user or an item above, or go back to the start.")

    # ---- what was asked for

    def _user(self, site: Site, text: str) -> tuple[RawId, Any]:
        users = site.retriever.bundle.users
        if users is None:
            raise MissingError(
                "This bundle knows no users: it was saved without a feature store, Retriever(..., users=). Describe a user on "
                "the page Ask instead."
            )
        raw = typed_id(text, users.schema[users.key])
        if raw is None:
            raise MissingError(
                f"{text!r} is no user: {users.key} holds whole numbers. Search above, or start from the first page."
            )
        try:
            features = users.look_up([raw])
        except ValueError as error:
            raise MissingError(f"{text!r} is no user: {error}") from error
        if not features.known[0]:
            raise MissingError(
                f"Nothing is known of the user {text!r} of {len(users):,} in the feature store. Check {users.key}, or describe "
                "the user on the page Ask."
            )
        return raw, features

    def _item(self, site: Site, text: str) -> RawId:
        raw = typed_id(text, site.items.table.schema[site.items.id_name])
        if raw is None or raw not in site.items:
            raise MissingError(f"No item has the id {text!r}. Search for words of its texts above.")
        return raw

    def _history(self, site: Site, texts: Sequence[str]) -> tuple[list[RawId], list[str]]:
        found: list[RawId] = []
        errors = []
        for text in dict.fromkeys(texts):
            try:
                found.append(self._item(site, text))
            except MissingError as error:
                errors.append(str(error))
        return found, errors


def _tried(work: Callable[[], Any], errors: Sequence[str], empty: Any) -> tuple[Any, list[str]]:
    """What some work gives, unless there are errors already, or it says in a ValueError what is wrong."""
    if errors:
        return empty, list(errors)
    try:
        return work(), []
    except ValueError as error:
        return empty, [str(error)]


def _form(site: Site, asked: Asked) -> dict[str, Any]:
    """What the form of the filters is made of."""
    return {"filters": site.fields, "asked": asked, "most_k": MOST_K}


def _asked(request: Asking, site: Site) -> Asked:
    return read_asked(_pairs(request), site.fields, site.items.table.schema)


def _color(site: Site) -> dict[str, str]:
    return {"color": site.colors[0]} if site.colors else {}


def _known_user(site: Site, text: str) -> RawId | None:
    users = site.retriever.bundle.users
    raw = typed_id(text, users.schema[users.key]) if users is not None and text else None
    if users is None or raw is None:
        return None
    try:
        return raw if users.look_up([raw]).known[0] else None
    except ValueError:  # a number that the column cannot hold
        return None


def _pairs(request: Asking) -> Pairs:
    # in the order of the address, which Litestar's own parameters do not keep
    return parse_qsl(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)


def _base(request: Asking) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/") + ROOT


def _here(request: Asking) -> str:
    """The address without its parameters, as it came."""
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.split(b"?")[0].decode("ascii", "replace")
    return "/" + path.lstrip("/\\")  # never another server's


def _id(request: Asking, kind: str) -> str:
    """The id in an address as it was written: the server's own path has lost its double slashes."""
    given = dict(_pairs(request)).get("id")
    if given is not None:
        return given
    raw = (request.scope.get("raw_path") or b"").split(b"?")[0]
    _, found, rest = raw.partition(f"{ROOT}/{kind}/".encode())
    if found:
        return unquote(rest.decode("ascii", "replace"))
    text = str(request.path_params.get("raw", "")).removeprefix("/")
    if not text:
        raise MissingError(f"This address names no {kind}. Search above.")
    return text
