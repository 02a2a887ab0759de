"""Raw values to ids and back, by hand."""

import datetime
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import twotower as tt
from twotower import Categorical, Numeric, Tags, Text

EVENTS = {
    "user": ["u9", "u2", "u9", "u9", "u2", "u5"],
    "item": [30, 10, 30, 20, 10, 30],
    "seen": [[], [30, 30], [10], None, [20], []],
    "note": ["Good, good!", "bad", None, "A good film", "bad", ""],
    "price": [1.0, 2.0, 3.0, 4.0, 5.0, 9.0],
}


def fitted() -> tt.Preprocessor:
    return tt.Preprocessor(
        {
            "user": Categorical((Tags.USER_ID,), min_count=2),
            "item": Categorical((Tags.ITEM_ID,)),
            "seen": Categorical((Tags.USER,), share="item"),
            "note": Text((Tags.ITEM,), min_count=2),
            "price": Numeric((Tags.ITEM,)),
        }
    ).fit(EVENTS)


def test_ids_by_falling_frequency() -> None:
    rows = fitted().transform(EVENTS).table.to_pydict()
    # u9 three times, u2 twice, u5 once and so unknown
    assert rows["user"] == [2, 3, 2, 2, 3, 1]
    # with the lists: 30 five times, 10 three, 20 twice
    assert rows["item"] == [2, 3, 2, 4, 3, 2]
    assert rows["seen"] == [[], [2, 2], [3], [], [4], []]
    # good three times, bad twice; "a" and "film" once each
    assert rows["note"] == [[2, 2], [3], [], [1, 2, 1], [3], []]
    # mean 4, deviation sqrt((9 + 4 + 1 + 0 + 1 + 25) / 6)
    deviation = (40 / 6) ** 0.5
    assert rows["price"] == pytest.approx([(p - 4) / deviation for p in EVENTS["price"]], abs=1e-6)


def test_ties_go_by_value() -> None:
    made = tt.Preprocessor({"x": Categorical()}).fit({"x": ["b", "a", "c", "c"]})
    assert made.transform({"x": ["c", "a", "b"]}).table.to_pydict() == {"x": [2, 3, 4]}


def test_null_and_unknown() -> None:
    made = tt.Preprocessor({"x": Categorical()}).fit({"x": ["a", "b", "b", None]})
    assert made.transform({"x": [None, "zzz", "b", "a"]}).table.to_pydict() == {"x": [0, 1, 2, 3]}
    assert made.schema["x"].cardinality == 4
    lists = tt.Preprocessor({"x": Categorical()}).fit({"x": [[1, 1], [2]]})
    assert lists.transform({"x": [[2, None, 7], None]}).table.to_pydict() == {"x": [[3, 0, 1], []]}


def test_schema_says_how_to_read_the_columns() -> None:
    schema = fitted().schema
    assert Tags.ITEM_ID in schema["item"].tags
    assert Tags.CATEGORICAL in schema["item"].tags
    assert schema["seen"].int_domain == schema["item"].int_domain == tt.Domain(0, 4, "item")
    assert schema["seen"].is_ragged
    assert schema["note"].is_ragged
    assert Tags.CONTINUOUS in schema["price"].tags
    target = tt.Preprocessor({"like": Numeric((Tags.BINARY_CLASSIFICATION,), scale=None)}).fit({"like": [0, 1]})
    assert target.transform({"like": [1, 0]}).table.to_pydict() == {"like": [1.0, 0.0]}
    assert Tags.CONTINUOUS not in target.schema["like"].tags


