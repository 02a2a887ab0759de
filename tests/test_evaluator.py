"""The Evaluator against a slow loop, worlds with a known answer, and textbook statistics."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from tests.worlds import clubs, towers
from twotower.baselines import Popularity
from twotower.evaluation import Queries, ScoreQueries
from twotower.evaluation.statistics import bootstrap, sign_flip_test


class Fixed:
    """A ranker whose scores are written down: by user, one for each candidate."""

    def __init__(self, scores: dict[object, list[float]], user: str = "user") -> None:
        self.scores, self.user = scores, user

    def score_queries(self, queries: Queries, candidates: tt.Dataset) -> ScoreQueries:
        users = queries.select([self.user]).to_polars()[self.user].to_list()
        table = torch.tensor([self.scores[user] for user in users])
        return lambda rows: table[rows].clone()


ITEMS = {"item": ["a", "b", "c", "d"], "genre": [["x"], ["x", "y"], ["y"], []], "year": [1990, 2000, 2000, None]}
TRAIN = {"user": ["u", "u", "v", "v", "v"], "item": ["a", "b", "a", "a", "b"]}  # a: 3 events, b: 2
TEST = {"user": ["u", "v", "v", "w"], "item": ["c", "c", "d", "a"], "sex": ["f", "m", "m", "f"]}
SCORES = {"u": [9.0, 8, 7, 6], "v": [9.0, 8, 6, 7], "w": [1.0, 4, 3, 2]}  # w is new
ASKED = {"candidates": ITEMS, "user": "user", "item": "item"}


def test_every_metric_by_hand() -> None:
    """u is left with c d: hit at 1. v with d c: hits at 1 and 2. w with b c d a: the positive stands fourth."""
    names = ["recall_at_2", "full_recall_at_1", "precision_at_2", "mrr_at_4", "map_at_2", "ndcg_at_2", "hit_rate_at_2",
             "coverage_at_1", "gini_at_1", "novelty_at_2", "popularity_lift_at_1", "diversity_of_genre_at_2"]  # fmt: skip
    evaluation = tt.Evaluator(TEST, seen=TRAIN, metrics=names, **ASKED)(Fixed(SCORES))
    rows = {row["user"]: row for row in evaluation.values.to_dicts()}
    assert [row["recommended"] for row in rows.values()] == [["c", "d"], ["d", "c"], ["b", "c", "d", "a"]]
    assert [rows[user]["recall_at_2"] for user in "uvw"] == [1, 1, 0]
    assert [rows[user]["full_recall_at_1"] for user in "uvw"] == [1, 0.5, 0]
    assert [rows[user]["precision_at_2"] for user in "uvw"] == [0.5, 1, 0]
    assert [rows[user]["mrr_at_4"] for user in "uvw"] == [1, 1, 0.25]
    # first places c, d, b of a b c d; each once: sorted 0 1 1 1, gini = (-3*0 - 1 + 1 + 3) / (4 * 3)
    assert evaluation["coverage_at_1"].mean == 0.75
    assert evaluation["gini_at_1"].mean == pytest.approx(3 / 12)
    # (count + 1) / (5 + 4): b 3/9, c and d 1/9
    assert rows["u"]["novelty_at_2"] == pytest.approx(math.log2(9))
    assert rows["w"]["novelty_at_2"] == pytest.approx((math.log2(9 / 3) + math.log2(9)) / 2)
    assert rows["u"]["popularity_lift_at_1"] == -1  # c has no events; u chose items of (3 + 2) / 2
    assert math.isnan(rows["w"]["popularity_lift_at_1"])
    assert evaluation["popularity_lift_at_1"].count == 2
    assert rows["u"]["diversity_of_genre_at_2"] == 1  # d has no genre
    assert rows["w"]["diversity_of_genre_at_2"] == pytest.approx(1 - 1 / math.sqrt(2))  # x y against y
    assert evaluation["recall_at_2"].mean == pytest.approx(2 / 3)
    assert evaluation.queries == 3
    assert evaluation.positives == 4


def test_slices_by_hand() -> None:
    evaluation = tt.Evaluator(
        TEST, seen=TRAIN, metrics=["recall_at_1"], **ASKED,
        slices=["cold_items", "warm_items", "new_users", "known_users", "sex", "genre", "year"],
    )(Fixed(SCORES))  # fmt: skip
    found = {
        name: (part.queries, part.positives, round(part.metrics["recall_at_1"].mean, 4))
        for name, part in evaluation.slices.items()
    }
    assert found == {
        "cold_items": (2, 3, 1.0),  # u: c; v: c and d, of which d stands first
        "warm_items": (1, 1, 0.0),
        "new_users": (1, 1, 0.0),
        "known_users": (2, 3, 1.0),
        "sex = f": (2, 2, 0.5),
        "sex = m": (1, 2, 1.0),
        "genre = y": (2, 2, 0.5),  # c for u and for v, for whom d stands before it
        "genre = x": (1, 1, 0.0),
        "year = 2000": (2, 2, 0.5),
        "genre: none": (1, 1, 1.0),  # d, for v
        "year = 1990": (1, 1, 0.0),
        "year: none": (1, 1, 1.0),
    }


def test_the_tail_holds_a_fifth_of_the_events() -> None:
    items = {"item": list(range(6))}
    train = {"user": [0] * 20, "item": [0] * 10 + [1] * 6 + [2, 2, 3, 4]}  # the tail: 2, 3, 4; 5 is cold
    test = {"user": list(range(1, 7)), "item": list(range(6))}
    ranker = Fixed({user: [1.0] * 6 for user in range(1, 7)})
    slices = ["tail_items", "head_items", "cold_items"]
    evaluation = tt.Evaluator(
        test, candidates=items, train=train, user="user", item="item", metrics="recall_at_1", slices=slices
    )(ranker)
    assert {name: part.queries for name, part in evaluation.slices.items()} == {
        "tail_items": 3, "head_items": 2, "cold_items": 1,
    }  # fmt: skip


def test_many_numbers_are_cut_into_quarters_and_names_can_be_given() -> None:
    test = {"user": list(range(40)), "item": [0] * 40, "age": list(range(40)), "code": [3, 4] * 20}
    ranker = Fixed({user: [1.0] for user in range(40)})
    by = ["age", tt.SliceBy("code", labels={3: "three"}, most=1)]
    made = tt.Evaluator(test, candidates={"item": [0]}, user="user", item="item", metrics="recall_at_1", slices=by)
    slices = made(ranker).slices
    assert list(slices) == ["age <= 10", "age > 10 to 20", "age > 20 to 29", "age > 29", "code = three", "code: others"]
    assert sum(part.queries for name, part in slices.items() if name.startswith("age")) == 40


def test_a_part_of_the_catalogue_is_a_whitelist() -> None:
    with pytest.warns(UserWarning, match="3 positives are not in the catalogue; they count as missed"):
        evaluator = tt.Evaluator(
            TEST, candidates={"item": ["a", "b"]}, user="user", item="item", metrics="full_recall_at_1"
        )
    values = evaluator(Fixed({user: scores[:2] for user, scores in SCORES.items()})).values
    assert values["full_recall_at_1"].to_list() == [0, 0, 0]
    assert {item for row in values["recommended"] for item in row} == {"a", "b"}


def test_a_model_a_retriever_and_its_own_evaluate_agree() -> None:
    """On raw tables and on encoded ones, and as the model's `evaluate` has it."""
    data = tt.load_movietweetings()
    ratings, films = data.ratings.head(6000), data.movies
    columns = {"user_id": tt.Categorical(tt.Tags.USER_ID), "item_id": tt.Categorical(tt.Tags.ITEM_ID),
               "genres": tt.Categorical(tt.Tags.ITEM)}  # fmt: skip
    preprocessor = tt.Preprocessor(columns).fit(ratings, films)
    raw_train, raw_test = tt.split_by_time(ratings, "timestamp", 0.2)
    known = raw_test.join(raw_train, on="user_id", how="semi").join(raw_train, on=["user_id", "item_id"], how="anti")
    train = preprocessor.transform(raw_train.join(films, on="item_id"))
    test, items = preprocessor.transform(known.join(films, on="item_id")), preprocessor.transform(films)
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(
        tt.Encoder(train.schema.select_by_tag(tt.Tags.USER), tt.MLPBlock([8])),
        tt.Encoder(train.schema.select_by_tag(tt.Tags.ITEM), tt.MLPBlock([8])),
    ).adapt(train, items)
    metrics = ["recall_at_50", "ndcg_at_50", "mrr_at_50"]
    own = model.evaluate(test, seen=train, metrics=metrics)
    encoded = tt.Evaluator(test, candidates=items, seen=train, metrics=metrics)(model)
    ids_alone = tt.Evaluator(test, candidates=items.select(["item_id"]), seen=train, metrics=metrics)(model)
    raw = tt.Evaluator(known, candidates=films, seen=raw_train, user="user_id", item="item_id", metrics=metrics)(
        tt.Retriever(model, preprocessor, films)
    )
    assert own["recall_at_50"] > 0
    for evaluation in (encoded, ids_alone, raw):
        assert evaluation.means() == pytest.approx(own, abs=1e-6)
    few = tt.Retriever(model, preprocessor, films.head(100))
    with pytest.raises(ValueError, match="of 10506 candidates are not among the Retriever's items"):
        tt.Evaluator(known, candidates=films, user="user_id", item="item_id")(few)


