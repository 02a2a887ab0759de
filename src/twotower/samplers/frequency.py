"""How often each item occurs in the training data."""

import torch
from torch import Tensor, nn


class CountFrequency(nn.Module):
    """p_j = count_j / n, counted over a finite data set. Ids are any int64; only those that occur take memory.

    There is no floor on p: an id that was never counted has p = 0, and asking for its correction is an error.

    Example:
        >>> frequency = CountFrequency()
        >>> frequency.adapt(torch.tensor([5, 3_000_000_000, 5, 5]))
        >>> frequency.log_probability(torch.tensor([5, 3_000_000_000, 6])).exp()
        tensor([0.7500, 0.2500, 0.0000])
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

    @property
    def is_counted(self) -> bool:
        """Whether there is anything to ask."""
        return len(self.ids) > 0

    def log_probability(self, ids: Tensor) -> Tensor:
        """(M,) log p of each id, -inf for ids that were not counted.

        Raises:
            ValueError: nothing was counted yet.
        """
        if not self.is_counted:
            raise ValueError(
                "item frequencies are not known yet: call model.adapt(train) before a loop of your own (fit does it), "
                "or set logq_sampling_correction=False."
            )
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        count = torch.where(self.ids[place] == ids, self.counts[place], 0)
        return (count.double().log() - self.counts.sum().double().log()).float()

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        return torch.stack([self.ids, self.counts])

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        self.ids, self.counts = state.to(self.ids.device).unbind()
