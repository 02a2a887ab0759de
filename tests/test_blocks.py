"""Blocks against hand arithmetic, slow loops and Merlin's numbers."""

import math

import pytest
import torch
from torch import nn

import twotower as tt
from tests.worlds import clubs, id_column
from twotower import Tags
from twotower.blocks.table import infer_embedding_dim


@pytest.mark.parametrize(
    ("ids", "dim"), [(500, 24), (1000, 29), (5000, 43), (10**4, 50), (10**5, 89), (10**6, 159), (10**7, 282)]
)
def test_inferred_dims_of_merlin(ids: int, dim: int) -> None:
    assert infer_embedding_dim(ids, multiplier=5, multiple_of_8=False) == dim


@pytest.mark.parametrize(
    ("ids", "dim"), [(1, 8), (10, 16), (500, 24), (1000, 32), (10**4, 56), (10**6, 160), (10**7, 288)]
)
def test_inferred_dims_rounded_to_8(ids: int, dim: int) -> None:
    assert infer_embedding_dim(ids, multiplier=5) == dim


def column(name: str, largest: int = 5, domain: str | None = None, **given: object) -> tt.ColumnSchema:
    properties = {"domain": {"min": 0, "max": largest, "name": domain or name}}
    return tt.ColumnSchema(name, tags=[Tags.CATEGORICAL], dtype="int64", properties=properties, **given)


WEIGHTS = torch.arange(12, dtype=torch.float32).reshape(6, 2)
LISTS = [[1, 2, 2], [], [5]]


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn", "max"])
def test_combiners_against_a_loop(combiner: str) -> None:
    table = tt.EmbeddingTable(2, column("x"), embeddings_initializer=WEIGHTS, sequence_combiner=combiner)
    rows = []
    for ids in LISTS:
        vectors = [WEIGHTS[i] for i in ids]
        if not vectors:
            rows.append(torch.zeros(2))
        elif combiner == "max":
            rows.append(torch.stack(vectors).max(0).values)
        else:
            rows.append(sum(vectors) / {"mean": len(ids), "sum": 1, "sqrtn": math.sqrt(len(ids))}[combiner])
    torch.testing.assert_close(table(tt.Ragged.from_lists(LISTS)), torch.stack(rows))
    dense = torch.tensor([[1, 2], [5, 5]])
    ragged = tt.Ragged.from_lists(dense.tolist())
    torch.testing.assert_close(table(dense), table(ragged))


def test_table_forms_and_options() -> None:
    table = tt.EmbeddingTable(2, column("x"), embeddings_initializer=WEIGHTS)
    assert table.input_dim == 6
    assert torch.equal(table(torch.tensor([5, 0])), WEIGHTS[[5, 0]])
    assert table(torch.tensor([[1, 2]])).shape == (1, 2, 2)
    kept = table(tt.Ragged.from_lists(LISTS))
    assert torch.equal(kept.values, WEIGHTS[[1, 2, 2, 5]])
    uniform = tt.EmbeddingTable(50, column("x", 999)).weight
    assert -0.05 <= uniform.min() < -0.049
    assert 0.049 < uniform.max() <= 0.05
    assert not tt.EmbeddingTable(2, column("x"), trainable=False).weight.requires_grad
    weighted = tt.EmbeddingTable(2, column("x"), embeddings_initializer=WEIGHTS, l2_batch_regularization_factor=0.1)
    assert weighted.regularization(torch.tensor([1, 0])).item() == pytest.approx(0.1 * (4 + 9 + 0 + 1))


def test_table_errors() -> None:
    with pytest.raises(ValueError, match="needs at least one column"):
        tt.EmbeddingTable(2)
    with pytest.raises(
        ValueError,
        match=r"one domain name and one number of ids, got 'a' \(domain 'd', 6 ids\), 'b' \(domain 'd', 8 ids\)",
    ):
        tt.EmbeddingTable(2, column("a", 5, "d"), column("b", 7, "d"))
    with pytest.raises(ValueError, match=r"needs weights of shape \(6, 2\), got \(2, 6\)"):
        tt.EmbeddingTable(2, column("x"), embeddings_initializer=WEIGHTS.T)
    with pytest.raises(ValueError, match="unknown sequence_combiner 'avg': choose from"):
        tt.EmbeddingTable(2, column("x"), sequence_combiner="avg")
    with pytest.raises(ValueError, match="unknown initializer 'unifrom'.*Did you mean 'uniform'"):
        tt.EmbeddingTable(2, column("x"), embeddings_initializer="unifrom")
    with pytest.raises(ValueError, match="table 'x' holds ids 0 to 5, but was asked for ids from 2 to 6"):
        tt.EmbeddingTable(2, column("x"))(torch.tensor([2, 6]))
    with pytest.raises(ValueError, match="'y' has no integer domain"):
        tt.EmbeddingTable(2, tt.ColumnSchema("y", dtype="int64"))


