"""What every request passes first and last: the token or the origin, the counters, the access log, the end of a connection."""

import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from twotower.serving.instruments import Instruments
from twotower.serving.problems import JSON, Problem
from twotower.serving.settings import Settings

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
OPEN = ("/health", "/v2/health")


class Front:
    """Wraps an ASGI application.

    Args:
        app: answers.
        settings: the token, and whether there is a log.
        instruments: count.

    Attributes:
        draining: once it is set, every answer asks the client to close its connection.
    """

    def __init__(self, app: AsgiApp, settings: Settings, instruments: Instruments) -> None:
        self.app = app
        self.instruments = instruments
        self.draining = False
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
            if problem is None:
                await self.app(scope, receive, sent)
            else:
                await respond(sent, problem)
        finally:
            seconds = time.perf_counter() - start
            self.instruments.request(path, status, seconds)
            if self._log:
                self._write(scope, status, seconds)

    def _refused(self, scope: Message) -> Problem | None:
        """Why a request goes no further, if it does not."""
        if self._expected is not None:
            return None if self._authorised(scope) else UNAUTHORISED
        # whoever is asked for nothing could be made to ask by any page that a browser shows: by its forms and scripts, and
        # under a name of its own that leads here
        sent = {name: value.decode("latin-1").lower() for name, value in scope["headers"] if name in JUDGED}
        host = sent.get(b"host")
        if self._hosts is not None and host is not None and _name(host) not in self._hosts:
            return Problem(403, f"the server is not called {host[:100]!r}.", "Start it with --allow-host, or a token.")
        origin, link = sent.get(b"origin"), scope["method"] == "GET" and sent.get(b"sec-fetch-mode") == "navigate"
        if origin is not None and origin.partition("://")[2] != host:
            return FOREIGN
        # a link of another site may be followed: the page is for the one who follows it, not for that site
        return FOREIGN if sent.get(b"sec-fetch-site") == "cross-site" and not link else None

    def _authorised(self, scope: Message) -> bool:
        assert self._expected is not None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token, self._expected)

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


JUDGED = (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode")
FOREIGN = Problem(403, "a page of another site asks.", "Ask from the server's own pages, or start it with a token.")
UNAUTHORISED = Problem(
    401,
    "the token is missing or wrong.",
    "Send the header Authorization: Bearer TOKEN.",
    {"www-authenticate": "Bearer"},
)


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
