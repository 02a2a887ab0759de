"""Growth: a trained model takes in new ids, forgets nothing, and learns them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from twotower import Tags
from twotower.optimizers import LARGE_TABLE_ROWS
from twotower.saving import describe

CLUBS, USERS = 5, 100


def ids(name: str, largest: int, tag: Tags, **given: Any) -> tt.ColumnSchema:
    domain = {"min": 0, "max": largest, "name": given.pop("domain", name)}
    return tt.ColumnSchema(
        name, [tag, Tags.CATEGORICAL], "int64", properties={"domain": domain, "unknown_id": 1}, **given
    )


def schema(items: int, users: int = USERS) -> tt.Schema:
    """A history and the item id share a table; the schema of so many known users and items."""
    return tt.Schema(
        [
            ids("user_id", users + 1, Tags.USER_ID),
            ids("history", items + 1, Tags.USER, domain="item_id", is_list=True),
            ids("item_id", items + 1, Tags.ITEM_ID),
            ids("club", CLUBS + 1, Tags.ITEM),
            tt.ColumnSchema("size", [Tags.ITEM, Tags.CONTINUOUS], "float32"),
        ]
    )


def events(items: int, rows: int = 3000, first: int = 0, seed: int = 0) -> tt.Dataset:
    """Users and items belong to clubs; every event is within one. Items from the first-th on."""
    rng = np.random.default_rng(seed)
    user = rng.integers(USERS, size=rows)
    item = user % CLUBS + CLUBS * rng.integers(first // CLUBS, items // CLUBS, size=rows)
    history = user[:, None] % CLUBS + CLUBS * rng.integers(items // CLUBS, size=(rows, 3))
    return tt.Dataset(
        {
            "user_id": user + 2,
            "history": (history + 2).tolist(),
            "item_id": item + 2,
            "club": item % CLUBS + 2,
            "size": (item / items).astype(np.float32) * 0,
        },
        schema(items),
    )


def catalog(items: int) -> tt.Dataset:
    item = np.arange(items)
    columns = {"item_id": item + 2, "club": item % CLUBS + 2, "size": np.zeros(items, dtype=np.float32)}
    return tt.Dataset(columns, schema(items)[["item_id", "club", "size"]])


def build(given: tt.Schema, samplers: Any = "in-batch", **options: Any) -> tt.RetrievalModelV2:
    inputs = tt.InputBlockV2(
        given,
        categorical=tt.Embeddings(given.select_by_tag(Tags.CATEGORICAL), dim=8),
        continuous=tt.ContinuousEmbedding(given.select_by_tag(Tags.CONTINUOUS), dim=8),
    )
    query, candidate = (
        tt.Encoder(inputs.select_by_tag(tag), tt.MLPBlock([16], no_activation_last_layer=True), post=tt.L2Norm())
        for tag in (Tags.USER, Tags.ITEM)
    )
    output = tt.ContrastiveOutput(tt.DotProduct(), samplers, schema=given, logits_temperature=0.1)
    model = tt.TwoTowerModelV2(query, candidate, outputs=output)
    model.compile(learning_rate=0.01, **options)
    return model


def fitted(items: int = 40, epochs: int = 2, **options: Any) -> tt.RetrievalModelV2:
    torch.manual_seed(0)
    model = build(schema(items), **options)
    model.fit(events(items), batch_size=256, epochs=epochs, verbose=False, health_steps=0)
    return model


def vectors(model: tt.RetrievalModelV2, items: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    batch = events(items).head(200).batch()
    with torch.no_grad():
        return model.query(batch), model.candidate(catalog(items).batch())


def test_old_ids_keep_their_vectors_bit_for_bit() -> None:
    model = fitted()
    table = model.query.inputs.categorical.table("history")
    before, rows = vectors(model), table.weight.clone()
    assert model.extend(schema(60, users=150)) is model
    assert all(torch.equal(a, b) for a, b in zip(vectors(model), before, strict=True))
    assert torch.equal(table.weight[:42], rows)
    assert table.weight.shape == (62, 8)
    assert model.candidate.inputs.categorical.table("item_id") is table  # shared, and grown once
    assert model.query.inputs.categorical.table("user_id").input_dim == 152
    known, new = rows[2:], table.weight[42:]
    assert ((new - known.mean(0)).abs() <= 0.06 * known.std(0)).all()  # 160 normal numbers of .01 deviations
    assert len(new.unique(dim=0)) == 20


def test_an_extended_model_is_described_as_one_of_the_extended_schema(tmp_path: Path) -> None:
    model = fitted(samplers=["in-batch", tt.PopularityBasedSamplerV2(max_id=41, min_id=2, max_num_samples=5)])
    model.extend(schema(60, users=150))
    sampler = tt.PopularityBasedSamplerV2(max_id=61, min_id=2, max_num_samples=5)
    built = build(schema(60, users=150), ["in-batch", sampler])
    assert describe(model) == describe(built)
    assert model.input_schema == built.input_schema
    assert torch.equal(model.outputs[0].negative_samplers[1].log_p, sampler.log_p)
    model.save(tmp_path / "model", include_optimizer=True)
    again = tt.RetrievalModelV2.load(tmp_path / "model")
    assert describe(again) == describe(built)
    assert all(torch.equal(a, b) for a, b in zip(vectors(again), vectors(model), strict=True))
    losses = [m.fit(events(60), batch_size=256, verbose=False, health_steps=0).history["loss"] for m in (model, again)]
    assert losses[0] == losses[1]


def test_a_domain_that_does_not_grow_changes_nothing() -> None:
    model, state = fitted(), None
    text, weights, state = describe(model), copy.deepcopy(model.state_dict()), copy.deepcopy(model.optimizer_state)
    model.extend(schema(40))
    assert describe(model) == text
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items() if "extra" not in name)
    assert same_state(model.optimizer_state, state)


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same_state(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize(
    "options",
    [{}, {"table_optimizer": "lazy_adam"}, {"table_optimizer": "rowwise_adagrad"}, {"optimizer": "adagrad"}],
    ids=str,
)
def test_training_goes_on_from_the_last_step(options: dict[str, Any]) -> None:
    """On old ids alone, a grown model learns what one that did not grow learns: its moments are those of the old rows."""
    grown, other = fitted(**options), fitted(**options)
    assert all(torch.equal(a, b) for a, b in zip(vectors(grown), vectors(other), strict=True))
    grown.extend(schema(60))
    state = grown.optimizer_state["state"]
    held = [v for values in state.values() for v in values.values() if isinstance(v, torch.Tensor) and len(v.shape)]
    assert any(len(v) == 62 and v[:42].any() and not v[42:].any() for v in held)
    for model, items in ((grown, 60), (other, 40)):
        old = events(40, seed=1)
        data = tt.Dataset(old, schema(items))
        model.fit(data, batch_size=256, verbose=False, health_steps=0)
    assert all(torch.equal(a, b) for a, b in zip(vectors(grown), vectors(other), strict=True))


def test_a_table_that_becomes_large_goes_over_to_row_updates_with_its_moments() -> None:
    grown, other = fitted(), fitted()
    large = schema(LARGE_TABLE_ROWS)
    grown.extend(large)
    for model, given in ((grown, large), (other, schema(40))):
        model.fit(tt.Dataset(events(40, seed=1), given), batch_size=256, verbose=False, health_steps=0)
    table = grown.query.inputs.categorical.table("history").weight
    assert len(table) == LARGE_TABLE_ROWS + 2
    assert len(grown.optimizer_state["param_groups"]) == 2
    # 12 steps an epoch, three epochs, of which the last updates the table by its rows: without the dense optimiser's second
    # moments it would have a third of the sum
    (state,) = (s for s in grown.optimizer_state["state"].values() if len(s["exp_avg_sq"]) == len(table))
    (dense,) = (s for s in other.optimizer_state["state"].values() if len(s["exp_avg_sq"]) == 42)
    assert state["step"] == int(dense["step"]) == 36
    ratio = state["exp_avg_sq"][2:42].sum(1) / dense["exp_avg_sq"][2:].sum(1)
    assert 0.8 < float(ratio.median()) < 1.25


def precision(model: tt.RetrievalModelV2, items: int, new: int) -> float:
    """Of each user's ten best new items, the share of its club."""
    user = torch.arange(USERS)
    history = tt.Ragged.from_lists([[int(u) % CLUBS + 2] for u in user])
    with torch.no_grad():
        query = model.query({"user_id": user + 2, "history": history})
        candidate = model.candidate(catalog(items).batch())
    best = (query @ candidate[new:].T).topk(4).indices
    return float((best % CLUBS == user[:, None] % CLUBS).float().mean())


