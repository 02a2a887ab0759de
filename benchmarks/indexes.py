"""What each index finds and costs, and where comparing the allowed one by one ends to pay; some minutes for a million candidates.

Vectors of 64 as two towers make them: 2,000 clusters around which items and queries lie, directions of falling weight, items of
lognormal length. Times are the process's CPU time on one thread, so that other work on the machine disturbs them less.

    OMP_NUM_THREADS=1 python benchmarks/indexes.py [--n 1000000] [--kinds exact flat ivf scann hnsw] [--what table filters predict]
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

import twotower as tt
from twotower.indexes.kinds import INDEXES
from twotower.indexes.recall import recall_of

DIM, K, QUERIES = 64, 100, 512
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def vectors(n: int, queries: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, 64) items and (queries, 64) queries from the same clusters."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.arange(1, DIM + 1).float() ** -0.5
    centres = torch.randn(2000, DIM, generator=generator) * weight

    def drawn(rows: int) -> Tensor:
        cluster = torch.randint(2000, (rows,), generator=generator)
        return F.normalize(centres[cluster] + noise * torch.randn(rows, DIM, generator=generator) * weight, dim=1)

    length = torch.exp(0.25 * torch.randn(n, 1, generator=generator))
    return drawn(n) * length, drawn(queries)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def row(name: str, index: tt.Index, queries: Tensor, best: np.ndarray, build: float) -> str:
    found = index.search(queries, K)[1].numpy()
    singles = [seconds(lambda q=q: index.search(q, K)) for q in queries[:120].split(1)][20:]  # type: ignore[misc]
    batch = min(seconds(lambda: index.search(queries, K)) for _ in range(2))
    note = getattr(index, "measured_recall", None)
    return (
        f"| {name} | {recall_of(found, best):.3f} | {1000 * np.median(singles):.2f} | {1000 * np.quantile(singles, 0.99):.2f} "
        f"| {len(queries) / batch:,.0f} | {build:.1f} | {(index.memory_bytes or 0) / 1e6:.0f} | {note or ''} |"
    )


def table(items: Tensor, queries: Tensor, more: Tensor, kinds: list[str]) -> None:
    best = tt.ExactIndex(items).search(queries, K)[1].numpy()
    print(
        "| index | recall@100 | p50 ms | p99 ms | batch QPS | build s | MB | its own measure |\n|---|---|---|---|---|---|---|---|"
    )
    options: dict[str, dict[str, Tensor]] = {"exact": {}, "flat": {}, "qdrant": {}}
    for kind in kinds:
        start = time.process_time()
        index = INDEXES[kind](items, **options.get(kind, {"queries": more}))  # type: ignore[arg-type]
        print(row(kind, index, queries, best, time.process_time() - start), flush=True)
        if kind == "ivf":
            assert isinstance(index, tt.IVFIndex)
            print(f"|   lists read of {index.nlist} for the best 10, 100, 1,000, 10,000: "
                  f"{[index.lists_read(d) for d in (10, 100, 1000, 10_000)]} |", flush=True)  # fmt: skip


def single(index: tt.Index, queries: Tensor, only: Tensor | None = None, where: tt.Filter | None = None) -> float:
    """Median milliseconds of a query alone."""
    return 1000 * float(
        np.median([seconds(lambda q=q: index.search(q, K, only=only, where=where)) for q in queries.split(1)])
    )  # type: ignore[misc]


def filters(items: Tensor, queries: Tensor, more: Tensor) -> None:
    attributes = pl.DataFrame({"share": torch.rand(len(items), generator=torch.Generator().manual_seed(1)).numpy()})
    index = tt.IVFIndex(items, attributes=attributes, queries=more)
    print("| allowed | lists: recall | lists: p50 ms | one by one: p50 ms | a whitelist, one by one: p50 ms |")
    print("|---|---|---|---|---|")
    for share in SHARES:
        where = tt.Filter.parse({"share": {"lt": share}})
        only = torch.from_numpy(np.flatnonzero(where.mask(attributes)))
        index.exact_below = 2**40
        best = index.search(queries, K, where=where)[1].numpy()
        scan, once = single(index, queries[:30], where=where), single(index, queries[:5], only=only)
        index.exact_below = 0
        found = index.search(queries, K, where=where)[1].numpy()
        lists = single(index, queries[:30], where=where)
        print(
            f"| {share:.0%}, {len(only):,} | {recall_of(found, best):.3f} | {lists:.2f} | {scan:.2f} | {once:.2f} |",
            flush=True,
        )


def predict(items: Tensor, rows: int = 50_000) -> None:
    schema = tt.Schema([tt.ColumnSchema("user_id", [tt.Tags.USER_ID, tt.Tags.CATEGORICAL], "int64",
                                        properties={"domain": {"min": 0, "max": rows - 1}})])  # fmt: skip
    top = tt.TopKEncoder(tt.Encoder(schema, tt.MLPBlock([DIM])), items[:50_000], k=50)
    users = tt.Dataset({"user_id": np.arange(rows)}, schema)
    top.predict(users.head(2000))
    alone = min(seconds(lambda: top.predict(users)) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        written = min(seconds(lambda: top.batch_predict(users, path=Path(folder) / "top.parquet")) for _ in range(2))
    print(f"{rows:,} users, 50 of 50,000 candidates: predict {alone:.1f} s, batch_predict(path=) {written:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--kinds", nargs="+", default=["exact", "flat", "ivf", "scann", "hnsw"])
    parser.add_argument("--what", nargs="+", default=["table", "filters", "predict"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", tt.LowRecallWarning)  # the table shows it
    items, queries = vectors(given.n, 2 * QUERIES, given.noise)
    asked, more = queries[:QUERIES], queries[QUERIES:]
    if "table" in given.what:
        table(items, asked, more, given.kinds)
    if "filters" in given.what:
        filters(items, asked, more)
    if "predict" in given.what:
        predict(items)


if __name__ == "__main__":
    main()
