"""Reading HTTP: heads of requests are bounded in bytes and in time before anything else is known of them."""

import asyncio
import math
import re
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twotower.serving.problems import JSON, Problem

HEAD_BYTES = 65_536
READ_SECONDS = 10.0  # for a head to come, and for the rest of a body that nobody waits for
WRITE_SECONDS = 60.0  # for a client to take what was sent
TOO_LARGE = Problem(431, f"the head of the request is larger than {HEAD_BYTES} bytes.", "Send shorter headers.")
TOO_SLOW = Problem(408, f"the head of the request did not come within {READ_SECONDS:g} s.")
NO_HTTP = Problem(400, "this is no HTTP request.", "GET /schema describes the routes.")
UPGRADE = re.compile(rb"(?i)\r\nupgrade:")


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's, and nobody holds a connection by sending slowly, or by not reading what comes back.

    A head of more than `HEAD_BYTES` is answered 431: the parser joins the pieces of a header anew with each that comes, which
    without a bound is quadratic in its length. A head that does not come in `READ_SECONDS` is answered 408.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head, self._head, self._refused = True, 0, False
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of everything that is not taken
        self._wait_for_the_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._read()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes, of a head, a body, or several requests."""
        if self._in_head:
            if self._reading is None:
                self._wait_for_the_rest()
            # anybody may ask for another protocol and is answered in this one; the parser would take the body for the other's
            head, end, body = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"\r\nno-upgrade:", head) + end + body
        rest = memoryview(data)
        while len(rest) and not self._refused and not self.transport.is_closing():
            piece = rest[: HEAD_BYTES - self._head if self._in_head else HEAD_BYTES]
            rest = rest[len(piece) :]
            began = self._in_head
            super().data_received(bytes(piece))
            if self._in_head and began:  # where a head begins inside a piece is not known: such a piece is not counted
                self._head += len(piece)
                if self._head >= HEAD_BYTES:
                    self._refuse(TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._head = False, 0
        self._read()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may begin."""
        self._in_head = True
        self._read()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is given; the rest of a body that was refused is not read for ever."""
        super().on_response_complete()
        if not self._in_head:
            self._wait_for_the_rest()

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        super().pause_writing()
        self._wait_for_the_client()

    def resume_writing(self) -> None:
        """It takes it, or is gone."""
        if self._writing is not None:
            self._writing.cancel()
        super().resume_writing()

    def _wait_for_the_client(self, left: float = math.inf) -> None:
        """Gives up when of what is to be sent nothing was taken for a while."""
        now = self.transport.get_write_buffer_size()
        if now < left:
            self._writing = self.loop.call_later(WRITE_SECONDS, self._wait_for_the_client, now)
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """As JSON, as everything."""
        self._refuse(NO_HTTP)

    def _read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _wait_for_the_rest(self) -> None:
        self._read()
        self._reading = self.loop.call_later(READ_SECONDS, self._late)

    def _late(self) -> None:
        if self._refused:
            self.transport.close()
        elif self.cycle is not None and not self.cycle.response_complete:  # it is we who keep the client waiting
            self._wait_for_the_rest()
        elif self._head:
            self._refuse(TOO_SLOW)
            self.transport.close()
        else:  # nothing is asked, or the rest of what was answered: an answer would be taken for that of a next request
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # its answer would come after this one
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body, status = problem.body(), HTTPStatus(problem.status)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(head.encode() + b"content-type: " + JSON + b"\r\n\r\n" + body)
        self._refused = True  # what still comes is read and left: to close before would take the answer from the client
        self._wait_for_the_rest()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: it is what anybody may ask for."""
