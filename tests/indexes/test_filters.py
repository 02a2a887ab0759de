"""Filters against plain Python on rows, and every mistake by its message."""

import datetime as dt
import operator
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import twotower as tt

FILMS = pl.DataFrame(
    {
        "id": [1, 2, 3, 4],
        "year": pl.Series([1994, 2003, None, 1990], dtype=pl.UInt16),
        "price": [9.5, float("nan"), 3.0, None],
        "genres": [["Drama"], ["Drama", "War"], [], None],
        "brand": ["a", None, "c", "b"],
        "on_sale": [True, False, None, True],
        "added": [dt.date(2024, 5, 31), dt.date(2024, 6, 1), None, dt.date(2020, 1, 1)],
        "seen": pl.Series([dt.datetime(2024, 5, 31, 12), None, None, dt.datetime(2024, 6, 1)]).dt.replace_time_zone(
            "Europe/Berlin"
        ),
        "sizes": pl.Series([[1, 2], [3, 4], None, [5, 6]], dtype=pl.Array(pl.Int32, 2)),
        "nothing": [None] * 4,
        "cost": pl.Series([1, 2, 3, None]).cast(pl.Decimal(10, 2)),
        "kind": pl.Series(["x", "y", None, "x"], dtype=pl.Categorical),
        "half": pl.Series([0.1, 0.2, 0.3, None], dtype=pl.Float32),
        "big": [2**60, 2**60 + 1, None, 0],
        "halves": pl.Series([[0.1], [0.25], [], None], dtype=pl.List(pl.Float32)),
        "unsigned": pl.Series([2**63, 1, None, 0], dtype=pl.UInt64),
        "size": pl.Series(["S", "L", None, "M"], dtype=pl.Enum(["S", "M", "L"])),
    }
)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({"year": 1994}, [0]),
        ({"year": {"gte": 1990, "lt": 2000}}, [0, 3]),
        ({"year": {"gt": -1}}, [0, 1, 3]),
        ({"year": {"lt": 100_000}}, [0, 1, 3]),
        ({"year": 1994.0}, [0]),
        ({"year": {"gt": 1993.5}}, [0, 1]),
        ({"year": {"in": [1994.5, 1990]}}, [3]),
        ({"year": {"in": [-1, 10**9, 1994, *range(2000, 2010), 1990.5]}}, [0, 1]),
        ({"price": {"gte": 0}}, [0, 2]),
        ({"price": {"ne": 3}}, [0]),
        ({"price": {"lt": 1e9}}, [0, 2]),
        ({"genres": "Drama"}, [0, 1]),
        ({"genres": {"ne": "Drama"}}, [2]),
        ({"genres": {"in": ["War", "Noir"]}}, [1]),
        ({"genres": {"not_in": ["War"]}}, [0, 2]),
        ({"genres": {"in": []}}, []),
        ({"genres": {"not_in": []}}, [0, 1, 2]),
        ({"brand": {"in": ["a", "b"]}}, [0, 3]),
        ({"brand": {"not_in": ["a", "b"]}}, [2]),
        ({"brand": {"gte": "b"}}, [2, 3]),
        ({"id": {"not_in": list(range(2, 50))}}, [0]),
        ({"on_sale": True}, [0, 3]),
        ({"on_sale": {"ne": True}}, [1]),
        ({"added": "2024-05-31"}, [0]),
        ({"added": {"gt": dt.date(2024, 5, 31)}}, [1]),
        ({"added": {"gt": "2024-05-31T00:00:01"}}, [1]),
        ({"added": {"in": ["2024-06-01", "2020-01-01"]}}, [1, 3]),
        ({"seen": {"lte": "2024-05-31T10:00:00Z"}}, [0]),  # noon in Berlin is ten in UTC
        ({"seen": {"lt": "2024-05-31T12:00:00+02:00"}}, []),
        ({"sizes": 3}, [1]),
        ({"sizes": {"ne": 3}}, [0, 3]),
        ({"nothing": 3}, []),
        ({"nothing": {"not_in": ["x"]}}, []),
        ({"cost": {"gte": 1.5}}, [1, 2]),
        ({"cost": {"in": [1, 3.0]}}, [0, 2]),
        ({"kind": "x"}, [0, 3]),
        ({"kind": "z"}, []),
        ({"kind": {"gt": "x"}}, [1]),
        ({"half": 0.1}, [0]),
        ({"half": {"in": [0.1 * n for n in range(2, 12)]}}, [1, 2]),
        ({"big": 2**60 + 1}, [1]),
        ({"big": {"in": [2**60, *range(10)]}}, [0, 3]),
        ({"unsigned": {"gt": -1}}, [0, 1, 3]),
        ({"unsigned": {"in": [-1, *range(12)]}}, [1, 3]),
        ({"genres": "Drama", "year": {"gt": 2000}}, [1]),
        ({"unsigned": 2**63}, [0]),
        ({"unsigned": 2**63 + 1}, []),
        ({"unsigned": {"lt": 2**64 - 1}}, [0, 1, 3]),
        ({"unsigned": {"in": [2**63, *range(2, 20)]}}, [0]),
        ({"halves": 0.1}, [0]),
        ({"size": {"gte": "M"}}, [1, 3]),  # in the Enum's order, not the alphabet's
        ({"size": {"ne": "X"}}, [0, 1, 3]),
        ({"cost": {"lt": 2.001}}, [0, 1]),
        ({"cost": Decimal("2.00")}, [1]),
        ({"cost": {"gt": 1e300}}, []),
        ({"year": {"lt": Decimal("1990.5")}}, [3]),
        ({"seen": {"gte": "2024-05-31T10:00:00.000000001Z"}}, [3]),
        ({"seen": np.datetime64("2024-05-31T10:00:00.000000000")}, [0]),
        ({"added": {"lt": "9999-12-31T23:59:59.999999999-23:59"}}, [0, 1, 3]),
        ({"added": {"gte": "0001-01-01T00:00:00+23:59"}}, [0, 1, 3]),
    ],
)
def test_which_rows(asked: dict[str, object], rows: list[int]) -> None:
    assert tt.Filter.parse(asked).mask(FILMS).nonzero()[0].tolist() == rows


