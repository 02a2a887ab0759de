"""An exported tower beside the tower: random batches, and those at the edges."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from twotower.blocks.embedding import Embeddings
from twotower.blocks.history.base import HistoryEncoder
from twotower.data.batch import Batch, example_batch
from twotower.data.ragged import Ragged
from twotower.encoder import Tower, evaluating
from twotower.export.inputs import flat_inputs
from twotower.schema import ColumnSchema

TOLERANCE = 1e-5
Run = Callable[[dict[str, np.ndarray]], np.ndarray]
# of ids: between two ends, both included
Ids = Callable[[ColumnSchema], tuple[int, int]]


def largest_difference(tower: Tower, run: Run) -> tuple[int, float]:
    """How many batches were compared, and how far the exported tower was from the tower at most.

    The difference is relative to the batch's largest number where that is above 1.

    Raises:
        ValueError: more than TOLERANCE, or another shape.
    """
    largest, number = 0.0, 0
    for kind, batch in batches(tower):
        with evaluating(tower):
            expected = tower(batch).numpy()
        came = run(flat_inputs(batch, tower.schema))
        if came.shape != expected.shape:
            raise ValueError(
                f"the exported tower gives shape {came.shape} where the tower gives {expected.shape}, for {kind}; nothing was "
                "written. A block of the tower asks for sizes in a way that was fixed when it was traced."
            )
        far = np.abs(came - expected)[~(np.isnan(came) & np.isnan(expected))]
        largest = max(largest, float(far.max(initial=0)) / max(1.0, float(np.abs(expected).max(initial=0))))
        if not largest <= TOLERANCE:  # not a number fails too
            raise ValueError(
                f"the exported tower differs from the tower by {largest:.1e}, more than {TOLERANCE:.0e}, for {kind}; nothing was "
                "written. A block of the tower decides by values in a way that was fixed when it was traced."
            )
        number += 1
    return number, largest


def batches(tower: Tower) -> Iterator[tuple[str, Batch]]:
    """What is compared: (what it is, the batch)."""
    make = BatchMaker(tower)
    longest = make.longest
    for seed in range(3):
        yield f"random rows (seed {seed})", make(seed, 7)
    yield "one row", make(3, 1)
    yield "one row of empty lists", make(4, 1, [0])
    yield "one row of one element a list", make(5, 1, [1])
    yield "lists that are all empty", make(6, 4, [0])
    yield f"a list of {longest} elements among empty ones", make(7, 3, [0, longest, 0])
    yield f"one row with a list of {longest} elements", make(8, 1, [longest])
    yield "the largest ids", make(9, 4, ids=lambda c: (c.cardinality - 1, c.cardinality - 1))
    yield "missing and unknown ids", make(10, 4, ids=lambda c: (0, min(_unknown(c), c.cardinality - 1)))
    yield "numbers of size 100", make(11, 4, scale=100.0)
    yield "many rows", make(12, 200)


def weighed(tower: Tower) -> dict[str, str]:
    """The columns of lists by the columns of their weights."""
    blocks = [part for part in tower.modules() if isinstance(part, Embeddings)]
    return {weights: name for block in blocks for name, weights in block.sequence_weights.items()}


class BatchMaker:
    """Makes batches of random ids and numbers for a tower.

    Args:
        tower: whose columns.
    """

    def __init__(self, tower: Tower) -> None:
        self.schema = tower.schema
        self._weighs = weighed(tower)  # such a column goes along with its lists, and is not negative
        encoders = [part for part in tower.modules() if isinstance(part, HistoryEncoder)]
        cuts = [encoder.max_length for encoder in encoders if encoder.max_length is not None]
        self.longest = max([30, *(2 * cut + 1 for cut in cuts)])

    def __call__(
        self,
        seed: int,
        rows: int,
        lengths: list[int] | None = None,
        ids: Ids = lambda c: (0, c.cardinality - 1),
        scale: float = 1.0,
    ) -> Batch:
        """So many rows; `lengths` are those of all columns' lists, repeated, or else each column has its own."""
        generator = torch.Generator().manual_seed(seed)
        offsets = {c.name: self._offsets(rows, lengths, generator) for c in self.schema}
        made: Batch = {}
        for c, example in zip(self.schema, example_batch(self.schema).values(), strict=True):
            if isinstance(example, Ragged):
                bounds = offsets[self._weighs.get(c.name, c.name)]
                made[c.name] = Ragged(self._values(c, (int(bounds[-1]),), ids, scale, generator), bounds)
            else:
                made[c.name] = self._values(c, (rows, *example.shape[1:]), ids, scale, generator)
        return made

    def _offsets(self, rows: int, lengths: list[int] | None, generator: torch.Generator) -> Tensor:
        if lengths is None:
            drawn = torch.randint(0, 12, (rows,), generator=generator)
        else:
            drawn = torch.tensor(lengths).repeat(rows)[:rows]
        return torch.cat([drawn.new_zeros(1), drawn.cumsum(0)])

    def _values(
        self, c: ColumnSchema, shape: tuple[int, ...], ids: Ids, scale: float, generator: torch.Generator
    ) -> Tensor:
        if c.int_domain is not None:
            low, high = ids(c)
            return torch.randint(low, high + 1, shape, generator=generator)
        numbers = scale * torch.randn(shape, generator=generator)
        return numbers.abs() if c.name in self._weighs else numbers


def example_inputs(tower: Tower) -> Mapping[str, Tensor]:
    """What a tower is traced with: five rows, lists of two to four elements."""
    batch = BatchMaker(tower)(0, 5, [2, 3, 4])
    return {name: torch.from_numpy(array) for name, array in flat_inputs(batch, tower.schema).items()}


def _unknown(c: ColumnSchema) -> int:
    known = c.properties.get("unknown_id")
    return int(known) if isinstance(known, (int, float)) else 1
