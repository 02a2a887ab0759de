"""The exact scan where many scores are equal, or nearly."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from twotower.indexes import scan as module
from twotower.indexes.scan import scan


def slow(queries: Tensor, k: int, vectors: Tensor, keys: Tensor, banned: Tensor, mask: Tensor) -> list[list[int]]:
    """Places by score and key, in whole numbers."""
    pairs = {tuple(pair) for pair in banned.tolist()}
    found = []
    for q, row in enumerate((queries @ vectors.T).tolist()):
        places = [p for p in range(len(vectors)) if mask[p] and (q, p) not in pairs]
        best = sorted(places, key=lambda p: (-row[p], int(keys[p])))[:k]
        found.append(best + [-1] * (k - len(best)))
    return found


@pytest.mark.parametrize("few", [False, True])
def test_crowds_of_equal_scores_come_by_key(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of zeros and of one number among vectors of -1, 0 and 1: hundreds are equal to the candidate at place k."""
    monkeypatch.setattr(module, "SCORES", 2**16)  # so that the candidates come in several parts
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randint(-1, 2, (3000, 2), generator=draw).float()
    queries = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0], [0.0, -0.0], [-1.0, 3.0]])
    keys = torch.randperm(10_000, generator=draw)[:3000]
    mask = torch.rand(3000, generator=draw) < (0.05 if few else 0.9)
    banned = torch.stack([torch.arange(2000) % 4, torch.randint(3000, (2000,), generator=draw)], dim=1)
    for k in (1, 7, 200):
        scores, places = scan(queries, k, vectors, keys, 1.5, banned=banned, mask=mask, tile=700)
        expected = torch.tensor(slow(queries, k, vectors, keys, banned, mask))
        assert torch.equal(places, expected)
        products = (queries @ vectors.T).gather(1, expected.clamp(min=0)).masked_fill(expected < 0, -torch.inf)
        assert torch.equal(scores, products)


def test_equal_scores_take_little_time_and_memory() -> None:
    """Sorting all 300,000 scores of 32 queries takes 40 times as long as a search without equal ones, and 300 MB."""
    draw = torch.Generator().manual_seed(0)
    vectors, keys = torch.randn(300_000, 8, generator=draw), torch.arange(300_000)
    largest = float(vectors.norm(dim=1).max())
    queries = torch.zeros(32, 8)
    scan(queries, 10, vectors, keys, largest)
    start = time.perf_counter()
    tracemalloc.start()
    scores, places = scan(queries, 10, vectors, keys, largest)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 2
    assert held < 50e6  # of NumPy's arrays, among them the gathered vectors
    assert torch.equal(places, torch.arange(10).expand(32, -1))
    assert not scores.any()


def test_what_a_products_rounding_leaves_open_is_looked_at() -> None:
    """Scores that differ by less than a matrix product's rounding: their order is that of the scores taken one by one."""
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(64, generator=draw)
    vectors = base + 3e-7 * torch.randn(4000, 64, generator=draw)
    queries = torch.randn(40, 64, generator=draw)
    keys = torch.randperm(4000, generator=draw)
    _, places = scan(queries, 5, vectors, keys, float(vectors.norm(dim=1).max()))
    all_places = torch.arange(4000).expand(40, -1)
    scores = module.inner(queries, all_places, vectors).numpy()
    order = np.lexsort((keys.expand(40, -1).numpy(), -scores), axis=1)[:, :5]
    assert np.array_equal(places, order)
