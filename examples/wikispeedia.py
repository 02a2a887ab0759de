"""Wikispeedia: from an article to the articles that it links to, both towers reading text.

What it shows: page to page retrieval, where one table of articles is read on both sides, with the same words, categories and
vectors; articles that no link of training leads to, found by their text; baselines of your own in the library's evaluator
(TF-IDF, where scikit-learn is installed).

The data is the Wikipedia Selection for Schools of 2007, 4,598 articles and 119,769 links; it is not part of this package. A tenth
of the linked articles is kept cold: no link to them is learnt from. Of the other links a tenth, drawn at random, is the warm test.

    python examples/wikispeedia.py --data <folder that holds wikispeedia/>

25 November 2026, twotower 0.1.0, one thread, three minutes of processor time; one seed:

                             warm recall@20   ndcg@20   cold recall@20   cold among all without a link to learn from
    ids                            .314         .208         .000              .000
    features                       .380         .245         .210              .553
    ids + features                 .373         .240         .226              .554
    most linked                    .142         .085         .000
    item-kNN                       .329         .227         .000
    TF-IDF, text with text         .189         .133         .158
    TF-IDF, text with title        .220         .143         .230

So the towers lead on warm links, and ids add nothing to text. For cold articles it is worth looking for their titles in the text:
that finds a little more of them than the towers do. Recall@20 is the share of an article's test links among the first 20, of
at most 20. Settings were chosen with --validate, which splits the training part once more.
"""

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import Baseline, ItemKNN, Popularity

SOURCE = "the SNAP collection, data set wikispeedia (R. West, J. Leskovec, WWW 2012)"
METRICS = ["recall_at_20", "ndcg_at_20"]
COLD_SHARE = 0.1
TEST_SHARE = 0.1

# every article is read twice, once as the page that links and once as the page that is linked, with the same words and tables
COLUMNS = {
    "article_id": tt.Categorical(Tags.ITEM_ID),  # names the candidates
    "known_id": tt.Categorical(
        Tags.ITEM
    ),  # what the tower reads: learnt from the links, so that cold articles are unknown
    "title": tt.Text(Tags.ITEM, min_count=3),
    "text": tt.Text(Tags.ITEM, share="title"),
    "categories": tt.Categorical(Tags.ITEM),
    "from_id": tt.Categorical(Tags.USER_ID, share="article_id", source="article_id"),
    "from_title": tt.Text(Tags.USER, share="title", source="title"),
    "from_text": tt.Text(Tags.USER, share="title", source="text"),
    "from_categories": tt.Categorical(Tags.USER, share="categories", source="categories"),
}
# what the towers of each model read
IDS = ["known_id", "from_id"]
FEATURES = ["title", "text", "categories", "from_title", "from_text", "from_categories"]
MODELS = {"ids": IDS, "features": FEATURES, "ids + features": IDS + FEATURES}


@dataclass(frozen=True)
class Parts:
    """Links to learn from, others at random, and all links to the articles that are kept cold."""

    train: pl.DataFrame
    warm: pl.DataFrame
    cold: pl.DataFrame


@dataclass(frozen=True)
class Prepared:
    """The tables, encoded; `seen` are the links to learn from, and each article with itself; `unlinked` have no link there."""

    preprocessor: tt.Preprocessor
    train: tt.Dataset
    warm: tt.Dataset
    cold: tt.Dataset
    seen: tt.Dataset
    articles: tt.Dataset
    unlinked: tt.Dataset


class TfIdf(Baseline):
    """Cosine of the TF-IDF vectors of the page that links and of the page that is linked.

    Args:
        linking, linked: by encoded article id, the texts to compare.
        options: the arguments of every Baseline.
    """

    def __init__(self, linking: dict[int, str], linked: dict[int, str], **options: object) -> None:
        self.texts = (linking, linked)
        super().__init__(**options)

    def learn(self, events: pl.DataFrame) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # an optional package

        linking, linked = ([texts[article] for article in self.items.to_list()] for texts in self.texts)
        vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(linking)
        self.vectors = vectorizer.transform(linking), vectorizer.transform(linked)

    def scores(self, users: pl.Series) -> torch.Tensor:
        linking, linked = self.vectors
        return torch.from_numpy((linking[self.positions(users)] @ linked.T).toarray()).float()


