"""Splits and histories against a slow loop: no future in any history."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt

RNG = np.random.default_rng(4)
EVENTS = pl.DataFrame(
    {"user": RNG.integers(0, 12, 300), "item": RNG.integers(0, 1000, 300), "t": RNG.integers(0, 60, 300)}
)  # few moments: many ties


def test_split_by_time_is_one_cut_for_all() -> None:
    train, test = tt.split_by_time(EVENTS, "t", 0.2)
    assert len(train) + len(test) == 300
    assert train["t"].max() < test["t"].min()
    assert 0.2 <= len(test) / 300 < 0.25  # ties at the cut go to the test part


def test_split_errors() -> None:
    with pytest.raises(ValueError, match="unknown column 'time'"):
        tt.split_by_time(EVENTS, "time")
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        tt.split_by_time(EVENTS, "t", 1.5)
    with pytest.raises(ValueError, match="leaves one part of 2 events empty"):
        tt.split_by_time({"t": [1, 1]}, "t", 0.5)
    with pytest.raises(ValueError, match="column 't' has 1 nulls"):
        tt.split_by_time({"t": [1, None]}, "t", 0.5)


def by_user(rows: list[dict[str, int]]) -> dict[int, list[int]]:
    """The places of each user's events, oldest first; of one moment in the order of the table."""
    found: dict[int, list[int]] = {}
    for place in sorted(range(len(rows)), key=lambda i: (rows[i]["t"], i)):
        found.setdefault(rows[place]["user"], []).append(place)
    return found


NUMBERED = EVENTS.with_row_index("n")


@pytest.mark.parametrize("last", [1, 3, 25])
def test_leave_last_out_by_loop(last: int) -> None:
    train, test = tt.leave_last_out(NUMBERED, "user", "t", last)
    places = by_user(EVENTS.to_dicts())
    expected = sorted(n for own in places.values() if len(own) > last for n in own[-last:])
    assert test["n"].to_list() == expected
    assert sorted(train["n"].to_list() + expected) == list(range(300))
    assert train["n"].is_sorted()


@pytest.mark.parametrize("time", ["t", None])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.01])
def test_split_by_user_by_loop(time: str | None, fraction: float) -> None:
    places = by_user(EVENTS.to_dicts())
    share = {user: math.floor(len(own) * fraction + 1e-9) for user, own in places.items()}
    if fraction == 0.01:  # no user has a hundred events
        with pytest.raises(ValueError, match="leaves one part of 300 events empty"):
            tt.split_by_user(EVENTS, "user", fraction, time=time)
        return
    train, test = tt.split_by_user(NUMBERED, "user", fraction, time=time)
    assert dict(test["user"].value_counts().iter_rows()) == share
    assert sorted(train["n"].to_list() + test["n"].to_list()) == list(range(300))
    if time is not None:
        assert test["n"].to_list() == sorted(n for user, own in places.items() for n in own[len(own) - share[user] :])
    else:
        again, other = (tt.split_by_user(NUMBERED, "user", fraction, seed=seed)[1] for seed in (0, 1))
        assert test.equals(again)
        assert not test.equals(other)


def test_five_events_and_a_fifth_of_them() -> None:
    """0.2 * 5 is not quite 1 for every way of multiplying."""
    events = {"user": [1] * 5 + [2] * 4, "t": list(range(9))}
    assert tt.split_by_user(events, "user", 0.2, time="t")[1]["t"].to_list() == [4]


def test_split_at_random_takes_whole_events_alike() -> None:
    chosen = torch.zeros(50)
    for seed in range(400):
        train, test = tt.split_at_random({"n": list(range(50))}, 0.1, seed)
        assert sorted(train["n"].to_list() + test["n"].to_list()) == list(range(50))
        assert len(test) == 5
        chosen[test["n"].to_list()] += 1
    assert (chosen / 400 - 0.1).abs().max() < 4 * (0.1 * 0.9 / 400) ** 0.5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_core_by_loop(k: int) -> None:
    rng = np.random.default_rng(1)
    rows = list(zip(rng.integers(0, 60, 200).tolist(), rng.integers(0, 60, 200).tolist(), strict=True))
    kept = list(rows)
    while True:
        users, items = Counter(u for u, _ in kept), Counter(i for _, i in kept)
        fewer = [(u, i) for u, i in kept if users[u] >= k and items[i] >= k]
        if len(fewer) == len(kept):
            break
        kept = fewer
    got = tt.k_core({"u": [u for u, _ in rows], "i": [i for _, i in rows]}, user="u", item="i", k=k)
    assert got.rows() == kept
    with pytest.raises(ValueError, match="no event is left in the 50-core: lower k"):
        tt.k_core({"u": [1], "i": [1]}, user="u", item="i", k=50)


