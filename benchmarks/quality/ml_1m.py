"""The next film, MovieLens-1M, leave-one-out: one history encoder under seven losses, and the full softmax trained longer.

    python benchmarks/quality/ml_1m.py --data <folder with ml-1m/> [--rungs "full softmax" ...] [--seeds 0 1] [--out runs/ml-1m]

Ratings in the order of `position`, films with at least 5 ratings: 6,040 people, 3,416 films, 999,611 ratings. Each person's last
film is the test, the one before it the validation; neither is trained on. All films are ranked, less those rated before, so
that HR@10 is Recall@10. The test is looked at once for each finished rung; choices are made by the validation.

The encoder is SASRec's: two causal layers of width 64 with one head, on up to 200 films. All rungs train it on every position, with
the same seed, batches, epochs, dropout and learning rate; they differ in the negatives, the correction and the loss. The long runs
at the end take the same encoder with more epochs and dropout, without and with what is known of films and people.

A killed run goes on where it was: rungs that are done are read from --out, the one that was going on from its last epoch. One
thread works; on two free CPU cores the ladder takes about half an hour (2 to 5 minutes a rung), the long runs about an hour.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback

import twotower as tt
from twotower import Tags
from twotower.losses import gbce

LENGTH, DIM = 200, 64
FILMS = 3416
METRICS = ["recall_at_10", "ndcg_at_10"]
IDS = {
    "history": tt.Categorical(Tags.USER, share="item_id"),
    "item_id": tt.Categorical(Tags.ITEM_ID),
}
FEATURES = IDS | {
    "gender": tt.Categorical(Tags.USER),
    "age": tt.Categorical(Tags.USER),
    "occupation": tt.Categorical(Tags.USER),
    "genres": tt.Categorical(Tags.ITEM),
    "year": tt.Bucketized(Tags.ITEM, buckets=10),
    "title": tt.Text(Tags.ITEM, min_count=3),
}
PUBLISHED = {  # HR@10 and NDCG@10 of the same ratings, split and ranking
    "MF-BPR (bert4rec_repro)": (0.0740, 0.0377),
    "SASRec, BCE with 1 negative (Klenitskiy & Vasilev 2023)": (0.2500, 0.1341),
    "BERT4Rec (the same)": (0.2843, 0.1537),
    "gSASRec (its repository)": (0.3003, 0.1726),
    "SASRec, full cross-entropy (Klenitskiy & Vasilev)": (0.3152, 0.1821),
    "SASRec, 3000 shared negatives (the same)": (0.3159, 0.1857),
}


@dataclass(frozen=True)
class Rung:
    """What one run is trained with. The negatives are made anew for each run, since samplers learn from its data.

    `batch` counts lists, of 115 films on average."""

    negatives: Callable[[], list[Any]]
    correction: bool | str = False
    loss: str | Callable[..., torch.Tensor] = "softmax"
    features: bool = False
    epochs: int = 4
    batch: int = 32
    learning_rate: float = 0.005
    dropout: float = 0.1


def uniform(number: int) -> Callable[[], list[Any]]:
    return lambda: [tt.UniformSampler(number)]


LADDER = {
    "in-batch": Rung(lambda: ["in-batch"]),
    "in-batch + logQ": Rung(lambda: ["in-batch"], "logq"),
    "in-batch, corrected logQ": Rung(lambda: ["in-batch"], "corrected"),
    "in-batch + 512 uniform, corrected": Rung(lambda: ["in-batch", tt.UniformSampler(512)], "corrected"),
    "gBCE, 256 uniform": Rung(uniform(256), loss=partial(gbce, sampling_rate=256 / (FILMS - 1))),
    "3000 uniform": Rung(uniform(3000)),
    "full softmax": Rung(lambda: ["catalog"]),
}
LONG = {
    "full softmax, 14 epochs": replace(LADDER["full softmax"], epochs=14, dropout=0.2),
    "full softmax, 14 epochs, features": replace(LADDER["full softmax"], epochs=14, dropout=0.2, features=True),
    "full softmax, 30 epochs": replace(LADDER["full softmax"], epochs=30, dropout=0.2),
    "full softmax, 30 epochs, features": replace(LADDER["full softmax"], epochs=30, dropout=0.2, features=True),
}
RUNGS = LADDER | LONG


@dataclass(frozen=True)
class Films:
    """Encoded tables: all films; rows to learn from, whose lists do not overlap; the two questions, and what was seen before."""

    items: tt.Dataset
    train: tt.Dataset
    validation: tt.Dataset
    test: tt.Dataset
    seen_in_train: tt.Dataset
    seen_before_test: tt.Dataset


class Decay(Callback):
    """The learning rate grows over the first 2 % of the steps and then falls to zero in a straight line."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        done = trainer.global_step / trainer.estimated_stepping_batches
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate * min((done + 1e-4) / 0.02, 1 - done)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TWOTOWER_DATA")
    p.add_argument("--data", type=Path, default=data, required=data is None, help="the folder that holds ml-1m/")
    p.add_argument(
        "--rungs", nargs="*", default=list(RUNGS), choices=list(RUNGS), metavar="RUNG", help=", ".join(RUNGS)
    )
    p.add_argument("--seeds", nargs="*", type=int, default=[0])
    p.add_argument("--out", type=Path, default=Path("runs/ml-1m"))
    given = p.parse_args()
    torch.set_num_threads(1)
    results = [result(given.data, given.out, name, seed) for name in given.rungs for seed in given.seeds]
    table(results)
    differences(results)


