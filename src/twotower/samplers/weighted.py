"""Draws by fixed weights, with or without repeats, and how often each id is expected."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.samplers.base import CandidateSampler
from twotower.samplers.uniform import first_places
from twotower.saving import pack, unpack

# log E of places from their log p and whether they were drawn
Expected = Callable[[Tensor, Tensor], Tensor]


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
        self._sums: _Cumulated | None = None  # of log_p, made at the first draw
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
        size, counts = min(self.max_num_samples, len(self.log_p)), None
        if not self.unique:
            drawn, counts = self._cumulated().draw(self.max_num_samples, self.generator).unique(return_counts=True)
            log_expected: Expected = self._with_repeats
        elif size == len(self.log_p):
            drawn = torch.arange(size)
            log_expected = _certain
        else:
            drawn, log_expected = self._draw_distinct(size)
        ids, counts = self.ids[drawn].to(device), None if counts is None else counts.to(device)

        def log_expected_count(asked: Tensor) -> Tensor:
            here = asked.cpu()
            place = torch.searchsorted(self.ids, here).clamp(max=len(self.ids) - 1)
            expected = log_expected(self.log_p[place], torch.isin(place, drawn))
            return torch.where(self.ids[place] == here, expected, -torch.inf).to(device)

        return Draw(Candidates(ids, step.encode(ids), counts), log_expected_count)

    def _with_repeats(self, log_p: Tensor, drawn: Tensor) -> Tensor:
        return log_p + math.log(self.max_num_samples)

    def _draw_distinct(self, size: int) -> tuple[Tensor, "Expected"]:
        """(size,) distinct places, and log of the probability that a place with log p, drawn or not, is among them."""
        cumulated = self._cumulated()
        if cumulated.draws_for(size + 1) > len(self.log_p) / 4:
            keys = torch.empty_like(self.log_p).exponential_(generator=self.generator).log() - self.log_p
            smallest = keys.topk(size + 1, largest=False)
            places, log_keys = smallest.indices, smallest.values
        else:
            places, log_keys = cumulated.first_arrivals(size + 1, self.generator)
        # what a place had to stay below, given all other keys: the next key if it was drawn, the last drawn key if not
        last, after = log_keys[size - 1], log_keys[size]

        def log_expected(log_p: Tensor, drawn: Tensor) -> Tensor:
            return torch.log(-torch.expm1(-(log_p + torch.where(drawn, after, last)).exp()))

        return places[:size], log_expected

    def _cumulated(self) -> "_Cumulated":
        if self._sums is None or self._sums.log_p is not self.log_p:
            self._sums = _Cumulated(self.log_p)
        return self._sums

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        held = {"generator": self.generator.get_state(), "ids": self.ids, "log_p": self.log_p}
        return pack(held | {"given": torch.tensor(self.given)})

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        held = unpack(state)
        self.generator.set_state(held["generator"])
        self.ids, self.log_p, self.given = held["ids"], held["log_p"], bool(held["given"])


def _certain(log_p: Tensor, drawn: Tensor) -> Tensor:
    return torch.zeros_like(log_p)


class _Cumulated:
    """Draws of places by their probability, at a cost that grows with the logarithm of their number."""

    def __init__(self, log_p: Tensor) -> None:
        self.log_p = log_p
        self.p = log_p.exp()
        self.sums = self.p.cumsum(0)
        self._needed: dict[int, float] = {}

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """(number,) places, with repeats."""
        u = torch.rand(number, generator=generator, dtype=torch.float64) * self.sums[-1]
        return torch.searchsorted(self.sums, u, right=True).clamp(max=len(self.sums) - 1)

    def draws_for(self, distinct: int) -> float:
        """About how many draws bring so many distinct places: twice as many are expected by then. inf for too many."""
        if distinct not in self._needed:
            draws = float(distinct)
            while draws <= len(self.p) and float(-torch.expm1(-self.p * draws).sum()) < 2 * distinct:
                draws *= 2
            enough = -torch.expm1(-self.p * draws).sum() >= 2 * distinct
            self._needed[distinct] = draws if bool(enough) else math.inf
        return self._needed[distinct]

    def first_arrivals(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(number,) the distinct places that come first when places arrive at rate p_j each, and the log of their times.

        A place's first time is exponential with rate p_j, which is the key e_j / p_j, and nobody else's key is needed.
        """
        arrived = torch.empty(0, dtype=torch.int64)
        gaps = torch.empty(0, dtype=torch.float64)
        while True:
            arrived = torch.cat([arrived, self.draw(2 * number, generator)])
            more = torch.empty(2 * number, dtype=torch.float64).exponential_(generator=generator)
            gaps = torch.cat([gaps, more / self.sums[-1]])
            first = first_places(arrived)
            if len(first) >= number:
                first = first[:number]
                return arrived[first], gaps.cumsum(0)[first].log()
