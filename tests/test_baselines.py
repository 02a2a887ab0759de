"""Baselines: each against counting by hand, a slow loop or plain algebra, and what all of them promise."""

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from tests.worlds import clubs
from twotower.baselines import EASE, Baseline, ImplicitALS, ImplicitBPR, ItemKNN, Popularity, RecentPopularity
from twotower.baselines import base as base_module
from twotower.baselines.base import LOWEST
from twotower.baselines.item_knn import _keep_largest
from twotower.evaluation import rank, ranking_task

USERS, ITEMS = 30, 20
needs_implicit = pytest.mark.skipif(
    find_spec("implicit") is None, reason="implicit is not installed: pip install 'twotower[implicit]'"
)


def recent(*args: object, **named: object) -> RecentPopularity:
    return RecentPopularity(*args, time="time", window=40, **named)


def als(*args: object, **named: object) -> ImplicitALS:
    return ImplicitALS(*args, factors=4, **named)


def bpr(*args: object, **named: object) -> ImplicitBPR:
    return ImplicitBPR(*args, factors=8, learning_rate=0.1, **named)


def ease(*args: object, **named: object) -> EASE:
    return EASE(*args, regularization=20, **named)


PLAIN = {"popularity": Popularity, "recent popularity": recent}
LEARNING = [
    pytest.param(ItemKNN, id="item-knn"),
    pytest.param(ease, id="ease"),
    pytest.param(als, id="als", marks=needs_implicit),
    pytest.param(bpr, id="bpr", marks=needs_implicit),
]
ALL = [*(pytest.param(make, id=name) for name, make in PLAIN.items()), *LEARNING]
Make = Callable[..., Baseline]


