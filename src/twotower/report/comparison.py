"""The model against the baselines: the verdict, the table of metrics, the slices."""

from dataclasses import dataclass

from twotower.evaluation import Difference, Estimate, Evaluation, compare
from twotower.report.plots import draw, text, whiskers
from twotower.report.record import Figure, ReportData, Section, Table
from twotower.report.words import (
    HIGHER_IS_BETTER,
    MEANINGS,
    called,
    estimate,
    interval,
    listed,
    metric_name,
    number,
    percent,
    plain,
    probability,
    signed,
    split_name,
)

MOST_SLICES = 24  # on the page; evaluations with more keep them


@dataclass(frozen=True)
class Comparison:
    """The model's main metric against each baseline.

    Args:
        metric: the main one: recall at 20, or else the first whose higher values are better; "" without any.
        pairs: baseline and difference, in the order of the evaluations.
    """

    metric: str
    pairs: list[tuple[Evaluation, Difference]]

    @property
    def strongest(self) -> tuple[Evaluation, Difference]:
        """The baseline with the highest mean."""
        return max(self.pairs, key=lambda pair: pair[1].second)


@dataclass(frozen=True)
class Summary:
    """What stands at the top of the page: `tone` is good, bad, unsure or none."""

    tone: str
    headline: str
    sentences: list[str]


def compare_all(data: ReportData) -> Comparison:
    """The model with each baseline, query by query."""
    model = data.evaluations[0]
    ranking = [
        name for name in model.metrics if split_name(name)[0] in HIGHER_IS_BETTER and name in model.values.columns
    ]
    metric = "recall_at_20" if "recall_at_20" in ranking else ranking[0] if ranking else ""
    others = [other for other in data.evaluations[1:] if metric in other.metrics]
    differences = [compare(model, other, [metric]) for other in others]
    return Comparison(metric, [(other, found[0]) for other, found in zip(others, differences, strict=True) if found])


def summarise(data: ReportData, comparison: Comparison) -> Summary:
    """Verdict and sentences in plain words."""
    model, metric = data.evaluations[0], comparison.metric
    if not metric:
        return Summary(
            "none", "No ranking metric was measured", ["The evaluation holds no metric such as recall_at_20."]
        )
    kind, k = split_name(metric)
    first = (
        f"{metric_name(metric)} is {estimate(model[metric])}: {MEANINGS[kind].format(k=k)}, over "
        f"{model.queries:,} queries and {model.candidates:,} candidates. The brackets are a {model.confidence:.0%} interval."
    )
    if not comparison.pairs:
        missing = (
            "No baseline was evaluated, so nothing says whether this is good. Evaluate popularity beside the model."
        )
        return Summary("none", "Not compared with any baseline", [first, missing])
    tone, headline = _headline(comparison)
    order = ("worse", "unclear", "better")
    against = [_against(*pair) for pair in sorted(comparison.pairs, key=lambda pair: order.index(pair[1].verdict))]
    return Summary(tone, headline, [first, *against, *_weakest(model, metric)])


def _headline(comparison: Comparison) -> tuple[str, str]:
    names = {
        kind: [called(o.name) for o, d in comparison.pairs if d.verdict == kind]
        for kind in ("better", "worse", "unclear")
    }
    if names["worse"]:
        return "bad", f"Loses to {listed(names['worse'])}"
    if names["unclear"]:
        return "unsure", f"No clear difference from {listed(names['unclear'])}"
    return "good", f"Beats {listed(names['better'])}"


def _against(other: Evaluation, found: Difference) -> str:
    """One baseline in a sentence or two."""
    name = called(other.name)
    if found.second > 0:
        times = f"it is {number(found.first / found.second)} times that of {name} ({estimate(other[found.metric])})"
    else:
        times = f"{name} finds nothing"
    apart = f"{signed(found.difference)} {interval(found.low, found.high)}".strip()
    shares = f"better for {percent(found.better)} of the queries, worse for {percent(found.worse)}"
    kind, sure = found.verdict, "not chance" if found.p < 0.001 else "hardly chance"
    if kind == "unclear":
        return f"{_start(times)}; the difference of {apart} may be chance: {probability(found.p)}; {shares}."
    if kind == "better":
        return f"{_start(times)}; the difference of {apart} is {sure}: {probability(found.p)}; {shares}."
    return (
        f"It loses to {name}: {times}; the difference of {apart} is {sure}: {probability(found.p)}; {shares}. "
        f"{_start(name)} did better on this test."
    )


