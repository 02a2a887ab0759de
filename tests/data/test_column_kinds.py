"""Every kind of column against hand arithmetic or another library."""

import datetime
import math
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer

import twotower as tt
from twotower import Tags
from twotower.data.columns import buckets, vocabulary
from twotower.data.columns.values import FEW, hash64
from twotower.data.columns.vocabulary import Vocabulary


def codes(column: object, learnt: dict[str, list], then: dict[str, list] | None = None, name: str = "x") -> dict:  # type: ignore[type-arg]
    made = tt.Preprocessor({name: column}).fit(learnt)  # type: ignore[dict-item]
    data = made.transform(learnt if then is None else then)
    return data.select(data.schema).table.to_pydict()


# ---- categories


def by_hand(value: object, buckets: int) -> int:
    """The hash as the docstring states it, once more."""
    return int.from_bytes(blake2b(str(value).encode("utf-8"), digest_size=8).digest(), "little") % buckets


def test_unknown_values_share_buckets_by_their_hash() -> None:
    made = tt.Preprocessor({"x": tt.Categorical(min_count=2, oov_buckets=3)}).fit({"x": ["a", "a", "b", "b", "b", "c"]})
    out = made.transform({"x": ["b", "a", "c", "new", None, "neu"]})
    assert out.table["x"].to_pylist() == [4, 5, *(1 + by_hand(v, 3) for v in ("c", "new")), 0, 1 + by_hand("neu", 3)]
    assert made.schema["x"].properties["unknown_id"] == 3
    assert made.schema["x"].cardinality == 6
    assert made.inverse("x", [0, 1, 2, 3, 4, 5]) == [None, None, None, None, "b", "a"]


def test_unknown_ids_of_all_buckets_are_no_candidates() -> None:
    made = tt.Preprocessor({"item": tt.Categorical(Tags.ITEM_ID, oov_buckets=5)}).fit({"item": ["a", "b"]})
    data = made.transform({"item": ["a", "u", "v", "w", "b", "x"]})
    with pytest.warns(UserWarning, match="4 rows hold no id"):
        catalog = tt.Catalog.from_dataset(data, "item", made.schema)
    assert catalog.ids.tolist() == [6, 7]


def test_the_vocabulary_keeps_the_most_frequent_values() -> None:
    learnt = {"x": [7, 7, 7, 8, 8, 9, 9, 5]}
    assert codes(tt.Categorical(max_size=2), learnt, {"x": [7, 8, 9, 5]}) == {"x": [2, 3, 1, 1]}
    assert codes(tt.Categorical(min_count=3), learnt, {"x": [7, 8]}) == {"x": [2, 1]}


def test_short_columns_are_searched_to_the_same_codes() -> None:
    rng = np.random.default_rng(0)
    for values in (pl.Series(rng.permutation(10_000) * 3), pl.Series([f"k{n}" for n in rng.permutation(10_000)])):
        held = Vocabulary("x", values, oov_buckets=2)
        asked = pl.concat([values.sample(50, seed=1), pl.Series([None], dtype=values.dtype)])
        other = pl.Series([-5, 1, 10**9]) if values.dtype == pl.Int64 else pl.Series(["", "k", "zz"])
        few = pl.concat([asked, other.cast(values.dtype)])
        many = pl.concat([few] * 20)  # long enough for the hash join
        assert held.encode(few).to_list() * 20 == held.encode(many).to_list()
        place = {v: n + 3 for n, v in enumerate(values.to_list())}
        expected = [0 if v is None else place.get(v, 1 + by_hand(v, 2)) for v in few.to_list()]
        assert held.encode(few).to_list() == expected
        assert len(few) <= FEW < len(few) * 2  # the loop, the binary search, and the join above
        assert held.encode(pl.concat([few, few])).to_list() == expected * 2
        assert [held.encode(few[n : n + 1])[0] for n in range(len(few))] == expected
        assert hash64(few).to_list() == hash64(many)[: len(few)].to_list()
        one = Vocabulary("x", values, oov_buckets=1)
        assert one.encode(few).to_list() == one.encode(many)[: len(few)].to_list()
    words = ["z", "e\u0301", "\u00e9", "\U0001f600", "\uffee", "", "Z"]  # in the order of code points, as of UTF-8
    texts = Vocabulary("x", pl.Series(words))
    assert texts.encode(pl.Series([*words, "a", None])).to_list() == [2, 3, 4, 5, 6, 7, 8, 1, 0]
    assert Vocabulary("x", pl.Series([], dtype=pl.String)).encode(pl.Series(["a"])).to_list() == [1]