def test_a_query_may_be_more_than_a_user() -> None:
    test = {"user": ["u", "u", "v"], "hour": [1, 2, 1], "item": ["a", "b", "a"]}

    class ByHour:
        def score_queries(self, queries: Queries, candidates: tt.Dataset) -> ScoreQueries:
            hours = queries.select(["hour"]).to_polars()["hour"]
            table = torch.stack([1.0 * (hours == 1).to_torch(), 1.0 * (hours == 2).to_torch()], dim=1)
            return lambda rows: table[rows]

    asked = {"candidates": {"item": ["a", "b"]}, "user": "user", "item": "item", "metrics": "recall_at_1"}
    by_hour = tt.Evaluator(test, query=["user", "hour"], **asked)(ByHour())
    assert by_hour.queries == 3
    assert by_hour["recall_at_1"].mean == 1
    with pytest.raises(ValueError, match=r"\['hour'\] are read of a query, but differ.*query=\['user', 'hour'\]"):
        tt.Evaluator(test, **asked)(ByHour())
    seen = tt.Evaluator(test, query=["user", "hour"], seen={"user": ["v"], "item": ["b"]}, **asked)(ByHour())
    assert seen.values["recommended"].to_list() == [["a"], ["b"], ["a"]]


def test_bootstrap_intervals_are_those_of_the_normal_law() -> None:
    """The mean of 4,000 fair coins: +- 1.96 * .5 / sqrt(4000); in clusters of four equal ones it is twice as wide."""
    coins = np.random.default_rng(0).integers(0, 2, 4000).astype(float)
    alone = bootstrap([coins[:, None]], [np.arange(4000)], num_clusters=4000, confidence=0.95, seed=0)[0][0]
    half = 1.96 * 0.5 / math.sqrt(4000)
    assert alone.high - alone.low == pytest.approx(2 * half, rel=0.1)  # 1,000 resamples: a few per cent
    assert alone.low < coins.mean() < alone.high
    four = np.repeat(coins[:1000], 4)
    together = bootstrap([four[:, None]], [np.repeat(np.arange(1000), 4)], num_clusters=1000, confidence=0.95, seed=0)
    assert together[0][0].high - together[0][0].low == pytest.approx(4 * half, rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """100 samples of 200 draws: about 90 of the 90 % intervals hold the true mean, 5 standard errors of 3 either way."""
    rng, inside = np.random.default_rng(1), 0
    for seed in range(100):
        values = rng.exponential(size=(200, 1))
        interval = bootstrap([values], [np.arange(200)], num_clusters=200, confidence=0.9, seed=seed)[0][0]
        inside += interval.low < 1 < interval.high
    assert 75 <= inside <= 99


def test_the_paired_test_against_the_binomial_law() -> None:
    """With differences of one size the test is the sign test: 9 of 10 up, p = 2 * (1 + 10) / 2^10."""
    differences = np.array([1.0] * 9 + [-1.0])
    p, _ = sign_flip_test(differences, np.arange(10), confidence=0.95, seed=0)
    assert p == pytest.approx(22 / 1024, abs=0.013)  # 2,000 flips: four standard errors of .0032
    assert sign_flip_test(np.zeros(10), np.arange(10), confidence=0.95, seed=0) == (1, (0, 0))
    assert np.isnan(sign_flip_test(differences[:9], np.arange(9), confidence=0.95, seed=0)[1]).all()  # too few users


def test_the_interval_of_a_difference_is_what_its_test_does_not_refuse() -> None:
    """Users with 1 to 4 queries: a difference within the interval, taken off, leaves p of .05 and more; one outside does not."""
    rng, borders = np.random.default_rng(0), 0
    for seed in range(40):
        user = np.repeat(np.arange(30), rng.integers(1, 5, 30))
        apart = rng.choice([-1.0, 0.0, 1.0], len(user)) + rng.normal(0.25, 0.05)
        p, (low, high) = sign_flip_test(apart, user, confidence=0.95, seed=seed)
        assert low < apart.mean() < high
        assert (p < 0.05) == (low > 0 or high < 0)
        borders += 0.01 < p < 0.1
        for taken, inside in ((low + 1e-6, True), (low - 1e-6, False), (high - 1e-6, True), (high + 1e-6, False)):
            assert (sign_flip_test(apart - taken, user, confidence=0.95, seed=seed)[0] >= 0.05) == inside
    assert borders >= 10  # where two ways to make them could contradict each other


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says() -> None:
    """200 samples of 40 skewed draws: about 180 of the 90 % intervals hold the true mean, 4 standard errors of 4.2 either way."""
    rng, inside = np.random.default_rng(1), 0
    for seed in range(200):
        apart = rng.exponential(size=40) - 0.8
        _, (low, high) = sign_flip_test(apart, np.arange(40), confidence=0.9, seed=seed)
        inside += low < 0.2 < high
    assert 163 <= inside <= 197


def test_compare_pairs_queries_and_finds_what_is_there() -> None:
    rng = np.random.default_rng(0)
    users = list(range(400))
    test = {"user": users, "item": [0] * 400}
    # the first ranker finds the item for 65 % of the users, the second for 45 %, whatever the first does
    good, less = rng.random(400) < 0.65, rng.random(400) < 0.45
    evaluator = tt.Evaluator(test, candidates={"item": [0, 1]}, user="user", item="item", metrics="recall_at_1")
    first = evaluator(Fixed({u: [float(good[u]), 0.5] for u in users}), name="good")
    second = evaluator(Fixed({u: [float(less[u]), 0.5] for u in users}), name="less")
    found = tt.compare(first, second)[0]
    assert found.difference == pytest.approx(good.mean() - less.mean())
    assert (found.better, found.worse) == ((good & ~less).mean(), (less & ~good).mean())
    error = 1.96 * (good * 1.0 - less).std() / 20
    assert found.low == pytest.approx(found.difference - error, abs=0.01)
    assert found.high == pytest.approx(found.difference + error, abs=0.01)
    assert found.p < 0.05
    assert tt.compare(first, first)[0].p == 1
    shuffled = tt.Evaluator(
        pl.DataFrame(test).sample(fraction=1, shuffle=True, seed=1), candidates={"item": [0, 1]}, user="user",
        item="item", metrics="recall_at_1",
    )(Fixed({u: [float(less[u]), 0.5] for u in users}))  # fmt: skip
    assert tt.compare(first, shuffled)[0].difference == pytest.approx(found.difference)
    other = tt.Evaluator(
        {"user": [1], "item": [0]}, candidates={"item": [0, 1]}, user="user", item="item", metrics="recall_at_1"
    )(Fixed({1: [1.0, 0.5]}))
    with pytest.raises(ValueError, match="other queries: 400 and 1, 1 in common"):
        tt.compare(first, other)
    with pytest.raises(ValueError, match="unknown metric of both evaluations 'ndcg_at_1'"):
        tt.compare(first, second, ["ndcg_at_1"])


def test_an_evaluation_survives_its_file(tmp_path: Path) -> None:
    evaluation = tt.Evaluator(TEST, seen=TRAIN, slices=["sex", "tail_items"], metrics=["recall_at_2", "coverage_at_2"],
                              **ASKED)(Fixed(SCORES), name="fixed")  # fmt: skip
    evaluation.save(tmp_path / "here [64, *]")  # no pattern
    again = tt.Evaluation.load(tmp_path / "here [64, *]")
    assert str(again) == str(evaluation)
    assert again.values.equals(evaluation.values)
    assert again.metrics.keys() == evaluation.metrics.keys()
    assert tt.compare(again, evaluation)[0].difference == 0
    with pytest.raises(ValueError, match="no evaluation at .*evaluation.json"):
        tt.Evaluation.load(tmp_path)


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match=r"which column is the user\?.*Give user="):
        tt.Evaluator(TEST, candidates=ITEMS, item="item")
    with pytest.raises(ValueError, match="unknown slice 'sx'.*Did you mean 'sex'"):
        tt.Evaluator(TEST, slices=["sx"], metrics="recall_at_1", **ASKED)
    with pytest.raises(ValueError, match="unknown metric 'recal_at'"):
        tt.Evaluator(TEST, metrics="recal_at_2", **ASKED)
    with pytest.raises(ValueError, match="at k=9 needs at least 9 candidates; the catalogue has 4"):
        tt.Evaluator(TEST, metrics="coverage_at_9", **ASKED)
    with pytest.raises(ValueError, match="diversity reads a column of the candidates. unknown column 'genra'"):
        tt.Evaluator(TEST, metrics="diversity_of_genra_at_2", **ASKED)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        tt.Evaluator(TEST, confidence=95, **ASKED)
    with pytest.raises(ValueError, match="each once"):
        tt.Evaluator(TEST, metrics=["recall_at_2", "recall_at_2"], **ASKED)
    with pytest.raises(ValueError, match="the training data lacks a column. unknown column 'user'"):
        tt.Evaluator(TEST, train={"person": [1], "item": ["a"]}, metrics="recall_at_1", **ASKED)