def _start(words: str) -> str:
    return words[0].upper() + words[1:]


def _weakest(model: Evaluation, metric: str) -> list[str]:
    """The slice with the lowest value, of those with at least 30 queries."""
    known = {n: part for n, part in model.slices.items() if part.queries >= 30 and metric in part.metrics}
    if not known:
        return []
    name, part = min(known.items(), key=lambda pair: pair[1].metrics[metric].mean)
    return [f"It is weakest on {plain(name)}: {estimate(part.metrics[metric])} over {part.queries:,} queries."]


def metrics_section(data: ReportData, comparison: Comparison) -> Section:
    """All metrics of all rankers, the main one drawn, and the paired differences."""
    lead = "Every ranker orders the whole catalogue for the same queries. Brackets are intervals from resampling users."
    tables = [("All metrics", _all_metrics(data))]
    if comparison.pairs:
        tables.append(
            (f"The model less each baseline, query by query: {metric_name(comparison.metric)}", _paired(comparison))
        )
    figures = [_forest(data, comparison.metric)] if comparison.metric else []
    notes = (
        ["The highest value of each ranking metric is bold. Better and worse are shares of the queries."]
        if len(data.evaluations) > 1
        else []
    )
    return Section("metrics", "How good are the recommendations", lead, figures, tables, notes)


def _all_metrics(data: ReportData) -> Table:
    names = list(dict.fromkeys(name for evaluation in data.evaluations for name in evaluation.metrics))
    rows = [[e.name, *(estimate(e.metrics[n]) if n in e.metrics else "–" for n in names)] for e in data.evaluations]
    strong = set()
    for column, name in enumerate(names, 1):
        means = {row: e.metrics[name].mean for row, e in enumerate(data.evaluations) if name in e.metrics}
        if split_name(name)[0] in HIGHER_IS_BETTER and len(means) > 1:
            strong |= {(row, column) for row, mean in means.items() if mean == max(means.values())}
    return Table(["", *map(metric_name, names)], rows, strong=frozenset(strong))


def _paired(comparison: Comparison) -> Table:
    words = {"better": "better", "worse": "worse", "unclear": "not clearly better or worse"}
    rows = [
        [f"against {other.name}", signed(d.difference), interval(d.low, d.high), probability(d.p), percent(d.better),
         percent(d.worse), words[d.verdict]]
        for other, d in comparison.pairs
    ]  # fmt: skip
    columns = ["", "difference", "interval", "p", "better for", "worse for", "the model is"]
    return Table(columns, rows, words=(0, 6))


def _forest(data: ReportData, metric: str) -> Figure:
    shown = [e for e in data.evaluations if metric in e.metrics]
    traces = [
        whiskers(
            e.name,
            [e[metric].mean],
            [e[metric].low],
            [e[metric].high],
            [-row],
            row,
            [f"{e.name}: {estimate(e[metric])}"],
        )
        for row, e in enumerate(shown)
    ]
    axis = {"tickvals": [-row for row in range(len(shown))], "ticktext": [text(e.name) for e in shown], "showgrid": False,
            "range": [-len(shown) + 0.4, 0.6], "tickfont": {"color": "var(--ink)"}}  # fmt: skip
    plot = draw(
        traces, {"title": metric_name(metric), "rangemode": "tozero"}, axis, 60 + 46 * len(shown), showlegend=False
    )
    return Figure(
        "forest", f"{metric_name(metric)} with intervals", plot,
        "Each mark is a mean over all queries, its bar the interval where it would lie with other users; further right is better.",
        "The model to the left of popularity. The paired test above tells whether two differ, not an overlap.",
        Table(["", metric_name(metric)], [[e.name, estimate(e[metric])] for e in shown]),
        f"{metric_name(metric)}: " + "; ".join(f"{e.name} {estimate(e[metric])}" for e in shown), wide=True,
    )  # fmt: skip


