"""What the baselines reach on Gowalla, in the split of NGCF and LightGCN: the figures that a model has to beat.

    python benchmarks/quality/baselines_gowalla.py --data <folder with gowalla-lightgcn/>
    python benchmarks/quality/baselines_gowalla.py --methods ease   # 7 GB, and a quarter of an hour of one core

Protocol: learn from train, rank all 40,981 items less the user's own of train, means over the 29,858 users; Recall@20 = hits / all
test items, NDCG@20. Options are chosen by NDCG@20 on 10 % of train, drawn at random; the choice learns from all of train for one
run on the test. EASE is chosen among the items of most events, for its time grows with the cube of their number.
"""

import argparse
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

import twotower as tt
from twotower.baselines import EASE, Baseline, ImplicitALS, ImplicitBPR, ItemKNN, Popularity

METRICS = [tt.RecallAt(20, capped=False), tt.NDCGAt(20)]
RECALL, NDCG = (metric.name for metric in METRICS)


@dataclass(frozen=True)
class Method:
    """A baseline and the options to choose from; among how many items, if not all."""

    kind: type[Baseline]
    choices: list[dict[str, Any]]
    items: int | None = None


METHODS = {
    "popularity": Method(Popularity, [{}]),
    "item-knn": Method(
        ItemKNN,
        [{"neighbors": n, "shrink": s} for n, s in ((10, 10), (20, 10), (50, 10), (100, 10), (20, 0), (20, 50))],
    ),
    "als": Method(
        ImplicitALS,
        [
            {"alpha": a, "regularization": r}
            for a, r in ((3, 1), (10, 1), (10, 10), (10, 30), (40, 10), (40, 100), (100, 10), (100, 100))
        ],
    ),
    "bpr": Method(
        ImplicitBPR,
        [
            {"learning_rate": rate, "regularization": r, "iterations": i}
            for rate, r, i in (
                (0.05, 0.01, 100),
                (0.05, 0.01, 300),
                (0.05, 0.003, 100),
                (0.05, 0.001, 100),
                (0.1, 0.003, 100),
                (0.1, 0.001, 100),
            )
        ],
    ),
    "ease": Method(EASE, [{"regularization": r} for r in (25, 50, 100, 200, 400, 800)], items=12_000),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=os.environ.get("TWOTOWER_DATA"), help="default: TWOTOWER_DATA")
    p.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    p.add_argument("--validation-users", type=int, help="choose by these many users, drawn at random; default: all")
    a = p.parse_args()
    if a.data is None:
        p.error("give --data, the folder that holds gowalla-lightgcn/, or set TWOTOWER_DATA")
    torch.set_num_threads(1)
    events = pl.read_parquet(Path(a.data) / "gowalla-lightgcn" / "interactions.parquet")
    train, test = (events.filter(split=part).drop("split") for part in ("train", "test"))
    items = events.select("item_id").unique()
    print(f"{len(train):,} events of train, {len(test):,} of test, {len(items):,} items", flush=True)
    for name in a.methods:
        method = METHODS[name]
        options = chosen(name, method, train, a.validation_users)
        measure(f"{name} on test", method.kind, options, train, test, items)


def chosen(name: str, method: Method, train: pl.DataFrame, users: int | None) -> dict[str, Any]:
    """The options of the best NDCG@20 on a tenth of train."""
    if len(method.choices) == 1:
        return method.choices[0]
    if method.items is not None:
        common = train["item_id"].value_counts().sort("count", "item_id", descending=True).head(method.items)
        train = train.join(common, on="item_id", how="semi", maintain_order="left")
    part, held = tt.split_at_random(train, 0.1, seed=0)
    if users is not None:
        asked = held.select("user_id").unique(maintain_order=True).sample(users, seed=0)
        held = held.join(asked, on="user_id", how="semi", maintain_order="left")
    items = train.select("item_id").unique()
    found = [measure(f"{name} on validation", method.kind, choice, part, held, items) for choice in method.choices]
    return method.choices[max(range(len(found)), key=lambda i: found[i][NDCG])]


def measure(
    what: str,
    kind: type[Baseline],
    options: dict[str, Any],
    train: pl.DataFrame,
    test: pl.DataFrame,
    items: pl.DataFrame,
) -> dict[str, float]:
    """Learn, rank, print."""
    start = time.perf_counter()
    baseline = kind(tt.Dataset(train), "user_id", "item_id", tt.Dataset(items), **options)
    learnt = time.perf_counter()
    values = baseline.evaluate(tt.Dataset(test), seen=tt.Dataset(train), metrics=METRICS)
    ranked = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{what} {options}: Recall@20 {values[RECALL]:.4f}, NDCG@20 {values[NDCG]:.4f}; learnt in {learnt - start:.0f} s, "
        f"ranked in {ranked - learnt:.0f} s, at most {peak:.1f} GB so far",
        flush=True,
    )
    return values


if __name__ == "__main__":
    main()
