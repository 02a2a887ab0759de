"""How fast the library trains: examples per CPU-second through compile and fit, beside plain PyTorch and other libraries.

The workloads stand in `benchmarks/peers/workload.py`.

    python benchmarks/training.py                       # the library and plain PyTorch, in turns, on both workloads
    python benchmarks/training.py --peer "name=command" # other libraries too: see benchmarks/peers
    python benchmarks/training.py --what rows           # a step against the rows of the tables, 10 thousand to 10 million
    python benchmarks/training.py --what batch          # ... against the batch, 1 to 64 thousand
    python benchmarks/training.py --what memory         # memory of the loss and of the towers at batch 65,536
    python benchmarks/training.py --what parts          # where a step's time goes, and the limit of matrix products

Every run is a process of its own, on one thread; contenders take turns, and the best of each one's rounds counts.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from peers import workload as W
from torch import Tensor, nn
from torch.nn import functional as F

import twotower as tt
from twotower import Tags
from twotower.losses import fused_softmax
from twotower.losses.fused import Hidden, Positives

# ---- the contenders


class Ticks(Callback):
    """From the end of one step to the end of the next: loading, loss, update and the loop."""

    def __init__(self) -> None:
        self.clock = W.Clock()

    def on_train_batch_start(self, *_: object) -> None:
        """A batch has been loaded, and a step begins."""
        if self.clock.ticks:
            self.clock.between.append(time.process_time() - self.clock.ticks[-1])

    def on_train_batch_end(self, *_: object) -> None:
        """A step has ended."""
        self.clock.tick()


def made_up(a: argparse.Namespace) -> tt.Dataset:
    """Interactions for all steps, with their schema."""
    columns = W.interactions(a.workload, a.users, a.items, (a.warmup + a.steps + 1) * a.batch, a.occurring)
    schema: list[tt.ColumnSchema] = []
    sides = (("user", a.users, Tags.USER, Tags.USER_ID), ("item", a.items, Tags.ITEM, Tags.ITEM_ID))
    for side, size, tag, own in sides:
        schema.append(_ids(f"{side}_id", size, [tag, own, Tags.CATEGORICAL]))
        schema += [_ids(name, W.CATEGORIES, [tag, Tags.CATEGORICAL]) for name in W.categories(a.workload, side)]
        for name in W.numbers(a.workload, side):
            schema.append(tt.ColumnSchema(name, tags=[tag, Tags.CONTINUOUS], dtype="float32"))
    return tt.Dataset(columns, tt.Schema(schema))


def _ids(name: str, size: int, tags: list[Tags]) -> tt.ColumnSchema:
    domain = {"min": 0, "max": size - 1, "name": name}
    return tt.ColumnSchema(name, tags=tags, dtype="int64", properties={"domain": domain})


def two_towers(data: tt.Dataset, a: argparse.Namespace) -> tt.RetrievalModelV2:
    """The model that a user would write."""
    towers = []
    for tag in (Tags.USER, Tags.ITEM):
        schema = data.schema.select_by_tag(tag)
        if a.workload == "w2":
            towers.append(tt.EmbeddingEncoder(schema, W.ID_WIDTH))
            continue
        widths = {c.name: W.ID_WIDTH if c.name.endswith("_id") else W.CATEGORY_WIDTH for c in schema if c.int_domain}
        block = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema.select_by_name(list(widths)), dim=widths))
        towers.append(tt.Encoder(block, tt.MLPBlock(W.WIDTHS, no_activation_last_layer=True), post=tt.L2Norm()))
    model = tt.TwoTowerModelV2(*towers, logits_temperature=W.TEMPERATURE if a.workload == "w1" else 1.0)
    model.compile(optimizer="adam", learning_rate=1e-3, table_optimizer=a.tables or None)
    return model


def library(a: argparse.Namespace) -> W.Clock:
    """compile and fit."""
    data, ticks = made_up(a), Ticks()
    options = {"precision": "bf16-mixed"} if a.precision == "bf16" else {}
    two_towers(data, a).fit(
        data, batch_size=a.batch, steps_per_epoch=a.warmup + a.steps, callbacks=[ticks], verbose=False,
        drop_last=True, trainer_options=options,
    )  # fmt: skip
    return ticks.clock


class PlainTower(nn.Module):
    """What most people write."""

    def __init__(self, side: str, size: int, workload: str) -> None:
        super().__init__()
        self.side, self.workload = side, workload
        self.names, self.numbers = W.categories(workload, side), W.numbers(workload, side)
        self.id = nn.Embedding(size, W.ID_WIDTH)
        self.tables = nn.ModuleList(nn.Embedding(W.CATEGORIES, W.CATEGORY_WIDTH) for _ in self.names)
        if workload == "w1":
            width = W.ID_WIDTH + len(self.names) * W.CATEGORY_WIDTH + len(self.numbers)
            self.mlp = nn.Sequential(nn.Linear(width, W.WIDTHS[0]), nn.ReLU(), nn.Linear(W.WIDTHS[0], W.WIDTHS[1]))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        x = self.id(batch[f"{self.side}_id"])
        if self.workload == "w2":
            return x
        parts = [x] + [table(batch[name]) for table, name in zip(self.tables, self.names, strict=True)]
        parts += [batch[name][:, None] for name in self.numbers]
        return F.normalize(self.mlp(torch.cat(parts, 1)), dim=1)


def plain_pytorch(a: argparse.Namespace) -> W.Clock:
    """Dense Adam, B x B logits with log Q, accidental hits masked: the same loss."""
    columns = made_up(a).batch()
    query, candidate = PlainTower("user", a.users, a.workload), PlainTower("item", a.items, a.workload)
    optimizer = torch.optim.Adam([*query.parameters(), *candidate.parameters()], lr=1e-3)
    log_q = torch.from_numpy(W.shares(columns["item_id"].numpy(), a.items)).log()
    order = torch.randperm(len(columns["item_id"]))
    temperature = W.TEMPERATURE if a.workload == "w1" else 1.0
    clock = W.Clock()
    for step in range(a.warmup + a.steps):
        rows = order[step * a.batch : (step + 1) * a.batch]
        batch = {name: column[rows] for name, column in columns.items()}
        items = batch["item_id"]
        logits = query(batch) @ candidate(batch).T / temperature - log_q[items][None]
        hit = (items[:, None] == items[None]).fill_diagonal_(False)
        loss = F.cross_entropy(logits.masked_fill(hit, -torch.inf), torch.arange(a.batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick(loss.item())
    return clock


CONTENDERS: dict[str, Callable[[argparse.Namespace], W.Clock]] = {
    "twotower": library,
    "pytorch": plain_pytorch,
}


# ---- the questions


def run(command: list[str]) -> dict[str, float]:
    """The JSON line that a process prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def own(name: str, **options: object) -> list[str]:
    """The command of one contender of this file."""
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, __file__, "--contender", name, *given]


