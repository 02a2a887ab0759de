"""One process at a time writes to a run folder; the lock ends with its process, however that ends."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from twotower.files import PathLike, check_writable, written_aside

LOCK, HOLDER = ".lock", ".lock.json"  # what is locked, and who did


@contextmanager
def held(folder: PathLike) -> Iterator[None]:
    """Nobody else writes to the folder while the block runs; a folder that is not there is made, and goes if it stays empty.

    The operating system keeps the lock and drops it when the process ends, so that a killed run is resumed as it lies.

    Raises:
        ValueError: another process writes to it; or it cannot be written to.
    """
    path = Path(folder)
    check_writable(path)
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{path} is in use: {_holder(path / HOLDER)} writes to it. Wait for its end or stop it, or give another folder. "
            f"A lock ends with its process; should the file system keep it all the same, delete {path / LOCK}."
        ) from None
    try:
        with written_aside(path / HOLDER) as aside:
            aside.write_text(json.dumps(_self(), ensure_ascii=False), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # not every system lets a locked file be deleted, and it does no harm
            (path / HOLDER).unlink(missing_ok=True)
            (path / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):
                path.rmdir()


def contents(folder: Path) -> list[Path]:
    """What a folder holds beside the lock."""
    return [path for path in folder.iterdir() if path.name not in (LOCK, HOLDER)]


def _self() -> dict[str, object]:
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']} (`{found['command']}`, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
