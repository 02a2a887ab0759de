"""Items without a past, in a world whose answer is known: `python benchmarks/new_items.py`, about four minutes.

Users and items belong to five clubs, and nine events of ten stay within the user's. Of an item four tags are known, 40 % of
them of its club. A hundred items have a past. Cold: a hundred more come as the unknown id. New: forty more get ids when the
model is extended, and events of their own on a second day.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.worlds import TaggedItems, tagged_items

import twotower as tt
from twotower import Tags

WARM, NEW, SEEDS = 100, 40, range(5)


def train(
    world: TaggedItems, schema: tt.Schema, seed: int, dims: dict[str, int], drop: float, epochs: int
) -> tt.RetrievalModelV2:
    """Two towers on the ids and, where dims name them, the tags."""
    torch.manual_seed(seed)
    sides = []
    for tag in (Tags.USER, Tags.ITEM):
        side = tt.Schema([c for c in schema.select_by_tag(tag) if c.name in dims])
        dim = {name: dims[name] for name in side.column_names}
        dropout = {"item_id": drop} if tag is Tags.ITEM else {}
        inputs = tt.InputBlockV2(side, categorical=tt.Embeddings(side, dim, id_dropout=dropout))
        sides.append(tt.Encoder(inputs, tt.MLPBlock([32, 16], no_activation_last_layer=True), post=tt.L2Norm()))
    model = tt.TwoTowerModelV2(*sides, logits_temperature=0.1)
    model.compile(learning_rate=0.01)
    model.fit(tt.Dataset(world.train, schema), batch_size=512, epochs=epochs, verbose=False, health_steps=0)
    return model


def scores(model: tt.RetrievalModelV2, world: TaggedItems, ids: Tensor) -> Tensor:
    """(users, items) scores in evaluation mode."""
    with torch.no_grad():
        return model.query(world.users) @ model.candidate({**world.items, "item_id": ids}).T


def right(found: Tensor, fits: Tensor, k: int) -> float:
    """Of the k best, the share of the user's club."""
    return float(fits.gather(1, found.topk(k).indices).float().mean())


def cold(drop: float, seed: int) -> tuple[float, ...]:
    """Of the ten best cold items the share that is right; among the twenty best of all, the share of cold ones."""
    world = tagged_items()
    model = train(world, world.train.schema, seed, {"user_id": 16, "item_id": 64, "tags": 2}, drop, epochs=30)
    found = scores(model, world, world.items["item_id"])
    shown = float((found.topk(20).indices >= WARM).float().mean())
    return right(found[:, WARM:], world.fits[:, WARM:], 10), shown, right(found[:, :WARM], world.fits[:, :WARM], 10)


def new(rule: str, dims: dict[str, int], drop: float, seed: int) -> list[float]:
    """Of the five best new items the share that is right: after extend, and after one and three epochs of the second day."""
    world, later = tagged_items(cold=NEW), tagged_items(warm=WARM + NEW, cold=0, rows=1500).train.to_polars()
    tags = world.items["tags"][torch.from_numpy(later["item_id"].to_numpy() - 2)]  # as the first day knows them
    later = later.with_columns(tags=pl.Series(tags.tolist()))
    larger = world.train.schema["item_id"].with_properties(
        {"domain": {"min": 0, "max": WARM + NEW + 1, "name": "item_id"}}
    )
    schema = world.train.schema + tt.Schema([larger])
    model = train(world, world.train.schema, seed, dims, drop, epochs=20)
    model.extend(schema)
    table = model.candidate.inputs.categorical.table("item_id")
    with torch.no_grad():
        if rule == "as in new tables":
            table.weight[WARM + 2 :].uniform_(-0.05, 0.05)
        if rule == "unknown id":
            table.weight[WARM + 2 :] += table.weight[1] - table.weight[2 : WARM + 2].mean(0)
    found, ids = [], torch.arange(WARM + NEW) + 2
    for epochs in (0, 1, 2):
        if epochs:
            model.fit(tt.Dataset(later, schema), batch_size=512, epochs=epochs, verbose=False, health_steps=0)
        found.append(right(scores(model, world, ids)[:, WARM:], world.fits[:, WARM:], 5))
    return found


def say(name: str, values: list[tuple[float, ...] | list[float]]) -> None:
    mean, deviation = np.mean(values, 0), np.std(values, 0)
    print(f"{name:45s}", " ".join(f"{m:.3f}±{d:.3f}" for m, d in zip(mean, deviation, strict=True)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("cold: right among the 10 best cold, cold among the 20 best, right among the 10 best warm")
    for drop in (0.0, 0.05, 0.1, 0.3, 0.5):
        say(f"id_dropout {drop}", [cold(drop, seed) for seed in SEEDS])
    print("new: right among the 5 best new, after extend, and after 1 and 3 epochs of the second day")
    features = {"user_id": 16, "item_id": 32, "tags": 4}
    for name, dims, drop in (
        ("ids and tags, id_dropout 0.1", features, 0.1),
        ("ids and tags", features, 0.0),
        ("ids alone", {"user_id": 16, "item_id": 16}, 0.0),
    ):
        for rule in ("as in new tables", "unknown id", "mean of the known ids"):
            say(f"{name}: {rule}", [new(rule, dims, drop, seed) for seed in SEEDS])