def speed(a: argparse.Namespace) -> list[str]:
    """Everybody on one workload, round after round."""
    shared = {"workload": a.workload, "users": a.users, "items": a.items, "batch": a.batch}
    commands = {
        "twotower": own("twotower", steps=a.steps, warmup=a.warmup, precision=a.precision, **shared),
        "plain PyTorch": own("pytorch", steps=a.peer_steps, warmup=2, **shared),
    }
    flags = [word for key, value in shared.items() for word in (f"--{key}", str(value))]
    for peer in a.peer:
        name, command = peer.split("=", 1)
        commands[name] = [*shlex.split(command), *flags, "--steps", str(a.peer_steps), "--warmup", "2"]
    best: dict[str, dict[str, float]] = {}
    for _ in range(a.rounds):
        for name, command in commands.items():
            line = run(command)
            print(name, line, file=sys.stderr, flush=True)
            if name not in best or line["ex_s_cpu"] > best[name]["ex_s_cpu"]:
                best[name] = line
    first = best["twotower"]["ex_s_cpu"]
    rows = [
        f"| {name} | {line['ex_s_cpu']:,.0f} | {line['step_ms']:,.0f} | {first / line['ex_s_cpu']:.1f} | "
        f"{line['peak_mb']:,.0f} |"
        for name, line in sorted(best.items(), key=lambda pair: -pair[1]["ex_s_cpu"])
    ]
    return [
        f"{a.workload}: {a.users:,} users x {a.items:,} items, batch {a.batch:,}, best of {a.rounds} rounds",
        "",
        "| | examples per CPU-second | ms a step | twotower is faster by | peak MB |",
        "|---|---|---|---|---|",
        *rows,
    ]


