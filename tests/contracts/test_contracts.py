"""What every part of a kind must do. A new part is one file, its line in the library's table, and its line here."""

import copy

import pytest
import torch
from torch import nn

import twotower as tt
from tests.worlds import id_column
from twotower import Tags
from twotower.candidates import Candidates
from twotower.losses import LOSSES
from twotower.metrics import METRICS
from twotower.optimizers import OPTIMIZERS
from twotower.samplers import SAMPLERS
from twotower.saving import describe, rebuild

ITEM = id_column("item_id", Tags.ITEM_ID, 49)
SCHEMA = tt.Schema([ITEM, tt.ColumnSchema("x", tags=[Tags.CONTINUOUS], dtype="float32")])
KNOWN = ITEM.with_properties({"unknown_id": 1})
LISTS = ITEM.with_name("lists").with_dtype("int64", is_list=True)
ROWS = tt.ColumnSchema("image", [Tags.EMBEDDING], "int64", properties={"domain": {"min": 0, "max": 2}})
BATCH = {"item_id": torch.tensor([3, 4, 3]), "x": torch.tensor([0.5, 1.0, 1.5])}

SAMPLER_CASES = {
    "in-batch": tt.InBatchSamplerV2,
    "in-batch, streaming": lambda: tt.InBatchSamplerV2("streaming"),
    "uniform": lambda: tt.UniformSampler(max_num_samples=7),
    "popularity": lambda: tt.PopularitySampler(max_num_samples=7, seed=1),
    "popularity with repeats": lambda: tt.PopularitySampler(max_num_samples=7, unique=False, seed=1),
    "log-uniform": lambda: tt.PopularityBasedSamplerV2(max_id=49, max_num_samples=7, seed=1),
    "log-uniform with repeats": lambda: tt.PopularityBasedSamplerV2(max_id=49, max_num_samples=7, unique=False, seed=1),
    "catalog": tt.CatalogSampler,
    "cross-batch": lambda: tt.CrossBatchSampler(capacity=6, warmup_steps=0),
    "column": lambda: tt.ColumnSampler("shown"),
    "hard": lambda: tt.HardNegativeSampler(num_negatives=2, skip=1, warmup_steps=0),
}
# block, the width it is given, the width it must give
BLOCK_CASES = {
    "MLPBlock": (lambda: tt.MLPBlock([6, 4], dropout=0.2, normalization="layer_norm"), 5, 4),
    "CrossBlock": (lambda: tt.CrossBlock(depth=2, low_rank_dim=2), 5, 5),
    "L2Norm": (tt.L2Norm, 5, 5),
}
MODULE_CASES = {
    **{name: make for name, (make, _, _) in BLOCK_CASES.items()},
    **SAMPLER_CASES,
    "EmbeddingTable": lambda: tt.EmbeddingTable(4, ITEM, sequence_combiner="max"),
    "Embeddings": lambda: tt.Embeddings(tt.Schema([ITEM]), dim=4),
    "Embeddings, id dropout": lambda: tt.Embeddings(tt.Schema([KNOWN]), dim=4, id_dropout={"item_id": 0.5}),
    "Embeddings, weights": lambda: tt.Embeddings(tt.Schema([LISTS]), dim=4, sequence_weights={"lists": "weights"}),
    "AttentionPooling": lambda: tt.AttentionPooling(4),
    "ContinuousEmbedding": lambda: tt.ContinuousEmbedding(SCHEMA[["x"]], 4),
    "ContinuousEmbedding, periodic": lambda: tt.ContinuousEmbedding(SCHEMA[["x"]], 4, kind="periodic"),
    "PretrainedEmbeddings": lambda: tt.PretrainedEmbeddings(tt.Schema([ROWS]), vectors={"image": torch.eye(3).half()}),
    "HistoryBag": lambda: tt.HistoryBag(4, "sum", weights="positions", max_length=3),
    "HistoryGRU": lambda: tt.HistoryGRU(4, 2, dropout=0.1, output_dim=3),
    "HistoryTransformer": lambda: tt.HistoryTransformer(4, 1, 2, positions="rotary", pre_norm=False, hidden_dim=3),
    "InputBlockV2": lambda: tt.InputBlockV2(SCHEMA),
    "Encoder": lambda: tt.Encoder(SCHEMA, tt.MLPBlock([4]), nn.Tanh(), post=tt.L2Norm()),
    "EmbeddingEncoder": lambda: tt.EmbeddingEncoder(ITEM, 4),
    "DotProduct": tt.DotProduct,
    "ContrastiveOutput": lambda: tt.ContrastiveOutput(ITEM, ["in-batch", "popularity"], logits_temperature=0.5),
    "BinaryOutput": lambda: _shown(tt.BinaryOutput("like", logits_temperature=2.0)),
    "RegressionOutput": lambda: _shown(tt.RegressionOutput("stars", name="s")),
}


def _shown(output: nn.Module) -> nn.Module:
    output.predict(torch.zeros(2, 3), torch.zeros(2, 3))
    return output


def test_every_named_part_has_its_case() -> None:
    assert set(SAMPLERS) <= set(SAMPLER_CASES)


