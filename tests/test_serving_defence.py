"""What strangers may send: bounded before it costs anything, and refused with a reason."""

import asyncio
import contextlib
import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from litestar.testing import TestClient
from typer.testing import CliRunner
from uvicorn.server import ServerState

from twotower.cli.app import app
from twotower.serving import live as live_module
from twotower.serving import server, waiting
from twotower.serving import service as service_module
from twotower.serving.app import make_app
from twotower.serving.explorer import routes as routes_module
from twotower.serving.instruments import Instruments
from twotower.serving.live import Live
from twotower.serving.problems import Problem
from twotower.serving.protocol import BoundedProtocol
from twotower.serving.searching import ItemSearch
from twotower.serving.service import Service
from twotower.serving.settings import Limits, Settings

from . import serving_world as world

QUERY = {"user_id": 3, "age": 20.5, "history": ["i4", "i7"]}
Client = TestClient[Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("defence")
    world.make_retriever(0).save(folder / "one")
    return folder / "one"


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    front, _ = make_app(Live(bundle), Settings(limits=Limits(questions=5, k=50, results=100), watch=0, explorer=False))
    with TestClient(front) as made:
        yield made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"history": {"shape": [1_000_000_000, 0], "data": []}}, "different numbers of rows"),
        ({name: {"shape": [10**9, 0][: 1 + (name == "history")], "data": []} for name in QUERY}, "1000000000 rows"),
        ({name: {"shape": [6, 0][: 1 + (name == "history")], "data": []} for name in QUERY}, "6 rows"),
        ({name: {"shape": [0, 0][: 1 + (name == "history")], "data": []} for name in QUERY}, "0 rows"),
        ({"history": {"shape": [1, 10**30]}}, "expected [rows, length]"),
        ({"age": {"data": [10**400]}}, "beyond a double"),
        ({"user_id": {"data": [10**400]}}, "a whole number beyond 64 bits"),
        ({"user_id": {"data": [2**63]}}, "is declared INT64, but holds"),
        ({"user_id": {"data": [200], "datatype": "INT8"}}, "is declared INT8, but holds 200"),
        ({"history": {"data": [10**400, "i1"]}}, "is declared BYTES, but holds a whole number beyond"),
        ({"parameters": {"k": 10**400}}, "parameter k is a whole number beyond 64 bits"),
    ],
)
def test_tensors_are_bounded_before_they_are_built(change: dict[str, Any], says: str, client: Client) -> None:
    tensors = {
        "user_id": {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [3]},
        "age": {"name": "age", "shape": [1], "datatype": "FP64", "data": [3.0]},
        "history": {"name": "history", "shape": [1, 2], "datatype": "BYTES", "data": ["i1", "i2"]},
    }
    asked: dict[str, Any] = {"inputs": [tensor | change.get(name, {}) for name, tensor in tensors.items()]}
    asked |= {name: value for name, value in change.items() if name not in tensors}
    response = client.post("/v2/models/one/infer", content=json.dumps(asked))
    assert response.status_code == 422, response.text
    assert says in response.text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"user": 3, "fields": ["title", "title"]}, "more than once"),
        (
            [{"user": 3, "k": 50}, {"user": 4, "k": 50}, {"user": 5, "k": 1}],
            "101 items together, but a body may ask for 100",
        ),
    ],
)
def test_an_answer_is_bounded(body: object, says: str, client: Client) -> None:
    response = client.post("/recommend", json=body)
    assert response.status_code == 422, response.text
    assert says in response.text
    assert client.post("/recommend", json=[{"user": 3, "k": 50}, {"user": 4, "k": 50}]).status_code == 200


def test_ids_of_64_bits(client: Client) -> None:
    for number in (2**62, -(2**63), 2**63 - 1):
        response = client.get(f"/recommend/{number}")
        assert (response.status_code, f"nothing is known of the user {number}" in response.text) == (404, True)
    assert "whole number" in client.get(f"/recommend/{2**64}").text


def test_the_scheme_of_a_token_in_any_case(bundle: Path) -> None:
    front, _ = make_app(Live(bundle), Settings(token="sesame-open", watch=0, explorer=False))
    with TestClient(front) as client:
        for sent, status in (("bearer sesame-open", 200), ("BEARER sesame-open", 200), ("basic sesame-open", 401)):
            assert client.get("/", headers={"authorization": sent}).status_code == status


