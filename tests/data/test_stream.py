"""Streams of row groups against the table they are made of."""

import resource
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import twotower as tt
from tests.worlds import id_column
from twotower.data.batch import Batch
from twotower.data.catalog import Catalog

SIZES = (70, 30, 55, 45, 100, 20, 80)  # rows of the row groups, in two files
ROWS = sum(SIZES)


def table() -> pa.Table:
    n = np.arange(ROWS)
    lists = [[int(i)] * int(i % 4) for i in n]
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(n, 2).astype(np.float32)), 2)
    return pa.table(
        {"n": n, "half": (n / 2).astype(np.float32), "list": pa.array(lists, pa.list_(pa.int64())), "pair": pairs}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of three and four row groups."""
    start, whole = 0, table()
    for name, sizes in (("a", SIZES[:3]), ("b", SIZES[3:])):
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", whole.schema) as writer:
            for size in sizes:
                writer.write_table(whole.slice(start, size))
                start += size
    return tmp_path


def numbers(batches: list[Batch]) -> list[int]:
    return [int(n) for batch in batches for n in batch["n"]]


def stream(folder: Path, rows: int = 32, **options: object) -> tt.Loader:
    return tt.Loader(tt.Dataset(folder), rows, in_memory=False, **{"buffer_rows": 120, **options})


def test_every_row_once_and_whole_in_an_order_of_the_epoch(folder: Path) -> None:
    loader = stream(folder)
    first, second = list(loader), list(loader)
    assert [len(batch["n"]) for batch in first] == [32] * (ROWS // 32) + [ROWS % 32]
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(ROWS))
    assert numbers(first) != numbers(second) != list(range(ROWS))
    assert numbers(first) == numbers(list(stream(folder)))
    assert numbers(first) != numbers(list(stream(folder, seed=1)))
    for batch in first:
        n, lists = batch["n"], batch["list"]
        assert isinstance(n, torch.Tensor)
        assert isinstance(lists, tt.Ragged)
        assert torch.equal(batch["half"], n.float() / 2)
        assert torch.equal(batch["pair"], n.float()[:, None].expand(-1, 2))
        assert lists.to_lists() == [[i] * (i % 4) for i in n.tolist()]


def test_rows_of_a_window_are_mixed_over_its_row_groups(folder: Path) -> None:
    """One window holds everything: the order is a permutation of all rows, so neighbours seldom stay together."""
    order = np.array(numbers(list(stream(folder, buffer_rows=10_000))))
    assert (np.diff(order) == 1).sum() < 10
    assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.2
    assert numbers(list(stream(folder, shuffle=False))) == list(range(ROWS))


@pytest.mark.parametrize("done", range(0, 14))
def test_resume_after_any_batch(folder: Path, done: int) -> None:
    whole, broken = stream(folder), stream(folder)
    epochs = [numbers(list(whole)) for _ in range(3)]
    for _ in broken:  # one epoch, and a part of the next
        pass
    batches = iter(broken)
    for _ in range(min(done, len(broken))):
        next(batches)
    state = broken.state_dict()
    batches.close()  # type: ignore[attr-defined]
    resumed = stream(folder)
    resumed.load_state_dict(state)
    if 0 < done < len(broken):
        assert numbers(list(resumed)) == epochs[1][done * 32 :]
    assert numbers(list(resumed)) == epochs[2 if done > 0 else 1]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows_and_count_the_same_batches(
    folder: Path, world_size: int, in_memory: bool, drop_last: bool
) -> None:
    options = {"world_size": world_size, "drop_last": drop_last, "in_memory": in_memory}
    loaders = [tt.Loader(tt.Dataset(folder), 32, rank=rank, **options) for rank in range(world_size)]
    shares = [list(loader) for loader in loaders]
    assert {len(share) for share in shares} == {len(loaders[0])}
    assert len({tuple(len(b["n"]) for b in share) for share in shares}) == 1  # also each batch as long as the others'
    seen = [n for share in shares for n in numbers(share)]
    assert len(set(seen)) == len(seen) >= 0.7 * ROWS  # the row groups are few and uneven
    with pytest.raises(ValueError, match="7 row groups cannot be shared by 8 processes"):
        stream(folder, world_size=8)
    with pytest.raises(ValueError, match="0 <= rank < world_size, got rank 2 of 2"):
        stream(folder, rank=2, world_size=2)


def test_other_rows_have_another_fingerprint(folder: Path) -> None:
    assert stream(folder).fingerprint() == stream(folder, seed=3).fingerprint()
    other = pl.read_parquet(folder / "b.parquet").with_columns(pl.col("half") + 1).to_arrow().cast(table().schema)
    before = stream(folder).fingerprint()
    pq.write_table(other, folder / "b.parquet")
    assert stream(folder).fingerprint() != before


def test_files_that_fit_are_held_and_others_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tt.Dataset(folder)
    # 8 bytes for a number, two numbers in a pair, and the elements of the lists (an empty one counts as one value)
    lists = sum(max(i % 4, 1) for i in range(ROWS))
    assert data.files is not None
    assert data.files.size_in_memory(["n", "half", "pair", "list"]) == 8 * (4 * ROWS + lists)
    assert data.files.size_in_memory(["n"]) == 8 * ROWS
    for limit, streamed in ((8 * ROWS, False), (8 * ROWS - 1, True)):
        monkeypatch.setattr("twotower.data.loader.IN_MEMORY_BYTES", limit)
        loader = tt.Loader(data, 32, schema=data.schema.select_by_name(["n"]))
        assert (loader.state_dict()["buffer_rows"] > 0) == streamed
        assert sorted(numbers(list(loader))) == list(range(ROWS))
    with pytest.raises(ValueError, match="in_memory=False streams Parquet files, but this dataset is a table"):
        tt.Loader(tt.Dataset({"n": [1]}), 1, in_memory=False)


def test_a_transform_sees_every_batch(folder: Path) -> None:
    loader = stream(folder, transform=lambda batch: batch | {"n": batch["n"] * 10})
    assert sorted(numbers(list(loader))) == [10 * n for n in range(ROWS)]


def test_a_dataset_reads_what_is_asked_for(folder: Path) -> None:
    data = tt.Dataset(folder)
    assert (data.num_rows, data.column_names) == (ROWS, ["n", "half", "list", "pair"])
    assert data.select(["half"]).table.equals(table().select(["half"]))
    assert sum(len(frame) for frame in data.frames(["n"])) == ROWS
    assert data.table.equals(table())
    assert tt.Dataset(data).table.equals(table())


def test_urls(folder: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("a", "b"):
        files.pipe(f"/clicks/{name}.parquet", (folder / f"{name}.parquet").read_bytes())
    for url in ("memory://clicks", "memory://clicks/*.parquet"):
        assert tt.Dataset(url).table.equals(table())
    assert sorted(numbers(list(tt.Loader(tt.Dataset("memory://clicks"), 32, in_memory=False)))) == list(range(ROWS))
    with pytest.raises(ValueError, match="no Parquet file at 'memory://nothing'"):
        tt.Dataset("memory://nothing")


def test_fit_on_a_stream_is_fit_on_its_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches give the same model; the catalogue is put together from the row groups."""
    schema = tt.Schema(
        [id_column("u", tt.Tags.USER_ID, 8), id_column("i", tt.Tags.ITEM_ID, 12), id_column("c", tt.Tags.ITEM, 3)]
    )
    n = np.arange(400)
    rows = pl.DataFrame({"u": n % 9, "i": (n * n) % 13, "c": (n * n) % 13 % 4})
    rows.write_parquet(folder / "fit.parquet", row_group_size=64)
    weights = []
    for streamed in (False, True):
        monkeypatch.setattr("twotower.data.loader.IN_MEMORY_BYTES", 0 if streamed else 2**30)
        torch.manual_seed(0)
        towers = [tt.Encoder(schema.select_by_tag(tag), tt.MLPBlock([4])) for tag in (tt.Tags.USER, tt.Tags.ITEM)]
        towers[1] = tt.Encoder(schema.select_by_name(["i", "c"]), tt.MLPBlock([4]))
        model = tt.TwoTowerModelV2(*towers)
        data = tt.Dataset(folder / "fit.parquet", schema)
        model.fit(data, batch_size=50, epochs=2, shuffle=False, verbose=False)
        weights.append(model.state_dict())
        catalog = Catalog.from_dataset(tt.Dataset(rows, schema), "i", schema.select_by_name(["i", "c"]))
        assert model.catalog is not None
        assert torch.equal(model.catalog.ids, catalog.ids)
        assert all(torch.equal(model.catalog.features[name], catalog.features[name]) for name in ("i", "c"))
    for name, one in weights[0].items():
        assert torch.equal(one, weights[1][name]), name


# ---- files that are not what they should be


def test_foreign_and_damaged_files_are_named(folder: Path) -> None:
    (folder / "c.parquet").write_text('{"not": "parquet"}')
    with pytest.raises(ValueError, match=r"c\.parquet cannot be read as Parquet: .* Is it whole"):
        tt.Dataset(folder)
    (folder / "c.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"c\.parquet cannot be read as Parquet"):
        tt.Dataset(folder)
    whole = bytearray((folder / "a.parquet").read_bytes())
    whole[4:400] = bytes(396)  # data pages of the first row group; the footer is whole
    (folder / "c.parquet").write_bytes(whole)
    for in_memory in (False, True):
        with pytest.raises(ValueError, match=r"c\.parquet, row group 0, column 'n': the file is damaged"):
            list(tt.Loader(tt.Dataset(folder / "c.parquet"), 10, in_memory=in_memory))
    second = pq.ParquetFile(folder / "a.parquet").metadata.row_group(1).column(1)  # "half"
    whole = bytearray((folder / "a.parquet").read_bytes())
    start = second.dictionary_page_offset or second.data_page_offset
    whole[start : start + second.total_compressed_size] = bytes(second.total_compressed_size)
    (folder / "c.parquet").write_bytes(whole)
    data = tt.Dataset(folder / "c.parquet")
    for read in (
        lambda: data.table,
        lambda: data.select(["n", "half"]),
        lambda: list(data.frames(["half"])),
        data.batch,
    ):
        with pytest.raises(ValueError, match=r"c\.parquet, row group 1, column 'half': the file is damaged"):
            read()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"u": [1]}, r"c\.parquet lacks the column 'i' that .*a\.parquet has"),
        ({"u": [1], "i": ["x"]}, r"c\.parquet: column 'i' is string, but int64 in .*a\.parquet"),
        ({"u": [1], "i": [1], "z": [1]}, r"c\.parquet has the columns \['z'\] more than .*a\.parquet"),
    ],
)
def test_other_columns_are_named(tmp_path: Path, columns: dict[str, list[object]], expected: str) -> None:
    pq.write_table(pa.table({"u": [1, 2], "i": [3, 4]}), tmp_path / "a.parquet")
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=expected):
        tt.Dataset(tmp_path)


