"""twotower serve: a bundle behind HTTP."""

import functools
import ipaddress
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from twotower.feature_stores.base import FeatureStore
from twotower.feature_stores.parquet import ParquetFeatures
from twotower.feature_stores.redis import RedisFeatures
from twotower.feature_stores.sqlite import SQLiteFeatures

TOKEN = "TWOTOWER_TOKEN"
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or the run folder that has one.", show_default=False)],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for every address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"A file with the token that clients must send; or set {TOKEN}.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name by which clients may call a server without a token; may be repeated.",
            show_default=False,
        ),
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(
            help="Features of users in place of the bundle's: a .sqlite or .parquet file, or redis://...",
            show_default=False,
        ),
    ] = None,
    users_key: Annotated[
        str | None, typer.Option(help="The id column of a --users Parquet file.", show_default=False)
    ] = None,
    max_k: Annotated[int, typer.Option(min=1, help="The most items of one question.")] = 1000,
    max_body: Annotated[int, typer.Option(min=1, help="The most bytes of a body.")] = 1_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.")] = 10.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 64,
    max_wait: Annotated[float, typer.Option(min=0, help="Milliseconds that an idle thread waits for more.")] = 0.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Questions that may wait; more are answered 503.")] = 1024,
    worker_threads: Annotated[int, typer.Option(min=1, help="Batches worked on at a time.")] = 1,
    torch_threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one batch; all cores by default.", show_default=False)
    ] = None,
    drain: Annotated[float, typer.Option(min=0, help="Seconds between SIGTERM and the end of listening.")] = 1.0,
    watch: Annotated[bool, typer.Option(help="Serve a new bundle at the path as soon as it lies there.")] = True,
    explorer: Annotated[bool, typer.Option(help="Pages to look around, at /explore.")] = True,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line of JSON for every request.")] = False,
) -> None:
    """Recommendations over HTTP, from a bundle. GET /schema lists the routes. SIGHUP loads the bundle anew."""
    try:
        from twotower.serving.live import Live
        from twotower.serving.server import serve as run
        from twotower.serving.settings import Limits, Settings
    except ImportError as error:
        raise ImportError(
            f"twotower serve needs packages that cannot be imported ({error}): pip install 'twotower[serve]'."
        ) from error
    import torch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    secret = _token(token_file)
    if secret is None and not _is_local(host):
        logging.getLogger("twotower.serve").warning(
            "listening on %s without a token: whoever reaches it may ask, and reload. Set --token-file or %s.",
            host,
            TOKEN,
        )
    settings = Settings(
        limits=Limits(k=max_k, body_bytes=max_body, timeout=timeout, questions=min(256, max_queue)),
        threads=worker_threads,
        max_batch=max_batch,
        max_wait=max_wait / 1e3,
        max_queue=max_queue,
        token=secret,
        hosts=(*LOCAL, host, *(allow_host or ())) if allow_host or _is_local(host) else None,
        watch=1.0 if watch else 0.0,
        explorer=explorer,
        access_log=access_log,
    )
    live = Live(bundle, None if users is None else _store(users, users_key))
    live.take(live.load())  # a broken bundle is told of before anything listens
    run(live, settings, host=host, port=port, drain=drain)


def _token(file: Path | None) -> str | None:
    if file is not None and TOKEN in os.environ:
        raise ValueError(f"the token is given twice, by --token-file and {TOKEN}: which is it?")
    if file is None:
        return os.environ.get(TOKEN)
    if not file.exists():
        raise ValueError(f"--token-file: there is no {file}.")
    return file.read_text(encoding="utf-8").strip()


def _store(users: str, key: str | None) -> Callable[[], FeatureStore]:
    """What opens the store, at every load."""
    if users.startswith(("redis://", "rediss://", "unix://")):
        return functools.partial(RedisFeatures, users)
    if not Path(users).is_file():
        raise ValueError(f"--users: there is no {users}. Give a .sqlite or .parquet file, or redis://...")
    if users.endswith(".parquet"):
        if key is None:
            raise ValueError("--users is a Parquet file: say with --users-key which column holds the ids.")
        return functools.partial(ParquetFeatures, users, key)
    return functools.partial(SQLiteFeatures, users)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
