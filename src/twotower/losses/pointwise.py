"""Losses that judge the positive and each negative by itself.

All take `(positive (B,), negative (B, N))` with masked negatives -inf and give (B,).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Positive = Float[Tensor, "B"]
Negative = Float[Tensor, "B N"]
Row = Float[Tensor, "B"]


def bce(positive: Positive, negative: Negative) -> Row:
    """(-log sigmoid(p) - sum_j log(1 - sigmoid(n_j))) / (1 + N), on logits, so that it stays exact far out.

    Example:
        >>> bce(torch.tensor([0.0]), torch.tensor([[0.0, 0.0]]))
        tensor([0.6931])
    """
    return _binary(F.softplus(-positive), negative)


def gbce(positive: Positive, negative: Negative, sampling_rate: float, calibration: float = 0.75) -> Row:
    """Binary cross-entropy with sigmoid(p) ** beta, which undoes the over-confidence that few negatives bring.

    beta = a (t (1 - 1/a) + 1/a), with a the sampling rate and t the calibration: t = 0 is `bce`, t = 1 makes the
    predicted probabilities unbiased. Petrov and Macdonald, "gSASRec: Reducing Overconfidence in Sequential
    Recommendation Trained with Negative Sampling", RecSys 2023.

    Args:
        positive, negative: logits, without sampling-bias correction.
        sampling_rate: negatives of a row / (candidates in all - 1).
        calibration: t, in [0, 1].

    Raises:
        ValueError: a rate outside (0, 1] or a calibration outside [0, 1].

    Example:
        >>> from functools import partial
        >>> loss = partial(gbce, sampling_rate=256 / 50_000)  # compile(loss=loss)
    """
    if not 0 < sampling_rate <= 1 or not 0 <= calibration <= 1:
        raise ValueError(
            f"gbce needs 0 < sampling_rate <= 1 and 0 <= calibration <= 1, got {sampling_rate} and {calibration}."
        )
    beta = sampling_rate * (calibration * (1 - 1 / sampling_rate) + 1 / sampling_rate)
    return _binary(beta * F.softplus(-positive), negative)


def ccl(positive: Positive, negative: Negative, margin: float = 0.8, negative_weight: float = 150.0) -> Row:
    """Cosine contrastive loss: 1 - p + weight * mean_j max(0, n_j - margin).

    Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", CIKM 2021. For cosines: towers that end
    in L2Norm, temperature 1, no sampling-bias correction.

    Args:
        positive, negative: cosines.
        margin: below it a negative is left alone.
        negative_weight: of the negatives' mean.

    Example:
        >>> ccl(torch.tensor([0.9]), torch.tensor([[0.85, 0.2]]), margin=0.8, negative_weight=2.0)
        tensor([0.1500])
    """
    valid = ~torch.isneginf(negative)
    excess = F.relu(negative - margin).masked_fill(~valid, 0.0).sum(1)
    return 1 - positive + negative_weight * excess / valid.sum(1).clamp(min=1)


def _binary(of_positive: Row, negative: Negative) -> Row:
    # softplus(-inf) is 0, and so is its gradient: masked negatives drop out of the sum
    return (of_positive + F.softplus(negative).sum(1)) / (1 + (~torch.isneginf(negative)).sum(1))