@pytest.mark.parametrize("in_memory", [False, None])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, None, 4], r"a\.parquet, row group 1: column 'i' has 1 nulls in 2 rows"),
        ([1, 2, 3, 40], r"a\.parquet, row group 1: column 'i' holds ids from 3 to 40, but its domain is 0 to 9"),
    ],
)
def test_bad_values_are_named_with_their_row_group(
    tmp_path: Path, values: list[int | None], expected: str, in_memory: bool | None
) -> None:
    pq.write_table(pa.table({"i": values}), tmp_path / "a.parquet", row_group_size=2)
    data = tt.Dataset(tmp_path / "a.parquet", tt.Schema([id_column("i", tt.Tags.ITEM_ID, 9)]))
    with pytest.raises(ValueError, match=expected):
        list(tt.Loader(data, 2, shuffle=False, in_memory=in_memory))


def test_a_file_without_rows_is_a_dataset_without_rows(tmp_path: Path) -> None:
    pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("i", pa.int64()), ("x", pa.float32())])).close()
    data = tt.Dataset(tmp_path)
    assert data.table.num_rows == 0
    assert data.batch()["i"].tolist() == []
    assert data.select(["x"]).table.schema.names == ["x"]


@pytest.mark.parametrize("in_memory", [False, True])
def test_more_files_than_may_be_open(tmp_path: Path, in_memory: bool) -> None:
    for n in range(300):
        pq.write_table(pa.table({"n": [2 * n, 2 * n + 1]}), tmp_path / f"{n:03}.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        loader = tt.Loader(tt.Dataset(tmp_path), 32, in_memory=in_memory, buffer_rows=50)
        assert sorted(numbers(list(loader))) == list(range(600))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_reader_is_shared_by_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyArrow's reader prefetches for one call at a time: shared, it fails or hangs once in some thousand reads."""
    threads: dict[pq.ParquetFile, set[int]] = {}

    class Watched(pq.ParquetFile):
        def read_row_group(self, *given: object, **options: object) -> pa.Table:
            threads.setdefault(self, set()).add(threading.get_ident())
            return super().read_row_group(*given, **options)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    pq.write_table(pa.table({"n": list(range(40)), "m": list(range(40))}), tmp_path / "a.parquet", row_group_size=4)
    data = tt.Dataset(tmp_path)
    loader = tt.Loader(data, 4, shuffle=False, in_memory=False, buffer_rows=4, schema=tt.Schema([data.schema["n"]]))
    for batch, frame in zip(loader, data.frames(["m"]), strict=True):
        assert batch["n"].tolist() == frame["m"].to_list()
    assert len(set().union(*threads.values())) == 2
    assert all(len(seen) == 1 for seen in threads.values())


def test_a_file_written_anew_is_not_taken_for_the_first(tmp_path: Path) -> None:
    for n in range(20):
        pq.write_table(pa.table({"n": [n]}), tmp_path / f"{n:02}.parquet")
    data = tt.Dataset(tmp_path)
    pq.write_table(pa.table({"n": [99]}), tmp_path / "00.parquet")  # its handle was given up for the twenty's last
    with pytest.raises(ValueError, match=r"00\.parquet was written anew since it was opened. Make the Dataset again"):
        data.batch()


def test_columns_in_another_order_are_read_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"u": [1, 2], "l": [[1, 1], []], "n": [3, 4]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [5], "u": [6], "l": [[7, 8, 9]]}), tmp_path / "b.parquet")
    data = tt.Dataset(tmp_path)
    assert data.files is not None
    assert data.files.size_in_memory(["l"]) == 8 * (3 + 3)  # an empty list counts as one value
    for loader in (tt.Loader(data, 3, shuffle=False, in_memory=held) for held in (True, False)):
        [batch] = loader
        assert (batch["u"].tolist(), batch["n"].tolist()) == ([1, 2, 6], [3, 4, 5])
        assert batch["l"].to_lists() == [[1, 1], [], [7, 8, 9]]
    assert data.table.to_pydict() == {"u": [1, 2, 6], "l": [[1, 1], [], [7, 8, 9]], "n": [3, 4, 5]}
    assert data.select(["n", "u"]).column_names == ["n", "u"]


