"""Q3: towers with features, and items and people that training never saw.

ml-100k, as in the tutorials of TensorFlow Recommenders: 80,000 ratings at random to learn from, 20,000 to predict, all 1,682
films ranked, those rated before not left out; the share of the 20,000 whose film is among the first 100. Towers of ids alone, of
ids and features in one layer (shallow) and with a hidden one ([64, 32]); the mean of the seeds.

ml-1m, split by global time: the first 80 % to learn from, 10 % to validate, the last 10 % to predict, films rated before left out,
all 3,883 films ranked. Ids alone against ids and features, beside popularity: over all, for films and people of whom training
holds no rating, with intervals over people.

How long to train is chosen on validation data: a tenth of the 80,000, and the middle 10 %. About 25 minutes on one core; what is
done lies in --out and is not done again.

    python benchmarks/quality/movielens_features.py --data <folder that holds ml-100k/ and ml-1m/> [--only ml-100k | ml-1m]
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import Popularity
from twotower.training.early_stopping import CatalogEarlyStopping

FILMS = {
    "item_id": tt.Categorical(Tags.ITEM_ID),  # names the candidates
    # what the tower reads: learnt from the ratings alone, so that a film without any is unknown
    "known_item": tt.Categorical(Tags.ITEM, source="item_id", beside="user_id"),
    "genres": tt.Categorical(Tags.ITEM),
    "title": tt.Text(Tags.ITEM),
    "year": tt.Bucketized(Tags.ITEM, buckets=20),
}
PEOPLE = {
    "user_id": tt.Categorical(Tags.USER_ID),
    "gender": tt.Categorical(Tags.USER),
    "age": tt.Bucketized(Tags.USER, buckets=10),
    "occupation": tt.Categorical(Tags.USER),
}
WHEN = {  # the moment of asking, in buckets and as a number
    "moment": tt.Bucketized(Tags.USER, source="timestamp", buckets=1000),
    "time": tt.Numeric(Tags.USER, source="timestamp"),
}
IDS = ["user_id", "known_item"]
ML_100K = {"ids, shallow": (IDS, []), "ids + features, shallow": (None, []), "ids + features, [64, 32]": (None, [64])}
FEATURES = [name for name in (*FILMS, *PEOPLE) if name not in ("user_id", "known_item")]
# columns, hidden layers, uniform negatives: these push down what nobody rated, which cold films are
ML_1M = {
    "ids": (IDS, [], 512),
    "features": (FEATURES, [64], 512),
    "ids + features": (None, [64], 512),
    "ids + features, in-batch alone": (None, [64], 0),
}


def build(
    schema: tt.Schema, columns: Sequence[str] | None, hidden: Sequence[int], dim: int, seed: int, uniform: int = 512
) -> tt.RetrievalModelV2:
    """Two towers on some columns, cosines at T = .1 against the batch and some films of the catalogue."""
    torch.manual_seed(seed)
    read = schema.select_by_name(
        [c.name for c in schema if c.name != "item_id" and (columns is None or c.name in columns)]
    )
    # now and then a film or a person comes as unknown, so that the towers learn to do without their ids
    dropout = {} if columns is not None else {"known_item": 0.2, "user_id": 0.2}
    tables = tt.Embeddings(
        read.select_by_tag(Tags.CATEGORICAL), dim=32, sequence_combiner="sqrtn", id_dropout=dropout or 0.0
    )
    inputs = tt.InputBlockV2(read, categorical=tables)

    def tower(side: Tags) -> tt.Encoder:
        block = tt.MLPBlock([*hidden, dim], no_activation_last_layer=True, dropout=0.2)
        return tt.Encoder(inputs.select_by_tag(side), block, post=tt.L2Norm())

    samplers = ["in-batch", *([tt.UniformSampler(uniform)] if uniform else [])]
    model = tt.TwoTowerModelV2(
        tower(Tags.USER), tower(Tags.ITEM), schema=schema, logits_temperature=0.1, negative_samplers=samplers
    )
    model.compile(optimizer="adam", learning_rate=0.002)
    return model


def fit(
    model: tt.RetrievalModelV2, train: tt.Dataset, films: tt.Dataset, validation: tt.Evaluator, monitor: str, seed: int
) -> int:
    """Train until the validation no longer gains, and keep the best; how many epochs that took."""
    stop = CatalogEarlyStopping(validation, monitor=monitor, patience=2)
    history = model.fit(
        train, batch_size=1024, epochs=40, catalog=films, callbacks=stop, seed=seed, verbose=False, health_steps=0
    )
    return history.epochs


def tables(folder: Path, name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ratings with the people's columns, and films."""
    files = [folder / name / file for file in ("ratings.parquet", "items.parquet", "movies.parquet", "users.parquet")]
    there = [file for file in files if file.exists()]
    if len(there) < 3:
        raise SystemExit(f"{folder / name} must hold ratings, users and items (or movies) as .parquet; found {there}.")
    films = pl.read_parquet(there[1]).select("item_id", "title", "genres", "year")
    people = pl.read_parquet(there[2]).select("user_id", "gender", "age", "occupation")
    ratings = pl.read_parquet(there[0]).select("user_id", "item_id", "timestamp")
    return ratings.join(people, on="user_id", maintain_order="left").with_row_index("row"), films


