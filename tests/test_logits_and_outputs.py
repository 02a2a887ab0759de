"""The contrastive logits against Merlin's numbers and against hand arithmetic."""

import math

import pytest
import torch

import twotower as tt
from tests.worlds import id_column
from twotower import Tags, logits
from twotower.candidates import Candidates

QUERY = torch.tensor([[1.0, 0], [0, 2], [1, 1]])
CANDIDATE = torch.tensor([[1.0, 1], [2, 0], [0, 3]])
IDS = torch.tensor([5, 7, 5])
ITEM = id_column("item_id", Tags.ITEM_ID, 1000)
INF = math.inf


def no_encode(ids: torch.Tensor) -> torch.Tensor:
    raise AssertionError("in-batch sampling encodes nothing")


STEP = tt.Step({}, QUERY, Candidates(IDS, CANDIDATE), no_encode)


def in_batch(counted: torch.Tensor | None = None, **options: object) -> tt.ContrastiveOutput:
    output = tt.ContrastiveOutput(tt.DotProduct(), schema=tt.Schema([ITEM]), **options)
    if counted is not None:
        output.adapt(counted)
    return output


def all_logits(output: tt.ContrastiveOutput) -> list[list[float]]:
    positive, negative = output.logits(STEP)
    return torch.cat([positive[:, None], negative], 1).tolist()


def test_masked_logits() -> None:
    got = all_logits(in_batch(logq_sampling_correction=False))
    assert got == [[1, -INF, 2, -INF], [0, 2, -INF, 6], [3, -INF, 2, -INF]]


def test_unmasked_logits() -> None:
    got = all_logits(in_batch(logq_sampling_correction=False, downscore_false_negatives=False))
    assert got == [[1, 1, 2, 0], [0, 2, 0, 6], [3, 2, 2, 3]]


def test_temperature_scales_training_but_not_prediction() -> None:
    output = in_batch(logq_sampling_correction=False, logits_temperature=0.1)
    expected = torch.tensor([[10, -INF, 20, -INF], [0, 20, -INF, 60], [30, -INF, 20, -INF]])
    torch.testing.assert_close(torch.tensor(all_logits(output)), expected)
    assert output.predict(QUERY, CANDIDATE).tolist() == [[1.0], [0.0], [3.0]]


# item 5 was seen 10 times, item 7 100 times, the other 999 of 1001 ids once: 1109 events
OTHERS = torch.tensor([i for i in range(1001) if i not in (5, 7)])
COUNTED = torch.cat([torch.full((10,), 5), torch.full((100,), 7), OTHERS])


def test_correction_subtracts_log_p() -> None:
    # Merlin: [[5.709, 4.406], [2.406, 6.709, 10.709], [7.709, 4.406]] = dot - ln p; ours is dot - ln(3 p), since an
    # item is expected 3 p times in a batch of 3, the same shift for all
    got = torch.tensor(all_logits(in_batch(COUNTED))) + math.log(3)
    expected = torch.tensor([[5.709, -INF, 4.406, -INF], [2.406, 6.709, -INF, 10.709], [7.709, -INF, 4.406, -INF]])
    torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)


def test_correction_is_not_divided_by_the_temperature() -> None:
    # the paper: dot / T - ln p. (Merlin gives (dot - ln p) / T = 11.417 for the first.)
    got = torch.tensor(all_logits(in_batch(COUNTED, logits_temperature=0.5)))[:, 0] + math.log(3)
    by_hand = torch.tensor([1 / 0.5, 0 / 0.5, 3 / 0.5]) - torch.log(torch.tensor([10, 100, 10]) / 1109)
    torch.testing.assert_close(got, by_hand)


