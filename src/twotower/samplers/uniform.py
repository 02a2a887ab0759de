"""Uniform negatives: every candidate of the catalogue alike."""

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.errors import explain_options
from twotower.samplers.base import CandidateSampler
from twotower.samplers.frequency import CountFrequency


class UniformSampler(CandidateSampler):
    """N distinct candidates of the catalogue, each expected E = N / size times.

    Together with "in-batch" it is mixed negative sampling (Yang et al., "Mixed Negative Sampling for Learning Two-tower
    Neural Networks in Recommendations", WWW 2020): the batch brings popular items, the catalogue the others, cold ones
    among them.

    Args:
        max_num_samples: N; the whole catalogue where it is smaller.
        seed: of the sampler's own generator, whose state is saved with the model; by default drawn from PyTorch's.

    Example:
        >>> sampler = UniformSampler(max_num_samples=2)
        >>> sampler.adapt(torch.tensor([5, 5]), torch.tensor([5, 6, 7, 8]))
        >>> batch = Candidates(torch.tensor([5]), torch.zeros(1, 3))
        >>> draw = sampler(Step({}, batch.vectors, batch, lambda ids: torch.zeros(len(ids), 3)))
        >>> len(draw.candidates), draw.log_expected_count(torch.tensor([5, 99])).exp().tolist()
        (2, [0.5, 0.0])
    """

    @explain_options
    def __init__(self, max_num_samples: int = 1000, seed: int | None = None) -> None:
        super().__init__()
        if max_num_samples < 1:
            raise ValueError(f"max_num_samples must be at least 1, got {max_num_samples}.")
        self.max_num_samples = max_num_samples
        self.seed = seed
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)
        # every candidate counted once: its expected count in N draws is N / size
        self.known = CountFrequency()

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Take the catalogue's ids."""
        self.known.adapt(catalog.unique())

    def forward(self, step: Step) -> Draw:
        """Draw N ids, the same for every row of the batch, and encode them."""
        size = len(self.known.ids)
        if not size:
            raise ValueError(
                "the uniform sampler does not know the catalogue yet: call model.adapt(train) before a loop of your own "
                "(fit does it)."
            )
        drawn = draw_distinct(size, min(self.max_num_samples, size), self.generator)
        ids = self.known.ids[drawn.to(self.known.ids.device)]
        return Draw(Candidates(ids, step.encode(ids)), lambda asked: self.known.log_expected_count(asked, len(drawn)))

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        self.generator.set_state(state.cpu())


def draw_distinct(size: int, number: int, generator: torch.Generator) -> Tensor:
    """(number,) distinct places below `size`, all alike, at a cost that does not grow with `size`."""
    if number * 4 > size:
        return torch.randperm(size, generator=generator)[:number]
    drawn = torch.empty(0, dtype=torch.int64)
    while True:
        drawn = torch.cat([drawn, torch.randint(size, (2 * number,), generator=generator)])
        places = first_places(drawn)
        if len(places) >= number:
            return drawn[places[:number]]


def first_places(drawn: Tensor) -> Tensor:
    """Where each distinct value occurs first, in that order."""
    distinct, value = torch.unique(drawn, return_inverse=True)
    first = torch.full_like(distinct, len(drawn))
    return first.scatter_reduce_(0, value, torch.arange(len(drawn)), "amin").sort().values