@pytest.mark.parametrize("name", SAMPLER_CASES)
def test_samplers(name: str) -> None:
    """Ids and vectors belong together, expected counts are finite for what was drawn, gradients reach the tower."""
    sampler = SAMPLER_CASES[name]()
    sampler.adapt(torch.arange(50).repeat(3), torch.arange(50))
    table = torch.randn(50, 4, requires_grad=True)
    ids, shown = torch.tensor([3, 4, 3, 9]), tt.Ragged.from_lists([[1, 2], [], [7], [9]])
    step = tt.Step({"shown": shown}, torch.randn(4, 4), Candidates(ids, table[ids]), lambda wanted: table[wanted])
    assert set(sampler.reads) <= set(step.batch)
    sampler(step)
    draw = sampler(step)
    pool = draw.candidates
    assert pool.vectors.shape == (len(pool), 4)
    assert torch.equal(pool.vectors, table[pool.ids])
    expected = draw.log_expected_count(pool.ids)
    assert expected.shape == (len(pool),)
    assert torch.isfinite(expected).all()
    if draw.row is not None:
        assert draw.row.shape == (len(pool),)
        assert 0 <= int(draw.row.min()) <= int(draw.row.max()) < 4
    else:
        # what is expected in all is what was drawn, for weighted distinct draws on average; an estimate has just begun
        draws = [sampler(step) for _ in range(200)]
        expected_in_all = sum(float(d.log_expected_count(torch.arange(50)).exp().sum()) for d in draws)
        assert "streaming" in name or expected_in_all == pytest.approx(
            sum(d.candidates.total() for d in draws), rel=0.1
        )
    if name != "cross-batch":  # its vectors are remembered, not encoded
        pool.vectors.sum().backward()
        assert table.grad is not None
    assert copy.deepcopy(sampler).state_dict().keys() == sampler.state_dict().keys()


@pytest.mark.parametrize("name", SAMPLER_CASES)
def test_samplers_go_on_from_their_state(name: str) -> None:
    """After load_state_dict a new sampler draws what the old one would have drawn."""
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))

    def step(*ids: int) -> tt.Step:
        batch = torch.tensor(ids)
        columns = {"shown": batch[:, None] + 1}
        return tt.Step(columns, table[batch], Candidates(batch, table[batch]), lambda wanted: table[wanted])

    old, new = SAMPLER_CASES[name](), SAMPLER_CASES[name]()
    old.adapt(torch.arange(50).repeat(3), torch.arange(50))
    for ids in ((1, 2, 3), (4, 5, 5)):
        old(step(*ids))
    new.load_state_dict(old.state_dict())
    for ids in ((7, 8, 8), (9, 1, 2)):
        one, other = old(step(*ids)), new(step(*ids))
        assert torch.equal(one.candidates.ids, other.candidates.ids)
        assert torch.equal(one.candidates.vectors, other.candidates.vectors)
        asked = torch.arange(50)
        assert torch.equal(one.log_expected_count(asked), other.log_expected_count(asked))


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    """(B,) out, each row on its own, the order of negatives without effect."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(5, generator=generator), torch.randn(5, 7, generator=generator)
    loss = LOSSES[name](positive, negative)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss[2:3], LOSSES[name](positive[2:3], negative[2:3]))
    torch.testing.assert_close(loss, LOSSES[name](positive, negative.flip(1)))


@pytest.mark.parametrize("kind", sorted({type(kind(1)).__name__ for kind in METRICS.values()}))
def test_metrics(kind: str) -> None:
    """In [0, 1]; 1 for a perfect ranking (precision needs k positives), 0 for none found; a hit further up never hurts."""
    metric = getattr(tt, kind)(3)
    assert metric.name.endswith("_3")
    three = torch.tensor([3])
    assert metric(torch.tensor([[1, 1, 1, 0]]), three).item() == 1
    assert metric(torch.tensor([[0, 0, 0, 1]]), three).item() == 0
    lower, upper = metric(torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0]]), torch.tensor([1, 1])).tolist()
    assert 0 < lower <= upper <= 1


@pytest.mark.parametrize("name", BLOCK_CASES)
def test_blocks(name: str) -> None:
    """(B, W) to (B, D), each row on its own in evaluation mode, gradients to the input."""
    make, width, out_width = BLOCK_CASES[name]
    block = make().eval()
    x = torch.randn(3, width, requires_grad=True)
    out = block(x)
    assert out.shape == (3, out_width)
    torch.testing.assert_close(block(x[1:2]), out[1:2])
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", MODULE_CASES)
def test_modules_can_be_described_and_rebuilt(name: str) -> None:
    """The structure goes through JSON; the rebuilt module takes the weights and is described the same."""
    module = MODULE_CASES[name]()
    if name in BLOCK_CASES:  # widths that a first batch gives
        module(torch.randn(2, BLOCK_CASES[name][1]))
    text = describe(module)
    again = rebuild(text)
    if name in BLOCK_CASES:
        again(torch.randn(2, BLOCK_CASES[name][1]))
    if "Output" in name and name != "ContrastiveOutput":
        _shown(again)
    assert type(again) is type(module)
    again.load_state_dict(module.state_dict())
    assert describe(again) == text


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    """A step downhill, and no parameter that is frozen."""
    kind, rate, _ = OPTIMIZERS[name]
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = kind([weight], lr=rate)
    weight.square().sum().backward()
    optimizer.step()
    assert 0 < weight.item() < 2