OPERATORS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([-1.5, 0.5, 2.0]))


@given(
    st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=8),
    st.dictionaries(st.sampled_from(sorted(OPERATORS)), NUMBERS, min_size=1, max_size=3),
    st.lists(NUMBERS, max_size=12),
    st.sampled_from([pl.Int8, pl.Int64, pl.Float32]),
)
def test_numbers_against_a_loop(values, comparisons, among, dtype) -> None:  # type: ignore[no-untyped-def]
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    expected = [v is not None and all(OPERATORS[name](v, asked) for name, asked in comparisons.items()) for v in values]
    assert tt.Filter.parse({"x": comparisons}).mask(frame).tolist() == expected
    assert tt.Filter.parse({"x": {"in": among}}).mask(frame).tolist() == [v in among for v in values]
    outside = [v is not None and v not in among for v in values]
    assert tt.Filter.parse({"x": {"not_in": among}}).mask(frame).tolist() == outside


STEPS = [-(10**9), -1001, -1000, -999, -1, 0, 1, 999, 1000, 1001, 10**9]
NOON = 1_717_156_800 * 10**9  # 2024-05-31 12:00 in UTC


@pytest.mark.parametrize("zone", [None, "Asia/Kathmandu"])
@pytest.mark.parametrize("name", OPERATORS)
def test_nanoseconds_against_whole_numbers(name: str, zone: str | None) -> None:
    column = (
        pl.Series("x", [NOON + step for step in STEPS] + [None]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
    )
    column = column.dt.convert_time_zone(zone) if zone else column.dt.replace_time_zone(None)
    frame = pl.DataFrame({"x": column, "list": column.to_frame().select(pl.concat_list("x")).to_series()})
    for step in STEPS:
        expected = [OPERATORS[name](other, step) for other in STEPS] + [False]
        text = str(np.datetime64(NOON + step, "ns"))
        local = pd.Timestamp(NOON + step, tz="UTC").tz_convert("America/New_York")
        for asked in (text, text + "Z", np.datetime64(NOON + step, "ns"), pd.Timestamp(NOON + step), local):
            assert tt.Filter.parse({"x": {name: asked}}).mask(frame).tolist() == expected
        if name in ("eq", "ne"):
            met = tt.Filter.parse({"list": {name: text}}).mask(frame).tolist()
            assert met[:-1] == expected[:-1]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series(STEPS).cast(pl.Datetime("ns")),
        pl.Series(STEPS).cast(pl.Datetime("us", "Europe/Berlin")),
        pl.Series(STEPS).cast(pl.Datetime("ms")),
        pl.Series(range(19_000, 19_010)).cast(pl.Date),
        pl.Series([Decimal("12345678901234567.89"), Decimal("12345678901234567.88"), Decimal("0.10"), Decimal("-0.1")]),
        pl.Series([True, False]),
        pl.Series(["b", "a", "Ä", "z", ""]),
        pl.Series(["small", "medium", "large"], dtype=pl.Enum(["small", "medium", "large"])),
        pl.Series([-(2**63), 2**63 - 1, 2**53, 2**53 + 1, 0]),
        pl.Series([0, 2**64 - 1, 2**63, 2**63 - 1], dtype=pl.UInt64),
        pl.Series([0.1, -0.0, 0.0, 1e30], dtype=pl.Float32),
        pl.Series([0.1, 0.1 + 2**-56, -0.0, 0.0, 1e300]),
    ],
    ids=lambda column: str(column.dtype),
)
def test_every_type_as_polars_compares_it(column: pl.Series) -> None:
    """Each value with each other; a missing one meets nothing."""
    frame = pl.DataFrame({"x": column.extend_constant(None, 2)})
    ordered = frame["x"].dtype != pl.Boolean
    for value in column.drop_nulls().unique():
        alone = pl.Series("y", [value], dtype=frame["x"].dtype)
        for name in OPERATORS if ordered else ("eq", "ne"):
            truth = frame.select(OPERATORS[name](pl.col("x"), pl.lit(alone).first()).fill_null(False)).to_series()
            assert tt.Filter.parse({"x": {name: value}}).mask(frame).tolist() == truth.to_list(), (name, value)


