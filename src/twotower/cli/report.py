"""twotower report: a run as one page of HTML."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import common
from twotower.cli.evaluate import RunFolder
from twotower.cli.show import console


def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page; by default report.html in the run.", show_default=False)
    ] = None,
    on: Annotated[str, typer.Option("--on", help="test or validation.")] = "test",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
) -> None:
    """Write a page that tells what was trained, how it went and what it is worth."""
    from twotower.cli.progress import progress
    from twotower.experiment.folder import Run
    from twotower.experiment.run import evaluate_run
    from twotower.files import check_writable
    from twotower.report import ReportData, write_report

    opened = Run(run)
    path = out or run / "report.html"
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already. Give --overwrite, or another --out.")
    opened.check_complete()
    check_writable(path)
    with progress(opened.config.main_metric):
        found = evaluate_run(opened, on, say=common.say)
    tables = opened.tables()
    data = ReportData(
        title=f"{run.name}: {on}",
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        history=opened.history(),
        evaluations=found,
        train=tables.before(on),
        items=tables.items,
        user=opened.config.data.user,
        item=opened.config.data.item,
        retriever=opened.retriever(),
        findings=opened.findings(),
        environment=opened.environment(),
        test=tables.test if on == "test" else tables.validation,
        time=opened.config.data.time,
    )
    write_report(path, data)
    console.print(f"The report is in {path}.", markup=False)