def test_popularity_beside_a_model_on_encoded_data() -> None:
    train, test = clubs(rows=800), clubs(rows=200, seed=2)
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(*towers(train)).adapt(train)
    evaluator = tt.Evaluator(test, candidates=train, query=["user_id", "user_height"], user="user_id", train=train)
    rows = tt.tabulate([evaluator(model, "towers"), evaluator(Popularity(train, "user_id", "item_id"))])
    assert rows["name"].to_list() == ["towers", "Popularity"]
    popular = Popularity(train, "user_id", "item_id").evaluate(test, metrics="recall_at_10")["recall_at_10"]
    assert rows.row(1, named=True)["recall_at_10"] > 0
    assert popular > 0


def test_several_queries_of_a_user_are_drawn_together() -> None:
    """30 users with 4 like queries each: the interval is that of 30 values, and the test that of 30 differences."""
    rng = np.random.default_rng(3)
    good = rng.random(30) < 0.7
    rows = {"user": np.repeat(np.arange(30), 4), "hour": np.tile(np.arange(4), 30), "item": np.zeros(120, dtype=int)}
    asked = {"candidates": {"item": [0, 1]}, "user": "user", "item": "item", "metrics": "recall_at_1"}
    first, second = (Fixed({u: [float(g[u]), 0.5] for u in range(30)}) for g in (good, ~good))
    together, other = (tt.Evaluator(rows, query=["user", "hour"], **asked)(ranker) for ranker in (first, second))
    alone, its_other = (tt.Evaluator({"user": np.arange(30), "item": [0] * 30}, **asked)(r) for r in (first, second))
    assert together.keys == ("user", "hour")
    assert together.queries == 120
    for one, many in ((alone["recall_at_1"], together["recall_at_1"]),):
        assert (many.low, many.high) == pytest.approx((one.low, one.high))
    few, lots = tt.compare(alone, its_other)[0], tt.compare(together, other)[0]
    assert (lots.low, lots.high, lots.p) == pytest.approx((few.low, few.high, few.p))


