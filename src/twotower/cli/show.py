"""What the verbs print: tables of evaluations, differences and recommendations."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Literal

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twotower.evaluation import Difference, Evaluation, compare

UNBOUND = 100_000  # characters, wider than any table
# a file and a pipe have no width, so that nothing is cut or wrapped there
console = Console(highlight=False, width=None if sys.stdout.isatty() else UNBOUND)


def number(value: float) -> str:
    """Such as .262; what is not known is a dash."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def counted(many: int, one: str, several: str) -> str:
    """Such as 1 query and 4,303 queries."""
    return f"{many:,} {one if many == 1 else several}"


def new_table(title: str = "") -> Table:
    """A table without outer borders, which fits into 80 columns."""
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def show_evaluations(found: Sequence[Evaluation], title: str) -> None:
    """A row for each metric, a column for each ranker; intervals under the means, the best mean in bold."""
    first = found[0]
    shared = [name for name in first.metrics if all(name in e.metrics for e in found)]
    console.print(
        Text.assemble(
            "\n",
            (title, "bold"),
            f": {counted(first.queries, 'query', 'queries')}, {counted(first.positives, 'positive', 'positives')}, "
            f"{counted(first.candidates, 'item', 'items')} ranked",
        )
    )
    for start in range(0, len(found), _columns()):
        part = found[start : start + _columns()]
        table = new_table()
        table.add_column("")
        for evaluation in part:
            table.add_column(Text(evaluation.name), justify="right")
        for name in shared:
            best = max(e.metrics[name].mean for e in found)
            table.add_row(Text(name), *(_cell(e, name, best) for e in part))
        console.print(table)
    console.print(f"[dim]Small: {first.confidence:.0%} intervals, from resampling users.[/dim]")


def show_slices(evaluation: Evaluation, metric: str) -> None:
    """The main metric of each slice of one ranker."""
    if not evaluation.slices or metric not in next(iter(evaluation.slices.values())).metrics:
        return
    table = new_table(f"{metric} of {evaluation.name}, by slice")
    for name, justify in (("", "left"), (metric, "right"), ("interval", "right"), ("queries", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, part in evaluation.slices.items():
        known = part.metrics.get(metric)
        shown = (
            ("–", "")
            if known is None or math.isnan(known.mean)
            else (number(known.mean), interval(known.low, known.high))
        )
        table.add_row(Text(name), *shown, f"{part.queries:,}")
    console.print(table)


def show_verdict(model: Evaluation, baselines: Sequence[Evaluation], metric: str) -> None:
    """Whether the model beats the best baseline, in a sentence that a test of pairs stands behind."""
    if not baselines:
        return
    best = max(baselines, key=lambda e: e[metric].mean)
    found = compare(model, best, metrics=[metric]) if metric in model.values.columns else []
    if not found:
        return
    apart = found[0]
    told, style = {
        "unclear": (f"The model and {best.name} cannot be told apart", "yellow"),
        "better": (f"The model beats {best.name}, the best baseline,", "green"),
        "worse": (f"The model LOSES to {best.name}: do not serve it as it is;", "bold red"),
    }[apart.verdict]
    console.print(Text(f"{told} in {sentence(apart)}", style=style))


def sentence(apart: Difference) -> str:
    """A difference in words."""
    p = "p < .001" if apart.p < 0.001 else f"p = {apart.p:.3f}".replace("0.", ".", 1)
    means = f"{number(apart.first)} against {number(apart.second)}"
    return f"{apart.metric}: {means}, {apart.difference:+.4f} {interval(apart.low, apart.high)}, {p}."


def interval(low: float, high: float) -> str:
    """Such as [.250, .274]; nothing where there is none."""
    return "" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def show_items(found: pl.DataFrame, title: str) -> None:
    """Recommendations: rank, score and the items' columns, as many as fit; all of them where no terminal bounds the lines."""
    bound = console.width < UNBOUND
    shown = found.columns[: 2 + (4 if console.width < 100 else 7)] if bound else found.columns
    table = new_table(title)
    for name in shown:
        justify: Literal["left", "right"] = "right" if name in ("rank", "score") else "left"
        table.add_column(Text(name), justify=justify, max_width=60 if bound else None)
    for row in found.select(shown).iter_rows(named=True):
        table.add_row(*(Text(_value(name, value), overflow="ellipsis", no_wrap=True) for name, value in row.items()))
    console.print(table)
    if len(shown) < len(found.columns):
        left = ", ".join(found.columns[len(shown) :])
        console.print(Text(f"Not shown for want of room: {left}; --json prints all.", style="dim"))


def show_findings(found: Sequence[tuple[str, str]]) -> None:
    """What was warned of."""
    for name, text in found:
        console.print(Text.assemble(("Finding ", "yellow"), (f"({name}) ", "dim"), text))


def as_json(found: pl.DataFrame) -> str:
    """One object a row."""
    return json.dumps(found.to_dicts(), default=str, ensure_ascii=False)


def _columns() -> int:
    """How many rankers stand side by side."""
    return max(1, (console.width - 22) // 19)


def _cell(evaluation: Evaluation, name: str, best: float) -> Text:
    estimate = evaluation.metrics[name]
    style = "bold" if estimate.mean == best else ""
    return Text.assemble(
        (number(estimate.mean), style),
        ("\n" + interval(estimate.low, estimate.high), "dim") if not math.isnan(estimate.low) else "",
    )


def _value(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if name == "score" else f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)