def test_a_grown_model_learns_new_items_from_ids_alone() -> None:
    """Days 1 and 2: the second brings twenty items, of which no feature tells anything."""
    torch.manual_seed(1)

    def tower(tag: Tags) -> tt.EmbeddingEncoder:
        return tt.EmbeddingEncoder(schema(40).select_by_tag(tag), 16, post=tt.L2Norm())

    model = tt.TwoTowerModelV2(tower(Tags.USER_ID), tower(Tags.ITEM_ID), logits_temperature=0.1)
    model.compile(learning_rate=0.02)
    model.fit(events(40), batch_size=256, epochs=8, verbose=False, health_steps=0)
    model.extend(schema(60), catalog=catalog(60))
    user = torch.arange(USERS)

    def right() -> float:
        with torch.no_grad():
            scores = model.query({"user_id": user + 2}) @ model.candidate({"item_id": torch.arange(42, 62)}).T
        return float((scores.topk(4).indices % CLUBS == user[:, None] % CLUBS).float().mean())

    assert right() < 0.5  # a fifth by chance
    assert len(model.candidate_embeddings()) == 60
    model.fit(events(60, rows=1000, seed=2), batch_size=256, epochs=3, verbose=False, health_steps=0)
    assert right() > 0.9
    scores = model.evaluate(events(60, rows=500, first=40, seed=3), metrics=["recall_at_20"])
    assert scores["recall_at_20"] > 0.8  # 12 items of a club