def test_exposure_alone_can_be_measured() -> None:
    evaluation = tt.Evaluator(TEST, seen=TRAIN, metrics=["coverage_at_1", "novelty_at_2"], slices=["sex"], **ASKED)(
        Fixed(SCORES)
    )
    assert list(evaluation.metrics) == ["coverage_at_1", "novelty_at_2"]
    assert evaluation.slices["sex = m"].metrics["novelty_at_2"].mean == pytest.approx(math.log2(9))
    with pytest.raises(ValueError, match="numbers about all lists together"):
        tt.compare(evaluation, evaluation, ["coverage_at_1"])
    with pytest.raises(ValueError, match="slices of items need a metric of hits"):
        tt.Evaluator(TEST, seen=TRAIN, metrics=["coverage_at_1"], slices=["genre"], **ASKED)


def test_what_is_measured_from_training_events_needs_them() -> None:
    for asked in ({"metrics": "novelty_at_2"}, {"metrics": "recall_at_1", "slices": ["cold_items"]}):
        with pytest.raises(ValueError, match="measured from the training events: give train="):
            tt.Evaluator(TEST, **asked, **ASKED)


def test_a_whitelist_does_not_change_what_popular_means() -> None:
    """100 events, 98 of item 0: of 1 and 2 alone, each is -log2(2 / 103) novel, and both are the tail."""
    train = {"user": [9] * 100, "item": [0] * 98 + [1, 2]}
    evaluation = tt.Evaluator(
        {"user": [1], "item": [1]}, candidates={"item": [1, 2]}, train=train, user="user", item="item",
        metrics=["novelty_at_1", "recall_at_1"], slices=["tail_items", "head_items"],
    )(Fixed({1: [2.0, 1.0]}))  # fmt: skip
    assert evaluation["novelty_at_1"].mean == pytest.approx(-math.log2(2 / 103))
    assert {name: part.queries for name, part in evaluation.slices.items()} == {"tail_items": 1, "head_items": 0}


