"""In-batch negatives: the other rows' positives."""

import math

from torch import Tensor

from twotower.candidates import Candidates, Draw
from twotower.samplers.base import CandidateSampler, EncodeIds
from twotower.samplers.frequency import CountFrequency


class InBatchSamplerV2(CandidateSampler):
    """The pool is the batch's own candidates: no extra encoding, and popular items occur often.

    An item with share p_j of the training data is expected E_j = B p_j times in a batch of B rows.

    Args:
        frequency: where p comes from; by default the counts of the training data.
    """

    def __init__(self, frequency: CountFrequency | None = None) -> None:
        super().__init__()
        self.frequency = frequency or CountFrequency()

    def adapt(self, ids: Tensor) -> None:
        """Count the training ids."""
        self.frequency.adapt(ids)

    def forward(self, positives: Candidates, encode: EncodeIds) -> Draw:
        """The positives themselves."""
        log_rows = math.log(len(positives))
        return Draw(positives, lambda ids: self.frequency.log_probability(ids) + log_rows)