def test_new_splits_refuse_what_they_cannot_place() -> None:
    for split in (
        lambda e: tt.leave_last_out(e, "user", "t"),
        lambda e: tt.split_by_user(e, "user", time="t"),
        lambda e: tt.k_core(e, user="user", item="t"),
    ):
        with pytest.raises(ValueError, match="unknown column 'user'"):
            split({"usr": [1], "t": [1]})
        with pytest.raises(ValueError, match="column 't' has 1 nulls"):
            split({"user": [1, 1], "t": [1, None]})
        with pytest.raises(ValueError, match="column 't' holds nan"):
            split({"user": [1, 1], "t": [1.0, float("nan")]})
    for number in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"a whole number last >= 1, got {number}"):
            tt.leave_last_out(EVENTS, "user", "t", number)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"a whole number k >= 1, got {number}"):
            tt.k_core(EVENTS, user="user", item="item", k=number)  # type: ignore[arg-type]
    assert len(tt.leave_last_out(EVENTS, "user", "t", np.int64(1))[1]) == EVENTS["user"].n_unique()


def test_no_events_cannot_be_split() -> None:
    none = EVENTS.clear()
    for split in (
        lambda: tt.split_by_time(none, "t"),
        lambda: tt.split_at_random(none),
        lambda: tt.split_by_user(none, "user", time="t"),
        lambda: tt.split_by_user(none, "user"),
        lambda: tt.leave_last_out(none, "user", "t"),
        lambda: tt.k_core(none, user="user", item="item"),
    ):
        with pytest.raises(ValueError, match="the table has no rows: there are no events to divide"):
            split()


def test_lazy_frames_are_collected() -> None:
    lazy = EVENTS.lazy()
    for first, second in zip(tt.split_by_time(lazy, "t"), tt.split_by_time(EVENTS, "t"), strict=True):
        assert first.equals(second)
    columns = {"user": "user", "item": "item", "time": "t"}
    assert tt.build_histories(lazy, **columns).equals(tt.build_histories(EVENTS, **columns))


CLEAN_TRAIN = {"u": [1, 1, 2], "i": [5, 6, 5], "t": [1, 2, 3], "h": [[], [5], []], "born": [0, 1, 0]}
CLEAN_TEST = {"u": [1, 2], "i": [7, 8], "t": [10, 11], "h": [[5, 6], [5]], "born": [9, 0]}
COLUMNS = {"user": "u", "item": "i", "time": "t", "history": "h", "known_since": ["born"]}


def test_clean_parts_leak_nothing() -> None:
    assert tt.check_leaks(CLEAN_TRAIN, CLEAN_TEST, **COLUMNS) == []