def random_events(seed: int = 0, rows: int = 200) -> pl.DataFrame:
    """Users 0 .. 29, items 0, 3, 6 .. 57, each at least once, the low ones more often; pairs may occur twice."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(ITEMS, 0, -1) ** 2.0
    drawn = rng.choice(ITEMS, size=rows - ITEMS, p=popularity / popularity.sum())
    return pl.DataFrame({
        "user": rng.integers(USERS, size=rows),
        "item": 3 * np.concatenate([np.arange(ITEMS), drawn]),
        "time": rng.integers(100, size=rows),
    })  # fmt: skip


def matrix_of(events: pl.DataFrame, users: list[int], items: list[int]) -> np.ndarray:
    pairs = set(events.select("user", "item").iter_rows())
    return np.array([[float((user, item) in pairs) for item in items] for user in users])


# --- each against its own truth


def test_popularity_counts() -> None:
    train = tt.Dataset({"user": [1, 1, 2, 3, 3], "item": [20, 10, 10, 10, 10]})  # user 3 had item 10 twice
    popular = Popularity(train, "user", "item", tt.Dataset({"item": [30, 10, 20]}))
    assert popular.items.to_list() == [10, 20, 30]
    assert popular.scores(pl.Series([1, 99])).tolist() == [[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]]


def test_recent_popularity_counts_the_window_then_all() -> None:
    train = tt.Dataset(pl.DataFrame(
        {"user": range(8), "item": list("aaabbccd"), "time": [1, 2, 3, 70, 100, 70, 100, 69]},
    ))  # fmt: skip
    model = RecentPopularity(train, "user", "item", time="time", window=30)
    # 70 is 30 before the newest event, not less: b and c have one event in the window, a and d none; a has 3 in all, d 1
    assert model.counts.tolist() == [0, 1, 1, 0]
    assert model.scores(pl.Series([5]))[0].tolist() == pytest.approx([3 / 4, 1 + 2 / 4, 1 + 2 / 4, 1 / 4])
    wider = RecentPopularity(train, "user", "item", time="time", window=30.5)
    assert wider.counts.tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("kind", [pl.UInt8, pl.Float32, pl.Date, pl.Datetime("us"), pl.Datetime("ms", "UTC")])
def test_recent_popularity_reads_times_of_any_kind(kind: pl.DataType) -> None:
    days = pl.DataFrame({"user": [1, 2, 3], "item": [1, 2, 3], "day": [10, 12, 13]})
    dated = kind in (pl.Date, pl.Datetime)
    times = pl.date(2026, 11, pl.col("day")) if dated else pl.col("day")
    train = tt.Dataset(days.with_columns(times.cast(kind).alias("time")))
    window = datetime.timedelta(days=2) if dated else 2
    assert RecentPopularity(train, "user", "item", time="time", window=window).counts.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="column 'time' is .*, window is .*: give a timedelta for dates"):
        RecentPopularity(train, "user", "item", time="time", window=2 if dated else datetime.timedelta(days=2))


def test_recent_popularity_refuses_missing_times() -> None:
    for times, missing in (([1.0, None, None], 2), ([1.0, float("nan"), 2.0], 1)):
        train = tt.Dataset({"user": [1, 2, 3], "item": [1, 2, 3], "time": times})
        with pytest.raises(ValueError, match=f"column 'time' has no time in {missing} rows"):
            RecentPopularity(train, "user", "item", time="time", window=2)
    with pytest.raises(ValueError, match="must hold numbers, dates or datetimes, got String"):
        RecentPopularity(
            tt.Dataset({"user": [1], "item": [1], "time": ["noon"]}), "user", "item", time="time", window=2
        )


def test_item_knn_by_hand() -> None:
    # users 1-3 watch 10 and 11 together, users 4-5 watch 20 and 21; user 6 has only 20
    train = tt.Dataset(
        {"user": [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6], "item": [10, 11, 10, 11, 10, 11, 20, 21, 20, 21, 20]}
    )
    test = tt.Dataset({"user": [6, 99], "item": [21, 10]})
    knn = ItemKNN(train, "user", "item")
    # |20 and 21| = 2, |20| = 3, |21| = 2
    assert knn.scores(pl.Series([6]))[0, 3].item() == pytest.approx(2 / (6**0.5 + 10), abs=1e-5)
    assert knn.evaluate(test, seen=train, metrics=["recall_at_1"])["recall_at_1"] == 0.5  # 21 found, 10 tied and lost
    popular = Popularity(train, "user", "item")
    assert popular.evaluate(test, seen=train, metrics=["recall_at_1"])["recall_at_1"] == 0.0


def test_popularity_decides_between_items_without_neighbours() -> None:
    train = tt.Dataset({"user": [1, 2, 2, 3, 3], "item": [11, 20, 21, 10, 11]})
    scores = ItemKNN(train, "user", "item").scores(pl.Series([2]))[0]  # of items 10, 11, 20, 21
    assert 0 < scores[0] < scores[1] < 1e-6 < scores[3]  # 11 has two users, 10 one; 21 goes with the user's 20


@pytest.mark.parametrize(("neighbors", "shrink"), [(3, 2.0), (100, 0.0)])
def test_item_knn_agrees_with_a_slow_loop(neighbors: int, shrink: float) -> None:
    events = random_events()
    knn = ItemKNN(tt.Dataset(events), "user", "item", neighbors=neighbors, shrink=shrink)
    items, had = knn.items.to_list(), {}
    for user, item, _ in events.iter_rows():
        had.setdefault(item, set()).add(user)
    near = {}
    for a in items:
        cosine = {b: len(had[a] & had[b]) / ((len(had[a]) * len(had[b])) ** 0.5 + shrink) for b in items if b != a}
        near[a] = dict(sorted(cosine.items(), key=lambda pair: (-np.float32(pair[1]), pair[0]))[:neighbors])
    for user in range(USERS):
        own = [item for item in items if user in had[item]]
        expected = [sum(near[a].get(b, 0.0) for a in own) for b in items]
        assert knn.scores(pl.Series([user]))[0].tolist() == pytest.approx(expected, abs=1e-5)  # ties: below 1e-6


def test_of_equally_near_neighbours_the_first_are_kept() -> None:
    row, column = np.array([0, 0, 0, 0, 1]), np.array([3, 0, 2, 1, 0])  # in any order, with the diagonal
    kept = _keep_largest(row, column, np.array([0.5, 9.0, 0.5, 0.5, 0.1]), most=2)
    assert list(zip(*(part.tolist() for part in kept), strict=True)) == [
        (0, 1, 0.5),
        (0, 2, 0.5),
        (1, 0, np.float32(0.1)),
    ]


def test_item_knn_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ItemKNN(tt.Dataset(random_events()), "user", "item", neighbors=3).weights.toarray()
    monkeypatch.setattr("twotower.baselines.item_knn.BLOCK", 3)
    assert (ItemKNN(tt.Dataset(random_events()), "user", "item", neighbors=3).weights.toarray() == whole).all()


@pytest.mark.parametrize("block", [512, 7])
def test_ease_is_its_formula(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.baselines.ease.BLOCK", block)
    events = random_events()
    model = EASE(tt.Dataset(events), "user", "item", tt.Dataset({"item": [1]}), regularization=5.0)
    items = model.items.to_list()
    x = matrix_of(events, list(range(USERS)), items)
    inverse = np.linalg.inv(x.T @ x + 5.0 * np.eye(len(items)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(model.weights, weights, atol=1e-5)
    known = sorted(events["user"].unique())
    np.testing.assert_allclose(model.scores(pl.Series(known)), x[known] @ weights, atol=1e-5)
    assert np.abs(x @ weights).max() > 0.3
    assert not model.scores(pl.Series(known))[:, items.index(1)].any()  # never seen in training


def test_ease_refuses_what_it_cannot_invert() -> None:
    train = tt.Dataset(random_events())
    with pytest.raises(ValueError, match=r"20 items need 0.0 GB .* give max_items=20 \(now 19\)"):
        EASE(train, "user", "item", max_items=19)
    # two items that always come together, by a million: lambda is lost in float32
    twins = tt.Dataset({"user": [1, 1], "item": [1, 2]})
    with pytest.raises(ValueError, match="cannot be inverted in float32 with regularization=1e-09: raise it"):
        EASE(twins, "user", "item", regularization=1e-9)


@needs_implicit
def test_als_solves_its_normal_equations() -> None:
    """At the end, every user's factors are the ridge regression on the items' factors, and the other way round."""
    events = random_events()
    model = ImplicitALS(
        tt.Dataset(events), "user", "item", factors=3, alpha=5.0, regularization=0.7, iterations=500, threads=1
    )
    users, items = (f.astype(np.float64) for f in (model.model.user_factors, model.model.item_factors))
    had = matrix_of(events, model.users.to_list(), model.items.to_list())
    for left, right, known in ((users, items, had), (items, users, had.T)):
        for row, own in zip(left, known, strict=True):
            weight = np.where(own > 0, 5.0, 1.0)
            solved = np.linalg.solve(right.T @ (weight[:, None] * right) + 0.7 * np.eye(3), right.T @ (weight * own))
            np.testing.assert_allclose(row, solved, atol=1e-3)
    assert np.abs(users).max() > 0.1


@needs_implicit
def test_als_keeps_the_numerical_library_to_one_thread() -> None:
    """Else implicit warns that it is slow, once in a process."""
    code = (
        "import twotower as tt; from twotower.baselines import ImplicitALS\n"
        "ImplicitALS(tt.Dataset({'u': [1, 2], 'i': [1, 1]}), 'u', 'i')"
    )
    settings = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings)
    assert "BLAS" not in done.stderr


@needs_implicit
@pytest.mark.parametrize("make", [als, bpr])
def test_factor_models_score_by_inner_products(make: Make) -> None:
    model = make(tt.Dataset(random_events()), "user", "item")
    expected = model.model.user_factors @ model.model.item_factors.T
    np.testing.assert_allclose(model.scores(model.users), expected, atol=1e-5)


# --- what all promise


@pytest.mark.parametrize("make", ALL)
def test_items_are_those_of_train_and_catalogue_sorted(make: Make) -> None:
    train = tt.Dataset({"user": [1, 1, 2], "item": [9, 3, 3], "time": [1, 2, 3]})
    model = make(train, "user", "item", tt.Dataset({"item": [5, 3, 5]}))
    assert model.items.to_list() == [3, 5, 9]
    assert model.candidates.to_list() == [3, 5]
    assert make(train, "user", "item").candidates.to_list() == [3, 9]
    assert model.scores(pl.Series([1, 2, 7])).shape == (3, 3)
    assert model.scores(pl.Series([1, 2, 7])).dtype == torch.float32
    assert model.scores(pl.Series([], dtype=pl.Int64)).shape == (0, 3)


@pytest.mark.parametrize("make", ALL)
def test_an_unknown_user_gets_the_popular_items(make: Make) -> None:
    events = random_events()
    model = make(tt.Dataset(events), "user", "item")
    unknown = model.scores(pl.Series([10**9, 3]))[0]
    if make is recent:
        events = events.filter(pl.col("time") > 59)  # the newest is 99, the window 40
    count = {item: events.filter(pl.col("item") == item) for item in model.items}
    most = max(count, key=lambda item: len(count[item]))
    users = max(count, key=lambda item: count[item]["user"].n_unique())
    assert most == users == model.items[int(unknown.argmax())]
    if make not in PLAIN.values():  # ranked by the number of users, and never mixed up with a known user's scores
        order = [count[model.items[int(i)]]["user"].n_unique() for i in unknown.argsort(descending=True)]
        assert order == sorted(order, reverse=True)
        known = model.scores(pl.Series([3]))
        assert unknown.max() < -(2**22)
        assert known.min() > -(2**10)
        torch.testing.assert_close(model.scores(pl.Series([10**9, 3]))[1:], known)


@pytest.mark.parametrize("make", ALL)
def test_ids_may_be_strings(make: Make) -> None:
    """Renamed in their order, the ids give the same scores."""
    events = random_events()
    names = [pl.format("n{}", pl.col(name).cast(pl.String).str.zfill(3)).alias(name) for name in ("user", "item")]
    named = make(tt.Dataset(events.with_columns(names)), "user", "item")
    plain = make(tt.Dataset(events), "user", "item")
    assert named.items.to_list()[:2] == ["n000", "n003"]
    torch.testing.assert_close(named.scores(pl.Series(["n004", "?"])), plain.scores(pl.Series([4, 999])))
    values = named.evaluate(tt.Dataset(random_events(1).with_columns(names)), metrics="recall_at_3")
    assert values == plain.evaluate(tt.Dataset(random_events(1)), metrics="recall_at_3")
    assert values["recall_at_3"] > 0


@pytest.mark.parametrize("make", ALL)
def test_integers_of_any_width_are_the_same_ids(make: Make) -> None:
    events = random_events()
    small = make(tt.Dataset(events.cast({"user": pl.Int32, "item": pl.UInt16})), "user", "item")
    users = pl.Series([4, 999])
    torch.testing.assert_close(
        small.scores(users.cast(pl.Int16)), make(tt.Dataset(events), "user", "item").scores(users)
    )


@pytest.mark.parametrize("make", ALL)
def test_scores_of_candidates_are_columns_of_all_scores(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "SCORES_AT_ONCE", 2 * ITEMS)  # two users at once
    model = make(tt.Dataset(random_events()), "user", "item")
    users = pl.Series([5, 0, 999, 7, 5])
    candidates = pl.Series([30, 1000, 0, 57, -4])  # two of them unknown
    places = [model.items.to_list().index(item) for item in (30, 0, 57)]
    rows = torch.tensor([4, 2, 1])
    scores = model.score_candidates(users, candidates)(rows)
    everything = torch.cat([model.scores(users[[row]]) for row in rows.tolist()])
    torch.testing.assert_close(scores[:, [0, 2, 3]], everything[:, places])
    assert (scores[:, [1, 4]] == LOWEST).all()
    assert everything.min() > LOWEST > -torch.inf
    torch.testing.assert_close(model.score_candidates(users, model.items)(rows), everything)
    assert model.score_candidates(users, candidates)(rows[:0]).shape == (0, 5)


@pytest.mark.parametrize("make", ALL)
def test_scores_may_be_written_into(make: Make) -> None:
    model = make(tt.Dataset(random_events()), "user", "item")
    users = pl.Series([1, 999])
    first = model.scores(users)
    kept = first.clone()
    first.fill_(-torch.inf)
    torch.testing.assert_close(model.scores(users), kept)


@pytest.mark.parametrize("make", ALL)
def test_evaluate_ranks_the_catalogue_or_the_given_candidates(make: Make) -> None:
    """Against the evaluator with columns picked by hand; items of train outside the catalogue are not ranked."""
    events, test = random_events(), random_events(1)
    listed = [*range(0, 57, 6), 2000]
    test = test.filter(pl.col("item").is_in(listed))
    model = make(tt.Dataset(events), "user", "item", tt.Dataset({"item": listed}))
    metrics = [tt.RecallAt(3), tt.NDCGAt(5)]

    def by_hand(candidates: list[int]) -> list[float]:
        task = ranking_task(tt.Dataset(test), query=["user"], candidate="item", candidates=pl.Series(candidates))
        scores = model.scores(task.queries.to_polars()["user"])[:, [model.items.to_list().index(c) for c in candidates]]
        relevance = rank(lambda rows: scores[rows], task, 5).hits
        return [float(metric(relevance, task.num_positives).mean()) for metric in metrics]

    assert set(model.items) == set(events["item"]) | {2000}
    assert list(model.evaluate(tt.Dataset(test), metrics=metrics).values()) == pytest.approx(by_hand(sorted(listed)))
    everything = model.evaluate(tt.Dataset(test), metrics=metrics, candidates=model.items)
    assert list(everything.values()) == pytest.approx(by_hand(model.items.to_list()))
    assert everything["recall_at_3"] < model.evaluate(tt.Dataset(test), metrics=metrics)["recall_at_3"]


@pytest.mark.parametrize("make", ALL)
def test_the_order_of_events_does_not_matter(make: Make) -> None:
    """Nor do the seeds of anything global; equals are ordered in the same way."""
    users = pl.Series([*range(USERS), 999])
    first = make(tt.Dataset(random_events()), "user", "item").scores(users)
    torch.manual_seed(7)
    np.random.seed(7)
    shuffled = random_events().sample(fraction=1, shuffle=True, seed=3)
    assert torch.equal(make(tt.Dataset(shuffled), "user", "item").scores(users), first)


@pytest.mark.parametrize("make", LEARNING)
def test_learns_clubs_that_popularity_cannot_know(make: Make) -> None:
    """Items belong to four clubs, as users do; a user sees half of the club's ten items, the others are the test."""
    train, test = clubs(rows=1200), clubs(rows=1200, seed=1)
    columns = {"user": "user_id", "item": "item_id"}
    inside = tt.Dataset(test.to_polars().filter(pl.col("like") == 1).join(
        train.to_polars(), on=["user_id", "item_id"], how="anti"
    ))  # fmt: skip
    best = make(train, **columns).evaluate(inside, seen=train, metrics="recall_at_10")["recall_at_10"]
    popular = Popularity(train, **columns).evaluate(inside, seen=train, metrics="recall_at_10")["recall_at_10"]
    assert best > 0.8
    assert best > 1.5 * popular


