"""Raw tables to recommendations in one go: train, measure, save, recommend.

Run it with `make quickstart`. The data is MovieTweetings-100K, which comes with the package.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import ItemKNN, Popularity

BUNDLE = Path("runs/quickstart/bundle")
METRICS = ["recall_at_10", "recall_at_20", "recall_at_100", "ndcg_at_20"]
EVENTS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
DAY = 24 * 3600
T, EPOCHS = 0.07, 2


@dataclass(frozen=True)
class Prepared:
    """The tables, encoded."""

    preprocessor: tt.Preprocessor
    train: tt.Dataset
    test: tt.Dataset
    films: tt.Dataset
    latest: pl.DataFrame


def main() -> None:
    start = time.perf_counter()
    data = tt.load_movietweetings()
    ready = prepare(data)
    say(
        f"{len(data.ratings):,} ratings of {len(data.movies):,} films: train on the first {len(ready.train):,}, test on the rest"
    )

    say("Training two towers (history | id + title + genres + year) on corrected in-batch softmax")
    model = train(ready)

    say("Ranking all films for every test user, films rated before left out")
    results = compare(model, ready)
    table(results.with_columns(pl.col(METRICS).round(4)))
    model_recall, popular_recall = results["recall_at_20"][0], results["recall_at_20"][1]
    times = model_recall / popular_recall
    print(f"Recall@20 is {times:.2f} times that of popularity ({model_recall:.3f} against {popular_recall:.3f}).")

    tt.Retriever(model, ready.preprocessor, data.movies).save(BUNDLE)
    show(tt.Retriever.load(BUNDLE), data.movies, ready.latest)

    say(
        f"Done in {time.perf_counter() - start:.0f} seconds. The trained retriever is in {BUNDLE}. From here, in Python:"
    )
    print("  import twotower as tt")
    print(f'  retriever = tt.Retriever.load("{BUNDLE}")')
    print('  retriever.recommend([{"history": ["1375666", "0816692"]}], k=10)')
    print("docs/tutorial.md takes this script apart and puts your own tables in.")


def prepare(data: tt.MovieTweetings) -> Prepared:
    """Split by time; a query is the films rated before, in the test as they were at the end of training."""
    past, future = tt.split_by_time(data.ratings, time="timestamp", test_fraction=0.1)
    latest = tt.latest_histories(past, **EVENTS)
    train_events = tt.build_histories(past, **EVENTS)
    test_events = future.join(latest, on="user_id", how="left")

    preprocessor = tt.Preprocessor(
        {
            "history": tt.Categorical(Tags.USER, share="item_id"),
            "item_id": tt.Categorical(Tags.ITEM_ID),
            "title": tt.Text(Tags.ITEM, min_count=3),
            "genres": tt.Categorical(Tags.ITEM),
            "year": tt.Numeric(Tags.ITEM),
        }
    ).fit(train_events, data.movies)
    train, test = (
        preprocessor.transform(events.join(data.movies, on="item_id", how="left", maintain_order="left"))
        for events in (train_events, test_events)
    )
    return Prepared(preprocessor, train, test, preprocessor.transform(data.movies), latest)


def train(ready: Prepared, seed: int = 0, verbose: bool = True) -> tt.RetrievalModelV2:
    """Both towers read one set of tables, so that a film in a history has the vector of the film itself.

    What is popular of late is counted; the towers learn what differs from person to person.
    """
    torch.manual_seed(seed)
    schema = ready.preprocessor.schema
    inputs = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=64))
    popularity = tt.PopularityPrior(schema["item_id"], temperature=T)
    events = ready.train.to_polars()
    popularity.count(events["item_id"], events["timestamp"])
    query, candidate = (
        tt.Encoder(
            inputs.select_by_tag(side),
            tt.MLPBlock([128, 64], no_activation_last_layer=True, dropout=0.2),
            post=tt.L2Norm(),
            prior=prior,
        )
        for side, prior in ((Tags.USER, tt.PriorWeight()), (Tags.ITEM, popularity))
    )
    model = tt.TwoTowerModelV2(query, candidate, logits_temperature=T)
    model.compile(optimizer="adam", learning_rate=0.002, metrics=METRICS)
    model.fit(ready.train, epochs=EPOCHS, batch_size=1024, catalog=ready.films, seed=seed, verbose=verbose)
    return model


def compare(model: tt.RetrievalModelV2, ready: Prepared) -> pl.DataFrame:
    """The model and three baselines in the same evaluator."""
    events = ready.train.to_polars()
    fortnight = tt.Dataset(
        events.filter(pl.col("timestamp") > events["timestamp"].max() - 14 * DAY), ready.train.schema
    )
    columns = {"user": "user_id", "item": "item_id", "catalog": ready.films}
    baselines = {
        "popularity": Popularity(ready.train, **columns),
        "popularity, last 14 days": Popularity(fortnight, **columns),
        "item-kNN": ItemKNN(ready.train, **columns),
    }
    with warnings.catch_warnings():  # films rated twice cannot be recommended again; evaluate says how many
        warnings.filterwarnings("ignore", message=".* positives were seen before")
        results = {"two towers": model.evaluate(ready.test, seen=ready.train, group="user_id")}
        for name, baseline in baselines.items():
            results[name] = baseline.evaluate(ready.test, seen=ready.train, metrics=METRICS)
    return pl.DataFrame([{"": name, **values} for name, values in results.items()])


def show(retriever: tt.Retriever, movies: pl.DataFrame, latest: pl.DataFrame) -> None:
    """Recommendations for three users, and films like two others, with titles."""
    title = dict(movies.select("item_id", "title").iter_rows())
    columns = ["rank", pl.col("score").round(3), "title", pl.col("genres").list.join(", ")]
    regular = latest.filter(pl.col("history").list.len() == 8).sort("user_id").head(3)
    for query in regular.iter_rows(named=True):
        say(f"User {query['user_id']} rated: " + "; ".join(title[film] for film in query["history"][-5:]))
        table(retriever.recommend([query], k=8, exclude=[query["history"]]).select(columns))
    for wanted in ("The Matrix (1999)", "Finding Nemo (2003)"):
        say(f"Films like {wanted}")
        film = movies.filter(pl.col("title") == wanted)["item_id"].to_list()
        table(retriever.similar(film, k=5).select(columns))


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def table(frame: pl.DataFrame) -> None:
    plain = {"tbl_hide_column_data_types": True, "tbl_hide_dataframe_shape": True, "tbl_rows": -1}
    with pl.Config(**plain, tbl_width_chars=120, fmt_str_lengths=60):
        print(frame)


if __name__ == "__main__":
    main()
