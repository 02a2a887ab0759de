"""twotower train: from a config to a run."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from twotower.cli import common
from twotower.cli.show import console, show_evaluations, show_findings, show_verdict

ConfigFile = Annotated[Path, typer.Argument(help="The YAML file that `twotower init` wrote.", show_default=False)]
Folder = Annotated[
    Path | None, typer.Option("--run", help="The run folder; by default runs/<name of the config>.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A value in place of the config's, such as training.epochs=3; may be given several times.",
        show_default=False,
    ),
]


def train(
    config: ConfigFile,
    run: Folder = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Changes = None,
) -> None:
    """Train, save, and measure on the validation part; the test is left for `evaluate`."""
    from twotower.cli.progress import progress
    from twotower.experiment.run import train_run

    loaded = common.load(config, changes or [])
    folder = run or Path("runs") / config.stem
    again = "".join(f" --set {shlex.quote(change)}" for change in changes or [])
    command = f"twotower train {shlex.quote(str(config))} --run {shlex.quote(str(folder))} --resume{again}"
    with common.stoppable(command), progress(loaded.main_metric) as epochs:
        made = train_run(
            loaded,
            folder,
            resume=resume,
            overwrite=overwrite,
            text=common.written(config, loaded, changes or []),
            say=common.say,
            callbacks=[epochs],
        )
    found = made.evaluations("validation")
    show_evaluations(found, "Validation")
    show_verdict(found[0], found[1:], loaded.main_metric)
    show_findings([f for f in made.findings() if f[0] == "left out"])
    console.print(Text.assemble("\nThe run is in ", (str(folder), "bold"), ". Next:"))
    for verb in ("evaluate", "recommend", "report"):
        user = shlex.quote(str(made.tables().train[loaded.data.user][-1]))
        more = f" --user {user}" if verb == "recommend" else ""
        console.print(f"  twotower {verb} {shlex.quote(str(folder))}{more}", markup=False, soft_wrap=True)