@pytest.mark.parametrize("make", ALL)
def test_what_cannot_be_used_is_refused(make: Make) -> None:
    events = random_events()
    model = make(tt.Dataset(events), "user", "item")
    with pytest.raises(ValueError, match="users: 1 of 2 ids are null"):
        model.scores(pl.Series([1, None]))
    with pytest.raises(ValueError, match="candidates: 1 of 2 ids are null"):
        model.score_candidates(pl.Series([1]), pl.Series([1, None]))
    with pytest.raises(ValueError, match="the ids of candidates are String, those of train Int64"):
        model.score_candidates(pl.Series([1]), pl.Series(["a"]))
    with pytest.raises(ValueError, match="candidates repeat ids, such as 3"):
        model.evaluate(tt.Dataset(events), candidates=pl.Series([3, 6, 3]))
    with pytest.raises(ValueError, match="column 'user' of train: 200 of 200 ids are null"):
        make(tt.Dataset(events.with_columns(user=None)), "user", "item")
    with pytest.raises(ValueError, match="column 'item' of train: ids must be integers or strings, got Float64"):
        make(tt.Dataset(events.cast({"item": pl.Float64})), "user", "item")
    with pytest.raises(ValueError, match="the ids of the catalogue are String, those of train Int64"):
        make(tt.Dataset(events), "user", "item", tt.Dataset({"item": ["a"]}))
    with pytest.raises(ValueError, match="unknown column 'usr'"):
        make(tt.Dataset(events), "usr", "item")
    with pytest.raises(ValueError, match="no event to learn from"):
        make(tt.Dataset(events.head(0)), "user", "item")


