"""Whole-catalogue ranking against a slow loop: several positives, ties, seen items, cold items."""

import warnings

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from tests.worlds import clubs, towers
from twotower import Tags, evaluation
from twotower.evaluation import evaluate_ranking, rank, ranking, ranking_task


def slow_ranking(scores: list[float], positives: set[int], seen: set[int], k: int) -> tuple[list[int], list[int]]:
    """Places and hits: by score, then negatives first, then by place."""
    left = [j for j in range(len(scores)) if j not in seen]
    order = sorted(left, key=lambda j: (-scores[j], j in positives, j))[:k]
    padding = [0] * (k - len(order))
    return order + [-1 for _ in padding], [int(j in positives) for j in order] + padding


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("items", [30, 2500])
@pytest.mark.parametrize("kinds", [5, 10**6])  # five different scores: ties everywhere
def test_ranking_agrees_with_a_slow_loop(k: int, items: int, kinds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "SCORES_IN_MEMORY", items * 7)  # several tiles
    rng = np.random.default_rng(k)
    events = tt.Dataset({"user": rng.integers(0, 50, 400), "item": rng.integers(0, items, 400)})
    past = tt.Dataset({"user": rng.integers(0, 50, 300), "item": rng.integers(0, items, 300)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*seen before")
        task = ranking_task(events, query=["user"], candidate="item", candidates=torch.arange(items), seen=past)
    users = task.queries.to_polars()["user"].to_list()
    scores = torch.from_numpy(rng.integers(-kinds // 2, kinds // 2, (50, items))).float()
    scores[:, ::2][scores[:, ::2] == 0] *= -1  # minus zero ties with zero
    got = rank(lambda rows: scores[[users[r] for r in rows.tolist()]].clone(), task, k)
    for row, user in enumerate(users):
        seen = set(past.to_polars().filter(pl.col("user") == user)["item"])
        positives = set(events.to_polars().filter(pl.col("user") == user)["item"]) - seen
        assert task.num_positives[row] == len(positives)
        places, hits = slow_ranking(scores[user].tolist(), positives, seen, k)
        assert got.places[row].tolist() == places
        assert got.hits[row].tolist() == hits


def test_a_query_is_a_distinct_row_of_its_columns() -> None:
    data = tt.Dataset({"user": [1, 1, 1, 2], "hour": [8, 8, 20, 8], "item": [3, 3, 4, 5]})
    task = ranking_task(data, query=["user", "hour"], candidate="item", candidates=torch.tensor([3, 4, 5]))
    assert task.queries.table.to_pydict() == {"user": [1, 1, 2], "hour": [8, 20, 8]}
    assert task.positives.to_lists() == [[0], [1], [2]]  # the repeated event counts once


def test_queries_with_list_columns() -> None:
    data = tt.Dataset({"history": [[1, 2], [1, 2], [2, 1]], "item": [3, 4, 5]})
    task = ranking_task(data, query=["history"], candidate="item", candidates=torch.tensor([3, 4, 5]))
    assert task.positives.to_lists() == [[0, 1], [2]]


def test_types_and_names_of_columns_do_not_matter() -> None:
    """int32 ids are the same ids, and a column may be called anything."""
    rows = pl.DataFrame({"position": [1, 1, 2], "seen": [3, 4, 3]})
    past = pl.DataFrame({"position": [2], "seen": [4]})
    tasks = [
        ranking_task(tt.Dataset(rows.cast(kind)), query=["position"], candidate="seen", candidates=torch.tensor([3, 4]),
                     seen=tt.Dataset(past.cast(other)))
        for kind, other in ((pl.Int64, pl.Int64), (pl.Int32, pl.Int64), (pl.Int16, pl.Int32))
    ]  # fmt: skip
    for task in tasks:
        assert task.positives.to_lists() == [[0, 1], [0]]
        assert task.seen.to_lists() == [[], [1]]
        assert task.queries.to_polars()["position"].to_list() == [1, 2]


def test_positives_outside_the_catalogue_count_as_missed() -> None:
    data = tt.Dataset({"user": [1, 1], "item": [3, 99]})
    with pytest.warns(UserWarning, match="1 positives are not in the catalogue; they count as missed"):
        task = ranking_task(data, query=["user"], candidate="item", candidates=torch.tensor([3, 4]))
    perfect = evaluate_ranking(lambda rows: torch.tensor([[1.0, 0.0]]), task, [tt.RecallAt(2)])
    assert perfect["recall_at_2"].tolist() == [0.5]


def test_positives_seen_before_are_left_out_with_a_word() -> None:
    data, past = tt.Dataset({"user": [1, 1], "item": [3, 4]}), tt.Dataset({"user": [1], "item": [3]})
    with pytest.warns(UserWarning, match="1 positives were seen before"):
        task = ranking_task(data, query=["user"], candidate="item", candidates=torch.tensor([3, 4, 5]), seen=past)
    assert task.positives.to_lists() == [[1]]
    best_is_seen = evaluate_ranking(lambda rows: torch.tensor([[9.0, 5.0, 1.0]]), task, [tt.RecallAt(1)])
    assert best_is_seen["recall_at_1"].tolist() == [1.0]
    with pytest.warns(UserWarning, match="seen before"), pytest.raises(ValueError, match="no positive to evaluate"):
        ranking_task(past, query=["user"], candidate="item", candidates=torch.tensor([3, 4]), seen=past)


def test_evaluation_errors() -> None:
    data = tt.Dataset({"user": [1], "item": [3]})
    task = ranking_task(data, query=["user"], candidate="item", candidates=torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="k=10 needs at least 10 candidates; the catalogue has 2"):
        evaluate_ranking(lambda rows: torch.zeros(1, 2), task, [tt.RecallAt(10)])
    with pytest.raises(ValueError, match="scores candidates with nan"):
        evaluate_ranking(lambda rows: torch.full((1, 2), torch.nan), task, [tt.RecallAt(1)])
    with pytest.raises(ValueError, match="the evaluation data lacks a column. unknown column 'usr'"):
        ranking_task(data, query=["usr"], candidate="item", candidates=torch.tensor([3]))


def test_model_evaluate_is_towers_times_towers() -> None:
    """The model's evaluate against scores made by hand from its towers."""
    train, test = clubs(rows=800), clubs(rows=200, seed=2)
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    values = model.evaluate(test, metrics=["recall_at_10", "mrr_at_10"])
    model.eval()
    recall, mrr = [], []
    catalog = model.catalog
    with torch.no_grad():
        vectors = model.candidate(catalog.features)
        for (user, height), rows in test.to_polars().group_by(["user_id", "user_height"]):
            query = model.query({"user_id": torch.tensor([user]), "user_height": torch.tensor([height])})
            order = catalog.ids[(query @ vectors.T)[0].argsort(descending=True)][:10].tolist()
            positives = set(rows["item_id"])
            recall.append(len(positives & set(order)) / min(10, len(positives)))
            mrr.append(next((1 / (r + 1) for r, item in enumerate(order) if item in positives), 0.0))
    assert values["recall_at_10"] == pytest.approx(np.mean(recall), abs=1e-6)
    assert values["mrr_at_10"] == pytest.approx(np.mean(mrr), abs=1e-6)


def test_seen_items_and_groups_of_the_model() -> None:
    train, test = clubs(rows=800), clubs(rows=200, seed=2)
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    raw = tt.Dataset(test.to_polars().with_columns(person=pl.col("user_id") * 2), test.schema)
    past = tt.Dataset(train.to_polars().with_columns(person=pl.col("user_id") * 2), train.schema)
    with pytest.warns(UserWarning, match="seen before"):
        by_id = model.evaluate(test, seen=train)
    with pytest.warns(UserWarning, match="seen before"):
        by_group = model.evaluate(raw, seen=past, group="person")
    with pytest.warns(UserWarning, match="seen before"):
        by_own_column = model.evaluate(test, seen=train, group="user_id")  # which the tower reads as well
    assert by_id == by_own_column == pytest.approx(by_group)
    content_only = tt.Encoder(train.schema[["user_height"]], tt.MLPBlock([16]))
    nameless = tt.TwoTowerModelV2(content_only, towers(train)[1]).adapt(train)
    with pytest.raises(ValueError, match="must know whose they are.*Give group="):
        nameless.evaluate(test, seen=train)


def test_unknown_users_are_not_one_user() -> None:
    events = {"user_id": ["a", "b", "a", "b"], "item_id": [1, 2, 3, 1]}
    preprocessor = tt.Preprocessor(
        {"user_id": tt.Categorical((Tags.USER_ID,)), "item_id": tt.Categorical((Tags.ITEM_ID,))}
    )
    train = preprocessor.fit_transform(events)
    test = preprocessor.transform({"user_id": ["new", "newer"], "item_id": [1, 2], "raw": ["new", "newer"]})
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    with pytest.warns(
        UserWarning, match="2 rows hold values of 'user_id' that the Preprocessor did not know.*give it as group"
    ):
        together = model.evaluate(test, metrics="recall_at_2")
    apart = model.evaluate(test, metrics="recall_at_1", group="raw")
    assert together["recall_at_2"] in (0.5, 1.0)
    assert apart["recall_at_1"] in (0.0, 0.5)  # both get the same list, and want different items


def test_in_batch_metrics_by_hand() -> None:
    # scores: row 0 beats both others; row 1 stands behind one other; row 2's own item is also row 0's, so it is no rival
    query = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    candidate = torch.tensor([[2.0, 2], [1, 1], [2, 2]])
    ids = torch.tensor([7, 8, 7])
    relevance = evaluation.in_batch_relevance(query, candidate, ids, 2)
    assert relevance.tolist() == [[1, 0], [0, 0], [1, 0]]


def test_a_missing_group_is_an_error() -> None:
    data = tt.Dataset({"user": [None, "a"], "item": [1, 2]})
    with pytest.raises(ValueError, match="column 'user', which tells queries apart, is null in 1 rows"):
        ranking_task(data, query=["user"], candidate="item", candidates=torch.tensor([1, 2]))


def test_unknown_items_are_no_candidate_and_no_hit() -> None:
    preprocessor = tt.Preprocessor({"user_id": tt.Categorical(Tags.USER_ID), "item_id": tt.Categorical(Tags.ITEM_ID)})
    train = preprocessor.fit_transform({"user_id": ["a", "b", "a"], "item_id": ["x", "y", "z"]})
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    films = preprocessor.transform({"item_id": ["x", "y", "z", "new", "newer", None]})
    test = preprocessor.transform({"user_id": ["a", "a", "b"], "item_id": ["new", "newer", "x"]})
    with pytest.warns(UserWarning, match="item_id|catalogue") as said:
        values = model.evaluate(test, catalog=films, metrics="recall_at_3")
    messages = [str(w.message) for w in said]
    assert any("3 rows hold no id or one that the Preprocessor did not know in 'item_id'" in m for m in messages)
    assert any("1 positives are not in the catalogue" in m for m in messages)
    assert values["recall_at_3"] == 0.5  # a's films are unknown and missed, b's is one of three
