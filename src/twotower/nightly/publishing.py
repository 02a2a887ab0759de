"""The new bundle takes the live one's place at once; the one before stays beside it."""

import http.client
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Any

from twotower.bundle import Bundle, load_bundle, read_manifest, save_bundle
from twotower.experiment.lock import held
from twotower.files import PathLike, exchange_folders, restore_folder
from twotower.nightly.known import Ledger, live_path, origin_of

TOKEN = "TWOTOWER_TOKEN"  # the variable of the environment that holds a server's token
PATIENCE = 60.0  # seconds that a server has to answer
MOST = 65536  # bytes of an answer that are read


def publish(bundle: Bundle, live: Path) -> None:
    """Write a bundle beside the live one, verify it, exchange the two, and keep the live one as PATH.previous."""
    aside = _beside(live, "next")
    save_bundle(bundle, aside)
    load_bundle(aside)
    exchange_folders(aside, live)
    _keep(aside, live)


def settle(live: Path) -> None:
    """Bring to an end what a killed refresh left: a bundle that was not published is deleted, one that was replaced is kept."""
    restore_folder(live)
    aside = _beside(live, "next")
    if not (aside / "manifest.json").exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif origin_of(aside).get("night", 0) > origin_of(live).get("night", 0):
        shutil.rmtree(aside)
    else:
        _keep(aside, live)
    origins = [origin_of(path) for path in (live, _beside(live, "previous")) if (path / "manifest.json").exists()]
    Ledger(live).prune(origins)


def rollback(live: PathLike) -> Path:
    """The live bundle and the one before it, PATH.previous, change places at once; again, and all is as it was.

    Args:
        live: the bundle, or the run that holds it.

    Returns:
        The bundle's path.

    Raises:
        ValueError: there is no bundle before; another process refreshes this one.

    Example:
        >>> tt.rollback("live")    # doctest: +SKIP
    """
    path = live_path(live)
    with held(Ledger(path).folder):
        settle(path)
        previous = _beside(path, "previous")
        if not previous.exists():
            raise ValueError(f"there is no bundle to go back to: no refresh was published at {path} yet.")
        load_bundle(previous)
        exchange_folders(previous, path)
    return path


def address(url: str) -> str:
    """Where a server is asked to load the new bundle: the address itself, or its /reload if it has no path.

    Raises:
        ValueError: it is no http or https address of a server.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port that is no number
        right = False
    if not right or parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"--notify {url}: expected an address such as http://localhost:8000; a token goes into {TOKEN}."
        )
    return urllib.parse.urlunsplit(parts._replace(path="/reload")) if parts.path in ("", "/") else url


def notify(url: str) -> None:
    """Ask a server to load the new bundle: POST to its /reload, with the token of TWOTOWER_TOKEN if there is one.

    Raises:
        ValueError: it cannot be reached, refuses, sends elsewhere, or answers with anything but the version that it serves.
    """
    whole, token = address(url), os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(whole, data=b"", headers=headers, method="POST")
    reason: Exception | None = None
    try:
        with urllib.request.build_opener(_StayHere).open(request, timeout=PATIENCE) as answer:
            if answer.status == 200 and "version" in _fields(answer):
                return
            told = f"its answer, {answer.status}, is no JSON with a version. Is this the address of twotower serve?"
    except urllib.error.HTTPError as error:
        with error:
            reason, told = error, _refusal(error)
    except (OSError, http.client.HTTPException) as error:
        reason, told = error, str(error)
    raise ValueError(f"the bundle is published, but {whole} did not reload it: {told}") from reason


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A token is for the server that was named, not for another that it sends to."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def _refusal(error: urllib.error.HTTPError) -> str:
    """An answer other than 200, and what its body says of the reason."""
    if 300 <= error.code < 400:
        return f"{error}, to {error.headers.get('Location')}; it is not followed, as a token goes with it. Give that address."
    told = _fields(error).get("error", "")
    return f"{error}: {told}" if told else f"{error}."


def _fields(answer: IO[bytes]) -> dict[str, Any]:
    """The JSON object of an answer; {} for anything else."""
    try:
        found = json.loads(answer.read(MOST))
    except (ValueError, OSError, http.client.HTTPException):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(replaced: Path, live: Path) -> None:
    """The bundle that was replaced becomes the previous one."""
    previous = _beside(live, "previous")
    read_manifest(replaced)
    shutil.rmtree(previous, ignore_errors=True)
    os.rename(replaced, previous)


def _beside(live: Path, name: str) -> Path:
    return live.with_name(f"{live.name}.{name}")