def test_positions_of_unknown_ids() -> None:
    model = Popularity(tt.Dataset(random_events()), "user", "item")
    assert model.positions(pl.Series([57, 0])).tolist() == [19, 0]
    with pytest.raises(ValueError, match=r"2 ids are neither in train nor in the catalogue, such as \[1, 2\]"):
        model.positions(pl.Series([2, 1, 2, 3]))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RecentPopularity, {"time": "time", "window": 0}, "window must be above 0, got 0"),
        (RecentPopularity, {"time": "time", "window": datetime.timedelta(0)}, "window must be above 0"),
        (ItemKNN, {"neighbors": 0}, "neighbors must be at least 1, got 0"),
        (ItemKNN, {"shrink": float("nan")}, "shrink must be at least 0, got nan"),
        (EASE, {"regularization": 0}, "regularization must be above 0, got 0"),
        (EASE, {"max_items": 0}, "max_items must be at least 1, got 0"),
        (ImplicitALS, {"factors": 0}, "factors must be at least 1, got 0"),
        (ImplicitALS, {"alpha": 0}, "alpha must be above 0, got 0"),
        (ImplicitALS, {"regularization": -1}, "regularization must be at least 0, got -1"),
        (ImplicitBPR, {"learning_rate": -1}, "learning_rate must be above 0, got -1"),
        (ImplicitBPR, {"iterations": 0}, "iterations must be at least 1, got 0"),
        (ImplicitBPR, {"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(kind: Make, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(tt.Dataset(random_events()), "user", "item", **options)


@pytest.mark.parametrize(
    ("kind", "module", "message"),
    [
        (ItemKNN, "scipy", r"ItemKNN needs scipy, .*pip install 'twotower\[baselines\]'"),
        (EASE, "scipy", r"EASE needs scipy, .*pip install 'twotower\[baselines\]'"),
        (ImplicitALS, "implicit", r"ImplicitALS needs implicit, .*pip install 'twotower\[implicit\]'"),
        (ImplicitBPR, "implicit", r"ImplicitBPR needs implicit, .*pip install 'twotower\[implicit\]'"),
    ],
)
def test_a_missing_package_is_named(kind: Make, module: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError, match=message):
        kind(tt.Dataset(random_events()), "user", "item")


def test_popularity_needs_no_scipy() -> None:
    code = (
        "import sys, twotower as tt; from twotower.baselines import Popularity, RecentPopularity\n"
        "train = tt.Dataset({'u': [1, 2], 'i': [1, 1], 't': [1, 2]})\n"
        "Popularity(train, 'u', 'i').evaluate(train, metrics='recall_at_1')\n"
        "RecentPopularity(train, 'u', 'i', time='t', window=1)\n"
        "print([m for m in ('scipy', 'implicit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
