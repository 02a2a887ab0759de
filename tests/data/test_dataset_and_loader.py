"""Tables in, batches out: nothing wrapped, dropped or reordered that should not be."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import twotower as tt
from tests.worlds import clubs, id_column
from twotower import Tags

BIG = 3_000_000_000
COLUMNS = {"id": [BIG, 1, 2], "tags": [[1], [], [2, 3]], "x": [0.5, 1.5, 2.5], "name": ["a", "b", "c"]}


def test_every_source_gives_the_same_table(tmp_path) -> None:  # type: ignore[no-untyped-def]
    frame = pl.DataFrame(COLUMNS)
    frame.write_parquet(tmp_path / "a.parquet")
    sources = [
        COLUMNS, frame, frame.to_arrow(), pd.DataFrame(COLUMNS), tmp_path / "a.parquet", str(tmp_path), str(tmp_path / "*.parquet"),
        [tmp_path / "a.parquet"], tt.Dataset(COLUMNS),
    ]  # fmt: skip
    for source in sources:
        data = tt.Dataset(source)
        assert data.to_polars().to_dict(as_series=False) == COLUMNS
        assert data.num_rows == 3
        assert data.to_pandas()["id"].tolist() == COLUMNS["id"]


def test_ids_stay_int64() -> None:
    batch = tt.Dataset(COLUMNS).batch(tt.Schema(["id", "tags", "x"]))
    assert batch["id"].tolist() == [BIG, 1, 2]
    assert batch["tags"].to_lists() == [[1], [], [2, 3]]
    assert batch["x"].dtype == torch.float32
    with pytest.raises(ValueError, match="column 'u' is uint64 and holds 18446744073709551615, more than int64"):
        tt.Dataset(pa.table({"u": pa.array([2**64 - 1], pa.uint64())})).batch()


def test_wrong_columns_are_named() -> None:
    with pytest.raises(
        ValueError, match="column 'name' is (large_)?string.*but towers read integers and floats.*Preprocessor"
    ):
        tt.Dataset(COLUMNS).batch(tt.Schema(["name"]))
    with pytest.raises(
        ValueError, match="the schema names a column that the data lacks. unknown column 'ids'.*Did you mean 'id'"
    ):
        tt.Dataset(COLUMNS, tt.Schema(["ids"]))
    with pytest.raises(ValueError, match="column 'x' has 1 nulls in 2 rows"):
        tt.Dataset({"x": [1.0, None]}).batch()
    with pytest.raises(ValueError, match="column 'x' has lists with 1 nulls inside"):
        tt.Dataset({"x": [[1, None], [2]]}).batch()
    domain = tt.Schema([id_column("id", Tags.ITEM_ID, 5)])
    with pytest.raises(ValueError, match="column 'id' holds ids from 1 to 3000000000, but its domain is 0 to 5"):
        tt.Dataset(COLUMNS, domain).batch()
    with pytest.raises(ValueError, match="unknown column 'y'"):
        tt.Dataset(COLUMNS).select(["y"])
    assert tt.Dataset(COLUMNS).select("id").column_names == ["id"]


def test_wrong_sources_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no Parquet file at .*nothing.parquet"):
        tt.Dataset(tmp_path / "nothing.parquet")
    with pytest.raises(ValueError, match="cannot read a int as a table"):
        tt.Dataset(7)  # type: ignore[arg-type]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": [1]}), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"2\.parquet lacks the column \'a\' that .*1\.parquet has"):
        tt.Dataset(tmp_path)


def test_columns_of_any_kind_and_rows() -> None:
    data = tt.Dataset(
        {
            "t": torch.tensor([1, 2]),
            "pairs": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            "array": np.array([[1, 2, 3], [4, 5, 6]]).T[:2],
            "shared": np.broadcast_to([1, 2], (2, 2)),  # not to be written to
            "ragged": tt.Ragged.from_lists([[7], []]),
            "series": pl.Series([[1, 2], [3]]),
            "arrow": pa.chunked_array([[5], [6]]),
            "list": [True, False],
        }
    )
    batch = data.batch()
    assert {name: c.to_lists() if isinstance(c, tt.Ragged) else c.tolist() for name, c in batch.items()} == {
        "t": [1, 2],
        "pairs": [[1.0, 2.0], [3.0, 4.0]],
        "array": [[1, 4], [2, 5]],
        "shared": [[1, 2], [1, 2]],
        "ragged": [[7], []],
        "series": [[1, 2], [3]],
        "arrow": [5, 6],
        "list": [1, 0],
    }
    assert isinstance(batch["pairs"], torch.Tensor)
    rows = tt.Dataset([{"u": 1, "l": ["a"]}, {"u": 2, "l": [], "x": 0.5}])
    assert rows.table.to_pydict() == {"u": [1, 2], "l": [["a"], []], "x": [None, 0.5]}
    lazy = pl.LazyFrame(COLUMNS).filter(pl.col("id") < 3)
    assert tt.Dataset(lazy).table.to_pydict() == {name: values[1:] for name, values in COLUMNS.items()}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([], "an empty list is no table: expected paths of Parquet files, or rows as dicts"),
        ([1, 2], "a list must hold paths alone, or rows as dicts alone, got a int"),
        ([{"a": 1}, "b.parquet"], "a list must hold paths alone, or rows as dicts alone, got a dict"),
        ({"a": [1], "b": [1, "x"]}, "column 'b' cannot be read: .* Expected one value of one kind a row"),
        ([{"b": 1}, {"b": "x"}], "column 'b' cannot be read: "),
        ({"a": [1, 2], "b": [1]}, r"the columns are of different lengths: {'a': 2, 'b': 1}"),
        ({"a": [1], "b": 5}, "column 'b' cannot be read: "),
        ({"b": "text"}, "column 'b' is one text, 'text'"),
        ({"b": [object()]}, "column 'b' cannot be read: "),
        ({"b": [2**70]}, "column 'b' cannot be read: "),
        ({"b": torch.zeros(2, 2, 2)}, r"column 'b' cannot be read: it has shape \(2, 2, 2\)"),
        ({"b": np.zeros((2, 0))}, r"column 'b' cannot be read: it has shape \(2, 0\)"),
        ({"b": np.array(5)}, r"column 'b' cannot be read: it has shape \(\)"),
        ({"b": torch.zeros(2, dtype=torch.bfloat16)}, "column 'b' cannot be read: "),
        ({5: [1]}, "a column's name must be text, got 5 of type int"),
        (pa.table([[1], [2], [3]], names=["a", "b", "a"]), r"several columns of one name: \['a'\]. Rename them"),
    ],
)
def test_what_is_no_column_is_named(source: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        tt.Dataset(source)  # type: ignore[arg-type]


def test_parquet_keeps_the_schema_beside_the_data(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=50)
    data.to_parquet(tmp_path / "train")
    again = tt.Dataset(tmp_path / "train")
    assert again.schema == data.schema
    assert again.table.equals(data.table)
    assert [p.name for p in (tmp_path / "train").iterdir() if p.name.startswith(".part")] == []


def test_schemas_beside_several_paths_must_agree(tmp_path) -> None:  # type: ignore[no-untyped-def]
    schema, other = (tt.Schema([id_column("i", Tags.ITEM_ID, largest)]) for largest in (9, 99))
    for name, stored in (("a1", schema), ("a2", schema), ("b", other)):
        tt.Dataset({"i": [1, 2]}, stored).to_parquet(tmp_path / "days" / name)
    days = tmp_path / "days"
    (days / "bare").mkdir()
    pq.write_table(pa.table({"i": [3]}), days / "bare" / "x.parquet")
    for source in (
        [days / "a1", days / "a2"],
        days / "a*",
        [days / "a1" / "part.parquet", days / "a2"],
        days / "a*" / "*.parquet",
    ):
        assert tt.Dataset(source).schema == schema
        assert tt.Dataset(source).num_rows == 4
    assert tt.Dataset([days / "bare", days / "a1"]).schema == schema  # one without says nothing against it
    for source in ([days / "a1", days / "b"], days / "*", days):  # as subfolders too
        with pytest.raises(
            ValueError, match=r"schemas stored beside '.*' and '.*' differ. Give the one to read by: schema="
        ):
            tt.Dataset(source)
        assert tt.Dataset(source, other).schema == other
    assert tt.Dataset([days / "bare"]).schema["i"].int_domain is None


def test_unique_rows_by_features() -> None:
    schema = tt.Schema(
        [
            id_column("user_id", Tags.USER_ID, 9),
            tt.ColumnSchema("age", tags=[Tags.USER], dtype="int64"),
            id_column("item_id", Tags.ITEM_ID, 9),
        ]
    )
    data = tt.Dataset({"user_id": [1, 1, 2, 3, 4, 3], "age": [10, 11, 20, 30, 40, 31], "item_id": [0] * 6}, schema)
    unique = tt.unique_rows_by_features(data, Tags.USER, Tags.USER_ID)
    assert unique.table.to_pydict() == {"user_id": [1, 2, 3, 4], "age": [10, 20, 30, 40]}
    assert unique.schema.column_names == ["user_id", "age"]
    with pytest.raises(ValueError, match="expected one column tagged"):
        tt.unique_rows_by_features(data, Tags.SESSION)


def test_sample_batch() -> None:
    data = tt.Dataset({"x": list(range(10))})
    assert tt.sample_batch(data, 3)["x"].tolist() == [0, 1, 2]
    shuffled = tt.sample_batch(data, 10, shuffle=True, seed=1)["x"].tolist()
    assert shuffled != list(range(10))
    assert sorted(shuffled) == list(range(10))


def test_an_epoch_is_every_row_once_in_a_new_order() -> None:
    data = tt.Dataset({"x": list(range(10)), "l": [[i] * (i % 3) for i in range(10)]})
    loader = tt.Loader(data, batch_size=4, seed=3)
    assert len(loader) == 3
    epochs = []
    for _ in range(2):
        batches = list(loader)
        assert [len(batch["x"]) for batch in batches] == [4, 4, 2]
        rows = [x for batch in batches for x in batch["x"].tolist()]
        assert [r for batch in batches for r in batch["l"].to_lists()] == [[x] * (x % 3) for x in rows]
        assert sorted(rows) == list(range(10))
        epochs.append(rows)
    assert epochs[0] != epochs[1]
    again = tt.Loader(data, batch_size=4, seed=3)
    assert [x for batch in again for x in batch["x"].tolist()] == epochs[0]
    assert [len(b["x"]) for b in tt.Loader(data, batch_size=4, drop_last=True)] == [4, 4]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 7])
def test_resume_at_any_batch(after: int) -> None:
    data = tt.Dataset({"x": list(range(11))})

    def batches(loader: tt.Loader, number: int) -> list[list[int]]:
        out: list[list[int]] = []
        while len(out) < number:
            for batch in loader:
                out.append(batch["x"].tolist())
                if len(out) == number:
                    break
        return out

    whole = batches(tt.Loader(data, batch_size=4, seed=5), 12)
    first = tt.Loader(data, batch_size=4, seed=5)
    batches(first, after)
    second = tt.Loader(data, batch_size=4)
    second.load_state_dict(first.state_dict())
    assert batches(second, 12 - after) == whole[after:]


def test_a_look_at_one_batch_takes_nothing_from_the_next_epoch() -> None:
    loader = tt.Loader(tt.Dataset({"x": list(range(10))}), batch_size=4)
    next(iter(loader))
    assert sorted(x for batch in loader for x in batch["x"].tolist()) == list(range(10))


def test_loader_errors() -> None:
    data = tt.Dataset({"x": [1, 2]})
    for number in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {number}"):
            tt.Loader(data, number)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"buffer_rows must be a whole number of at least 1, got {number}"):
            tt.Loader(data, 1, buffer_rows=number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no batch of 3 rows can be made from 2 rows with drop_last=True"):
        tt.Loader(data, 3, drop_last=True)
    with pytest.raises(TypeError, match="Loader: unknown option 'suffle'.*Did you mean 'shuffle'"):
        tt.Loader(data, 2, suffle=True)  # type: ignore[call-arg]
    loader = tt.Loader(data, 1)
    with pytest.raises(ValueError, match=r"taken by another Loader: {'rows': \(3, 2\), 'batch_size': \(7, 1\)"):
        loader.load_state_dict({"seed": 0, "epoch": 0, "batches_done": 0, "rows": 3, "batch_size": 7, "shuffle": 1})
    assert tt.Loader(data, np.int64(2)).batch_size == 2
    with pytest.raises(ValueError, match="column 'x' holds 2 nan or infinite numbers"):
        tt.Dataset({"x": [1.0, float("nan"), float("inf")]}).batch()
    assert tt.Dataset({"a": [1]}, tt.Schema([])).schema == tt.Schema([])


def test_catalog() -> None:
    data = clubs(rows=2000)
    catalog = tt.Catalog.from_dataset(data, "item_id", data.schema.select_by_tag(Tags.ITEM))
    assert torch.equal(catalog.ids, catalog.ids.unique())
    found = catalog.lookup(torch.tensor([7, 3, 7]))
    assert found["item_club"].tolist() == [7 % 4, 3 % 4, 7 % 4]
    with pytest.raises(
        ValueError, match=r"1 of the sampled ids have no row in the catalogue of 40 candidates, such as \[99\]"
    ):
        catalog.lookup(torch.tensor([3, 99]))
    rows = data.to_polars()
    twice = pl.concat([rows.with_columns(item_club=pl.lit(club)) for club in (0, 1)])
    changing = tt.Dataset(twice, data.schema)
    with pytest.warns(UserWarning, match="40 rows give an id of 'item_id' other features"):
        kept = tt.Catalog.from_dataset(changing, "item_id", data.schema.select_by_tag(Tags.ITEM))
    assert kept.features["item_club"].unique().tolist() == [0]


def test_maps_are_chained_in_order_and_keep_the_position() -> None:
    loader = tt.Loader(tt.Dataset({"x": list(range(10))}), batch_size=4, shuffle=False)
    mapped = loader.map(lambda batch: batch["x"] + 1).map(lambda x: (x * 10).tolist())
    assert len(mapped) == 3
    assert list(mapped) == [[10, 20, 30, 40], [50, 60, 70, 80], [90, 100]]
    batches = iter(mapped)
    next(batches)
    again = tt.Loader(loader.dataset, batch_size=4, shuffle=False).map(lambda batch: batch["x"].tolist())
    again.load_state_dict(mapped.state_dict())
    assert list(again) == [[4, 5, 6, 7], [8, 9]]


def test_to_target_splits_features_from_targets() -> None:
    columns = {"u": [1, 2], "i": [5, 6], "click": [0, 1], "w": [0.5, 1.0]}
    schema = tt.Schema(
        [
            tt.ColumnSchema("u", [Tags.USER_ID]),
            tt.ColumnSchema("i", [Tags.ITEM_ID]),
            tt.ColumnSchema("click", [Tags.BINARY_CLASSIFICATION]),
        ]
    )
    batch = tt.Dataset(columns).batch()
    features, target = tt.ToTarget(schema)(batch)  # what the schema calls a target
    assert list(features) == ["u", "i", "w"]
    assert target.tolist() == [0, 1]
    for chosen in ("i", Tags.ITEM_ID, schema["i"], schema.select_by_tag(Tags.ITEM)):
        to_target = tt.ToTarget(schema, chosen)
        features, targets = to_target(batch)
        assert list(features) == ["u", "w"]
        assert {name: column.tolist() for name, column in targets.items()} == {"i": [5, 6], "click": [0, 1]}
        assert to_target.schema.targets.column_names == ["i", "click"]
        assert Tags.ITEM_ID in to_target.schema["i"].tags
    with pytest.raises(ValueError, match="unknown column or tag 'clik'.*Did you mean 'click'"):
        tt.ToTarget(schema, "clik")
    with pytest.raises(ValueError, match="unknown column or tag 'session'"):
        tt.ToTarget(schema, Tags.SESSION)
    with pytest.raises(ValueError, match="there is no target: name one"):
        tt.ToTarget(schema.excluding_targets())
    with pytest.raises(ValueError, match="the batch lacks a column. unknown column 'click'"):
        tt.ToTarget(schema)({"u": batch["u"]})
