"""The fused loss against the plain one, and distinct rows against all rows."""

from functools import partial

import pytest
import torch
from torch import Tensor

import twotower as tt
from tests.worlds import clubs, towers
from twotower.data.batch import take
from twotower.distinct import encode_in_parts
from twotower.losses import bsl, fused, fused_ratio, fused_softmax, softmax
from twotower.losses.fused import Hidden, Positives


def made_up(
    dtype: torch.dtype, scale: float, hidden_share: float, queries: int = 11, pool: int = 17, rows: int = 40
) -> dict[str, Tensor]:
    """Queries with several rows, rows with weight 0, own negatives for some, one row that sees nothing of the pool."""
    g = torch.Generator().manual_seed(0)
    own = torch.randn(rows, generator=g, dtype=torch.float64)
    own[::3] = -torch.inf
    weight = torch.rand(rows, generator=g, dtype=torch.float64)
    weight[3] = 0
    hidden = torch.rand(rows, pool, generator=g) < hidden_share
    hidden[5] = True
    floats = {
        "query": torch.randn(queries, 6, generator=g, dtype=torch.float64) * scale,
        "pool": torch.randn(pool, 6, generator=g, dtype=torch.float64),
        "offset": torch.randn(pool, generator=g, dtype=torch.float64),
        "candidate": torch.randn(7, 6, generator=g, dtype=torch.float64),
        "positive_offset": torch.randn(rows, generator=g, dtype=torch.float64),
        "own": own,
        "weight": weight,
    }
    return {name: value.to(dtype) for name, value in floats.items()} | {
        "query_row": torch.randint(queries, (rows,), generator=g),
        "candidate_row": torch.randint(7, (rows,), generator=g),
        "hidden": hidden,
    }


def plain(x: dict[str, Tensor], ratio: float | None = None) -> Tensor:
    query = x["query"][x["query_row"]]
    positive = (query * x["candidate"][x["candidate_row"]]).sum(1) + x["positive_offset"]
    scores = (query @ x["pool"].T + x["offset"]).masked_fill(x["hidden"], -torch.inf)
    loss = softmax if ratio is None else partial(bsl, ratio=ratio)
    return (loss(positive, torch.cat([scores, x["own"][:, None]], 1)) * x["weight"]).sum()


def fused_loss(x: dict[str, Tensor], ratio: float | None = None) -> Tensor:
    hidden = Hidden(*x["hidden"].nonzero(as_tuple=True))
    positives = Positives(x["candidate"], x["query_row"], x["candidate_row"], x["positive_offset"])
    return fused_softmax(x["query"], positives, x["pool"], x["offset"], hidden, x["weight"], x["own"], ratio=ratio)


