"""Softmax cross-entropy over the positive and the pool."""

import torch
from jaxtyping import Float
from torch import Tensor


def softmax(positive: Float[Tensor, "B"], negative: Float[Tensor, "B N"]) -> Float[Tensor, "B"]:
    """log(exp(p) + sum_j exp(n_j)) - p.

    Args:
        positive: (B,) logits of the positives.
        negative: (B, N) logits of the pool, -inf where masked.

    Example:
        >>> softmax(torch.tensor([2.0]), torch.tensor([[1.0, -1.0]]))
        tensor([0.3490])
    """
    return torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive
