"""A news site, day by day: new articles every hour, yesterday's are stale, and the model is refreshed every night.

    python examples/globo_news.py --data <folder with globo-news/>

Every night the vocabularies take in the day's new articles and users (`Preprocessor.extend`), the trained model grows with them
(`model.extend`), and training goes on with the day's clicks alone. Then it is asked what people click in the first hours of
the next day, and compared with the model that was left as it was after the first day, and with the most clicked articles of
the last hours, which are hard to beat where everybody reads the same news.

25 November 2026, twotower 0.1.0, one thread, two minutes; 1,538,528 clicks of eight days, one seed; mean of the six mornings
after the second and later nights, the clicks of two hours each:

                           Recall@20   Recall@100   NDCG@20
    refreshed                   .688         .883      .371
    left since day 1            .001         .013      .000
    popular, last two hours     .661         .860      .333

How times are told was chosen on the second morning, which is among them (the others were not used to choose): an hour of the day
as a category ties the articles of yesterday's small hours to tomorrow's, and finds .03 instead of .7; hours since the day began
go on where training ended. A night takes 6 to 20 seconds.

The data is Globo.com's "News Portal User Interactions" on Kaggle (G. de Souza P. Moreira, D. Jannach, A. M. da Cunha, IEEE
Access 2019), as Parquet; it is for research and cannot be shipped with the library.
"""

import argparse
import copy
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import Popularity

HOUR = 3600 * 1000  # the clicks' times are milliseconds
DAY = 24 * HOUR
FIRST_DAY = 1_506_826_800_000  # 1 October 2017, midnight in Brasilia
METRICS = ["recall_at_20", "recall_at_100", "ndcg_at_20"]
EVENTS = {"user": "user_id", "item": "article_id", "time": "click_timestamp"}
CONTEXT = (Tags.USER, Tags.CONTEXT)
COLUMNS = {
    "history": tt.Categorical(Tags.USER, share="article_id"),
    "asked": tt.Numeric(CONTEXT),  # hours since the beginning of the day that was learnt last
    "click_deviceGroup": tt.Categorical(CONTEXT),
    "click_os": tt.Categorical(CONTEXT),
    "click_region": tt.Categorical(CONTEXT),
    "click_referrer_type": tt.Categorical(CONTEXT),
    "article_id": tt.Categorical(Tags.ITEM_ID),
    "category_id": tt.Categorical(Tags.ITEM),
    "words_count": tt.Bucketized(Tags.ITEM, buckets=10),
    "published": tt.Numeric(Tags.ITEM, scale="log", fill="mean", indicator=True),  # in the same hours
}


@dataclass(frozen=True)
class News:
    """Clicks, with the user's earlier ones as history, and what is known of the articles."""

    clicks: pl.DataFrame
    articles: pl.DataFrame

    def between(self, start: int, end: int) -> pl.DataFrame:
        """The clicks of a time."""
        return self.clicks.filter(pl.col("click_timestamp").is_between(start, end, closed="left"))

    def clicked(self, start: int, end: int) -> pl.DataFrame:
        """The articles that were clicked in a time, one row each."""
        ids = self.between(start, end).select("article_id").unique(maintain_order=True)
        return ids.join(self.articles, on="article_id", how="left", maintain_order="left")


@dataclass(frozen=True)
class Night:
    """What is known at the end of a day: times are told in hours since the day began."""

    start: int
    preprocessor: tt.Preprocessor
    model: tt.RetrievalModelV2
    articles: pl.DataFrame

    def encoded(self, rows: pl.DataFrame) -> tt.Dataset:
        """Clicks or articles as this night's model reads them."""
        return self.preprocessor.transform(told(rows, self.start))

    def catalog(self) -> tt.Dataset:
        """The articles that can be recommended."""
        return self.encoded(self.articles)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="the folder that holds globo-news/")
    p.add_argument("--days", type=int, default=7, help="how many nights to refresh")
    p.add_argument("--share", type=float, default=1.0, help="share of the users")
    p.add_argument("--hours", type=int, default=2, help="hours of the next day to be asked about")
    given = p.parse_args()
    news = load(given.data, given.days, given.share)
    print(f"{len(news.clicks):,} clicks of {news.clicks['user_id'].n_unique():,} people in {given.days + 1} days")

    night, left, rows = None, None, []
    for day in range(given.days):
        began = time.perf_counter()
        night = learn(news, FIRST_DAY + day * DAY, night)
        took = time.perf_counter() - began
        # the next night goes on training the same model
        left = replace(night, model=copy.deepcopy(night.model)) if left is None else left
        end = night.start + DAY
        asked, recent = news.between(end, end + given.hours * HOUR), news.between(end - given.hours * HOUR, end)
        unread = 1 - asked["article_id"].is_in(night.articles["article_id"].implode()).mean()
        found = {
            "refreshed": ask(night, asked),
            "left since day 1": ask(left, asked),
            "popular": most_clicked(night, recent, asked),
        }
        rows.append(
            {"day": day + 1, "articles": len(night.articles), "unread": unread, "seconds": took} | flattened(found)
        )
        say(rows[-1])
    show(rows)