@pytest.mark.parametrize("wrong", [{"min_count": 1.5}, {"max_size": True}, {"oov_buckets": "3"}, {"min_count": 0}])
def test_counts_of_categories_are_whole(wrong: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be (a whole number|at least 1), got"):
        tt.Categorical(**wrong)
    assert type(tt.Categorical(min_count=np.int64(2)).min_count) is int  # type: ignore[arg-type]


def test_hashed_ids_are_a_function_of_the_value_alone() -> None:
    one = codes(tt.Hashed(buckets=100), {"x": ["a", "b", None]})["x"]
    assert one == [1 + by_hand("a", 100), 1 + by_hand("b", 100), 0]
    assert codes(tt.Hashed(buckets=100), {"x": ["zzz"]}, {"x": ["b"]})["x"] == one[1:2]
    # numbers and their text agree; lists go by element
    assert codes(tt.Hashed(buckets=9), {"x": [12, -3]})["x"] == codes(tt.Hashed(buckets=9), {"x": ["12", "-3"]})["x"]
    assert codes(tt.Hashed(buckets=100), {"x": [["a"], [], ["b", None]]})["x"] == [one[:1], [], [one[1], 0]]
    # pinned: a change would break every saved model
    assert codes(tt.Hashed(buckets=10**9), {"x": ["twotower", "é"]})["x"] == PINNED


PINNED = [910860652, 367669964]


def test_crossed_columns_hash_their_combinations() -> None:
    learnt = {"a": ["x", "x", "y", None], "b": [1, 2, 1, 1]}
    ids = codes(tt.Hashed(buckets=1000, source=("a", "b")), learnt, name="ab")["ab"]
    assert ids == [*(1 + by_hand(text, 1000) for text in ("1:x:1:1", "1:x:1:2", "1:y:1:1")), 0]
    # alone in its table a null has no type
    assert codes(tt.Hashed(buckets=1000, source=("a", "b")), learnt, {"a": ["x"], "b": [None]}, name="ab")["ab"] == [0]
    with pytest.raises(ValueError, match=r"'ab' crosses \['a', 'b'\], but \['b'\] hold lists"):
        codes(tt.Hashed(source=("a", "b")), {"a": [1], "b": [[1]]}, name="ab")


def test_hashes_spread_evenly() -> None:
    ids = np.array(codes(tt.Hashed(buckets=50), {"x": list(range(50_000))})["x"])
    counts = np.bincount(ids, minlength=51)[1:]
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < 49 + 5 * math.sqrt(2 * 49)  # five deviations


def test_one_raw_column_is_read_in_several_ways() -> None:
    made = tt.Preprocessor(
        {
            "price": tt.Numeric(scale=None),
            "price_level": tt.Bucketized(buckets=(10.0,), source="price"),
            "price_hash": tt.Hashed(buckets=4, source="cents"),
        }
    ).fit({"price": [5.0, 20.0], "cents": [500, 2000]})
    out = made.transform({"price": [20.0], "cents": [500]})
    assert out.schema.column_names == ["price", "price_level", "price_hash"]
    assert out.table.column_names == ["price", "cents", "price_level", "price_hash"]
    assert made.raw_columns(["price_level", "price_hash"]) == ["price", "cents"]


def test_an_encoded_column_must_not_hide_another_raw_one() -> None:
    made = tt.Preprocessor({"a": tt.Hashed(source="b")}).fit({"b": [1]})
    with pytest.raises(ValueError, match="the encoded column 'a' would replace a raw column of that name"):
        made.transform({"a": [1], "b": [2]})
    with pytest.raises(ValueError, match="different column names"):
        tt.Preprocessor({"t": tt.Timestamp(parts="hour"), "t_hour": tt.Hashed(source="t")}).fit({"t": [0]})


# ---- text

TEXTS = ["Red gift card", "red RED card", "", "birthday-card 50", "gift"]


@pytest.mark.parametrize("ngram_range", [(1, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("analyzer", ["word", "char_wb"])
def test_ngrams_are_those_of_scikit_learn(ngram_range: tuple[int, int], analyzer: str) -> None:
    texts = [text.replace("-", " ") for text in TEXTS] if analyzer == "char_wb" else TEXTS
    theirs = CountVectorizer(
        analyzer=analyzer, ngram_range=ngram_range, token_pattern=r"(?u)\b\w+\b" if analyzer == "word" else None
    )
    counts = theirs.fit_transform(texts).toarray()
    made = tt.Preprocessor({"x": tt.Text(min_count=1, ngram_range=ngram_range, analyzer=analyzer)}).fit({"x": texts})
    ours = np.zeros_like(counts)
    for row, ids in enumerate(made.transform({"x": texts}).table["x"].to_pylist()):
        for gram in made.inverse("x", ids):
            ours[row, theirs.vocabulary_[gram]] += 1
    assert (ours == counts).all()
    assert len(made.vocabulary("x")) == counts.shape[1]


def test_texts_share_their_words(tmp_path: Path) -> None:
    columns = {
        "title": tt.Text(Tags.ITEM, min_count=2),
        "page": tt.Text(Tags.USER, share="title"),
    }
    made = tt.Preprocessor(columns).fit({"title": ["red", "blue"], "page": [["a red"], ["blue sky", "a red sea"]]})
    # red 3 times; a, blue twice; sky and sea once: too rare
    assert made.vocabulary("page").to_list() == ["red", "a", "blue"]
    assert made.schema["page"].int_domain == made.schema["title"].int_domain
    again = {"title": ["a red"], "page": [["a red sky"]]}
    assert made.transform(again).table.to_pydict() == {"title": [[3, 2]], "page": [[3, 2, 1]]}
    made.save(tmp_path / "made")
    loaded = tt.Preprocessor.load(tmp_path / "made")
    assert loaded.transform(again).table == made.transform(again).table
    assert loaded.inverse("page", [2, 4]) == ["red", "blue"]
    grown = made.extend({"page": [["sky sky"], []]})
    assert grown.vocabulary("title").to_list() == ["red", "a", "blue", "sky"]
    assert grown.schema["title"].cardinality == grown.schema["page"].cardinality == 6


def test_texts_that_share_are_cut_alike() -> None:
    hashed = tt.Preprocessor({"a": tt.Text(buckets=7), "b": tt.Text(buckets=7, share="a")}).fit(
        {"a": ["x"], "b": ["x"]}
    )
    assert hashed.schema["b"].int_domain == hashed.schema["a"].int_domain
    with pytest.raises(ValueError, match="'b' shares the n-grams of 'a', but cuts texts otherwise"):
        tt.Preprocessor({"a": tt.Text(), "b": tt.Text(share="a", ngram_range=(1, 2))}).fit({"a": ["x x"], "b": ["x"]})
    with pytest.raises(ValueError, match="min_count and max_size from there"):
        tt.Text(share="a", min_count=1)
    with pytest.raises(ValueError, match="'b' cannot share a vocabulary"):
        tt.Preprocessor({"a": tt.Categorical(), "b": tt.Text(share="a")})


def test_texts_hashed_missing_and_in_lists() -> None:
    assert codes(tt.Text(buckets=7), {"x": ["A b", None]})["x"] == [[1 + by_hand("a", 7), 1 + by_hand("b", 7)], []]
    lists = {"x": [["Red card", None, "gift"], [], None]}
    made = tt.Preprocessor({"x": tt.Text(min_count=1)}).fit(lists)
    assert made.inverse("x", made.transform(lists).batch()["x"]) == [["red", "card", "gift"], [], []]
    # learnt from lists: a list in a dict is the list of one row, a column of texts has one text a row
    assert made.inverse("x", made.transform({"x": ["Gift", "card"]}).batch()["x"]) == [["gift", "card"]]
    assert made.inverse("x", made.transform({"x": pl.Series(["Gift", "card"])}).batch()["x"]) == [["gift"], ["card"]]


def test_words_keep_their_marks_however_they_are_typed() -> None:
    def cut(text: str) -> list[object]:
        made = tt.Preprocessor({"x": tt.Text(min_count=1)}).fit({"x": [text]})
        return made.inverse("x", made.transform({"x": pl.Series([text])}).batch()["x"])[0]  # type: ignore[return-value]

    assert cut("Cafe\u0301 CAFE\u0301 caf\u00e9 Caf\u00c9") == ["caf\u00e9"] * 4
    assert cut("\u0130stanbul") == ["i\u0307stanbul"]  # the small letter of a dotted I is an i with a dot above
    assert cut("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u092e\u0947\u0902",
    ]
    assert cut("I \u2764\ufe0f tea") == ["i", "tea"]  # a mark without a letter is no word


# ---- numbers


def test_scales() -> None:
    x = {"x": [0.0, 1.0, -3.0, 10.0]}
    logs = np.sign(x["x"]) * np.log1p(np.abs(x["x"]))
    assert codes(tt.Numeric(scale="log"), x)["x"] == pytest.approx(list((logs - logs.mean()) / logs.std()), abs=1e-6)
    assert codes(tt.Numeric(scale="min-max"), x)["x"] == pytest.approx([3 / 13, 4 / 13, 0, 1])
    assert codes(tt.Numeric(scale="min-max"), x, {"x": [23.0]})["x"] == pytest.approx([2.0])
    assert codes(tt.Numeric(scale=None), x)["x"] == x["x"]
    for scale in ("log", "standard", "min-max", None):
        made = tt.Preprocessor({"x": tt.Numeric(scale=scale)}).fit(x)
        assert made.inverse("x", made.transform(x).batch()["x"]) == pytest.approx(x["x"], abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "fill", "expected"),
    [
        ("standard", "mean", 0.0),
        (None, "mean", 2.0),
        (None, -1.0, -1.0),
        ("standard", 4.0, 2.0),
        ("min-max", 4.0, 1.5),
        ("log", 1.0, -1.0),
    ],
)
def test_missing_numbers_take_the_declared_value(scale: str | None, fill: float | str, expected: float) -> None:
    """1 and 3: mean 2, deviation 1, logs log 2 and log 4 whose mean less deviation is log 2."""
    learnt = {"x": [1.0, 3.0, None, math.nan]}
    out = codes(tt.Numeric(scale=scale, fill=fill, indicator=True), learnt)
    assert out["x"][2:] == pytest.approx([expected, expected])
    assert out["x_missing"] == [0.0, 0.0, 1.0, 1.0]


def test_missing_numbers_without_a_declared_value_are_errors() -> None:
    with pytest.raises(ValueError, match="'x' has 2 missing numbers in 3 rows; declare what stands for them"):
        codes(tt.Numeric(), {"x": [1.0, None, math.nan]})
    with pytest.raises(ValueError, match="'x' has 1 missing numbers in 2 rows"):
        codes(tt.Numeric(), {"x": [1.0, 2.0]}, {"x": [1.0, None]})
    with pytest.raises(ValueError, match="'x' has 1 infinite numbers"):
        codes(tt.Numeric(fill=0.0), {"x": [1.0, math.inf]})
    with pytest.raises(ValueError, match="indicator=True marks missing values"):
        tt.Numeric(indicator=True)
    with pytest.raises(ValueError, match="unknown scale 'robust'"):
        tt.Numeric(scale="robust")
    with pytest.raises(ValueError, match="unknown fill 'median'"):
        tt.Numeric(fill="median")


def test_numbers_that_float_cannot_hold_are_errors(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ValueError, match=r"'x' holds 1e\+300 in row 1, which scaled is 1e\+300: more than float32"):
        codes(tt.Numeric(scale=None), {"x": [1.0, 1e300]})
    with pytest.raises(ValueError, match="'x' holds None in row 0, which scaled is 1e"):
        codes(tt.Numeric(scale=None, fill=1e39), {"x": [None, 1.0]})
    for scale, fill in (("standard", None), ("min-max", None), (None, "mean")):
        with pytest.raises(ValueError, match=r"'x' holds -1e\+308: numbers beyond 1e\+140 have no mean and deviation"):
            codes(tt.Numeric(scale=scale, fill=fill), {"x": [1.0, -1e308, 1e307]})
    assert np.isfinite(codes(tt.Numeric(scale="log"), {"x": [1.0, -1e308, 1e307]})["x"]).all()
    with pytest.raises(ValueError, match="'x' holds 1e.308 in row 0, which scaled is inf"):
        codes(tt.Numeric(), {"x": [0.0, 0.5]}, {"x": [1e308]})
    large = 2**53 + 1
    for column in (tt.Numeric(), tt.Numeric(scale="log"), tt.Bucketized(buckets=2), tt.Bucketized(buckets=(2,))):
        with pytest.raises(
            ValueError, match=r"'x' holds -?900719925474099\d, but as numbers whole ones are exact below"
        ):
            tt.Preprocessor({"x": column}).fit({"x": [1, -large]}).transform({"x": [-large]})
    for scale in ("log", None):
        with pytest.raises(ValueError, match="whole ones are exact below"):
            tt.Preprocessor({"x": tt.Numeric(scale=scale)}).fit({"x": [1, -large]})
    with pytest.raises(ValueError, match=f"'x' holds {large}, but"):
        codes(tt.Numeric(), {"x": [1, 2]}, {"x": [1, large]})
    assert codes(tt.Numeric(scale="min-max"), {"x": [0, 2**53 - 1]})["x"] == [0, 1]
    assert not len(recwarn)


def test_options_are_checked_at_the_door_and_can_be_saved(tmp_path: Path) -> None:
    columns = {
        "a": tt.Numeric(fill=np.float32(0.5)),
        "b": tt.Bucketized(buckets=np.int64(3)),
        "c": tt.Bucketized(buckets=np.array([1, 2])),  # type: ignore[arg-type]
        "d": tt.Text(min_count=np.int32(1), max_size=np.int64(9), ngram_range=np.array([1, 2])),  # type: ignore[arg-type]
    }
    table = {"a": [1.0, None], "b": [1.0, 2.0], "c": [0, 3], "d": ["x y", "y"]}
    made = tt.Preprocessor(columns).fit(table)
    made.save(tmp_path / "made")
    loaded = tt.Preprocessor.load(tmp_path / "made")
    assert loaded.columns == columns
    assert loaded.transform(table).table == made.transform(table).table


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tt.Text(min_count=1.5), "min_count must be a whole number, got 1.5"),
        (lambda: tt.Text(max_size=True), "max_size must be a whole number, got True"),
        (lambda: tt.Text(buckets="7"), "buckets must be a whole number, got '7'"),
        (lambda: tt.Text(min_count=None), "min_count must be a whole number, got None"),
        (lambda: tt.Text(buckets=0), "buckets must be at least 1, got 0"),
        (lambda: tt.Text(ngram_range=(1.0, 2.0)), "n of ngram_range must be a whole number, got 1.0"),
        (lambda: tt.Text(ngram_range=(2, 1)), "ngram_range must be"),
        (lambda: tt.Text(buckets=7, min_count=5), "buckets=7 hashes n-grams, and min_count and max_size limit"),
        (lambda: tt.Text(buckets=7, max_size=5), "leave out one or the other"),
        (lambda: tt.Bucketized(buckets=3.0), "buckets must be a whole number, got 3.0"),
        (lambda: tt.Bucketized(buckets=True), "buckets must be a whole number, got True"),
        (lambda: tt.Bucketized(buckets="ten"), "buckets must be a whole number, got 'ten'"),
        (lambda: tt.Bucketized(buckets=(1, math.nan)), "finite rising boundaries, got nan"),
        (lambda: tt.Bucketized(buckets=(1, "2")), "finite rising boundaries, got '2'"),
        (lambda: tt.Numeric(fill=True), "fill must be a finite number or 'mean', got True"),
        (lambda: tt.Numeric(fill=math.inf), "fill must be a finite number or 'mean', got inf"),
        (lambda: tt.Numeric(fill=0.0, indicator=1), "indicator must be True or False, got 1"),
        (lambda: tt.Age("a", "b", fill=True), "fill must be a finite number or 'mean', got True"),
        (lambda: tt.Timestamp(unit="h"), "unknown unit 'h'"),
    ],
)
def test_options_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_moments_of_parts_are_those_of_the_whole(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Large means and small spreads, where sums of squares would lose everything."""
    x = 1.4e9 + np.random.default_rng(3).normal(0, 5, 10_000)
    pl.DataFrame({"x": x}).write_parquet(tmp_path / "x.parquet", row_group_size=700)
    halves = [{"x": list(x[:3000])}, {"x": list(x[3000:])}]
    for tables in ([{"x": list(x)}], halves, [tmp_path / "x.parquet"]):
        made = tt.Preprocessor({"x": tt.Numeric()}).fit(*tables)
        scaled = np.array(made.transform({"x": list(x)}).table["x"])
        np.testing.assert_allclose(scaled, (x - x.mean()) / x.std(), atol=2e-6)


def test_buckets_hold_equal_shares() -> None:
    x = np.random.default_rng(0).lognormal(size=10_001)
    ids = np.array(codes(tt.Bucketized(buckets=8), {"x": list(x)})["x"])
    counts = np.bincount(ids)
    assert counts[0] == 0
    assert len(counts) == 9
    assert counts[1:].min() >= 1249
    assert (np.argsort(x)[np.argsort(ids[np.argsort(x)], kind="stable")] == np.argsort(x)).all()  # ids rise with x
    # ties: 0 fills half of the rows, so a bound at the median parts it from the rest
    tied = [0.0] * 6 + [1.0, 2.0, 3.0, 4.0]
    assert codes(tt.Bucketized(buckets=2), {"x": tied})["x"] == [1] * 6 + [2] * 4
    assert codes(tt.Bucketized(buckets=5), {"x": [7.0] * 9})["x"] == [1] * 9


def test_buckets_of_many_values_are_near_and_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks against all 200,000 values; the frames that are held are counted where they are summed."""
    limit, rows = 1000, 200_000
    monkeypatch.setattr(buckets, "HELD", limit)
    summed, most = buckets._summed, 0

    def watched(parts: list[pl.DataFrame]) -> pl.DataFrame:
        nonlocal most
        most = max(most, sum(len(p) for p in parts))
        return summed(parts)

    monkeypatch.setattr(buckets, "_summed", watched)
    x = np.random.default_rng(0).lognormal(size=rows)
    x[::4] = 1.0  # a value of a quarter of the rows keeps its weight
    for order in (x, np.sort(x), -np.sort(-x)):
        parts = (pl.Series("value", part).value_counts(name="count") for part in np.split(order, 400))
        bounds = buckets.quantile_boundaries("x", parts, 10)
        below = np.searchsorted(np.sort(x), bounds) / rows
        bound = (1 + math.log2(rows / limit)) / limit
        # what is below a boundary: the tenths, but for the repeated value, whose rows all go to one side
        wanted = [k / 10 for k in range(1, 10)]
        at_one = (float((x < 1).mean()), float((x <= 1).mean()))
        wanted = [w for w in wanted if not at_one[0] < w <= at_one[1]] + [at_one[1]]
        assert len(bounds) == len(wanted)
        np.testing.assert_allclose(below, sorted(wanted), atol=bound)
        assert 1.0 not in bounds
    assert most < limit * (3 + math.log2(rows / limit))


def test_few_values_are_counted_exactly_however_many_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "HELD", 100)
    parts = (pl.DataFrame({"value": np.arange(90.0), "count": np.arange(90) + n}) for n in range(20))
    held = buckets.thinned_counts(parts)
    assert held is not None
    assert held["value"].to_list() == list(range(90))
    assert held["count"].to_list() == [20 * v + 190 for v in range(90)]