def value_and_gradients(loss: object, x: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: x[name].clone().requires_grad_() for name in ("query", "pool", "candidate", "own")}
    value = loss(x | leaves)  # type: ignore[operator]
    (3 * value).backward()
    return [value.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


def doubled(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v.double() if v.is_floating_point() else v for name, v in x.items()}


@pytest.mark.parametrize("ratio", [None, 0.8])
@pytest.mark.parametrize("group_rows", [1, 2, 64])
@pytest.mark.parametrize("tile_rows", [2, 64])
@pytest.mark.parametrize("hidden_share", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # logits of hundreds: beyond the range of exp in float32
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_fused_is_plain_in_value_and_gradient(
    dtype: torch.dtype, bound: float, scale: float, hidden_share: float, tile_rows: int, group_rows: int,
    ratio: float | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fused, "TILE_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(fused, "MIN_TILE_ROWS", tile_rows)
    monkeypatch.setattr(fused, "GROUP_ROWS", group_rows)
    x = made_up(dtype, scale, hidden_share)
    x["own"][5] = -torch.inf  # nothing at all to lose against
    losses = partial(fused_loss, ratio=ratio), partial(plain, ratio=ratio)
    got_all, expected_all = value_and_gradients(losses[0], x), value_and_gradients(losses[1], doubled(x))
    for got, expected in zip(got_all, expected_all, strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got.double(), expected, rtol=bound, atol=bound * float(expected.abs().max()))


def test_which_losses_are_fused() -> None:
    assert fused_ratio(softmax) == (True, None)
    assert fused_ratio(bsl) == (True, 1.0)
    assert fused_ratio(partial(bsl, ratio=0.8)) == (True, 0.8)
    for other in (tt.losses.bpr, partial(tt.losses.slatk, k=5), lambda p, n: bsl(p, n)):
        assert fused_ratio(other) == (False, None)


def test_in_bfloat16_the_error_is_that_of_rounding_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the largest: value within 0.2 %, gradients within 1 %; about what plain autocast gives."""
    monkeypatch.setattr(fused, "has_bfloat16_products", lambda device: True)
    x = made_up(torch.float32, 1.0, 0.1, queries=150, pool=300, rows=200)
    exact = value_and_gradients(plain, doubled(x))
    with torch.autocast("cpu", torch.bfloat16):
        got, usual = value_and_gradients(fused_loss, x), value_and_gradients(plain, x)

    def error(values: list[Tensor]) -> list[float]:
        return [float((v.double() - e).norm() / e.norm()) for v, e in zip(values, exact, strict=True)]

    value, *gradients = error(got)
    assert 1e-7 < value < 2e-3  # bfloat16 was used at all
    assert max(gradients) < 1e-2
    assert max(gradients) < 1.5 * max(error(usual)[1:])


def test_a_processor_without_bfloat16_products_takes_them_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "has_bfloat16_products", lambda device: False)
    x = made_up(torch.float32, 1.0, 0.1, queries=150, pool=300, rows=200)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = value_and_gradients(fused_loss, x)
    for got, expected in zip(under_autocast, value_and_gradients(fused_loss, x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("loss", ["softmax", "bsl", "bpr", "top1-max"])
@pytest.mark.parametrize("correction", ["logq", "corrected", False])
@pytest.mark.parametrize("samplers", [["in-batch"], ["in-batch", "uniform"]])
def test_encoding_distinct_rows_once_changes_nothing(loss: str, correction: str | bool, samplers: list[str]) -> None:
    data = clubs()
    torch.manual_seed(0)
    query, candidate = towers(data)
    model = tt.TwoTowerModelV2(
        query, candidate, logits_temperature=0.5, logq_sampling_correction=correction,
        negative_samplers=[tt.UniformSampler(20, seed=1) if s == "uniform" else s for s in samplers],
    ).adapt(data)  # fmt: skip
    model.compile(loss=loss)
    batch = tt.sample_batch(data, 200)
    results = []
    for every_row in (False, True):
        query.mixes_rows = candidate.mixes_rows = every_row
        for sampler in model.outputs[0].negative_samplers[1:]:
            sampler.generator.manual_seed(1)
        model.zero_grad()
        value = model.loss(batch)
        value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for distinct, every in zip(*results, strict=True):
        torch.testing.assert_close(distinct, every, rtol=2e-5, atol=2e-6)


def test_rows_are_encoded_once_only_where_their_columns_follow_from_the_id() -> None:
    data = clubs()
    query, candidate = towers(data)
    seen: list[int] = []
    query.blocks[0].register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model = tt.TwoTowerModelV2(query, candidate).adapt(data)
    batch = tt.sample_batch(data, 100)
    model.loss(batch)
    height = batch["user_height"]
    assert isinstance(height, Tensor)
    batch["user_height"] = height + torch.arange(100) / 1e6
    model.loss(batch)
    users = batch["user_id"]
    assert isinstance(users, Tensor)
    assert seen == [len(users.unique()), 100]
    with_norm = tt.Encoder(query.schema, tt.MLPBlock([8], normalization="batch_norm"))
    assert with_norm.mixes_rows
    assert not query.mixes_rows


def test_encoding_in_parts_changes_nothing_but_how_many_rows_are_held() -> None:
    """Loss and gradients, also of candidates that a sampler drew; no layer sees more than the rows asked for."""
    data = clubs()
    torch.manual_seed(0)
    query, candidate = towers(data)
    uniform = tt.UniformSampler(30, seed=1)
    model = tt.TwoTowerModelV2(query, candidate, negative_samplers=["in-batch", uniform]).adapt(data)
    batch = tt.sample_batch(data, 300)
    seen: list[int] = []
    for tower in (query, candidate):
        tower.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    results = []
    for encode_rows in (None, 7):
        model.compile(encode_rows=encode_rows, table_optimizer="lazy_adam")
        model.compiled.make_optimizer(model)  # tables give sparse gradients, in several pieces
        uniform.generator.manual_seed(1)
        model.zero_grad()
        seen.clear()
        value = model.loss(batch)
        value.backward()
        results.append([value.detach(), *(p.grad.to_dense() for p in model.parameters() if p.grad is not None)])
    assert max(seen) == 7
    assert len(seen) == 2 * (9 + 6 + 5)  # 60 users, 40 items and 30 drawn, forward and again for the gradient
    for in_parts, whole in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=2e-5, atol=1e-6)


def test_encoding_in_parts_drops_the_same_units_in_both_passes() -> None:
    data = clubs()
    query = tt.Encoder(data.schema.select_by_tag(tt.Tags.USER), tt.MLPBlock([16], dropout=0.5))
    columns = tt.sample_batch(data, 50)
    results = []
    for encode in (
        lambda: encode_in_parts(query, columns, 20),
        lambda: torch.cat([query(take(columns, part)) for part in torch.arange(50).split(20)]),
    ):
        torch.manual_seed(5)
        query.zero_grad()
        encode().square().sum().backward()
        results.append([p.grad.clone() for p in query.parameters() if p.grad is not None])
    torch.testing.assert_close(*results)


def test_encoding_in_parts_refuses_batch_normalisation() -> None:
    data = clubs()
    user = tt.Encoder(data.schema.select_by_tag(tt.Tags.USER), tt.MLPBlock([16], normalization="batch_norm"))
    _, item = towers(data)
    model = tt.TwoTowerModelV2(user, item).adapt(data)
    model.compile(encode_rows=10)
    with pytest.raises(ValueError, match="encode_rows=10 encodes 100 rows in parts, but the tower has batch norm"):
        model.loss(tt.sample_batch(data, 100))
    with pytest.raises(ValueError, match="encode_rows must be at least 1, got 0"):
        model.compile(encode_rows=0)
