"""Features in towers: pooled lists, embedded numbers, dropped ids, vectors from elsewhere."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import twotower as tt
from tests.worlds import id_column, tagged_items
from twotower import Tags
from twotower.blocks.id_dropout import drop_ids
from twotower.blocks.pooling import combine_weighted
from twotower.saving import describe, rebuild, save_module


def ids(name: str, largest: int, tag: Tags = Tags.ITEM, **given: object) -> tt.ColumnSchema:
    properties = {"domain": {"min": 0, "max": largest, "name": name}, "unknown_id": 1}
    return tt.ColumnSchema(name, tags=[tag, Tags.CATEGORICAL], dtype="int64", properties=properties, **given)


def number(name: str, tag: Tags = Tags.ITEM, **given: object) -> tt.ColumnSchema:
    return tt.ColumnSchema(name, tags=[tag, Tags.CONTINUOUS], dtype="float32", **given)


def row_numbers(name: str, largest: int, **given: object) -> tt.ColumnSchema:
    properties = {"domain": {"min": 0, "max": largest}}
    return tt.ColumnSchema(name, tags=[Tags.ITEM, Tags.EMBEDDING], dtype="int64", properties=properties, **given)


# ---- lists pooled by importance


def test_attention_pooling_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    lists = [torch.randn(n, 3, generator=generator) for n in (2, 0, 4, 1)]
    pooling = tt.AttentionPooling(3)
    with torch.no_grad():
        pooling.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    ragged = tt.Ragged(torch.cat(lists), torch.tensor([0, 2, 2, 6, 7]))
    expected = []
    for vectors in lists:
        share = [math.exp(float(v @ pooling.weight.detach())) for v in vectors]
        expected.append(sum((s / sum(share) * v for s, v in zip(share, vectors, strict=True)), torch.zeros(3)))
    torch.testing.assert_close(pooling(ragged), torch.stack(expected))


def test_attention_pooling_starts_as_the_mean_and_survives_large_scores() -> None:
    ragged = tt.Ragged(torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 2, 3, 3]))
    pooling = tt.AttentionPooling()
    assert pooling(ragged).tolist() == [[2.0, 1.0], [5.0, 5.0], [0.0, 0.0]]
    with torch.no_grad():
        pooling.weight.fill_(-1e6)  # exp(-1e7) is 0: only a softmax less its largest score has something to divide by
    assert pooling(ragged).tolist() == [[1.0, 0.0], [5.0, 5.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="learnt vectors of width 2, but got width 3"):
        pooling(tt.Ragged(torch.zeros(1, 3), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="needs dim >= 1"):
        tt.AttentionPooling(0)


def one_that_matters(rows: int, seed: int) -> tuple[dict[str, tt.Ragged], torch.Tensor]:
    """Lists of ten ids, of which one, id 2 to 7, is the answer, and nine others are noise."""
    rng = np.random.default_rng(seed)
    lists = rng.integers(8, 40, size=(rows, 10))
    answer = rng.integers(6, size=rows)
    lists[np.arange(rows), rng.integers(10, size=rows)] = 2 + answer
    return {"x": tt.Ragged.from_lists(lists.tolist())}, torch.tensor(answer)


def test_attention_learns_which_elements_matter(tmp_path: Path) -> None:
    schema = tt.Schema([ids("x", 39, is_list=True)])
    (batch, answer), (others, true) = one_that_matters(1500, 0), one_that_matters(1500, 1)
    pooling = tt.AttentionPooling()
    embeddings = tt.Embeddings(schema, dim=4, sequence_combiner=pooling)
    encoder = tt.Encoder(tt.InputBlockV2(schema, categorical=embeddings), nn.Linear(4, 6))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(encoder(batch), answer).backward()
        optimizer.step()
    assert float((encoder(others).argmax(1) == true).float().mean()) > 0.99
    score = embeddings.table("x").weight @ pooling.weight
    # what tells stands exp(3) times above the noise; one of the six may be told by the absence of the others
    assert score[2:8].sort().values[1] > score[8:].max() + 3
    encoder.save(tmp_path / "tower")
    again = tt.Encoder.load(tmp_path / "tower")
    assert torch.equal(again(batch), encoder.eval()(batch))


# ---- lists pooled by another column


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_weighted_pooling_against_a_loop(combiner: str) -> None:
    schema = tt.Schema([ids("x", 5, is_list=True)])
    table = torch.arange(12, dtype=torch.float32).reshape(6, 2)
    block = tt.Embeddings(
        schema, 2, embeddings_initializer={"x": table}, sequence_combiner=combiner, sequence_weights={"x": "w"}
    )
    lists, weights = [[1, 2, 5], [], [4, 3], [5]], [[0.5, 2.0, 0.0], [], [0.0, 0.0], [3.0]]
    expected = []
    for row, w in zip(lists, weights, strict=True):
        total = sum((b * table[a] for a, b in zip(row, w, strict=True)), torch.zeros(2))
        size = {"mean": sum(w), "sum": 1.0, "sqrtn": math.sqrt(sum(b * b for b in w))}[combiner]
        expected.append(total / size if size else torch.zeros(2))
    out = block({"x": tt.Ragged.from_lists(lists), "w": tt.Ragged.from_lists(weights)})["x"]
    torch.testing.assert_close(out, torch.stack(expected))
    fixed = block({"x": torch.tensor([[1, 2]]), "w": torch.tensor([[1.0, 3.0]])})["x"]
    ragged = block({"x": tt.Ragged.from_lists([[1, 2]]), "w": tt.Ragged.from_lists([[1, 3]])})["x"]
    torch.testing.assert_close(fixed, ragged)


def test_weights_of_one_are_no_weights() -> None:
    lists = tt.Ragged(torch.randn(6, 3), torch.tensor([0, 2, 2, 6]))
    for combiner in ("mean", "sum", "sqrtn"):
        plain = tt.EmbeddingTable(3, ids("x", 5), embeddings_initializer=lists.values, sequence_combiner=combiner)
        of_ids = plain(tt.Ragged(torch.arange(6), lists.offsets))
        torch.testing.assert_close(combine_weighted(lists, torch.ones(6), combiner), of_ids)


def test_lists_and_weights_must_agree() -> None:
    schema = tt.Schema([ids("genres", 5, is_list=True), ids("one", 5)])
    block = tt.Embeddings(schema[["genres"]], 2, sequence_weights={"genres": "genre_weight"})
    lists = tt.Ragged.from_lists([[1], [2, 3]])
    for given, message in (
        (tt.Ragged.from_lists([[1.0], [1.0]]), "'genre_weight' must hold .* column 'genres', but in row 1 it has 1"),
        (tt.Ragged.from_lists([[1.0]]), "they have 1 and 2 rows"),
        (torch.ones(2), "it holds one number a row"),
        (tt.Ragged.from_lists([[1.0], [1.0, -0.5]]), "'genre_weight' holds negative weights, down to -0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            block({"genres": lists, "genre_weight": given})
    with pytest.raises(ValueError, match="column 'one' holds one id a row"):
        tt.Embeddings(schema, 2, sequence_weights={"one": "w"})
    with pytest.raises(ValueError, match="unknown sequence_combiner with weights of column 'genres', 'max'"):
        tt.Embeddings(schema, 2, sequence_combiner="max", sequence_weights={"genres": "w"})
    with pytest.raises(ValueError, match="'genres' has a AttentionPooling, which weighs by itself"):
        tt.Embeddings(schema, 2, sequence_combiner=tt.AttentionPooling(), sequence_weights={"genres": "w"})
    with pytest.raises(ValueError, match="unknown column 'genre'"):
        tt.Embeddings(schema, 2, sequence_weights={"genre": "w"})
    with pytest.raises(ValueError, match="stand in column 'genre_weight', which the schema lacks"):
        tt.InputBlockV2(schema, categorical=tt.Embeddings(schema, 2, sequence_weights={"genres": "genre_weight"}))


def test_weights_reach_training_catalogue_and_serving(tmp_path: Path) -> None:
    """The column of weights is delivered everywhere, and is no feature: the tower is as wide as without it."""
    rng = np.random.default_rng(0)
    items = pl.DataFrame(
        {
            "item_id": np.arange(30),
            "genres": [[f"g{n % 3}", "g9"] for n in range(30)],
            "genre_weight": [[1.0, 0.0]] * 15 + [[0.25, 0.75]] * 15,
        }
    )
    events = pl.DataFrame({"user_id": rng.integers(0, 20, 400), "item_id": rng.integers(0, 30, 400)})
    preprocessor = tt.Preprocessor(
        {
            "user_id": tt.Categorical(Tags.USER_ID),
            "item_id": tt.Categorical(Tags.ITEM_ID),
            "genres": tt.Categorical(Tags.ITEM),
        }
    ).fit(events, items)
    schema = preprocessor.schema + tt.Schema([number("genre_weight", is_list=True)])
    inputs = tt.InputBlockV2(
        schema,
        categorical=tt.Embeddings(
            preprocessor.schema, 8, sequence_weights={"genres": "genre_weight"}, id_dropout={"item_id": 0.1}
        ),
    )
    query, candidate = (tt.Encoder(inputs.select_by_tag(tag), tt.MLPBlock([4])) for tag in (Tags.USER, Tags.ITEM))
    assert query.schema.column_names == ["user_id"]
    assert candidate.schema.column_names == ["item_id", "genres", "genre_weight"]
    assert inputs(tt.Dataset(preprocessor.transform(events.join(items, on="item_id"))).batch(schema)).shape[1] == 24
    model = tt.TwoTowerModelV2(query, candidate, negative_samplers=["in-batch", "uniform"])
    model.fit(preprocessor.transform(events.join(items, on="item_id")), batch_size=100, verbose=False)
    tt.Retriever(model, preprocessor, items).save(tmp_path / "bundle")
    retriever = tt.Retriever.load(tmp_path / "bundle")
    assert len(retriever.recommend([{"user_id": 3}], k=5)) == 5
    # item 0 is all g0, its twin with other weights is not
    batch = preprocessor.transform(items).batch(candidate.schema)
    other = {**batch, "genre_weight": tt.Ragged(1 - batch["genre_weight"].values, batch["genre_weight"].offsets)}
    with torch.no_grad():
        assert not torch.allclose(model.candidate(batch), model.candidate(other))


def test_weights_may_carry_no_tag_of_the_tower() -> None:
    schema = tt.Schema([ids("genres", 5, is_list=True), tt.ColumnSchema("w", tags=[Tags.CONTINUOUS], is_list=True)])
    block = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema[["genres"]], 4, sequence_weights={"genres": "w"}))
    assert block.select_by_tag(Tags.ITEM).schema.column_names == ["genres", "w"]
    with pytest.raises(ValueError, match="no column is tagged"):
        block.select_by_tag(Tags.CONTINUOUS)


# ---- numbers


def test_number_embeddings_against_their_formulas() -> None:
    schema = tt.Schema([number("a"), number("b")])
    batch = {"a": torch.tensor([0.5, -1.0]), "b": torch.tensor([2, 3])}
    linear = tt.ContinuousEmbedding(schema, 3)
    for place, name in enumerate("ab"):
        for row in range(2):
            expected = float(batch[name][row]) * linear.weight[place, 0] + linear.bias[place]
            torch.testing.assert_close(linear(batch)[name][row], expected)
    periodic = tt.ContinuousEmbedding(schema, 3, kind="periodic", num_frequencies=2)
    for place, name in enumerate("ab"):
        for row in range(2):
            angle = [2 * math.pi * c * float(batch[name][row]) for c in periodic.frequencies[place].tolist()]
            inner = torch.tensor([math.sin(a) for a in angle] + [math.cos(a) for a in angle])
            expected = inner @ periodic.weight[place] + periodic.bias[place]
            torch.testing.assert_close(periodic(batch)[name][row], expected, rtol=1e-4, atol=1e-5)


def test_number_embeddings_join_with_ids() -> None:
    schema = tt.Schema([ids("x", 5), number("price", Tags.USER), number("size")])
    parts = {
        "categorical": tt.Embeddings(schema[["x"]], 4),
        "continuous": tt.ContinuousEmbedding(schema[["price", "size"]], 4, kind="periodic"),
    }
    batch = {"x": torch.tensor([1, 2]), "price": torch.tensor([0.1, 2.0]), "size": torch.tensor([1.0, 0.0])}
    block = tt.InputBlockV2(schema, **parts, aggregation="sum")
    vectors = parts["categorical"](batch) | parts["continuous"](batch)
    torch.testing.assert_close(block(batch), vectors["x"] + vectors["price"] + vectors["size"])
    assert tt.InputBlockV2(schema, **parts, aggregation="stack")(batch).shape == (2, 3, 4)
    assert tt.Encoder(block, tt.CrossBlock(2)).dim == 4
    side = block.select_by_tag(Tags.ITEM)
    assert side.continuous.schema.column_names == ["size"]
    assert side.continuous.kind == "periodic"
    with pytest.raises(
        ValueError, match=r"the continuous block lacks the columns \['size'\]: give ContinuousEmbedding"
    ):
        tt.InputBlockV2(schema, continuous=tt.ContinuousEmbedding(schema[["price"]], 4))


def test_number_embedding_errors() -> None:
    with pytest.raises(ValueError, match="unknown kind of ContinuousEmbedding 'square'"):
        tt.ContinuousEmbedding(tt.Schema([number("a")]), 4, kind="square")
    with pytest.raises(ValueError, match="needs dim >= 1.*got 0"):
        tt.ContinuousEmbedding(tt.Schema([number("a")]), 0)
    with pytest.raises(ValueError, match=r"one number a row, but got lists in \['a'\]"):
        tt.ContinuousEmbedding(tt.Schema([number("a", is_list=True)]), 4)


def test_periodic_embeddings_find_a_band_that_linear_ones_cannot() -> None:
    """Whether x is within 0.3 of 0: one layer on a linear embedding is monotonic in x."""
    x = torch.linspace(-2, 2, 400)
    inside = (x.abs() < 0.3).float()
    losses = {}
    for kind in ("linear", "periodic"):
        torch.manual_seed(0)
        net = nn.Sequential(tt.ContinuousEmbedding(tt.Schema([number("x")]), 8, kind=kind), Pick(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(net({"x": x})[:, 0], inside)
            loss.backward()
            optimizer.step()
        losses[kind] = float(loss.detach())
    entropy = -(0.15 * math.log(0.15) + 0.85 * math.log(0.85))
    assert losses["linear"] > 0.95 * entropy
    assert losses["periodic"] < 0.3 * entropy


class Pick(nn.Module):
    def forward(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return parts["x"]


# ---- id dropout


def test_ids_are_dropped_as_often_as_asked() -> None:
    given = torch.arange(100_000) % 50
    dropped = drop_ids(given, 0.2, 1)
    known = given > 1
    assert torch.equal(dropped[~known], given[~known])  # the missing id stays missing
    changed = dropped != given
    assert (dropped[changed] == 1).all()
    # 96,000 known ids: the share has a standard deviation of sqrt(.2 * .8 / 96000) = .0013
    assert float(changed[known].float().mean()) == pytest.approx(0.2, abs=0.006)
    several = drop_ids(given, 0.5, 3)
    counts = torch.bincount(several[(several != given)], minlength=4)
    assert counts[0] == 0
    assert counts[1:4].min() > 0.95 * counts[1:4].max()  # about 15,300 each, with a deviation of about 1 %
    assert len(counts) == 4
    assert torch.equal(several[given <= 3], given[given <= 3])  # each unknown id stays the one that it is
    lists = drop_ids(tt.Ragged(given, torch.tensor([0, 10, 100_000])), 0.2, 1)
    assert lists.offsets.tolist() == [0, 10, 100_000]
    assert (lists.values != given).any()


def test_id_dropout_is_of_training_and_of_its_columns() -> None:
    schema = tt.Schema([ids("a", 9), ids("b", 9)])
    block = tt.Embeddings(schema, 4, id_dropout={"a": 0.5}, l2_batch_regularization_factor=1.0)
    batch = {"a": torch.arange(2, 10).repeat(50), "b": torch.arange(2, 10).repeat(50)}
    exact = {name: block.table(name).weight[batch[name]] for name in "ab"}
    out = block(batch)
    torch.testing.assert_close(out["b"], exact["b"])
    is_unknown = (out["a"] == block.table("a").weight[1]).all(1)
    assert torch.equal(out["a"][~is_unknown], exact["a"][~is_unknown])
    assert 100 < int(is_unknown.sum()) < 300
    torch.testing.assert_close(block.regularization(batch)["a"], exact["a"].square().sum())
    torch.manual_seed(5)
    first = block(batch)["a"]
    torch.manual_seed(5)
    assert torch.equal(block.select(schema[["a"]])(batch)["a"], first)  # PyTorch's numbers, and the option goes along
    assert torch.equal(block.eval()(batch)["a"], exact["a"])


def test_id_dropout_errors() -> None:
    plain = tt.Schema([id_column("item_id", Tags.ITEM_ID, 9)])
    with pytest.raises(ValueError, match="column 'item_id' has the unknown id None. Encode it with the Preprocessor"):
        tt.Embeddings(plain, 4, id_dropout=0.1)
    from_pbtxt = ids("a", 9).with_properties({"unknown_id": 1.0})  # which has no integers
    tt.Embeddings(tt.Schema([from_pbtxt]), 4, id_dropout=0.5)({"a": torch.arange(10)})
    with pytest.raises(ValueError, match="must be in .0, 1., got 1.5"):
        tt.Embeddings(tt.Schema([ids("a", 9)]), 4, id_dropout=1.5)
    with pytest.raises(ValueError, match="unknown column 'z'"):
        tt.Embeddings(tt.Schema([ids("a", 9)]), 4, id_dropout={"z": 0.1})


def cold_start(id_dropout: float) -> tuple[float, float, bool]:
    """Of the ten best cold items the share that is right, the share of cold ones among all best, and if row 1 moved."""
    world = tagged_items()
    sides = []
    torch.manual_seed(0)
    for tag in (Tags.USER, Tags.ITEM):
        schema = world.train.schema.select_by_tag(tag)
        dims = {name: dim for name, dim in {"item_id": 64, "tags": 2, "user_id": 16}.items() if name in schema}
        drop = {"item_id": id_dropout} if tag is Tags.ITEM else {}
        inputs = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema, dims, id_dropout=drop))
        sides.append(tt.Encoder(inputs, tt.MLPBlock([32, 16], no_activation_last_layer=True), post=tt.L2Norm()))
    before = sides[1].inputs.categorical.table("item_id").weight[1].clone()
    model = tt.TwoTowerModelV2(*sides, logits_temperature=0.1)
    model.compile(learning_rate=0.01)
    model.fit(world.train, batch_size=512, epochs=20, verbose=False, health_steps=0)
    moved = not torch.equal(model.candidate.inputs.categorical.table("item_id").weight[1], before)
    with torch.no_grad():
        scores = model.query(world.users) @ model.candidate(world.items).T
    cold = world.items["item_id"] == 1
    best = scores[:, cold].topk(10).indices
    right = world.fits[:, cold].gather(1, best).float().mean()
    return float(right), float(cold[scores.topk(20).indices].float().mean()), moved


def test_id_dropout_makes_cold_items_found() -> None:
    """A hundred warm items, and a hundred whose id nobody has seen and whose tags tell something about them."""
    right, shown, moved = cold_start(0.0)
    assert not moved  # nothing ever asked for the unknown id
    right_with, shown_with, moved_with = cold_start(0.1)
    assert moved_with
    assert right_with > right + 0.1
    assert shown_with > 3 * shown


# ---- vectors from elsewhere

TABLE = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])


def test_vectors_are_looked_up_normalised_pooled_and_projected() -> None:
    schema = tt.Schema([row_numbers("image", 2), row_numbers("images", 2, is_list=True)])
    block = tt.PretrainedEmbeddings(schema, normalizer="l2-norm", vectors={"image": TABLE, "images": TABLE})
    lists = tt.Ragged.from_lists([[0, 1], []])
    out = block({"image": torch.tensor([0, 1]), "images": lists})
    torch.testing.assert_close(out["image"], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    torch.testing.assert_close(out["images"], torch.tensor([[0.3, 0.9], [0.0, 0.0]]))
    fixed = block({"image": torch.tensor([0]), "images": torch.tensor([[0, 1]])})
    torch.testing.assert_close(fixed["images"], torch.tensor([[0.3, 0.9]]))
    projected = tt.PretrainedEmbeddings(schema[["image"]], {"image": 5}, vectors={"image": TABLE})
    encoder = tt.Encoder(tt.InputBlockV2(schema[["image"]], pretrained_embeddings=projected), tt.MLPBlock([4]))
    linear = encoder.inputs.pretrained_embeddings.projections[0]
    torch.testing.assert_close(projected({"image": torch.tensor([2])})["image"], linear(TABLE[2:]))
    assert not any(parameter.shape == TABLE.shape for parameter in encoder.parameters())  # nothing to train


def test_vectors_in_towers_travel_and_stay_as_they_are(tmp_path: Path) -> None:
    data = tagged_items().train
    table = torch.randn(102, 6)
    columns = {name: data.table.column(name) for name in data.column_names} | {"image": data.table.column("item_id")}
    schema = data.schema + tt.Schema([row_numbers("image", 101)])
    inputs = tt.InputBlockV2(schema, pretrained_embeddings=tt.PretrainedEmbeddings(
        tt.Schema([schema["image"]]), 8, vectors={"image": table.half()}))  # fmt: skip
    query, candidate = (tt.Encoder(inputs.select_by_tag(tag), tt.MLPBlock([8])) for tag in (Tags.USER, Tags.ITEM))
    model = tt.TwoTowerModelV2(query, candidate, negative_samplers=["in-batch", "uniform"])
    model.compile(table_optimizer="lazy_adam")
    model.fit(tt.Dataset(columns, schema), batch_size=512, verbose=False)
    held = model.candidate.inputs.pretrained_embeddings.held("image")
    assert torch.equal(held, table.half())
    assert held.dtype == torch.float16
    model.save(tmp_path / "model")
    again = tt.RetrievalModelV2.load(tmp_path / "model")
    assert again.candidate.inputs.pretrained_embeddings.held("image").dtype == torch.float16
    assert describe(again) == describe(model)
    with torch.no_grad():
        batch = tt.Dataset(columns, schema).batch()
        assert torch.equal(again(batch), model(batch))
        assert model.to(torch.bfloat16)(batch).dtype == torch.bfloat16


def test_a_mapped_file_is_neither_copied_nor_written(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", TABLE.numpy())
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    schema = tt.Schema([row_numbers("image", 2)])
    block = tt.PretrainedEmbeddings(schema, vectors={"image": mapped})
    assert torch.equal(block({"image": torch.tensor([1])})["image"], TABLE[1:2])
    maps = Path("/proc/self/maps")
    if maps.exists():  # the buffer lies in a mapping of the file
        held = [line.split() for line in maps.read_text().splitlines() if line.endswith("v.npy")]
        spans = [[int(end, 16) for end in line[0].split("-")] for line in held]
        assert any(low <= block.held("image").data_ptr() < high for low, high in spans)
    block.load_state_dict({"vectors_image": TABLE + 1})  # what resuming does; the file must survive it
    assert torch.equal(block.held("image"), TABLE + 1)
    assert np.array_equal(np.load(tmp_path / "v.npy"), TABLE.numpy())
    part = tt.PretrainedEmbeddings(tt.Schema([row_numbers("image", 1)]), vectors={"image": mapped[1:]})
    assert torch.equal(part.held("image"), TABLE[1:])


def test_two_towers_hold_vectors_once(tmp_path: Path) -> None:
    schema = tt.Schema([row_numbers("image", 2)])
    whole = tt.PretrainedEmbeddings(schema, vectors={"image": TABLE})
    part = whole.for_columns(schema)
    assert part.held("image").data_ptr() == whole.held("image").data_ptr()
    save_module(nn.ModuleList([whole, part]), tmp_path / "both")
    assert (tmp_path / "both" / "weights.safetensors").stat().st_size < 2 * TABLE.nbytes + 200
    assert torch.equal(rebuild(describe(whole)).held("image"), torch.zeros(3, 2))


def test_vector_errors() -> None:
    schema = tt.Schema([row_numbers("image", 2)])
    with pytest.raises(ValueError, match=r"'image' needs floating-point vectors of shape \(3, W\).*got .* \(2, 2\)"):
        tt.PretrainedEmbeddings(schema, vectors={"image": TABLE[:2]})
    with pytest.raises(ValueError, match=r"floating-point vectors .* got torch.int64"):
        tt.PretrainedEmbeddings(schema, vectors={"image": TABLE.long()})
    with pytest.raises(ValueError, match="'image' holds row numbers of vectors, but no vectors were given"):
        tt.InputBlockV2(schema)
    with pytest.raises(ValueError, match="column 'v' has no integer domain"):
        floats = tt.ColumnSchema("v", tags=[Tags.EMBEDDING], dtype="float32", dims=((0, None), (2, 2)))
        tt.PretrainedEmbeddings(tt.Schema([floats]), vectors={"v": TABLE})
    with pytest.raises(ValueError, match="unknown column 'img'"):
        tt.PretrainedEmbeddings(schema, vectors={"img": TABLE})
    with pytest.raises(ValueError, match="rows 0 to 2, but was asked for rows from 1 to 3"):
        tt.PretrainedEmbeddings(schema, vectors={"image": TABLE})({"image": torch.tensor([1, 3])})
    double = tt.PretrainedEmbeddings(schema, vectors={"image": TABLE.double().numpy()})
    assert double.held("image").dtype == torch.float32
    with pytest.raises(ValueError, match="cannot split a Own: give each tower"):
        tt.InputBlockV2(schema, pretrained_embeddings=Own()).select_by_tag(Tags.ITEM)


class Own(nn.Module):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"image": batch["image"][:, None].float()}


def test_cross_block_refuses_no_rank() -> None:
    with pytest.raises(ValueError, match="low_rank_dim >= 1, or None for full rank; got 0"):
        tt.CrossBlock(low_rank_dim=0)
