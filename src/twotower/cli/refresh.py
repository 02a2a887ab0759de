"""twotower refresh: the night's rows into the live bundle, if that makes it no worse."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from twotower.cli import common
from twotower.cli.show import console, counted, interval, new_table, number
from twotower.nightly.rules import RefreshRules

if TYPE_CHECKING:
    from twotower.nightly.refresh import Refreshed

KEPT, NOT_RELOADED = 3, 4  # exit codes
DEFAULT = RefreshRules()


def refresh(
    live: Annotated[
        Path, typer.Argument(help="The bundle that is served, or the run that holds it.", show_default=False)
    ],
    interactions: Annotated[
        list[str] | None,
        typer.Option(help="Parquet of the fresh rows: a path, folder or glob; several times.", show_default=False),
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option(help="Parquet of all items that can be recommended from now on.", show_default=False),
    ] = None,
    users: Annotated[
        list[str] | None, typer.Option(help="Parquet of new or changed users.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="The run that made the bundle, which the first refresh of a copy asks.", show_default=False),
    ] = None,
    skip_known: Annotated[
        bool, typer.Option("--skip-known", help="Leave out rows that are not after the known ones.")
    ] = False,
    held_out: Annotated[
        float, typer.Option(help="The latest share of the fresh rows, to judge by.")
    ] = DEFAULT.held_out,
    epochs: Annotated[int, typer.Option(help="Passes over the rows that are learnt.")] = DEFAULT.epochs,
    rate: Annotated[float, typer.Option(help="The learning rate, as a share of the config's.")] = DEFAULT.rate,
    replay: Annotated[float, typer.Option(help="Old rows learnt again, as a share of the new ones.")] = DEFAULT.replay,
    margin: Annotated[
        float, typer.Option(help="How much worse the new bundle may be, as a share of the live figure.")
    ] = DEFAULT.margin,
    trust: Annotated[
        float, typer.Option(help="The least that the live bundle must know of the rows, as a share of before.")
    ] = DEFAULT.trust,
    personal: Annotated[
        float, typer.Option(help="How different people's lists must stay, as a share of the live ones.")
    ] = DEFAULT.personal,
    most_lost: Annotated[float, typer.Option(help="The share of the items that may be gone.")] = DEFAULT.most_lost,
    seed: Annotated[int, typer.Option(help="Of the order of rows and of the replay.")] = DEFAULT.seed,
    force: Annotated[bool, typer.Option("--force", help="Publish whatever the rules say.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the bundle before; nothing else.")] = False,
    notify: Annotated[
        str | None, typer.Option(help="A server to tell of the new bundle, by POST to /reload.", show_default=False)
    ] = None,
) -> None:
    """Learn the night's rows, judge the new bundle beside the live one, and publish it if it is not worse.

    Exit codes: 0 published or no rows came, 3 the live bundle was kept, 4 published but --notify failed, 2 what you can mend.
    """
    from twotower.nightly.publishing import address
    from twotower.nightly.publishing import rollback as go_back
    from twotower.nightly.refresh import refresh as work

    values = locals()
    rules = RefreshRules(**{field.name: values[field.name] for field in fields(RefreshRules)})
    if rollback == bool(interactions):
        raise ValueError("give --interactions <Parquet of the fresh rows>, or --rollback alone.")
    if notify is not None:
        address(notify)  # before any work
    if rollback:
        path = go_back(live)
        console.print(
            f"{path} is the bundle before again; {path.name}.previous is the one that was live.", markup=False
        )
    else:
        found = work(
            live,
            interactions or (),
            items=items,
            users=users,
            run=run,
            rules=rules,
            skip_known=skip_known,
            force=force,
            say=common.say,
        )
        _show(found)
        if found.outcome == "kept":
            raise typer.Exit(KEPT)
        if found.outcome == "nothing":
            return
    if notify is not None:
        _notify(notify)


def _notify(url: str) -> None:
    from twotower.nightly.publishing import notify

    try:
        notify(url)
    except ValueError as error:
        console.print(Text(str(error), style="red"), soft_wrap=True)
        raise typer.Exit(NOT_RELOADED) from error
    console.print(f"{url} has loaded it.", markup=False)


def _show(found: "Refreshed") -> None:
    """The comparison and the verdict."""
    for note in found.report["notes"]:
        console.print(Text.assemble(("Note ", "yellow"), note), soft_wrap=True)
    if found.comparison:
        queries, items = found.report["queries"], found.report["candidates"]
        table = new_table(
            f"New and live on the rows held out: {counted(queries, 'query', 'queries')}, {counted(items, 'item', 'items')}"
        )
        for name in ("", "live", "new", "difference", "interval", "p"):
            table.add_column(name, justify="right" if name else "left")
        for d in found.comparison:
            cells = [number(d.second), number(d.first), f"{d.difference:+.4f}", interval(d.low, d.high), f"{d.p:.4f}"]
            table.add_row(d.metric, *cells)
        console.print(table)
    said = {
        "published": ("Published", "green"),
        "kept": ("The live bundle is kept", "bold red"),
        "nothing": ("Nothing to do", "green"),
    }[found.outcome]
    forced = " by force, although:" if found.outcome == "published" and found.reasons else ":" if found.reasons else "."
    console.print(Text(said[0] + forced, style=said[1]))
    for reason in found.reasons:
        console.print(Text(f"  {reason}"), soft_wrap=True)
    if found.path is not None:
        console.print(f"The report is in {found.path}.", markup=False, soft_wrap=True)