def test_equal_filters_are_equal() -> None:
    one = tt.Filter.parse({"year": {"gte": 1, "lt": 2}, "genres": {"in": ["b", "a", "a"]}})
    other = tt.Filter.parse({"genres": {"in": ("a", "b")}, "year": {"lt": 2, "gte": 1}})
    assert one == other
    assert hash(one) == hash(other)
    assert tt.Filter.parse({"x": True}) != tt.Filter.parse({"x": 1})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "a filter is a dict"),
        ({3: "x"}, "a filter names attributes by texts, got 3"),
        ({None: "x"}, "a filter names attributes by texts, got None"),
        ({"year": {}}, "the filter of 'year' is empty"),
        ({"year": {"above": 3}}, "the filter of 'year': unknown operator 'above': choose from 'eq', 'gt'"),
        ({"year": {"gt": float("nan")}}, "nan cannot be compared with"),
        ({"year": None}, "a missing value meets no condition"),
        ({"year": {"in": 3}}, "needs a list of values"),
        ({"brand": {"in": "ab"}}, "needs a list of values"),
        ({"brand": ["a", "b"]}, r"needs one value; \{'in': \[...\]\} asks for one of several"),
        ({"brand": {"in": ["a", 1]}}, r"mixes values of different kinds: \['number', 'text'\]"),
        ({"on_sale": {"gt": True}}, "true and false have no order"),
        ({"id": 2**70}, "is beyond 64 bits"),
        ({"id": {"eq": object()}}, "values are texts, numbers, true or false, or dates, got a object"),
    ],
)
def test_what_cannot_be_a_filter(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tt.Filter.parse(asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"yaer": 3}, "unknown attribute 'yaer'.* Did you mean 'year'?"),
        ({"year": "1994"}, "compares attribute 'year', of type UInt16, with '1994': give a number"),
        ({"year": True}, "compares attribute 'year', of type UInt16, with True: give a number"),
        ({"brand": 3}, "compares attribute 'brand', of type String, with 3: give a text"),
        ({"genres": 3}, r"compares attribute 'genres', of type List\(String\), with 3: give a text"),
        ({"genres": {"gt": "A"}}, "attribute 'genres' is a list: it can be asked for eq, ne, in and not_in, not gt"),
        ({"on_sale": 1}, "of type Boolean, with 1: give a flag"),
        ({"added": "tomorrow"}, "attribute 'added' is a date, but 'tomorrow' is no ISO date"),
        ({"added": 20240531}, "give a time"),
        ({"seen": "2024-05-31T10:00:00.0000000005"}, "'seen' is compared by nanoseconds, and the time given is finer"),
        ({"size": {"gt": "X"}}, "attribute 'size' is an Enum: unknown category 'X': choose from 'L', 'M', 'S'"),
        ({"half": {"lt": 1e300}}, r"'half' is of type Float32, which holds no number as large as 1e\+300"),
        ({"big": {"lt": 2**63}}, "'big' is of type Int64, which holds no number as large as 9223372036854775808"),
    ],
)
def test_what_does_not_fit_the_attributes(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tt.Filter.parse(asked).mask(FILMS)


def test_attributes_of_no_comparable_kind() -> None:
    frame = pl.DataFrame({"place": [{"x": 1}], "deep": [[[1]]], "span": [dt.timedelta(1)]})
    for name in frame.columns:
        with pytest.raises(ValueError, match="texts, numbers, flags, dates and lists of them can be filtered"):
            tt.Filter.parse({name: 1}).mask(frame)
