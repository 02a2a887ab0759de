"""twotower compare: runs on the same queries."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twotower.cli import common
from twotower.cli.show import console, interval, new_table, number, show_evaluations

if TYPE_CHECKING:
    from twotower.experiment.folder import Run


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two run folders or more; the others are compared with the first.", show_default=False),
    ],
    on: Annotated[str, typer.Option("--on", help="test or validation.")] = "test",
) -> None:
    """Put runs side by side, and test their differences query by query."""
    from twotower.cli.progress import progress
    from twotower.evaluation import compare as paired
    from twotower.experiment.folder import Run, differing
    from twotower.experiment.run import evaluate_run

    if len(runs) < 2:
        raise ValueError(f"compare needs two run folders or more, got {', '.join(map(str, runs))}.")
    if on not in ("validation", "test"):
        raise ValueError(f"--on {on}: choose validation or test.")
    opened = [Run(folder) for folder in runs]
    for run in opened:
        run.check_complete()
        _check_comparable(opened[0], run, on)
    with progress(opened[0].config.main_metric):
        found = [
            replace(evaluate_run(run, on, baselines=False, say=common.say)[0], name=str(folder))
            for run, folder in zip(opened, runs, strict=True)
        ]
    show_evaluations(found, on.capitalize())
    for run, other in zip(opened[1:], found[1:], strict=True):
        table = new_table(f"{other.name} less {found[0].name}")
        for name in ("", "difference", "interval", "p", "better for", "worse for"):
            table.add_column(name, justify="right" if name else "left")
        for apart in paired(other, found[0]):
            cells = [
                f"{apart.difference:+.4f}",
                interval(apart.low, apart.high),
                f"{apart.p:.4f}",
                f"{apart.better:.1%}",
                f"{apart.worse:.1%}",
            ]
            table.add_row(apart.metric, *cells)
        console.print(table)
        other_keys = differing(opened[0].config.to_dict(), run.config.to_dict())
        console.print("  what differs: " + ("; ".join(other_keys) or "nothing in the configs"), markup=False)


def _check_comparable(first: "Run", other: "Run", on: str) -> None:
    """Runs are compared query by query, so they must have been asked the same; say otherwise before anything is measured.

    Raises:
        ValueError: other queries or candidates, or no metric in common.
    """
    from twotower.experiment.folder import differing

    def asked(run: "Run") -> tuple[list[Any], ...]:
        data, tables = run.config.data, run.tables()
        part = tables.test if on == "test" else tables.validation
        return part[data.user].to_list(), part[data.item].to_list(), sorted(tables.items[data.item].to_list())

    keys = differing(first.config.to_dict(), other.config.to_dict())
    query = [key for key in keys if key.startswith(("evaluation.query:", "evaluation.remove_seen:"))]
    if query or asked(first) != asked(other):
        cause = [key for key in keys if key.startswith(("data.", "split."))] + query
        raise ValueError(
            f"{first.folder} and {other.folder} were not asked the same on the {on} part, so they cannot be compared. "
            f"Their configs differ in {'; '.join(cause) or 'no key, so the tables changed in between'}. Train both alike."
        )
    names = [set(run.config.evaluation.metrics) for run in (first, other)]
    if not names[0] & names[1]:
        raise ValueError(
            f"{first.folder} and {other.folder} have no metric in common: evaluation.metrics is "
            f"{list(first.config.evaluation.metrics)} against {list(other.config.evaluation.metrics)}. Give both the same."
        )


__all__ = ["compare", "number"]
