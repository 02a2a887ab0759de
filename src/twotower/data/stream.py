"""Batches of Parquet files that need not fit into memory: row groups in random order through a shuffle buffer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from twotower.data.arrow import widen
from twotower.data.batch import Batch, batch_size, concat, take
from twotower.data.parquet import ParquetFiles, RowGroup
from twotower.schema import Schema

Window = tuple[Batch, Tensor]


class RowGroupStream:
    """Epochs over the row groups of some files.

    Row groups come in a random order; as many as hold `buffer_rows` rows make a window, whose rows are permuted as a whole. One
    thread reads the next window while this one is handed out, so at most two are in memory. An epoch's order follows from its
    seed, so any batch of it can be the first: resuming reads from its window on.

    Args:
        files: the files.
        schema: the columns to read.
        rows: in a batch.
        shuffle: False keeps the order of the files.
        buffer_rows: of a window.
        rank, world_size: this process reads its own row groups of all, balanced by their rows.

    Raises:
        ValueError: fewer row groups than processes.
    """

    def __init__(
        self,
        files: ParquetFiles,
        schema: Schema,
        rows: int,
        shuffle: bool,
        buffer_rows: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(files.groups) < world_size:
            raise ValueError(
                f"{len(files.groups)} row groups cannot be shared by {world_size} processes: write more and smaller ones "
                "(row_group_size of Parquet writers)."
            )
        self.files, self.schema, self.rows = files, schema, rows
        self.shuffle, self.buffer_rows = shuffle, buffer_rows
        shares = _balanced(files.groups, world_size)
        self.groups = shares[rank]
        # every process takes as many rows as the poorest has, since they step together
        self.num_rows = min(sum(group.rows for group in share) for share in shares)

    def ends(self) -> Batch:
        """The rows of the first and the last row group."""
        ends = [self.groups[0], self.groups[-1]] if len(self.groups) > 1 else self.groups
        return widen(self.files.batch_of(ends, self.schema, narrow=True))

    def batches(self, seed: int, first: int, number: int) -> Iterator[Batch]:
        """The batches of an epoch from the first-th up to the number-th; the seed is the epoch's."""
        generator = torch.Generator().manual_seed(seed)
        windows = self._windows(generator)
        # one number for each window keeps its permutation the same wherever the reading begins
        seeds = torch.randint(2**62, (len(windows),), generator=generator).tolist()
        begin, start, place = first * self.rows, 0, 0
        while place < len(windows) and start + _rows(windows[place]) <= begin:
            start, place = start + _rows(windows[place]), place + 1
        skip = begin - start
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, windows[place], seeds[place]) if place < len(windows) else None
            left: list[Batch] = []
            done = first
            while coming is not None and done < number:
                batch, order = coming.result()
                place += 1
                coming = reader.submit(self._read, windows[place], seeds[place]) if place < len(windows) else None
                order, skip = order[skip:], 0
                while len(order) and done < number:
                    wanted = min(self.rows, self.num_rows - done * self.rows) - sum(batch_size(part) for part in left)
                    left.append(widen(take(batch, order[:wanted])))
                    order = order[wanted:]
                    if sum(batch_size(part) for part in left) == min(self.rows, self.num_rows - done * self.rows):
                        done += 1
                        yield concat(left)
                        left = []

    def _windows(self, generator: torch.Generator) -> list[list[RowGroup]]:
        order = torch.randperm(len(self.groups), generator=generator) if self.shuffle else range(len(self.groups))
        windows: list[list[RowGroup]] = []
        held = self.buffer_rows
        for place in order:
            group = self.groups[int(place)]
            if held >= self.buffer_rows:
                windows.append([])
                held = 0
            windows[-1].append(group)
            held += group.rows
        return windows

    def _read(self, window: list[RowGroup], seed: int) -> Window:
        batch = self.files.batch_of(window, self.schema, narrow=True)
        rows = batch_size(batch)
        generator = torch.Generator().manual_seed(seed)
        return batch, torch.randperm(rows, generator=generator) if self.shuffle else torch.arange(rows)


def _rows(groups: list[RowGroup]) -> int:
    return sum(group.rows for group in groups)


def _balanced(groups: list[RowGroup], parts: int) -> list[list[RowGroup]]:
    """The groups dealt to parts, the largest first, each to the part with the fewest rows so far."""
    if parts == 1:
        return [groups]
    shares: list[list[RowGroup]] = [[] for _ in range(parts)]
    for group in sorted(groups, key=lambda g: (-g.rows, g.path, g.number)):
        min(shares, key=_rows).append(group)
    return shares
