"""twotower init: look at the tables, and write a config that says why."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from twotower.cli.show import console


def init(
    interactions: Annotated[
        list[str] | None,
        typer.Option(
            help="Parquet of who did what: a path, folder or glob; may be given several times.", show_default=False
        ),
    ] = None,
    items: Annotated[str | None, typer.Option(help="Parquet of the items, one row each.", show_default=False)] = None,
    users: Annotated[str | None, typer.Option(help="Parquet of the users, one row each.", show_default=False)] = None,
    user: Annotated[
        str | None, typer.Option(help="The column of user ids, where its name does not say so.", show_default=False)
    ] = None,
    item: Annotated[str | None, typer.Option(help="The column of item ids, likewise.", show_default=False)] = None,
    time: Annotated[str | None, typer.Option(help="The column of the moment, likewise.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="The config to write.")] = Path("twotower.yaml"),
    example: Annotated[
        bool, typer.Option("--example", help="Write 100,000 real ratings of films beside the config, to try with.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Look at your Parquet and write a commented config."""
    from twotower.config.drafting import Given, draft
    from twotower.files import written_aside

    if example and (interactions or items or users):
        raise ValueError("--example brings its own tables: leave out --interactions, --items and --users.")
    if example:
        interactions, items = (
            [str(path) for path in _example(out.parent, overwrite, out)][:1],
            str(out.parent / "movies.parquet"),
        )
    if not interactions:
        raise ValueError("init needs --interactions <Parquet of who did what>, or --example for data to try with.")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already. Give --overwrite, or another --out.")
    made = draft(Given(tuple(interactions), items, users, user, item, time), out.parent)
    with written_aside(out) as aside:
        aside.write_text(made.text, encoding="utf-8")
    for line in made.notes:
        console.print(Text.assemble(("· ", "dim"), line))
    console.print(
        Text.assemble("The config is in ", (str(out), "bold"), ". Read it, change what you know better. Next:")
    )
    console.print(f"  twotower train {shlex.quote(str(out))}", markup=False, soft_wrap=True)


def _example(folder: Path, overwrite: bool, out: Path) -> list[Path]:
    """The packaged data as Parquet."""
    from twotower.data.sources import load_movietweetings
    from twotower.files import written_aside

    data = load_movietweetings()
    tables = {folder / "ratings.parquet": data.ratings, folder / "movies.parquet": data.movies}
    there = [path for path in (*tables, out) if path.exists()]
    if there and not overwrite:
        raise ValueError(
            f"{', '.join(map(str, there))} is there already. Give --overwrite, or an --out in another folder."
        )
    for path, table in tables.items():
        with written_aside(path) as aside:
            table.write_parquet(aside)
    return list(tables)
