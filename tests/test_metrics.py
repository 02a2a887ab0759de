"""Metrics against visible arithmetic, Merlin's reference values, a slow loop and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import ndcg_score

import twotower as tt
from twotower import metrics as m

LABELS = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
SCORES = torch.tensor([[10.0, 9, 8, 7, 6], [1, 4, 3, 2, 5], [10, 9, 8, 7, 6]])


def values(labels: torch.Tensor, scores: torch.Tensor, k: int) -> dict[str, list[float]]:
    relevance, positives = m.rank_labels(labels, scores)
    records = [tt.RecallAt(k), tt.PrecisionAt(k), tt.AvgPrecisionAt(k), tt.MRRAt(k), tt.NDCGAt(k)]
    return {record.name: record(relevance, positives).tolist() for record in records}


def test_merlin_reference_values() -> None:
    got = {name: sum(v) / 3 for name, v in values(LABELS, SCORES, 4).items()}
    expected = {"recall": 0.5, "precision": 0.25, "map": 0.208333, "mrr": 0.25, "ndcg": 0.304996}
    assert got == pytest.approx({f"{name}_at_4": v for name, v in expected.items()}, abs=1e-6)
    assert values(LABELS, SCORES, 4)["recall_at_4"] == [1.0, 0.5, 0.0]


def test_positives_at_ranks_3_and_6() -> None:
    labels, scores = torch.tensor([[0, 0, 1, 0, 0, 1]]), torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    got = values(labels, scores, 4)
    # by hand: one of min(4, 2) = 2 positives among the first four, at rank 3
    ndcg = (1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))
    expected = {"recall": 1 / 2, "precision": 1 / 4, "map": (1 / 3) / 2, "mrr": 1 / 3, "ndcg": ndcg}
    assert {name: v[0] for name, v in got.items()} == pytest.approx({f"{n}_at_4": v for n, v in expected.items()})
    assert ndcg == pytest.approx(0.306574, abs=1e-6)


def test_more_positives_than_k_can_still_reach_one() -> None:
    got = values(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[4.0, 3, 2, 1]]), 2)
    assert all(v == [1.0] for v in got.values())
    relevance, positives = m.rank_labels(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[4.0, 3, 2, 1]]))
    assert tt.RecallAt(2, capped=False)(relevance, positives).item() == pytest.approx(2 / 3)


def test_rows_of_three_dimensional_labels_are_weighted_outside() -> None:
    labels, scores = LABELS[:2], SCORES[:2]
    recall = torch.tensor(values(labels, scores, 4)["recall_at_4"])
    assert (recall * torch.tensor([1.0, 1.0])).sum().item() / 2 == pytest.approx((1.0 + 0.5) / 2)


def test_a_query_without_positives_gives_zero() -> None:
    assert all(v == [0.0] for v in values(torch.zeros(1, 5, dtype=torch.int64), SCORES[:1], 4).values())


def test_ties_lose() -> None:
    relevance, _ = m.rank_labels(torch.tensor([[1, 0, 0, 1]]), torch.tensor([[5.0, 5, 5, 7]]))
    assert relevance.tolist() == [[1, 0, 0, 1]]


def slow(labels: list[int], scores: list[float], k: int) -> dict[str, float]:
    order = sorted(range(len(labels)), key=lambda i: (-scores[i], labels[i]))
    hits = [labels[i] for i in order]
    total = sum(hits)
    found = sum(hits[:k])
    precision_sum = sum(sum(hits[: j + 1]) / (j + 1) for j in range(k) if hits[j])
    first = next((j + 1 for j in range(k) if hits[j]), None)
    gain = sum(1 / math.log2(j + 2) for j in range(k) if hits[j])
    ideal = sum(1 / math.log2(j + 2) for j in range(min(k, total)))
    return {
        f"recall_at_{k}": found / max(1, min(k, total)),
        f"precision_at_{k}": found / k,
        f"map_at_{k}": precision_sum / max(1, min(k, total)),
        f"mrr_at_{k}": 1 / first if first else 0.0,
        f"ndcg_at_{k}": gain / ideal if total else 0.0,
    }


@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_agreement_with_a_slow_loop_on_random_cases_with_ties(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    labels = (torch.rand(200, 12, generator=generator) < 0.3).long()
    scores = torch.randint(0, 6, (200, 12), generator=generator).float()  # six values: ties everywhere
    got = values(labels, scores, k)
    for row in range(200):
        expected = slow(labels[row].tolist(), scores[row].tolist(), k)
        assert {name: v[row] for name, v in got.items()} == pytest.approx(expected, abs=1e-6)


def test_ndcg_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(5)
    labels = (torch.rand(50, 20, generator=generator) < 0.3).long()
    labels[:, 0] = 1  # scikit-learn has no value for rows without positives
    scores = torch.rand(50, 20, generator=generator)
    relevance, positives = m.rank_labels(labels, scores)
    ours = tt.NDCGAt(8)(relevance, positives).mean().item()
    assert ours == pytest.approx(ndcg_score(labels.numpy(), scores.numpy(), k=8, ignore_ties=True), abs=1e-6)


def test_popularity_metrics_of_merlin() -> None:
    ids = torch.tensor([[1, 9, 8, 7, 6], [1, 4, 3, 2, 5], [5, 9, 8, 7, 6]])
    p = torch.tensor([0.1, 0.05, 0.2, 0.05, 0.1, 0.1, 0.15, 0.05, 0.1, 0.1])
    assert m.novelty_at(ids, p, 3).item() == pytest.approx(2.533634, abs=1e-6)
    assert m.popularity_bias_at(ids, p, 3).item() == pytest.approx(0.083333, abs=1e-6)
    assert m.coverage_at(ids, 11, 4) == pytest.approx(8 / 11)  # 1 9 8 7 4 3 2 5


def test_metrics_by_name() -> None:
    assert m.resolve_metrics(["recall_at_20", "ndcg", "mrr_at"]) == (tt.RecallAt(20), tt.NDCGAt(10), tt.MRRAt(10))
    with pytest.raises(ValueError, match=r"unknown metric 'recal_at'.*Did you mean 'recall_at'"):
        m.resolve_metrics(["recal_at_5"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tt.RecallAt(0)


def test_k_beyond_the_ranked_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="k=6 needs 6 ranked items, but only 5"):
        values(LABELS, SCORES, 6)
