"""Writing that a crash cannot leave half done: write aside, flush, rename."""

import ctypes
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
    """The same for a folder. One that stands at `path` changes places with the new one at once, where the system can do that
    (Linux, macOS); elsewhere it is moved away before, and put back on failure.

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
    restore_folder(target)
    _remove_folders_of_the_dead(target)
    with ExitStack() as held:
        aside = _locked_aside(target, held)
        try:
            yield aside
            for place in [*aside.rglob("*"), aside]:
                _flush(place)
            if target.exists():
                exchange_folders(aside, target)
            else:
                os.rename(aside, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def exchange_folders(one: PathLike, target: PathLike) -> None:
    """Two folders beside each other change places: at once, where the system can do that (Linux, macOS).

    Elsewhere the target is moved away before; a kill in between is mended by `restore_folder(target)`.
    """
    first, second = Path(one).resolve(), Path(target).resolve()
    call = _exchange_call()
    if call is not None and call(os.fsencode(first), os.fsencode(second)) == 0:
        return
    old = second.with_name(f".{second.name}.{uuid.uuid4().hex}.old")
    with _lock(second, wait=True):  # nobody puts it back meanwhile
        os.rename(second, old)
        try:
            os.rename(first, second)
        except BaseException:
            os.rename(old, second)
            raise
        os.rename(old, first)


def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two paths and gives 0; None where there is none."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    if hasattr(library, "renameat2"):  # Linux: RENAME_EXCHANGE is 2, AT_FDCWD -100
        return lambda one, other: int(library.renameat2(-100, one, -100, other, 2))
    if hasattr(library, "renamex_np"):  # macOS: RENAME_SWAP is 2
        return lambda one, other: int(library.renamex_np(one, other, 2))
    return None


def sha256_of(file: PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def restore_folder(path: PathLike) -> None:
    """Put back a folder whose writer was killed between two renames, on a system that cannot exchange folders at once."""
    target = Path(path).resolve()
    if not target.exists():
        for left in _asides(target):
            with _lock(left, wait=False) as mine:
                if mine and left.name.endswith(".old"):
                    os.rename(left, target)
                    return


def _remove_folders_of_the_dead(target: Path) -> None:
    """Delete what writers to this path that were killed left beside it."""
    for left in _asides(target):
        with _lock(left, wait=False) as mine:
            if mine:
                shutil.rmtree(left, ignore_errors=True)


def _locked_aside(target: Path, held: ExitStack) -> Path:
    """A new folder beside the target, locked until `held` ends: by that other writers know that this one lives."""
    while True:
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
        aside.mkdir()
        held.enter_context(_lock(aside, wait=True))
        if aside.exists():  # else it was taken for a dead writer's before it was locked
            return aside


def _asides(target: Path) -> list[Path]:
    """The folders that writers to this path have made beside it, living and dead."""
    if not target.parent.is_dir():
        return []
    name = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{32}\.(new|old)")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a folder's lock; the system frees it when its holder dies, and knows holders in other containers too.

    Yields whether it is held: not if another holds it and `wait` is not set, if the folder is gone, or where the system or
    the disk has no such locks.
    """
    if fcntl is None:
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _locked(descriptor, wait)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


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
    if path.is_dir() and os.name != "posix":  # folders can only be flushed there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