def test_columns_of_one_domain_share_a_table() -> None:
    schema = tt.Schema([column("a", 5, "d"), column("b", 5, "d"), column("c", 5)])
    embeddings = tt.Embeddings(schema, dim={"a": 4, "c": 8})
    assert set(embeddings.tables) == {"d", "c"}
    ids = torch.tensor([1, 2])
    out = embeddings({"a": ids, "b": ids, "c": ids})
    assert torch.equal(out["a"], out["b"])
    assert (out["a"].shape, out["c"].shape) == ((2, 4), (2, 8))
    with pytest.raises(ValueError, match="unknown column 'z'"):
        tt.Embeddings(schema, dim={"z": 4})
    with pytest.raises(ValueError, match="one domain name and one number of ids"):
        tt.Embeddings(tt.Schema([column("a", 5, "d"), column("b", 6, "d")]))


def test_one_regularisation_term_for_each_column() -> None:
    schema = tt.Schema([column("a"), column("b"), column("c")])
    batch = {name: torch.tensor([1, 2]) for name in "abc"}
    terms = tt.Embeddings(schema, dim=4, l2_batch_regularization_factor=0.1).regularization(batch)
    assert set(terms) == {"a", "b", "c"}
    assert all(term > 0 for term in terms.values())
    assert tt.Embeddings(schema, dim=4).regularization(batch) == {}
    only = tt.Embeddings(schema, dim=4, l2_batch_regularization_factor={"b": 0.1}).regularization(batch)
    assert set(only) == {"b"}


def test_mlp_is_dense_activation_and_so_on() -> None:
    torch.manual_seed(1)
    block = tt.MLPBlock([3, 2])
    x = torch.randn(4, 5)
    out = block(x)
    first, second = [layer for layer in block.layers if isinstance(layer, nn.Linear)]
    expected = torch.relu(torch.relu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(out, expected)
    assert (out >= 0).all()  # Merlin's default: the last layer has the activation too
    limit = math.sqrt(6 / (5 + 3))
    assert first.weight.abs().max() <= limit  # Glorot
    assert first.bias.abs().max() == 0
    linear = tt.MLPBlock([3, 2], no_activation_last_layer=True, dropout=0.5)
    assert [type(layer).__name__ for layer in linear.layers] == ["LazyDense", "ReLU", "Dropout", "LazyDense"]
    assert (linear(x) < 0).any()


def test_mlp_options() -> None:
    kinds = [
        type(m).__name__ for m in tt.MLPBlock([4, 4], ["selu", "tanh"], dropout=0.1, normalization="layer_norm").layers
    ]
    assert kinds == ["LazyDense", "SELU", "AlphaDropout", "LayerNorm", "LazyDense", "Tanh", "Dropout", "LayerNorm"]
    own = tt.MLPBlock([4, 4], normalization=nn.LayerNorm(4))
    norms = [m for m in own.layers if isinstance(m, nn.LayerNorm)]
    assert norms[0] is not norms[1]  # copies; Merlin shares one among all layers
    with pytest.raises(ValueError, match="2 dimensions and 1 activations"):
        tt.MLPBlock([4, 4], ["relu"])
    with pytest.raises(ValueError, match="unknown activation 'rleu'.*Did you mean 'relu'"):
        tt.MLPBlock([4], "rleu")
    with pytest.raises(TypeError, match="MLPBlock: unknown option 'drop_out'.*Did you mean 'dropout'"):
        tt.MLPBlock([4], drop_out=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_block_against_its_formula(rank: int | None) -> None:
    torch.manual_seed(2)
    block = tt.CrossBlock(depth=2, low_rank_dim=rank)
    x0 = torch.randn(3, 4)
    out = block(x0)
    x = x0
    for layer in block.layers:
        w = layer.weight if rank is None else layer.weight @ layer.down
        x = torch.stack([x0[i] * (w @ x[i] + layer.bias) + x[i] for i in range(3)])
    torch.testing.assert_close(out, x)
    with pytest.raises(ValueError, match="depth >= 1, got 0"):
        tt.CrossBlock(depth=0)


def test_input_block_joins_columns_by_name() -> None:
    schema = tt.Schema(
        [
            column("b"),
            tt.ColumnSchema("a", tags=[Tags.CONTINUOUS], dtype="float32"),
            tt.ColumnSchema("c", tags=[Tags.EMBEDDING], dtype="float32", dims=((0, None), (3, 3))),
            tt.ColumnSchema("click", tags=[Tags.BINARY_CLASSIFICATION], dtype="int64"),
        ]
    )
    block = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema[["b"]], dim=2))
    batch = {
        "a": torch.tensor([7.0, 8]),
        "b": torch.tensor([1, 2]),
        "c": torch.ones(2, 3),
        "click": torch.tensor([1, 0]),
    }
    out = block(batch)
    expected = torch.cat([batch["a"][:, None], block.categorical.table("b").weight[[1, 2]], batch["c"]], 1)
    torch.testing.assert_close(out, expected)


