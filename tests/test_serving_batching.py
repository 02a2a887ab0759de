"""Micro-batching: what waits is answered together, within bounds, and each gets its own answers."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from twotower.serving.batching import Batcher, QueueFullError


class Work:
    """Doubles numbers, once `go` is set, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.go.wait(20)
        if -1 in numbers:
            raise RuntimeError("broken")
        return [2 * number for number in numbers]


def test_what_waits_while_a_thread_is_busy_is_answered_together() -> None:
    work = Work()

    async def main() -> None:
        batcher = Batcher(work, max_batch=3)
        futures = [batcher.ask([1], 20)]
        futures += [batcher.ask(questions, 20) for questions in ([2], [3, 4], [5, 6, 7, 8], [9])]
        assert batcher.waiting == 8
        work.go.set()
        assert await asyncio.gather(*futures) == [[2], [4], [6, 8], [10, 12, 14, 16], [18]]
        assert batcher.waiting == 0
        batcher.close()

    asyncio.run(main())
    assert work.batches == [[1], [2, 3, 4], [5, 6, 7, 8], [9]]  # a client's questions stay together


def test_an_idle_thread_waits_for_more_if_it_is_told_to() -> None:
    work = Work()
    work.go.set()

    async def main() -> None:
        batcher = Batcher(work, max_batch=3, max_wait=60.0)
        futures = [batcher.ask([n], 20) for n in range(3)]  # the third fills the batch
        await asyncio.gather(*futures)
        batcher.close()

    asyncio.run(main())
    assert work.batches == [[0, 1, 2]]


def test_more_than_may_wait_is_refused_and_those_who_left_make_room() -> None:
    work = Work()

    async def main() -> None:
        batcher = Batcher(work, max_queue=3)
        first = batcher.ask([1], 20)
        waiting = batcher.ask([2, 3], 20)
        late = batcher.ask([4], 20)
        with pytest.raises(QueueFullError, match="3 questions are waiting, 3 may"):
            batcher.ask([5], 20)
        waiting.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        after = batcher.ask([6, 7], 20)
        work.go.set()
        assert await asyncio.gather(first, late, after) == [[2], [8], [12, 14]]
        batcher.close()

    asyncio.run(main())
    assert work.batches == [[1], [4, 6, 7]]  # nobody works for who is gone


def test_time_out_in_the_queue_and_in_the_work() -> None:
    work = Work()

    async def main() -> None:
        batcher = Batcher(work)
        futures = [batcher.ask([1], 0.02), batcher.ask([2], 0.01)]
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(one) for one in found] == [asyncio.TimeoutError] * 2
        work.go.set()
        assert await batcher.ask([3], 20) == [6]
        batcher.close()

    asyncio.run(main())
    assert work.batches == [[1], [3]]


def test_work_that_fails_fails_its_batch_alone_and_the_thread_goes_on() -> None:
    work = Work()
    work.go.set()

    async def main() -> None:
        batcher = Batcher(work)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.ask([-1], 20)
        assert await batcher.ask([1], 20) == [2]
        names: list[str] = []
        await batcher.everywhere(lambda: names.append(threading.current_thread().name))
        assert names == ["answers-0"]
        with pytest.raises(KeyError):
            await batcher.everywhere(lambda: {}["x"])  # type: ignore[var-annotated]
        batcher.close()

    asyncio.run(main())


@pytest.mark.parametrize(("option", "value"), [("threads", 0), ("max_batch", 0), ("max_queue", 0), ("max_wait", -1.0)])
def test_options_that_make_no_sense(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        Batcher(lambda numbers: numbers, **{option: value})  # type: ignore[arg-type]
