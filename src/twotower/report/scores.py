"""Scores: of what is recommended, of what users chose, and of random items."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from twotower.encoder import embed
from twotower.evaluation.result import RECOMMENDED
from twotower.report.catalogue import Catalogue
from twotower.report.exposure import norms_figure
from twotower.report.plots import draw, line
from twotower.report.record import Figure, ReportData, Section, Table
from twotower.report.words import listed, number, percent

QUERIES, RANDOM, FIRST = 500, 50, 20  # sampled queries, random items for each, and recommendations of each
BARS = 40


@dataclass(frozen=True, eq=False)
class Scores:
    """Samples of scores; `above` is how often a chosen item scores higher than a random one, of the same query."""

    queries: int
    recommended: np.ndarray
    chosen: np.ndarray
    random: np.ndarray
    above: float
    unseen: bool


def scores_section(data: ReportData, catalogue: Catalogue) -> Section:
    """How scores and lengths are distributed."""
    lead = "The model scores every item for every query, and recommends the highest."
    figures, notes = [], []
    asked = queries_with_columns(data)
    if asked is None:
        needed = listed(_needed(data))
        notes.append(
            f"Scores are missing: neither the evaluation nor the tables hold all that the query tower reads ({needed})."
        )
    else:
        figures.append(_figure(sample_scores(data, catalogue, asked)))
        if len(asked) > QUERIES:
            notes.append(
                f"Scores are of {QUERIES} of {len(asked):,} queries, drawn at random, each with {RANDOM} random items."
            )
    norms = norms_figure(catalogue)
    if norms is None:
        notes.append("All item vectors have one length, so that no item can win by its length.")
    else:
        figures.append(norms)
    return Section("scores", "How the model scores", lead, figures, notes=notes)


def queries_with_columns(data: ReportData) -> pl.DataFrame | None:
    """The evaluation's queries with the columns that the query tower reads; None if there is no table with them.

    From the evaluation itself, else from the rows to be predicted, else from the user's last row in training.
    """
    values, needed = data.evaluations[0].values.with_row_index("__row"), _needed(data)
    keys = list(data.evaluations[0].keys)
    if set(needed) <= set(values.columns):
        return values
    for table, by, keep in ((data.test, keys, "first"), (data.train, [data.user], "last")):
        if table is None or not set(needed) | set(by) <= set(table.columns):
            continue
        own = table.select(list(dict.fromkeys([*by, *needed]))).unique(by, keep=keep, maintain_order=True)  # type: ignore[arg-type]
        own = own.with_columns(pl.col(name).cast(values.schema[name]) for name in by)
        kept = values.select(pl.exclude([n for n in needed if n not in by]))
        found = kept.join(own, on=by, how="inner", maintain_order="left")
        if len(found):
            return found
    return None


def chosen_items(data: ReportData, rows: pl.DataFrame) -> pl.DataFrame:
    """(query, id) of what these queries' users chose next, or, without a test table, in training; row by row of `rows`."""
    table, by = (data.train, [data.user]) if data.test is None else (data.test, list(data.evaluations[0].keys))
    asked = rows.select(by).with_row_index("query")
    events = table.select(*(pl.col(n).cast(asked.schema[n]) for n in by), pl.col(data.item).alias("id"))
    return asked.join(events, on=by, maintain_order="left_right").select("query", "id").unique(maintain_order=True)


def sample_scores(data: ReportData, catalogue: Catalogue, asked: pl.DataFrame) -> Scores:
    """The scores of some queries."""
    rng = np.random.default_rng(0)
    rows = asked[np.sort(rng.permutation(len(asked))[:QUERIES])]
    bundle = data.retriever.bundle
    with torch.no_grad():
        queries = embed(bundle.model.query, bundle.preprocessor.transform(rows.select(_needed(data)))).float()
    recommended = (
        rows.select(id=pl.col(RECOMMENDED).list.head(FIRST)).with_row_index("query").explode("id").drop_nulls()
    )
    recommended, chosen = (_scored(found, queries, catalogue) for found in (recommended, chosen_items(data, rows)))
    places = torch.from_numpy(rng.integers(len(catalogue.frame), size=(len(rows), RANDOM)))
    random = torch.einsum("qd,qnd->qn", queries, catalogue.vectors[places]).numpy()
    beside = random[chosen["query"].to_numpy()]
    apart = chosen["score"].to_numpy()[:, None] - beside
    above = (
        float((np.where(apart == 0, 0.5, apart > 0))[np.isfinite(apart)].mean()) if np.isfinite(apart).any() else np.nan
    )
    return Scores(
        len(rows), recommended["score"].to_numpy(), chosen["score"].to_numpy(), random[np.isfinite(random)], above,
        data.test is not None,
    )  # fmt: skip


def _needed(data: ReportData) -> list[str]:
    bundle = data.retriever.bundle
    return list(bundle.preprocessor.raw_columns(bundle.model.query.schema.column_names))


def _scored(pairs: pl.DataFrame, queries: torch.Tensor, catalogue: Catalogue) -> pl.DataFrame:
    """(query, score) of pairs (query, id); items without a vector are left out."""
    ids = catalogue.frame.select("id").with_row_index("place")
    found = pairs.with_columns(pl.col("id").cast(ids.schema["id"], strict=False)).join(
        ids, on="id", maintain_order="left"
    )
    query, place = (torch.from_numpy(found[n].to_numpy().astype(np.int64)) for n in ("query", "place"))
    score = (queries[query] * catalogue.vectors[place]).sum(1).numpy()
    return found.select("query", score=pl.Series(score)).filter(pl.col("score").is_finite())


def _figure(scores: Scores) -> Figure:
    chosen = "what users chose next" if scores.unseen else "what users chose in training"
    samples = {"recommended": scores.recommended, chosen: scores.chosen, "random items": scores.random}
    samples = {name: values for name, values in samples.items() if len(values)}
    together = np.concatenate(list(samples.values()))
    edges = np.linspace(together.min(), together.max() + 1e-9, BARS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).round(4).tolist()
    traces, rows = [], []
    for place, (name, values) in enumerate(samples.items()):
        share = (np.histogram(values, edges)[0] / len(values)).round(5).tolist()
        place = {"recommended": 0, chosen: 2, "random items": 4}[name]
        shape = {"shape": "hvh", "width": 2, "color": f"var(--series-{place})"}
        traces.append(
            line(
                name, middles, share, place, mode="lines", line=shape, fill="tozeroy", fillcolor=f"var(--wash-{place})"
            )
        )
        rows.append([name, f"{len(values):,}", *(number(float(q)) for q in np.quantile(values, [0.1, 0.5, 0.9]))])
    return Figure(
        "score-chart", "Scores of recommended, chosen and random items",
        draw(traces, {"title": "score"}, {"title": "share", "tickformat": ".0%", "rangemode": "tozero"}, 360),
        f"The further {chosen} lies to the right of random items, the better the model tells them apart: it scores higher in "
        f"{percent(scores.above)} of all pairs (50 % is chance).",
        "Three humps in one place: the model tells nothing apart.",
        Table(["", "scores", "10 % are below", "median", "90 % are below"], rows),
        f"Scores over {scores.queries} queries; {chosen} scores above a random item in {percent(scores.above)} of pairs.",
    )  # fmt: skip
