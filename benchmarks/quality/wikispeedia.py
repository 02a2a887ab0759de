"""Q0: what correcting the sampling bias gives, temperature by temperature, on page retrieval.

The paper's own experiment (Yi et al., RecSys 2019, section 6.1) on a small Wikipedia: from an article to those it links to, both
towers reading title words and categories, in-batch negatives. A tenth of the links is held out; all 4,592 articles are ranked for
each article of the test, less those it links to in training and itself. Trained without correction, with "logq" (the
paper's) and with "corrected", at each temperature, everything else alike; compared in pairs over the test's articles.

About 15 minutes on one core; a model that is done is not trained again (its evaluation lies in --out).

    python benchmarks/quality/wikispeedia.py --data <folder that holds wikispeedia/> [--out runs/wikispeedia]

The other half of Q0, the estimator of frequencies, is `python benchmarks/frequency.py`.
"""

import argparse
import os
from pathlib import Path

import polars as pl
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import ItemKNN, Popularity

TEMPERATURES = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
CORRECTIONS = ("none", "logq", "corrected")
METRICS = ["recall_at_10", "recall_at_100", "ndcg_at_10", "popularity_lift_at_10", "coverage_at_10"]
EPOCHS, BATCH, DIM = 8, 1024, 64
COLUMNS = {
    "item_id": tt.Categorical(Tags.ITEM_ID),
    "title": tt.Text(Tags.ITEM),
    "categories": tt.Categorical(Tags.ITEM),
    "user_id": tt.Categorical(Tags.USER_ID, share="item_id"),
    "from_title": tt.Text(Tags.USER, share="title"),
    "from_categories": tt.Categorical(Tags.USER, share="categories"),
}
READ = ["title", "categories", "from_title", "from_categories"]


def load(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pages (item_id, title, categories) and links (user_id, item_id, and the linking page's title and categories)."""
    for name in ("articles.parquet", "links.parquet"):
        if not (folder / "wikispeedia" / name).exists():
            raise SystemExit(
                f"no file {folder / 'wikispeedia' / name}: --data must name the folder that holds wikispeedia/"
            )
    articles = pl.read_parquet(folder / "wikispeedia" / "articles.parquet")
    links = pl.read_parquet(folder / "wikispeedia" / "links.parquet").select(user_id="source_id", item_id="target_id")
    pages = articles.select(item_id="article_id", title="title", categories="categories")
    linking = pages.rename({"item_id": "user_id", "title": "from_title", "categories": "from_categories"})
    links = links.unique(maintain_order=True).filter(pl.col("user_id") != pl.col("item_id"))
    return pages, links.join(linking, on="user_id", maintain_order="left")


def train(data: tt.Dataset, pages: tt.Dataset, temperature: float, correction: str) -> tt.RetrievalModelV2:
    torch.manual_seed(0)
    schema = data.schema.select_by_name(READ)
    tables = tt.Embeddings(schema, dim=DIM, sequence_combiner="sqrtn")
    inputs = tt.InputBlockV2(schema, categorical=tables)

    def tower(side: Tags) -> tt.Encoder:
        block = tt.MLPBlock([128, DIM], no_activation_last_layer=True, dropout=0.2)
        return tt.Encoder(inputs.select_by_tag(side), block, post=tt.L2Norm())

    model = tt.TwoTowerModelV2(
        tower(Tags.USER), tower(Tags.ITEM), schema=data.schema, logits_temperature=temperature,
        logq_sampling_correction=correction,
    )  # fmt: skip
    model.compile(optimizer="adam", learning_rate=0.002)
    model.fit(data, epochs=EPOCHS, batch_size=BATCH, catalog=pages, verbose=False, health_steps=0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("TWOTOWER_DATA"), required="TWOTOWER_DATA" not in os.environ
    )
    parser.add_argument("--out", type=Path, default=Path("runs/wikispeedia"))
    options = parser.parse_args()
    pages, links = load(options.data)
    first, test = tt.split_at_random(links, 0.1, seed=0)
    preprocessor = tt.Preprocessor(COLUMNS).fit(first, pages)
    both = first.join(pages, on="item_id", maintain_order="left")
    data, candidates = preprocessor.transform(both), preprocessor.transform(pages)
    itself = pages.select(user_id="item_id", item_id="item_id")
    seen = pl.concat([first.select("user_id", "item_id"), itself])
    evaluator = tt.Evaluator(
        test, candidates=pages, seen=seen, train=first, user="user_id", item="item_id", metrics=METRICS
    )
    done: dict[tuple[float, str], tt.Evaluation] = {}
    for temperature in TEMPERATURES:
        for correction in CORRECTIONS:
            place = options.out / f"{temperature}-{correction}"
            if not (place / "evaluation.json").exists():
                model = train(data, candidates, temperature, correction)
                evaluator(tt.Retriever(model, preprocessor, pages), name=f"{correction}, T = {temperature}").save(place)
            done[temperature, correction] = tt.Evaluation.load(place)
            print(done[temperature, correction], flush=True)
    items = tt.Dataset(pages)
    baselines = [
        evaluator(kind(tt.Dataset(first), "user_id", "item_id", items), name=name)
        for name, kind in (("most linked", Popularity), ("item-kNN", ItemKNN))
    ]
    print(text(done, baselines))


def text(done: dict[tuple[float, str], tt.Evaluation], baselines: list[tt.Evaluation]) -> str:
    """The table of the result file."""
    lines = [
        "| T | plain R@10 / R@100 | logq | corrected | logq - plain, R@10 | corrected - plain, R@10 | "
        "popularity lift plain / logq |",
        "|---|---|---|---|---|---|---|",
    ]
    for temperature in TEMPERATURES:
        row = [done[temperature, correction] for correction in CORRECTIONS]
        gains = [tt.compare(other, row[0], ["recall_at_10"])[0] for other in row[1:]]
        cells = [f"{e['recall_at_10'].mean:.4f} / {e['recall_at_100'].mean:.4f}" for e in row]
        cells += [f"{g.difference:+.4f} [{g.low:+.4f}, {g.high:+.4f}], p = {g.p:.4f}" for g in gains]
        lifts = " / ".join(f"{e['popularity_lift_at_10'].mean:+.2f}" for e in row[:2])
        lines.append(f"| {temperature} | {' | '.join(cells)} | {lifts} |")
    lines += [f"\n{e.name}: {e['recall_at_10'].mean:.4f} / {e['recall_at_100'].mean:.4f}" for e in baselines]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