# "=" sorts after letters and digits, so the files at the top stand among the folders by their whole path
TREE = ["day=1/a.parquet", "day=1/b.parquet", "day=2/hour=3/a.parquet", "top.parquet"]
HIDDEN = [".merlin/x.parquet", "_temporary/x.parquet", "day=1/.x.parquet", "day=1/_x.parquet", "day=2/x.crc"]


@pytest.mark.parametrize("remote", [False, True])
def test_subfolders_are_searched_and_what_is_hidden_left_out(tmp_path: Path, remote: bool) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for number, name in enumerate(TREE + HIDDEN):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": [number]}), file)
        memory.pipe(f"/tree/{name}", file.read_bytes())
    root = "memory://tree" if remote else str(tmp_path)
    assert tt.Dataset(root).table.to_pydict() == {"n": [0, 1, 2, 3]}
    assert tt.Dataset(f"{root}/").table.to_pydict() == {"n": [0, 1, 2, 3]}
    assert tt.Dataset(f"{root}/day=*").table.to_pydict() == {"n": [0, 1, 2]}
    assert tt.Dataset(f"{root}/day=1/_x.parquet").table.to_pydict() == {"n": [7]}  # asked for by its name
    with pytest.raises(ValueError, match="no Parquet file at .*hour=4"):
        tt.Dataset(f"{root}/day=2/hour=4")


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    """As Spark writes them."""
    (tmp_path / "out.parquet").mkdir()
    pq.write_table(pa.table({"n": [1]}), tmp_path / "out.parquet" / "part-0.parquet")
    for source in (tmp_path, tmp_path / "out.parquet", tmp_path / "*.parquet"):
        assert tt.Dataset(source).table.to_pydict() == {"n": [1]}
