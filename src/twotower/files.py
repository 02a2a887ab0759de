"""Writing that a crash cannot leave half done: write aside, flush, rename."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]


@contextmanager
def written_aside(path: PathLike) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` only if the block succeeds."""
    target = Path(path).resolve()  # a link stays a link: what it points to is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield aside
        _flush(aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def remove_asides(folder: PathLike, name: str) -> None:
    """Delete what killed writers of files of that name (a pattern) left beside them; no other writer may be at work."""
    for left in Path(folder).glob(f".{name}.{'[0-9a-f]' * 32}"):
        left.unlink()


@contextmanager
def folder_written_aside(path: PathLike, marker: str) -> Iterator[Path]:
    """The same for a folder. One that stands at `path` is replaced in two renames, and put back on failure.

    Raises:
        ValueError: something else stands at `path`: a file, or a folder that holds files but not the `marker`, the file
            by which the new folder will be known.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"cannot write a folder to {target}: a file stands there. Give another path.")
    if target.exists() and any(target.iterdir()) and not (target / marker).exists():
        raise ValueError(
            f"{target} holds other files ({sorted(p.name for p in target.iterdir())[:3]}, ...) and no {marker}: it would be "
            "replaced as a whole. Give a path of its own."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    old = aside.with_name(aside.name + ".old")
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(aside, target)
        except BaseException:
            if old.exists():
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that what comes of it cannot be kept.

    Raises:
        ValueError: the path, or the folder that it would come to be in, cannot be written to.
    """
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if there != path.absolute() and not there.is_dir():
        raise ValueError(f"{path} cannot be made: {there} is a file. Give another path.")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{path} cannot be written: {there} is read-only to you. Give another path.")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