def test_counts_of_a_vocabulary_are_summed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 parts of the same 50 values: no more than 4 times the distinct ones, the limit and a part wait."""
    monkeypatch.setattr(vocabulary, "HELD", 100)
    summed, held = vocabulary._summed, []

    def watched(parts: list[pl.DataFrame]) -> pl.DataFrame:
        held.append(sum(len(p) for p in parts))
        return summed(parts)

    monkeypatch.setattr(vocabulary, "_summed", watched)
    parts = (pl.DataFrame({"value": np.arange(50), "count": np.arange(50) + 1}) for _ in range(200))
    merged = vocabulary._merged(parts)
    assert merged is not None
    assert merged.sort("value")["count"].to_list() == [200 * (v + 1) for v in range(50)]
    assert max(held) <= 4 * 50 + 100 + 50


def test_declared_boundaries_hold_their_lower_end() -> None:
    made = tt.Preprocessor({"age": tt.Bucketized(buckets=(18, 65))}).fit({"age": [1]})
    assert made.transform({"age": [17.9, 18, 64, 65, None, math.inf]}).table["age"].to_pylist() == [1, 2, 2, 3, 0, 3]
    assert made.schema["age"].cardinality == 4
    with pytest.raises(ValueError, match="finite rising boundaries"):
        tt.Bucketized(buckets=(3, 1))
    with pytest.raises(ValueError, match="buckets must be at least 2"):
        tt.Bucketized(buckets=1)


# ---- times

MOMENT = datetime.datetime(2017, 10, 14, 23, 45, 10, tzinfo=datetime.timezone.utc)  # a Saturday


@pytest.mark.parametrize(
    "raw",
    [
        MOMENT,
        MOMENT.replace(tzinfo=None),
        int(MOMENT.timestamp()),
        "2017-10-14T23:45:10",
        "2017-10-15T01:45:10+02:00",
    ],
)
def test_calendar_parts(raw: object) -> None:
    parts = ("minute", "hour", "weekday", "hour_of_week", "day", "week", "month", "quarter")
    out = codes(tt.Timestamp(parts=parts), {"x": [raw]})
    expected = [45, 23, MOMENT.weekday(), 5 * 24 + 23, 14 - 1, MOMENT.isocalendar().week - 1, 10 - 1, 3]
    assert list(out.values()) == [[1 + part] for part in expected]


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units_of_integer_times(unit: str, factor: int) -> None:
    out = codes(tt.Timestamp(unit=unit), {"x": [int(MOMENT.timestamp()) * factor, None]})
    assert out == {"x_hour": [24, 0], "x_weekday": [6, 0]}


def test_every_moment_of_a_year_agrees_with_the_standard_library() -> None:
    start = datetime.datetime(2019, 12, 28, tzinfo=datetime.timezone.utc)
    times = [start + datetime.timedelta(hours=7 * n) for n in range(1400)]
    out = codes(tt.Timestamp(parts=("hour", "weekday", "day", "month", "week")), {"x": times})
    assert out["x_hour"] == [1 + t.hour for t in times]
    assert out["x_weekday"] == [1 + t.weekday() for t in times]
    assert out["x_day"] == [t.day for t in times]
    assert out["x_month"] == [t.month for t in times]
    assert out["x_week"] == [t.isocalendar().week for t in times]


def test_time_zones_and_wrong_units() -> None:
    out = codes(tt.Timestamp(parts="hour", time_zone="America/Sao_Paulo"), {"x": [MOMENT]})
    assert out["x_hour"] == [1 + 20]  # summer time would begin the day after: UTC-3
    with pytest.raises(ValueError, match="outside the years 1900 to 2200.*is another unit meant"):
        codes(tt.Timestamp(), {"x": [0]}, {"x": [int(MOMENT.timestamp()) * 1000]})
    with pytest.raises(ValueError, match="outside the years 1900 to 2200"):
        codes(tt.Timestamp(), {"x": [0]}, {"x": [2**62]})
    with pytest.raises(
        ValueError, match="'x' holds 'yesterday' in row 0, and 0 more that are no times: expected ISO 8601"
    ):
        codes(tt.Timestamp(), {"x": [0]}, {"x": ["yesterday"]})
    with pytest.raises(ValueError, match="'x' holds Float64, not times"):
        codes(tt.Timestamp(), {"x": [0]}, {"x": [1.5]})


ISO_TEXTS = [
    "2020-02-01",
    "2020-02-01 13:05",
    "2020-02-01T13:05:09.25Z",
    "2020-02-01T13:05:09+05:30",
    "2020-02-01 13:05:09,5-03",
    "2020-12-31T23:30:00-1130",
    None,
]


def test_a_time_is_read_alike_whatever_stands_beside_it() -> None:
    """One by one, together, and in the other order; the hours are moved by hand."""
    parts = ("minute", "hour", "day", "month")
    expected = [
        (0, 0, 1, 2), (5, 13, 1, 2), (5, 13, 1, 2), (35, 7, 1, 2), (5, 16, 1, 2), (0, 11, 1, 1), None
    ]  # fmt: skip
    for texts, wanted in (
        (ISO_TEXTS, expected),
        (ISO_TEXTS[::-1], expected[::-1]),
        *(([t], [e]) for t, e in zip(ISO_TEXTS, expected, strict=True)),
    ):
        out = codes(tt.Timestamp(parts=parts), {"x": ["2020-01-01"]}, {"x": pl.Series(texts, dtype=pl.String)})
        rows = list(zip(*out.values(), strict=True))
        assert rows == [(0, 0, 0, 0) if w is None else (1 + w[0], 1 + w[1], w[2], w[3]) for w in wanted]
    ages = codes(
        tt.Age("a", "b", unit="seconds", scale=None),
        {"a": ["2020-02-01T00:00:00"], "b": ["2020-02-01T00:00:00.250Z"]},
        name="y",
    )
    assert ages["y"] == [0.25]


@pytest.mark.parametrize("text", ["01/02/2020", "2020-02-01T25:00", "2020-02-01T10:00+99:00", "2020", "1580000000", ""])
def test_no_time_is_guessed(text: str) -> None:
    message = f"column 'x' holds {text!r} in row 1, and 0 more that are no times"
    with pytest.raises(ValueError, match=re.escape(message)):
        codes(tt.Timestamp(), {"x": ["2020-01-01"]}, {"x": ["2020-01-01", text]})


def test_years_and_zones_that_cannot_be_meant() -> None:
    for raw in ("0001-01-01", datetime.datetime(2201, 1, 1), datetime.date(1899, 12, 31)):
        with pytest.raises(
            ValueError, match="column 'x' holds .* in row 1 which is outside the years 1900 to 2200, and 0 more"
        ):
            codes(tt.Timestamp(), {"x": [0]}, {"x": pl.Series([None, raw])})
    for zone in ("Mars/Base", "America", "", 3):
        with pytest.raises(ValueError, match=f"unknown time_zone {zone!r}: expected a name of the IANA database"):
            tt.Timestamp(time_zone=zone)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="such as 'Europe/Berlin'"):
        tt.Timestamp(time_zone="Europe/Berlinn")
    assert codes(tt.Timestamp(parts="hour"), {"x": pl.Series(["2020-01-01T05:00"], dtype=pl.Categorical)}) == {
        "x_hour": [6]
    }


def test_ages() -> None:
    table = {"born": [0, 86400, None], "seen": [86400 * 3, 86400, 5]}
    out = codes(tt.Age("born", "seen", scale=None, fill=-1.0, indicator=True), table, name="age")
    assert out == {"age": [3.0, 0.0, -1.0], "age_missing": [0.0, 0.0, 1.0]}
    hours = codes(tt.Age("born", "seen", unit="hours", time_unit="ms", scale=None, fill=0.0), table, name="age")
    assert hours["age"] == pytest.approx([72 / 1000, 0, 0])
    days = {"born": [datetime.date(2020, 1, 1)], "seen": ["2020-01-31T12:00:00"]}
    assert codes(tt.Age("born", "seen", scale=None), days, name="age")["age"] == [30.5]
    with pytest.raises(ValueError, match="'age' reads .*, but no table has them all"):
        tt.Preprocessor({"age": tt.Age("a", "b")}).fit({"a": [1]}, {"b": [2]})


# ---- vectors


def test_vectors_in_the_rows() -> None:
    made = tt.Preprocessor({"v": tt.Vector(Tags.ITEM)}).fit({"v": [[1.0, 2.0], [3.0, 4.5]]})
    data = made.transform({"v": [[3.0, 4.5]]})
    assert torch.equal(data.batch()["v"], torch.tensor([[3.0, 4.5]]))  # type: ignore[arg-type]
    assert Tags.EMBEDDING in made.schema["v"].tags
    with pytest.raises(ValueError, match="must hold 2 numbers a row; 1 of 1 rows hold others"):
        made.transform({"v": [[1.0]]})
    with pytest.raises(ValueError, match="missing or infinite numbers"):
        made.transform({"v": [[1.0, None]]})
    with pytest.raises(ValueError, match="declared a vector, but holds Int64"):
        tt.Preprocessor({"v": tt.Vector()}).fit({"v": [1]})


@pytest.mark.parametrize("form", ["array", "parquet", "lists"])
def test_vectors_by_id(form: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    ids = ["x", "y", "z"]
    table = {"item": ids, "vector": rows if form == "array" else rows.tolist()}
    if form == "parquet":
        pl.DataFrame({"item": ids, "vector": rows.tolist()}).write_parquet(tmp_path / "v.parquet", row_group_size=2)
    given = tmp_path / "v.parquet" if form == "parquet" else table
    column = tt.PretrainedVectors(given, Tags.ITEM, id_column="item")
    made = tt.Preprocessor({"image": column}).fit({"item": ["y"]})
    data = made.transform({"item": ["z", "new", None, "x"]})
    assert data.select(data.schema).table.to_pydict() == {"image": [4, 1, 0, 2]}
    assert isinstance(made.vectors["image"], np.memmap)
    assert made.vectors["image"][data.table["image"].to_numpy()].tolist() == [[4, 5], [0, 0], [0, 0], [0, 1]]
    made.save(tmp_path / "p")
    again = tt.Preprocessor.load(tmp_path / "p")
    assert isinstance(again.vectors["image"], np.memmap)
    assert (again.vectors["image"] == made.vectors["image"]).all()
    assert again.transform({"item": ["z"]}).table.to_pydict()["image"] == [4]
    assert again.inverse("image", [4, 1]) == ["z", None]


def test_tables_of_vectors_that_cannot_be_right() -> None:
    def fit(**table: object) -> None:
        tt.Preprocessor({"v": tt.PretrainedVectors(table)}).fit({"id": [1]})

    with pytest.raises(ValueError, match="a different id in each row; 0 of 2 are null and 1 repeat"):
        fit(id=[1, 1], vector=[[1.0], [2.0]])
    with pytest.raises(ValueError, match="1 of 2 are null"):
        fit(id=[1, None], vector=[[1.0], [2.0]])
    with pytest.raises(ValueError, match="must hold 1 numbers a row"):
        fit(id=[1, 2], vector=[[1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="one row for each of the 2 ids"):
        fit(id=[1, 2], vector=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="missing or infinite"):
        fit(id=[1, 2], vector=np.array([[1.0], [np.nan]]))


# ---- growth


def test_extending_keeps_the_old_codes() -> None:
    first = tt.Preprocessor(
        {
            "item": tt.Categorical(Tags.ITEM_ID, oov_buckets=2),
            "seen": tt.Categorical(share="item"),
            "title": tt.Text(min_count=1),
            "price": tt.Numeric(),
        }
    ).fit({"item": [5, 5, 6], "seen": [[6], [], [9]], "title": ["a b", "b", "c"], "price": [1.0, 2.0, 3.0]})
    day = {"item": [8, 8, 5], "seen": [[7], [7], [7]], "title": ["d", "a d", "b"], "price": [100.0, 0.0, 5.0]}
    grown = first.extend(day)
    # 5, 6 and 9 keep 3, 4 and 5; 7 occurs three times and 8 twice
    assert first.vocabulary("item").to_list() == [5, 6, 9]
    assert grown.vocabulary("seen").to_list() == [5, 6, 9, 7, 8]
    assert grown.vocabulary("title").to_list() == [*first.vocabulary("title").to_list(), "d"]
    assert grown.schema["seen"].cardinality == first.schema["item"].cardinality + 2
    old = {"item": [5, 6, 9], "price": [1.0, 2.0, 3.0]}
    assert grown.transform(old).table.equals(first.transform(old).table)
    # the old one has not changed, and the new one grows on
    assert set(first.transform({"item": [7, 8]}).table["item"].to_pylist()) <= {1, 2}
    assert grown.extend({"item": [1]}).vocabulary("item").to_list()[-1] == 1
    assert grown.extend({"price": [3.0]}).schema == grown.schema


def test_growth_keeps_the_limits() -> None:
    made = tt.Preprocessor({"x": tt.Categorical(max_size=3, min_count=2)}).fit({"x": ["a", "a", "b", "b"]})
    grown = made.extend({"x": ["c", "c", "c", "d", "d", "e"]})
    assert grown.vocabulary("x").to_list() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="learnt from String values, but the new tables hold Int64"):
        made.extend({"x": [1, 1]})
