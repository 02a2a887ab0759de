"""The measures of health against arithmetic, loops and other libraries."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from twotower.health import measures


def vectors(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_counts_directions() -> None:
    corners = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    assert measures.effective_rank(corners + 7) == pytest.approx(1)  # three directions of three, wherever the centre is
    flat = corners.clone()
    flat[4:] = 0
    assert measures.effective_rank(flat) == pytest.approx(2 / 3)
    assert measures.effective_rank(torch.arange(5.0)[:, None] * torch.ones(3)) == pytest.approx(1 / 3, abs=1e-3)
    assert measures.effective_rank(torch.ones(5, 3)) == 0
    # two directions, of 4/5 and 1/5 of the variance: exp(-.8 log .8 - .2 log .2) = 1.6494, of min(3, N - 1 = 3)
    uneven = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert measures.effective_rank(uneven) == pytest.approx(1.6494 / 3, abs=1e-4)
    huge = vectors(50, 16).double() * torch.logspace(0, 30, 50, dtype=torch.float64)[:, None]
    assert 1 / 16 <= measures.effective_rank(huge) < 1.01 / 16 + 0.1  # one vector outweighs all others
    assert math.isnan(measures.effective_rank(torch.full((3, 2), torch.nan)))
    some = vectors(20, 6)
    values = np.linalg.svd((some - some.mean(0)).double().numpy(), compute_uv=False) ** 2
    share = values / values.sum()
    assert measures.effective_rank(some) == pytest.approx(math.exp(-(share * np.log(share)).sum()) / 6, rel=1e-4)


def test_cosines_spread_and_dead_dimensions() -> None:
    some = vectors(7, 3) + 1
    unit = [v / v.norm() for v in some]
    pairs = [float(a @ b) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
    assert measures.mean_cosine(some) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert math.isnan(measures.mean_cosine(some[:1]))
    # around the centre (2, 0) at a distance of 1: variance 1, mean square length 4 + 1
    assert measures.relative_spread(torch.tensor([[3.0, 0], [1, 0], [2, 1], [2, -1]])) == pytest.approx(1 / 5)
    assert measures.dead_dimensions(torch.tensor([[3.0, 0, 1, 5], [2, 0, 2, 5]])) == 0.5


def test_score_variance_against_all_pairs() -> None:
    query, candidate = vectors(9, 4) + 0.5, vectors(12, 4, seed=1) - 0.3
    scores = (query @ candidate.T).double()
    everybodys = scores.mean(0)
    shared = everybodys.var(correction=0)
    personal = (scores - scores.mean(1, keepdim=True) - everybodys + scores.mean()).square().mean()
    assert measures.score_variance(query, candidate) == pytest.approx((float(shared), float(personal)), rel=1e-4)


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    one, other = torch.tensor([1.0, 2, 2, 5, 9, 3]), torch.tensor([3.0, 1, 4, 4, 8, 4])
    assert measures.rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert measures.rank_correlation(one, -one.exp()) == pytest.approx(-1)
    assert math.isnan(measures.rank_correlation(one, torch.ones(6)))


def test_duplicates_tail_and_lists() -> None:
    assert measures.duplicate_share(torch.tensor([4, 4, 7, 9, 9, 9, 1, 2])) == 5 / 8
    # of 100 interactions 50, 20 and 10 make 80: the head; with one less in it, the fourth item is needed too
    assert measures.tail_items(torch.tensor([10, 9, 50, 11, 20])).tolist() == [True, True, False, False, False]
    assert measures.tail_items(torch.tensor([50, 20, 10, 10, 9, 1])).tolist() == [False] * 3 + [True] * 3
    lists = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 8, 9], [5, 6, 7]])
    sets = [set(row.tolist()) for row in lists]
    common = [len(a & b) / 3 for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j]
    assert measures.list_overlap(lists) == pytest.approx(np.mean(common))
    assert measures.list_overlap(lists[:1].expand(4, 3)) == 1
    assert measures.distinct_share(lists, 100) == 8 / 12
    assert measures.distinct_share(lists, 10) == 8 / 10
