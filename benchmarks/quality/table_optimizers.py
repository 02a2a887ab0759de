"""Optimisers of the embedding tables, all else alike: what each finds and costs, on validation.

    python benchmarks/quality/table_optimizers.py --data <folder with gowalla-lightgcn/ and amazon-book-kgat/>

Ids alone, a table of users and one of items of width 64, cosines with T = .1, in-batch softmax corrected for sampling bias, dropout
.1 on the user's vector, batches of 1,024, one seed. A tenth of each user's train items is held out and found again among all; the
tests are not touched. "dense" is fused Adam over all rows, the other names are those of `compile`. The two tables with three
optimisers at two rates take about twenty minutes of one core.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

import polars as pl
import torch
from torch import nn

import twotower as tt
from twotower import Tags

TABLES = ["gowalla-lightgcn", "amazon-book-kgat"]
METRICS = [tt.RecallAt(20, capped=False), tt.NDCGAt(20)]


OPTIMIZERS = ["dense", "lazy_adam", "row_adam"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("TWOTOWER_DATA")
    p.add_argument("--data", type=Path, default=folder, required=folder is None)
    p.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    p.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    p.add_argument("--rates", nargs="+", type=float, default=[0.0005, 0.001])
    p.add_argument("--epochs", type=int, default=8)
    given = p.parse_args()
    torch.set_num_threads(1)
    print(
        "| table | optimiser | rate | Recall@20 | NDCG@20 | last loss | CPU s of training |\n|---|---|---|---|---|---|---|"
    )
    for table in given.tables:
        for name in given.optimizers:
            for rate in given.rates:
                found = measured(given.data / table / "interactions.parquet", name, rate, given.epochs)
                print(f"| {table} | {name} | {rate:g} | {' | '.join(found)} |", flush=True)


def measured(file: Path, optimizer: str, rate: float, epochs: int) -> list[str]:
    """One training."""
    events = pl.read_parquet(file).filter(split="train").select("user_id", "item_id")
    schema = tt.Schema(
        [
            tt.ColumnSchema(name, [tag, Tags.CATEGORICAL], "int64", properties={"domain": {"min": 0, "max": top}})
            for name, tag in (("user_id", Tags.USER_ID), ("item_id", Tags.ITEM_ID))
            for top in [events[name].max()]
        ]
    )
    part, held = (tt.Dataset(t, schema) for t in tt.split_by_user(events, "user_id", 0.1))
    items = tt.Dataset(events.select("item_id").unique().sort("item_id"), schema.select_by_name(["item_id"]))
    torch.manual_seed(0)
    table = partial(tt.EmbeddingEncoder, dim=64, embeddings_initializer="glorot_uniform")
    model = tt.TwoTowerModelV2(
        table(schema["user_id"], post=nn.Sequential(nn.Dropout(0.1), tt.L2Norm())),
        table(schema["item_id"], post=tt.L2Norm()),
        logits_temperature=0.1,
    )
    model.compile(optimizer="adam", learning_rate=rate, table_optimizer=optimizer, metrics=METRICS)
    start = time.process_time()
    history = model.fit(part, catalog=items, batch_size=1024, epochs=epochs, seed=0, health_steps=0, verbose=False)
    seconds = time.process_time() - start
    values = model.evaluate(held, seen=part, catalog=items)
    found = [f"{values[metric.name]:.4f}" for metric in METRICS]
    return [*found, f"{history.history['loss'][-1]:.3f}", f"{seconds:.0f}"]


if __name__ == "__main__":
    main()
