"""Waiting for answers that come from threads: not for ever, not among too many, and not for a client that is gone."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twotower.serving.batching import Batcher, QueueFullError
from twotower.serving.problems import Problem
from twotower.serving.reading import AnyRequest

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")
Dropped = Callable[[str, int], None]
LISTEN_AFTER = 0.05  # seconds, after which it is worth asking whether the client is still there
THREADS, MAY_WAIT = 4, 32  # of the work beside the answers


async def answered(
    batcher: Batcher[Q, A], questions: Sequence[Q], request: AnyRequest, timeout: float, dropped: Dropped
) -> Sequence[A]:
    """The answers to one client's questions.

    Args:
        batcher: gives them.
        questions: answered together.
        request: of the client; its questions leave the queue when it goes away.
        timeout: seconds.
        dropped: told of questions that stay unanswered, why ("full", "timeout" or "gone") and how many.

    Raises:
        Problem: 503, too many wait; 504, it takes too long; 499, the client is gone.
    """
    try:
        future = batcher.ask(questions, timeout)
    except QueueFullError as error:
        dropped("full", len(questions))
        raise Problem(503, str(error), "Ask again in a second.", {"retry-after": "1"}) from None
    listener = asyncio.get_running_loop().call_later(LISTEN_AFTER, _listen, request, future)
    try:
        return await future
    except asyncio.TimeoutError:
        dropped("timeout", len(questions))
        text = f"there was no answer within {timeout:g} s."
        raise Problem(504, text, "Ask again, or for less at a time.") from None
    except asyncio.CancelledError:
        if not future.cancelled():
            raise
        dropped("gone", len(questions))
        raise Problem(499, "the client is gone.") from None
    finally:
        listener.cancel()


def _listen(request: AnyRequest, future: "asyncio.Future[Any]") -> None:
    """Drop the questions of a client that goes away."""

    async def listening() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue
        future.cancel()

    task = asyncio.ensure_future(listening())
    future.add_done_callback(lambda _: task.cancel())


class Aside:
    """Work beside the answers, such as searches and pages, in a few threads of its own.

    Args:
        timeout: seconds that a client waits.
        dropped: as in `answered`.
    """

    def __init__(self, timeout: float, dropped: Dropped) -> None:
        self.batcher: Batcher[Callable[[], Any], Any] = Batcher(
            lambda works: [work() for work in works], threads=THREADS, max_batch=1, max_queue=MAY_WAIT
        )
        self._timeout, self._dropped = timeout, dropped

    async def run(self, work: Callable[[], T], request: AnyRequest) -> T:
        """What some work gives; what is begun goes on to its end, whoever has left meanwhile.

        Raises:
            Problem: as `answered`; or what the work raises.
        """
        (found,) = await answered(self.batcher, [work], request, self._timeout, self._dropped)
        return found

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