def test_logits_are_float32_under_autocast() -> None:
    query, candidate = torch.randn(8, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    step = tt.Step({}, query, Candidates(torch.arange(8), candidate), no_encode)
    with torch.autocast("cpu", torch.bfloat16):
        _, negative = in_batch(logq_sampling_correction=False).logits(step)
    exact = (query.double() @ candidate.double().T).float()
    off_diagonal = ~torch.eye(8, dtype=torch.bool)
    torch.testing.assert_close(negative[off_diagonal], exact[off_diagonal], rtol=1e-5, atol=1e-5)


def test_distinct_ids_are_masked_on_the_diagonal_only() -> None:
    hidden = logits.false_negatives(torch.arange(10), torch.arange(10))
    assert torch.equal(hidden, torch.eye(10, dtype=torch.bool))


def test_pool_widths_of_samplers_and_their_mix() -> None:
    vectors, ids = torch.randn(50, 4), torch.arange(50)
    step = tt.Step({}, vectors, Candidates(ids, vectors), lambda drawn: torch.zeros(len(drawn), 4))
    popularity = tt.PopularityBasedSamplerV2(max_id=1000, max_num_samples=20)
    for samplers, width in (("in-batch", 50), (popularity, 20), (["in-batch", popularity], 70)):
        output = in_batch(ids, negative_samplers=samplers)
        positive, negative = output.logits(step)
        assert positive.shape == (50,)
        assert negative.shape == (50, width)


def test_expected_counts_of_samplers_add_up() -> None:
    popularity = tt.PopularityBasedSamplerV2(max_id=9, max_num_samples=4, unique=False)
    output = in_batch(torch.tensor([5, 5, 7, 8]), negative_samplers=["in-batch", popularity])
    step = tt.Step({}, QUERY, Candidates(IDS, CANDIDATE), lambda drawn: torch.zeros(len(drawn), 2))
    positive, _ = output.logits(step)
    p = popularity.probabilities()
    # 3 rows of the batch, and 4 draws: E_5 = 3 * 2/4 + 4 p_5, E_7 = 3 * 1/4 + 4 p_7
    expected_counts = torch.stack([3 * 0.5 + 4 * p[5], 3 * 0.25 + 4 * p[7], 3 * 0.5 + 4 * p[5]])
    torch.testing.assert_close(positive, torch.tensor([1.0, 0, 3]) - expected_counts.log().float())


def test_the_corrected_correction_by_hand() -> None:
    # the positive stays; the pool's items are expected (3 - 1) p times besides the row's own
    positive, negative = in_batch(COUNTED, logq_sampling_correction="corrected").logits(STEP)
    assert positive.tolist() == [1.0, 0.0, 3.0]
    log_5, log_7 = math.log(2 * 10 / 1109), math.log(2 * 100 / 1109)
    by_hand = [[-INF, 2 - log_7, -INF], [2 - log_5, -INF, 6 - log_5], [-INF, 2 - log_7, -INF]]
    torch.testing.assert_close(negative, torch.tensor(by_hand))
    with pytest.raises(ValueError, match="downscore_false_negatives=False would leave in"):
        in_batch(logq_sampling_correction="corrected", downscore_false_negatives=False)


def test_the_corrected_sum_is_unbiased_even_for_an_item_that_fills_the_batch() -> None:
    """E[exp(s_y) + corrected pool] = the sum over all items, to within four standard errors; "logq" is far from it."""
    generator = torch.Generator().manual_seed(3)
    p = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04])  # in a batch of 16 the first is expected 9.6 times
    events = torch.repeat_interleave(torch.arange(5), (p * 100).round().long())
    vectors, query = torch.randn(5, 3, generator=generator), torch.randn(1, 3, generator=generator)
    truth = (query @ vectors.T).exp().sum().item()
    for name, is_unbiased in (("corrected", True), ("logq", False)):
        output = in_batch(events, logq_sampling_correction=name)
        sums = []
        for _ in range(3000):
            others = events[torch.randint(100, (15,), generator=generator)]
            ids = torch.cat([torch.tensor([0]), others])  # the row in question holds item 0
            step = tt.Step({}, query.expand(16, 3), Candidates(ids, vectors[ids]), no_encode)
            positive, negative = output.logits(step)
            sums.append(positive[0].exp() + negative[0].exp().sum())
        estimate = torch.stack(sums)
        error = estimate.std().item() / 3000**0.5
        assert (abs(estimate.mean().item() - truth) < 4 * error) == is_unbiased
        assert error < 0.02 * truth


def test_an_uncounted_item_is_an_error_and_not_a_floor() -> None:
    with pytest.raises(ValueError, match="frequency was never counted"):
        all_logits(in_batch(torch.tensor([5, 5])))
    with pytest.raises(ValueError, match=r"frequencies are not known yet: call model\.adapt"):
        all_logits(in_batch())


def test_rows_without_a_positive_target_do_not_count() -> None:
    output = in_batch(logq_sampling_correction=False, target="click")
    batch = {"click": torch.tensor([1, 0, 1])}
    got = output(tt.Step(batch, QUERY, Candidates(IDS, CANDIDATE), no_encode)).item()
    first = math.log(math.exp(1) + math.exp(2)) - 1  # logits [1, M, 2, M]
    third = math.log(math.exp(3) + math.exp(2)) - 3
    assert got == pytest.approx((first + third) / 2, abs=1e-6)
    none = {"click": torch.tensor([0, 0, 0])}
    assert output(tt.Step(none, QUERY, Candidates(IDS, CANDIDATE), no_encode)).item() == 0


