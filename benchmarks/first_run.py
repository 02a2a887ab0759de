"""The first run of a newcomer: what `twotower init --example`, `train` and `evaluate` are worth beside recent popularity.

The config as `init` writes it, and the one that it wrote before popularity was counted: the moment of asking in 20 buckets, from
which the towers were to learn what is popular when, and no dropout. Three seeds each, at several ends of the data: settings are
chosen where it ends earlier (--ends 0.8 0.9), each time with the next tenth as the test; the real test is the end 1.0, whose
validation part is the test part of 0.9. Differences are paired, query by query, with intervals from resampling users.

    python benchmarks/first_run.py [--ends 0.8 0.9 1.0] [--seeds 0 1 2]
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import polars as pl

import twotower as tt
from twotower.config.drafting import Given, draft

BEFORE: dict[str, Any] = {
    "columns.asked_at": {"kind": "bucketized", "tags": ["context"], "buckets": 20, "source": "timestamp"},
    "model.popularity": "learned",
    "model.dropout": 0.0,
}
CONFIGS: dict[str, dict[str, Any]] = {"as init writes it": {}, "popularity learned": BEFORE}


def table_of(found: list[tt.Evaluation], name: str, seed: int, end: float, part: str, seconds: float) -> str:
    """A row for the model; `found` holds the baselines after it."""
    model, popular, recent = found
    difference = tt.compare(model, recent, metrics=["recall_at_10"])[0]
    interval = f"{difference.difference:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    values = [f"{e['recall_at_10'].mean:.4f} / {e['ndcg_at_10'].mean:.4f}" for e in (model, recent, popular)]
    sliced = [
        " / ".join(f"{e.slices[n].metrics['recall_at_10'].mean:.4f}" for n in ("known_users", "new_users"))
        for e in (model, recent)
    ]
    cells = [
        f"{end} {part}",
        name,
        seed,
        values[0],
        values[1],
        interval,
        f"{difference.p:.4f}",
        *sliced,
        values[2],
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Every run, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ends", nargs="+", type=float, default=[0.8, 0.9, 1.0], help="shares of the data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    data = tt.load_movietweetings()
    ratings = pl.DataFrame(data.ratings).sort("timestamp", maintain_order=True)
    heads = ["part", "config", "seed", "Recall@10 / NDCG@10", "recent popularity", "Recall@10 less its", "p"]
    heads += ["known / new users", "recent popularity's", "popularity", "s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pl.DataFrame(data.movies).write_parquet(folder / "movies.parquet")
        for end in asked.ends:
            ratings.head(round(end * len(ratings))).write_parquet(folder / "ratings.parquet")
            made = draft(Given((str(folder / "ratings.parquet"),), str(folder / "movies.parquet")), folder)
            (folder / "twotower.yaml").write_text(made.text)
            shared = {"split.validation": 0.1 / end, "split.test": 0.1 / end}
            shared |= {"evaluation.baselines": ["popularity", "recent_popularity"]}
            for label, changes in CONFIGS.items():
                for seed in asked.seeds:
                    given = shared | changes | {"training.seed": seed}
                    began = time.perf_counter()
                    run = tt.train_run(
                        tt.Config.load(folder / "twotower.yaml", given), folder / f"{end}-{label}-{seed}"
                    )
                    seconds = time.perf_counter() - began
                    print(table_of(run.evaluations("validation"), label, seed, end, "validation", seconds), flush=True)
                    print(table_of(tt.evaluate_run(run), label, seed, end, "test", seconds), flush=True)


if __name__ == "__main__":
    main()
