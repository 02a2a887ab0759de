"""Losses that compare the positive with each negative.

All take `(positive (B,), negative (B, N))` with masked negatives -inf and give (B,): the mean over the row's
negatives, masked ones left out; a row without negatives gives 0. Hidasi and Karatzoglou, "Recurrent Neural Networks
with Top-k Gains for Session-based Recommendations", CIKM 2018, for the BPR-max and TOP1 family; Rendle et al., "BPR",
UAI 2009.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Positive = Float[Tensor, "B"]
Negative = Float[Tensor, "B N"]
Row = Float[Tensor, "B"]


def bpr(positive: Positive, negative: Negative) -> Row:
    """mean_j -log sigmoid(p - n_j).

    Example:
        >>> bpr(torch.tensor([2.0]), torch.tensor([[1.0, -1.0]]))
        tensor([0.1809])
    """
    n, valid = _unmasked(negative)
    return _mean(F.softplus(n - positive[:, None]), valid)


def bpr_max(positive: Positive, negative: Negative, reg_lambda: float = 1.0) -> Row:
    """mean_j -log(w_j sigmoid(p - n_j)) + lambda w_j n_j^2, with w the softmax over the row's negatives."""
    n, valid = _unmasked(negative)
    log_w = _log_weights(negative, valid)
    return _mean(F.softplus(n - positive[:, None]) - log_w + reg_lambda * log_w.exp() * n.square(), valid)


def top1(positive: Positive, negative: Negative) -> Row:
    """mean_j sigmoid(n_j - p) + sigmoid(n_j^2)."""
    n, valid = _unmasked(negative)
    return _mean(_top1_terms(positive, n), valid)


def top1_v2(positive: Positive, negative: Negative) -> Row:
    """TOP1 less sigmoid(p^2) / N, which makes up for the positive's own regularisation term."""
    n, valid = _unmasked(negative)
    count = valid.sum(1)
    own = torch.where(count > 0, torch.sigmoid(positive.square()) / count.clamp(min=1), torch.zeros_like(positive))
    return _mean(_top1_terms(positive, n), valid) - own


def top1_max(positive: Positive, negative: Negative) -> Row:
    """mean_j w_j (sigmoid(n_j - p) + sigmoid(n_j^2)), with w the softmax over the row's negatives."""
    n, valid = _unmasked(negative)
    return _mean(_log_weights(negative, valid).exp() * _top1_terms(positive, n), valid)


def logistic(positive: Positive, negative: Negative) -> Row:
    """mean_j log(1 + exp(n_j - p)); the same as BPR, by the name Merlin has for it."""
    return bpr(positive, negative)


def hinge(positive: Positive, negative: Negative) -> Row:
    """mean_j max(0, 1 + n_j - p)."""
    n, valid = _unmasked(negative)
    return _mean(F.relu(1 + n - positive[:, None]), valid)


def _top1_terms(positive: Positive, n: Negative) -> Negative:
    return torch.sigmoid(n - positive[:, None]) + torch.sigmoid(n.square())


def _unmasked(negative: Negative) -> tuple[Negative, Bool[Tensor, "B N"]]:
    # zeros in place of -inf keep the gradient of the masked entries finite; _mean leaves them out
    valid = ~torch.isneginf(negative)
    return negative.masked_fill(~valid, 0.0), valid


def _log_weights(negative: Negative, valid: Bool[Tensor, "B N"]) -> Negative:
    # a row without negatives would give nan; a 0 in its first place is harmless, since _mean leaves the row out
    none = ~valid.any(1, keepdim=True)
    safe = torch.where(none, torch.zeros_like(negative), negative)
    return torch.log_softmax(safe, dim=1).masked_fill(~valid, 0.0)


def _mean(terms: Negative, valid: Bool[Tensor, "B N"]) -> Row:
    return terms.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)
