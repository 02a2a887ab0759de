"""Samplers against enumeration and simulation."""

import itertools
import math

import pytest
import torch

import twotower as tt
from tests.worlds import clubs, id_column
from twotower.candidates import Candidates
from twotower.samplers import SAMPLERS

NOTHING = Candidates(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2))


def step(batch: Candidates) -> tt.Step:
    return tt.Step({}, batch.vectors, batch, lambda ids: torch.zeros(len(ids), 2))


def draw(sampler: tt.CandidateSampler) -> tt.Draw:
    return sampler(step(NOTHING))


def repeated(drawn: Candidates) -> torch.Tensor:
    """The ids, each as often as it counts."""
    return drawn.ids if drawn.counts is None else drawn.ids.repeat_interleave(drawn.counts)


def test_log_uniform_probabilities_are_merlins() -> None:
    sampler = tt.PopularityBasedSamplerV2(max_id=9, min_id=2, max_num_samples=3, unique=False)
    merlin = [0, 0, 0.315465, 0.184535, 0.130930, 0.101557, 0.082978, 0.070157, 0.060773, 0.053605]
    torch.testing.assert_close(sampler.probabilities(), torch.tensor(merlin, dtype=torch.float64), atol=1e-6, rtol=0)
    assert sampler.probabilities().sum().item() == pytest.approx(1)


def test_draws_with_replacement_follow_the_probabilities() -> None:
    sampler = tt.PopularityBasedSamplerV2(max_id=9, min_id=2, max_num_samples=20_000, unique=False, seed=3)
    drawn = draw(sampler).candidates
    assert len(drawn) == 8  # each id once, with its count
    ids = repeated(drawn)
    p = sampler.probabilities()
    share = torch.bincount(ids, minlength=10) / 20_000
    error = (p * (1 - p) / 20_000).sqrt()
    assert (ids >= 2).all()
    assert share[9] > 0  # the largest id is drawn too; Merlin's sampler never draws it
    assert ((share - p).abs() <= 4 * error).all()
    expected = draw(sampler).log_expected_count(torch.tensor([2, 9, 1, 10]))
    by_hand = [math.log(20_000 * math.log(2) / math.log(9)), math.log(20_000 * math.log(9 / 8) / math.log(9))]
    assert expected.tolist() == pytest.approx([*by_hand, -math.inf, -math.inf], abs=1e-4)


def test_distinct_draws_occur_as_often_as_enumeration_says() -> None:
    sampler = tt.PopularityBasedSamplerV2(max_id=9, max_num_samples=3, seed=1)
    p = sampler.probabilities().tolist()
    included = [0.0] * 10
    for a, b, c in itertools.permutations(range(10), 3):  # one id after another, without replacement
        chance = p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
        for drawn in (a, b, c):
            included[drawn] += chance
    assert sum(included) == pytest.approx(3)
    runs = 4000
    count = torch.zeros(10)
    for _ in range(runs):
        ids = draw(sampler).candidates.ids
        assert len(ids.unique()) == 3
        count[ids] += 1
    inclusion = torch.tensor(included)
    error = (inclusion * (1 - inclusion) / runs).sqrt()
    assert ((count / runs - inclusion).abs() <= 4 * error).all()
    # Merlin's formula 1 - (1 - p)^3 is far from it: its ten numbers sum to 2.57 while three ids are drawn
    merlin = torch.tensor([1 - (1 - q) ** 3 for q in p])
    assert merlin[0].item() == pytest.approx(0.640673, abs=1e-6)
    assert merlin.sum().item() == pytest.approx(2.5702, abs=1e-3)


UNBIASED = {
    "log-uniform": lambda: tt.PopularityBasedSamplerV2(max_id=19, max_num_samples=6, seed=5),
    "log-uniform with repeats": lambda: tt.PopularityBasedSamplerV2(max_id=19, max_num_samples=6, unique=False, seed=5),
    "counted": lambda: tt.PopularitySampler(max_num_samples=6, seed=5),
    "counted, flattened, with repeats": lambda: tt.PopularitySampler(6, power=0.5, unique=False, seed=5),
    "given": lambda: tt.PopularitySampler(6, weights=torch.arange(1, 21), seed=5),
    "uniform": lambda: tt.UniformSampler(max_num_samples=6, seed=5),
    "catalog": tt.CatalogSampler,
}


