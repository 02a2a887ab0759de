"""Raw tables to recommendations in one go: train, measure, save, recommend.

Run it with `make quickstart`. The data is MovieTweetings-100K, which comes with the package.
"""

import time
import warnings
from pathlib import Path

import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import ItemKNN, Popularity

BUNDLE = Path("runs/quickstart/bundle")
METRICS = ["recall_at_10", "recall_at_20", "recall_at_100", "ndcg_at_20"]
EVENTS = {"user": "user_id", "item": "item_id", "time": "timestamp"}


def main() -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".* positives were seen before")  # re-rated films, left out as it says
    data = tt.load_movietweetings()
    past, future = tt.split_by_time(data.ratings, time="timestamp", test_fraction=0.1)
    say(
        f"{len(data.ratings):,} ratings of {len(data.movies):,} films: train on the first {len(past):,}, test on the rest"
    )

    # the query: the films rated before, and when it is asked. Testing asks at the end of the training period.
    now = past["timestamp"].max()
    latest = tt.latest_histories(past, **EVENTS).with_columns(asked_at=pl.lit(now))
    train_events = tt.build_histories(past, **EVENTS).with_columns(asked_at=pl.col("timestamp"))
    test_events = future.join(latest, on="user_id", how="left").with_columns(asked_at=pl.lit(now))

    preprocessor = tt.Preprocessor(
        {
            "history": tt.Categorical((Tags.USER,), share="item_id"),
            "asked_at": tt.Numeric((Tags.USER, Tags.CONTEXT)),
            "item_id": tt.Categorical((Tags.ITEM_ID,)),
            "title": tt.Text((Tags.ITEM,), min_count=3),
            "genres": tt.Categorical((Tags.ITEM,)),
            "year": tt.Numeric((Tags.ITEM,)),
        }
    ).fit(train_events, data.movies)
    train, test = (
        preprocessor.transform(events.join(data.movies, on="item_id", how="left"))
        for events in (train_events, test_events)
    )
    films = preprocessor.transform(data.movies)

    say("Training two towers (history + time | id + title + genres + year) on corrected in-batch softmax")
    model = two_towers(preprocessor.schema)
    model.compile(optimizer="adam", learning_rate=0.002, metrics=METRICS)
    model.fit(train, epochs=4, batch_size=1024, catalog=films)

    say("Ranking all films for every test user, films rated before left out")
    results = compare(model, train, test, films)
    table(results.with_columns(pl.col(METRICS).round(4)))
    model_recall, popular_recall = results["recall_at_20"][0], results["recall_at_20"][1]
    print(
        f"Recall@20 is {model_recall / popular_recall:.2f} times that of popularity ({model_recall:.3f}, {popular_recall:.3f})."
    )

    tt.Retriever(model, preprocessor, data.movies).save(BUNDLE)
    show(tt.Retriever.load(BUNDLE), data.movies, latest)

    say(f"Done in {time.perf_counter() - start:.0f} seconds. The trained retriever is in {BUNDLE}. From here:")
    print(f'  retriever = twotower.Retriever.load("{BUNDLE}")')
    print('  retriever.recommend([{"history": ["1375666", "0816692"], "asked_at": 1378000000}], k=10)')
    print(
        "  examples/quickstart.py is the code behind it; docs/tutorial.md takes it apart and puts in your own tables."
    )


def two_towers(schema: tt.Schema) -> tt.RetrievalModelV2:
    """Both towers read one set of tables, so that a film in a history has the vector of the film itself."""
    inputs = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=64))
    query, candidate = (
        tt.Encoder(
            inputs.select_by_tag(side),
            tt.MLPBlock([128, 64], no_activation_last_layer=True),
            post=tt.L2Norm(),
        )
        for side in (Tags.USER, Tags.ITEM)
    )
    return tt.TwoTowerModelV2(query, candidate, logits_temperature=0.07)


def compare(model: tt.RetrievalModelV2, train: tt.Dataset, test: tt.Dataset, films: tt.Dataset) -> pl.DataFrame:
    """The model and three baselines in the same evaluator."""
    fortnight = pl.col("timestamp") > train.to_polars()["timestamp"].max() - 14 * 24 * 3600
    recent = tt.Dataset(train.to_polars().filter(fortnight), train.schema)
    results = {"two towers": model.evaluate(test, seen=train, group="user_id")}
    for name, kind, events in (
        ("popularity", Popularity, train),
        ("popularity, last 14 days", Popularity, recent),
        ("item-kNN", ItemKNN, train),
    ):
        baseline = kind(events, user="user_id", item="item_id", catalog=films)
        results[name] = baseline.evaluate(test, seen=train, metrics=METRICS)
    return pl.DataFrame([{"": name, **values} for name, values in results.items()])


def show(retriever: tt.Retriever, movies: pl.DataFrame, latest: pl.DataFrame) -> None:
    """Recommendations for three users, and films like two others, with titles."""
    title = dict(movies.select("item_id", "title").iter_rows())
    regular = latest.filter(pl.col("history").list.len() == 8).sort("user_id").head(3)
    for query in regular.iter_rows(named=True):
        say(f"User {query['user_id']} rated: " + "; ".join(title[film] for film in query["history"][-5:]))
        found = retriever.recommend([query], k=8, exclude=[query["history"]])
        table(found.select("rank", pl.col("score").round(3), "title", pl.col("genres").list.join(", ")))
    for wanted in ("The Matrix (1999)", "Finding Nemo (2003)"):
        film = movies.filter(pl.col("title") == wanted)["item_id"].to_list()
        say(f"Films like {wanted}")
        found = retriever.similar(film, k=5)
        table(found.select("rank", pl.col("score").round(3), "title", pl.col("genres").list.join(", ")))


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def table(frame: pl.DataFrame) -> None:
    with pl.Config(
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        tbl_width_chars=120,
        fmt_str_lengths=60,
    ):
        print(frame)


if __name__ == "__main__":
    main()