def growth(a: argparse.Namespace, name: str) -> list[str]:
    """A step against the rows of the tables, or against the batch."""
    if name == "rows":
        cases = [{"users": n, "items": n, "batch": a.batch} for n in (10_000, 100_000, 1_000_000, 10_000_000)]
        # the same ten thousand ids occur, scattered over ever larger tables: only the tables grow
        cases = [case | {"occurring": 10_000, "tables": a.tables or "lazy_adam"} for case in cases]
    else:
        cases = [{"users": a.users, "items": a.items, "batch": 2**n} for n in range(10, 17)]
    best = [float("inf")] * len(cases)
    memory = [0.0] * len(cases)
    for _ in range(a.rounds):
        for place, case in enumerate(cases):
            line = run(own("twotower", steps=a.steps, warmup=a.warmup, workload=a.workload, **case))
            print(case, line, file=sys.stderr, flush=True)
            best[place], memory[place] = min(best[place], line["step_ms"]), line["peak_mb"]
    rows = [
        f"| {case['users']:,} | {case['batch']:,} | {ms:,.1f} | {1e3 * case['batch'] / ms:,.0f} | {peak:,.0f} |"
        for case, ms, peak in zip(cases, best, memory, strict=True)
    ]
    flat = f"; dearest over cheapest step: {max(best) / min(best):.2f}" if name == "rows" else ""
    return [
        f"{a.workload}, a step against {name}{flat}",
        "",
        "| rows of each id table | batch | ms a step | examples per CPU-second | peak MB |",
        "|---|---|---|---|---|",
        *rows,
    ]


def memory(a: argparse.Namespace) -> list[str]:
    """What the fused loss, and towers encoded in parts, take above what is there before; each in a process of its own."""
    size, width = 65_536, 128
    rows = []
    for name in MEMORY:
        line = run([sys.executable, __file__, "--contender", "memory", "--variant", name])
        rows.append(f"| {name} | {line['above_mb']:,.0f} | {line['seconds']:.1f} |")
    return [
        f"Memory above what was there before, batch {size:,}, D = {width}, nothing repeats",
        "",
        "| | MB | CPU seconds |",
        "|---|---|---|",
        *rows,
        f"| (the {size:,} x {size:,} logits alone would take) | {size * size * 4 / 2**20:,.0f} | |",
    ]


def fused_at_65536() -> Callable[[], None]:
    """Value and gradients of the loss alone."""
    size, width = 65_536, 128
    query = F.normalize(torch.randn(size, width), dim=1).mul_(20).requires_grad_()
    pool = F.normalize(torch.randn(size, width), dim=1).requires_grad_()
    every = torch.arange(size)

    def step() -> None:
        positives = Positives(pool, every, every)
        weight = torch.full((size,), 1 / size)
        fused_softmax(query, positives, pool, torch.zeros(size), Hidden(every, every), weight).backward()

    return step


def deep_towers(encode_rows: int | None) -> Callable[[], None]:
    """A step of two towers whose activations are larger than the loss."""
    size, width = 65_536, 128
    columns = {"user_id": np.arange(size), "item_id": np.arange(size)}
    own_ids = (("user_id", Tags.USER_ID), ("item_id", Tags.ITEM_ID))
    schema = tt.Schema([_ids(name, size, [tag, Tags.CATEGORICAL]) for name, tag in own_ids])
    data = tt.Dataset(columns, schema)
    towers = [
        tt.Encoder(
            tt.InputBlockV2(schema.select_by_tag(tag), categorical=tt.Embeddings(schema.select_by_tag(tag), dim=width)),
            tt.MLPBlock([512] * 4 + [width], no_activation_last_layer=True), post=tt.L2Norm(),
        )
        for _, tag in own_ids
    ]  # fmt: skip
    model = tt.TwoTowerModelV2(*towers, logits_temperature=0.05).adapt(data)
    model.compile(encode_rows=encode_rows)
    model.compiled.make_optimizer(model)
    batch = data.batch()
    return lambda: model.loss(batch).backward()


MEMORY: dict[str, Callable[[], Callable[[], None]]] = {
    "the loss": fused_at_65536,
    "a step of towers [512, 512, 512, 512, 128], all rows at once": lambda: deep_towers(None),
    "the same with encode_rows=8192": lambda: deep_towers(8192),
}