def main() -> None:
    options = arguments()
    articles, links = load(options.data)
    if options.articles is not None:
        articles = articles.sample(min(options.articles, len(articles)), seed=0)
        kept = articles["article_id"].implode()
        links = links.filter(pl.col("from").is_in(kept) & pl.col("to").is_in(kept))
    parts = split(links, seed=0)
    if options.validate:
        parts = split(parts.train, seed=1)
    ready = prepare(articles, parts)
    say(
        f"{len(links):,} links between {len(articles):,} articles: learn from {len(parts.train):,}; test on {len(parts.warm):,} "
        f"others, and on {len(parts.cold):,} to {parts.cold['to'].n_unique()} articles that no link of training leads to"
    )
    results = {}
    for name, columns in MODELS.items():
        model = train(ready, columns, seed=options.seed)
        results[name] = measure(model, ready)
    for name, baseline in baselines(ready).items():
        results[name] = measure_baseline(baseline, ready)
    say("All articles ranked for every article of the test, those that it links to in training left out")
    table(
        pl.DataFrame([{"": name, **row} for name, row in results.items()]).with_columns(pl.selectors.float().round(4))
    )
    show(tt.Retriever(model, ready.preprocessor, articles.with_columns(known_id="article_id")), articles, parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds wikispeedia/")
    parser.add_argument("--articles", type=int, help="read only so many articles, and the links between them")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--validate", action="store_true", help="split the training part once more, to choose settings")
    return parser.parse_args()


def load(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Articles and links; of a category such as subject.Science.Physics its beginnings, Science and Science.Physics."""
    files = [folder / "wikispeedia" / name for name in ("articles.parquet", "links.parquet")]
    for file in files:
        if not file.exists():
            raise SystemExit(
                f"no file {file}: --data must name a folder with wikispeedia/articles.parquet and links.parquet. "
                f"The data is not part of this package; it comes from {SOURCE}."
            )
    articles, links = (pl.read_parquet(file) for file in files)
    path = pl.element().str.strip_prefix("subject.")
    beginnings = pl.col("categories").list.eval(
        pl.concat([path.str.extract(r"^([^.]+)"), path]).unique(maintain_order=True)
    )
    articles = articles.select("article_id", "title", text=pl.col("intro").str.head(1000), categories=beginnings)
    links = links.select(pl.col("source_id").alias("from"), pl.col("target_id").alias("to"))
    return articles, links.filter(pl.col("from") != pl.col("to"))


def split(links: pl.DataFrame, seed: int) -> Parts:
    """A tenth of the linked articles loses all links to it, and of the other links a tenth is drawn at random."""
    targets = links["to"].unique().sort()
    cold_targets = targets.sample(round(COLD_SHARE * len(targets)), seed=seed).implode()
    is_cold = pl.col("to").is_in(cold_targets)
    train, warm = tt.split_at_random(links.filter(~is_cold), TEST_SHARE, seed=seed)
    return Parts(train, warm, links.filter(is_cold))


def prepare(articles: pl.DataFrame, parts: Parts) -> Prepared:
    """Every article is encoded once, and joined to the links at both ends."""
    preprocessor = tt.Preprocessor(COLUMNS).fit(articles, parts.train.select(known_id="to"))
    schema = preprocessor.schema
    texts = {"raw_title": "title", "raw_text": pl.concat_str("title", "text", separator=" ")}
    raw = articles.with_columns(number="article_id", known_id="article_id", **texts)
    encoded = preprocessor.transform(raw).to_polars()
    linking = encoded.select("number", *schema.select_by_tag(Tags.USER).column_names)
    linked = encoded.select("number", *schema.select_by_tag(Tags.ITEM).column_names)

    def both_ends(links: pl.DataFrame) -> tt.Dataset:
        pairs = links.join(linking, left_on="from", right_on="number", maintain_order="left")
        return tt.Dataset(pairs.join(linked, left_on="to", right_on="number", maintain_order="left"), schema)

    train, warm, cold = (both_ends(links) for links in (parts.train, parts.warm, parts.cold))
    itself = encoded.select("from_id", "article_id")
    warm_ids = train.to_polars()["article_id"].implode()
    return Prepared(
        preprocessor,
        train,
        warm,
        cold,
        seen=tt.Dataset(pl.concat([train.to_polars().select("from_id", "article_id"), itself])),
        articles=tt.Dataset(encoded, schema),
        unlinked=tt.Dataset(encoded.filter(~pl.col("article_id").is_in(warm_ids)), schema),
    )


def train(ready: Prepared, columns: list[str], seed: int) -> tt.RetrievalModelV2:
    """Two towers on some of the columns, over one set of tables."""
    torch.manual_seed(seed)
    schema = ready.train.schema.select_by_name(columns)
    # now and then an article comes as unknown, so that the tower learns to do without its id
    dropout = {"known_id": 0.1} if "known_id" in columns else 0.0
    # sqrtn: a sum over many words, divided by the root of their number, is about as long as one word
    tables = tt.Embeddings(schema, dim=64, sequence_combiner="sqrtn", id_dropout=dropout)
    inputs = tt.InputBlockV2(schema, categorical=tables)

    def tower(side: Tags) -> tt.Encoder:
        block = tt.MLPBlock([128, 64], no_activation_last_layer=True, dropout=0.2)
        return tt.Encoder(inputs.select_by_tag(side), block, post=tt.L2Norm())

    model = tt.TwoTowerModelV2(tower(Tags.USER), tower(Tags.ITEM), logits_temperature=0.1, schema=ready.train.schema)
    model.compile(optimizer="adam", learning_rate=0.002, metrics=METRICS)
    model.fit(ready.train, epochs=5, batch_size=1024, catalog=ready.articles, seed=seed, verbose=False)
    return model


def measure(model: tt.RetrievalModelV2, ready: Prepared) -> dict[str, float | None]:
    """Warm and cold test rows with the whole catalogue ranked, and the cold ones among what has no link in training."""
    options = {"group": "from_id", "seen": ready.seen}
    return row(
        model.evaluate(ready.warm, **options),
        model.evaluate(ready.cold, **options),
        model.evaluate(ready.cold, catalog=ready.unlinked, **options),
    )


def measure_baseline(baseline: Baseline, ready: Prepared) -> dict[str, float | None]:
    return row(*(baseline.evaluate(data, seen=ready.seen, metrics=METRICS) for data in (ready.warm, ready.cold)))


def row(
    warm: dict[str, float], cold: dict[str, float], unlinked: dict[str, float] | None = None
) -> dict[str, float | None]:
    """One line of the table; a baseline that knows nothing of cold articles has no place among unlinked ones."""
    return {
        "warm recall@20": warm["recall_at_20"],
        "warm ndcg@20": warm["ndcg_at_20"],
        "cold recall@20": cold["recall_at_20"],
        "among unlinked": None if unlinked is None else unlinked["recall_at_20"],
    }


def baselines(ready: Prepared) -> dict[str, Baseline]:
    """The most linked articles, what linked together with the known links, and, with scikit-learn, like texts."""
    options = {"train": ready.train, "user": "from_id", "item": "article_id", "catalog": ready.articles}
    made: dict[str, Baseline] = {"most linked": Popularity(**options), "item-kNN": ItemKNN(**options)}
    if find_spec("sklearn") is None:
        say("No scikit-learn here, so no TF-IDF baselines")
        return made
    articles = ready.articles.to_polars()
    titles, texts = (dict(articles.select("article_id", name).iter_rows()) for name in ("raw_title", "raw_text"))
    made["TF-IDF, text with text"] = TfIdf(texts, texts, **options)
    made["TF-IDF, text with title"] = TfIdf(texts, titles, **options)
    return made


def show(retriever: tt.Retriever, articles: pl.DataFrame, parts: Parts) -> None:
    """Links that articles lack, and the articles next to others that no link of training leads to."""
    title = dict(articles.select("article_id", "title").iter_rows())
    for number in parts.train["from"].value_counts(sort=True)["from"].head(3):
        links = parts.train.filter(pl.col("from") == number)["to"].to_list()
        page = articles.filter(pl.col("article_id") == number)
        best = retriever.recommend(page, k=8, exclude=[[number, *links]])
        held_out = pl.concat([parts.warm, parts.cold]).filter(pl.col("from") == number)["to"]
        marked = best.select(
            pl.col("title")
            + pl.when(pl.col("article_id").is_in(held_out.implode())).then(pl.lit("*")).otherwise(pl.lit(""))
        )
        print(f"{title[number]} should link to: " + "; ".join(marked["title"]))
    print("(* it does, by a link that training did not see)\n")
    for number in parts.cold["to"].value_counts(sort=True)["to"].head(5):
        near = retriever.similar([number], k=5)["title"]
        print(f"Next to {title[number]}, which no link of training leads to: " + "; ".join(near))


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def table(frame: pl.DataFrame) -> None:
    plain = {"tbl_hide_column_data_types": True, "tbl_hide_dataframe_shape": True, "tbl_rows": -1, "tbl_cols": -1}
    with pl.Config(**plain, tbl_width_chars=140, fmt_str_lengths=70):
        print(frame)


if __name__ == "__main__":
    main()
