"""History encoders against slow loops, torch's own modules, and the promise that a state never sees what comes later."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import twotower as tt
from tests.worlds import id_column
from twotower import Ragged, Tags
from twotower.blocks.history.groups import group_by_length, padded_lengths
from twotower.blocks.history.transformer import _turned

DIM = 8
ENCODERS: dict[str, Callable[..., tt.HistoryEncoder]] = {
    "bag": lambda **given: tt.HistoryBag(DIM, **given),
    "bag, sum, decay": lambda **given: tt.HistoryBag(DIM, "sum", weights="decay", **given),
    "bag, positions": lambda **given: tt.HistoryBag(DIM, weights="positions", **{"max_length": 40, **given}),
    "gru": lambda **given: tt.HistoryGRU(DIM, **given),
    "gru, two layers": lambda **given: tt.HistoryGRU(DIM, 2, **given),
    "transformer": lambda **given: tt.HistoryTransformer(DIM, 2, 2, **given),
    "transformer, rotary": lambda **given: tt.HistoryTransformer(DIM, 1, 2, positions="rotary", **given),
    "transformer, post-norm": lambda **given: tt.HistoryTransformer(DIM, 2, 1, positions=None, pre_norm=False, **given),
}
LENGTHS = [3, 0, 1, 17, 9, 0, 2, 9, 33]


def lists(lengths: list[int], seed: int = 0) -> Ragged:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    generator = torch.Generator().manual_seed(seed)
    return Ragged(torch.randn(int(offsets[-1]), DIM, dtype=torch.float64, generator=generator), offsets)


def row(rows: Ragged, i: int) -> torch.Tensor:
    return rows.values[rows.offsets[i] : rows.offsets[i + 1]]


def one(vectors: torch.Tensor) -> Ragged:
    return Ragged(vectors, torch.tensor([0, len(vectors)]))


def made(name: str, **given: object) -> tt.HistoryEncoder:
    torch.manual_seed(1)
    encoder = ENCODERS[name](**given).double()
    for parameter in encoder.parameters():  # what starts at zero would hide mistakes
        nn.init.normal_(parameter, std=0.4)
    return encoder.eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_states_are_what_each_prefix_gives_by_itself(name: str) -> None:
    encoder, rows = made(name), lists(LENGTHS)
    states, after = encoder.states(rows), encoder(rows)
    from_start = encoder.states_from_start(rows)
    assert states.lengths().tolist() == LENGTHS
    for i, length in enumerate(LENGTHS):
        prefixes = torch.cat([encoder(one(row(rows, i)[: t + 1])) for t in range(length)] or [torch.zeros(0, DIM)])
        torch.testing.assert_close(row(states, i), prefixes.double())
        torch.testing.assert_close(after[i], row(states, i)[-1] if length else encoder.empty.data)
        torch.testing.assert_close(row(from_start, i), torch.cat([encoder.empty[None], row(states, i)]))


@pytest.mark.parametrize("name", ENCODERS)
def test_no_state_sees_what_comes_later_nor_another_row(name: str) -> None:
    """By the gradient: d state_t / d item_s is 0 unless s <= t in the same row; and not 0 there, but for the plain bag."""
    encoder, rows = made(name), lists([4, 0, 1, 9])
    rows.values.requires_grad_(True)
    states = encoder.states(rows)
    owner, place = rows.row_of_value(), torch.arange(14) - rows.offsets[rows.row_of_value()]
    for at in range(14):
        weight = torch.randn(DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(at))
        (gradient,) = torch.autograd.grad((states.values[at] * weight).sum(), rows.values, retain_graph=True)
        sees = (owner == owner[at]) & (place <= place[at])
        assert torch.equal(gradient.abs().sum(1) > 0, sees), f"state {at}"


@pytest.mark.parametrize("name", ENCODERS)
def test_changed_later_items_and_rows_leave_a_state_as_it_is_bit_for_bit(name: str) -> None:
    encoder, rows = made(name), lists(LENGTHS)
    other = rows.values.clone()
    other[rows.offsets[3] + 5 :] = 1e3
    before, after = encoder.states(rows), encoder.states(Ragged(other, rows.offsets))
    assert torch.equal(before.values[: rows.offsets[3] + 5], after.values[: rows.offsets[3] + 5])
    assert not torch.equal(before.values, after.values)


@pytest.mark.parametrize("name", ENCODERS)
def test_longer_lists_are_cut_to_the_latest(name: str) -> None:
    encoder, rows = made(name, max_length=5), lists(LENGTHS)
    cut = [row(rows, i)[-5:] for i in range(len(LENGTHS))]
    short = Ragged(torch.cat(cut), torch.tensor([0, *(len(part) for part in cut)]).cumsum(0))
    assert encoder.states(rows).lengths().tolist() == [min(length, 5) for length in LENGTHS]
    torch.testing.assert_close(encoder.states(rows).values, encoder.states(short).values)
    torch.testing.assert_close(encoder(rows), encoder(short))


@pytest.mark.parametrize("name", ENCODERS)
def test_widths_empty_batches_and_gradients(name: str) -> None:
    encoder = made(name, output_dim=3).train()
    rows = lists(LENGTHS)
    assert encoder(rows).shape == (len(LENGTHS), 3)
    assert encoder.states(rows).values.shape == (sum(LENGTHS), 3)
    (encoder(rows).square().sum() + encoder.states(rows).values.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    nothing = Ragged(torch.zeros(0, DIM, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(encoder(nothing), encoder.empty.expand(2, 3))
    assert encoder.states(nothing).values.shape == (0, 3)
    assert torch.equal(encoder.states_from_start(nothing).values, encoder.empty.expand(2, 3))
    with pytest.raises(ValueError, match=r"\(dim=8\) reads vectors of width 8, got 5"):
        encoder(one(torch.zeros(2, 5)))


def test_every_encoder_of_the_library_has_its_case() -> None:
    kinds = {kind for kind in map(tt.__dict__.get, tt.__all__) if isinstance(kind, type)}
    encoders = {kind for kind in kinds if issubclass(kind, tt.HistoryEncoder)} - {tt.HistoryEncoder}
    assert {type(make()) for make in ENCODERS.values()} == encoders


def test_latest_of_ragged() -> None:
    rows = Ragged.from_lists([[1, 2, 3], [], [4], [5, 6]])
    assert rows.latest(2).to_lists() == [[2, 3], [], [4], [5, 6]]
    assert rows.latest(9).to_lists() == rows.to_lists()


def test_padded_lengths_are_few_and_near() -> None:
    lengths = torch.arange(1, 2000)
    padded = padded_lengths(lengths, 4)
    assert bool((padded >= lengths).all())
    assert float((padded / lengths).max()) < 1.25
    assert len(padded.unique()) < 45
    assert torch.equal(padded[:8], lengths[:8])


def test_groups_put_every_value_into_its_slot() -> None:
    rows = lists([3, 1, 17, 9, 3])
    groups = group_by_length(rows)
    slots = rows.values[groups.source]
    assert torch.equal(slots[groups.slot], rows.values)
    assert groups.shapes == [(1, 1), (2, 3), (1, 10), (1, 17)]
    assert groups.order.tolist() == [1, 0, 4, 3, 2]
    assert torch.equal(slots[groups.last], rows.values[rows.offsets[1:] - 1][groups.order])
    by_hand = [row(rows, i)[-1] for i in groups.order]
    assert torch.equal(torch.cat([part[:, -1] for part in groups.split(slots)]), torch.stack(by_hand))


# ---- each encoder against its definition


def test_bag_against_a_loop() -> None:
    rows = lists(LENGTHS)
    decay, places = (made(name).requires_grad_(False) for name in ("bag, sum, decay", "bag, positions"))
    rate = math.log(1 + math.exp(float(decay.raw)))
    for i, length in enumerate(LENGTHS):
        newest_first = row(rows, i).flip(0)
        if not length:
            continue
        total = sum(math.exp(-rate * k) * newest_first[k] for k in range(length))
        torch.testing.assert_close(decay(rows)[i], total)
        weights = [math.exp(places.raw[k]) for k in range(length)]
        mean = sum(w * v for w, v in zip(weights, newest_first, strict=True)) / sum(weights)
        torch.testing.assert_close(places(rows)[i], mean)
        torch.testing.assert_close(made("bag")(rows)[i], row(rows, i).mean(0))


def test_a_new_bag_is_the_mean_and_its_weights_fall_by_a_tenth() -> None:
    rows = Ragged.from_lists([[1.0, 2.0, 6.0], []])
    rows = Ragged(rows.values[:, None], rows.offsets)
    assert tt.HistoryBag(1)(rows).tolist() == [[3.0], [0.0]]
    assert tt.HistoryBag(1, "sum", weights="positions", max_length=2)(rows).tolist() == [[8.0], [0.0]]
    torch.testing.assert_close(tt.HistoryBag(1, weights="decay").rates(3), torch.tensor([0.0, -0.1, -0.2]).exp())


@pytest.mark.parametrize("layers", [1, 2])
def test_gru_is_torchs_gru_row_by_row(layers: int) -> None:
    encoder, rows = tt.HistoryGRU(DIM, layers, output_dim=5).double(), lists(LENGTHS)
    states = encoder.states(rows)
    for i, length in enumerate(LENGTHS):
        if length:
            torch.testing.assert_close(row(states, i), encoder.gru(row(rows, i))[0])


@pytest.mark.parametrize("pre_norm", [True, False])
def test_transformer_is_torchs_encoder_padded_and_masked(pre_norm: bool) -> None:
    encoder = tt.HistoryTransformer(DIM, 2, 2, pre_norm=pre_norm, hidden_dim=12).double().eval()
    layer = nn.TransformerEncoderLayer(DIM, 2, 12, dropout=0.0, batch_first=True, norm_first=pre_norm)
    end = nn.LayerNorm(DIM) if pre_norm else None
    reference = nn.TransformerEncoder(layer, 2, norm=end, enable_nested_tensor=False).double().eval()
    for ours, theirs in zip(encoder.blocks, reference.layers, strict=True):
        theirs.self_attn.in_proj_weight.data = torch.cat([ours.query.weight, ours.key_value.weight]).data
        theirs.self_attn.in_proj_bias.data = torch.cat([ours.query.bias, ours.key_value.bias]).data
        pairs = [
            (ours.out, theirs.self_attn.out_proj), (ours.up, theirs.linear1), (ours.down, theirs.linear2),
            (ours.norm_attention, theirs.norm1), (ours.norm_forward, theirs.norm2),
        ]  # fmt: skip
        for mine, other in pairs:
            other.load_state_dict(mine.state_dict())
    rows = lists(LENGTHS)
    longest = max(LENGTHS)
    padded, beyond = torch.zeros(len(LENGTHS), longest, DIM).double(), torch.ones(len(LENGTHS), longest).bool()
    for i, length in enumerate(LENGTHS):
        padded[i, :length] = row(rows, i) * math.sqrt(DIM) + encoder.place.weight[:length]
        beyond[i, :length] = False
    causal = torch.ones(longest, longest).triu(1).bool()
    expected = reference(padded, mask=causal, src_key_padding_mask=beyond)
    states = encoder.states(rows)
    for i, length in enumerate(LENGTHS):
        torch.testing.assert_close(row(states, i), expected[i, :length])


def test_rotary_positions_know_distances_only() -> None:
    """The scores of one layer depend on how far apart two items are: the same items later in a window attend alike."""
    encoder = made("transformer, rotary")
    item, other = torch.randn(2, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    query, key = (vector[None, None, :4].expand(12, 1, 4) for vector in (item, other))
    cos, sin = encoder._turn(torch.arange(12))
    scores = _turned(query, cos, sin)[:, 0] @ _turned(key, cos, sin)[:, 0].T
    for distance in (0, 1, 5):
        same = scores.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert not torch.isclose(scores[0, 0], scores[0, 5])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_order_counts_with_positions(positions: str) -> None:
    encoder = tt.HistoryTransformer(DIM, 1, 2, positions=positions).double().eval()
    vectors = lists([4]).values
    swapped = vectors[[1, 0, 2, 3]]
    assert not torch.allclose(encoder(one(vectors)), encoder(one(swapped)), atol=1e-6)
    bare = tt.HistoryTransformer(DIM, 1, 2, positions=None).double().eval()
    torch.testing.assert_close(bare(one(vectors)), bare(one(swapped)))  # one layer without positions sees a set


def test_dropout_falls_in_training_only() -> None:
    encoder = tt.HistoryTransformer(DIM, 1, 2, dropout=0.5).double()
    rows = lists(LENGTHS)
    assert not torch.equal(encoder(rows), encoder(rows))
    encoder.eval()
    assert torch.equal(encoder(rows), encoder(rows))


def test_attention_dropout_is_told_apart_from_dropout() -> None:
    rows = lists(LENGTHS)
    alone = tt.HistoryTransformer(DIM, 1, 2, attention_dropout=0.5).double()
    # a list of one item has one weight in each of two heads, so that dropout leaves each head's value or nothing
    item = one(lists([1]).values)
    assert len({tuple(alone(item).squeeze(0).tolist()) for _ in range(60)}) == 4
    none = tt.HistoryTransformer(DIM, 1, 2, dropout=0.5, attention_dropout=0.0).double()
    for module in none.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(none(rows), none(rows))


def test_errors_of_encoders() -> None:
    with pytest.raises(ValueError, match="HistoryGRU needs max_length >= 1, got 0"):
        tt.HistoryGRU(4, max_length=0)
    with pytest.raises(ValueError, match="unknown combiner 'max': choose from 'mean', 'sum'"):
        tt.HistoryBag(4, "max")
    with pytest.raises(ValueError, match="unknown weights 'decays'.*Did you mean 'decay'"):
        tt.HistoryBag(4, weights="decays")
    with pytest.raises(ValueError, match="needs max_length"):
        tt.HistoryBag(4, weights="positions")
    with pytest.raises(ValueError, match="dropout in .*layers=1 and dropout=0.2"):
        tt.HistoryGRU(4, dropout=0.2)
    with pytest.raises(ValueError, match="attention_dropout=1.5"):
        tt.HistoryTransformer(4, attention_dropout=1.5)
    with pytest.raises(ValueError, match="heads=3 with dim=4"):
        tt.HistoryTransformer(4, heads=3)
    with pytest.raises(ValueError, match="unknown positions 'sinus': choose from 'learned', 'rotary'"):
        tt.HistoryTransformer(4, positions="sinus")
    with pytest.raises(ValueError, match="must be even, got 1"):
        tt.HistoryTransformer(4, heads=4, positions="rotary")


# ---- in a tower


def test_an_encoder_in_a_tower_reads_the_table_that_both_towers_share() -> None:
    history = tt.ColumnSchema(
        "history", tags=[Tags.USER, Tags.CATEGORICAL], dtype="int64", is_list=True, is_ragged=True,
        properties={"domain": {"min": 0, "max": 9, "name": "item_id"}},
    )  # fmt: skip
    schema = tt.Schema([history, id_column("item_id", Tags.ITEM_ID, 9)])
    encoder = tt.HistoryTransformer(4)
    inputs = tt.InputBlockV2(schema, categorical=tt.Embeddings(schema, dim=4, sequence_combiner={"history": encoder}))
    query, candidate = (tt.Encoder(inputs.select_by_tag(side)) for side in (Tags.USER, Tags.ITEM))
    ids = Ragged.from_lists([[1, 2], [], [9]])
    weight = candidate.inputs.categorical.table("item_id").weight
    torch.testing.assert_close(query({"history": ids}), encoder(Ragged(weight[ids.values], ids.offsets)))
    assert set(encoder.parameters()) <= set(query.parameters())
    dense = torch.tensor([[1, 2], [3, 4]])
    torch.testing.assert_close(query({"history": dense}), query({"history": Ragged.from_lists(dense.tolist())}))


def test_a_tower_with_an_encoder_is_saved_and_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    history = tt.ColumnSchema(
        "history", tags=[Tags.CATEGORICAL], dtype="int64", is_list=True, properties={"domain": {"min": 0, "max": 9}}
    )
    for encoder in (
        tt.HistoryTransformer(4, positions="rotary", heads=2, max_length=3),
        tt.HistoryGRU(4, output_dim=2),
    ):
        schema = tt.Schema([history])
        embeddings = tt.Embeddings(schema, dim=4, sequence_combiner={"history": encoder})
        tower = tt.Encoder(tt.InputBlockV2(schema, categorical=embeddings)).eval()
        tower.save(tmp_path / "tower")
        batch = {"history": Ragged.from_lists([[1, 2, 3, 4, 5], []])}
        torch.testing.assert_close(tt.Encoder.load(tmp_path / "tower")(batch), tower(batch))
