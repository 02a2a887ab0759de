"""CandidateSampler: which candidates enter the pool, and how often each is expected there."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from twotower.candidates import Candidates, Draw

EncodeIds = Callable[[Tensor], Tensor]


class CandidateSampler(nn.Module, ABC):
    """Draws the pool of negatives for one batch.

    A new sampler is one file with a class like this, its name in `samplers.SAMPLERS`, and its line in the contract
    cases of the tests. The expected counts of several samplers add up, so any mix of them is corrected.
    """

    @abstractmethod
    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Learn what the sampler needs before training.

        Args:
            ids: (rows,) the candidate ids of the training data.
            catalog: (N,) the ids of all candidates.
        """

    @abstractmethod
    def forward(self, positives: Candidates, encode: EncodeIds) -> Draw:
        """Draw the pool.

        Args:
            positives: the batch's own candidates, B of them, already encoded.
            encode: the candidate tower on ids: (M,) to (M, D), with the features of the catalogue and with gradient.
        """
