"""Vectors as files: read again by other libraries, whole or not there, streamed."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import twotower as tt
from tests.worlds import id_column
from twotower import Tags
from twotower.data.preprocessor import ROW_GROUP

ITEM = id_column("item_id", Tags.ITEM_ID, 99)
PRICE = tt.ColumnSchema("price", [Tags.ITEM, Tags.CONTINUOUS], "float32")


@pytest.fixture
def tower() -> tt.Encoder:
    return tt.Encoder(tt.Schema([ITEM, PRICE]), tt.MLPBlock([5], dropout=0.5, no_activation_last_layer=True))


@pytest.fixture
def items() -> tt.Dataset:
    rows = {"item_id": [7, 3, 99, 3], "price": [1.0, 2.0, 0.5, -1.0], "sku": ["a", "b", "c", "d"]}
    return tt.Dataset(rows, tt.Schema([ITEM, PRICE]))


def expected(tower: tt.Encoder, items: tt.Dataset) -> np.ndarray:
    with torch.no_grad():
        return tower.eval()(items.batch()).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("index", "ids"), [(Tags.ITEM_ID, [7, 3, 99, 3]), ("sku", ["a", "b", "c", "d"])])
def test_parquet(
    tower: tt.Encoder, items: tt.Dataset, index: Tags, ids: list[object], batch_size: int, tmp_path: Path
) -> None:
    assert tt.export_embeddings(tower, items, index, tmp_path / "v.parquet", batch_size=batch_size) == 4
    assert tower.training
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.schema.field(1) == pa.field("vector", pa.list_(pa.float32(), 5))
    assert table.column(0).to_pylist() == ids
    frame = pl.read_parquet(tmp_path / "v.parquet")
    np.testing.assert_allclose(frame["vector"].to_numpy(), expected(tower, items), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]


def test_npy(tower: tt.Encoder, items: tt.Dataset, tmp_path: Path) -> None:
    for _ in range(2):  # the second time in place of the first
        tt.export_embeddings(tower, items, "item_id", tmp_path / "v", "npy", batch_size=3)
    vectors = np.load(tmp_path / "v" / "vectors.npy", mmap_mode="r")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(tower, items), atol=1e-6)
    assert pl.read_parquet(tmp_path / "v" / "ids.parquet").to_dict(as_series=False) == {"item_id": [7, 3, 99, 3]}


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_files_are_streamed_in_their_order(tower: tt.Encoder, format: str, tmp_path: Path) -> None:
    """Several files, row groups smaller and larger than a batch and than a part of what is written."""
    sizes = [10, ROW_GROUP, 3, 70_001]
    for number, rows in enumerate(sizes):
        start = sum(sizes[:number])
        ids = np.arange(start, start + rows)
        part = pl.DataFrame({"item_id": ids % 100, "price": ids.astype(np.float32) / 1000, "row": ids})
        part.write_parquet(tmp_path / f"{number}.parquet", row_group_size=40_000)
    paths = [tmp_path / f"{number}.parquet" for number in range(4)]
    data = tt.Dataset(paths, tt.Schema([ITEM, PRICE]))
    total = tt.export_embeddings(tower, data, "row", tmp_path / "v", format, batch_size=4096)
    assert total == sum(sizes)
    if format == "npy":
        rows, vectors = pl.read_parquet(tmp_path / "v" / "ids.parquet")["row"], np.load(tmp_path / "v" / "vectors.npy")
    else:
        frame = pl.read_parquet(tmp_path / "v")
        rows, vectors = frame["row"], frame["vector"].to_numpy()
        assert max(group.num_rows for group in _groups(tmp_path / "v")) <= 65_536
    assert rows.to_list() == list(range(total))
    np.testing.assert_allclose(vectors, expected(tower, tt.Dataset(paths, data.schema)), atol=1e-5)


def _groups(path: Path) -> list[pq.RowGroupMetaData]:
    file = pq.ParquetFile(path)
    return [file.metadata.row_group(number) for number in range(file.num_row_groups)]


def test_raw_ids(tmp_path: Path) -> None:
    raw = {"item_id": ["x", "y", "y", "z"]}
    preprocessor = tt.Preprocessor({"item_id": tt.Categorical(Tags.ITEM_ID)}).fit(raw)
    tower = tt.EmbeddingEncoder(preprocessor.schema, 3)
    items = preprocessor.transform({"item_id": ["z", "x"]})
    tt.export_embeddings(tower, items, Tags.ITEM_ID, tmp_path / "v", preprocessor=preprocessor)
    frame = pl.read_parquet(tmp_path / "v")
    assert frame["item_id"].to_list() == ["z", "x"]
    assert frame["vector"].to_list() == tower.table.weight[[4, 3]].tolist()  # y is the most frequent, and so 2
    with pytest.raises(ValueError, match="1 of 2 ids in column 'item_id' have no raw value"):
        tt.export_embeddings(
            tower,
            preprocessor.transform({"item_id": ["z", "new"]}),
            "item_id",
            tmp_path / "v",
            preprocessor=preprocessor,
        )
    assert pl.read_parquet(tmp_path / "v").equals(frame)


def test_what_cannot_be_written(tower: tt.Encoder, items: tt.Dataset, tmp_path: Path) -> None:
    for wrong, text in (
        ({"format": "csv"}, "unknown format 'csv': choose from 'npy', 'parquet'"),
        ({"index": "id"}, "lacks the index column. unknown column 'id'"),
        ({"index": Tags.USER_ID}, "expected one column tagged 'user_id'"),
    ):
        with pytest.raises(ValueError, match=text):
            tt.export_embeddings(**{"tower": tower, "dataset": items, "index": "sku", "path": tmp_path / "v"} | wrong)  # type: ignore[arg-type]
    for column, values, text in (
        ("vector", [1, 2, 3, 4], "'vector', as the vectors are: rename it"),
        ("code", [1, None, 3, 4], "1 of 4 ids in column 'code' are missing"),
    ):
        other = tt.Dataset(items.table.append_column(column, pa.array(values)), items.schema)
        with pytest.raises(ValueError, match=text):
            tt.export_embeddings(tower, other, column, tmp_path / "v")
    assert not list(tmp_path.iterdir())