def test_sample_weights_weigh_rows() -> None:
    output = in_batch(logq_sampling_correction=False, sample_weight="w")
    batch = {"w": torch.tensor([3.0, 0.0, 1.0])}
    got = output(tt.Step(batch, QUERY, Candidates(IDS, CANDIDATE), no_encode)).item()
    first = math.log(math.exp(1) + math.exp(2)) - 1
    third = math.log(math.exp(3) + math.exp(2)) - 3
    assert got == pytest.approx((3 * first + third) / 4, abs=1e-6)
    with pytest.raises(ValueError, match="negative weights, down to -1"):
        output(tt.Step({"w": torch.tensor([1.0, -1, 1])}, QUERY, Candidates(IDS, CANDIDATE), no_encode))


def test_a_batch_of_one_row_has_no_negatives_and_costs_nothing() -> None:
    output = in_batch(torch.tensor([5]))
    query = QUERY[:1].clone().requires_grad_()
    loss = output(tt.Step({}, query, Candidates(IDS[:1], CANDIDATE[:1]), no_encode))
    loss.backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert query.grad.tolist() == [[0.0, 0.0]]


def test_binary_output_takes_its_loss_on_the_logit() -> None:
    output = tt.BinaryOutput("click")
    output.predict(torch.zeros(1, 2), torch.zeros(1, 2))
    with torch.no_grad():
        output.to_logit.weight.fill_(2.0)
        output.to_logit.bias.fill_(-1.0)
    step = tt.Step({"click": torch.tensor([1, 0, 1])}, QUERY, Candidates(IDS, CANDIDATE), no_encode)
    z = [2 * dot - 1 for dot in (1.0, 0.0, 3.0)]
    p = [1 / (1 + math.exp(-value)) for value in z]
    by_hand = -(math.log(p[0]) + math.log(1 - p[1]) + math.log(p[2])) / 3
    assert output(step).item() == pytest.approx(by_hand, abs=1e-6)
    torch.testing.assert_close(output.predict(QUERY, CANDIDATE), torch.tensor(p)[:, None])
    far = tt.Step(
        {"click": torch.tensor([0])}, torch.tensor([[100.0]]), Candidates(IDS[:1], torch.tensor([[10.0]])), no_encode
    )
    assert output(far).item() == pytest.approx(1999.0)  # the sigmoid is 1 there; its logarithm would be -inf


def test_regression_output_by_hand() -> None:
    output = tt.RegressionOutput("stars")
    output.predict(torch.zeros(1, 2), torch.zeros(1, 2))
    with torch.no_grad():
        output.to_value.weight.fill_(1.0)
        output.to_value.bias.fill_(1.0)
    step = tt.Step({"stars": torch.tensor([2.0, 2.0, 2.0])}, QUERY, Candidates(IDS, CANDIDATE), no_encode)
    assert output(step).item() == pytest.approx(((2 - 2) ** 2 + (1 - 2) ** 2 + (4 - 2) ** 2) / 3)
    assert output(step, "mae").item() == pytest.approx((0 + 1 + 2) / 3)


def test_wrong_names_list_the_choices() -> None:
    with pytest.raises(
        ValueError,
        match="unknown sampler 'in_batch': choose from 'catalog', .*'uniform'. Did you mean 'in-batch'",
    ):
        in_batch(negative_samplers="in_batch")
    with pytest.raises(ValueError, match="unknown logq_sampling_correction 'yes'"):
        in_batch(logq_sampling_correction="yes")
    with pytest.raises(
        TypeError, match=r"ContrastiveOutput: unknown option 'temperature': choose from .*'logits_temperature'"
    ):
        in_batch(temperature=0.1)
    with pytest.raises(ValueError, match="must be above 0 and finite.* got 0"):
        in_batch(logits_temperature=0)
    with pytest.raises(ValueError, match="at least one sampler"):
        in_batch(negative_samplers=[])
    with pytest.raises(ValueError, match="must know the candidate id column"):
        tt.ContrastiveOutput(tt.DotProduct())
    with pytest.raises(ValueError, match="unknown loss for contrastive_output 'brp'.*Did you mean 'bpr'"):
        in_batch().resolve_loss("brp")
