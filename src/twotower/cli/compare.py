"""twotower compare: runs on the same queries."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import common
from twotower.cli.show import console, interval, new_table, number, show_evaluations


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two run folders or more; the others are compared with the first.", show_default=False),
    ],
    on: Annotated[str, typer.Option("--on", help="test or validation.")] = "test",
) -> None:
    """Put runs side by side, and test their differences query by query."""
    from twotower.evaluation import compare as paired
    from twotower.experiment.folder import Run, differing
    from twotower.experiment.run import evaluate_run

    if len(runs) < 2:
        raise ValueError(f"compare needs two run folders or more, got {', '.join(map(str, runs))}.")
    opened = [Run(folder) for folder in runs]
    with common.progress(opened[0].config.main_metric):
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


__all__ = ["compare", "number"]
