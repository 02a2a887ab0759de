"""A server that is asked too much, or fails: it says so in time, and goes on."""

import asyncio
import resource
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from litestar.testing import TestClient

from twotower.serving import live as live_module
from twotower.serving import server, waiting
from twotower.serving import service as service_module
from twotower.serving.app import make_app
from twotower.serving.explorer import routes as routes_module
from twotower.serving.live import Live
from twotower.serving.searching import ItemSearch
from twotower.serving.settings import Limits, Settings

from . import serving_world as world
from .serving_world import dropped, wait_for


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.saved(tmp_path_factory.mktemp("serving"))


class Held:
    """Answers that wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        work = service_module.answer

        def wait(*arguments: Any) -> Any:
            self.begun.set()
            assert self.go.wait(30)
            return work(*arguments)

        monkeypatch.setattr(service_module, "answer", wait)


def asked(front: Any, *bodies: object) -> list[httpx.Response]:
    """Bodies asked one right after the other, without waiting for answers."""

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(front)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))

    return asyncio.run(main())


def test_a_full_queue_is_told_at_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    settings = Settings(limits=Limits(questions=2), max_queue=2, watch=0, explorer=False)
    live = Live(bundle)
    live.take(live.load())
    front, service = make_app(live, settings)
    timer = threading.Timer(0.3, held.go.set)
    timer.start()
    responses = asked(front, {"user": 1}, [{"user": 2}, {"user": 3}], {"user": 4}, {"user": 5})
    assert [r.status_code for r in responses] == [200, 200, 503, 503]
    assert responses[2].headers["retry-after"] == "1"
    assert "2 questions are waiting, 2 may" in responses[2].json()["error"]
    assert dropped(front, "full") == 2
    service.close()


def test_an_answer_that_takes_too_long(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    live = Live(bundle)
    live.take(live.load())
    front, service = make_app(live, Settings(limits=Limits(timeout=0.05), watch=0, explorer=False))
    (response,) = asked(front, {"user": 1})
    assert (response.status_code, response.json()["error"]) == (504, "there was no answer within 0.05 s.")
    assert dropped(front, "timeout") == 1
    held.go.set()
    service.close()


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


@pytest.mark.parametrize("path", ["/recommend/3", "/items", "/explore"])
def test_who_goes_away_is_not_worked_for(path: str, bundle: Path) -> None:
    """A question that nobody waits for leaves the queue, as one that a browser gave up for the next letter."""
    live = Live(bundle)
    live.take(live.load())
    front, service = make_app(live, Settings(watch=0))
    batchers = (service.batcher, service.side.batcher)
    for batcher in batchers:
        batcher._start = lambda *_: None  # type: ignore[method-assign]

    async def main() -> list[int]:
        asked, statuses = False, []

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                assert sum(batcher.waiting for batcher in batchers) == 1
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": [], "root_path": "", "server": ("test", 80), "scheme": "http", "http_version": "1.1",
                 "client": ("test", 1), "state": {}}  # fmt: skip
        await front(scope, receive, send)  # type: ignore[arg-type]
        return statuses

    assert asyncio.run(main())[0] == 499
    assert sum(batcher.waiting for batcher in batchers) == 0
    assert dropped(front, "gone") == 1
    service.close()


def test_a_failure_of_ours_is_logged_and_not_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(service_module, "answer", broken)
    live = Live(bundle)
    live.take(live.load())
    front, service = make_app(live, Settings(watch=0, explorer=False))
    (response,) = asked(front, {"user": 1})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "the secret of the house" in caplog.text
    service.close()


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


def test_more_connections_than_are_answered(bundle: Path) -> None:
    """Whoever comes is told so, but for those that watch over the server."""
    front, service = make_app(Live(bundle), Settings(watch=0, explorer=False))
    running = server.Server(uvicorn.Config(front, log_config=None), front, service, 0.0, 2)  # type: ignore[arg-type]
    with TestClient(front) as client:
        running.server_state.connections.update(range(2))  # type: ignore[arg-type]
        assert client.get("/recommend/3").status_code == 200
        running.server_state.connections.add(2)  # type: ignore[arg-type]
        refused = client.get("/recommend/3")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "too many connections are open" in refused.json()["error"]
        assert client.get("/health/live").status_code == 200


def test_as_many_files_as_connections_need() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))
        for wanted, given in ((400, 500), (600, 600), (550, 600)):
            server.allow_files(wanted)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (given, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limits_are_numbers_that_can_be_kept() -> None:
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout must be more than 0 and finite"):
            Limits(timeout=value)
