"""The next film, MovieLens-1M: a causal transformer over what a person rated before, trained on every position.

    python examples/ml_1m.py --data <folder with ml-1m/>

The query tower reads the films rated before, in order, and the person's age, gender and occupation; the candidate tower a
film's id, genres, year and title. Both read one table of films. Each person's last film is the test, the one before the
validation; all films are ranked, less those rated before. The same towers with the mean of the history instead of the
transformer, popularity and item-kNN stand beside it.

MovieLens may not be redistributed: get it from https://grouplens.org/datasets/movielens/ (F. M. Harper and J. A. Konstan, ACM
TiiS 5(4), 2015). A folder with the official ml-1m files (.dat) does as well as one with Parquet.
"""

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import ItemKNN, Popularity

LENGTH = 100  # films of a history that are read
METRICS = ["recall_at_10", "ndcg_at_10"]
COLUMNS = {
    "history": tt.Categorical(Tags.USER, share="item_id"),
    "gender": tt.Categorical(Tags.USER),
    "age": tt.Categorical(Tags.USER),
    "occupation": tt.Categorical(Tags.USER),
    "item_id": tt.Categorical(Tags.ITEM_ID),
    "genres": tt.Categorical(Tags.ITEM),
    "year": tt.Bucketized(Tags.ITEM, buckets=10),
    "title": tt.Text(Tags.ITEM, min_count=3),
}


@dataclass(frozen=True)
class Films:
    """Encoded tables: rows whose histories do not overlap, for training on every position; and all rows, by part."""

    preprocessor: tt.Preprocessor
    items: tt.Dataset
    once: tt.Dataset
    train: tt.Dataset
    validation: tt.Dataset
    test: tt.Dataset


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="the folder that holds ml-1m/")
    p.add_argument("--people", type=int, default=6040, help="how many people")
    p.add_argument("--epochs", type=int, default=30)
    given = p.parse_args(arguments)
    films = prepare(*load(given.data, given.people))
    print(f"{films.train.num_rows:,} ratings to learn from, {films.test.num_rows:,} people, {films.items.num_rows:,} films")

    results = {}
    encoders = {"transformer": tt.HistoryTransformer(64, layers=2, heads=2, dropout=0.2, max_length=LENGTH)}
    encoders["mean of the history"] = tt.HistoryBag(64, max_length=LENGTH)
    for name, encoder in encoders.items():
        start = time.perf_counter()
        model = train(films, encoder, given.epochs)
        results[name] = ask(model.evaluate, films) | {"seconds": time.perf_counter() - start}
        best = model if name == "transformer" else best
    columns = {"user": "user_id", "item": "item_id", "catalog": films.items}
    for name, baseline in {"item-kNN": ItemKNN, "popularity": Popularity}.items():
        results[name] = ask(baseline(films.train, **columns).evaluate, films)
    show(results)
    recommend(best, films)
