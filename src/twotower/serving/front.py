"""What every request passes first and last: the token or the origin, the counters, the access log, the end of a connection."""

import base64
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from twotower.serving.instruments import Instruments
from twotower.serving.problems import JSON, Problem
from twotower.serving.settings import Settings

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
Headers = Mapping[bytes, bytes]
OPEN = ("/health", "/v2/health")
PAGES = ("/explore", "/schema")  # what a person looks at


class Front:
    """Wraps an ASGI application.

    Args:
        app: answers.
        settings: the token, and whether there is a log.
        instruments: count.

    Attributes:
        draining: once it is set, every answer asks the client to close its connection.
        connections: those that are open, as the server knows them.
        most: how many of them are answered; while there are more, all but health is told to come again.
    """

    def __init__(self, app: AsgiApp, settings: Settings, instruments: Instruments) -> None:
        self.app = app
        self.instruments = instruments
        self.draining = False
        self.connections: Collection[object] = ()
        self.most = 0
        self._expected = None if settings.token is None else settings.token.encode()
        self._hosts = None if settings.hosts is None else frozenset(host.lower() for host in settings.hosts)
        self._log = settings.access_log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003, "reason": "HTTP only"})
            return
        start, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        path = scope["path"]
        try:
            problem = None if path.startswith(OPEN) else self._refused(scope)
            if problem is not None:
                await respond(sent, problem)
            elif scope["method"] == "HEAD":  # GET, of whose answer the server leaves out the body
                await self.app({**scope, "method": "GET"}, receive, sent)
            else:
                await self.app(scope, receive, sent)
        finally:
            seconds = time.perf_counter() - start
            self.instruments.request(path, status, seconds)
            if self._log:
                self._write(scope, status, seconds)

    def _refused(self, scope: Message) -> Problem | None:
        """Why a request goes no further, if it does not."""
        if len(self.connections) > self.most > 0:
            return CROWDED
        sent = {name: value for name, value in scope["headers"] if name in JUDGED}
        if self._expected is not None:
            return self._unauthorised(scope, sent)
        host = _text(sent, b"host")
        if self._hosts is not None and host is not None and _name(host) not in self._hosts:
            return Problem(403, f"the server is not called {host[:100]!r}.", "Start it with --allow-host, or a token.")
        return _foreign(scope, sent)

    def _unauthorised(self, scope: Message, sent: Headers) -> Problem | None:
        """Unless the token is sent, as itself or as the password that a browser asks its user for."""
        scheme, _, given = sent.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and self._is_token(given):
            return None
        if scheme.lower() == b"basic" and self._is_token(_password(given)):
            return _foreign(scope, sent)  # what a browser knows it sends whoever makes it ask
        return UNKNOWN_TO_A_PAGE if scope["path"].startswith(PAGES) else UNKNOWN

    def _is_token(self, given: bytes) -> bool:
        assert self._expected is not None
        return hmac.compare_digest(given, self._expected)

    def _write(self, scope: Message, status: int, seconds: float) -> None:
        entry: dict[str, Any] = {
            "time": round(time.time(), 3),
            "client": (scope.get("client") or ("", 0))[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1e3, 2),
        }
        sys.stderr.write(json.dumps(entry) + "\n")


JUDGED = (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"authorization")
FOREIGN = Problem(403, "a page of another site asks.", "Ask from the server's own pages, or with a Bearer token.")
CROWDED = Problem(503, "too many connections are open.", "Ask again in a second.", {"retry-after": "1"})
NO_TOKEN = "the token is missing or wrong."
UNKNOWN = Problem(401, NO_TOKEN, "Send the header Authorization: Bearer TOKEN.", {"www-authenticate": "Bearer"})
UNKNOWN_TO_A_PAGE = Problem(
    401,
    NO_TOKEN,
    "Give any name, and the token as the password.",
    {"www-authenticate": 'Basic realm="twotower", charset="UTF-8"'},
)


def _foreign(scope: Message, sent: Headers) -> Problem | None:
    """Whoever is asked for nothing could be made to ask by any page that a browser shows, by its forms and scripts."""
    origin = _text(sent, b"origin")
    if origin is not None and origin.partition("://")[2] != _text(sent, b"host"):
        return FOREIGN
    # a link of another site may be followed: the page is for the one who follows it, not for that site
    link = scope["method"] == "GET" and sent.get(b"sec-fetch-mode") == b"navigate"
    return FOREIGN if sent.get(b"sec-fetch-site") == b"cross-site" and not link else None


def _password(given: bytes) -> bytes:
    """What stands after the colon of Basic credentials; nothing if they cannot be read."""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _text(sent: Headers, name: bytes) -> str | None:
    return sent[name].decode("latin-1").lower() if name in sent else None


def _name(host: str) -> str:
    """A host without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


async def respond(send: Send, problem: Problem) -> None:
    """A whole response."""
    body = problem.body()
    headers = [(b"content-type", JSON), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
