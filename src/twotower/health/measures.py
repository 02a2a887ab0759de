"""What vectors, batches and lists tell about a model's health: pure functions of tensors.

What one vector alone cannot show is nan. Give vectors in float64: a model that is ill may hold numbers of any size.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# a dimension whose standard deviation is below this share of the vectors' root mean square is constant up to rounding
DEAD = 1e-4


def effective_rank(vectors: Float[Tensor, "N D"]) -> float:
    """In how many directions the centred vectors spread, as a share of the most that is possible, min(D, N - 1).

    exp(-sum p_d log p_d) with p_d = s_d^2 / sum s^2 and s the singular values of the centred vectors: 1 for vectors that
    spread alike in all directions, 1 / D on a line, 0 for vectors that are all equal. Roy & Vetterli, "The Effective
    Rank", EUSIPCO 2007, take p of the s themselves; squared they are shares of the variance, and small ones, which are
    noise, count less. nan for fewer than two vectors, and for some that are not finite.
    """
    most = min(vectors.shape[1], len(vectors) - 1)
    if most < 1 or not bool(vectors.isfinite().all()):
        return torch.nan
    if relative_spread(vectors) < DEAD**2:
        return 0.0
    covariance = _covariance(vectors)
    try:
        spectrum = torch.linalg.eigvalsh(covariance / covariance.trace()).clamp(min=0)
    except RuntimeError:  # no convergence (LinAlgError); a diagnostic must not end a training
        return torch.nan
    share = spectrum / spectrum.sum()
    return float(torch.special.entr(share).sum().exp()) / most


def relative_spread(vectors: Float[Tensor, "N D"]) -> float:
    """The variance of the vectors over the mean square of their lengths: 1 around 0, 0 for vectors that are all equal."""
    size = vectors.square().sum(1).mean()
    return float(_covariance(vectors).trace() / size) if size != 0 else 0.0


def mean_cosine(vectors: Float[Tensor, "N D"]) -> float:
    """The mean cosine of all pairs of different rows, from the length of their sum; nan for fewer than two rows."""
    if len(vectors) < 2:
        return torch.nan
    unit = torch.nn.functional.normalize(vectors, dim=1)
    pairs = len(unit) * (len(unit) - 1)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / pairs)


def dead_dimensions(vectors: Float[Tensor, "N D"]) -> float:
    """The share of the D dimensions that are the same in all vectors, up to rounding."""
    if len(vectors) < 2:
        return torch.nan
    scale = vectors.square().mean().sqrt()
    return float((vectors.std(0, correction=0) <= DEAD * scale).float().mean())


def score_variance(query: Float[Tensor, "Q D"], candidate: Float[Tensor, "N D"]) -> tuple[float, float]:
    """How much scores differ between candidates: the variance that all queries share, and the rest, which is personal.

    <q_i, c_j> = (something of i) + <mean q, c_j - mean c> + <q_i - mean q, c_j - mean c>. The first term ranks nothing, the
    second is one ranking for everybody, the third is what depends on who asks. The variances of the last two, over all
    pairs, are m' C m and trace(S C), with m the mean query, S and C the covariances of queries and candidates.
    """
    spread = _covariance(candidate)
    mean = query.mean(0)
    return float(mean @ spread @ mean), float((_covariance(query) * spread).sum())


def rank_correlation(one: Float[Tensor, "N"], other: Float[Tensor, "N"]) -> float:
    """Spearman's correlation, equal values sharing their mean rank; nan when one of the two is constant."""
    ranks = torch.stack([_ranks(one), _ranks(other)])
    ranks -= ranks.mean(1, keepdim=True)
    product = ranks @ ranks.T
    bottom = (product[0, 0] * product[1, 1]).sqrt()
    return float(product[0, 1] / bottom) if bottom > 0 else torch.nan


def duplicate_share(ids: Int[Tensor, "B"]) -> float:
    """The share of rows whose id stands in another row too."""
    counts = torch.unique(ids, return_counts=True)[1]
    return float(counts[counts > 1].sum() / len(ids))


def tail_items(counts: Int[Tensor, "N"], head: float = 0.8) -> Bool[Tensor, "N"]:
    """True for the tail: what is not among the most popular items that together have `head` of all interactions."""
    ascending, order = counts.sort(descending=True, stable=True)
    before = ascending.cumsum(0) - ascending
    tail = torch.empty(len(counts), dtype=torch.bool, device=counts.device)
    tail[order] = before >= head * counts.sum()
    return tail


def list_overlap(lists: Int[Tensor, "L K"]) -> float:
    """The mean share of a list that stands in another list too, over all pairs: 1 when everyone gets the same items.

    An item that stands in n of the L lists is common to n (n - 1) ordered pairs.
    """
    if len(lists) < 2:
        return torch.nan
    counts = torch.unique(lists, return_counts=True)[1].double()
    return float((counts * (counts - 1)).sum() / (len(lists) * (len(lists) - 1) * lists.shape[1]))


def distinct_share(lists: Int[Tensor, "L K"], candidates: int) -> float:
    """How many different items stand in the lists, of the most that could, min(L K, candidates)."""
    return len(torch.unique(lists)) / min(lists.numel(), candidates)


def same_rows(values: Shaped[Tensor, "N ..."]) -> bool:
    """Whether all rows are equal."""
    return bool((values == values[:1]).all())


def _covariance(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    centred = vectors - vectors.mean(0)
    return centred.T @ centred / (len(vectors) if len(vectors) > 1 else torch.nan)


def _ranks(values: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]
