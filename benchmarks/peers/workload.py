"""The workload that all contenders train on, and how they are timed; NumPy alone, so that every environment can read it.

w1: two towers of an id (64 wide), three categories (1,000 values, 16 wide), two numbers, MLP 256-128, L2 norm, T = .05;
w2: ids only, 64 wide. Ids are drawn by a Zipf law; side features follow from the id, as in a table of users or items.
"""

import argparse
import json
import resource
import statistics
import time

import numpy as np

CATEGORIES, CATEGORY_WIDTH, ID_WIDTH, WIDTHS, TEMPERATURE = 1000, 16, 64, [256, 128], 0.05
SIDES = ("user", "item")


def zipf_ids(
    rng: np.random.Generator, size: int, rows: int, exponent: float = 1.05, occurring: int | None = None
) -> np.ndarray:
    """Ids 0 to size - 1, or so many `occurring` ones among them, with weights rank ** -exponent, scattered over the ids."""
    ranks = occurring or size
    share = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -exponent)
    rank = np.searchsorted(share / share[-1], rng.random(rows)).clip(max=ranks - 1)
    return rng.permutation(size)[rank]


def categories(workload: str, side: str) -> list[str]:
    """The categorical columns of one side, beside its id."""
    return [f"{side}_c{n}" for n in range(3 if workload == "w1" else 0)]


def numbers(workload: str, side: str) -> list[str]:
    """The continuous columns of one side."""
    return [f"{side}_x{n}" for n in range(2 if workload == "w1" else 0)]


def interactions(
    workload: str, users: int, items: int, rows: int, occurring: int | None = None
) -> dict[str, np.ndarray]:
    """One array for each column."""
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {}
    for side, size in zip(SIDES, (users, items), strict=True):
        ids = columns[f"{side}_id"] = zipf_ids(rng, size, rows, occurring=occurring)
        for name in categories(workload, side):
            columns[name] = rng.integers(0, CATEGORIES, size)[ids]
        for name in numbers(workload, side):
            columns[name] = rng.standard_normal(size, dtype=np.float32)[ids]
    return columns


def shares(ids: np.ndarray, size: int) -> np.ndarray:
    """(size,) the share of each id; what never occurs as if it had once."""
    return (np.maximum(np.bincount(ids, minlength=size), 1) / len(ids)).astype(np.float32)


def parser(doc: str | None = None) -> argparse.ArgumentParser:
    """The options that all contenders take."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workload", choices=["w1", "w2"], default="w1")
    p.add_argument("--users", type=int, default=1_000_000)
    p.add_argument("--items", type=int, default=1_000_000)
    p.add_argument("--batch", type=int, default=8192)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--warmup", type=int, default=4)
    p.add_argument("--variant", default="default")
    return p


class Clock:
    """CPU seconds of this process at the end of every step, and the loss there."""

    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.loss = float("nan")
        self.between: list[float] = []  # of two steps, where somebody asks

    def tick(self, loss: float = float("nan")) -> None:
        """A step has ended."""
        self.ticks.append(time.process_time())
        self.loss = loss

    def report(self, a: argparse.Namespace) -> None:
        """Print one JSON line: examples per CPU-second by the median step after the warm-up."""
        step = statistics.median(np.diff(self.ticks)[max(a.warmup - 1, 0) :].tolist())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        line = {"ex_s_cpu": round(a.batch / step), "step_ms": round(1e3 * step, 2), "peak_mb": round(peak)}
        between = {"between_ms": round(1e3 * statistics.median(self.between), 2)} if self.between else {}
        print(json.dumps(line | {"loss": round(self.loss, 4)} | between), flush=True)
