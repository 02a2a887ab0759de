"""What a live bundle knows: the config and the rows that it came from, kept in a folder beside it."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twotower.bundle import Bundle, read_manifest
from twotower.config.config import Config
from twotower.experiment.folder import Run, kind_of
from twotower.files import PathLike, sha256_of, written_aside

FORMAT = 1


@dataclass(frozen=True)
class Affinity:
    """How often a person's own item scores above the item of another of the same rows.

    One half says that the rows fit their people no better than those of others do, whatever is popular.

    Args:
        share: the mean over rows.
        error: its standard error, over users.
    """

    share: float
    error: float

    @property
    def least(self) -> float:
        """The share, with two standard errors left to chance."""
        return self.share - 2 * self.error


Files = Mapping[str, str]  # names in the folder, and their SHA-256


@dataclass(frozen=True, eq=False)
class Known:
    """What the live bundle was made from.

    Args:
        config: of the run that it began with.
        learnt: rows that it was trained on.
        owed: rows that are in histories and in what was seen, and were held back from training: the last ones judged by, or
            the run's test. The next refresh learns them.
        users: features of the users, if the config has any.
        night: how often it was refreshed.
        files: where all this lies already: "learnt", "owed" and "users", each with names in the ledger; {} for a run's rows.
        affinity: how well bundles before knew the rows of sound nights, which later nights are measured by, if it could be said.
    """

    config: Config
    learnt: pl.DataFrame
    owed: pl.DataFrame
    users: pl.DataFrame | None
    night: int
    files: Mapping[str, Files]
    affinity: Affinity | None = None

    @property
    def rows(self) -> pl.DataFrame:
        """All rows."""
        return pl.concat([self.learnt, self.owed])

    @property
    def time(self) -> str:
        """The column of the moment."""
        time = self.config.data.time
        if time is None:
            raise ValueError(
                "a refresh must tell fresh rows from known ones, and the config has no data.time: name the column of the moment, "
                "and train again."
            )
        return time


class Ledger:
    """The folder beside a live bundle, PATH.refresh: its rows as Parquet, and the reports. Files are never changed.

    The bundle says which files are its own (origin.json), so that a kill between the two leaves nothing half done.

    Args:
        live: the bundle's folder.
    """

    def __init__(self, live: Path) -> None:
        self.folder = live.with_name(live.name + ".refresh")

    def write(self, table: pl.DataFrame, what: str) -> Files:
        """Keep a table."""
        name = f"{what}-{uuid.uuid4().hex}.parquet"
        self.folder.mkdir(exist_ok=True)
        with written_aside(self.folder / name) as aside:
            table.write_parquet(aside)
        return {name: sha256_of(self.folder / name)}

    def read(self, origin: Mapping[str, Any]) -> Known:
        """What a bundle's origin tells of."""
        if origin["format"] != FORMAT:
            raise ValueError(
                f"the bundle was refreshed in format {origin['format']}, this version reads {FORMAT}: begin anew from a run."
            )
        files: dict[str, Files] = {name: origin[name] for name in ("learnt", "owed", "users")}
        users = self._tables(files["users"])
        return Known(
            Config.from_dict(origin["config"]),
            pl.concat(self._tables(files["learnt"])),
            pl.concat(self._tables(files["owed"])),
            users[0] if users else None,
            origin["night"],
            files,
            Affinity(**origin["affinity"]) if origin["affinity"] else None,
        )

    def prune(self, origins: Sequence[Mapping[str, Any]]) -> None:
        """Delete tables that none of some bundles came from."""
        kept = {name for origin in origins for part in ("learnt", "owed", "users") for name in origin.get(part, {})}
        for file in self.folder.glob("*.parquet"):
            if file.name not in kept:
                file.unlink()

    def _tables(self, files: Files) -> list[pl.DataFrame]:
        for name, expected in files.items():
            file = self.folder / name
            if not file.exists() or sha256_of(file) != expected:
                state = "was changed" if file.exists() else "is missing"
                raise ValueError(
                    f"{file} {state}: it holds rows that the live bundle knows, for histories and against forgetting. Bring it "
                    "back (a bundle moves with the folder beside it), or begin anew from a run."
                )
        return [pl.read_parquet(self.folder / name, glob=False) for name in files]


def live_path(path: PathLike) -> Path:
    """The bundle's folder, of the path of a bundle or of the run that holds one."""
    found = Path(path).resolve()
    return found / "bundle" if kind_of(found) == "run" else found


def read_known(bundle: Bundle, live: Path, run: PathLike | None) -> Known:
    """What the live bundle knows: from the folder beside it, or at the first refresh from the run that made it.

    Raises:
        ValueError: no run is known; the run's data is another than the bundle's; files are missing.
    """
    if bundle.origin:  # a job that names the run says the same every night
        return Ledger(live).read(bundle.origin)
    folder = Path(run) if run is not None else live.parent
    if kind_of(folder) != "run":
        raise ValueError(
            f"{live} was never refreshed, so its rows and config are asked of the run that made it, and "
            + (f"{folder} is no run." if run is not None else "no run holds it. Give --run <folder> (run= in Python).")
        )
    opened = Run(folder)
    opened.check_complete()
    own, its = (read_manifest(path)["files"].get("model/weights.safetensors") for path in (live, folder / "bundle"))
    if own != its:
        raise ValueError(
            f"{live} holds another model than {folder / 'bundle'}: its rows are those of another run. Give the run that made it."
        )
    tables = opened.tables()
    refit = opened.config.training.refit
    learnt = tables.before("test") if refit else tables.train
    owed = tables.test if refit else pl.concat([tables.validation, tables.test])
    return Known(opened.config, learnt, owed, tables.users, 0, {})


def origin_of(path: Path) -> Mapping[str, Any]:
    """What a bundle says that it was made from, without reading the rest of it; {} for one that was never refreshed."""
    read_manifest(path)
    file = path / "origin.json"
    found: Mapping[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found
