"""How long does the explorer's item search take at a million items?"""

import resource
import statistics
import time

import numpy as np
import polars as pl

from twotower.serving.items import Items
from twotower.serving.searching import ItemSearch

ITEMS = 1_000_000
QUERIES = ["w1", "wc", "wc350e", "w1 w2", "wé12 w3 w1", "zzzz", "999999", "e"]


def main() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"W{i:x}é" for i in range(50_000)])
    table = pl.DataFrame(
        {
            "item_id": np.arange(ITEMS),
            "title": [" ".join(row) for row in words[rng.zipf(1.3, (ITEMS, 5)) % 50_000]],
            "makers": [" ".join(row) for row in words[rng.zipf(1.2, (ITEMS, 3)) % 50_000]],
        }
    )
    items = Items(table, "item_id")
    start = time.perf_counter()
    search = ItemSearch(items, "title")
    print(f"{ITEMS:,} items, {pl.thread_pool_size()} threads: made in {time.perf_counter() - start:.1f} s")
    print(f"{search._folded.estimated_size() / 1e6:.0f} MB held")
    for query in QUERIES:
        took = []
        for _ in range(5):
            start = time.perf_counter()
            found = search.find(query)
            took.append(time.perf_counter() - start)
        print(f"{query!r:>14}: median {1000 * statistics.median(took):.0f} ms, {len(found)} shown")
    print(f"largest memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