def test_one_tag_needs_no_tuple(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = tt.Preprocessor(
        {"x": Categorical(Tags.ITEM_ID), "p": Numeric("item"), "t": Text(tags=Tags.ITEM, min_count=1)}
    )
    made.fit({"x": [1], "p": [2.0], "t": ["a"]}).save(tmp_path / "p")
    for schema in (made.schema, tt.Preprocessor.load(tmp_path / "p").schema):
        assert schema["x"].tags == tt.TagSet([Tags.ITEM_ID, Tags.CATEGORICAL])
        assert schema["p"].tags == tt.TagSet([Tags.ITEM, Tags.CONTINUOUS])
        assert schema["t"].tags == tt.TagSet([Tags.ITEM, Tags.CATEGORICAL])


def test_several_tables_teach_one_vocabulary() -> None:
    made = tt.Preprocessor({"item": Categorical(), "user": Categorical()}).fit(
        {"item": [7, 7], "user": [1, 2]}, {"item": [9, 7]}
    )
    assert made.transform({"item": [9, 7]}).table.to_pydict() == {"item": [3, 2]}


def test_ids_that_are_learnt_from_the_events_alone() -> None:
    events, items = {"user": [1, 2], "item": ["b", "b"]}, {"item": ["a", "b", "c"]}
    made = tt.Preprocessor(
        {
            "item": Categorical(Tags.ITEM_ID),
            "known": Categorical(Tags.ITEM, source="item", beside="user"),
            "also": Categorical(Tags.ITEM, share="item", learns=False),
        }
    ).fit(events, items | {"also": [["a", "zz"], [], ["c"]]})
    # b occurs three times, a and c once; what only `also` holds is unknown
    assert made.vocabulary("item").to_list() == ["b", "a", "c"]
    assert made.vocabulary("known").to_list() == ["b"]
    rows = made.transform(items | {"also": [["a", "zz"], [], ["c"]]}).table.to_pydict()
    assert rows == {"item": [3, 2, 4], "known": [1, 2, 1], "also": [[3, 1], [], [4]]}
    with pytest.raises(ValueError, match="learns=False uses another column's vocabulary"):
        Categorical(learns=False)


def test_big_and_string_ids_come_back() -> None:
    big = tt.Preprocessor({"id": Categorical()}).fit({"id": [3_000_000_000, 3_000_000_000, -5]})
    assert big.inverse("id", big.transform({"id": [-5, 3_000_000_000]}).table["id"].to_pylist()) == [-5, 3_000_000_000]
    made = fitted()
    assert made.inverse("user", made.transform(EVENTS).batch()["user"]) == ["u9", "u2", "u9", "u9", "u2", None]
    assert made.inverse("seen", [2, 3, 0]) == [30, 10, None]
    with pytest.raises(ValueError, match="ids of 'user' go from 0 to 3, got 0 to 9"):
        made.inverse("user", [0, 9])
    assert made.inverse("price", made.transform(EVENTS).batch()["price"]) == pytest.approx(EVENTS["price"], abs=1e-5)
    with pytest.raises(ValueError, match="column 'price' has no vocabulary"):
        made.vocabulary("price")


def test_the_same_codes_from_every_kind_of_table() -> None:
    made = fitted()
    expected = made.transform(EVENTS).table.to_pydict()
    for table in (
        pl.DataFrame(EVENTS),
        pa.table(EVENTS),
        pl.DataFrame(EVENTS).with_columns(pl.col("item").cast(pl.Int16)),
    ):
        assert made.transform(table).table.to_pydict() == expected
    plain = pd.DataFrame({"user": EVENTS["user"], "item": EVENTS["item"]})
    assert made.transform(plain).table.to_pydict() == {name: expected[name] for name in plain}


def test_other_columns_pass_through_unread() -> None:
    data = fitted().transform({"item": [10], "raw": ["kept"]})
    assert data.table.to_pydict() == {"item": [3], "raw": ["kept"]}
    assert data.schema.column_names == ["item"]
    assert list(data.batch()) == ["item"]


def test_save_and_load(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = fitted()
    made.save(tmp_path / "p")
    again = tt.Preprocessor.load(tmp_path / "p")
    assert again.transform(EVENTS).table.equals(made.transform(EVENTS).table)
    assert again.schema == made.schema
    assert again.inverse("item", [4]) == [20]
    made.save(tmp_path / "p")  # again over the old one
    assert {p.suffix for p in (tmp_path / "p").iterdir()} == {".json", ".parquet"}
    with pytest.raises(ValueError, match="no preprocessor at"):
        tt.Preprocessor.load(tmp_path)


def test_errors_name_the_column() -> None:
    with pytest.raises(ValueError, match="learnt nothing yet: call fit"):
        tt.Preprocessor({"x": Categorical()}).transform({"x": [1]})
    with pytest.raises(
        ValueError, match="a declared column is in none of the tables. unknown column 'usr'.*Did you mean 'user'"
    ):
        tt.Preprocessor({"usr": Categorical()}).fit(EVENTS)
    with pytest.raises(ValueError, match="'x' cannot share a vocabulary. unknown column 'y'"):
        tt.Preprocessor({"x": Categorical(share="y"), "z": Categorical()})
    with pytest.raises(ValueError, match="column 'price' is declared Categorical, but holds Float64"):
        tt.Preprocessor({"price": Categorical()}).fit(EVENTS)
    with pytest.raises(ValueError, match="column 'user' is declared a number, but holds String"):
        tt.Preprocessor({"user": Numeric()}).fit(EVENTS)
    with pytest.raises(ValueError, match="column 'item' is declared Text, but holds Int64"):
        tt.Preprocessor({"item": Text()}).fit(EVENTS)
    made = fitted()
    with pytest.raises(ValueError, match="column 'item' holds String, but its vocabulary was learnt from Int64"):
        made.transform({"item": ["30"]})
    with pytest.raises(ValueError, match="column 'item' was learnt from one value a row, but now holds List"):
        made.transform({"item": [[30]]})
    with pytest.raises(ValueError, match="column 'price' has 2 missing numbers in 3 rows"):
        made.transform({"price": [1.0, None, float("nan")]})
    with pytest.raises(ValueError, match="column 'price' has 1 infinite numbers in 2 rows"):
        made.transform({"price": [1.0, float("inf")]})
    with pytest.raises(ValueError, match="has none of the columns"):
        made.transform({"other": [1]})
    with pytest.raises(ValueError, match="would mix Int64 and String"):
        tt.Preprocessor({"a": Categorical(), "b": Categorical(share="a")}).fit({"a": [1], "b": ["x"]})
    with pytest.raises(ValueError, match="declared Categorical, but holds Date"):
        tt.Preprocessor({"a": Categorical()}).fit({"a": [datetime.date(2026, 1, 1)]})
    with pytest.raises(
        ValueError, match="column 'a' holds 9223372036854775808, more than int64 can; make its ids text"
    ):
        tt.Preprocessor({"a": Categorical()}).fit(pl.DataFrame({"a": [2**63]}, schema={"a": pl.UInt64}))
    with pytest.raises(ValueError, match="unknown scale 'minmax'.*Did you mean 'min-max'"):
        Numeric(scale="minmax")


# ---- one row, other engines, files larger than memory


def test_one_dict_is_one_row() -> None:
    made = fitted()
    row = {"user": "u2", "seen": [30, 10], "note": None}
    expected = {"user": [3], "seen": [[2, 3]], "note": [[]]}
    assert made.transform(row).table.to_pydict() == expected
    assert made.transform({"seen": [30]}).table.to_pydict() == {"seen": [[2]]}
    assert made.transform({"seen": []}).table.to_pydict() == {"seen": [[]]}
    assert made.transform({"seen": [[30], None]}).table.to_pydict() == {"seen": [[2], []]}
    assert made.transform({"item": [30]}).table.to_pydict() == {"item": [2]}
    assert made.transform({"item": 30, "price": 4.0}).table.to_pydict() == {"item": [2], "price": [0.0]}


def raw_events(rows: int, seed: int = 0) -> pl.DataFrame:
    """Ties, nulls, empty lists, texts and skewed values."""
    rng = np.random.default_rng(seed)
    items = rng.zipf(1.5, rows) % 500
    lengths = rng.integers(0, 4, rows)
    return pl.DataFrame(
        {
            "user": [None if n % 17 == 0 else f"u{n}" for n in rng.integers(0, 300, rows)],
            "item": items.astype(np.int32),
            "seen": [list((rng.zipf(1.5, length) % 600).astype(np.int32)) for length in lengths],
            "title": rng.choice(["red card", "Blue card!", "birthday", ""], rows),
            "price": rng.lognormal(1.0, 2.0, rows).round(2),
            "age": rng.integers(18, 80, rows),
            "at": 1_500_000_000 + rng.integers(0, 10**7, rows),
            "born": 1_400_000_000 + rng.integers(0, 10**7, rows),
        },
        schema_overrides={"seen": pl.List(pl.Int32)},
    )


def every_kind() -> tt.Preprocessor:
    return tt.Preprocessor(
        {
            "user": Categorical(Tags.USER_ID, min_count=2, oov_buckets=3),
            "item": Categorical(Tags.ITEM_ID, max_size=300),
            "seen": Categorical(Tags.USER, share="item"),
            "title": Text(Tags.ITEM, ngram_range=(1, 2)),
            "price": Numeric(Tags.ITEM, scale="log"),
            "level": tt.Bucketized(Tags.ITEM, buckets=7, source="price"),
            "age": Numeric(Tags.USER),
            "at": tt.Timestamp(Tags.USER),
            "tenure": tt.Age("born", "at", Tags.USER),
            "user_hash": tt.Hashed(Tags.USER, buckets=64, source="user"),
        }
    )


def duckdb_of(frame: pl.DataFrame) -> object:
    import duckdb

    return duckdb.connect().from_arrow(frame.to_arrow())


ENGINES = {
    "polars": lambda frame: frame,
    "lazy polars": lambda frame: frame.lazy(),
    "arrow": lambda frame: frame.to_arrow(),
    "duckdb": duckdb_of,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_codes_on_every_engine(engine: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    frame = raw_events(3000)
    reference = every_kind().fit(frame)
    expected = reference.transform(frame)
    table = ENGINES[engine](frame)
    made = every_kind().fit(table)
    assert made.schema == reference.schema
    for name in ("user", "item", "title"):
        assert made.vocabulary(name).equals(reference.vocabulary(name))
    out = made.transform(table)
    for column in expected.schema:
        ours, theirs = out.to_polars()[column.name], expected.to_polars()[column.name]
        if column.dtype == "float32":  # sums in another order may end in another last bit
            np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-6, atol=1e-6)
        else:
            assert ours.to_list() == theirs.to_list(), column.name


@pytest.mark.filterwarnings("ignore")  # its own
def test_the_same_codes_on_spark(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed: pip install pyspark, and a Java runtime")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    frame = raw_events(300)
    spark = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        table = spark.createDataFrame(frame.to_arrow())
        reference = every_kind().fit(frame)
        made = every_kind().fit(table)
        for name in ("user", "item", "title"):
            assert made.vocabulary(name).equals(reference.vocabulary(name))
        out, expected = made.transform(table), reference.transform(frame)
        for column in expected.schema:
            if column.dtype != "float32":
                assert out.to_polars()[column.name].to_list() == expected.to_polars()[column.name].to_list(), (
                    column.name
                )
    finally:
        spark.stop()


def test_files_are_encoded_part_by_part(tmp_path) -> None:  # type: ignore[no-untyped-def]
    frame = raw_events(5000)
    for number in range(5):
        frame[number * 1000 : number * 1000 + 1000].write_parquet(
            tmp_path / f"day-{number}.parquet", row_group_size=300
        )
    made = every_kind().fit(str(tmp_path / "day-*.parquet"))
    whole = every_kind().fit(frame)
    assert made.schema == whole.schema
    out = made.transform_to_parquet(str(tmp_path / "day-*.parquet"), tmp_path / "encoded")
    assert out.schema == made.schema
    assert out.arrow_schema.field("item").type == pa.int32()
    assert tt.Dataset(tmp_path / "encoded").schema == made.schema  # it lies beside the data
    expected = whole.transform(frame)
    for name, column in expected.batch().items():
        ours = out.batch()[name]
        if isinstance(column, tt.Ragged):
            assert isinstance(ours, tt.Ragged)
            assert torch.equal(ours.offsets, column.offsets)
            ours, column = ours.values, column.values
        assert torch.allclose(ours, column, atol=1e-6), name  # type: ignore[arg-type]


def test_what_cannot_be_encoded_leaves_the_old_files(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    made = tt.Preprocessor({"price": Numeric()}).fit({"price": [1.0, 2.0]})
    made.transform_to_parquet({"price": [1.0]}, tmp_path / "out")
    pl.DataFrame({"price": [1.0, 2.0, 3.0, None]}).write_parquet(tmp_path / "bad.parquet", row_group_size=1)
    monkeypatch.setattr("twotower.data.raw.PART_ROWS", 1)  # so that the first parts are written before the last fails
    with pytest.raises(ValueError, match="column 'price' has 1 missing numbers"):
        made.transform_to_parquet(tmp_path / "bad.parquet", tmp_path / "out")
    assert tt.Dataset(tmp_path / "out").num_rows == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.parquet", "out"]


def test_save_and_load_of_every_kind(tmp_path) -> None:  # type: ignore[no-untyped-def]
    frame = raw_events(1000)
    made = every_kind().fit(frame)
    made.save(tmp_path / "p")
    again = tt.Preprocessor.load(tmp_path / "p")
    assert again.columns == made.columns
    assert again.schema == made.schema
    assert again.transform(frame).table.equals(made.transform(frame).table)
    assert again.extend(frame).schema == made.extend(frame).schema


# ---- a day without events, damage, and declarations that cannot be


@pytest.mark.parametrize("engine", ENGINES)
def test_tables_without_rows(engine: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = every_kind().fit(raw_events(200))
    nothing = ENGINES[engine](raw_events(1).clear())
    out = made.transform(nothing)
    assert out.num_rows == 0
    assert out.schema == made.schema
    assert made.transform_to_parquet(nothing, tmp_path / "out").num_rows == 0
    # and the next day's events take their place
    assert made.transform_to_parquet(ENGINES[engine](raw_events(5)), tmp_path / "out").num_rows == 5
    assert made.extend(nothing).schema == made.schema


def test_a_file_without_rows(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = every_kind().fit(raw_events(200))
    raw_events(1).clear().write_parquet(tmp_path / "x.parquet")
    assert made.transform(tmp_path / "x.parquet").num_rows == 0
    with pytest.raises(ValueError, match="column 'v' has no rows to learn the width of its vectors from"):
        tt.Preprocessor({"v": tt.Vector()}).fit(pl.DataFrame({"v": []}, schema={"v": pl.List(pl.Float32)}))


def test_a_lazy_frame_is_run_once(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    runs = []
    frame = raw_events(100).lazy().map_batches(lambda f: runs.append(1) or f, schema=None)  # type: ignore[func-returns-value]
    tt.Preprocessor({"title": Text(), "other": Text(source="title", ngram_range=(2, 2))}).fit(frame)
    assert len(runs) == 1


def test_damaged_folders_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = fitted()
    made.save(tmp_path / "p")
    (tmp_path / "p" / "vocabulary-1.parquet").unlink()
    with pytest.raises(ValueError, match=r"is damaged: \['vocabulary-1.parquet'\] are missing"):
        tt.Preprocessor.load(tmp_path / "p")
    (tmp_path / "p" / "preprocessor.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor.json is damaged"):
        tt.Preprocessor.load(tmp_path / "p")


def test_declarations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="column 'a' must be declared by Categorical"):
        tt.Preprocessor({"a": Categorical})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="columns 'a' and 'b' have one domain, 'x', but ids up to 4 and 5"):
        tt.Preprocessor({"a": tt.Hashed(buckets=4, domain="x"), "b": tt.Hashed(buckets=5, domain="x")}).fit(
            {"a": [1], "b": [1]}
        )
    with pytest.raises(ValueError, match="the tables have none of the columns .*'item'"):
        fitted().extend({"itm": [3]})
    for column in ("item", "note"):
        with pytest.raises(ValueError, match=f"ids of '{column}' must be whole numbers, got Float64"):
            fitted().inverse(column, [2.5])


def test_pretrained_vectors_of_new_ids_and_of_lists(tmp_path) -> None:  # type: ignore[no-untyped-def]
    column = tt.PretrainedVectors(
        {"item": ["x", "y"], "vector": [[1.0, 2.0], [3.0, 4.0]]}, id_column="item", source="seen"
    )
    made = tt.Preprocessor({"image": column}).fit({"seen": [["x"]]})
    grown = made.extend(vectors={"image": {"item": ["z", "x"], "vector": [[5.0, 6.0], [9.0, 9.0]]}})
    seen = {"seen": [["y", "z", "new"], [], ["x"]]}
    assert made.transform(seen).table["image"].to_pylist() == [[3, 1, 1], [], [2]]
    assert grown.transform(seen).table["image"].to_pylist() == [[3, 4, 1], [], [2]]
    # x keeps the vector that it had
    assert grown.vectors["image"].tolist() == [[0, 0], [0, 0], [1, 2], [3, 4], [5, 6]]
    assert len(made.vectors["image"]) == 4
    grown.save(tmp_path / "p")
    again = tt.Preprocessor.load(tmp_path / "p")
    assert again.transform(seen).table.equals(grown.transform(seen).table)
    with pytest.raises(ValueError, match="the table of vectors is not saved with the Preprocessor"):
        again.fit(seen)
    with pytest.raises(ValueError, match="2 numbers wide, the new ones 1"):
        made.extend(vectors={"image": {"item": ["z"], "vector": [[5.0]]}})
    with pytest.raises(ValueError, match="vectors belong to PretrainedVectors columns. unknown column 'picture'"):
        made.extend(vectors={"picture": {"item": ["z"], "vector": [[5.0, 1.0]]}})
    with pytest.raises(ValueError, match="the table of vectors lacks a column. unknown column 'id'"):
        tt.Preprocessor({"v": tt.PretrainedVectors({"item": [1], "vector": [[1.0]]})}).fit({"id": [1]})


def test_columns_keep_the_order_in_which_they_were_declared(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The one that shares stands before the one that owns the vocabulary, which is learnt first."""
    made = tt.Preprocessor({"seen": Categorical(share="item"), "item": Categorical()}).fit({"item": [1], "seen": [[1]]})
    made.save(tmp_path / "p")
    for each in (made, tt.Preprocessor.load(tmp_path / "p"), made.extend({"item": [2]})):
        assert each.schema.column_names == ["seen", "item"]
