"""Micro-batching: what is asked at the same time is answered together, in threads of its own."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from twotower.serving.problems import contained

Q = TypeVar("Q")
A = TypeVar("A")


class QueueFullError(Exception):
    """More is waiting than may wait."""


@dataclass(eq=False)
class _Job(Generic[Q, A]):
    """Some questions of one client, answered in one batch."""

    questions: Sequence[Q]
    future: "asyncio.Future[Sequence[A]]"
    waits: bool = True


class _Worker:
    """A thread that calls what it is given, one after the other."""

    def __init__(self, number: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"answers-{number}", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        self._calls.put(function)

    def stop(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            function()
            del function  # and with it what it holds, such as a bundle, until the next comes


class Batcher(Generic[Q, A]):
    """Collects questions while its threads are busy, and hands them over together as soon as one is free.

    Used from one event loop.

    Args:
        work: the answers to some questions, in order; called in the threads.
        threads: how many batches are worked on at a time.
        max_batch: no further questions are added to a batch that has so many.
        max_wait: seconds that an idle thread waits for more questions after the first.
        max_queue: questions that may wait; more raise QueueFullError.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Sequence[A]],
        *,
        threads: int = 1,
        max_batch: int = 64,
        max_wait: float = 0.0,
        max_queue: int = 1024,
    ) -> None:
        for name, value, least in (("threads", threads, 1), ("max_batch", max_batch, 1), ("max_queue", max_queue, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if not max_wait >= 0:
            raise ValueError(f"max_wait must be at least 0 seconds, got {max_wait}.")
        self._work = work
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.waiting = 0  # questions
        self._jobs: deque[_Job[Q, A]] = deque()
        self._workers = [_Worker(number) for number in range(threads)]
        self._idle = list(self._workers)
        self._collecting: dict[_Worker, asyncio.TimerHandle] = {}

    def ask(self, questions: Sequence[Q], timeout: float) -> "asyncio.Future[Sequence[A]]":
        """The answers, later. Cancelling the future takes the questions out of the queue.

        Args:
            questions: answered in one batch.
            timeout: seconds, after which the future raises TimeoutError.

        Raises:
            QueueFullError: too many wait.
        """
        if self.waiting + len(questions) > self.max_queue:
            raise QueueFullError(f"{self.waiting} questions are waiting, {self.max_queue} may.")
        loop = asyncio.get_running_loop()
        job: _Job[Q, A] = _Job(questions, loop.create_future())
        timer = loop.call_later(timeout, _expire, job.future)

        def leave(_: object) -> None:
            timer.cancel()
            self._leave(job)

        job.future.add_done_callback(leave)
        self._jobs.append(job)
        self.waiting += len(questions)
        if self._idle:
            worker = self._idle.pop()
            if self.max_wait and self.waiting < self.max_batch:
                self._collecting[worker] = loop.call_later(self.max_wait, self._start, worker, loop)
            else:
                self._start(worker, loop)
        elif self._collecting and self.waiting >= self.max_batch:
            worker, handle = self._collecting.popitem()
            handle.cancel()
            self._start(worker, loop)
        return job.future

    async def everywhere(self, function: Callable[[], None]) -> None:
        """Call a function once in each thread, between batches."""
        loop = asyncio.get_running_loop()
        futures = []
        for worker in self._workers:
            future = loop.create_future()
            futures.append(future)
            worker.call(lambda future=future: _call_into(loop, future, function))  # type: ignore[misc]
        await asyncio.gather(*futures)

    def close(self) -> None:
        """End the threads after what was handed to them."""
        for worker in self._workers:
            worker.stop()

    def _leave(self, job: _Job[Q, A]) -> None:
        if job.waits:
            job.waits = False
            self.waiting -= len(job.questions)

    def _start(self, worker: _Worker, loop: asyncio.AbstractEventLoop) -> None:
        """Give a free worker what is waiting."""
        self._collecting.pop(worker, None)
        batch, count = [], 0
        while self._jobs and count < self.max_batch:
            job = self._jobs.popleft()
            if job.waits:  # nobody has left meanwhile
                self._leave(job)
                batch.append(job)
                count += len(job.questions)
        if batch:
            worker.call(lambda: self._answer(batch, worker, loop))
        else:
            self._idle.append(worker)

    def _answer(self, batch: Sequence[_Job[Q, A]], worker: _Worker, loop: asyncio.AbstractEventLoop) -> None:
        """In the worker's thread."""
        try:
            questions = [question for job in batch for question in job.questions]
            answers: Sequence[A] | Exception = contained(lambda: self._work(questions))
        except Exception as error:
            answers = error
        try:
            loop.call_soon_threadsafe(self._finish, batch, answers, worker, loop)
        except RuntimeError:  # the loop is closed: nobody is there to hear it
            return

    def _finish(
        self,
        batch: Sequence[_Job[Q, A]],
        answers: Sequence[A] | Exception,
        worker: _Worker,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._start(worker, loop)
        first = 0
        for job in batch:
            after = first + len(job.questions)
            if not job.future.done():
                if isinstance(answers, Exception):
                    job.future.set_exception(answers)
                else:
                    job.future.set_result(answers[first:after])
            first = after


def _expire(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(asyncio.TimeoutError())


def _call_into(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]", function: Callable[[], None]) -> None:
    def tell(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    try:
        contained(function)
    except Exception as error:
        loop.call_soon_threadsafe(tell, error)
    else:
        loop.call_soon_threadsafe(tell, None)
