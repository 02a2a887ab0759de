"""What history encoders cost on lists without padding, against the padded form; and how long histories take to build.

Forward and backward of 1,024 lists whose lengths follow Zipf's law (P(l) ~ 1 / l) up to 50 and 200, width 64. "Padded" is
the same encoder on lists that were all filled up to the longest, and PyTorch's own modules with their masks. Memory is
what autograd keeps for the backward pass. About four minutes.

    python benchmarks/history.py [--what speed | histories | quality]
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import twotower as tt
from twotower import Tags
from twotower.blocks.history import groups

ROWS, DIM, ROUNDS = 1024, 64, 5


def lists(longest: int) -> tt.Ragged:
    weight = 1 / torch.arange(1, longest + 1, dtype=torch.float64)
    lengths = torch.multinomial(weight, ROWS, True, generator=torch.Generator().manual_seed(0)) + 1
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return tt.Ragged(torch.randn(int(offsets[-1]), DIM, requires_grad=True), offsets)


def milliseconds(work: Callable[[], Tensor]) -> float:
    """CPU time of forward and backward, the median of some rounds after a first."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        work().backward()
        times.append(time.process_time() - start)
    return 1000 * sorted(times[1:])[ROUNDS // 2]


def megabytes(work: Callable[[], Tensor]) -> float:
    """What is kept for the backward pass, each storage once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**20


def masked_transformer(vectors: Tensor, lengths: Tensor, longest: int) -> Callable[[], Tensor]:
    layer = nn.TransformerEncoderLayer(DIM, 2, DIM, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    causal, beyond = torch.ones(longest, longest).triu(1).bool(), torch.arange(longest) >= lengths[:, None]
    return lambda: encoder(vectors, mask=causal, src_key_padding_mask=beyond).sum()


def encoders(longest: int) -> None:
    ragged = lists(longest)
    lengths = ragged.lengths()
    full = tt.Ragged(torch.randn(ROWS * longest, DIM, requires_grad=True), torch.arange(ROWS + 1) * longest)
    padded = full.values.unflatten(0, (ROWS, longest))
    slots = len(groups.group_by_length(ragged).source)
    print(f"\n## Lists of 1 to {longest}: {len(ragged.values):,} items in {slots:,} slots; padded {ROWS * longest:,}\n")
    print("| | last state, ms | every state, ms | every state, MB kept |\n|---|---|---|---|")
    transformer, gru = tt.HistoryTransformer(DIM, 2, 2, max_length=longest), tt.HistoryGRU(DIM)
    dropping = tt.HistoryTransformer(DIM, 2, 2, max_length=longest, dropout=0.2)
    elsewhere = tt.HistoryTransformer(DIM, 2, 2, max_length=longest, dropout=0.2, attention_dropout=0.0)
    bag = tt.HistoryBag(DIM, weights="decay")
    plain = nn.GRU(DIM, DIM, batch_first=True)

    def packed() -> PackedSequence:
        return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)

    for name, encoder, held in (
        ("transformer", transformer, ragged),
        ("transformer, padded", transformer, full),
        ("transformer with dropout", dropping, ragged),
        ("transformer with dropout, none of the attention", elsewhere, ragged),
        ("gru", gru, ragged),
        ("bag with decay", bag, ragged),
        ("bag with decay, padded", bag, full),
    ):
        last, every = (lambda e=encoder, h=held: e(h).sum()), (lambda e=encoder, h=held: e.states(h).values.sum())
        print(f"| {name} | {milliseconds(last):.0f} | {milliseconds(every):.0f} | {megabytes(every):.0f} |")
    for name, work in (
        ("torch.nn.TransformerEncoder, padded and masked", masked_transformer(padded, lengths, longest)),
        ("torch.nn.GRU, padded", lambda: plain(padded)[0].sum()),
        ("torch.nn.GRU, packed", lambda: plain(packed())[0].data.sum()),
    ):
        print(f"| {name} | | {milliseconds(work):.0f} | {megabytes(work):.0f} |", flush=True)


def grouping(longest: int) -> None:
    ragged, transformer = lists(longest), tt.HistoryTransformer(DIM, 2, 2, max_length=longest)
    start = time.process_time()
    for _ in range(20):
        groups.group_by_length(ragged)
    own = (time.process_time() - start) / 20 * 1000
    print(f"\n## Steps for each doubling of the length, lists up to {longest} (grouping itself: {own:.1f} ms)\n")
    print("| steps | groups | empty slots | every state, ms |\n|---|---|---|---|")
    for steps in (1, 2, 4, 8, 1000):
        grouped = partial(groups.group_by_length, steps=steps)
        made = grouped(ragged)
        empty = 1 - len(ragged.values) / len(made.source)
        with patch("twotower.blocks.history.transformer.group_by_length", grouped):
            took = milliseconds(lambda: transformer.states(ragged).values.sum())
        name = "each length alone" if steps == 1000 else steps
        print(f"| {name} | {len(made.shapes)} | {empty:.0%} | {took:.0f} |", flush=True)


def histories() -> None:
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, 100_001)
    events = pl.DataFrame(
        {
            "user": rng.choice(100_000, 1_000_000, p=weight / weight.sum()),
            "item": rng.integers(0, 50_000, 1_000_000),
            "time": rng.integers(0, 10**7, 1_000_000),
        }
    )
    print("\n## build_histories, 1,000,000 events of 100,000 Zipf users\n")
    print("| items | length | items written | seconds | peak MB of the process so far |\n|---|---|---|---|---|")
    for kind in ("whole numbers", "strings"):
        if kind == "strings":
            events = events.with_columns(item=pl.format("item {}", "item"))
        for length in (20, 50):
            start = time.perf_counter()
            out = tt.build_histories(events, user="user", item="item", time="time", length=length)
            took = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {kind} | {length} | {out['history'].list.len().sum():,} | {took:.1f} | {peak:,.0f} |", flush=True)


def quality(seeds: int = 1) -> None:
    """The quickstart's task with other encoders of the history, and without the time of asking."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import quickstart

    ready = quickstart.prepare(tt.load_movietweetings())
    events = ready.train.to_polars()
    # the last row of each user, and every 21st before it: histories of 20 films and one of its own, each event once
    back = pl.col("timestamp").rank("ordinal", descending=True).over("user_id") - 1
    once = tt.Dataset(events.filter(back % 21 == 0), ready.train.schema)
    print("\n## MovieTweetings-100K, Recall@20 and CPU seconds of training, seeds:", seeds, "\n")
    print("| time of asking | history | own film | every position | every position, history known |")
    print("|---|---|---|---|---|")
    for name, make, timed in (
        ("bag", lambda: tt.HistoryBag(64), True),
        ("bag", lambda: tt.HistoryBag(64), False),
        ("bag with decay", lambda: tt.HistoryBag(64, weights="decay"), False),
        ("gru", lambda: tt.HistoryGRU(64), False),
        ("transformer", lambda: tt.HistoryTransformer(64, 1, 2, max_length=20), False),
    ):
        cells = []
        for every, known in ((False, ()), (True, ()), (True, ("history",))):
            model = partial(model_for, ready.preprocessor.schema, make, timed, every, known)
            found = [trained(model, once if every else ready.train, ready, seed) for seed in range(seeds)]
            cells.append("{:.3f}, {:.0f} s".format(*np.mean(found, axis=0)))
        print(f"| {'yes' if timed else 'no'} | {name} | {' | '.join(cells)} |", flush=True)


def model_for(
    schema: tt.Schema, make: Callable[[], tt.HistoryEncoder], timed: bool, every: bool, known: tuple[str, ...]
) -> tt.RetrievalModelV2:
    read = schema if timed else schema.excluding_by_name(["asked_at"])
    embeddings = tt.Embeddings(read.select_by_tag(Tags.CATEGORICAL), dim=64, sequence_combiner={"history": make()})
    inputs = tt.InputBlockV2(read, categorical=embeddings)
    query, candidate = (
        tt.Encoder(inputs.select_by_tag(side), tt.MLPBlock([128, 64], no_activation_last_layer=True), post=tt.L2Norm())
        for side in (Tags.USER, Tags.ITEM)
    )
    item = schema[["item_id"]]
    output = tt.ContrastiveOutput(tt.DotProduct(), schema=item, logits_temperature=0.07, known_positives=known)
    model = tt.TwoTowerModelV2(query, candidate, outputs=output)
    model.compile(learning_rate=0.002, metrics=["recall_at_20"], every_position="history" if every else None)
    return model


def trained(make: Callable[[], tt.RetrievalModelV2], train: tt.Dataset, ready: Any, seed: int) -> tuple[float, float]:
    """Recall@20, and the CPU seconds of four epochs of about 1,000 positives a step."""
    torch.manual_seed(seed)
    model, start = make(), time.process_time()
    size = 1024 if model.compiled.every_position is None else 100
    model.fit(train, epochs=4, batch_size=size, catalog=ready.films, seed=seed, verbose=False, health_steps=0)
    took = time.process_time() - start
    return model.evaluate(ready.test, seen=ready.train, group="user_id")["recall_at_20"], took


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", choices=["speed", "histories", "quality"], default="speed")
    torch.set_num_threads(1)
    what = parser.parse_args().what
    if what == "quality":
        quality()
    elif what == "histories":
        histories()
    else:
        for longest in (50, 200):
            encoders(longest)
            grouping(longest)
