"""Explicit negatives: what a row's user was shown and did not take."""

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.data.batch import column
from twotower.data.ragged import Ragged
from twotower.samplers.base import CandidateSampler


class ColumnSampler(CandidateSampler):
    """The negatives of a row are the candidate ids in one of its columns, such as the other items of an impression.

    They are negatives of their row alone. Nothing drew them from the catalogue, so they enter the loss uncorrected,
    each as the one item it is. A row's own positive among them is left out. Usually together with "in-batch".

    Args:
        column: a column of candidate ids: one a row, a list of fixed length, or lists.
    """

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column
        self.reads = (column,)

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Nothing: the rows bring their own."""

    def forward(self, step: Step) -> Draw:
        """The ids of the column, each with its row."""
        given = column(step.batch, self.column)
        if isinstance(given, Ragged):
            ids, row = given.values, given.row_of_value()
        else:
            table = given[:, None] if given.ndim == 1 else given
            row = torch.arange(len(table), device=table.device).repeat_interleave(table.shape[1])
            ids = table.flatten()
        return row_draw(step, ids, row)


def row_draw(step: Step, ids: Tensor, row: Tensor) -> Draw:
    """Negatives of single rows, each distinct id encoded once."""
    if ids.is_floating_point():
        raise ValueError(f"negatives must be candidate ids, whole numbers; got {ids.dtype}.")
    distinct, place = torch.unique(ids, return_inverse=True)
    vectors = step.encode(distinct).index_select(0, place) if len(ids) else step.candidate.vectors[:0]
    return Draw(Candidates(ids, vectors), lambda asked: torch.zeros(len(asked), device=asked.device), row=row)
