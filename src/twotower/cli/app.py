"""The command `twotower`: the verbs, and how errors are told."""

import sys

import typer
from rich.console import Console

from twotower.cli import compare, evaluate, init, recommend, refresh, report, serve, train, tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Two-tower retrieval from Parquet: init writes a config, train makes a run, evaluate says what it is worth.",
)
for verb in (
    init.init, train.train, evaluate.evaluate, compare.compare, recommend.recommend, report.report, serve.serve,
    refresh.refresh, tune.tune,
):  # fmt: skip
    app.command()(verb)


def main() -> None:
    """Run a verb; what the user can mend is told without a traceback, with exit code 2."""
    try:
        app()
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, ImportError) and "pip install" not in str(
            error
        ):  # an extra that is missing names itself so
            raise
        told(error)
        sys.exit(2)


def told(error: Exception) -> None:
    """The message alone, on standard error."""
    Console(stderr=True, highlight=False).print(str(error), style="red", markup=False, soft_wrap=True)
