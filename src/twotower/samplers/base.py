"""CandidateSampler: which candidates enter the pool, and how often each is expected there."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from twotower.candidates import Draw, Step


class CandidateSampler(nn.Module, ABC):
    """Draws the pool of negatives for one batch.

    A new sampler is one file with a class like this, its name in `samplers.SAMPLERS`, and its line in the contract
    cases of the tests. The expected counts of several samplers add up, so any mix of them is corrected.

    `reads` names the columns of the batch, beside the towers' own, that the sampler reads; `warmup_steps` says how many
    training steps draw nothing.
    """

    reads: tuple[str, ...] = ()
    warmup_steps: int = 0

    @abstractmethod
    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Learn what the sampler needs before training.

        Args:
            ids: (rows,) the candidate ids of the training data.
            catalog: (N,) the ids of all candidates.
        """

    @abstractmethod
    def forward(self, step: Step) -> Draw:
        """Draw the pool: `step.candidate` holds the batch's own candidates, `step.encode` encodes others by id."""
