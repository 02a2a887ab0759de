"""From vectors to logits, in this order: scores / T, less the log of the expected counts, then the mask.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019, equation 4.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def positive_scores(query: Float[Tensor, "B D"], positive: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """<q_i, y_i> of each row."""
    return (query * positive).sum(-1)


def pool_scores(query: Float[Tensor, "B D"], pool: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
    """<q_i, c_j> of every query with every candidate of the pool."""
    return query @ pool.T


def scale(scores: Float[Tensor, "..."], temperature: float | Float[Tensor, ""]) -> Float[Tensor, "..."]:
    """s / T."""
    return scores / temperature


def correct(scores: Float[Tensor, "..."], log_expected: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """s - log E: a candidate drawn often counts less, so that the sum over the pool estimates the sum over all items.

    Raises:
        ValueError: a log E of -inf, that is a candidate that cannot have been drawn.
    """
    if bool(torch.isneginf(log_expected).any()):
        raise ValueError(
            "the correction met an item whose expected count is 0: its frequency was never counted, or no sampler can "
            "draw it. Call fit or adapt with data that holds every training item, or set logq_sampling_correction=False."
        )
    return scores - log_expected


def false_negatives(positive_ids: Int[Tensor, "B"], pool_ids: Int[Tensor, "N"]) -> Bool[Tensor, "B N"]:
    """True where the pool's candidate is the row's own positive."""
    return positive_ids[:, None] == pool_ids[None, :]


def mask(scores: Float[Tensor, "B N"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """-inf where hidden: the candidate is no negative of that row."""
    return scores.masked_fill(hidden, -torch.inf)
