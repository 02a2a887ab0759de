"""export_embeddings: the vectors of all rows as files that other programs read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from twotower.data.dataset import Dataset
from twotower.data.loader import Loader
from twotower.data.preprocessor import Preprocessor
from twotower.encoder import Tower, embedded, index_column
from twotower.errors import choose, explain_options, unknown
from twotower.files import PathLike, folder_written_aside, written_aside
from twotower.schema import Tags

VECTOR = "vector"
ROW_GROUP = 65_536
# rows of the files: (ids, vectors)
Part = tuple[pa.Array, Float[np.ndarray, "R D"]]


@explain_options
def export_embeddings(
    tower: Tower,
    dataset: Dataset,
    index: str | Tags,
    path: PathLike,
    format: str = "parquet",
    *,
    preprocessor: Preprocessor | None = None,
    batch_size: int = 1024,
) -> int:
    """Write the id and the vector of every row, in the order of the rows, in parts: of files larger than memory too.

    What is written takes the place of an older file only when it is complete. For few rows, in memory:
    `tower.encode`, `model.candidate_embeddings`.

    Args:
        tower: `model.candidate_encoder` or `model.query_encoder`.
        dataset: with the tower's columns and the id column.
        index: the id column, by name or tag; any column of the data, not only one that the tower reads.
        path: of the file ("parquet"), or of the folder ("npy").
        format: "parquet" for one file of two columns, the id and `vector`, a list of the fixed size D of float32; "npy" for a
            folder with vectors.npy, (rows, D) float32, which NumPy can map into memory, and ids.parquet.
        preprocessor: writes raw ids in place of the encoded ones.
        batch_size: rows encoded at once.

    Returns:
        int: how many rows were written.

    Raises:
        ValueError: an unknown format, a missing column or id, or an id that the Preprocessor knows no raw value of.

    Example:
        >>> item = ColumnSchema("item_id", [Tags.ITEM_ID], "int64", properties={"domain": {"min": 0, "max": 2}})
        >>> items = Dataset({"item_id": [2, 0]}, Schema([item]))
        >>> export_embeddings(EmbeddingEncoder(item, dim=4), items, "item_id", getfixture("tmp_path") / "items.parquet")
        2
    """
    write = choose("format", format, FORMATS)
    name = index_column(dataset.schema, index)
    if name not in dataset.column_names:
        raise ValueError(f"the data lacks the index column. {unknown('column', name, dataset.column_names)}")
    if name == VECTOR:
        raise ValueError(f"the index column is called {VECTOR!r}, as the vectors are: rename it.")
    write(Path(path), name, _parts(tower, dataset, name, preprocessor, batch_size), dataset.num_rows, tower.dim)
    return dataset.num_rows


def _parts(
    tower: Tower, dataset: Dataset, name: str, preprocessor: Preprocessor | None, batch_size: int
) -> Iterator[Part]:
    """The rows, at most ROW_GROUP at a time."""
    streamed = None if dataset.files is None else False
    loader = Loader(dataset, batch_size, shuffle=False, schema=tower.schema, in_memory=streamed, buffer_rows=batch_size)
    batches = embedded(tower, loader)
    held: list[np.ndarray] = []
    for frame in dataset.frames([name]):
        ids = _ids(frame[name], preprocessor)
        for start in range(0, len(ids), ROW_GROUP):
            rows = ids.slice(start, ROW_GROUP)
            while sum(map(len, held)) < len(rows):
                held.append(next(batches).numpy())
            vectors = np.concatenate(held)
            held = [vectors[len(rows) :]]
            yield rows.to_arrow(), vectors[: len(rows)]


def _ids(given: pl.Series, preprocessor: Preprocessor | None) -> pl.Series:
    ids = given if preprocessor is None else pl.Series(given.name, preprocessor.inverse(given.name, given))
    if ids.null_count():
        why = "are missing" if preprocessor is None else "have no raw value that the Preprocessor knows"
        raise ValueError(f"{ids.null_count()} of {len(ids)} ids in column {given.name!r} {why}. Leave these rows out.")
    return ids


def _write_parquet(path: Path, name: str, parts: Iterator[Part], rows: int, dim: int) -> None:
    with written_aside(path) as file:
        writer: pq.ParquetWriter | None = None
        try:
            for ids, vectors in parts:
                flat = pa.array(vectors.reshape(-1))
                table = pa.table({name: ids, VECTOR: pa.FixedSizeListArray.from_arrays(flat, dim)})
                writer = pq.ParquetWriter(file, table.schema) if writer is None else writer
                writer.write_table(table.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()


def _write_npy(path: Path, name: str, parts: Iterator[Part], rows: int, dim: int) -> None:
    with folder_written_aside(path, "vectors.npy") as folder:
        held = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (rows, dim))  # type: ignore[no-untyped-call]
        writer: pq.ParquetWriter | None = None
        done = 0
        try:
            for ids, vectors in parts:
                held[done : done + len(vectors)] = vectors
                done += len(vectors)
                table = pa.table({name: ids})
                writer = pq.ParquetWriter(folder / "ids.parquet", table.schema) if writer is None else writer
                writer.write_table(table.cast(writer.schema))
        finally:
            held.flush()
            if writer is not None:
                writer.close()


FORMATS: dict[str, Callable[[Path, str, Iterator[Part], int, int], None]] = {
    "parquet": _write_parquet,
    "npy": _write_npy,
}