def slices_section(data: ReportData, comparison: Comparison) -> Section:
    """The main metric in every slice."""
    lead = "A good mean can hide a group that is served badly."
    model, metric = data.evaluations[0], comparison.metric
    if not model.slices or not metric:
        note = 'The evaluation has no slices. Give Evaluator slices=["cold_items", "new_users"] to see groups.'
        return Section("slices", "For whom, and for what", lead, notes=[note])
    names = list(model.slices)
    notes = []
    if len(names) > MOST_SLICES:
        names = sorted(sorted(names, key=lambda n: -model.slices[n].queries)[:MOST_SLICES], key=names.index)
        notes.append(f"The {MOST_SLICES} slices with the most queries are shown, of {len(model.slices)}.")
    small = [plain(n) for n in names if model.slices[n].queries < 30]
    if small:
        notes.append(f"Fewer than 30 queries, too few to judge: {listed(small)}.")
    table = _slice_table(data, names, metric)
    title = f"{metric_name(metric)} by slice"
    figure = Figure(
        "slices-chart", title, _slice_plot(data, names, metric),
        "Each row is a group of queries, or of items that were to be found; the round mark is the model, its bar the interval.",
        "A row that matters to you where the model lies near zero, or far left of a baseline; bars may overlap all the same.",
        table, f"{title} for {len(names)} slices; the numbers are in the table below.", wide=True,
    )  # fmt: skip
    return Section("slices", "For whom, and for what", lead, [figure], notes=notes)


def _in_slice(evaluation: Evaluation, name: str, metric: str) -> Estimate | None:
    part = evaluation.slices.get(name)
    return None if part is None else part.metrics.get(metric)


def _slice_table(data: ReportData, names: list[str], metric: str) -> Table:
    rows = []
    for name in names:
        part = data.evaluations[0].slices[name]
        found = [_in_slice(e, name, metric) for e in data.evaluations]
        rows.append(
            [
                plain(name),
                f"{part.queries:,}",
                f"{part.positives:,}",
                *("–" if f is None else estimate(f) for f in found),
            ]
        )
    return Table(["slice", "queries", "positives", *(e.name for e in data.evaluations)], rows)


def _slice_plot(data: ReportData, names: list[str], metric: str) -> dict[str, object]:
    traces, many = [], len(data.evaluations)
    for place, evaluation in enumerate(data.evaluations):
        offset = 0.0 if many == 1 else 0.5 * (place / (many - 1) - 0.5)
        found = [(row, name, _in_slice(evaluation, name, metric)) for row, name in enumerate(names)]
        shown = [(row, name, e) for row, name, e in found if e is not None]
        traces.append(
            whiskers(
                evaluation.name, [e.mean for *_, e in shown], [e.low for *_, e in shown], [e.high for *_, e in shown],
                [-row - offset for row, *_ in shown], place,
                [f"{plain(name)}, {evaluation.name}: {estimate(e)}" for _, name, e in shown],
            )
        )  # fmt: skip
    axis = {"tickvals": [-row for row in range(len(names))], "ticktext": [text(plain(n)) for n in names], "showgrid": False,
            "range": [-len(names) + 0.4, 0.6], "tickfont": {"color": "var(--ink)"}}  # fmt: skip
    stripes = [
        {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -row - 0.5, "y1": -row + 0.5, "fillcolor": "var(--stripe)",
         "line": {"width": 0}, "layer": "below"}
        for row in range(0, len(names), 2)
    ]  # fmt: skip
    return draw(
        traces, {"title": metric_name(metric), "rangemode": "tozero"}, axis, 110 + 36 * len(names), shapes=stripes
    )
