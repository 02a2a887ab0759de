"""Softmax cross-entropy over the positive and the pool, and its relatives.

All take `(positive (B,), negative (B, N))` with masked negatives -inf and give (B,).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from twotower.errors import choose

Positive = Float[Tensor, "B"]
Negative = Float[Tensor, "B N"]
Row = Float[Tensor, "B"]


def softmax(positive: Positive, negative: Negative) -> Row:
    """log(exp(p) + sum_j exp(n_j)) - p.

    Args:
        positive: (B,) logits of the positives.
        negative: (B, N) logits of the pool, -inf where masked.

    Example:
        >>> softmax(torch.tensor([2.0]), torch.tensor([[1.0, -1.0]]))
        tensor([0.3490])
    """
    return torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive


def bsl(positive: Positive, negative: Negative, ratio: float = 1.0) -> Row:
    """Bilateral softmax loss: log sum_j exp(n_j) - ratio * p, with temperatures of their own for the two sides.

    Wu et al., "BSL: Understanding and Improving Softmax Loss for Recommendation", ICDE 2024. The output's temperature is
    that of the negatives, T / ratio that of the positives. The paper takes a log-mean-exp over a user's positives; with
    one positive in a row, as here, that is the positive itself. The positive is not in the sum. The authors' program sets a
    power of the sum instead, 1 / ratio, which differs by a factor: their 1.22 of Gowalla is a ratio of .82.

    Args:
        positive, negative: logits.
        ratio: temperature of the negatives / temperature of the positives, above 0.

    Example:
        >>> bsl(torch.tensor([2.0]), torch.tensor([[1.0, 1.0]]), ratio=0.5)
        tensor([0.6931])
        >>> from functools import partial
        >>> loss = partial(bsl, ratio=1 / 1.22)  # compile(loss=loss)
    """
    some = (~torch.isneginf(negative)).any(1)
    # a row without negatives is worth nothing; zeros in its place keep the gradient finite
    total = torch.logsumexp(torch.where(some[:, None], negative, torch.zeros_like(negative)), dim=1)
    return torch.where(some, total - ratio * positive, 0.0)


def psl(positive: Positive, negative: Negative, activation: str = "tanh", temperature: float = 0.1) -> Row:
    """Pairwise softmax loss: log(1 + sum_j s(n_j - p) ** (1 / temperature)), a tighter bound of the ranking than softmax.

    Yang et al., "PSL: Rethinking and Improving Softmax Loss from Pairwise Perspective for Recommendation", NeurIPS 2024. For
    halved cosines: towers that end in L2Norm, output temperature 2, no sampling-bias correction.

    Args:
        positive, negative: scores, whose differences should stay in [-1, 1].
        activation: s: "tanh" (tanh(d) + 1), "atan" (arctan(d) + 1) or "relu" (max(0, d + 1)).
        temperature: the paper's tau*.

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> psl(torch.tensor([0.5]), torch.tensor([[0.5, -0.5]]), activation="relu", temperature=1.0)
        tensor([0.6931])
    """
    masked = torch.isneginf(negative)
    difference = negative.masked_fill(masked, 0.0) - positive[:, None]
    log_s = choose("activation of psl", activation, LOG_SURROGATES)(difference).masked_fill(masked, -torch.inf)
    own = torch.zeros_like(positive)[:, None]
    return torch.logsumexp(torch.cat([own, log_s / temperature], dim=1), dim=1)


def slatk(positive: Positive, negative: Negative, k: int = 20, temperature: float = 1.0) -> Row:
    """Softmax loss at K: sigmoid((p - beta) / temperature) * softmax(p, n), beta the K-th largest logit of the row.

    Positives that are near the first K places, or among them, count more. Yang et al., "Breaking the Top-K Barrier:
    Advancing Top-K Ranking Metrics Optimization in Recommender Systems", KDD 2025. beta is taken without gradient.

    Args:
        positive, negative: logits.
        k: K, a place among the row's positive and negatives: with a pool that is a share of the catalogue, the same share
            of the K that matters.
        temperature: of the weight.

    Example:
        >>> slatk(torch.tensor([2.0]), torch.tensor([[2.0, -1.0]]), k=1)  # half of softmax, for p = beta
        tensor([0.3589])
    """
    with torch.no_grad():
        row = torch.cat([positive[:, None], negative], dim=1)
        beta = row.topk(min(k, row.shape[1]), dim=1).values[:, -1]
        # fewer than K candidates: the last of them
        last = row.masked_fill(torch.isneginf(row), torch.inf).amin(1)
        beta = torch.maximum(beta, last)
    return torch.sigmoid((positive - beta) / temperature) * softmax(positive, negative)


def _log_tanh(d: Tensor) -> Tensor:
    return F.logsigmoid(2 * d) + math.log(2)  # 1 + tanh(d) = 2 sigmoid(2 d)


def _log_atan(d: Tensor) -> Tensor:
    return _log_or_nothing(1 + torch.atan(d))


def _log_relu(d: Tensor) -> Tensor:
    return _log_or_nothing(1 + d)


def _log_or_nothing(s: Tensor) -> Tensor:
    """log s, and -inf with gradient 0 where s is not above 0."""
    above = s > 0
    return torch.where(above, s, 1.0).log().masked_fill(~above, -torch.inf)


LOG_SURROGATES = {"tanh": _log_tanh, "atan": _log_atan, "relu": _log_relu}