def test_new_items_are_ranked_by_their_features_before_any_training() -> None:
    model = fitted(epochs=6)
    model.extend(schema(60))
    assert precision(model, 60, new=40) > 0.9


def test_streams_queues_and_hard_negatives_go_on() -> None:
    samplers = [tt.InBatchSamplerV2("streaming"), tt.CrossBatchSampler(warmup_steps=0), tt.UniformSampler(20), "hard"]
    model = fitted(samplers=samplers)
    gap = model.outputs[0].negative_samplers[0].frequency.gap.clone()
    model.extend(schema(60))
    assert torch.equal(model.outputs[0].negative_samplers[0].frequency.gap, gap)
    history = model.fit(events(60, seed=1), batch_size=256, verbose=False, health_steps=0)
    assert np.isfinite(history.history["loss"]).all()
    assert set(model.outputs[0].negative_samplers[2].known.ids.tolist()) == set(range(2, 62))


def test_vectors_grow_with_their_rows(tmp_path: Path) -> None:
    def image(items: int) -> tt.ColumnSchema:
        properties = {"domain": {"min": 0, "max": items + 1}}
        return tt.ColumnSchema("image", [Tags.ITEM, Tags.EMBEDDING], "int64", properties=properties)

    def model_of(items: int, table: torch.Tensor) -> tt.RetrievalModelV2:
        given = schema(items) + tt.Schema([image(items)])
        pretrained = tt.PretrainedEmbeddings(given[["image"]], 4, vectors={"image": table[: items + 2]})
        inputs = tt.InputBlockV2(given, pretrained_embeddings=pretrained)
        return tt.TwoTowerModelV2(
            *(tt.Encoder(inputs.select_by_tag(tag), tt.MLPBlock([8])) for tag in (Tags.USER, Tags.ITEM))
        )

    table = torch.randn(62, 6)
    model = model_of(40, table)
    larger = schema(60) + tt.Schema([image(60)])
    for given, message in (
        ({}, "'image' has grown from 42 to 62 rows, but no vectors came"),
        ({"image": table.flip(0)}, "must begin with the 42 of width 6 that the model knows"),
        ({"image": table[:50]}, r"'image' needs floating-point vectors of shape \(62, W\)"),
        ({"image": table, "picture": table}, "unknown column 'picture'"),
    ):
        text = describe(model)
        with pytest.raises(ValueError, match=message):
            model.extend(larger, vectors=given)
        assert describe(model) == text  # nothing changed
        assert model.candidate.inputs.categorical.table("item_id").input_dim == 42
    np.save(tmp_path / "v.npy", table.numpy())
    model.extend(larger, vectors={"image": np.load(tmp_path / "v.npy", mmap_mode="r")})
    assert torch.equal(model.candidate.inputs.pretrained_embeddings.held("image"), table)
    assert describe(model.candidate) == describe(model_of(60, table).candidate)
    model.save(tmp_path / "model")
    assert torch.equal(
        tt.RetrievalModelV2.load(tmp_path / "model").candidate.inputs.pretrained_embeddings.held("image"), table
    )


