"""Splits and histories against a slow loop: no future in any history."""

import numpy as np
import polars as pl
import pytest

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
    with pytest.raises(ValueError, match="length >= 1, got 0"):
        tt.build_histories(EVENTS, user="user", item="item", time="t", length=0)
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