def test_aggregations() -> None:
    schema = tt.Schema([column("a"), column("b")])
    batch = {"a": torch.tensor([1, 2]), "b": torch.tensor([3, 4])}
    for name, shape in (("concat", (2, 8)), ("sum", (2, 4)), ("elementwise-multiply", (2, 4)), ("stack", (2, 2, 4))):
        block = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema, dim=4), aggregation=name)
        assert block(batch).shape == shape
    parts = block.categorical(batch)
    total = tt.InputBlockV2(schema, categorical=block.categorical, aggregation="sum")(batch)
    torch.testing.assert_close(total, parts["a"] + parts["b"])
    uneven = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema, dim={"a": 4, "b": 8}), aggregation="sum")
    with pytest.raises(ValueError, match=r"columns of one width, got \[4, 8\]"):
        uneven(batch)


def test_select_by_tag_shares_the_tables() -> None:
    history = column("history", 9, "item_id", is_list=True).with_tags(Tags.USER)
    schema = tt.Schema([history, id_column("item_id", Tags.ITEM_ID, 9)])
    inputs = tt.InputBlockV2(schema)
    user, item = inputs.select_by_tag(Tags.USER), inputs.select_by_tag(Tags.ITEM)
    assert user.categorical.table("history") is item.categorical.table("item_id")
    assert user.schema.column_names == ["history"]


def test_input_block_errors() -> None:
    with pytest.raises(ValueError, match="column 'x' has no tag that says how to read it: add Tags.CATEGORICAL"):
        tt.InputBlockV2(tt.Schema([tt.ColumnSchema("x", dtype="int64")]))
    with pytest.raises(ValueError, match="at least one column that is no target"):
        tt.InputBlockV2(tt.Schema([tt.ColumnSchema("click", tags=[Tags.TARGET], dtype="int64")]))
    two = tt.Schema([column("a"), column("b")])
    with pytest.raises(ValueError, match=r"the categorical block lacks the columns \['b'\]"):
        tt.InputBlockV2(two, categorical=tt.Embeddings(two[["a"]]))
    with pytest.raises(ValueError, match="unknown aggregation 'avg'"):
        tt.InputBlockV2(two, aggregation="avg")


def test_pretrained_vectors_are_normalised_and_projected() -> None:
    schema = tt.Schema([tt.ColumnSchema("v", tags=[Tags.EMBEDDING], dtype="float32", dims=((0, None), (2, 2)))])
    vectors = {"v": torch.tensor([[3.0, 4.0]])}
    plain = tt.PretrainedEmbeddings(schema, normalizer="l2-norm")(vectors)["v"]
    torch.testing.assert_close(plain, torch.tensor([[0.6, 0.8]]))
    assert tt.PretrainedEmbeddings(schema, output_dims=5)(vectors)["v"].shape == (1, 5)


def test_encoder_knows_its_width_and_takes_any_module() -> None:
    schema = clubs(rows=10).schema.select_by_tag(Tags.USER)
    encoder = tt.Encoder(schema, nn.LazyLinear(12), nn.Tanh(), tt.MLPBlock([7]), post=tt.L2Norm())
    assert encoder.dim == 7
    assert not any(isinstance(p, nn.UninitializedParameter) for p in encoder.parameters())
    vectors = encoder(clubs(rows=10).batch())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(10))
    with pytest.raises(NotImplementedError, match="trained as a tower"):
        encoder.fit(None)
    with pytest.raises(ValueError, match="must end in one vector a row"):
        tt.Encoder(tt.InputBlockV2(schema.select_by_tag(Tags.CATEGORICAL), aggregation="stack"))
    with pytest.raises(ValueError, match="the batch lacks a column. unknown column 'user_height'"):
        encoder({"user_id": torch.tensor([1])})


def test_encode_gives_index_and_numbered_columns() -> None:
    data = clubs(rows=100)
    encoder = tt.Encoder(data.schema.select_by_tag(Tags.USER), tt.MLPBlock([8]))
    frame = encoder.encode(data, index=Tags.USER_ID, batch_size=30)
    assert frame.column_names == ["user_id", *map(str, range(8))]
    assert frame.num_rows == 100
    with torch.no_grad():
        torch.testing.assert_close(frame.batch()["3"], encoder.eval()(data.batch())[:, 3])
    table = tt.EmbeddingEncoder(data.schema["item_id"], 4)
    assert table.to_dataset().num_rows == 40
    with pytest.raises(ValueError, match="expected one column tagged 'session_id'"):
        encoder.encode(data, index=Tags.SESSION_ID)


