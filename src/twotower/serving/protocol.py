"""Reading HTTP: heads of requests are bounded before anything else is known of them."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twotower.serving.problems import JSON, Problem

HEAD_BYTES = 65_536
TOO_LARGE = Problem(431, f"the head of the request is larger than {HEAD_BYTES} bytes.", "Send shorter headers.")


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's, and a head of more than `HEAD_BYTES` is answered 431, and its connection closed.

    The parser joins the pieces of a header anew with each that comes, which without a bound is quadratic in its length.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head, self._head = True, 0

    def data_received(self, data: bytes) -> None:
        """Some bytes, of a head, a body, or several requests."""
        rest = memoryview(data)
        while len(rest) and not self.transport.is_closing():
            piece = rest[: HEAD_BYTES - self._head if self._in_head else HEAD_BYTES]
            rest = rest[len(piece) :]
            began = self._in_head
            super().data_received(bytes(piece))
            if self._in_head and began:  # where a head begins inside a piece is not known: such a piece is not counted
                self._head += len(piece)
                if self._head >= HEAD_BYTES:
                    self._refuse()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._head = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may begin."""
        self._in_head = True
        super().on_message_complete()

    def _refuse(self) -> None:
        body = TOO_LARGE.body()
        head = f"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(head.encode() + b"content-type: " + JSON + b"\r\n\r\n" + body)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: anybody may ask for a WebSocket, and is answered as if it were not asked for."""
