"""Loader: a dataset in memory, as shuffled batches that can be resumed in the middle of an epoch."""

import zlib
from collections.abc import Iterator

import torch

from twotower.data.batch import Batch, take
from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.errors import explain_options
from twotower.schema import Schema


class Loader:
    """Iterates over a dataset's rows as batches {column: Tensor | Ragged}; one pass is one epoch.

    Args:
        dataset: the rows; all columns of its schema are held as tensors.
        batch_size: rows in a batch; the last one may be smaller.
        shuffle: a new global permutation every epoch, drawn from `seed` and the epoch's number.
        drop_last: leave out a last batch that is smaller.
        schema: only these columns.

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
    ) -> None:
        if batch_size != int(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size}.")
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.schema = dataset.schema if schema is None else schema
        self._columns = dataset.batch(self.schema)
        self._epoch = -1  # none has begun
        self._batches_done = 0
        self._resumed = False
        if len(self) == 0:
            raise ValueError(
                f"no batch of {batch_size} rows can be made from {dataset.num_rows} rows"
                + (" with drop_last=True." if drop_last else ".")
            )

    def __len__(self) -> int:
        rows = self.dataset.num_rows
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """A new epoch from its first batch; or, right after load_state_dict, the rest of the one begun there."""
        if not self._resumed:
            self._epoch, self._batches_done = self._epoch + 1, 0
        self._resumed = False
        order = self._order()
        for number in range(self._batches_done, len(self)):
            # the position moves before the batch is handed out, so that a state taken after it is exact
            self._batches_done = number + 1
            yield take(self._columns, order[number * self.batch_size : (number + 1) * self.batch_size])

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(self.dataset.num_rows)
        # a large odd step keeps (seed, epoch) and (seed + 1, epoch - 1) apart
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._epoch) % 2**63)
        return torch.randperm(self.dataset.num_rows, generator=generator)

    def state_dict(self) -> dict[str, int]:
        """The position: which epoch (-1 before the first), and how many of its batches were handed out."""
        return {"seed": self.seed, "epoch": self._epoch, "batches_done": self._batches_done, **self._fixed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from the position of another Loader over the same dataset."""
        wrong = {name: (state[name], value) for name, value in self._fixed().items() if state[name] != value}
        if wrong:
            raise ValueError(
                f"the position was taken by another Loader: {wrong} (then, now). Give the same data and the same options."
            )
        self.seed, self._epoch, self._batches_done = state["seed"], state["epoch"], state["batches_done"]
        self._resumed = 0 < self._batches_done < len(self)

    def fingerprint(self) -> int:
        """A checksum of up to 1,000 rows from all over the data: other rows, or the same in another order, give another."""
        rows = torch.linspace(0, len(self.dataset) - 1, min(1000, len(self.dataset)), dtype=torch.float64).long()
        checksum = 0
        for name, column in sorted(take(self._columns, rows).items()):
            parts = [column.values, column.offsets] if isinstance(column, Ragged) else [column]
            for part in parts:
                checksum = zlib.crc32(name.encode() + part.numpy().tobytes(), checksum)
        return checksum

    def _fixed(self) -> dict[str, int]:
        """What a position depends on."""
        return {"rows": len(self.dataset), "batch_size": self.batch_size, "shuffle": int(self.shuffle)}