def test_a_tower_can_be_saved_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=50)
    encoder = tt.Encoder(data.schema.select_by_tag(Tags.USER), tt.MLPBlock([8], dropout=0.5), post=tt.L2Norm())
    encoder.save(tmp_path / "tower")
    again = tt.Encoder.load(tmp_path / "tower")
    with torch.no_grad():
        torch.testing.assert_close(again(data.batch()), encoder.eval()(data.batch()))


def test_select_by_tag_loses_nothing_silently() -> None:
    vectors = tt.ColumnSchema("v", tags=[Tags.ITEM, Tags.EMBEDDING], dtype="float32", dims=((0, None), (3, 3)))
    schema = tt.Schema([id_column("item_id", Tags.ITEM_ID, 9), vectors])
    block = tt.InputBlockV2(schema, pretrained_embeddings=tt.PretrainedEmbeddings(schema[["v"]], output_dims=7))
    batch = {"item_id": torch.tensor([1]), "v": torch.ones(1, 3)}
    assert block.select_by_tag(Tags.ITEM)(batch).shape == block(batch).shape
    with pytest.raises(ValueError, match="select_by_tag cannot split pre and post"):
        tt.InputBlockV2(schema, post=tt.L2Norm()).select_by_tag(Tags.ITEM)


def test_columns_of_one_table_pool_each_in_its_own_way() -> None:
    item = tt.ColumnSchema("item", dtype="int64", properties={"domain": {"min": 0, "max": 2, "name": "item"}})
    history = tt.ColumnSchema(
        "history",
        dtype="int64",
        is_list=True,
        is_ragged=True,
        properties={"domain": {"min": 0, "max": 2, "name": "item"}},
    )
    viewed = tt.ColumnSchema(
        "viewed",
        dtype="int64",
        is_list=True,
        is_ragged=True,
        properties={"domain": {"min": 0, "max": 2, "name": "item"}},
    )
    block = tt.Embeddings(
        tt.Schema([item, history, viewed]),
        dim=1,
        embeddings_initializer={"item": torch.tensor([[1.0], [2.0], [6.0]])},
        sequence_combiner={"history": "sum", "viewed": "max"},
        l2_batch_regularization_factor={"history": 0.5},
    )
    lists = tt.Ragged.from_lists([[1, 2], [2]])
    batch = {"item": torch.tensor([0, 1]), "history": lists, "viewed": lists}
    for found in (block, block.select(tt.Schema([history, viewed]))):
        out = found(batch)
        assert out["history"].tolist() == [[8.0], [6.0]]
        assert out["viewed"].tolist() == [[6.0], [6.0]]
        assert found.regularization(batch)["history"].item() == pytest.approx(0.5 * (64 + 36))
    assert block.table("history") is block.table("item")


def test_columns_of_one_table_that_are_given_different_widths_are_refused() -> None:
    one, two = (
        tt.ColumnSchema(n, dtype="int64", properties={"domain": {"min": 0, "max": 2, "name": "x"}}) for n in "ab"
    )
    with pytest.raises(ValueError, match="share the table 'x', but were given different values"):
        tt.Embeddings(tt.Schema([one, two]), dim={"a": 4, "b": 8})
    assert tt.Embeddings(tt.Schema([one, two]), dim={"b": 8}).table("a").dim == 8


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn", "max"])
def test_lists_have_the_same_gradient_by_rows_and_dense(combiner: str) -> None:
    """Ids that repeat within a list and between lists, and empty lists; against autograd on a plain lookup."""
    lists = tt.Ragged.from_lists([[1, 2, 2], [], [5, 1], [3]])
    upstream = torch.arange(8, dtype=torch.float32).reshape(4, 2) - 3
    found = {}
    for by_rows in (True, False):
        table = tt.EmbeddingTable(2, column("x"), embeddings_initializer=WEIGHTS, sequence_combiner=combiner)
        table.row_gradients = by_rows
        out = table(lists)
        (out * upstream).sum().backward()
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse == by_rows
        found[by_rows] = (out.detach(), table.weight.grad.to_dense())
    weight = WEIGHTS.clone().requires_grad_()
    rows = []
    for ids in lists.to_lists():
        vectors = weight[torch.tensor(ids, dtype=torch.int64)]
        how = {"mean": lambda v: v.mean(0), "sum": lambda v: v.sum(0), "max": lambda v: v.amax(0)}
        how["sqrtn"] = lambda v: v.sum(0) / len(v) ** 0.5
        rows.append(how[combiner](vectors) if ids else torch.zeros(2))
    expected = torch.stack(rows)
    (expected * upstream).sum().backward()
    for out, gradient in found.values():
        torch.testing.assert_close(out, expected.detach())
        if combiner != "max":  # equal largest values may share the gradient in their own way
            torch.testing.assert_close(gradient, weight.grad)
