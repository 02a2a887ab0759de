"""Losses against hand arithmetic and the reference values of a second implementation (Merlin Models 23.12)."""

import math

import pytest
import torch

from twotower.losses import LOSSES

POSITIVE = torch.tensor([2.0])
NEGATIVE = torch.tensor([[1.0, -1.0]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


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
    assert set(MERLIN) == set(LOSSES)


@pytest.mark.parametrize("name", MERLIN)
def test_merlin_reference_values(name: str) -> None:
    torch.testing.assert_close(LOSSES[name](POSITIVE, NEGATIVE), torch.tensor([MERLIN[name]]), atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("name", LOSSES)
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


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    positive = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    negative = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LOSSES[name], (positive, negative))


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_positive_costs_less(name: str) -> None:
    low, high = (LOSSES[name](torch.tensor([p]), NEGATIVE).item() for p in (-1.0, 1.5))
    assert high < low
