"""The quickstart's figures over several seeds: `python benchmarks/quickstart.py`, about two minutes on 2 cores."""

import datetime
import platform
import runpy
import time
from pathlib import Path

import polars as pl
import torch

import twotower as tt

ROOT = Path(__file__).parents[1]
SEEDS = 5


def main() -> None:
    quickstart = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    ready = quickstart["prepare"](tt.load_movietweetings())
    tables, seconds = [], []
    for seed in range(SEEDS):
        start = time.perf_counter()
        model = quickstart["train"](ready, seed=seed, verbose=False)
        seconds.append(time.perf_counter() - start)
        tables.append(quickstart["compare"](model, ready))
        print(seed, tables[-1].row(0), flush=True)
    metrics = quickstart["METRICS"]
    joined = pl.concat(tables).group_by("", maintain_order=True)
    mean, deviation = joined.agg(pl.col(metrics).mean()), joined.agg(pl.col(metrics).std())
    rows = [_row(*line) for line in zip(mean.rows(), deviation.rows(), strict=True)]
    today = datetime.date.today().isoformat()
    text = f"""# Quickstart on MovieTweetings-100K, {today}

Command: `python benchmarks/quickstart.py`. twotower {tt.__version__}, PyTorch {torch.__version__}, Python
{platform.python_version()}, {torch.get_num_threads()} threads on {platform.machine()}, no GPU. Training took
{min(seconds):.0f} to {max(seconds):.0f} seconds.

One cut in time: the first 90,000 ratings for training, the last 10,000 for testing. All {len(ready.films):,} films are
ranked for each test user, less those the user had rated; every rating counts as a positive. Mean and standard deviation
over {SEEDS} seeds. Settings were chosen on the last tenth of the training part.

| | {" | ".join(metrics)} |
|---|{"---|" * len(metrics)}
{chr(10).join(rows)}
"""
    (ROOT / "benchmarks" / "results" / f"{today}-quickstart.md").write_text(text)
    print(text)


def _row(means: tuple, deviations: tuple) -> str:
    name, *values = means
    cells = [f"{m:.4f}" + (f" +- {d:.4f}" if d > 1e-9 else "") for m, d in zip(values, deviations[1:], strict=True)]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