@dataclass(frozen=True)
class Result:
    """A finished run: figures of its training, and every person's on the test."""

    rung: str
    seed: int
    told: dict[str, Any]
    test: tt.Evaluation


def result(data: Path, out: Path, name: str, seed: int) -> Result:
    """From the files that the run left, which is made if there are none."""
    folder = out / f"{name.replace(' ', '-').replace(',', '').replace('+', 'and')}-seed-{seed}"
    file, rung = folder / "result.json", RUNGS[name]
    settings = {k: v for k, v in asdict(rung).items() if k not in ("negatives", "loss")}
    if not file.exists():
        told = run(prepare(data, FEATURES if rung.features else IDS), name, seed, folder)
        file.write_text(json.dumps({"rung": name, "seed": seed, "settings": settings, **told}, indent=1))
    told = json.loads(file.read_text())
    if told["settings"] != settings:
        raise SystemExit(f"{file} is of other settings, {told['settings']} and not {settings}: give another --out.")
    return Result(name, seed, told, tt.Evaluation.load(folder / "test"))


def run(films: Films, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train, watching the validation after every epoch, and look at the test once, with the last epoch's weights."""
    rung, progress = RUNGS[name], Progress()
    model = build(films.train.schema, rung, seed)
    history = model.fit(
        films.train,
        catalog=films.items,
        batch_size=rung.batch,
        epochs=rung.epochs,
        seed=seed,
        validation_data=films.validation,
        seen=films.seen_in_train,
        group="user_id",
        callbacks=[Decay(rung.learning_rate), progress],
        checkpoint=folder,
        checkpoint_steps=10**9,  # at the end of every epoch
        resume_from="auto",
        health_steps=0,
        verbose=False,
    )
    evaluator = tt.Evaluator(
        films.test, candidates=films.items, seen=films.seen_before_test, user="user_id", item="item_id", metrics=METRICS
    )
    test = evaluator(model, name=name)
    test.save(folder / "test")
    print(test, flush=True)
    return {**history.history, "wall_seconds": progress.wall, "cpu_seconds": progress.cpu}


def build(schema: tt.Schema, rung: Rung, seed: int) -> tt.RetrievalModelV2:
    """Both towers read one table of films; a tower's columns are added up."""
    torch.manual_seed(seed)
    encoder = tt.HistoryTransformer(DIM, layers=2, dropout=rung.dropout, attention_dropout=0.0, max_length=LENGTH)
    embeddings = tt.Embeddings(
        schema.select_by_tag(Tags.CATEGORICAL),
        dim=DIM,
        sequence_combiner={"history": encoder} | ({"title": "mean", "genres": "mean"} if rung.features else {}),
    )
    inputs = tt.InputBlockV2(schema, categorical=embeddings, aggregation="sum" if rung.features else "concat")
    query, candidate = (tt.Encoder(inputs.select_by_tag(side)) for side in (Tags.USER, Tags.ITEM))
    model = tt.TwoTowerModelV2(
        query, candidate, negative_samplers=rung.negatives(), logq_sampling_correction=rung.correction
    )
    model.compile(loss=rung.loss, learning_rate=rung.learning_rate, metrics=METRICS, every_position="history")
    return model


class Progress(Callback):
    """A line for each epoch, and the time that all of them took, of a run that was broken off as well."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.wall, self.cpu = self.wall - time.perf_counter(), self.cpu - time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.wall, self.cpu = self.wall + time.perf_counter(), self.cpu + time.process_time()
        logged = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
        print(f"epoch {trainer.current_epoch + 1}, {self.wall:.0f} s: {logged}", flush=True)

    def state_dict(self) -> dict[str, float]:
        return {"wall": self.wall, "cpu": self.cpu}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.wall, self.cpu = state_dict["wall"], state_dict["cpu"]


def prepare(folder: Path, columns: dict[str, Any]) -> Films:
    """The vocabularies are learnt from all films and from what is trained on."""
    ratings, movies, users = (
        pl.read_parquet(folder / "ml-1m" / f"{name}.parquet") for name in ("ratings", "movies", "users")
    )
    common = ratings.group_by("item_id").len().filter(pl.col("len") >= 5)
    ratings = ratings.join(common, on="item_id", how="semi").sort("user_id", "position").select("user_id", "item_id")
    movies = movies.join(common, on="item_id", how="semi").select("item_id", "title", "genres", "year")
    assert (len(users), len(movies), len(ratings)) == (6040, FILMS, 999_611)
    from_end = pl.int_range(pl.len()).reverse().over("user_id")
    learnt, before_test = ratings.filter(from_end >= 2), ratings.filter(from_end >= 1)
    rows = {
        "train": lists(learnt),
        "validation": lists(before_test).filter(pl.col("window") == 0),
        "test": lists(ratings).filter(pl.col("window") == 0),
    }
    rows = {
        n: r.join(users, on="user_id").join(movies, on="item_id").sort("user_id", "window") for n, r in rows.items()
    }
    preprocessor = tt.Preprocessor(columns).fit(rows["train"], movies)
    tables = rows | {"items": movies, "seen_in_train": learnt, "seen_before_test": before_test}
    return Films(**{name: preprocessor.transform(table) for name, table in tables.items()})


def lists(ratings: pl.DataFrame) -> pl.DataFrame:
    """From each person's end, a row for every LENGTH + 1 films: the last of them, and the list before it. With every
    position trained, each film is learnt once, and none is left out."""
    from_end = pl.int_range(pl.len()).reverse().over("user_id")
    films = pl.col("item_id")
    return ratings.group_by("user_id", window=from_end // (LENGTH + 1), maintain_order=True).agg(
        history=films.head(films.len() - 1), item_id=films.last()
    )


def table(results: list[Result]) -> None:
    """The runs beside what others published."""
    ours = [
        {
            "": r.rung,
            "seed": r.seed,
            "HR@10": r.test["recall_at_10"].mean,
            "NDCG@10": r.test["ndcg_at_10"].mean,
            "validation HR@10": r.told["val_recall_at_10"][-1],
            "NDCG@10 ": r.told["val_ndcg_at_10"][-1],
            "epochs": len(r.told["loss"]),
            "seconds": round(r.told["wall_seconds"]),
            "CPU": round(r.told["cpu_seconds"]),
        }
        for r in results
    ]
    theirs = [{"": name, "HR@10": recall, "NDCG@10": ndcg} for name, (recall, ndcg) in PUBLISHED.items()]
    plain = {"tbl_hide_column_data_types": True, "tbl_hide_dataframe_shape": True, "tbl_rows": -1, "tbl_cols": -1}
    with pl.Config(**plain, tbl_width_chars=180, fmt_str_lengths=60):
        print(pl.DataFrame(ours + theirs, infer_schema_length=None).with_columns(pl.col(pl.Float64).round(4)))


def differences(results: list[Result]) -> None:
    """Each rung less the full softmax of the same seed, person by person."""
    full = {r.seed: r.test for r in results if r.rung == "full softmax"}
    for r in results:
        if r.seed in full and r.rung != "full softmax":
            print(f"{r.rung}, seed {r.seed}, against the full softmax:", *tt.compare(r.test, full[r.seed]), sep="\n  ")


if __name__ == "__main__":
    main()
