"""Popularity-based negatives: ids drawn for the whole batch, encoded through the catalogue."""

import math

import torch
from torch import Tensor

from twotower.errors import explain_options
from twotower.samplers.weighted import WeightedSampler


class PopularitySampler(WeightedSampler):
    """Items drawn by how often they occur in the training data, p_j ~ count_j ** power; or by weights that are given.

    What is not in the catalogue is never drawn, such as the ids of the Preprocessor for missing and unknown items.

    Args:
        max_num_samples: N, the size of the pool.
        power: 1 draws as the batch does, 0 all that occur alike, 0.75 as word2vec.
        unique: draw distinct ids.
        weights: (n,) the weight of id 0, 1, ..., in place of the counts; an id of weight 0 is never drawn.
        seed: of the sampler's own generator.

    Raises:
        ValueError: no positive weight.

    Example:
        >>> sampler = PopularitySampler(max_num_samples=2, unique=False, seed=1)
        >>> sampler.adapt(torch.tensor([7, 7, 7, 9]), torch.tensor([7, 8, 9]))
        >>> batch = Candidates(torch.tensor([7]), torch.zeros(1, 3))
        >>> draw = sampler(Step({}, batch.vectors, batch, lambda ids: torch.zeros(len(ids), 3)))
        >>> draw.log_expected_count(torch.tensor([7, 8, 9])).exp().float().tolist()
        [1.5, 0.0, 0.5]
    """

    @explain_options
    def __init__(
        self,
        max_num_samples: int = 1000,
        power: float = 1.0,
        unique: bool = True,
        weights: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(max_num_samples, unique, seed)
        self.power = power
        self.weights = None  # what was given lives in ids and log_p from here on
        if weights is not None:
            self._take(torch.arange(len(weights)), weights)
            self.given = True

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Count the training ids that are in the catalogue, unless weights were given."""
        if not self.given:
            self._take(*torch.unique(ids[torch.isin(ids, catalog)].cpu(), return_counts=True))

    def _take(self, ids: Tensor, weights: Tensor) -> None:
        if bool((weights < 0).any()) or not bool((weights > 0).any()):
            raise ValueError("weights must not be negative, and at least one must be above 0.")
        drawable = weights > 0
        log_weight = weights[drawable].double().log() * self.power
        self.ids, self.log_p = ids[drawable], log_weight - log_weight.logsumexp(0)


class PopularityBasedSamplerV2(WeightedSampler):
    """Log-uniform (Zipfian) draws over ids that are ordered by falling popularity, as the Preprocessor makes them.

    p(id) = log((c + 2) / (c + 1)) / log(n + 1), with c = id - min_id and n = max_id - min_id + 1 ids in all. It needs
    no data; where there are some, PopularitySampler counts instead of assuming.

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
        size = max_id - min_id + 1
        if not 0 <= min_id <= max_id or max_num_samples < 1 or (unique and max_num_samples > size):
            raise ValueError(
                f"cannot draw {max_num_samples}{' distinct' if unique else ''} ids from min_id={min_id} to "
                f"max_id={max_id}, which are {size}. Lower max_num_samples, or set unique=False."
            )
        super().__init__(max_num_samples, unique, seed)
        self.min_id = min_id
        self.extend(max_id)

    def extend(self, max_id: int) -> None:
        """Draw ids up to this one; those appended at the end count as the least popular."""
        self.max_id = max_id
        size = max_id - self.min_id + 1
        c = torch.arange(size, dtype=torch.float64)
        self.ids = torch.arange(self.min_id, max_id + 1)
        self.log_p = torch.log(torch.log1p(1 / (c + 1)) / math.log(size + 1))

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Nothing to learn: the probabilities follow from the order of the ids."""

    def probabilities(self) -> Tensor:
        """(max_id + 1,) p of each id; 0 below min_id."""
        return torch.cat([self.log_p.new_zeros(self.min_id), self.log_p.exp()])