def test_what_cannot_grow_is_named_and_nothing_changes() -> None:
    model = fitted()
    table = model.query.inputs.categorical.table("history")
    text, weight = describe(model), table.weight.clone()
    uneven = schema(60) + tt.Schema([ids("history", 51, Tags.USER, domain="item_id", is_list=True)])
    other_unknown = schema(60)["item_id"].with_properties({"unknown_id": 5})
    for given, message in (
        (schema(30), "domain of column '(history|item_id)' ends at 31, but the model knows ids up to 41"),
        (schema(60).excluding_by_name(["club"]), r"lacks columns that the model reads: \['club'\]"),
        (uneven, r"one domain name and one number of ids, got 'history' \(domain 'item_id', 52 ids\), 'item_id'"),
        (schema(60) + tt.Schema([ids("club", 9, Tags.ITEM, domain="z")]), "column 'club' is another one"),
        (schema(60) + tt.Schema([other_unknown]), "column 'item_id' is another one"),
    ):
        with pytest.raises(ValueError, match=message):
            model.extend(given)
    model.query.requires_grad_(False)
    with pytest.raises(ValueError, match=r"state is of \d+ parameters, but the model has \d+ that are trained"):
        model.extend(schema(60))
    assert describe(model) == text
    assert torch.equal(table.weight, weight)
    with pytest.raises(ValueError, match="can only grow, but was given the columns"):
        table.extend(ids("item_id", 61, Tags.ITEM_ID))


def test_weights_that_were_given_must_be_given_for_new_ids_too() -> None:
    weights = torch.cat([torch.zeros(2), torch.ones(60)])
    model = fitted(samplers=["in-batch", tt.PopularitySampler(5, weights=weights[:42])])
    with pytest.raises(ValueError, match="given weights for the ids up to 41, and has none for those up to 61"):
        model.extend(schema(60))
    model.outputs[0].set_negative_samplers(["in-batch", tt.PopularitySampler(5, weights=weights)])
    model.extend(schema(60))


def test_tied_tables_stay_tied_and_frozen_ones_frozen() -> None:
    one, other = (tt.EmbeddingEncoder(schema(40)["item_id"], 4) for _ in range(2))
    other.table.weight = one.table.weight
    one.table.weight.requires_grad_(False)
    model = tt.TwoTowerModelV2(one, other)
    model.extend(schema(60))
    assert other.table.weight is one.table.weight
    assert one.table.weight.shape == (62, 4)
    assert not one.table.weight.requires_grad
    youtube = tt.YoutubeDNNRetrievalModelV2(schema(40).excluding_by_name(["club", "size"]), num_sampled=5)
    youtube.extend(schema(60))
    assert youtube.outputs[0].negative_samplers[0].max_id == 61
    assert youtube.candidate.table.input_dim == 62


