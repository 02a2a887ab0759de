"""How often each item occurs in a batch: counted beforehand, or estimated from the stream."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Frequency(nn.Module, ABC):
    """Tells how often items are expected in a batch of training rows.

    `counts_batches` says what is told: the expected number of rows with the item, or the probability that the batch holds
    it at all. With the second, the batch counts each of its items once, or the corrected sum would not be unbiased.
    """

    counts_batches: bool = False

    @abstractmethod
    def adapt(self, ids: Tensor) -> None:
        """Learn from the ids (rows,) of the whole training data, before training."""

    @abstractmethod
    def observe(self, ids: Tensor) -> None:
        """Learn from the ids (B,) of one training batch; called once in each step."""

    @abstractmethod
    def log_expected_count(self, ids: Tensor, rows: int) -> Tensor:
        """(M,) float64 log of how often each id is expected in a batch of so many rows; -inf for ids never seen."""


class CountFrequency(Frequency):
    """E_j = rows * count_j / n, counted over a finite data set. Ids are any int64; only those that occur take memory.

    There is no floor: an id that was never counted is expected 0 times, and asking for its correction is an error.

    Example:
        >>> frequency = CountFrequency()
        >>> frequency.adapt(torch.tensor([5, 3_000_000_000, 5, 5]))
        >>> frequency.log_expected_count(torch.tensor([5, 3_000_000_000, 6]), rows=8).exp()
        tensor([6., 2., 0.], dtype=torch.float64)
    """

    ids: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # of a size that the data gives, so they travel as extra state instead of fixed buffers
        self.register_buffer("ids", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("counts", torch.empty(0, dtype=torch.int64), persistent=False)

    def adapt(self, ids: Tensor) -> None:
        """Count the ids (rows,), forgetting what was counted before."""
        found, counts = torch.unique(ids, return_counts=True)
        self.ids, self.counts = found.to(self.ids.device), counts.to(self.ids.device)

    def observe(self, ids: Tensor) -> None:
        """Nothing: everything was counted before."""

    def log_expected_count(self, ids: Tensor, rows: int) -> Tensor:
        """(M,) float64 log(rows * count / n), -inf for ids that were not counted.

        Raises:
            ValueError: nothing was counted yet.
        """
        if not len(self.ids):
            raise ValueError(
                "item frequencies are not known yet: call model.adapt(train) before a loop of your own (fit does it), "
                "or set logq_sampling_correction=False."
            )
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        count = torch.where(self.ids[place] == ids, self.counts[place], 0)
        return (rows * count.double() / self.counts.sum()).log()

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        return torch.stack([self.ids, self.counts])

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        self.ids, self.counts = state.to(self.ids.device).unbind()
