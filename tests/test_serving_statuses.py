"""Every status that a route gives is in the OpenAPI description, and none that it does not: each is driven into all of them."""

import base64
import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from twotower.serving import app as app_module
from twotower.serving import openapi
from twotower.serving.app import make_app
from twotower.serving.front import Front
from twotower.serving.live import Live
from twotower.serving.protocol import BoundedProtocol
from twotower.serving.service import Service
from twotower.serving.settings import Limits, Settings

from . import serving_world as world
from .serving_world import wait_for

TOKEN = "sesame-open"
UNKNOWN = {"user": "99", "item": "none", "name": "none", "version": "none"}
TENSORS = [
    {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [3]},
    {"name": "age", "shape": [1], "datatype": "FP64", "data": [3.0]},
    {"name": "history", "shape": [1, 1], "datatype": "BYTES", "data": ["i1"]},
]


@dataclass
class Running:
    """A server at a port of this machine, as `twotower serve` runs it."""

    front: Front
    service: Service
    token: str | None
    port: int
    client: httpx.Client

    def call(self, method: str, path: str, content: bytes = b"", **headers: str) -> int:
        """The status of a request, by default of one that may ask."""
        sent = {"authorization": f"Bearer {self.token}"} if self.token else {}
        sent |= {"content-type": "application/json"} | headers
        return self.client.request(method, path, content=content or None, headers=sent).status_code


@contextlib.contextmanager
def running(bundle: Path, token: str | None, timeout: float = 30.0) -> Iterator[Running]:
    limits = Limits(body_bytes=20_000, body_timeout=0.1, timeout=timeout)
    front, service = make_app(Live(bundle), Settings(limits=limits, token=token, watch=0, explorer=False))
    config = uvicorn.Config(front, port=0, http=BoundedProtocol, ws="none", log_config=None, access_log=False)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 60)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield Running(front, service, token, port, client)
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.saved(tmp_path_factory.mktemp("statuses"))


@pytest.fixture(scope="module", params=[None, TOKEN])
def one(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(bundle, request.param) as made:
        yield made


@pytest.fixture(scope="module")
def stuck(bundle: Path, one: Running) -> Iterator[Running]:
    """Nothing that is asked is ever begun."""
    with running(bundle, one.token, timeout=0.05) as made:
        made.service.batcher._start = made.service.side.batcher._start = lambda *_: None  # type: ignore[method-assign]
        yield made


def described(one: Running) -> dict[tuple[str, str], Any]:
    snapshot = one.service.live.current
    made = openapi.document("one", snapshot.inputs, ["i1"], one.token is not None, one.service.settings.limits)
    return {(p, m): operation for p, operations in made["paths"].items() for m, operation in operations.items()}


def statuses(one: Running, stuck: Running, method: str, route: str, patch: pytest.MonkeyPatch) -> set[int]:
    """What comes of all that can be done to a route."""
    known = {"user": "3", "item": "i3", "name": "one", "version": one.service.live.current.version}
    path = route.format(**known)
    body = json.dumps({"inputs": TENSORS} if "infer" in path else {"user": 3}).encode() if method == "POST" else b""
    found = {one.call(method, path, body)}
    found.add(one.call(method, f"{path}?nonsense=1", body))
    found.add(one.call(method, route.format(**UNKNOWN), b'{"user": 99}' if body else b""))
    found.add(one.call(method, path, body, **{"x-long": "x" * 200_000}))
    credentials = base64.b64encode(f"me:{one.token}".encode()).decode()
    from_elsewhere = {"origin": "http://evil.example"} | (
        {"authorization": f"Basic {credentials}"} if one.token else {}
    )
    found.add(one.call(method, path, body, **from_elsewhere))
    if one.token:
        found.add(one.call(method, path, body, authorization="Bearer wrong-token"))
    for wrong in (b"{", b"{}", b'{"inputs": []}', b" " * 20_001) if body else ():
        found.add(one.call(method, path, wrong))
    found.add(one.call(method, path, body, **{"content-type": "text/plain"}))
    found.add(one.call(method, path, body, **{"content-encoding": "gzip"}))
    found.add(_without_its_body(one, method, path))
    found.add(stuck.call(method, path, body))
    with patch.context() as broken:
        broken.setattr(one.front, "connections", range(9))
        broken.setattr(one.front, "most", 1)
        found.add(one.call(method, path, body))
    with patch.context() as broken:
        broken.setattr(one.service, "draining", True)
        broken.setattr(one.service.batcher, "max_queue", 0)
        broken.setattr(one.service.side.batcher, "max_queue", 0)
        found.add(one.call(method, path, body))
    with patch.context() as broken:
        broken.setattr(one.service.live, "load", lambda: (_ for _ in ()).throw(ValueError("broken")))
        found.add(one.call(method, path, body))
    with patch.context() as broken:
        for thing, name in ((app_module, "as_json"), (openapi, "page"), (one.service.instruments, "page")):
            broken.setattr(thing, name, lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        found.add(one.call(method, path, body))
    return found


def _without_its_body(one: Running, method: str, path: str) -> int:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{one.port}\r\nauthorization: Bearer {one.token}\r\n"
    with socket.create_connection(("127.0.0.1", one.port), timeout=60) as connection:
        connection.sendall(f"{head}content-length: 5\r\n\r\n".encode())
        return int(connection.recv(65536).split()[1])


def test_every_status_is_described(one: Running, stuck: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for (route, method), operation in described(one).items():
        given = statuses(one, stuck, method.upper(), route, monkeypatch)
        assert {str(status) for status in given} == set(operation["responses"]), (method, route)


def test_every_route_is_described(one: Running) -> None:
    app: Any = one.front.app
    found = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in app.routes
        for method in route.methods
        if method not in ("OPTIONS", "HEAD")
    }
    assert found == set(described(one))
