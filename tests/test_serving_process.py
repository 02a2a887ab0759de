"""The server as a process: signals, concurrent clients, clients that misbehave, and writers that are killed."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

import twotower as tt
from twotower.cli.app import app
from twotower.serving import server

from . import serving_world as world
from .test_bundle import WRITER

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TWOTOWER_TOKEN": "sesame-open"}
TOKEN = {"authorization": "Bearer sesame-open", "content-type": "application/json"}
PATIENCE = 240.0  # seconds


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, and `served`, a copy of the first."""
    folder = tmp_path_factory.mktemp("process")
    for seed, name in enumerate(("one", "two")):
        world.make_retriever(seed).save(folder / name)
    shutil.copytree(folder / "one", folder / "served")
    return folder


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`twotower serve` at a free port, ended afterwards."""
    command = [sys.executable, "-m", "twotower", "serve", *arguments, "--port", "0", "--no-explorer"]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=log)
        try:
            said = Path(log.name)
            until(lambda: "listening on" in said.read_text() or process.poll() is not None)
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", said.read_text())
            assert found, said.read_text()
            yield process, int(found[1])
        finally:
            process.kill()
            process.wait()


def call(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, None if body is None else json.dumps(body), TOKEN)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_through_its_days(bundles: Path) -> None:
    """Reloads under load by every way, a killed writer, bad clients, and SIGTERM: no request that came in stays unanswered."""
    served = bundles / "served"
    retrievers = [tt.Retriever.load(bundles / name) for name in ("one", "two")]
    expected = {tuple(r.recommend_users([5])["item_id"].to_list()) for r in retrievers}
    assert len(expected) == 2
    seen: set[tuple[str, ...]] = set()
    failed: list[str] = []
    count = [0, 0, 0]

    with serving(str(served), "--drain", "2") as (process, port):
        assert call(port, "GET", "/")[1]["name"] == "served"

        def load(number: int) -> None:
            """Ask on one connection until the server asks to close it, as it does before it stops."""
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            while True:
                try:
                    connection.request("POST", "/recommend", json.dumps({"user": 5}), TOKEN)
                    response = connection.getresponse()
                    body = response.read()
                except (OSError, http.client.HTTPException) as error:
                    failed.append(repr(error))
                    return
                count[number] += 1
                if response.status != 200:
                    failed.append(body.decode())
                    return
                seen.add(tuple(one["id"] for one in json.loads(body)["results"]))
                if response.getheader("connection") == "close":
                    return
                time.sleep(0.01)

        clients = [threading.Thread(target=load, args=(number,)) for number in range(3)]
        for client in clients:
            client.start()

        def version() -> str:
            return str(call(port, "GET", "/health/ready")[1]["version"])

        first = version()
        retrievers[1].save(served)  # it watches
        until(lambda: version() != first)
        second = version()
        shutil.copy(bundles / "one" / "metrics.json", served / "more.json")  # broken: a file too many
        assert call(port, "POST", "/reload")[0] == 409
        assert version() == second
        (served / "more.json").unlink()
        command = [sys.executable, "-c", WRITER.replace('"user_id": 1', '"user_id": 1, "age": 2.0, "history": None')]
        killed = subprocess.run(
            [*command, str(bundles / "one"), str(served), "9"], env=ENVIRONMENT, capture_output=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert call(port, "POST", "/reload")[0] == 200
        assert version() == second
        retrievers[0].save(served)
        process.send_signal(signal.SIGHUP)
        until(lambda: version() != second)

        slow = socket.create_connection(("127.0.0.1", port))  # a client that never ends its request
        slow.sendall(b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        gone = socket.create_connection(("127.0.0.1", port))
        gone.sendall(b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        gone.close()
        noise = socket.create_connection(("127.0.0.1", port))
        noise.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert noise.recv(100).startswith(b"HTTP/1.1 400")
        noise.close()
        before = list(count)
        until(lambda: all(now > then for now, then in zip(count, before, strict=True)))

        process.send_signal(signal.SIGTERM)
        until(lambda: process.poll() is not None or _not_ready(port))
        for client in clients:
            client.join(PATIENCE)
        slow.close()
        assert process.wait(PATIENCE) == 0
    assert failed == []
    assert seen == expected


def _not_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        return call(port, "GET", "/health/ready")[0] == 503
    return True


def test_the_command_says_what_is_wrong(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(
        server, "serve", lambda live, settings, **options: ran.append({"settings": settings, **options})
    )
    one, token = str(bundles / "one"), tmp_path / "token"

    def said(*arguments: str) -> str:
        return str(CliRunner().invoke(app, ["serve", *arguments]).exception)

    monkeypatch.delenv("TWOTOWER_TOKEN", raising=False)
    assert "manifest.json is missing" in said(str(tmp_path))
    assert "--token-file: there is no" in said(one, "--token-file", str(token))
    token.write_text("sesame-open\n")
    assert "--users: there is no nowhere.sqlite" in said(one, "--users", "nowhere.sqlite")
    world.users().write_parquet(tmp_path / "users.parquet")
    assert "which column holds the ids" in said(one, "--users", str(tmp_path / "users.parquet"))
    assert "at least 8 ASCII characters" in said(one, "--token-file", os.devnull)
    assert ran == []
    parquet = ["--users", str(tmp_path / "users.parquet"), "--users-key", "user_id"]
    assert (
        said(one, "--token-file", str(token), "--max-wait", "2", "--no-watch", "--host", "0.0.0.0", *parquet) == "None"
    )
    assert (ran[0]["settings"].token, ran[0]["settings"].max_wait, ran[0]["settings"].watch) == (
        "sesame-open",
        0.002,
        0,
    )
    assert "without a token" not in caplog.text
    said(one)
    assert (ran[1]["host"], ran[1]["settings"].token) == ("127.0.0.1", None)
    assert "without a token" not in caplog.text
    said(one, "--host", "0.0.0.0")
    assert "listening on 0.0.0.0 without a token" in caplog.text
    monkeypatch.setenv("TWOTOWER_TOKEN", "sesame-open")
    assert "the token is given twice" in said(one, "--token-file", str(token))


def test_users_of_the_operators_own(bundles: Path, tmp_path: Path) -> None:
    """A store that changes while it is served."""
    store = tt.SQLiteFeatures.create(tmp_path / "users.sqlite", world.users(7), key="user_id")
    with serving(str(bundles / "one"), "--users", str(tmp_path / "users.sqlite"), "--no-watch") as (_, port):
        retriever = tt.Retriever.load(bundles / "one", users=store)
        before = retriever.recommend_users([5])["item_id"].to_list()
        assert [one["id"] for one in call(port, "GET", "/recommend/5")[1]["results"]] == before
        store.put(world.users(7).filter(user_id=5).with_columns(seen=pl.lit(pl.Series([before[:3]]))))  # type: ignore[arg-type]
        after = [one["id"] for one in call(port, "GET", "/recommend/5")[1]["results"]]
        assert not set(after) & set(before[:3])
