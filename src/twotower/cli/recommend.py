"""twotower recommend: items for a user, a query of your own, or many users."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.text import Text

from twotower.cli.evaluate import RunFolder
from twotower.cli.show import as_json, console, counted, show_items


def recommend(
    run: RunFolder,
    user: Annotated[
        str | None, typer.Option(help="A user's id; what is known of them is looked up.", show_default=False)
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(help="A query as JSON, with the raw columns that the query tower reads.", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    seen: Annotated[
        bool | None,
        typer.Option(
            "--seen/--no-seen",
            help="Recommend what the user did before too, or not; by default as the config says.",
            show_default=False,
        ),
    ] = None,
    users_file: Annotated[
        Path | None, typer.Option(help="Parquet with a column of users, for many at once.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the lists of --users-file, as Parquet.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The best items, with their columns."""
    from twotower.experiment.folder import Run
    from twotower.experiment.recommending import Desk
    from twotower.files import check_writable

    if sum(given is not None for given in (user, query, users_file)) != 1:
        raise ValueError("say for whom: one of --user ID, --query JSON and --users-file PARQUET.")
    if (users_file is None) != (out is None):
        raise ValueError("--users-file and --out go together: whose lists, and where to write them.")
    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"{out} is there already. Give --overwrite, or another --out.")
    opened = Run(run)
    opened.check_complete()
    if out is not None:
        check_writable(out)
    desk = Desk(opened)
    if users_file is not None:
        assert out is not None
        _write(desk.lists(_users(users_file, desk.config.data.user), k, seen), out)
        return
    found = desk.answer(_parsed(query), k, seen) if query is not None else desk.recommend([user], k, seen)
    if json_:
        print(as_json(found))
        return
    if user is not None:
        _describe(desk.look_up([user]).rows.row(0, named=True), desk.config.data.user)
        found = found.drop(found.columns[0])
    show_items(found, f"For {desk.config.data.user} {user}" if user is not None else "For the query")


def _describe(asked: dict[str, Any], user: str) -> None:
    """What the query tower was told, so that nothing is hidden."""
    told = {name: value for name, value in asked.items() if name != user}
    for name, value in told.items():
        shown = (
            f"{len(value)} items, the latest {', '.join(map(str, value[-5:]))}"
            if isinstance(value, list) and value
            else value
        )
        console.print(Text.assemble(("· ", "dim"), f"asked with {name}: {shown}"))


def _parsed(query: str | None) -> dict[str, Any]:
    try:
        made = json.loads(query or "")
    except json.JSONDecodeError as error:
        raise ValueError(f"--query is no JSON ({error}): expected an object such as '{{\"user_id\": 42}}'.") from error
    if not isinstance(made, dict):
        raise ValueError(f"--query: expected one JSON object, got {type(made).__name__}.")
    return made


def _users(path: Path, user: str) -> list[Any]:
    if not path.exists():
        raise ValueError(f"--users-file: there is no {path}.")
    table = pl.read_parquet(path, glob=False)
    if user not in table.columns:
        raise ValueError(f"--users-file: {path} has no column {user!r}, but {', '.join(table.columns)}.")
    return table[user].unique(maintain_order=True).to_list()


def _write(parts: Iterator[pl.DataFrame], out: Path) -> None:
    """The lists as they come, a row group for each part."""
    import pyarrow.parquet as pq

    from twotower.files import written_aside

    first = next(parts)
    rows = users = 0
    schema = first.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    with written_aside(out) as aside, pq.ParquetWriter(aside, schema) as writer:
        for part in itertools.chain([first], parts):
            writer.write_table(part.to_arrow(compat_level=pl.CompatLevel.oldest()))
            rows, users = rows + len(part), users + part[part.columns[0]].n_unique()
    console.print(f"{counted(rows, 'row', 'rows')} for {counted(users, 'user', 'users')} are in {out}.", markup=False)
