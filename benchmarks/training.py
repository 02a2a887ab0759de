"""How fast the library trains: examples per CPU-second through compile and fit, beside plain PyTorch and other libraries.

Two workloads with ids drawn by a Zipf law and side features that follow from the id:
  w1: two towers of an id (64 wide), three categories (1,000 values, 16 wide), two numbers, MLP 256-128, L2 norm, T = .05;
  w2: ids only, 64 wide.

    python benchmarks/training.py                          # the library and plain PyTorch, in turns
    python benchmarks/training.py --what rows              # cost of a step against rows of the tables
    python benchmarks/training.py --what batch             # ... against the batch
    python benchmarks/training.py --what memory            # peak memory of the loss at batch 65,536
    python benchmarks/training.py --peer "name=command"    # other libraries: a command that prints a JSON line with ex_s_cpu

Every run is a process of its own, one thread; contenders take turns, and the best of each one's rounds counts.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

import twotower as tt
from twotower import Tags

CATEGORIES, CATEGORY_WIDTH, ID_WIDTH, WIDTHS, TEMPERATURE = 1000, 16, 64, [256, 128], 0.05


# ---- the workload


def zipf_ids(rng: np.random.Generator, size: int, rows: int, exponent: float = 1.05) -> np.ndarray:
    """Ids 0 to size - 1 with weights rank ** -exponent, the ranks scattered over the ids."""
    share = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    rank = np.searchsorted(share / share[-1], rng.random(rows)).clip(max=size - 1)
    return rng.permutation(size)[rank]


def made_up(workload: str, users: int, items: int, rows: int) -> tt.Dataset:
    """Interactions with their schema."""
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {}
    schema: list[tt.ColumnSchema] = []
    for side, size, tag, own in (("user", users, Tags.USER, Tags.USER_ID), ("item", items, Tags.ITEM, Tags.ITEM_ID)):
        ids = zipf_ids(rng, size, rows)
        columns[f"{side}_id"] = ids
        schema.append(_ids(f"{side}_id", size, [tag, own, Tags.CATEGORICAL]))
        for n in range(3 if workload == "w1" else 0):
            columns[f"{side}_c{n}"] = rng.integers(0, CATEGORIES, size)[ids]
            schema.append(_ids(f"{side}_c{n}", CATEGORIES, [tag, Tags.CATEGORICAL]))
        for n in range(2 if workload == "w1" else 0):
            columns[f"{side}_x{n}"] = rng.standard_normal(size, dtype=np.float32)[ids]
            schema.append(tt.ColumnSchema(f"{side}_x{n}", tags=[tag, Tags.CONTINUOUS], dtype="float32"))
    return tt.Dataset(columns, tt.Schema(schema))


def _ids(name: str, size: int, tags: list[Tags]) -> tt.ColumnSchema:
    domain = {"min": 0, "max": size - 1, "name": name}
    return tt.ColumnSchema(name, tags=tags, dtype="int64", properties={"domain": domain})


# ---- contenders, each in a process of its own


class Clock(Callback):
    """CPU seconds of every step, from the end of one to the end of the next: loading, loss, update and the loop."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ticks.append(time.process_time())


def library(a: argparse.Namespace) -> list[float]:
    """The model that a user would write, trained with fit."""
    data = made_up(a.workload, a.users, a.items, a.rows or (a.warmup + a.steps + 1) * a.batch)
    towers = []
    for tag in (Tags.USER, Tags.ITEM):
        schema = data.schema.select_by_tag(tag)
        if a.workload == "w2":
            towers.append(tt.EmbeddingEncoder(schema, ID_WIDTH))
            continue
        widths = {c.name: ID_WIDTH if c.cardinality > CATEGORIES else CATEGORY_WIDTH for c in schema if c.int_domain}
        categories = schema.select_by_name(list(widths))
        block = tt.InputBlockV2(schema, categorical=tt.Embeddings(categories, dim=widths))
        towers.append(tt.Encoder(block, tt.MLPBlock(WIDTHS, no_activation_last_layer=True), post=tt.L2Norm()))
    model = tt.TwoTowerModelV2(*towers, logits_temperature=TEMPERATURE if a.workload == "w1" else 1.0)
    model.compile(optimizer="adam", learning_rate=1e-3, table_optimizer=a.tables or None)
    clock = Clock()
    started = time.process_time()
    options = {"precision": "bf16-mixed"} if a.precision == "bf16" else {}
    if a.profile:
        profile(model, data, a)
    model.fit(
        data, batch_size=a.batch, steps_per_epoch=a.warmup + a.steps, callbacks=[clock], verbose=False,
        drop_last=True, trainer_options=options,
    )  # fmt: skip
    if a.profile:
        print(f"before the first step: {clock.ticks[0] - started:.1f} s", file=sys.stderr)
    return np.diff(clock.ticks)[a.warmup - 1 :].tolist()