def test_quarters_of_any_ordered_values_hold_everybody_once() -> None:
    times = [1_700_000_000 + n for n in range(40)]
    columns = {"n": list(range(-20, 20)), "time": times, "day": pl.Series(times).cast(pl.Datetime("us")).to_list(),
               "x": [float("nan"), None, *[n / 7 for n in range(38)]]}  # fmt: skip
    ranker = Fixed({user: [1.0] for user in range(40)})
    for name, values in columns.items():
        test = pl.DataFrame({"user": range(40), "item": [0] * 40, name: values}, strict=False)
        slices = tt.Evaluator(test, candidates={"item": [0]}, user="user", item="item", metrics="recall_at_1",
                              slices=[name])(ranker).slices  # fmt: skip
        sizes = {label: part.queries for label, part in slices.items()}
        assert sum(sizes.values()) == 40, sizes
        assert len(sizes) == 4 + (name == "x")
        assert max(sizes.values()) <= 12


def test_a_slice_must_be_one_thing_of_a_query() -> None:
    rows = {"user": ["u", "u"], "item": ["a", "b"], "hour": [1, 2]}
    with pytest.raises(ValueError, match=r"\['hour'\] are read of a query, but differ between rows of one query"):
        tt.Evaluator(rows, candidates=ITEMS, user="user", item="item", metrics="recall_at_1", slices=["hour"])


