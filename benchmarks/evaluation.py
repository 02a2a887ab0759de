"""Ranking a whole catalogue: the Evaluator against scoring and sorting in NumPy, on the same vectors.

Vectors of 64 drawn at random, Zipf items seen and to be found. NumPy does what such scripts do: a block of users' scores,
the seen ones at -inf, then a full sort or a partition of each row, recall and NDCG at 20. The work is the same and so are the
figures, which is checked; NumPy takes part of the users and is told as users per second. Then the large case alone, with its
peak memory: 100,000 users by 1,000,000 items would be 400 GB of scores.

    python benchmarks/evaluation.py [--what compare | large] [--users 100000]
"""

import argparse
import resource
import time

import numpy as np
import polars as pl
import torch

import twotower as tt
from twotower.evaluation import Queries, ScoreQueries, score_vectors

DIM, K, SEEN, FOUND = 64, 20, 30, 7


class Vectors:
    """A ranker that is two tables of vectors."""

    def __init__(self, users: int, items: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.users = torch.randn(users, DIM, generator=generator)
        self.items = torch.randn(items, DIM, generator=generator)

    def score_queries(self, queries: Queries, candidates: tt.Dataset) -> ScoreQueries:
        rows = queries.select(["user"]).to_polars()["user"].to_torch()
        return score_vectors(self.users[rows], self.items)


def events(users: int, items: int, each: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    item = (items * rng.random(users * each) ** 3).astype(np.int64)
    return pl.DataFrame({"user": np.repeat(np.arange(users), each), "item": item}).unique(maintain_order=True)


def ours(ranker: Vectors, test: pl.DataFrame, seen: pl.DataFrame, metrics: list[str]) -> tuple[tt.Evaluation, float]:
    evaluator = tt.Evaluator(test, candidates={"item": np.arange(len(ranker.items))}, seen=seen, user="user", item="item",
                             metrics=metrics)  # fmt: skip
    start = time.perf_counter()
    evaluation = evaluator(ranker)
    return evaluation, time.perf_counter() - start


def numpy_script(ranker: Vectors, test: pl.DataFrame, seen: pl.DataFrame, users: int, sort: str) -> tuple[float, float]:
    """(mean recall, seconds) of the first users."""
    wanted = dict(test.filter(pl.col("user") < users).group_by("user").agg("item").iter_rows())
    past = dict(seen.filter(pl.col("user") < users).group_by("user").agg("item").iter_rows())
    user_vectors, item_vectors = ranker.users.numpy(), ranker.items.numpy()
    block = max(1, 2**24 // len(item_vectors))
    recall, ndcg = [], []
    gain = 1 / np.log2(np.arange(2, K + 2))
    start = time.perf_counter()
    for first in range(0, users, block):
        some = np.arange(first, min(users, first + block))
        scores = user_vectors[some] @ item_vectors.T
        for row, user in enumerate(some):
            scores[row, past[user]] = -np.inf
        if sort == "argsort":
            best = np.argsort(-scores, axis=1)[:, :K]
        else:
            part = np.argpartition(-scores, K, axis=1)[:, :K]
            order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
            best = np.take_along_axis(part, order, axis=1)
        for row, user in enumerate(some):
            left = set(wanted[user]) - set(past[user])
            hits = np.array([item in left for item in best[row]])
            if left:
                recall.append(hits.sum() / min(K, len(left)))
                ndcg.append((hits * gain).sum() / gain[: len(left)].sum())
    return float(np.mean(recall)), time.perf_counter() - start


def compare() -> None:
    print("| users x items | what | users/s | times NumPy's sort |\n|---|---|---|---|")
    for users, items, part in ((30_000, 41_000, 1_500), (3_000, 1_000_000, 64)):
        ranker = Vectors(users, items)
        test, seen = events(users, items, FOUND, 1), events(users, items, SEEN, 2)
        recall, slow = numpy_script(ranker, test, seen, part, "argsort")
        again, partition = numpy_script(ranker, test, seen, part, "argpartition")
        few, _ = ours(ranker, test.filter(pl.col("user") < part), seen, ["recall_at_20", "ndcg_at_20"])
        assert max(abs(few["recall_at_20"].mean - recall), abs(again - recall)) < 1e-6
        _, fast = ours(ranker, test, seen, ["recall_at_20", "ndcg_at_20"])
        everything = ["recall_at_20", "ndcg_at_20", "mrr_at_20", "map_at_20", "precision_at_20", "hit_rate_at_20",
                      "coverage_at_20", "gini_at_20", "novelty_at_20", "popularity_lift_at_20"]  # fmt: skip
        _, full = ours(ranker, test, seen, everything)
        base = part / slow
        for what, rate in (("NumPy, argsort", base), ("NumPy, argpartition", part / partition),
                           ("Evaluator, 2 metrics with intervals", users / fast),
                           ("Evaluator, 10 metrics with intervals", users / full)):  # fmt: skip
            print(f"| {users:,} x {items:,} | {what} | {rate:,.0f} | {rate / base:.1f} |", flush=True)


def large(users: int) -> None:
    items = 1_000_000
    ranker = Vectors(users, items)
    test, seen = events(users, items, FOUND, 1), events(users, items, SEEN, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    evaluation, seconds = ours(ranker, test, seen, ["recall_at_20", "ndcg_at_20", "coverage_at_20", "novelty_at_20"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{users:,} users x {items:,} items: {seconds:.0f} s, peak {peak:,.0f} MB, of which {before:,.0f} MB before")
    print(evaluation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["compare", "large"], default="compare")
    parser.add_argument("--users", type=int, default=100_000)
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    compare() if options.what == "compare" else large(options.users)


if __name__ == "__main__":
    main()