@pytest.mark.parametrize("name", UNBIASED)
def test_corrected_sum_over_the_pool_is_unbiased(name: str) -> None:
    """E[sum over the pool of f_j / E_j] = sum over all items of f_j, to within four standard errors."""
    sampler = UNBIASED[name]()
    sampler.adapt(torch.arange(20).repeat_interleave(torch.arange(1, 21)), torch.arange(20))
    f = torch.rand(20, generator=torch.Generator().manual_seed(2)).exp()
    sums = []
    for _ in range(4000):
        drawn = draw(sampler)
        ids = repeated(drawn.candidates)
        sums.append((f[ids] / drawn.log_expected_count(ids).exp()).sum())
    estimate = torch.stack(sums)
    error = (estimate.std() / len(sums) ** 0.5).item()
    assert abs(estimate.mean().item() - f.sum().item()) < max(4 * error, 1e-4)
    assert error < 0.02 * f.sum().item()  # and the test can tell a bias of a few per cent


@pytest.mark.parametrize("unique", [True, False])
def test_corrected_sum_over_a_mix_with_the_batch_is_unbiased(unique: bool) -> None:
    """The same for in-batch + popularity, with the summed expected counts."""
    generator = torch.Generator().manual_seed(9)
    p = torch.rand(20, generator=generator) + 0.05
    events = torch.multinomial(p, 5000, replacement=True, generator=generator)
    events = torch.cat([events, torch.arange(20)])
    in_batch, popular = (
        tt.InBatchSamplerV2(),
        tt.PopularityBasedSamplerV2(max_id=19, max_num_samples=4, unique=unique, seed=5),
    )
    in_batch.adapt(events, events.unique())
    f = torch.rand(20, generator=generator).exp()
    sums = []
    for _ in range(4000):
        batch = events[torch.randint(len(events), (6,), generator=generator)]
        positives = Candidates(batch, torch.zeros(6, 2))
        draws = [s(step(positives)) for s in (in_batch, popular)]
        ids = torch.cat([repeated(d.candidates) for d in draws])
        expected = torch.stack([d.log_expected_count(ids) for d in draws]).logsumexp(0).exp()
        sums.append((f[ids] / expected).sum())
    estimate = torch.stack(sums)
    error = (estimate.std() / len(sums) ** 0.5).item()
    assert abs(estimate.mean().item() - f.sum().item()) < 4 * error
    assert error < 0.02 * f.sum().item()


def test_all_ids_drawn_have_expected_count_one() -> None:
    drawn = draw(tt.PopularityBasedSamplerV2(max_id=4, max_num_samples=5))
    assert sorted(drawn.candidates.ids.tolist()) == [0, 1, 2, 3, 4]
    assert drawn.log_expected_count(torch.arange(5)).tolist() == [0.0] * 5


def test_more_distinct_ids_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot draw 11 distinct ids from min_id=0 to max_id=9, which are 10"):
        tt.PopularityBasedSamplerV2(max_id=9, max_num_samples=11)


def test_frequencies_are_shares_of_the_counted_ids() -> None:
    frequency = tt.CountFrequency()
    frequency.adapt(torch.tensor([3_000_000_000, 4, 4, 4]))
    expected = frequency.log_expected_count(torch.tensor([4, 3_000_000_000, 5]), rows=8).exp()
    assert expected.tolist() == pytest.approx([6.0, 2.0, 0.0])


