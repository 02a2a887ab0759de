"""In-batch negatives: the other rows' positives."""

from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.distinct import one_row_each
from twotower.errors import choose
from twotower.samplers.base import CandidateSampler
from twotower.samplers.frequency import CountFrequency, Frequency
from twotower.samplers.streaming import StreamingFrequency

FREQUENCIES: dict[str, type[Frequency]] = {"count": CountFrequency, "streaming": StreamingFrequency}


class InBatchSamplerV2(CandidateSampler):
    """The pool is the batch's own candidates: no extra encoding, and popular items occur often.

    An item with share p_j of the training data is expected E_j = B p_j times in a batch of B rows, and (B - 1) p_j times
    among the rows besides one that holds another item.

    Args:
        frequency: where E comes from: "count" counts the training data, "streaming" estimates while training; or an
            instance.
    """

    def __init__(self, frequency: str | Frequency = "count") -> None:
        super().__init__()
        made = choose("frequency", frequency, FREQUENCIES)() if isinstance(frequency, str) else frequency
        self.frequency: Frequency = made

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Show the frequency the training ids."""
        self.frequency.adapt(ids)

    def forward(self, step: Step) -> Draw:
        """The batch's candidates. In training mode the frequency learns from them first."""
        positives = step.candidate
        if self.training:
            self.frequency.observe(positives.ids)
        rows = positives.total()
        pool = _once(positives) if self.frequency.counts_batches else positives
        # a batch of one row has no negatives: whatever stands for log 0 there is masked
        others = max(rows - 1, 1)
        expected = self.frequency.log_expected_count
        return Draw(pool, lambda ids: expected(ids, rows), lambda ids: expected(ids, others))


def _once(batch: Candidates) -> Candidates:
    """Each distinct candidate, counted once."""
    _, first = one_row_each(batch.ids)
    if len(first) == len(batch):
        return Candidates(batch.ids, batch.vectors)
    return Candidates(batch.ids[first], batch.vectors.index_select(0, first))
