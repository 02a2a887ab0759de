"""The run folder: what lies where, what was found on the way, and when it may be written to."""

import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import polars as pl

from twotower.config.config import Config
from twotower.config.yaml_file import read_yaml
from twotower.evaluation import Evaluation
from twotower.experiment.lock import contents
from twotower.experiment.tables import Tables
from twotower.files import PathLike, written_aside
from twotower.serving.retriever import Retriever

LIBRARIES = ("torch", "lightning", "polars", "pyarrow", "numpy", "pydantic", "scipy", "implicit", "optuna")
MARKER = "twotower-run.json"  # by which a folder of ours is known
KINDS = {"run": "a run", "tune": "a search of `twotower tune`"}


class Run:
    """A run folder that `train_run` wrote.

    It holds twotower-run.json, by which it is known; config.yaml as it was given and resolved.yaml with every key;
    environment.json; data/, the parts as Parquet;
    checkpoints/; history.csv, a row for each epoch; findings.json; bundle/, from which `Retriever.load` serves;
    evaluations/<part>/<name>/; and metrics.json, which comes last: a run that has it is whole.

    Args:
        folder: where it is.
        kind: "run", or "tune" for the folder of a search.

    Raises:
        ValueError: there is no run.

    Example:
        >>> run = tt.Run("runs/first")                            # doctest: +SKIP
        >>> run.retriever().recommend([{"user_id": 42}], k=5)     # doctest: +SKIP
    """

    def __init__(self, folder: PathLike, kind: str = "run") -> None:
        self.folder = Path(folder)
        found = kind_of(self.folder)
        if found != kind:
            there = f"it holds no {MARKER}" if self.folder.exists() else "there is no such folder"
            if found is not None:
                there = f"it holds {KINDS[found]}"
            raise ValueError(f"no run at {self.folder}: {there}. `twotower train <config> --run <folder>` makes one.")
        self.config = Config.from_dict(read_yaml(self.folder / "resolved.yaml")[0])

    @property
    def complete(self) -> bool:
        """Whether training and its validation came to their end."""
        file = self.folder / "metrics.json"
        return file.exists() and "validation" in json.loads(file.read_text())

    @property
    def begun(self) -> bool:
        """Whether there is something learnt that would be lost with the folder."""
        made = any((self.folder / name).exists() for name in ("history.csv", "bundle", "evaluations", "trials.log"))
        return made or any((self.folder / "checkpoints").glob("*/*"))

    def check_complete(self) -> None:
        """Refuse a run that cannot be asked yet.

        Raises:
            ValueError: training or its validation has not come to its end, or the bundle was deleted.
        """
        if self.complete and (self.folder / "bundle").exists():
            return
        lacks = "its bundle is gone" if self.complete else "its training was broken off"
        config, own = shlex.quote(str(self.folder / "resolved.yaml")), shlex.quote(str(self.folder))
        how = "--overwrite` makes it anew" if self.complete else "--resume` goes on with it"
        raise ValueError(f"{self.folder} is not whole: {lacks}. `twotower train {config} --run {own} {how}.")

    def tables(self) -> Tables:
        """The parts that the run was trained and is measured on."""
        return Tables.load(self.folder / "data")

    def retriever(self) -> Retriever:
        """What it learnt.

        Raises:
            ValueError: training has not come to its end.
        """
        if not (self.folder / "bundle").exists():
            raise ValueError(
                f"{self.folder} has no bundle: its training was broken off. Go on with `twotower train ... --resume`."
            )
        return Retriever.load(self.folder / "bundle")

    def history(self) -> pl.DataFrame:
        """One row for each epoch: the loss, validation metrics and health."""
        return pl.read_csv(self.folder / "history.csv")

    def findings(self) -> list[tuple[str, str]]:
        """(name, text) of everything that was warned of."""
        file = self.folder / "findings.json"
        return [(f["name"], f["text"]) for f in json.loads(file.read_text())] if file.exists() else []

    def environment(self) -> dict[str, Any]:
        """Versions, machine, command, and the seconds that each stage took."""
        return dict(json.loads((self.folder / "environment.json").read_text()))

    def evaluations(self, part: str) -> list[Evaluation]:
        """What was measured on a part, the model first; [] if nothing."""
        folder = self.folder / "evaluations" / part
        names = [name for name in ("model", *self.config.baselines) if (folder / name / "evaluation.json").exists()]
        return [Evaluation.load(folder / name) for name in names]

    # ---- writing

    def save_evaluations(self, part: str, found: list[Evaluation]) -> None:
        """Keep evaluations, and their means and intervals in metrics.json."""
        for evaluation in found:
            evaluation.save(self.folder / "evaluations" / part / evaluation.name)
        file = self.folder / "metrics.json"
        held = json.loads(file.read_text()) if file.exists() else {}
        new = {e.name: {n: _plain(vars(m)) for n, m in e.metrics.items()} for e in found}
        write_json(file, held | {part: held.get(part, {}) | new})

    @contextmanager
    def stage(self, name: str, since: float | None = None) -> Iterator[None]:
        """Keep how long a stage took; it may have begun before the folder came to be."""
        started = time.perf_counter() if since is None else since
        yield
        known = self.environment()
        spent = known["seconds"].get(name, 0.0) + time.perf_counter() - started
        write_json(self.folder / "environment.json", known | {"seconds": known["seconds"] | {name: round(spent, 2)}})

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep every warning as a finding, at once, so that a killed run has them too; they are shown as well."""
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            self.note(category.__name__, str(message))
            show(message, category, *rest, **more)

        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module="twotower")
            warnings.showwarning = keep  # type: ignore[assignment]
            yield

    def note(self, name: str, text: str) -> None:
        """Add a finding, once."""
        found = self.findings()
        if (name, text) not in found:
            write_json(self.folder / "findings.json", [{"name": n, "text": t} for n, t in [*found, (name, text)]])


def find_run(config: Config, folder: PathLike, *, resume: bool, overwrite: bool, kind: str) -> Run | None:
    """The run to go on with; None if a new one may be made, for which nothing has been deleted yet.

    Asked while the folder is `held`.

    Raises:
        ValueError: the folder is there and neither `resume` nor `overwrite` was given, it holds something else, or a run of
            another config.
    """
    path = Path(folder)
    if resume and overwrite:
        raise ValueError("resume goes on with a run, overwrite deletes it: give one of them.")
    if not path.exists() or not contents(path):
        return None
    found = kind_of(path)
    if found != kind:
        what = "something else than a run" if found is None else KINDS[found]
        raise ValueError(f"{path} holds {what}, not {KINDS[kind]}: it is left as it is. Give another folder.")
    if overwrite:
        return None
    run = Run(path, kind)
    if not run.begun:  # where nothing was learnt, nothing is lost
        return None
    if not resume:
        state = "a finished run" if run.complete else f"{KINDS[kind]} that was broken off"
        raise ValueError(
            f"{path} holds {state}. Give --resume to go on with it, --overwrite to delete it first, or another --run."
        )
    other = differing(run.config.to_dict(), config.beside(Path.cwd()).to_dict())
    if other:
        verb, own = ("train" if kind == "run" else kind), shlex.quote(str(path))
        more = f"; and {len(other) - 5} keys more" if len(other) > 5 else ""
        raise ValueError(
            f"{path} was begun with another config: {'; '.join(other[:5])}{more}. Go on with its own config, "
            f"`twotower {verb} {shlex.quote(str(path / 'resolved.yaml'))} --run {own} --resume`, or give another --run."
        )
    return run


def make_folder(config: Config, text: str, folder: PathLike, kind: str) -> Run:
    """A new run, in place of what `find_run` allowed to be replaced."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # the marker last: a folder that is half deleted is still known
    for old in sorted(contents(path), key=lambda old: old.name == MARKER):
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    write_text(path / "config.yaml", text)
    write_json(path / "environment.json", _environment())
    # absolute paths: relative ones would mean something else when the file is read where it lies
    write_text(path / "resolved.yaml", config.beside(Path.cwd()).to_yaml())
    write_json(path / MARKER, {"kind": kind, "version": 1})  # by it a folder is known, so it comes last
    return Run(path, kind)


def kind_of(folder: Path) -> str | None:
    """What a folder holds, "run" or "tune"; None for anything else."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = found.get("kind") if isinstance(found, dict) else None
    return kind if kind in KINDS else None


def differing(one: dict[str, Any], other: dict[str, Any], at: str = "") -> list[str]:
    """Every key whose values differ, as "key: this against that"."""
    found = []
    for key in dict.fromkeys([*one, *other]):
        a, b, name = one.get(key), other.get(key), f"{at}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a!r} against {b!r}")
    return found


def write_json(path: Path, data: Any) -> None:
    """Text that appears whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """The same for any text."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan."""
    return {name: None if value != value else value for name, value in values.items()}


def _environment() -> dict[str, Any]:
    versions = {"twotower": importlib.import_module("twotower").__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "seconds": {},
    }