def learn(news: News, start: int, before: Night | None) -> Night:
    """The night after a day: its clicks and articles are learnt, on top of what was known before."""
    clicks, articles = news.between(start, start + DAY), news.clicked(start, start + DAY)
    tables = told(clicks, start), told(articles, start)
    if before is None:
        preprocessor = tt.Preprocessor(COLUMNS).fit(*tables)
        model = new_model(preprocessor)
    else:
        preprocessor, model = before.preprocessor.extend(*tables), before.model
        model.extend(preprocessor.schema)
    night = Night(start, preprocessor, model, articles)
    train = night.encoded(clicks.join(news.articles, on="article_id", how="left", maintain_order="left"))
    model.fit(train, catalog=night.catalog(), batch_size=2048, epochs=3, seed=0, verbose=False, health_steps=0)
    return night


def told(rows: pl.DataFrame, start: int) -> pl.DataFrame:
    """With the hours from the beginning of a day to a click, and to an article's publication."""
    hours = {"asked": "click_timestamp", "published": "created_at_ts"}
    return rows.with_columns((pl.col(c) - start) / HOUR for c in hours.values() if c in rows.columns).rename(
        {c: name for name, c in hours.items() if c in rows.columns}
    )


def load(folder: Path, days: int, share: float) -> News:
    """The clicks of some days and a share of the users, each with the articles that the user clicked before."""
    paths = [folder / "globo-news" / name for name in ("clicks.parquet", "articles_partial.parquet")]
    for path in paths:
        if not path.exists():
            raise SystemExit(
                f"no file {path}: --data must name a folder with globo-news/clicks.parquet and articles_partial.parquet. The data "
                "is not part of this package; it comes from Globo.com, 'News Portal User Interactions' on Kaggle."
            )
    clicks = pl.read_parquet(paths[0]).rename({"click_article_id": "article_id"})
    clicks = clicks.filter(
        pl.col("click_timestamp").is_between(FIRST_DAY, FIRST_DAY + (days + 1) * DAY),
        pl.col("user_id") % 1000 < share * 1000,
    ).drop("session_id", "session_start", "session_size")
    histories = tt.build_histories(clicks, **EVENTS, length=20).with_row_index("click")
    return News(histories, pl.read_parquet(paths[1]).drop("publisher_id"))


def new_model(preprocessor: tt.Preprocessor) -> tt.RetrievalModelV2:
    """Both towers read one table of articles, so that a click in a history is the article itself."""
    torch.manual_seed(0)
    schema = preprocessor.schema
    inputs = tt.InputBlockV2(
        schema,
        categorical=tt.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=32, id_dropout={"article_id": 0.1}),
    )
    query, candidate = (
        tt.Encoder(inputs.select_by_tag(side), tt.MLPBlock([128, 64], no_activation_last_layer=True), post=tt.L2Norm())
        for side in (Tags.USER, Tags.ITEM)
    )
    model = tt.TwoTowerModelV2(query, candidate, logits_temperature=0.07)
    model.compile(optimizer="adam", learning_rate=0.002, metrics=METRICS)
    return model


def ask(night: Night, asked: pl.DataFrame) -> dict[str, float]:
    """How a night's model ranks its articles for the next morning's clicks; articles that it does not know are missed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not in the catalogue")
        return night.model.evaluate(night.encoded(asked), catalog=night.catalog(), group="click")


def most_clicked(night: Night, recent: pl.DataFrame, asked: pl.DataFrame) -> dict[str, float]:
    """The same for the articles that were clicked most in the last hours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not in the catalogue")
        baseline = Popularity(night.encoded(recent), "click", "article_id", night.catalog())
        return baseline.evaluate(night.encoded(asked), metrics=METRICS)


def flattened(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{name}: {metric}": value for name, values in found.items() for metric, value in values.items()}


def say(row: dict[str, float]) -> None:
    recalls = ", ".join(f"{k.split(':')[0]} {v:.3f}" for k, v in row.items() if k.endswith("recall_at_20"))
    print(
        f"night {row['day']}: {row['articles']:,} articles, refreshed in {row['seconds']:.0f} s. The next morning "
        f"{row['unread']:.0%} of the clicks go to articles that nobody had clicked; recall at 20: {recalls}",
        flush=True,
    )


def show(rows: list[dict[str, float]]) -> None:
    """Means over the mornings after the second night and later, when the models differ."""
    later = pl.DataFrame(rows[1:])
    print("\nMean over the later mornings:")
    for name in ("refreshed", "left since day 1", "popular"):
        print(f"  {name:18}" + "  ".join(f"{m} {later[f'{name}: {m}'].mean():.4f}" for m in METRICS))


if __name__ == "__main__":
    main()
