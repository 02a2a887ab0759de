"""The whole catalogue as the pool: full softmax through the candidate tower."""

import torch
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step
from twotower.samplers.base import CandidateSampler
from twotower.saving import pack, unpack


class CatalogSampler(CandidateSampler):
    """Every candidate once, in every step: nothing is estimated, E_j = 1.

    Each step encodes the whole catalogue with gradient, which fits catalogues of some ten thousand items.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ids = torch.empty(0, dtype=torch.int64)

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Take the catalogue's ids."""
        self.ids = catalog.unique()

    def forward(self, step: Step) -> Draw:
        """All candidates."""
        if not len(self.ids):
            raise ValueError(
                "the catalogue sampler does not know the catalogue yet: call model.adapt(train) before a loop of your own "
                "(fit does it)."
            )
        ids = self.ids.to(step.candidate.ids.device)

        def log_expected_count(asked: Tensor) -> Tensor:
            return torch.where(torch.isin(asked, ids), 0.0, -torch.inf)

        return Draw(Candidates(ids, step.encode(ids)), log_expected_count)

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        return pack({"ids": self.ids})

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        self.ids = unpack(state)["ids"]