def measure_memory(name: str) -> None:
    """Print the peak of one case above the memory before it."""
    step = MEMORY[name]()
    torch.randn(64, 64) @ torch.randn(64, 64)  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), time.process_time()
    step()
    print(json.dumps({"above_mb": _status("VmHWM") - before, "seconds": time.process_time() - started}))


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def parts(a: argparse.Namespace) -> list[str]:
    """Products that the step cannot do without, at this machine's rate; the step alone; the step with loop and loading."""
    shared = {"workload": a.workload, "users": a.users, "items": a.items, "batch": a.batch, "steps": a.steps}
    line, rate = {"step_ms": float("inf")}, 0.0
    for _ in range(a.rounds):
        rate = max(rate, matrix_rate())
        line = min(line, run(own("twotower", **shared)), key=lambda found: found["step_ms"])
    fit_ms, between_ms = line["step_ms"], line["between_ms"]
    columns = W.interactions(a.workload, a.users, a.items, (a.steps + 1) * a.batch)
    distinct = {
        side: statistics.mean(
            len(np.unique(columns[f"{side}_id"][n * a.batch : (n + 1) * a.batch])) for n in range(a.steps)
        )
        for side in W.SIDES
    }
    width = W.WIDTHS[-1] if a.workload == "w1" else W.ID_WIDTH
    loss = 3 * 2 * distinct["user"] * distinct["item"] * width
    inputs = W.ID_WIDTH + 3 * W.CATEGORY_WIDTH + 2
    weights = inputs * W.WIDTHS[0] + W.WIDTHS[0] * W.WIDTHS[1]
    towers = 3 * 2 * sum(distinct.values()) * weights if a.workload == "w1" else 0.0
    least = 1e3 * (loss + towers) / rate
    return [
        f"{a.workload}, batch {a.batch:,}: {distinct['user']:,.0f} distinct queries and {distinct['item']:,.0f} candidates "
        f"of {a.batch:,} rows",
        "",
        "| | ms | of the step through fit |",
        "|---|---|---|",
        f"| matrix products at this machine's limit, {rate / 1e9:.0f} GFLOP/s | {least:.1f} | {least / fit_ms:.0%} |",
        f"| &nbsp; of the loss, {loss / 1e9:.1f} GFLOP | {1e3 * loss / rate:.1f} | {1e3 * loss / rate / fit_ms:.0%} |",
        f"| &nbsp; of the towers, {towers / 1e9:.1f} GFLOP | {1e3 * towers / rate:.1f} | {1e3 * towers / rate / fit_ms:.0%} |",
        f"| the rest of the step: products below the limit, exponentials, masks, lookups, update | "
        f"{fit_ms - between_ms - least:.1f} | {(fit_ms - between_ms - least) / fit_ms:.0%} |",
        f"| between two steps: the loop and the loading of data | {between_ms:.1f} | {between_ms / fit_ms:.1%} |",
        f"| a step through fit | {fit_ms:.1f} | |",
    ]


def matrix_rate(size: int = 2048) -> float:
    """Floating-point operations per CPU-second of the product of two large square matrices, best of 20."""
    torch.set_num_threads(1)
    one, other, out = (torch.randn(size, size) for _ in range(3))
    seconds = []
    for _ in range(20):
        started = time.process_time()
        torch.mm(one, other, out=out)
        seconds.append(time.process_time() - started)
    return 2 * size**3 / min(seconds)


# ---- the command line


def parser() -> argparse.ArgumentParser:
    """The workload's options and this script's."""
    p = W.parser(__doc__)
    p.add_argument("--what", choices=["speed", "rows", "batch", "memory", "parts"], default="speed")
    p.add_argument("--contender", choices=[*CONTENDERS, "memory"], help="run this one alone, here")
    p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--tables", default="", help="table_optimizer of compile")
    p.add_argument("--occurring", type=int, default=None, help="ids of each side that occur at all; any by default")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--peer", action="append", default=[], help="name=command")
    p.add_argument("--peer-steps", type=int, default=6, help="steps of everybody else, after 2 to warm up")
    p.add_argument("--out", type=Path, help="append the results here, as Markdown")
    return p


def machine() -> str:
    """What it ran on."""
    able = [name for name, value in torch.cpu.get_capabilities().items() if value is True and "avx" in name]
    return (
        f"{datetime.now(timezone.utc):%Y-%m-%d}. twotower {tt.__version__}, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}, one thread of {os.cpu_count()} on {platform.machine()} ({', '.join(able)})."
    )


def main() -> None:
    """Answer one question, or run one contender."""
    a = parser().parse_args()
    if a.contender:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        if a.contender == "memory":
            measure_memory(a.variant)
        else:
            CONTENDERS[a.contender](a).report(a)
        return
    answers = {"speed": speed, "memory": memory, "parts": parts}
    text = answers[a.what](a) if a.what in answers else growth(a, a.what)
    whole = "\n".join([*text, "", machine(), "", ""])
    print(whole)
    if a.out:
        with a.out.open("a") as file:
            file.write(whole)


if __name__ == "__main__":
    main()