def test_a_panic_ends_no_thread(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars' own panics are no Exceptions."""

    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("in Rust")

    front, _ = make_app(Live(bundle), Settings(watch=0))
    with TestClient(front) as client:
        with monkeypatch.context() as patch:
            patch.setattr(service_module, "answer", panic)
            patch.setattr(ItemSearch, "find", panic)
            patch.setattr(routes_module, "facts", panic)
            patch.setattr(live_module, "warm_up", panic)
            for method, path, status in (
                ("GET", "/recommend/3", 500),
                ("GET", "/items?search=title", 500),
                ("GET", "/explore", 500),
                ("POST", "/reload", 409),
            ):
                response = client.request(method, path)
                assert response.status_code == status, response.text
            assert "in Rust" in response.text
        for path in ("/recommend/3", "/items?search=title", "/explore"):
            assert client.get(path).status_code == 200
        assert client.post("/reload").status_code == 200


def test_a_search_or_a_page_that_takes_too_long(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are answered in time, and what is begun holds its thread until it ends, so that there are never more of them."""
    go, begun = threading.Event(), []

    def find(_: object, text: str, limit: int) -> list[str]:
        begun.append(text)
        assert go.wait(30)
        return ["i3"]

    monkeypatch.setattr(ItemSearch, "find", find)
    front, service = make_app(Live(bundle), Settings(limits=Limits(timeout=0.2), watch=0))
    with TestClient(front) as client:
        for _ in range(waiting.THREADS // 2):
            assert client.get("/items?search=a").status_code == 504
            page = client.get("/explore/search?q=a")
            assert (page.status_code, "There was no answer within 0.2 s." in page.text) == (504, True)
        assert client.get("/explore/search.json?q=b").status_code == 504  # waited for a thread
        service.side.batcher.max_queue = 0
        for path in ("/items?search=a", "/explore/search?q=a", "/explore/search.json?q=a"):
            response = client.get(path)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert dropped(front, "timeout") == waiting.THREADS + 1
        assert dropped(front, "full") == 3
        assert begun == ["a"] * waiting.THREADS
        go.set()
        service.side.batcher.max_queue = 1
        for path in ("/items?search=c", "/explore/search?q=c"):
            wait_for(lambda path=path: client.get(path).status_code == 200)  # type: ignore[misc]
    assert "b" not in begun  # who left while it waited


def dropped(front: Any, reason: str) -> float:
    value = front.instruments.registry.get_sample_value("twotower_dropped_total", {"reason": reason})
    assert value is not None
    return float(value)


def test_the_explorer_holds_no_bundle_that_was_served_before(bundle: Path) -> None:
    front, service = make_app(Live(bundle), Settings(watch=0))
    with TestClient(front) as client:
        for path in ("/explore", "/explore/search?q=title", "/items?search=title", "/items/i3"):
            assert client.get(path).status_code == 200
        before = weakref.ref(service.live.current.retriever)
        assert client.post("/reload").status_code == 200
        gc.collect()
        assert before() is None


def test_what_was_refused_stays_refused_until_a_load_succeeds(bundle: Path, tmp_path: Path) -> None:
    """The manifest is that of what is served, and the weights below it are broken."""
    served = tmp_path / "served"
    shutil.copytree(bundle, served)
    weights = served / "model" / "weights.safetensors"
    whole = weights.read_bytes()

    async def main() -> None:
        live = Live(served)
        service = Service(live, Settings(watch=0), Instruments())
        await service.load()
        weights.write_bytes(whole[:-1])
        for force in (True, False, False):
            with pytest.raises(Problem, match="cut short"):
                await service.reload(force=force)
            assert live.refused is not None
        weights.write_bytes(whole)
        await service.reload()
        assert live.refused is None
        service.close()

    asyncio.run(main())


def test_the_watch_outlives_whatever_happens(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        live = Live(bundle)
        service = Service(live, Settings(watch=0.001), Instruments())
        await service.load()
        raised: list[Exception] = []
        done = asyncio.Event()

        async def reload(force: bool = False) -> None:
            if len(raised) < 3:
                raised.append(Problem(409, "of another") if len(raised) == 1 else RuntimeError("odd"))
                raise raised[-1]
            done.set()

        service.reload = reload  # type: ignore[method-assign]
        live.refused = "something"
        watching = asyncio.ensure_future(service.watch())
        await asyncio.wait_for(done.wait(), 20)
        watching.cancel()
        service.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "RETRY", (0.0,))
        asyncio.run(main())
    assert caplog.text.count("RuntimeError: odd") == 2


def test_a_forced_reload_is_not_content_with_one_that_began_before(bundle: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(bundle, served)

    async def main() -> None:
        live = Live(served)
        service = Service(live, Settings(watch=0), Instruments())
        await service.load()
        load, go, begun = live.load, threading.Event(), threading.Event()

        def slow() -> Any:
            found = load()
            begun.set()
            assert go.wait(30)
            return found

        live.load = slow  # type: ignore[method-assign]
        first = asyncio.ensure_future(service.reload(force=True))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        world.make_retriever(1).save(served)
        second = asyncio.ensure_future(service.reload(force=True))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, second)
        assert live.current.version == live.version_there()
        service.close()

    asyncio.run(main())


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def status_with(client: Client, method: str, path: str, **headers: str) -> int:
    return client.request(method, path, headers={n.replace("_", "-"): v for n, v in headers.items()}).status_code


def test_pages_of_other_sites_may_not_ask(bundle: Path) -> None:
    hosts = ("localhost", "127.0.0.1", "[::1]")
    front, _ = make_app(Live(bundle), Settings(hosts=hosts, watch=0, explorer=False))
    with TestClient(front, base_url="http://127.0.0.1:8000") as client:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]"):
            assert status_with(client, "GET", "/", host=host) == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[::2]:8000", "127.0.0.1.evil", ""):
            assert status_with(client, "GET", "/recommend/3", host=host) == 403
            assert status_with(client, "GET", "/health/ready", host=host) == 200
        for origin in (
            "http://evil.example",
            "null",
            "http://127.0.0.1:3000",
            "http://localhost:8000",
            "http://127.0.0.1:8000.evil.example",
        ):
            assert status_with(client, "POST", "/reload", origin=origin) == 403
        assert status_with(client, "POST", "/reload", origin="http://127.0.0.1:8000") == 200
        assert status_with(client, "POST", "/reload", sec_fetch_site="cross-site") == 403
        assert status_with(client, "POST", "/reload", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 403
        assert status_with(client, "GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
        assert status_with(client, "GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200
        assert status_with(client, "GET", "/", sec_fetch_site="same-origin") == 200


def test_a_token_is_enough_wherever_it_comes_from(bundle: Path) -> None:
    front, _ = make_app(Live(bundle), Settings(token="sesame-open", hosts=("localhost",), watch=0, explorer=False))
    with TestClient(front) as client:
        opened = {"authorization": "Bearer sesame-open", "host": "proxy", "origin": "https://elsewhere"}
        assert status_with(client, "GET", "/", **opened) == 200


def test_the_command_knows_the_names_of_this_machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Settings] = []
    monkeypatch.delenv("TWOTOWER_TOKEN", raising=False)
    monkeypatch.setattr(server, "serve", lambda live, settings, **_: ran.append(settings))
    for arguments in ([], ["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--allow-host", "films.example"]):
        assert CliRunner().invoke(app, ["serve", str(bundle), *arguments]).exit_code == 0
    assert ran[0].hosts is not None
    assert set(ran[0].hosts) == {"localhost", "127.0.0.1", "[::1]"}
    assert ran[1].hosts is None
    assert ran[2].hosts is not None
    assert "films.example" in ran[2].hosts


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message.get("more_body", False)
    body = str(length).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


def told(*pieces: bytes) -> bytes:
    """What the protocol answers to pieces that come one after the other on one connection."""

    async def main() -> bytes:
        config = uvicorn.Config(_hello, http=BoundedProtocol, ws="none", log_config=None)
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: BoundedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        with contextlib.suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        found = b""
        with contextlib.suppress(asyncio.TimeoutError, OSError):
            while some := await asyncio.wait_for(reader.read(65536), 0.5):
                found += some
        writer.close()
        listening.close()
        return found

    return asyncio.run(main())


def test_heads_are_bounded() -> None:
    start = b"POST / HTTP/1.1\r\nhost: x\r\n"
    for long in (b"a: " + b"x" * 70_000, b"a: b\r\n" * 20_000):
        assert told(start + long).startswith(b"HTTP/1.1 431 ")
        assert told(start, *[long[at : at + 1000] for at in range(0, len(long), 1000)]).startswith(b"HTTP/1.1 431 ")
    assert told(b"GET /" + b"x" * 70_000).startswith(b"HTTP/1.1 431 ")
    fits = b"a: " + b"x" * 60_000 + b"\r\n"
    whole = start + fits + b"content-length: 300000\r\n\r\n" + b"y" * 300_000
    found = told(whole * 3)  # the bodies, and heads in the same pieces as bodies, do not count
    assert (found.count(b"HTTP/1.1 200"), found.count(b"300000"), b"431" in found) == (3, 3, False)


def test_asking_for_a_websocket_writes_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = told(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200")
    assert caplog.text == ""