def test_rankers_are_checked() -> None:
    class Gives:
        def __init__(self, scores: object) -> None:
            self.given = scores

        def score_queries(self, queries: Queries, candidates: tt.Dataset) -> ScoreQueries:
            return lambda rows: self.given  # type: ignore[return-value]

    evaluator = tt.Evaluator(TEST, seen=TRAIN, metrics="recall_at_1", **ASKED)
    for wrong in (torch.zeros(3, 3), torch.zeros(1, 4), torch.zeros(3, 4, dtype=torch.bool), np.zeros((3, 4))):
        with pytest.raises(ValueError, match=r"must give a tensor of numbers \(queries, candidates\), here \(3, 4\)"):
            evaluator(Gives(wrong))
    counts = torch.tensor([3.0, 2, 1, 0])
    shared = evaluator(Gives(counts.expand(3, -1)))  # one row of memory for all: nobody may lose another's seen items
    assert shared.values["recommended"].to_list() == [["c"], ["c"], ["a"]]
    doubles = torch.tensor([1 + 1e-10, 1.0, 0.5, 0.5], dtype=torch.float64).expand(3, -1)
    assert evaluator(Gives(doubles)).values["recommended"].to_list()[2] == [
        "b"
    ]  # equal as float32, and the positive loses


def test_other_questions_are_not_compared() -> None:
    one = tt.Evaluator(TEST, metrics="recall_at_1", **ASKED)(Fixed(SCORES), "one")
    fewer = tt.Evaluator(pl.DataFrame(TEST)[[0, 1, 3]], metrics="recall_at_1", **ASKED)(Fixed(SCORES), "fewer")
    with pytest.raises(ValueError, match="asked for other positives of 1 of 3 queries"):
        tt.compare(one, fewer)
    wide = tt.Evaluator(
        TEST, candidates={"item": ["a", "b", "c", "d", "e"]}, user="user", item="item", metrics="recall_at_1"
    )
    with pytest.raises(ValueError, match="ranked 4 candidates and .* 5"):
        tt.compare(one, wide(Fixed({user: [*scores, 0.0] for user, scores in SCORES.items()})))