@pytest.mark.parametrize(
    ("part", "change", "finding"),
    [
        (
            "test",
            {"i": [6, 8], "h": [[], [5]]},
            r"1 of 2 test events \(50.0 %\) have a user and item that stand in train too",
        ),
        (
            "train",
            {"t": [1, 12, 3]},
            r"1 of 3 train events \(33.3 %\) are later than the first test event of their user",
        ),
        ("train", {"t": [1, 2, 10.5]}, r"1 of 3 train events .* are later than the first test event of anybody"),
        ("test", {"h": [[5, 7], [5]]}, r"1 of 2 test events .* have their own item in 'h'"),
        ("train", {"born": [0, 3, 0]}, r"1 of 3 train events .* have a 'born' after their own 't'"),
    ],
)
def test_each_leak_is_found_and_named(part: str, change: dict[str, list[object]], finding: str) -> None:
    train, test = CLEAN_TRAIN | (change if part == "train" else {}), CLEAN_TEST | (change if part == "test" else {})
    with pytest.warns(tt.LeakWarning, match=finding):
        found = tt.check_leaks(train, test, **COLUMNS)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("histories", "time", "leaks"),
    [
        ([[], [5, 7], []], "t", 1),  # user 1 comes to 7 at time 10, in the test part
        ([[], [5, 7], []], None, 1),
        ([[7, 7], [8], [7]], "t", 1),  # counted once; 8 and 7 are the other user's
        ([[], [], [8]], "t", 1),
        ([[], [5, 99], [99]], "t", 0),  # of nobody's test
    ],
)
def test_train_histories_that_know_the_test(histories: list[list[int]], time: str | None, leaks: int) -> None:
    columns = {"user": "u", "item": "i", "time": time, "history": "h"}
    train = CLEAN_TRAIN | {"h": histories}
    if not leaks:
        assert tt.check_leaks(train, CLEAN_TEST, **columns) == []
        return
    with pytest.warns(
        tt.LeakWarning, match=f"{leaks} of 3 train events .* have an item in 'h' that their user comes to only"
    ):
        assert len(tt.check_leaks(train, CLEAN_TEST, **columns)) == 1


def test_a_repeated_item_in_a_train_history_is_no_leak_of_its_own() -> None:
    """User 1 has item 5 at time 1 and again in the test part: the history at time 2 holds what was."""
    test = CLEAN_TEST | {"i": [5, 8], "h": [[], []]}
    with pytest.warns(tt.LeakWarning, match="stand in train too"):
        assert len(tt.check_leaks(CLEAN_TRAIN, test, **COLUMNS)) == 1
    before = CLEAN_TRAIN | {"h": [[6], [5], []]}  # but item 6, of time 2, was not known at time 1
    with pytest.warns(tt.LeakWarning):
        found = tt.check_leaks(before, test | {"i": [6, 8]}, **COLUMNS)
    assert ["comes to only in a test event" in text for text in found] == [False, True]


def test_train_histories_at_the_very_moment_of_the_event_they_hold() -> None:
    """What happens at one moment is not known at that moment, neither in the test part nor in train."""
    with pytest.warns(tt.LeakWarning, match="comes to only in a test event"):
        assert len(tt.check_leaks(CLEAN_TRAIN | {"t": [1, 10, 3], "h": [[], [7], []]}, CLEAN_TEST, **COLUMNS)) == 1
    with pytest.warns(tt.LeakWarning):  # 6 at time 2 holds itself, and stands in the test part again
        found = tt.check_leaks(CLEAN_TRAIN | {"h": [[], [6], []]}, CLEAN_TEST | {"i": [6, 8], "h": [[], []]}, **COLUMNS)
    assert sum("comes to only in a test event" in text for text in found) == 1


def test_a_train_event_at_the_moment_of_the_first_test_event_is_not_later() -> None:
    assert tt.check_leaks(CLEAN_TRAIN | {"t": [1, 10, 10]}, CLEAN_TEST, **COLUMNS) == []


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        (
            "test",
            {"u": ["1", "2"]},
            r"different kinds: \{\"train 'u'\": 'integers', \"test 'u'\": 'String'\}. Cast them",
        ),
        ("test", {"i": [7.0, 8.0]}, r"\"train 'i'\": 'integers', \"test 'i'\": 'Float64'"),
        ("test", {"t": ["10", "11"]}, r"\"train 't'\": 'numbers'.*\"test 't'\": 'String'"),
        ("train", {"born": ["0", "0", "0"]}, r"\"train 'born'\": 'String'"),
        ("train", {"h": [5, 6, 7]}, "the history 'h' of train must hold lists of items, but is Int64"),
        ("train", {"h": [["5"], [], []]}, r"\"train 'i'\": 'integers', \"the lists of train 'h'\": 'String'"),
    ],
)
def test_leaks_are_looked_for_among_columns_of_one_kind(part: str, change: dict[str, object], expected: str) -> None:
    train, test = CLEAN_TRAIN | (change if part == "train" else {}), CLEAN_TEST | (change if part == "test" else {})
    with pytest.raises(ValueError, match=expected):
        tt.check_leaks(train, test, **COLUMNS)