def ml_100k(folder: Path, out: Path, seeds: Sequence[int]) -> str:
    ratings, films = tables(folder, "ml-100k")
    metrics = ["recall_at_100", "recall_at_10", "coverage_at_100"]
    rows: dict[str, list[tt.Evaluation]] = {name: [] for name in ML_100K}
    popular = []
    for seed in seeds:
        train, test = tt.split_at_random(ratings, 0.2, seed=seed)
        learn, validation = tt.split_at_random(train, 0.1, seed=seed)
        preprocessor = tt.Preprocessor(FILMS | PEOPLE | WHEN).fit(learn, films)
        data, encoded, other = (preprocessor.transform(t) for t in (learn.join(films, on="item_id"), films, validation))
        asked = {"query": "row", "user": "user_id", "item": "item_id"}  # every rating is a question of its own
        evaluator = tt.Evaluator(test, candidates=films, train=train, metrics=metrics, **asked)
        check = tt.Evaluator(other, candidates=encoded, metrics="recall_at_100", **asked)
        popular.append(
            evaluator(Popularity(tt.Dataset(train), "user_id", "item_id", tt.Dataset(films)), name="popularity")
        )
        for name, (columns, hidden) in ML_100K.items():
            place = out / "ml-100k" / f"{name.replace(', ', '-').replace(' ', '')}-{seed}"
            if not (place / "evaluation.json").exists():
                model = build(data.schema, columns, hidden, dim=32, seed=seed)
                epochs = fit(model, data, encoded, check, "recall_at_100", seed)
                evaluator(tt.Retriever(model, preprocessor, films), name=f"{name} ({epochs} epochs)").save(place)
            rows[name].append(tt.Evaluation.load(place))
            print(rows[name][-1], flush=True)
    lines = ["| ml-100k | top-100 accuracy, mean (sd) of the seeds | top-10 |", "|---|---|---|"]
    for name, found in {"popularity": popular, **rows}.items():
        lines.append(f"| {name} | {spread(found, 'recall_at_100')} | {spread(found, 'recall_at_10')} |")
    return "\n".join(lines)


def ml_1m(folder: Path, out: Path) -> str:
    ratings, films = tables(folder, "ml-1m")
    rest, test = tt.split_by_time(ratings, "timestamp", 0.1)
    learn, validation = tt.split_by_time(rest, "timestamp", 1 / 9)
    preprocessor = tt.Preprocessor(FILMS | PEOPLE).fit(learn, films)
    data, encoded, other, past = (
        preprocessor.transform(table)
        for table in (
            learn.join(films, on="item_id"),
            films,
            validation.with_columns(raw="user_id"),
            learn.with_columns(raw="user_id"),
        )
    )
    slices = ["cold_items", "warm_items", "new_users", "known_users"]
    metrics = ["recall_at_20", "ndcg_at_20", "recall_at_100", "coverage_at_20"]
    evaluator = tt.Evaluator(test, candidates=films, seen=rest, train=learn, user="user_id", item="item_id", metrics=metrics,
                             slices=slices)  # fmt: skip
    check = tt.Evaluator(other, candidates=encoded, seen=past, user="raw", item="item_id", metrics="recall_at_20")
    done = [evaluator(Popularity(tt.Dataset(learn), "user_id", "item_id", tt.Dataset(films)), name="popularity")]
    for name, (columns, hidden, uniform) in ML_1M.items():
        place = out / "ml-1m" / name.replace(", ", "-").replace(" ", "")
        if not (place / "evaluation.json").exists():
            model = build(data.schema, columns, hidden, dim=64, seed=0, uniform=uniform)
            epochs = fit(model, data, encoded, check, "recall_at_20", seed=0)
            evaluator(tt.Retriever(model, preprocessor, films), name=f"{name} ({epochs} epochs)").save(place)
        done.append(tt.Evaluation.load(place))
        print(done[-1], flush=True)
    head = "| ml-1m by time | recall@20 | ndcg@20 | " + " | ".join(f"{s}, recall@20 / @100" for s in slices) + " |"
    lines = [head, "|---" * (3 + len(slices)) + "|"]
    for e in done:
        parts = [e.slices[s].metrics for s in slices]
        cells = [f"{p['recall_at_20']} / {p['recall_at_100'].mean:.4f}" for p in parts]
        lines.append(f"| {e.name} | {e['recall_at_20']} | {e['ndcg_at_20']} | " + " | ".join(cells) + " |")
    gain = tt.compare(done[-1], done[1], ["recall_at_20"])[0]
    sizes = ", ".join(
        f"{s} {done[0].slices[s].queries:,} people and {done[0].slices[s].positives:,} ratings" for s in slices
    )
    return "\n".join([*lines, f"\nids + features against ids, {gain}.", f"\n{done[0].queries:,} people: {sizes}."])


def spread(found: Sequence[tt.Evaluation], metric: str) -> str:
    values = [evaluation[metric].mean for evaluation in found]
    return f"{np.mean(values):.4f} ({np.std(values, ddof=1) if len(values) > 1 else float('nan'):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("TWOTOWER_DATA"), required="TWOTOWER_DATA" not in os.environ
    )
    parser.add_argument("--only", choices=["ml-100k", "ml-1m"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/movielens_features"))
    options = parser.parse_args()
    made = []
    if options.only != "ml-1m":
        made.append(ml_100k(options.data, options.out, options.seeds))
    if options.only != "ml-100k":
        made.append(ml_1m(options.data, options.out))
    print("\n\n".join(made))


if __name__ == "__main__":
    main()
