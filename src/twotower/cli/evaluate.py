"""twotower evaluate: what a run is worth, beside baselines."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import common
from twotower.cli.show import show_evaluations, show_slices, show_verdict

RunFolder = Annotated[Path, typer.Argument(help="A run folder that `twotower train` made.", show_default=False)]


def evaluate(
    run: RunFolder,
    on: Annotated[str, typer.Option("--on", help="test or validation.")] = "test",
    data: Annotated[
        Path | None,
        typer.Option(help="Instead, Parquet of later interactions with the same columns.", show_default=False),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Measure the config's baselines too.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure anew what was measured before.")] = False,
) -> None:
    """Rank the whole catalogue for every query of the test, with the model and the baselines."""
    from twotower.cli.progress import progress
    from twotower.experiment.folder import Run
    from twotower.experiment.run import evaluate_run

    opened = Run(run)
    with progress(opened.config.main_metric):
        found = evaluate_run(opened, on, data=data, baselines=baselines, overwrite=overwrite, say=common.say)
    show_evaluations(found, str(data or on).capitalize() if data is None else str(data))
    show_slices(found[0], opened.config.main_metric)
    show_verdict(found[0], found[1:], opened.config.main_metric)
