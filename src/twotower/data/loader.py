"""Loader: a dataset as shuffled batches that can be resumed in the middle of an epoch."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from twotower.data.batch import Batch, take
from twotower.data.batch import batch_size as batch_rows
from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.data.stream import RowGroupStream
from twotower.errors import explain_options
from twotower.schema import Schema

T = TypeVar("T")
R = TypeVar("R")
# bytes of tensors: files that take more are streamed
IN_MEMORY_BYTES = 2 * 2**30


class Loader:
    """Iterates over a dataset's rows as batches {column: Tensor | Ragged}; one pass is one epoch.

    A table, and files that fit, are held as tensors. Larger files are streamed: row groups in random order, a million rows at
    a time permuted as a whole, read by a thread while the last ones are trained on.

    Args:
        dataset: the rows.
        batch_size: rows in a batch; the last one may be smaller.
        shuffle: a new global permutation every epoch, drawn from `seed` and the epoch's number.
        drop_last: leave out a last batch that is smaller.
        schema: only these columns.
        in_memory: hold all rows; None decides by their size, 2 GiB.
        buffer_rows: rows that a stream permutes as a whole. What stands in one row group comes close together, so shuffled
            or small row groups shuffle better.
        rank, world_size: this process's share of the rows; all processes have the same number of batches.
        transform: a function on every batch.

    The position is exact: `state_dict()` after n batches, `load_state_dict()` into another Loader of the same
    dataset, and the next batch is the n+1st.

    Example:
        >>> loader = Loader(Dataset({"item_id": [1, 2, 3]}), batch_size=2, shuffle=False)
        >>> [batch["item_id"].tolist() for batch in loader]
        [[1, 2], [3]]
    """

    @explain_options
    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        schema: Schema | None = None,
        in_memory: bool | None = None,
        buffer_rows: int = 2**20,
        rank: int = 0,
        world_size: int = 1,
        transform: Callable[[Batch], Batch] | None = None,
    ) -> None:
        for option, value in (("batch_size", batch_size), ("buffer_rows", buffer_rows)):
            if isinstance(value, bool) or value != int(value) or value < 1:
                raise ValueError(f"{option} must be a whole number of at least 1, got {value}.")
        if in_memory is False and dataset.files is None:
            raise ValueError("in_memory=False streams Parquet files, but this dataset is a table in memory already.")
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank {rank} of {world_size}.")
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.schema = dataset.schema if schema is None else schema
        self.rank, self.world_size = rank, world_size
        self.transform = transform
        files = dataset.files if (_is_large(dataset, self.schema) if in_memory is None else not in_memory) else None
        if files is not None:
            self._source: InMemory | RowGroupStream = RowGroupStream(
                files, self.schema, self.batch_size, shuffle, int(buffer_rows), rank, world_size
            )
        else:
            self._source = InMemory(
                dataset.batch(self.schema), len(dataset), self.batch_size, shuffle, rank, world_size
            )
        self._epoch = -1  # none has begun
        self._batches_done = 0
        self._resumed = False
        if len(self) == 0:
            raise ValueError(
                f"no batch of {batch_size} rows can be made from {dataset.num_rows} rows"
                + (f" on each of {world_size} processes" if world_size > 1 else "")
                + (" with drop_last=True." if drop_last else ".")
            )

    def __len__(self) -> int:
        rows = self._source.num_rows
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """A new epoch from its first batch; or, right after load_state_dict, the rest of the one begun there."""
        if not self._resumed:
            self._epoch, self._batches_done = self._epoch + 1, 0
        self._resumed = False
        first = self._batches_done
        # a large odd step keeps (seed, epoch) and (seed + 1, epoch - 1) apart
        seed = (self.seed * 1_000_003 + self._epoch) % 2**63
        for number, batch in enumerate(self._source.batches(seed, first, len(self)), start=first + 1):
            # the position moves before the batch is handed out, so that a state taken after it is exact
            self._batches_done = number
            yield batch if self.transform is None else self.transform(batch)

    def map(self, fn: Callable[[Batch], T]) -> "MappedLoader[T]":
        """This loader with every batch passed through a function, such as ToTarget; maps can be chained.

        Example:
            >>> loader = Loader(Dataset({"x": [1, 2, 3]}), batch_size=2, shuffle=False)
            >>> list(loader.map(lambda batch: batch["x"] * 2).map(lambda doubled: doubled.tolist()))
            [[2, 4], [6]]
        """
        return MappedLoader(self, fn)

    def state_dict(self) -> dict[str, int]:
        """The position: which epoch (-1 before the first), and how many of its batches were handed out."""
        return {"seed": self.seed, "epoch": self._epoch, "batches_done": self._batches_done, **self._fixed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from the position of another Loader over the same dataset."""
        wrong = {name: (state.get(name), value) for name, value in self._fixed().items() if state.get(name) != value}
        if wrong:
            raise ValueError(
                f"the position was taken by another Loader: {wrong} (then, now). Give the same data and the same options."
            )
        self.seed, self._epoch, self._batches_done = state["seed"], state["epoch"], state["batches_done"]
        self._resumed = 0 < self._batches_done < len(self)

    def fingerprint(self) -> int:
        """A checksum of up to 1,000 rows from all over the data (of a stream: from the ends of this process's share).

        Other rows, or the same in another order, give another.
        """
        checksum = 0
        for name, column in sorted(some_rows(self._source.ends(), 1000).items()):
            parts = [column.values, column.offsets] if isinstance(column, Ragged) else [column]
            for part in parts:
                checksum = zlib.crc32(name.encode() + part.numpy().tobytes(), checksum)
        return checksum

    def _fixed(self) -> dict[str, int]:
        """What a position depends on; buffer_rows is 0 in memory."""
        return {
            "rows": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "buffer_rows": self._source.buffer_rows,
            "rank": self.rank,
            "world_size": self.world_size,
        }


