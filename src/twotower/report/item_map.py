"""A map of the item vectors: what the model takes to be alike lies together."""

from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from twotower.report.catalogue import Catalogue
from twotower.report.plots import draw, text
from twotower.report.record import Figure, Section, Table
from twotower.report.words import chosen, number

POPULAR, SAMPLED = 1000, 1000  # items on the map: the most popular, and some of the others
FEWEST = 10  # of fewer items a map says nothing
COLORS = 8  # of the style sheet, --map-0 to --map-7
OTHERS = "others"


def map_section(catalogue: Catalogue) -> Section:
    """Two dimensions that keep neighbours together."""
    lead = "Each point is an item; near each other lie those that the model recommends to the same people."
    known = np.flatnonzero(np.isfinite(catalogue.vectors.sum(1).numpy()))
    if len(known) < FEWEST:
        note = f"There are {len(known)} items with vectors: too few for a map."
        return Section("map", "A map of the items", lead, notes=[note])
    rows = _chosen(catalogue.frame["events"].to_numpy(), known)
    frame = catalogue.frame[rows]
    places = project(catalogue.vectors[torch.from_numpy(rows)])
    groups = color_groups(frame["category"])
    notes = []
    if len(rows) < len(known):
        notes.append(
            f"{len(rows):,} of {len(known):,} items are drawn: the {POPULAR:,} most popular ones, and a random sample of the rest."
        )
    if not catalogue.category:
        notes.append("No column of the items has few enough values to colour by; size is popularity.")
    elif frame["category"].list.len().max() > 1:  # type: ignore[operator]
        notes.append(f"An item of several {catalogue.category} has the colour of the rarest of those named.")
    return Section("map", "A map of the items", lead, [_figure(catalogue, frame, rows, places, groups)], notes=notes)


def _chosen(events: np.ndarray, known: np.ndarray) -> np.ndarray:
    order = known[np.argsort(-events[known], kind="stable")]
    rest = np.random.default_rng(0).permutation(order[POPULAR:])[:SAMPLED]
    return np.concatenate([order[:POPULAR], rest])


def project(vectors: torch.Tensor) -> np.ndarray:
    """(N, 2) by t-SNE of the directions; van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008."""
    from sklearn.manifold import TSNE

    directions = F.normalize(vectors, dim=1).numpy()
    if np.ptp(directions, axis=0).max() < 1e-6:  # all in one place, where t-SNE's start would be 0 / 0
        return np.zeros((len(vectors), 2))
    start = "pca" if min(directions.shape) >= 2 else "random"
    perplexity = min(30, (len(vectors) - 1) / 3)
    # 500 of the usual 1,000 steps: 2,000 points have settled by then, in half of the time
    made: np.ndarray = TSNE(perplexity=perplexity, init=start, random_state=0, max_iter=500).fit_transform(directions)
    return made


def color_groups(category: pl.Series) -> list[str]:
    """One name for each item: of the most frequent values, the rarest that it has."""
    often = (
        category.explode().drop_nulls().value_counts(sort=True).sort("count", category.name, descending=[True, False])
    )
    rank = {value: place for place, value in enumerate(often[category.name][:COLORS])}
    own = ([value for value in values if value in rank] for values in category.to_list())
    return [max(values, key=rank.__getitem__) if values else OTHERS for values in own]


def _figure(
    catalogue: Catalogue, frame: pl.DataFrame, rows: np.ndarray, places: np.ndarray, groups: list[str]
) -> Figure:
    values = sorted(set(groups) - {OTHERS}, key=lambda value: (-groups.count(value), value))
    colors = {value: f"var(--map-{place})" for place, value in enumerate(values)} | {OTHERS: "var(--map-others)"}
    traces = [
        _trace(frame, places, np.array([g == name for g in groups]), name, colors[name]) for name in [OTHERS, *values]
    ]
    traces = [trace for trace in traces if trace["x"]]
    hidden = {"showgrid": False, "showticklabels": False, "showline": False, "fixedrange": False}
    plot = draw(traces, hidden, hidden, 640, dragmode="zoom", showlegend=len(traces) > 1,
                legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "constant"})  # fmt: skip
    what = f", colour is {catalogue.category}" if catalogue.category else ""
    return Figure(
        "item-map", "Items by what the model takes to be alike", plot,
        f"Larger points are more popular{what}; the axes have no meaning, only nearness has. Point at an item for its title, drag "
        "to zoom, double-click to return.",
        "One ball without any structure, or popular items all in one corner far from the rest.",
        _alike(catalogue, rows, groups, values), 
        f"A map of {len(frame):,} items; how alike items of one group are is in the table below.",
        wide=True,
    )  # fmt: skip


def _trace(frame: pl.DataFrame, places: np.ndarray, own: np.ndarray, name: str, color: str) -> dict[str, Any]:
    part = frame.filter(pl.Series(own))
    events = part["events"].to_numpy()
    most = max(1, int(frame["events"].max()))  # type: ignore[arg-type]
    size = 4 + 10 * np.log1p(events) / np.log1p(most)
    words = [
        f"<b>{text(row['title'])}</b><br>" + (f"{text(', '.join(row['category']))}<br>" if row["category"] else "")
        + chosen(row["events"])
        for row in part.iter_rows(named=True)
    ]  # fmt: skip
    return {
        "type": "scatter", "mode": "markers", "name": text(name), "x": places[own, 0].round(2).tolist(),
        "y": places[own, 1].round(2).tolist(),
        "legendrank": 2000 if name == OTHERS else 1000, "text": words, "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": size.round(1).tolist(), "color": color, "opacity": 0.75, "line": {"width": 0.5, "color": "var(--card)"}},
    }  # fmt: skip


def _alike(catalogue: Catalogue, rows: np.ndarray, groups: list[str], values: list[str]) -> Table:
    """Mean cosine of two items, of one group and of all."""
    units = F.normalize(catalogue.vectors[torch.from_numpy(rows)], dim=1).double()
    made = []
    for name in [*values, "all items drawn"]:
        own = units if name == "all items drawn" else units[torch.tensor([g == name for g in groups])]
        n = len(own)
        cosine = (float(own.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else None
        made.append([name, f"{n:,}", number(cosine)])
    return Table([catalogue.category or "group", "items", "mean cosine of two of them"], made)
