"""Cross-batch negatives: a queue of the candidates of earlier batches."""

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.errors import explain_options
from twotower.samplers.base import CandidateSampler
from twotower.samplers.frequency import CountFrequency
from twotower.saving import pack, unpack


class CrossBatchSampler(CandidateSampler):
    """The vectors of the last batches' candidates, as they were then, without gradient and without encoding again.

    More negatives for the price of their scores (Wang et al., "Cross-Batch Negative Sampling for Training Two-Tower
    Recommenders", SIGIR 2021). Vectors move much in the first steps, so nothing is drawn before `warmup_steps`. An item
    with share p_j of the training data is expected E_j = n p_j times among the n rows that the queue stands for.

    The rows of the present batch are not in the queue: use it together with "in-batch".

    Args:
        capacity: the largest number of distinct candidates held, each batch's for itself. The oldest batch goes first, as a
            whole: a part of it would no longer be a sample by p_j.
        warmup_steps: training steps before the first draw.

    Raises:
        ValueError: a capacity below 1, or a batch that alone has more candidates.
    """

    @explain_options
    def __init__(self, capacity: int = 16384, warmup_steps: int = 100) -> None:
        super().__init__()
        if capacity < 1 or warmup_steps < 0:
            raise ValueError(f"expected capacity >= 1 and warmup_steps >= 0, got {capacity} and {warmup_steps}.")
        self.capacity = capacity
        self.warmup_steps = warmup_steps
        self.frequency = CountFrequency()
        self.steps = 0
        # one entry for each distinct candidate of a batch, oldest first, and how many entries each batch has
        self.queue: Candidates | None = None
        self.sizes: list[int] = []

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Count the training ids; a queue with other candidates is from other data, and starts anew."""
        self.frequency.adapt(ids)
        if self.queue is not None and not bool(torch.isin(self.queue.ids, ids.to(self.queue.ids.device)).all()):
            self.queue, self.sizes, self.steps = None, [], 0

    def forward(self, step: Step) -> Draw:
        """What the queue holds; in training mode the batch enters it afterwards."""
        held = self.queue = self._on(step.candidate.ids.device)
        if held is None or self.steps < self.warmup_steps:
            drawn = Candidates(step.candidate.ids[:0], step.candidate.vectors[:0].detach(), step.candidate.ids[:0])
        else:
            drawn = Candidates(held.ids, held.vectors.to(step.candidate.vectors.dtype), held.counts)
        if self.training:
            self.steps += 1
            self._enter(step.candidate)
        rows = drawn.total()

        def log_expected_count(ids: Tensor) -> Tensor:
            # an empty queue expects nothing: its part of the sum over samplers is exp(-inf)
            return self.frequency.log_expected_count(ids, rows)

        return Draw(drawn, log_expected_count)

    def _on(self, device: torch.device) -> Candidates | None:
        # no buffers, which would have one size: a resumed fit fills the queue before it moves the model to its device
        if self.queue is None or self.queue.ids.device == device:
            return self.queue
        ids, vectors, counts = self.queue.ids, self.queue.vectors, self.queue.counts
        return Candidates(ids.to(device), vectors.to(device), None if counts is None else counts.to(device))

    def _enter(self, batch: Candidates) -> None:
        counts = torch.ones_like(batch.ids) if batch.counts is None else batch.counts
        entry = Candidates(batch.ids, batch.vectors.detach(), counts)
        if len(entry) > self.capacity:
            raise ValueError(
                f"a batch has {len(entry)} distinct candidates, more than the queue's capacity={self.capacity} can hold. Give "
                "CrossBatchSampler a capacity of several batches."
            )
        joined = entry if self.queue is None else Candidates.concat([self.queue, entry])
        self.sizes.append(len(entry))
        forgotten = 0
        while len(joined) - forgotten > self.capacity:
            forgotten += self.sizes.pop(0)
        assert joined.counts is not None
        self.queue = Candidates(joined.ids[forgotten:], joined.vectors[forgotten:], joined.counts[forgotten:])

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        state = {"steps": torch.tensor(self.steps), "sizes": torch.tensor(self.sizes, dtype=torch.int64)}
        if self.queue is not None and self.queue.counts is not None:
            state |= {"ids": self.queue.ids, "vectors": self.queue.vectors, "counts": self.queue.counts}
        return pack(state)

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        held = unpack(state)
        self.steps, self.sizes = int(held["steps"]), held["sizes"].tolist()
        device = self.frequency.ids.device
        parts = [held[name].to(device) for name in ("ids", "vectors", "counts") if name in held]
        self.queue = Candidates(*parts) if parts else None