@dataclass(frozen=True, eq=False)
class MappedLoader(Generic[T]):
    """A Loader and a function on its batches; `Loader.map` makes it. The position is the Loader's own.

    Args:
        loader: gives the batches.
        fn: is called with each.
    """

    loader: Loader
    fn: Callable[[Batch], T]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        return map(self.fn, self.loader)

    def map(self, fn: Callable[[T], R]) -> "MappedLoader[R]":
        """The same with one more function, after those before."""
        before = self.fn
        return MappedLoader(self.loader, lambda batch: fn(before(batch)))

    def state_dict(self) -> dict[str, int]:
        """The Loader's position."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position of the Loader."""
        self.loader.load_state_dict(state)


class InMemory:
    """Epochs over rows that are all held as tensors; arguments as in RowGroupStream."""

    buffer_rows = 0

    def __init__(self, columns: Batch, held: int, rows: int, shuffle: bool, rank: int, world_size: int) -> None:
        self.columns, self.held, self.rows, self.shuffle = columns, held, rows, shuffle
        self.rank, self.world_size = rank, world_size
        self.num_rows = held // world_size

    def ends(self) -> Batch:
        """All rows: they are at hand."""
        return self.columns

    def batches(self, seed: int, first: int, number: int) -> Iterator[Batch]:
        """The batches of an epoch from the first-th up to the number-th."""
        order = torch.arange(self.held)
        if self.shuffle:
            order = torch.randperm(self.held, generator=torch.Generator().manual_seed(seed))
        order = order[self.rank :: self.world_size][: self.num_rows]
        for place in range(first, number):
            yield take(self.columns, order[place * self.rows : (place + 1) * self.rows])


def some_rows(batch: Batch, most: int) -> Batch:
    """At most so many rows, from the first to the last at even distances."""
    rows = batch_rows(batch)
    return take(batch, torch.linspace(0, rows - 1, min(most, rows), dtype=torch.float64).long())


def _is_large(dataset: Dataset, schema: Schema) -> bool:
    return dataset.files is not None and dataset.files.size_in_memory(schema.column_names) > IN_MEMORY_BYTES
