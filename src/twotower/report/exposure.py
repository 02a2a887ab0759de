"""Popularity against exposure: what is shown, beside what was chosen; and vectors' lengths beside both."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from twotower.report.catalogue import Catalogue
from twotower.report.plots import color, draw, line
from twotower.report.record import Figure, ReportData, Section, Table
from twotower.report.words import called, number, percent


@dataclass(frozen=True)
class Bin:
    """Items with `low` to `high` training events."""

    low: int
    high: int
    items: pl.DataFrame

    @property
    def name(self) -> str:
        """Such as 4–7."""
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,}–{self.high:,}"

    @property
    def tick(self) -> str:
        """Its lower end, such as 4 and 1k: whole names do not fit below a chart."""
        return (
            f"{self.low}"
            if self.low < 1000
            else f"{self.low / 1024:.0f}k"
            if self.low < 2**20
            else f"{self.low / 2**20:.0f}M"
        )


def bins(catalogue: Catalogue) -> list[Bin]:
    """By powers of two: 0, 1, 2-3, 4-7, ...; those without items are left out."""
    frame = catalogue.frame.with_row_index("row")
    events = frame["events"].to_numpy()
    group = np.where(events > 0, np.floor(np.log2(np.maximum(events, 1))) + 1, 0).astype(int)
    found = []
    for number_of in np.unique(group):
        low, high = (0, 0) if number_of == 0 else (2 ** (number_of - 1), 2**number_of - 1)
        found.append(Bin(int(low), int(high), frame.filter(pl.Series(group == number_of))))
    return found


def exposure_sentence(data: ReportData, catalogue: Catalogue) -> str:
    """How much of the catalogue is ever shown."""
    shown = [
        int((catalogue.frame[f"shown_{i}"] > 0).sum()) / max(1, len(catalogue.frame))
        for i in range(len(data.evaluations))
    ]
    shares = [(e.name, share) for e, share in zip(data.evaluations, shown, strict=True)]
    others = ", ".join(f"those of {called(name)} {percent(share)}" for name, share in shares[1:])
    lists = f"first {catalogue.first} recommendations" if catalogue.first else "lists"
    return f"Its {lists} hold {percent(shares[0][1])} of the catalogue, all users together" + (
        f"; {others}." if others else "."
    )


def exposure_section(data: ReportData, catalogue: Catalogue) -> Section:
    """Two charts by popularity: how often an item is shown, and how long its vector is."""
    lead = "Items are gathered by how often they were chosen in training: never, once, 2 to 3 times, 4 to 7 times, and so on."
    groups = bins(catalogue)
    if not any(catalogue.frame["events"]):
        note = "None of the items occurs in the training data, so that popularity says nothing."
        return Section("exposure", "What is shown", lead, notes=[note])
    figures = [_exposure(data, groups), _shares(data, groups)]
    return Section("exposure", "What is shown", lead, figures, notes=[exposure_sentence(data, catalogue)])


def _exposure(data: ReportData, groups: list[Bin]) -> Figure:
    names = [group.name for group in groups]
    traces, columns = [], []
    for place, evaluation in enumerate(data.evaluations):
        means = [float(group.items[f"shown_{place}"].mean() or 0) for group in groups]  # type: ignore[arg-type]
        columns.append(means)
        traces.append(line(evaluation.name, names, [mean if mean > 0 else None for mean in means], place))
    rows = [[g.name, f"{len(g.items):,}", *(number(c[i]) for c in columns)] for i, g in enumerate(groups)]
    y = {
        "title": "times shown, mean of an item",
        "type": "log",
        "exponentformat": "none",
        "dtick": 1,
        "tickformat": ",~g",
    }
    return Figure(
        "exposure-chart", "Popularity against exposure",
        draw(traces, _axis(groups), y, 400),
        "Further right are more popular items, further up those that are recommended more often; both axes grow by factors, and no "
        "point means never shown.",
        "A line as steep as popularity's (only hits are shown), or one that falls (popular items are pushed down).",
        Table(["chosen in training", "items", *(e.name for e in data.evaluations)], rows),
        "How often an item is recommended, by how often it was chosen; the numbers are in the table below.",
    )  # fmt: skip


def _shares(data: ReportData, groups: list[Bin]) -> Figure:
    names = [group.name for group in groups]
    events = _share([int(group.items["events"].sum()) for group in groups])
    shown = [_share([int(group.items[f"shown_{i}"].sum()) for group in groups]) for i in range(len(data.evaluations))]
    chosen = {
        "type": "bar", "name": "training events", "x": names, "y": events, "marker": {"color": "var(--bar)"},
        "hovertemplate": "%{x}: %{y:.1%} of the training events<extra></extra>",
    }  # fmt: skip
    lines = [line(e.name, names, share, i) for i, (e, share) in enumerate(zip(data.evaluations, shown, strict=True))]
    rows = [[n, percent(events[i]), *(percent(s[i]) for s in shown)] for i, n in enumerate(names)]
    plot = draw(
        [chosen, *lines], _axis(groups),
        {"title": "share of all", "tickformat": ".0%", "rangemode": "tozero"}, 400,
    )  # fmt: skip
    return Figure(
        "shares", "Share of what is shown, and of what was chosen", plot,
        "Bars are shares of what users chose in training, lines shares of the recommended places; where a line is above its "
        "bar, such items are shown more than they were chosen.",
        "Nearly all places at the far right, where the bars are not.",
        Table(["chosen in training", "training events", *(e.name for e in data.evaluations)], rows),
        "Shares of recommended places by popularity of the items; the numbers are in the table below.",
    )  # fmt: skip


def _axis(groups: list[Bin]) -> dict[str, object]:
    names = [group.name for group in groups]
    ticks = [group.tick for group in groups]
    title = "times chosen in training, from …"
    return {"title": title, "type": "category", "categoryarray": names, "tickvals": names, "ticktext": ticks}


def _share(counts: list[int]) -> list[float]:
    return [count / max(1, sum(counts)) for count in counts]


def norms_figure(catalogue: Catalogue) -> Figure | None:
    """Quantiles of the vectors' lengths by popularity; None where all have one length."""
    norms = catalogue.vectors.norm(dim=1).numpy()
    known = norms[np.isfinite(norms)]
    if not len(known) or known.std() < 1e-4 * known.mean():
        return None
    groups, cuts = [], []
    for group in bins(catalogue):
        own = norms[group.items["row"].to_numpy()]
        if np.isfinite(own).any():
            groups.append(group)
            cuts.append(np.nanquantile(own, [0.1, 0.5, 0.9]).tolist())
    names = [group.name for group in groups]
    low, middle, high = ([cut[i] for cut in cuts] for i in range(3))
    traces = [
        line("nine of ten are below", names, high, 0, mode="lines", line={"color": color(0), "width": 0}),
        line(
            "80 % of the items", names, low, 0, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="var(--band)"
        ),
        line("median", names, middle, 0),
    ]
    traces[0]["showlegend"] = False
    plot = draw(
        traces, _axis(groups),
        {"title": "length of the item's vector", "rangemode": "tozero"}, 360,
    )  # fmt: skip
    return Figure(
        "norms", "Length of item vectors by popularity", plot,
        "The line is the median length, the band holds eight of ten items; a long vector scores high with everyone who likes its "
        "direction.",
        "A steep rise: popular items then win by length, and everyone gets them.",
        Table(["chosen in training", "10 % are below", "median", "90 % are below"],
              [[n, *map(number, cut)] for n, cut in zip(names, cuts, strict=True)]),
        f"The median length goes from {number(middle[0])} for the rarest to {number(middle[-1])} for the most popular items.",
    )  # fmt: skip
