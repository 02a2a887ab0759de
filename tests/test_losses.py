"""Losses against hand arithmetic and the reference values of a second implementation (Merlin Models 23.12)."""

import math

import pytest
import torch

from twotower.losses import LOSSES, bsl, gbce, psl, slatk, softmax

POSITIVE = torch.tensor([2.0])
NEGATIVE = torch.tensor([[1.0, -1.0]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


P, N1, N2 = 2.0, 1.0, -1.0
# for the same scores; the losses that Merlin does not have
BY_HAND = {
    "bce": -(math.log(sigmoid(P)) + math.log(1 - sigmoid(N1)) + math.log(1 - sigmoid(N2))) / 3,
    "binary_crossentropy": -(math.log(sigmoid(P)) + math.log(1 - sigmoid(N1)) + math.log(1 - sigmoid(N2))) / 3,
    "ccl": (1 - P) + 150 * (max(0.0, N1 - 0.8) + max(0.0, N2 - 0.8)) / 2,
    "bsl": math.log(math.exp(N1) + math.exp(N2)) - P,
    "psl": math.log(1 + (math.tanh(N1 - P) + 1) ** 10 + (math.tanh(N2 - P) + 1) ** 10),
    # fewer than 20 candidates: beta is the last of them
    "slatk": sigmoid(P - N2) * -math.log(math.exp(P) / (math.exp(P) + math.exp(N1) + math.exp(N2))),
}
# what Merlin Models gave for the scores s = [2, 1, -1] and the labels y = [1, 0, 0]
MERLIN = {
    "bpr": 0.180925,
    "bpr-max": 1.807853,
    "top1": 0.889242,
    "top1_v2": 0.398235,
    "top1-max": 0.486797,
    "logistic": 0.180925,
    "hinge": 0.0,
    "categorical_crossentropy": 0.349012,
    "softmax": 0.349012,
    "ce": 0.349012,
}


def test_every_loss_has_a_reference_value() -> None:
    assert set(MERLIN) | set(BY_HAND) == set(LOSSES)


@pytest.mark.parametrize("name", MERLIN)
def test_merlin_reference_values(name: str) -> None:
    torch.testing.assert_close(LOSSES[name](POSITIVE, NEGATIVE), torch.tensor([MERLIN[name]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand(name: str) -> None:
    torch.testing.assert_close(LOSSES[name](POSITIVE, NEGATIVE), torch.tensor([BY_HAND[name]]), atol=1e-5, rtol=1e-5)


def test_gbce_is_bce_with_a_power_on_the_positive() -> None:
    """beta = a (t (1 - 1/a) + 1/a): 1 at t = 0, a at t = 1; the power acts on the sigmoid of the positive."""
    for t, a, beta in ((0.0, 0.1, 1.0), (1.0, 0.1, 0.1), (0.75, 0.2, 0.4)):
        power = -beta * math.log(sigmoid(P))
        expected = (power - math.log(1 - sigmoid(N1)) - math.log(1 - sigmoid(N2))) / 3
        got = gbce(POSITIVE, NEGATIVE, sampling_rate=a, calibration=t).item()
        assert got == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="0 < sampling_rate <= 1"):
        gbce(POSITIVE, NEGATIVE, sampling_rate=3)


@pytest.mark.parametrize("activation", ["tanh", "atan", "relu"])
def test_psl_bounds_the_number_of_negatives_above(activation: str) -> None:
    """s(d) >= 1 for d >= 0: exp(psl) - 1 is at least the number of negatives at or above the positive (the paper's bound)."""
    g = torch.Generator().manual_seed(0)
    positive, negative = torch.rand(50, generator=g) - 0.5, torch.rand(50, 30, generator=g) - 0.5
    above = (negative >= positive[:, None]).sum(1)
    got = psl(positive, negative, activation=activation, temperature=0.5)
    assert (got.exp() - 1 >= above - 1e-4).all()
    assert (got <= softmax(positive / 0.5, negative / 0.5) + 1e-5).all()  # and tighter than softmax
    far = torch.tensor([[5.0]], requires_grad=True)
    psl(torch.tensor([20.0]), far, activation=activation).backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_slatk_weighs_rows_by_how_near_the_positive_is_to_the_first_places() -> None:
    negative = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    positive = torch.tensor([2.5, -1.0])
    weight = slatk(positive, negative, k=2, temperature=0.5) / softmax(positive, negative)
    # the second largest of (2.5, 3, 2, 1, 0) is 2.5, of (-1, 3, 2, 1, 0) it is 2
    assert weight.tolist() == pytest.approx([sigmoid(0), sigmoid((-1 - 2) / 0.5)], rel=1e-5)
    leaf = positive.clone().requires_grad_()
    slatk(leaf, negative, k=2, temperature=0.5).sum().backward()
    threshold = torch.tensor([2.5, 2.0])  # held still
    same = positive.clone().requires_grad_()
    (torch.sigmoid((same - threshold) / 0.5) * softmax(same, negative)).sum().backward()
    torch.testing.assert_close(leaf.grad, same.grad)


def test_bsl_has_a_temperature_for_each_side() -> None:
    """Cosines .9 and .1, .3 with T = .2 for negatives and .4 for positives."""
    got = bsl(torch.tensor([0.9 / 0.2]), torch.tensor([[0.1 / 0.2, 0.3 / 0.2]]), ratio=0.2 / 0.4).item()
    assert got == pytest.approx(math.log(math.exp(0.5) + math.exp(1.5)) - 0.9 / 0.4, rel=1e-5)


def test_formulas_by_hand() -> None:
    p, n1, n2 = 2.0, 1.0, -1.0
    w1, w2 = math.exp(n1) / (math.exp(n1) + math.exp(n2)), math.exp(n2) / (math.exp(n1) + math.exp(n2))
    expected = {
        "bpr": -(math.log(sigmoid(p - n1)) + math.log(sigmoid(p - n2))) / 2,
        "bpr-max": (-math.log(sigmoid(p - n1) * w1) + n1**2 * w1 - math.log(sigmoid(p - n2) * w2) + n2**2 * w2) / 2,
        "top1": (sigmoid(n1 - p) + sigmoid(n1**2) + sigmoid(n2 - p) + sigmoid(n2**2)) / 2,
        "top1_v2": (sigmoid(n1 - p) + sigmoid(n1**2) + sigmoid(n2 - p) + sigmoid(n2**2)) / 2 - sigmoid(p**2) / 2,
        "top1-max": (w1 * (sigmoid(n1 - p) + sigmoid(n1**2)) + w2 * (sigmoid(n2 - p) + sigmoid(n2**2))) / 2,
        "softmax": -math.log(math.exp(p) / (math.exp(p) + math.exp(n1) + math.exp(n2))),
    }
    for name, value in expected.items():
        assert LOSSES[name](POSITIVE, NEGATIVE).item() == pytest.approx(value, abs=1e-6)
    assert LOSSES["hinge"](torch.tensor([0.5]), NEGATIVE).item() == pytest.approx((1.5 + 0.0) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_negative_is_as_if_it_were_not_there(name: str) -> None:
    masked = torch.tensor([[1.0, -torch.inf, -1.0]])
    torch.testing.assert_close(LOSSES[name](POSITIVE, masked), LOSSES[name](POSITIVE, NEGATIVE))


POINTWISE = {"bce", "binary_crossentropy", "ccl"}  # which judge a positive by itself too


@pytest.mark.parametrize("name", sorted(set(LOSSES) - POINTWISE))
def test_a_row_without_negatives_costs_nothing_and_has_no_gradient(name: str) -> None:
    positive = torch.tensor([2.0, 2.0], requires_grad=True)
    scores = torch.tensor([[0.3, 0.1], [1.0, -1.0]], requires_grad=True)
    negative = scores.masked_fill(torch.tensor([[True, True], [False, False]]), -torch.inf)
    loss = LOSSES[name](positive, negative)
    assert loss[0].item() == 0
    loss.sum().backward()
    assert positive.grad is not None
    assert scores.grad is not None
    assert positive.grad[0].item() == 0
    assert scores.grad[0].tolist() == [0, 0]
    assert torch.isfinite(scores.grad).all()


def test_a_row_without_negatives_costs_its_positive_in_pointwise_losses() -> None:
    none = torch.tensor([[-torch.inf, -torch.inf]])
    assert LOSSES["bce"](POSITIVE, none).item() == pytest.approx(-math.log(sigmoid(P)), rel=1e-5)
    assert LOSSES["ccl"](POSITIVE, none).item() == pytest.approx(1 - P)


# slatk takes its threshold without gradient, see below
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"slatk"}))
def test_gradients_agree_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    positive = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    negative = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], (positive, negative))


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_positive_costs_less(name: str) -> None:
    low, high = (LOSSES[name](torch.tensor([p]), NEGATIVE).item() for p in (-1.0, 1.5))
    assert high < low
