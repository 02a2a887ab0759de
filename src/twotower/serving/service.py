"""The running service: questions in, answers out; a new bundle comes in while they go on."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from twotower.serving.batching import Batcher, QueueFullError
from twotower.serving.instruments import Instruments
from twotower.serving.live import Live, Snapshot, touch_users
from twotower.serving.problems import Problem, contained
from twotower.serving.reading import AnyRequest, check_together
from twotower.serving.requests import Answer, Question, Refusal, answer
from twotower.serving.settings import Settings

log = logging.getLogger("twotower.serve")
T = TypeVar("T")
Answers = Sequence[Answer | Refusal]
SEARCHES = 32  # that may wait
LISTEN_AFTER = 0.05  # seconds, after which it is worth asking whether the client is still there
RETRY = (5.0, 10.0, 20.0, 40.0, 60.0)  # seconds between tries of a bundle that was refused


class Service:
    """Answers questions with what is live.

    Args:
        live: the bundle.
        settings: limits and threads.
        instruments: count.
    """

    def __init__(self, live: Live, settings: Settings, instruments: Instruments) -> None:
        self.live, self.settings, self.instruments = live, settings, instruments
        self.draining = False
        self.batcher: Batcher[Question, Answer | Refusal] = Batcher(
            self._work,
            threads=settings.threads,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
        )
        self._side = ThreadPoolExecutor(
            1, "side"
        )  # searching items by text, loading bundles: not in the way of answers
        self._loader = ThreadPoolExecutor(1, "loader")
        self._reloading: asyncio.Future[None] | None = None
        self._searches = threading.BoundedSemaphore(SEARCHES)
        self._told: list[Callable[[], None]] = []

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self.live.loaded and not self.draining

    # ---- answers

    async def answers(self, questions: Sequence[Question], request: AnyRequest) -> Answers:
        """The answers of one client's questions.

        Raises:
            Problem: over the limits, too busy, too slow, or the client is gone.
        """
        check_together(questions, self.settings.limits)
        self._check_ready()
        try:
            future = self.batcher.ask(questions, self.settings.limits.timeout)
        except QueueFullError as error:
            self._drop("full", len(questions))
            raise Problem(503, str(error), "Ask again in a second.", {"retry-after": "1"}) from None
        listener = asyncio.get_running_loop().call_later(LISTEN_AFTER, self._listen, request, future)
        try:
            return await future
        except asyncio.TimeoutError:
            self._drop("timeout", len(questions))
            raise self._late() from None
        except asyncio.CancelledError:
            if not future.cancelled():
                raise
            self._drop("gone", len(questions))
            raise Problem(499, "the client is gone.") from None
        finally:
            listener.cancel()

    def _work(self, questions: Sequence[Question]) -> Answers:
        """In a thread of the batcher."""
        start, snapshot = time.perf_counter(), self.live.current
        given = answer(snapshot.retriever, questions, snapshot.cards)
        self.instruments.batch_size.observe(len(questions))
        self.instruments.batch_seconds.observe(time.perf_counter() - start)
        return given

    def _listen(self, request: AnyRequest, future: "asyncio.Future[Answers]") -> None:
        """Drop the questions of a client that goes away."""

        async def listening() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                continue
            future.cancel()

        task = asyncio.ensure_future(listening())
        future.add_done_callback(lambda _: task.cancel())

    def _drop(self, reason: str, count: int) -> None:
        self.instruments.dropped.labels(reason).inc(count)

    def _late(self) -> Problem:
        text = f"there was no answer within {self.settings.limits.timeout:g} s."
        return Problem(504, text, "Ask again, or for less at a time.")

    def _check_ready(self) -> None:
        if not self.live.loaded:
            raise Problem(503, "no bundle is loaded yet.", "Ask again in a second.", {"retry-after": "1"})

    async def aside(self, work: Callable[[Snapshot], T]) -> T:
        """Some other work on what is live, in a thread of its own.

        Raises:
            Problem: much of it waits already, or it takes too long.
        """
        self._check_ready()
        if not self._searches.acquire(blocking=False):
            self._drop("full", 1)
            raise Problem(503, "many searches are waiting.", "Ask again in a second.", {"retry-after": "1"})
        snapshot = self.live.current
        waiting = self._side.submit(contained, lambda: work(snapshot))
        waiting.add_done_callback(lambda _: self._searches.release())  # at its end, whoever has left meanwhile
        try:
            return await asyncio.wait_for(asyncio.wrap_future(waiting), self.settings.limits.timeout)
        except asyncio.TimeoutError:
            self._drop("timeout", 1)
            raise self._late() from None

    # ---- bundles

    async def load(self) -> None:
        """Load the first bundle.

        Raises:
            ValueError: it is broken.
        """
        if not self.live.loaded:
            self.live.take(await asyncio.get_running_loop().run_in_executor(self._loader, self.live.load))
        await self._touch(self.live.current)
        self._tell()

    def when_taken(self, function: Callable[[], None]) -> None:
        """Call a function each time that a bundle has taken the place of another."""
        self._told.append(function)

    async def reload(self, force: bool = False) -> None:
        """Load what lies at the path, beside what is served, and serve it; whoever asks meanwhile waits for the same one.

        Args:
            force: also if it is the bundle that is served already.

        Raises:
            Problem: 409, it is broken; the one before is served on.
        """
        if force and self._reloading is not None:
            # it may have begun before the bundle that is meant lay there
            await asyncio.wait({self._reloading})
            if self.live.refused is None and self.live.version_there() == self.live.current.version:
                return
        if self._reloading is None:
            self._reloading = asyncio.ensure_future(self._reload(force))
            self._reloading.add_done_callback(self._reloaded)
        await asyncio.shield(self._reloading)

    def _reloaded(self, done: "asyncio.Future[None]") -> None:
        self._reloading = None
        if not done.cancelled():
            done.exception()  # told to those who wait; it is in the log as well

    async def _reload(self, force: bool) -> None:
        version = self.live.version_there()
        if not force and version == self.live.current.version and self.live.refused is None:
            return
        loop = asyncio.get_running_loop()
        try:
            snapshot = await loop.run_in_executor(self._loader, contained, self.live.load)
            await self._touch(snapshot)
            self.live.take(snapshot)
        except Exception as error:  # whatever a broken bundle leads to: the old one goes on
            if not isinstance(error, (ValueError, OSError)):
                log.exception("a bundle could not be loaded")
            self.live.refuse(error)
            self.instruments.reloads.labels("refused").inc()
            self.instruments.stale.set(1)
            hint = f"Bundle {self.live.current.version} is served on. Save a whole one in its place."
            raise Problem(409, f"the bundle is refused: {self.live.refused}", hint) from error
        self.instruments.reloads.labels("served").inc()
        self._tell()

    async def _touch(self, snapshot: Snapshot) -> None:
        """Make a bundle ready in the threads that will answer with it."""
        # each opens its own connection to the users before a further bundle takes the place of the files
        await self.batcher.everywhere(functools.partial(touch_users, snapshot))

    def _tell(self) -> None:
        """Of the bundle that is served now."""
        snapshot = self.live.current
        for function in self._told:
            function()
        self.instruments.stale.set(0)
        self.instruments.items.set(len(snapshot.retriever.items))
        self.instruments.bundle.info(
            {
                "name": self.live.name,
                "version": snapshot.version,
                "created": str(snapshot.manifest.get("created", "")),
                "twotower": str(snapshot.manifest.get("twotower", "")),
            }
        )

    async def watch(self) -> None:
        """Look at the manifest now and then, for ever, and reload when it changes; try what was refused again, ever less."""
        tried, tries, next_try = self.live.current.version, 0, 0.0
        while True:
            await asyncio.sleep(self.settings.watch)
            try:
                version = await asyncio.get_running_loop().run_in_executor(self._loader, self.live.version_there)
                # the same manifest may stand over broken files, so that only a load shows whether they were put right
                if version == self.live.current.version and self.live.refused is None:
                    tried, tries, next_try = version, 0, 0.0
                    continue
                now = time.monotonic()
                if version == tried and now < next_try:
                    continue
                tries = tries + 1 if version == tried else 0
                tried, next_try = version, now + RETRY[min(tries, len(RETRY) - 1)]
                await self.reload()
            except Problem:  # the log says why
                continue
            except Exception:
                log.exception("the bundle could not be looked at; the next look follows")

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        self._side.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
