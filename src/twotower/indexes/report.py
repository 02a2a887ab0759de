"""index_report: what an index finds and what it costs, measured."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from twotower.indexes.base import Index
from twotower.indexes.exact import ExactIndex
from twotower.indexes.recall import recall_of

# single queries that are timed, after some that are not
SINGLES, WARM = 200, 20


def index_report(
    indexes: Index | Sequence[Index] | Mapping[str, Index], queries: Float[Tensor, "Q D"], k: int = 100
) -> pl.DataFrame:
    """Recall and cost of indexes, one row each, on the threads that the process uses.

    Args:
        indexes: one, several, or several by the names that they shall have in the table.
        queries: (Q, D) real queries; recall and batch take all, single queries up to 200 of them.
        k: how many each search asks for.

    Returns:
        Columns index, candidates, recall (share of the exact best k that was found), p50_ms and p99_ms of a search for one
        query, batch_qps (queries a second, all in one search, the median of three), build_s (null if loaded) and memory_mb
        with the float32 vectors (null if another process holds them).

    Example:
        >>> index = ExactIndex(torch.randn(1000, 8))
        >>> index_report(index, torch.randn(20, 8), k=10).select("index", "candidates", "recall")
        shape: (1, 3)
        ┌───────┬────────────┬────────┐
        │ index ┆ candidates ┆ recall │
        │ ---   ┆ ---        ┆ ---    │
        │ str   ┆ i64        ┆ f64    │
        ╞═══════╪════════════╪════════╡
        │ exact ┆ 1000       ┆ 1.0    │
        └───────┴────────────┴────────┘
    """
    named = _named(indexes)
    if not len(queries) or not named:
        raise ValueError(f"index_report needs at least one index and one query, got {len(named)} and {len(queries)}.")
    rows, reference = [], None
    for name, index in named.items():
        reference = _exact(index, reference)
        best = reference.search(queries, k)[1].cpu().numpy()
        found = index.search(queries, k)[1].cpu().numpy()
        rows.append({"index": name, "recall": recall_of(found, best), **_costs(index, queries, k)})
    floats = ("recall", "p50_ms", "p99_ms", "batch_qps", "build_s", "memory_mb")
    frame = pl.DataFrame(rows, schema_overrides=dict.fromkeys(floats, pl.Float64))
    return frame.select("index", "candidates", *floats)


def _costs(index: Index, queries: Tensor, k: int) -> dict[str, object]:
    singles = [queries[row : row + 1] for row in range(min(SINGLES, len(queries)))]
    for query in singles[:WARM]:
        index.search(query, k)
    times = [_seconds(index, query, k) for query in singles]
    batch = float(np.median([_seconds(index, queries, k) for _ in range(3)]))
    memory = index.memory_bytes
    return {
        "candidates": len(index),
        "p50_ms": 1000 * float(np.median(times)),
        "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "batch_qps": len(queries) / batch,
        "build_s": index.build_seconds,
        "memory_mb": None if memory is None else memory / 1e6,
    }


def _named(indexes: Index | Sequence[Index] | Mapping[str, Index]) -> dict[str, Index]:
    if isinstance(indexes, Mapping):
        return dict(indexes)
    listed = [indexes] if isinstance(indexes, Index) else list(indexes)
    kinds = [index.kind for index in listed]
    names = [kind if kinds.count(kind) == 1 else f"{kind} {at}" for at, kind in enumerate(kinds)]
    return dict(zip(names, listed, strict=True))


def _exact(index: Index, reference: ExactIndex | None) -> ExactIndex:
    """The index itself if it is exact, or one with the same candidates."""
    if isinstance(index, ExactIndex):
        return index
    keys = index.keys
    if reference is not None and torch.equal(reference.keys, keys):
        return reference
    return ExactIndex(index.vectors_of(keys), keys)


def _seconds(index: Index, queries: Tensor, k: int) -> float:
    start = time.perf_counter()
    index.search(queries, k)[0].cpu()  # a GPU is done only then
    return time.perf_counter() - start
