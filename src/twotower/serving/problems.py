"""Errors as clients get them: a status, what was wrong, and what to do."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

JSON = b"application/json"
T = TypeVar("T")


class Problem(Exception):  # noqa: N818 - what a client did is no error of ours
    """A request that is not answered as asked.

    Args:
        status: of HTTP.
        error: what came, and what was expected.
        hint: what to do.
        headers: more headers of the response.
    """

    def __init__(
        self, status: int, error: str, hint: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.hint, self.headers = status, error, hint, dict(headers or {})

    def body(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(ErrorBody(self.error, self.hint))


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """What every refusal says."""

    error: str
    hint: str | None = None


def contained(work: Callable[[], T]) -> T:
    """What some work gives; whatever ends it is an Exception.

    Raises:
        RuntimeError: in place of what is no Exception, such as the panic of a library in Rust, which would end the thread.
    """
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


HINTS = {
    404: "GET /schema lists the routes.",
    405: "GET /schema lists the routes and their methods.",
    413: "Send fewer questions, or shorter lists, at a time.",
}