def test_sampler_state_is_in_the_state_dict() -> None:
    one, other = (tt.PopularityBasedSamplerV2(max_id=99, max_num_samples=5, seed=s) for s in (1, 2))
    draw(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(draw(one).candidates.ids, draw(other).candidates.ids)
    counted, empty = tt.InBatchSamplerV2(), tt.InBatchSamplerV2()
    counted.adapt(torch.tensor([1, 1, 2]), torch.tensor([1, 2]))
    empty.load_state_dict(counted.state_dict())
    assert empty.frequency.log_expected_count(torch.tensor([1]), rows=3).exp().item() == pytest.approx(2)


@pytest.mark.parametrize(("hashes", "bound"), [(1, 0.13), (2, 0.08), (4, 0.065)])
def test_streaming_frequency_in_the_papers_simulation(hashes: int, bound: float) -> None:
    """1000 items with weights i^2, 128 in a batch without replacement, 5000 buckets in all; sum |p^ - p| / (2 * 128)."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.arange(1, 1001, dtype=torch.float64) ** 2

    def batch() -> torch.Tensor:
        return (
            (torch.empty(1000, dtype=torch.float64).exponential_(generator=generator) / weights)
            .topk(128, largest=False)
            .indices
        )

    truth = torch.zeros(1000)
    for _ in range(5000):
        truth[batch()] += 1 / 5000
    frequency = tt.StreamingFrequency(num_buckets=5000, num_hashes=hashes, learning_rate=0.01, initial_gap=100, seed=3)
    for _ in range(10_000):
        frequency.observe(batch())
    p = frequency.log_expected_count(torch.arange(1000), rows=128).exp()
    assert ((p - truth).abs().sum() / (2 * 128)).item() < bound


def test_streaming_frequency_by_hand() -> None:
    """One bucket each: B <- (1 - alpha) B + alpha (t - A), once in a step however often the item repeats."""
    frequency = tt.StreamingFrequency(num_buckets=10_000, num_hashes=1, learning_rate=0.5, initial_gap=100, seed=0)
    frequency.observe(torch.tensor([1, 1, 1]))  # t = 1, A = 0: B = 50 + 0.5 = 50.5
    frequency.observe(torch.tensor([2]))
    frequency.observe(torch.tensor([1]))  # t = 3, A = 1: B = 25.25 + 1 = 26.25
    got = frequency.log_expected_count(torch.tensor([1, 2, 3]), rows=3).exp()
    # item 2 at t = 2, A = 0: B = 50 + 1 = 51; item 3 never
    assert got.tolist() == pytest.approx([1 / 26.25, 1 / 51, 1 / 100])


def test_two_items_of_one_bucket_count_once() -> None:
    crowded = tt.StreamingFrequency(num_buckets=1, num_hashes=1, learning_rate=0.5, initial_gap=100)
    crowded.observe(torch.tensor([1, 2, 3, 4]))
    assert crowded.gap.tolist() == [50.5]


def test_streaming_frequency_learns_in_training_mode_only_and_is_saved() -> None:
    sampler = tt.InBatchSamplerV2("streaming")
    positives = Candidates(torch.tensor([1, 2]), torch.zeros(2, 2))
    before = sampler(step(positives)).log_expected_count(torch.tensor([1]))
    sampler.eval()
    again = sampler(step(positives)).log_expected_count(torch.tensor([1]))
    assert before == again
    other = tt.InBatchSamplerV2(tt.StreamingFrequency(seed=9))
    other.load_state_dict(sampler.state_dict())
    assert other.frequency.log_expected_count(torch.tensor([1]), 2) == again
    with pytest.raises(ValueError, match="unknown frequency 'stream'.*Did you mean 'streaming'"):
        tt.InBatchSamplerV2("stream")
    with pytest.raises(ValueError, match="rate 2"):
        tt.StreamingFrequency(learning_rate=2)


def test_uniform_draws_are_distinct_and_alike() -> None:
    catalog = torch.arange(20) * 3 + 3_000_000_000
    sampler = tt.UniformSampler(max_num_samples=5, seed=2)
    sampler.adapt(catalog[:2], catalog)
    count = torch.zeros(20)
    for _ in range(2000):
        ids = draw(sampler).candidates.ids
        assert len(ids.unique()) == 5
        count += (catalog[:, None] == ids[None, :]).any(1)
    error = (0.25 * 0.75 / 2000) ** 0.5
    assert ((count / 2000 - 0.25).abs() < 4 * error).all()
    expected = draw(sampler).log_expected_count(torch.tensor([3_000_000_003, 4])).exp()
    assert expected.tolist() == pytest.approx([0.25, 0.0])
    everything = tt.UniformSampler(max_num_samples=50)
    everything.adapt(catalog, catalog)
    assert draw(everything).log_expected_count(catalog).tolist() == pytest.approx([0.0] * 20)
    other = tt.UniformSampler(max_num_samples=5, seed=7)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(draw(other).candidates.ids, draw(sampler).candidates.ids)
    with pytest.raises(ValueError, match="does not know the catalogue yet"):
        draw(tt.UniformSampler())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tt.UniformSampler(max_num_samples=0)


def test_corrected_sum_over_a_queue_with_the_batch_is_unbiased() -> None:
    """In-batch and the last three batches, with the summed expected counts."""
    generator = torch.Generator().manual_seed(9)
    p = torch.rand(20, generator=generator) + 0.05
    events = torch.cat([torch.multinomial(p, 5000, replacement=True, generator=generator), torch.arange(20)])
    f = torch.rand(20, generator=generator).exp()
    in_batch = tt.InBatchSamplerV2()
    in_batch.adapt(events, events.unique())
    sums = []
    for _ in range(2000):
        queue = tt.CrossBatchSampler(capacity=100, warmup_steps=3)
        queue.adapt(events, events.unique())
        for _ in range(4):
            batch = events[torch.randint(len(events), (6,), generator=generator)]
            ids, counts = batch.unique(return_counts=True)
            positives = Candidates(ids, torch.zeros(len(ids), 2), counts)
            draws = [sampler(step(positives)) for sampler in (in_batch, queue)]
        pool = Candidates.concat([d.candidates for d in draws])
        assert pool.total() == 24
        assert pool.counts is not None
        expected = torch.stack([d.log_expected_count(pool.ids) for d in draws]).logsumexp(0).exp()
        sums.append((pool.counts * f[pool.ids] / expected).sum())
    estimate = torch.stack(sums)
    error = (estimate.std() / len(sums) ** 0.5).item()
    assert abs(estimate.mean().item() - f.sum().item()) < 4 * error
    assert error < 0.02 * f.sum().item()


def test_a_full_queue_with_ids_in_order_of_popularity_is_unbiased() -> None:
    """Batches are sorted by id, so that cutting one in the middle would forget the popular items first."""
    generator = torch.Generator().manual_seed(9)
    p = 1 / (1 + torch.arange(30, dtype=torch.float64))
    events = torch.cat([torch.multinomial(p, 20_000, replacement=True, generator=generator), torch.arange(30)])
    f = torch.rand(30, generator=generator).exp()
    queue = tt.CrossBatchSampler(capacity=20, warmup_steps=0)  # about one and a half batches
    queue.adapt(events, events.unique())
    sums = []
    for _ in range(6000):
        ids, counts = events[torch.randint(len(events), (24,), generator=generator)].unique(return_counts=True)
        drawn = queue(step(Candidates(ids, torch.zeros(len(ids), 2), counts)))
        pool = drawn.candidates
        assert len(pool) <= 20
        if pool.counts is not None and len(pool):
            sums.append((pool.counts * f[pool.ids] / drawn.log_expected_count(pool.ids).exp()).sum())
    estimate = torch.stack(sums)
    error = 2 * (estimate.std() / len(sums) ** 0.5).item()  # a batch stays for about one and a half draws
    assert abs(estimate.mean().item() - f.sum().item()) < 4 * error
    assert error < 0.03 * f.sum().item()
    with pytest.raises(ValueError, match="21 distinct candidates, more than the queue's capacity=20"):
        queue(step(Candidates(torch.arange(21), torch.zeros(21, 2))))


def test_a_queue_of_other_data_starts_anew() -> None:
    queue = tt.CrossBatchSampler(capacity=20, warmup_steps=0)
    for ids, kept in ((torch.arange(5), 0), (torch.arange(3, 9), 0), (torch.arange(9), 6)):
        queue.adapt(ids, ids)
        assert len(queue(step(Candidates(ids, torch.zeros(len(ids), 2)))).candidates) == kept


@pytest.mark.parametrize("repeated_rows", [False, True])
def test_corrected_sum_with_estimated_frequencies_is_unbiased(repeated_rows: bool) -> None:
    """An item that a batch holds many times counts once, since what is estimated is whether the batch holds it."""
    generator = torch.Generator().manual_seed(4)
    p = 1 / (1 + torch.arange(20, dtype=torch.float64))
    sampler = tt.InBatchSamplerV2(
        tt.StreamingFrequency(num_buckets=4096, num_hashes=1, learning_rate=0.002, initial_gap=3)
    )
    f = torch.rand(20, generator=generator).exp()
    sums = []
    for number in range(9000):
        rows = torch.multinomial(p, 40, replacement=True, generator=generator)
        ids, counts = rows.unique(return_counts=True)
        batch = (
            Candidates(rows, torch.zeros(40, 2)) if repeated_rows else Candidates(ids, torch.zeros(len(ids), 2), counts)
        )
        drawn = sampler(step(batch))
        pool = drawn.candidates
        assert pool.total() == len(pool) == len(ids)
        if number >= 3000:
            sums.append((f[pool.ids] / drawn.log_expected_count(pool.ids).exp()).sum())
    # the first item is expected 11 times in a batch: counted by its rows it would weigh 11 times too much
    assert torch.stack(sums).mean().item() == pytest.approx(f.sum().item(), rel=0.02)


def test_distinct_draws_from_many_ids_are_the_same_race() -> None:
    """From many ids few are drawn by their arrivals, which costs little: the sum stays unbiased, each id as often as its E says."""
    weights = 1 / (1 + torch.arange(400, dtype=torch.float64))
    sampler = tt.PopularitySampler(6, weights=weights, seed=5)
    f = torch.rand(400, generator=torch.Generator().manual_seed(2)).exp()
    sums, count, expected = [], torch.zeros(400), torch.zeros(400, dtype=torch.float64)
    for _ in range(6000):
        drawn = draw(sampler)
        ids = drawn.candidates.ids
        assert len(ids.unique()) == 6
        count[ids] += 1
        expected += drawn.log_expected_count(torch.arange(400)).exp() / 6000
        sums.append((f[ids] / drawn.log_expected_count(ids).exp()).sum())
    assert sampler._cumulated().draws_for(7) < 100
    estimate = torch.stack(sums)
    error = (estimate.std() / len(sums) ** 0.5).item()
    assert abs(estimate.mean().item() - f.sum().item()) < 4 * error
    spread = (expected * (1 - expected) / 6000).sqrt() + 1e-3
    assert ((count / 6000 - expected).abs() < 5 * spread).all()


def test_hard_negatives_are_mined_as_in_prediction_and_need_enough_candidates() -> None:
    data = clubs()
    hard = tt.HardNegativeSampler(num_negatives=2, skip=3, warmup_steps=0)
    item = tt.Encoder(
        data.schema.select_by_tag(tt.Tags.ITEM), tt.MLPBlock([16], dropout=0.5, normalization="batch_norm")
    )
    user = tt.Encoder(data.schema.select_by_tag(tt.Tags.USER), tt.MLPBlock([16]))
    model = tt.TwoTowerModelV2(user, item, negative_samplers=["in-batch", hard]).adapt(data)
    norm = next(part for part in item.modules() if isinstance(part, torch.nn.BatchNorm1d))
    model.loss(tt.sample_batch(data, 50))
    assert hard.vectors is not None
    # batch statistics saw the batch and the mined negatives, but not the mining
    assert int(norm.num_batches_tracked) == 2
    state = {name: value.clone() for name, value in item.state_dict().items()}
    model.loss(tt.sample_batch(data, 50))
    hard.vectors = None
    item.load_state_dict(state)
    mined = model._encode_fixed(hard.ids)
    item.eval()
    torch.testing.assert_close(mined, item(model.catalog.lookup(hard.ids)))
    with pytest.raises(ValueError, match="skip=40 places of each ranking, but there are only 40 candidates"):
        tt.HardNegativeSampler(skip=40).adapt(torch.arange(40), torch.arange(40))


def test_the_queue_warms_up_and_forgets_the_oldest() -> None:
    queue = tt.CrossBatchSampler(capacity=3, warmup_steps=2)
    queue.adapt(torch.arange(10), torch.arange(10))

    def draw_after(*ids: int) -> list[int]:
        batch = torch.tensor(ids)
        return queue(step(Candidates(batch, batch[:, None].float().requires_grad_()))).candidates.ids.tolist()

    assert draw_after(1, 2) == []
    assert draw_after(3) == []
    assert draw_after(4) == [1, 2, 3]
    assert draw_after(5) == [3, 4]  # the batch of 1 and 2 went as a whole: a part of it is no sample
    queue.eval()
    assert draw_after(6) == [3, 4, 5]
    assert draw_after(7) == [3, 4, 5]
    drawn = queue(step(Candidates(torch.tensor([8]), torch.ones(1, 1)))).candidates
    assert drawn.vectors.flatten().tolist() == [3.0, 4.0, 5.0]
    assert not drawn.vectors.requires_grad


def test_popularity_counts_and_weights() -> None:
    counted = tt.PopularitySampler(max_num_samples=4000, unique=False, seed=3)
    counted.adapt(torch.tensor([2**40, 5, 5, 5]), torch.tensor([5, 6, 2**40]))
    ids = repeated(draw(counted).candidates)
    assert sorted(ids.unique().tolist()) == [5, 2**40]
    assert abs((ids == 5).float().mean().item() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    flat = tt.PopularitySampler(max_num_samples=4, power=0.0, unique=False)
    flat.adapt(torch.tensor([1, 2, 2, 2]), torch.tensor([1, 2]))
    assert draw(flat).log_expected_count(torch.tensor([1, 2])).exp().tolist() == pytest.approx([2, 2])
    given = tt.PopularitySampler(max_num_samples=10, weights=torch.tensor([0.0, 1.0, 3.0]))
    given.adapt(torch.tensor([0, 0]), torch.tensor([0]))  # data does not change what was given
    assert draw(given).candidates.ids.tolist() == [1, 2]
    again = tt.PopularitySampler(max_num_samples=10)
    again.load_state_dict(given.state_dict())
    again.adapt(torch.tensor([0, 0]), torch.tensor([0]))
    assert draw(again).candidates.ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="at least one must be above 0"):
        tt.PopularitySampler(weights=torch.zeros(3))
    with pytest.raises(ValueError, match="does not know the items yet"):
        draw(tt.PopularitySampler())


def test_negatives_from_a_column_belong_to_their_row() -> None:
    table = torch.arange(20.0)[:, None]
    ids = torch.tensor([1, 2, 3])
    for given, expected in (
        (tt.Ragged.from_lists([[4, 5], [], [4]]), [(0, 4), (0, 5), (2, 4)]),
        (torch.tensor([[4, 5], [6, 7], [8, 9]]), [(0, 4), (0, 5), (1, 6), (1, 7), (2, 8), (2, 9)]),
        (torch.tensor([4, 5, 6]), [(0, 4), (1, 5), (2, 6)]),
    ):
        asked: list[int] = []

        def encode(wanted: torch.Tensor, asked: list[int] = asked) -> torch.Tensor:
            asked.extend(wanted.tolist())
            return table[wanted]

        drawn = tt.ColumnSampler("shown")(tt.Step({"shown": given}, table[ids], Candidates(ids, table[ids]), encode))
        assert drawn.row is not None
        assert list(zip(drawn.row.tolist(), drawn.candidates.ids.tolist(), strict=True)) == expected
        assert drawn.candidates.vectors.flatten().tolist() == [float(i) for _, i in expected]
        assert len(asked) == len(set(asked))  # each distinct id is encoded once
    with pytest.raises(ValueError, match="must be candidate ids, whole numbers"):
        tt.ColumnSampler("x")(
            tt.Step({"x": torch.rand(3)}, table[ids], Candidates(ids, table[ids]), lambda i: table[i])
        )


def test_hard_negatives_stand_below_the_top_and_are_refreshed() -> None:
    """Query 1 ranks items 9, 8, 7, ... while the table is rising, and 0, 1, 2, ... once it falls."""
    table = torch.arange(10.0)[:, None]
    now = {"table": table}
    sampler = tt.HardNegativeSampler(num_negatives=2, skip=3, refresh_steps=2, warmup_steps=1)
    sampler.adapt(torch.arange(10), torch.arange(10))
    ids = torch.tensor([0, 0])

    def drawn() -> list[int]:
        query = torch.tensor([[1.0]])
        row = torch.tensor([0, 0])
        candidate = Candidates(ids[:1], now["table"][ids[:1]], torch.tensor([2]))
        got = sampler(tt.Step({}, query, candidate, lambda wanted: now["table"][wanted], row, row))
        assert got.row is not None
        assert got.row.tolist() in ([0, 0, 1, 1], [])
        return got.candidates.ids.tolist()

    assert drawn() == []
    assert drawn() == [6, 5, 6, 5]
    now["table"] = -table
    assert drawn() == [6, 5, 6, 5]  # still by the old vectors
    assert drawn() == [3, 4, 3, 4]
    with pytest.raises(ValueError, match="does not know the catalogue yet"):
        tt.HardNegativeSampler()(step(NOTHING))


@pytest.mark.parametrize("correction", ["logq", "corrected"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_unknown_items_in_training_rows_are_positives_but_never_drawn(name: str, correction: str) -> None:
    """The Preprocessor's id for unknown items has no row in the catalogue, and no sampler but the batch knows it."""
    rows = {
        "u": [n % 7 for n in range(60)],
        "i": [n % 13 for n in range(60)],
        "colour": [n % 13 % 3 for n in range(60)],
    }
    columns = {
        "u": tt.Categorical(tt.Tags.USER_ID),
        "i": tt.Categorical(tt.Tags.ITEM_ID),
        "colour": tt.Categorical(tt.Tags.ITEM),
    }
    preprocessor = tt.Preprocessor(columns).fit(rows)
    rows["i"][3] = 999
    data = preprocessor.transform(rows)
    alone = SAMPLERS[name](data.schema["i"]).warmup_steps == 0
    model = tt.TwoTowerModelV2(
        *(tt.Encoder(data.schema.select_by_tag(t), tt.MLPBlock([4])) for t in (tt.Tags.USER, tt.Tags.ITEM)),
        negative_samplers=name if alone else ["in-batch", name], logq_sampling_correction=correction,
    )  # fmt: skip
    drawn: list[int] = []
    model.outputs[0].negative_samplers[-1].register_forward_hook(
        lambda m, a, out: drawn.extend(out.candidates.ids.tolist())
    )
    with pytest.warns(UserWarning, match="1 rows hold no id or one that the Preprocessor did not know"):
        history = model.fit(data, batch_size=60, epochs=2, verbose=False)
    assert history.history["loss"][-1] > 0
    assert name == "in-batch" or 1 not in drawn


def test_samplers_that_all_warm_up_are_an_error() -> None:
    schema = tt.Schema([id_column("item_id", tt.Tags.ITEM_ID, 9)])
    with pytest.raises(
        ValueError, match=r"CrossBatchSampler \(warmup_steps=100\), Hard.* without negatives: use it together"
    ):
        tt.ContrastiveOutput(tt.DotProduct(), ["cross-batch", "hard"], schema=schema)
    tt.ContrastiveOutput(tt.DotProduct(), tt.CrossBatchSampler(warmup_steps=0), schema=schema)


def test_an_empty_pool_costs_nothing() -> None:
    """The first step of a queue without warm-up."""
    schema = tt.Schema([id_column("item_id", tt.Tags.ITEM_ID, 9)])
    output = tt.ContrastiveOutput(tt.DotProduct(), tt.CrossBatchSampler(warmup_steps=0), schema=schema)
    output.adapt(torch.tensor([0, 1]), torch.tensor([0, 1]))
    vectors = torch.ones(2, 3, requires_grad=True)
    losses = [
        output(tt.Step({}, vectors, Candidates(torch.tensor([0, 1]), vectors), lambda ids: vectors)) for _ in "12"
    ]
    assert losses[0].item() == 0
    assert losses[1].item() > 0
    losses[0].backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() == 0