def profile(model: tt.RetrievalModelV2, data: tt.Dataset, a: argparse.Namespace) -> None:
    """Operators by their own time, to standard error."""
    model.adapt(data)
    optimizer = model.compiled.make_optimizer(model)
    loader = iter(tt.Loader(data, a.batch, schema=model.input_schema))
    with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
        for step in range(12):
            if step == 2:
                profiler = torch.profiler.profile(with_stack=False)
                profiler.__enter__()
            loss = model.loss(next(loader))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    profiler.__exit__(None, None, None)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=40)
    print(table, file=sys.stderr)


class PlainTower(nn.Module):
    """What most people write."""

    def __init__(self, side: str, size: int, workload: str) -> None:
        super().__init__()
        self.side, self.workload = side, workload
        self.id = nn.Embedding(size, ID_WIDTH)
        if workload == "w1":
            self.categories = nn.ModuleList(nn.Embedding(CATEGORIES, CATEGORY_WIDTH) for _ in range(3))
            width = ID_WIDTH + 3 * CATEGORY_WIDTH + 2
            self.mlp = nn.Sequential(nn.Linear(width, WIDTHS[0]), nn.ReLU(), nn.Linear(WIDTHS[0], WIDTHS[1]))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.id(batch[f"{self.side}_id"])
        if self.workload == "w2":
            return x
        parts = [x] + [table(batch[f"{self.side}_c{n}"]) for n, table in enumerate(self.categories)]
        parts += [batch[f"{self.side}_x{n}"][:, None] for n in range(2)]
        return F.normalize(self.mlp(torch.cat(parts, 1)), dim=1)


def plain_pytorch(a: argparse.Namespace) -> list[float]:
    """Dense Adam, B x B logits with log Q, accidental hits masked: the same loss."""
    data = made_up(a.workload, a.users, a.items, (a.warmup + a.steps + 1) * a.batch)
    columns = data.batch()
    query, candidate = PlainTower("user", a.users, a.workload), PlainTower("item", a.items, a.workload)
    optimizer = torch.optim.Adam([*query.parameters(), *candidate.parameters()], lr=1e-3)
    counts = torch.bincount(columns["item_id"], minlength=a.items)
    log_q = torch.log(counts / counts.sum())
    order = torch.randperm(len(columns["item_id"]))
    temperature = TEMPERATURE if a.workload == "w1" else 1.0
    ticks = []
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
        ticks.append(time.process_time())
    return np.diff(ticks)[a.warmup - 1 :].tolist()


CONTENDERS: dict[str, Callable[[argparse.Namespace], list[float]]] = {"twotower": library, "pytorch": plain_pytorch}


def contend(a: argparse.Namespace) -> None:
    """Run one contender here and print its line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = CONTENDERS[a.contender](a)
    step = statistics.median(seconds)
    print(json.dumps({"ex_s_cpu": round(a.batch / step), "step_ms": round(1e3 * step, 2), "peak_mb": round(peak_mb())}))


def peak_mb() -> float:
    """The largest resident size so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--what", choices=["speed", "rows", "batch", "memory"], default="speed")
    p.add_argument("--contender", choices=CONTENDERS, help="run this one alone, here")
    p.add_argument("--workload", choices=["w1", "w2"], default="w1")
    p.add_argument("--users", type=int, default=1_000_000)
    p.add_argument("--items", type=int, default=1_000_000)
    p.add_argument("--rows", type=int, default=0, help="interactions; as many as the steps need by default")
    p.add_argument("--batch", type=int, default=8192)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--warmup", type=int, default=4)
    p.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    p.add_argument("--tables", default="", help="table_optimizer of compile")
    p.add_argument("--profile", action="store_true")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--peer", action="append", default=[], help="name=command")
    p.add_argument("--out", type=Path, help="append the results here, as Markdown")
    return p


if __name__ == "__main__":
    arguments = parser().parse_args()
    if arguments.contender:
        contend(arguments)
