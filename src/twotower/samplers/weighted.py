"""Draws by fixed weights, with or without repeats, and how often each id is expected."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.samplers.base import CandidateSampler
from twotower.saving import pack, unpack


class WeightedSampler(CandidateSampler):
    """What samplers with fixed probabilities have in common; they say which ids there are, and how likely each is.

    With `unique`, the N ids of a draw are distinct: the N smallest of exponential keys e_j / p_j. Given the
    other ids' keys, of which t is the N-th smallest, id j is drawn with probability 1 - exp(-p_j t), and dividing by
    it makes the sum over the pool an unbiased estimate of the sum over all ids (Cohen and Kaplan, "Summarizing Data
    using Bottom-k Sketches", PODC 2007). Without `unique`, draws are independent and E_j = N p_j.

    Args:
        max_num_samples: N, the size of the pool; where there are fewer ids and they are distinct, all of them.
        unique: draw distinct ids.
        seed: of the sampler's own generator, whose state is saved with the model; by default drawn from PyTorch's.
    """

    def __init__(self, max_num_samples: int, unique: bool, seed: int | None) -> None:
        super().__init__()
        if max_num_samples < 1:
            raise ValueError(f"max_num_samples must be at least 1, got {max_num_samples}.")
        self.max_num_samples = max_num_samples
        self.unique = unique
        self.seed = seed
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)
        # no buffers: draws are made on the CPU in float64, whatever the model's device and precision
        self.ids = torch.empty(0, dtype=torch.int64)
        self.log_p = torch.empty(0, dtype=torch.float64)
        self.given = False  # the weights came from the user, and data does not change them

    @abstractmethod
    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Learn `ids` (n,) in rising order and `log_p` (n,) float64, if the data says what they are."""

    def forward(self, step: Step) -> Draw:
        """Draw N ids, the same for every row of the batch, and encode them."""
        if not len(self.ids):
            raise ValueError(
                "the popularity sampler does not know the items yet: call model.adapt(train) before a loop of your own "
                "(fit does it)."
            )
        device = step.candidate.ids.device
        if self.unique:
            drawn, log_expected = _draw_distinct(self.log_p, min(self.max_num_samples, len(self.log_p)), self.generator)
            counts = None
        else:
            every = torch.multinomial(
                self.log_p.exp(), self.max_num_samples, replacement=True, generator=self.generator
            )
            drawn, counts = every.unique(return_counts=True)
            log_expected = self.log_p + math.log(self.max_num_samples)
        ids, counts = self.ids[drawn].to(device), None if counts is None else counts.to(device)
        known, table = self.ids.to(device), log_expected.to(device)
        return Draw(Candidates(ids, step.encode(ids), counts), lambda asked: _read(known, table, asked))

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        held = {"generator": self.generator.get_state(), "ids": self.ids, "log_p": self.log_p}
        return pack(held | {"given": torch.tensor(self.given)})

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        held = unpack(state)
        self.generator.set_state(held["generator"])
        self.ids, self.log_p, self.given = held["ids"], held["log_p"], bool(held["given"])


def _read(known: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    return torch.where(known[place] == ids, table[place], -torch.inf)


def _draw_distinct(log_p: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(size,) distinct places, and (n,) log of the probability that each place is among them."""
    keys = torch.empty_like(log_p).exponential_(generator=generator).log() - log_p
    if size == len(log_p):
        return torch.arange(size), torch.zeros_like(log_p)
    smallest = keys.topk(size + 1, largest=False)
    drawn = smallest.indices[:size]
    # what a place had to stay below, given all other keys: the next key if it was drawn, the last drawn key if not
    threshold = torch.full_like(keys, float(smallest.values[size - 1]))
    threshold[drawn] = smallest.values[size]
    return drawn, torch.log(-torch.expm1(-(log_p + threshold).exp()))
