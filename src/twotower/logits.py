"""From vectors to logits, in this order: scores / T, less the log of the expected counts, then the mask.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019, equation 4.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from twotower.errors import explain_options


def positive_scores(query: Float[Tensor, "B D"], positive: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """<q_i, y_i> of each row."""
    return (query * positive).sum(-1)


def pool_scores(query: Float[Tensor, "B D"], pool: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
    """<q_i, c_j> of every query with every candidate of the pool."""
    return query @ pool.T


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


def equal_pairs(
    positive_ids: Int[Tensor, "B"], pool_ids: Int[Tensor, "N"]
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """The (row, column) of every True in `false_negatives`, without the B x N comparisons."""
    ascending, order = pool_ids.sort(stable=True)
    start = torch.searchsorted(ascending, positive_ids)
    each = torch.searchsorted(ascending, positive_ids, right=True) - start
    total = int(each.sum())
    row = torch.repeat_interleave(each, output_size=total)
    before = each.cumsum(0) - each
    return row, order[torch.arange(total, device=row.device) - before[row] + start[row]]


def mask(scores: Float[Tensor, "B N"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """-inf where hidden: the candidate is no negative of that row."""
    return scores.masked_fill(hidden, -torch.inf)


class LearnedTemperature(nn.Module):
    """A temperature that is learnt with the model and stays between two bounds.

    T = minimum * (maximum / minimum) ** sigmoid(a), with a the parameter: without bounds, sampled softmax tends to run
    away to ever sharper distributions.

    Args:
        initial: T at the start, strictly between the bounds.
        minimum, maximum: the bounds.

    Raises:
        ValueError: not 0 < minimum < initial < maximum.

    Example:
        >>> round(LearnedTemperature(0.1)().item(), 4)
        0.1
    """

    @explain_options
    def __init__(self, initial: float = 0.1, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        if not 0 < minimum < initial < maximum:
            raise ValueError(f"expected 0 < minimum < initial < maximum, got {minimum}, {initial} and {maximum}.")
        self.initial, self.minimum, self.maximum = initial, minimum, maximum
        share = math.log(initial / minimum) / math.log(maximum / minimum)
        self.position = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Float[Tensor, ""]:
        """The present T."""
        return self.minimum * (self.maximum / self.minimum) ** torch.sigmoid(self.position)
