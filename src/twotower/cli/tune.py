"""twotower tune: search the config's keys on the validation part."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from twotower.cli import common
from twotower.cli.show import console, new_table, number
from twotower.cli.train import Changes, ConfigFile, Overwrite, Resume


def tune(
    config: ConfigFile,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many in all; by default tune.trials.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The folder; by default runs/<name of the config>-tune.", show_default=False),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Changes = None,
) -> None:
    """Search with Optuna by the validation part alone, and write the best config."""
    from twotower.cli.progress import progress
    from twotower.experiment.tuning import tune as search

    loaded = common.load(config, changes or [])
    folder = run or Path("runs") / f"{config.stem}-tune"
    again = "".join(f" --set {shlex.quote(change)}" for change in changes or [])
    command = f"twotower tune {shlex.quote(str(config))} --run {shlex.quote(str(folder))} --resume{again}"
    with common.stoppable(command), progress(loaded.main_metric):
        found = search(
            loaded,
            folder,
            trials=trials,
            resume=resume,
            overwrite=overwrite,
            text=common.written(config, loaded, changes or []),
            say=common.say,
        )
    table = new_table(f"{loaded.tune.metric or loaded.main_metric} on the validation part, the best first")
    for name in found.trials.columns:
        table.add_column(Text(name), justify="right")
    ordered = found.trials.sort("value", descending=True, nulls_last=True).head(10)
    for row in ordered.iter_rows():
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)
    best = folder / "best.yaml"
    console.print(f"The best config is {best}. Next:", markup=False, soft_wrap=True)
    console.print(f"  twotower train {shlex.quote(str(best))} --run runs/best", markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    """Keys are kept as text; a number drawn between two ends has digits that nobody reads."""
    if isinstance(value, str) and "." in value and value.replace(".", "", 1).replace("e-", "", 1).isdigit():
        return f"{float(value):.4g}"
    return number(value) if isinstance(value, float) else "–" if value is None else str(value)
