"""The running service: questions in, answers out; a new bundle comes in while they go on."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from twotower.serving.batching import Batcher
from twotower.serving.instruments import Instruments
from twotower.serving.live import Live, Snapshot, touch_users
from twotower.serving.problems import Problem, contained
from twotower.serving.reading import AnyRequest, check_together
from twotower.serving.requests import Answer, Question, Refusal, answer
from twotower.serving.settings import Settings
from twotower.serving.waiting import Aside, answered

log = logging.getLogger("twotower.serve")
T = TypeVar("T")
Answers = Sequence[Answer | Refusal]
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
        self.side = Aside(settings.limits.timeout, self._drop)
        self._loader = ThreadPoolExecutor(1, "loader")
        self._reloading: asyncio.Future[None] | None = None

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
        return await answered(self.batcher, questions, request, self.settings.limits.timeout, self._drop)

    def _work(self, questions: Sequence[Question]) -> Answers:
        """In a thread of the batcher."""
        start, snapshot = time.perf_counter(), self.live.current
        given = answer(snapshot.retriever, questions, snapshot.cards)
        self.instruments.batch_size.observe(len(questions))
        self.instruments.batch_seconds.observe(time.perf_counter() - start)
        return given

    def _drop(self, reason: str, count: int) -> None:
        self.instruments.dropped.labels(reason).inc(count)

    async def aside(self, work: Callable[[Snapshot], T], request: AnyRequest) -> T:
        """Some other work on what is live.

        Raises:
            Problem: much of it waits already, it takes too long, or the client is gone.
        """
        snapshot = self.live.current
        return await self.side.run(lambda: work(snapshot), request)

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
        self.side.close()
        self._loader.shutdown(wait=False, cancel_futures=True)
