"""Requests a second and the time of an answer: `twotower serve` beside one file of FastAPI and faiss, on the same bundle.

    python benchmarks/serving.py --items 100000 1000000 --clients 1 16

Each server is a process of its own; so is the load generator, which writes HTTP/1.1 to keep-alive sockets. The servers take
turns, several times over, so that what else the machine does falls on all alike. Their answers are compared first.
"""

import argparse
import json
import multiprocessing
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import twotower as tt
from twotower import Categorical, Tags

D, LENGTH, USERS, K = 64, 20, 10_000, 10
PEER = Path(__file__).parent / "peers" / "fastapi_faiss.py"


def make_bundle(items: int, index: str, folder: Path) -> None:
    """A user id and a history into a small tower; items as clusters of vectors, as training makes them."""
    random = np.random.default_rng(0)
    catalogue = pl.DataFrame({"item_id": np.arange(items)}).with_columns(
        title=pl.lit("The item with the number ") + pl.col("item_id").cast(pl.String),
        year=1950 + pl.col("item_id") % 70,
    )
    events = pl.DataFrame({"user_id": np.arange(USERS), "history": random.integers(0, items, (USERS, LENGTH)).tolist()})
    columns = {
        "user_id": Categorical(Tags.USER_ID),
        "item_id": Categorical(Tags.ITEM_ID),
        "history": Categorical(Tags.USER, share="item_id"),
    }
    preprocessor = tt.Preprocessor(columns).fit(events, catalogue.select("item_id"))
    schema = preprocessor.schema
    torch.manual_seed(0)
    query = tt.Encoder(schema.select_by_tag(Tags.USER), tt.MLPBlock([128, D], no_activation_last_layer=True))
    candidate = tt.EmbeddingEncoder(schema.select_by_tag(Tags.ITEM_ID), D)
    with torch.no_grad():
        centres = torch.randn(1000, D) * 0.3
        rows = candidate.table.input_dim
        made = centres[torch.randint(0, 1000, (rows,))] + 0.15 * torch.randn(rows, D)
        next(p for p in candidate.parameters() if p.shape == made.shape).copy_(made)
    tt.Retriever(tt.TwoTowerModelV2(query, candidate), preprocessor, catalogue, index=index).save(folder)


def bodies(items: int, number: int, seed: int) -> list[bytes]:
    """Requests, whole, as bytes."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        query = {"user_id": int(random.integers(0, USERS)), "history": random.integers(0, items, LENGTH).tolist()}
        body = json.dumps({"query": query, "k": K}).encode()
        lines = ["POST /recommend HTTP/1.1", "host: localhost", "content-type: application/json"]
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
        made.append(head.encode() + body)
    return made


def receive(connection: socket.socket) -> bytes:
    """The body of one response."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(65536)
    head = data[:end].lower()
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(data.decode())
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    while len(data) < end + 4 + length:
        data += connection.recv(65536)
    return data[end + 4 :]


def load(port: int, clients: int, seconds: float, requests: list[bytes], out: Any) -> None:
    """Each client asks again as soon as it is answered; milliseconds of each answer, and the seconds of all."""
    chosen, times, sent = selectors.DefaultSelector(), [], {}
    for number in range(clients):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        chosen.register(connection, selectors.EVENT_READ)
        connection.sendall(requests[number % len(requests)])
        sent[connection] = time.perf_counter()
    start, asked = time.perf_counter(), clients
    while (now := time.perf_counter()) < start + seconds:
        for key, _ in chosen.select(1.0):
            connection = key.fileobj
            receive(connection)  # type: ignore[arg-type]
            now = time.perf_counter()
            times.append((now - sent[connection]) * 1e3)  # type: ignore[index]
            connection.sendall(requests[asked % len(requests)])  # type: ignore[union-attr]
            sent[connection] = now  # type: ignore[index]
            asked += 1
    out.put((times, now - start))


def measure(port: int, clients: int, seconds: float, requests: list[bytes]) -> tuple[list[float], float]:
    """A round of load, from a process of its own."""
    out: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=load, args=(port, clients, seconds, requests, out))
    process.start()
    found: tuple[list[float], float] = out.get(timeout=seconds + 120)
    process.join()
    return found


def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """A server that answers."""
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended") from None
            time.sleep(0.1)
    raise RuntimeError(f"{command} does not listen")


def ask(port: int, request: bytes) -> Any:
    """One answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        return json.loads(receive(connection))


def main(items: list[int], clients: list[int], kinds: list[str], seconds: float, rounds: int) -> None:
    """Print a table."""
    print("| items | clients | server | requests/s | p50 ms | p99 ms | of FastAPI |\n|---|---|---|---|---|---|---|")
    for count in items:
        with tempfile.TemporaryDirectory() as scratch:
            folders = {kind: Path(scratch) / kind for kind in kinds}
            for kind, folder in folders.items():
                make_bundle(count, kind, folder)
            commands = {"FastAPI + faiss flat": [sys.executable, str(PEER), str(folders[kinds[0]]), "8100"]}
            for number, (kind, folder) in enumerate(folders.items()):
                options = ["--torch-threads", "1", "--no-explorer", "--no-watch", "--port", str(8101 + number)]
                commands[f"twotower serve, {kind}"] = [sys.executable, "-m", "twotower", "serve", str(folder), *options]
            processes = {name: start(command, 8100 + n) for n, (name, command) in enumerate(commands.items())}
            requests = bodies(count, 500, 1)
            try:
                answers = [[ask(8100 + n, r) for r in requests[:20]] for n in range(2)]
                ids = [[[one["id"] for one in answer["results"]] for answer in some] for some in answers]
                assert ids[0] == ids[1], "the servers give different answers"
                compare(count, clients, list(processes), requests, seconds, rounds)
            finally:
                for process in processes.values():
                    process.kill()
                    process.wait()


def compare(
    count: int, clients: list[int], names: list[str], requests: list[bytes], seconds: float, rounds: int
) -> None:
    """Rounds of all servers in turn."""
    for number in clients:
        found: dict[str, list[tuple[list[float], float]]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for place, name in enumerate(names):
                result = measure(8100 + place, number, seconds if turn else 1.0, requests)
                if turn:  # the first round warms up
                    found[name].append(result)
        rates = {name: np.median([len(times) / took for times, took in results]) for name, results in found.items()}
        for name, results in found.items():
            times = np.concatenate([times for times, _ in results])
            p50, p99 = np.quantile(times, [0.5, 0.99])
            share = rates[name] / rates[names[0]]
            print(
                f"| {count:,} | {number} | {name} | {rates[name]:,.0f} | {p50:.2f} | {p99:.1f} | {share:.1f}x |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--kinds", nargs="+", default=["exact"])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.items, given.clients, given.kinds, given.seconds, given.rounds)