def test_ids_are_of_one_kind_and_there() -> None:
    items = {"item": [1, 2]}
    with pytest.raises(ValueError, match="column 'item' is String in the evaluation data, and Int64 elsewhere"):
        tt.Evaluator({"user": [1], "item": ["1"]}, candidates=items, user="user", item="item", metrics="recall_at_1")
    with pytest.raises(ValueError, match="column 'item' is Float64 in the evaluation data"):
        tt.Evaluator({"user": [1], "item": [1.7]}, candidates=items, user="user", item="item", metrics="recall_at_1")
    with pytest.raises(ValueError, match="column 'item' of the evaluation data is null in 1 of 2 rows"):
        tt.Evaluator(
            {"user": [1, 1], "item": [1, None]}, candidates=items, user="user", item="item", metrics="recall_at_1"
        )
    past = pl.DataFrame({"user": [2**40], "item": [1]})
    test = pl.DataFrame({"user": [1], "item": [1]}, schema_overrides={"user": pl.Int32})
    seen = tt.Evaluator(test, candidates=items, seen=past, user="user", item="item", metrics="recall_at_1")
    assert seen(Fixed({1: [1.0, 0.0]}))["recall_at_1"].mean == 1


def test_rows_of_a_target_that_is_0_are_no_positives() -> None:
    rows = {"user": [1, 1], "item": [1, 2], "click": [0, 1]}
    evaluation = tt.Evaluator(rows, candidates={"item": [1, 2]}, user="user", item="item", target="click",
                              metrics="recall_at_1")(Fixed({1: [1.0, 0.0]}))  # fmt: skip
    assert (evaluation.positives, evaluation["recall_at_1"].mean) == (1, 0)


def test_a_model_refuses_raw_ids() -> None:
    """Raw integers would pass for the Preprocessor's codes."""
    events = {"user_id": [11, 12, 11, 12], "item_id": [1, 2, 3, 1]}
    columns = {"user_id": tt.Categorical(tt.Tags.USER_ID), "item_id": tt.Categorical(tt.Tags.ITEM_ID)}
    train = tt.Preprocessor(columns).fit_transform(events)
    model = tt.TwoTowerModelV2(*towers_of_ids(train)).adapt(train)
    encoded = tt.Evaluator(train, candidates=train, metrics="recall_at_2")
    assert encoded(model).queries == 2
    with pytest.raises(
        ValueError, match="'user_id' of the queries does not hold the codes .* rank raw tables with a Retriever"
    ):
        tt.Evaluator(events, candidates=events, user="user_id", item="item_id", metrics="recall_at_2")(model)


def towers_of_ids(data: tt.Dataset) -> tuple[tt.Encoder, tt.Encoder]:
    return tuple(tt.Encoder(data.schema[[name]], tt.MLPBlock([4])) for name in ("user_id", "item_id"))
