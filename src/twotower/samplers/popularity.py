"""Popularity-based negatives: ids drawn for the whole batch, encoded through the catalogue."""

import math

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.errors import explain_options
from twotower.samplers.base import CandidateSampler


class PopularityBasedSamplerV2(CandidateSampler):
    """Log-uniform (Zipfian) draws over ids that are ordered by falling popularity, as the Preprocessor makes them.

    p(id) = log((c + 2) / (c + 1)) / log(n + 1), with c = id - min_id and n = max_id - min_id + 1 ids in all.

    With `unique`, the N ids of a draw are distinct: the N smallest of exponential keys e_j / p_j. Given the
    other ids' keys, of which t is the N-th smallest, id j is drawn with probability 1 - exp(-p_j t), and dividing by
    it makes the sum over the pool an unbiased estimate of the sum over all ids (Cohen and Kaplan, "Summarizing Data
    using Bottom-k Sketches", PODC 2007). Without `unique`, draws are independent and E_j = N p_j.

    Args:
        max_id: the largest id, drawn too.
        min_id: the smallest id; 2 with ids from the Preprocessor, whose 0 and 1 stand for missing and unknown.
        max_num_samples: N, the size of the pool.
        unique: draw distinct ids.
        seed: of the sampler's own generator, whose state is saved with the model; by default drawn from PyTorch's.

    Raises:
        ValueError: more distinct ids asked for than there are.

    Example:
        >>> sampler = PopularityBasedSamplerV2(max_id=9, max_num_samples=3, seed=7)
        >>> round(float(sampler.probabilities()[0]), 4)
        0.2891
    """

    @explain_options
    def __init__(
        self, max_id: int, min_id: int = 0, max_num_samples: int = 10, unique: bool = True, seed: int | None = None
    ) -> None:
        super().__init__()
        size = max_id - min_id + 1
        if not 0 <= min_id <= max_id or max_num_samples < 1 or (unique and max_num_samples > size):
            raise ValueError(
                f"cannot draw {max_num_samples}{' distinct' if unique else ''} ids from min_id={min_id} to "
                f"max_id={max_id}, which are {size}. Lower max_num_samples, or set unique=False."
            )
        self.max_id = max_id
        self.min_id = min_id
        self.max_num_samples = max_num_samples
        self.unique = unique
        self.seed = seed
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)
        c = torch.arange(size, dtype=torch.float64)
        # no buffer: draws are made on the CPU in float64, whatever the model's device and precision
        self.log_p = torch.log(torch.log1p(1 / (c + 1)) / math.log(size + 1))

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Nothing to learn: the probabilities follow from the order of the ids."""

    def probabilities(self) -> Tensor:
        """(max_id + 1,) p of each id; 0 below min_id."""
        return torch.cat([self.log_p.new_zeros(self.min_id), self.log_p.exp()])

    def forward(self, step: Step) -> Draw:
        """Draw N ids, the same for every row of the batch, and encode them."""
        device = step.candidate.ids.device
        if self.unique:
            drawn, log_included = _draw_distinct(self.log_p, self.max_num_samples, self.generator)
        else:
            drawn = torch.multinomial(
                self.log_p.exp(), self.max_num_samples, replacement=True, generator=self.generator
            )
            log_included = self.log_p + math.log(self.max_num_samples)
        ids = (drawn + self.min_id).to(device)
        table = log_included.float().to(device)
        return Draw(Candidates(ids, step.encode(ids)), lambda asked: self._read(table, asked))

    def _read(self, table: Tensor, ids: Tensor) -> Tensor:
        inside = (ids >= self.min_id) & (ids <= self.max_id)
        return torch.where(inside, table[(ids - self.min_id).clamp(0, len(table) - 1)], -torch.inf)

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        self.generator.set_state(state.cpu())


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