def test_an_extended_preprocessor_and_its_model_go_together() -> None:
    rng = np.random.default_rng(0)
    monday = {"user_id": rng.integers(0, 50, 500), "item_id": [f"i{n}" for n in rng.integers(0, 30, 500)]}
    tuesday = {"user_id": rng.integers(0, 60, 300), "item_id": [f"i{n}" for n in rng.integers(0, 40, 300)]}
    table = {"id": [f"i{n}" for n in range(40)], "vector": rng.normal(size=(40, 6)).astype(np.float32)}
    before = tt.Preprocessor(
        {
            "user_id": tt.Categorical(Tags.USER_ID),
            "item_id": tt.Categorical(Tags.ITEM_ID, oov_buckets=2),
            "image": tt.PretrainedVectors(table, Tags.ITEM, source="item_id"),
        }
    ).fit(monday)
    pretrained = tt.PretrainedEmbeddings(before.schema[["image"]], 8, vectors=before.vectors)
    categorical = tt.Embeddings(before.schema[["user_id", "item_id"]], 8, id_dropout=0.1)
    inputs = tt.InputBlockV2(before.schema, categorical=categorical, pretrained_embeddings=pretrained)
    sides = [tt.Encoder(inputs.select_by_tag(tag), tt.MLPBlock([8])) for tag in (Tags.USER, Tags.ITEM)]
    model = tt.TwoTowerModelV2(*sides)
    model.fit(before.transform(monday), batch_size=100, verbose=False, health_steps=0)
    with torch.no_grad():
        scores = model(before.transform(monday).batch())
        after = before.extend(tuesday)
        model.extend(after.schema)
        assert torch.equal(model(after.transform(monday).batch()), scores)
    model.fit(after.transform(tuesday), batch_size=100, verbose=False, health_steps=0)
    assert model.candidate.inputs.categorical.table("item_id").input_dim == 1 + 2 + 40


def test_days_with_vectors_of_new_items(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Preprocessor and model grow day by day, the vectors of new items too; what is served is what was trained."""
    rng = np.random.default_rng(0)

    def day(first: int) -> tuple[dict[str, list], dict[str, object]]:  # type: ignore[type-arg]
        items = [f"i{n}" for n in range(first, first + 20)]
        events = {
            "user": [f"u{n}" for n in rng.integers(0, 30, 200)],
            "item": [items[n] for n in rng.integers(0, 20, 200)],
        }
        return events, {"id": items, "vector": rng.normal(size=(20, 4)).astype(np.float32)}

    events, table = day(0)
    columns = {
        "user": tt.Categorical(Tags.USER_ID),
        "item": tt.Categorical(Tags.ITEM_ID),
        "image": tt.PretrainedVectors(table, Tags.ITEM, source="item"),
    }
    preprocessor = tt.Preprocessor(columns).fit(events)
    schema, vectors = preprocessor.schema, preprocessor.vectors
    pretrained = tt.PretrainedEmbeddings(schema.select_by_tag(Tags.EMBEDDING), vectors=vectors, output_dims=8)
    query = tt.Encoder(schema.select_by_tag(Tags.USER), tt.MLPBlock([8]))
    inputs = tt.InputBlockV2(schema.select_by_tag(Tags.ITEM), pretrained_embeddings=pretrained)
    model = tt.TwoTowerModelV2(query, tt.Encoder(inputs, tt.MLPBlock([8])))
    model.compile()
    model.fit(preprocessor.transform(events), batch_size=64, verbose=False, health_steps=0)
    old = preprocessor.transform({"item": table["id"]})
    for first in (20, 40):
        events, table = day(first)
        preprocessor = preprocessor.extend(events, vectors={"image": table})
        before = model.candidate_embeddings(old, index="item").to_polars()
        model.extend(preprocessor.schema, vectors=preprocessor.vectors)
        assert model.candidate_embeddings(old, index="item").to_polars().equals(before)
        model.fit(preprocessor.transform(events), batch_size=64, verbose=False, health_steps=0)
        (held,) = [v for v in model.state_dict().values() if v.shape == preprocessor.vectors["image"].shape]
        assert (held[-20:].numpy() == table["vector"]).all()
    items = pl.DataFrame({"item": [f"i{n}" for n in range(60)]})
    retriever = tt.Retriever(model, preprocessor, items)
    retriever.save(tmp_path / "bundle")
    found = retriever.recommend({"user": "u3"}, k=60)
    assert found.height == 60
    assert tt.Retriever.load(tmp_path / "bundle").recommend({"user": "u3"}, k=60).equals(found)
