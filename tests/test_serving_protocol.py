"""HTTP below the application: what strangers may send is bounded in bytes and in time."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from twotower.serving import protocol as protocol_module
from twotower.serving.protocol import BoundedProtocol

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n"
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, ServerState], Awaitable[bytes]]


async def _length(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message.get("more_body", False)
    await _say(send, str(length).encode())


async def _at_once(scope: Any, receive: Any, send: Any) -> None:
    await _say(send, b"early")


async def _say(send: Any, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def met(peer: Peer, app: Any = _length) -> bytes:
    """What somebody gets who connects to the protocol."""

    async def main() -> bytes:
        config = uvicorn.Config(app, http=BoundedProtocol, ws="none", log_config=None)
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: BoundedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        try:
            return await asyncio.wait_for(peer(reader, writer, state), 60)
        finally:
            writer.transport.abort()
            listening.close()
            while state.connections:
                await asyncio.sleep(0.01)

    return asyncio.run(main())


def told(*pieces: bytes, answers: int = 1) -> bytes:
    """What comes back of pieces that are sent one after the other, until there are so many answers."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> bytes:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        found = b""
        for _answer in range(answers):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found += head + await reader.readexactly(length)
        return found

    return met(peer)


def test_heads_are_bounded() -> None:
    start = b"POST / HTTP/1.1\r\nhost: x\r\n"
    for long in (b"a: " + b"x" * 70_000, b"a: b\r\n" * 20_000, b"a: b\r\n" * 400_000):
        assert told(start + long).startswith(b"HTTP/1.1 431 ")
        assert told(start, *[long[at : at + 1000] for at in range(0, len(long), 1000)]).startswith(b"HTTP/1.1 431 ")
    assert told(b"GET /" + b"x" * 70_000).startswith(b"HTTP/1.1 431 ")
    fits = b"a: " + b"x" * 60_000 + b"\r\n"
    whole = start + fits + b"content-length: 300000\r\n\r\n" + b"y" * 300_000
    found = told(whole * 3, answers=3)  # the bodies, and heads in the same pieces as bodies, do not count
    assert (found.count(b"HTTP/1.1 200"), found.count(b"300000"), b"431" in found) == (3, 3, False)


def test_what_is_no_http_is_refused_as_everything() -> None:
    for noise in (b"\x16\x03\x01 no HTTP\r\n\r\n", b"FOO / HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n"):
        head, _, body = told(noise).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"] == "this is no HTTP request."


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
@pytest.mark.parametrize("apart", [False, True])
def test_asking_for_another_protocol_changes_nothing(
    protocol: bytes, apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Java's own client asks for h2c with its first request, whose body must not be lost."""
    head, body = POST + b"connection: upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n", b'{"user": 3}'
    found = told(*([head, body] if apart else [head + body]), GET, answers=2)
    assert [answer[-2:] for answer in found.split(b"HTTP/1.1 200")[1:]] == [b"11", b"\n0"]
    assert caplog.text == ""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "READ_SECONDS", 0.1)
    monkeypatch.setattr(protocol_module, "WRITE_SECONDS", 0.1)


async def _dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, start: bytes, drop: bytes) -> bytes:
    """What comes of bytes that come one by one, until the connection is closed."""

    async def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(drop)
                await writer.drain()
                await asyncio.sleep(0.01)

    writer.write(start)
    dripping = asyncio.ensure_future(drip())
    found = b""
    with contextlib.suppress(OSError):
        while some := await reader.read(65536):
            found += some
    dripping.cancel()
    return found


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("start", "drop", "app", "found"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n", _length, [408]),
        (b"GET /", b"a", _length, [408]),
        (GET + b"GET ", b"/", _length, [200, 408]),
        (POST.replace(b"11", b"1100000") + b"\r\n", b"x", _at_once, [200]),  # the rest of a body that nobody reads
    ],
)
def test_who_sends_slowly_is_not_waited_for(start: bytes, drop: bytes, app: Any, found: list[int]) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> bytes:
        return await _dripping(reader, writer, start, drop)

    answer = met(peer, app)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == found


@pytest.mark.usefixtures("impatient")
def test_who_asks_nothing_is_not_waited_for() -> None:
    async def peer(reader: asyncio.StreamReader, _: asyncio.StreamWriter, __: ServerState) -> bytes:
        return await reader.read()

    assert met(peer) == b""


@pytest.mark.usefixtures("impatient")
def test_who_waits_for_an_answer_is_not_cut_off() -> None:
    """The next head may lie half sent meanwhile."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await _say(send, b"late")

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: ServerState) -> bytes:
        writer.write(GET + GET[:9])
        first = await reader.readuntil(b"late")
        writer.write(GET[9:])
        return first + await reader.readuntil(b"late")

    assert met(peer, slow).count(b"200 OK") == 2


@pytest.mark.usefixtures("impatient")
def test_who_does_not_read_is_not_waited_for() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await _say(send, b"x" * 50_000_000)

    async def peer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, state: ServerState) -> bytes:
        writer.write(GET)
        while not state.connections:
            await asyncio.sleep(0.01)
        while state.connections:
            await asyncio.sleep(0.01)
        return b"gone"

    assert met(peer, endless) == b"gone"


@pytest.mark.parametrize(("left", "looks"), [([9, 9], 1), ([9, 5, 5], 2), ([9, 5, 1, 0], 4)])
def test_who_reads_slowly_is_waited_for_and_who_does_not_is_let_go(left: list[int], looks: int) -> None:
    """What is left to send is looked at now and then; the connection ends when nothing was taken in between."""
    waiting: list[Any] = []
    sizes, aborted = iter(left), []
    protocol = BoundedProtocol.__new__(BoundedProtocol)
    protocol.loop = SimpleNamespace(call_later=lambda seconds, *call: waiting.append(call))  # type: ignore[assignment]
    protocol.transport = SimpleNamespace(  # type: ignore[assignment]
        get_write_buffer_size=lambda: next(sizes), abort=lambda: aborted.append(True)
    )
    protocol._wait_for_the_client()
    for look in range(looks):
        assert not aborted, look
        if look == len(left) - 1:
            return  # everything was taken
        again, *given = waiting.pop()
        again(*given)
    assert aborted
