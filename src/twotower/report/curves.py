"""Training: the loss, the validation, what health measured, and what it found."""

import polars as pl

from twotower.report.plots import draw, line
from twotower.report.record import Figure, ReportData, Section, Table
from twotower.report.words import metric_name, number

MOST_EPOCHS = 300  # drawn and tabulated
# what health measures, in words, and what would be alarming; all are shares
HEALTH = {
    "health_personal_share": "depends on who asks",
    "health_overlap": "in common between two users' lists",
    "health_tail_share": "of the places given to tail items",
    "health_query_effective_rank": "of directions used by the query tower",
    "health_candidate_effective_rank": "of directions used by the item tower",
}


def training_section(data: ReportData) -> Section:
    """Curves over epochs."""
    lead = "One point for each pass over the training data."
    if not len(data.history) or "epoch" not in data.history.columns:
        return Section(
            "training", "How training went", lead, notes=["There is no training history: the curves are missing."]
        )
    known = data.history.filter(pl.col("epoch").cast(pl.Float64, strict=False).is_finite())
    step = -(-len(known) // MOST_EPOCHS) or 1
    history = known.gather_every(step)
    notes = [f"Every {step}th of {len(known):,} epochs is shown."] if step > 1 else []
    if len(known) < len(data.history):
        notes.append(f"Rows of the history without an epoch are left out: {len(data.history) - len(known):,}.")
    figures = [_loss(history), _validation(history), _health(history)]
    if len(known) == 1:
        notes.append("There was one epoch, so that the curves are single points.")
    names = ("loss", "validation", "health measurements")
    missing = [name for name, figure in zip(names, figures, strict=True) if figure is None]
    notes += [f"The history holds no {name}." for name in missing]
    return Section("training", "How training went", lead, [figure for figure in figures if figure], notes=notes)


def health_section(data: ReportData) -> Section:
    """The findings as sentences."""
    lead = "What the library looked for while the model trained: collapse, missing gradients, lists that are the same for everyone."
    notes = [] if data.findings else [health_words(data)]
    return Section("health", "Is the model healthy", lead, notes=notes)


def health_words(data: ReportData) -> str:
    """What is known where there is no finding."""
    if _columns(data.history, [name for name in data.history.columns if name.startswith("health_")]):
        return "Nothing was found wrong."
    return "There is no finding, but the history holds no measurements either: nobody may have looked."


def _columns(history: pl.DataFrame, names: list[str]) -> list[str]:
    """Those that hold a number."""
    numeric = [n for n in names if n in history.columns and history[n].dtype.is_numeric()]
    return [n for n in numeric if history[n].cast(pl.Float64).is_finite().any()]


def _draw(history: pl.DataFrame, shown: dict[str, str], title: str, place: int) -> dict[str, object]:
    epochs = history["epoch"].to_list()
    traces = [
        line(words, epochs, history[name].cast(pl.Float64).to_list(), place + i)
        for i, (name, words) in enumerate(shown.items())
    ]
    whole = {"title": "epoch", "dtick": 1} if len(history) <= 12 else {"title": "epoch"}
    return draw(traces, whole, {"title": title}, 320, hovermode="x unified", showlegend=len(shown) > 1)


def _table(history: pl.DataFrame, shown: dict[str, str]) -> Table:
    rows = [[str(row["epoch"]), *(number(row[name]) for name in shown)] for row in history.iter_rows(named=True)]
    return Table(["epoch", *shown.values()], rows)


def _loss(history: pl.DataFrame) -> Figure | None:
    shown = {name: name.replace("_", " ") for name in _columns(history, ["loss", "val_loss"])}
    if not shown:
        return None
    ends = history[next(iter(shown))]
    return Figure(
        "loss", "Training loss", _draw(history, shown, "loss", 0),
        "The lower, the better the model tells what was chosen from what was not.",
        "A curve that rises, jumps, or is flat from the start.",
        _table(history, shown), f"The training loss goes from {number(ends[0])} to {number(ends[-1])}.",
    )  # fmt: skip


def _validation(history: pl.DataFrame) -> Figure | None:
    names = [n for n in history.columns if n.startswith("val_") and n != "val_loss"]
    shown = {name: metric_name(name.removeprefix("val_")) for name in _columns(history, names)[:4]}
    if not shown:
        return None
    name, words = next(iter(shown.items()))
    best = history.filter(pl.col(name).is_finite()).sort(name, descending=True, maintain_order=True).row(0, named=True)
    return Figure(
        "validation", "Validation", _draw(history, shown, words if len(shown) == 1 else "", 0),
        f"{words} on data that was not trained on; it is highest, {number(best[name])}, after epoch {best['epoch']}.",
        "A curve that falls while the loss still falls: the model remembers instead of learning, and should have stopped earlier.",
        _table(history, shown), f"{words} by epoch, highest at epoch {best['epoch']} with {number(best[name])}.",
    )  # fmt: skip


def _health(history: pl.DataFrame) -> Figure | None:
    shown = {name: HEALTH[name] for name in _columns(history, list(HEALTH))}
    if not shown:
        return None
    return Figure(
        "health-curves", "Health while training", _draw(history, shown, "share", 0),
        "Shares of 0 to 1: how much of the scores depends on who asks, how alike lists are, how often rare items are shown, and "
        "how much of the space the vectors use.",
        "Lists that have .9 in common, a share near 0 that depends on who asks, or directions that shrink towards 0.",
        _table(history, shown), "Health measurements by epoch; the numbers are in the table below.", wide=True,
    )  # fmt: skip
