"""In-batch negatives: the other rows' positives."""

import math

from torch import Tensor

from twotower.candidates import Candidates, Draw
from twotower.samplers.base import CandidateSampler, EncodeIds
from twotower.samplers.frequency import CountFrequency


class InBatchSamplerV2(CandidateSampler):
    """The pool is the batch's own candidates: no extra encoding, and popular items occur often.

    An item with share p_j of the training data is expected E_j = B p_j times in a batch of B rows, and (B - 1) p_j times
    among the rows besides one that holds another item.

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
        rows = len(positives)
        log_p = self.frequency.log_probability
        # a batch of one row has no negatives: whatever stands for log 0 there is masked
        others = max(rows - 1, 1)
        return Draw(positives, lambda ids: log_p(ids) + math.log(rows), lambda ids: log_p(ids) + math.log(others))