def test_kinds_that_do_compare() -> None:
    """Integers of any width, categories and texts, fixed lists, lists without elements; one name of a column as text."""
    train = pl.DataFrame(CLEAN_TRAIN | {"h": [[], [], []]}).with_columns(pl.col("u").cast(pl.Int32), pl.col("t") / 1)
    assert tt.check_leaks(train, CLEAN_TEST, **(COLUMNS | {"known_since": "born"})) == []
    fixed = pl.DataFrame(CLEAN_TEST | {"h": [[5, 6], [5, 5]]}).with_columns(pl.col("h").cast(pl.Array(pl.Int64, 2)))
    assert tt.check_leaks(CLEAN_TRAIN, fixed, **COLUMNS) == []
    texts, categories = (
        pl.DataFrame({"u": ["a"], "i": ["x"]}),
        pl.DataFrame({"u": ["a"], "i": ["y"]}).cast(pl.Categorical),
    )
    assert tt.check_leaks(texts, categories, user="u", item="i") == []


def test_leak_checks_need_their_columns() -> None:
    with pytest.raises(ValueError, match="unknown column 'when'"):
        tt.check_leaks(CLEAN_TRAIN, CLEAN_TEST, user="u", item="i", time="when")
    with pytest.raises(ValueError, match="unknown column 'past'"):
        tt.check_leaks(CLEAN_TRAIN, CLEAN_TEST, user="u", item="i", history="past")
    with pytest.raises(ValueError, match="give time=<its column> too"):
        tt.check_leaks(CLEAN_TRAIN, CLEAN_TEST, user="u", item="i", known_since=["born"])


@pytest.mark.parametrize("length", [1, 3, 100])
def test_histories_are_the_strictly_earlier_items(length: int) -> None:
    got = tt.build_histories(EVENTS, user="user", item="item", time="t", length=length)
    assert got.drop("history").equals(EVENTS)
    rows = list(EVENTS.iter_rows(named=True))
    for i, row in enumerate(rows):
        earlier = [(r["t"], j) for j, r in enumerate(rows) if r["user"] == row["user"] and r["t"] < row["t"]]
        expected = [rows[j]["item"] for _, j in sorted(earlier)][-length:]
        assert got["history"][i].to_list() == expected


def test_latest_histories_hold_everything_up_to_now() -> None:
    got = dict(tt.latest_histories(EVENTS, user="user", item="item", time="t", length=5).iter_rows())
    for user in range(12):
        own = EVENTS.filter(pl.col("user") == user).sort("t", maintain_order=True)
        assert got[user] == own["item"].to_list()[-5:]


def test_history_errors() -> None:
    with pytest.raises(ValueError, match="unknown column 'usr'"):
        tt.build_histories(EVENTS, user="usr", item="item", time="t")
    for length in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"a whole number length >= 1, got {length}"):
            tt.build_histories(EVENTS, user="user", item="item", time="t", length=length)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a column '__row', a name that build_histories takes for itself"):
        tt.build_histories(EVENTS.with_columns(__row=pl.lit(1)), user="user", item="item", time="t")
    for name in ("item", "__row"):
        with pytest.raises(ValueError, match=f"the events have a column '{name}' already"):
            tt.build_histories(EVENTS, user="user", item="item", time="t", name=name)
    with pytest.raises(ValueError, match="the column of users is 'user' already; give the histories another name"):
        tt.latest_histories(EVENTS, user="user", item="item", time="t", name="user")
    with pytest.raises(ValueError, match="column 'item' has 1 nulls"):
        tt.latest_histories({"user": [1], "item": [None], "t": [1]}, user="user", item="item", time="t")


def test_strings_and_no_events() -> None:
    empty = pl.DataFrame(schema={"u": pl.String, "i": pl.String, "t": pl.Int64})
    assert tt.build_histories(empty, user="u", item="i", time="t").height == 0


def test_movietweetings_is_whole() -> None:
    data = tt.load_movietweetings()
    assert (len(data.ratings), data.ratings["user_id"].n_unique(), len(data.movies)) == (100_000, 16_554, 10_506)
    assert data.movies["item_id"].n_unique() == 10_506
    assert data.ratings["item_id"].is_in(data.movies["item_id"].implode()).all()
