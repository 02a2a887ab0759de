"""Hard negatives: the candidates that stand high for a query at present."""

from collections.abc import Iterator

import torch
from torch import Tensor

from twotower.candidates import Draw, EncodeIds, Step
from twotower.errors import explain_options
from twotower.samplers.base import CandidateSampler
from twotower.samplers.explicit import row_draw
from twotower.saving import pack, unpack

ENCODED_AT_ONCE = 8192
SCORED_AT_ONCE = 2**26


class HardNegativeSampler(CandidateSampler):
    """For each query, candidates from just below the top of its ranking, mined from vectors that are made again now and then.

    The first places hold the query's positives, known and unknown, so `skip` of them are passed over. Hard negatives are
    chosen by their score and estimate no sum: they enter the loss uncorrected, as negatives of their row alone. They
    sharpen the top of the ranking and teach nothing about the rest, so mix them with "in-batch".

    Args:
        num_negatives: K for each query.
        skip: places passed over at the top.
        refresh_steps: steps between two encodings of the whole catalogue.
        warmup_steps: training steps before the first mining: the ranking of an untrained model is arbitrary.

    Raises:
        ValueError: num_negatives or refresh_steps below 1.
    """

    @explain_options
    def __init__(
        self, num_negatives: int = 5, skip: int = 10, refresh_steps: int = 100, warmup_steps: int = 100
    ) -> None:
        super().__init__()
        if num_negatives < 1 or refresh_steps < 1 or skip < 0 or warmup_steps < 0:
            raise ValueError(
                "expected num_negatives and refresh_steps >= 1, skip and warmup_steps >= 0; got "
                f"{num_negatives}, {refresh_steps}, {skip} and {warmup_steps}."
            )
        self.num_negatives = num_negatives
        self.skip = skip
        self.refresh_steps = refresh_steps
        self.warmup_steps = warmup_steps
        self.steps = 0
        self.ids = torch.empty(0, dtype=torch.int64)
        self.vectors: Tensor | None = None

    def adapt(self, ids: Tensor, catalog: Tensor) -> None:
        """Take the catalogue's ids.

        Raises:
            ValueError: no candidate is left below the places passed over.
        """
        self.ids, self.vectors = catalog.unique(), None
        if len(self.ids) <= self.skip:
            raise ValueError(
                f"hard negatives pass over the first skip={self.skip} places of each ranking, but there are only {len(self.ids)} "
                "candidates. Give HardNegativeSampler a smaller skip, or leave it out."
            )

    def forward(self, step: Step) -> Draw:
        """K candidates for each row; none during the warm-up."""
        if not len(self.ids):
            raise ValueError(
                "the hard-negative sampler does not know the catalogue yet: call model.adapt(train) before a loop of your "
                "own (fit does it)."
            )
        # no buffers, which would have one size: fit adapts and resumes before it moves the model to its device
        self.ids = self.ids.to(step.candidate.ids.device)
        if self.vectors is not None:
            self.vectors = self.vectors.to(self.ids.device)
        now = self.steps
        self.steps += int(self.training)
        if now < self.warmup_steps:
            return row_draw(step, step.candidate.ids[:0], step.candidate.ids[:0])
        if self.vectors is None or (self.training and (now - self.warmup_steps) % self.refresh_steps == 0):
            self.vectors = self._encode_all(step.encode_fixed or step.encode)
        places = self._mine(step.query.detach().to(self.vectors.dtype))
        of_row = places if step.query_row is None else places[step.query_row]
        row = torch.arange(len(of_row), device=of_row.device).repeat_interleave(of_row.shape[1])
        return row_draw(step, self.ids[of_row.flatten()], row)

    @torch.no_grad()
    def _encode_all(self, encode: EncodeIds) -> Tensor:
        return torch.cat([encode(part) for part in self.ids.split(ENCODED_AT_ONCE)])

    def _mine(self, query: Tensor) -> Tensor:
        """(Q, K) places in the catalogue, ranks skip + 1 to skip + K of each query."""
        assert self.vectors is not None
        last = min(self.skip + self.num_negatives, len(self.ids))
        first = min(self.skip, last)
        found = [(part @ self.vectors.T).topk(last, dim=1).indices[:, first:] for part in self._parts(query)]
        return torch.cat(found)

    def _parts(self, query: Tensor) -> Iterator[Tensor]:
        yield from query.split(max(1, SCORED_AT_ONCE // len(self.ids)))

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        held = {} if self.vectors is None else {"vectors": self.vectors}
        return pack({"steps": torch.tensor(self.steps), "ids": self.ids, **held})

    def set_extra_state(self, state: Tensor) -> None:
        """From load_state_dict()."""
        held = unpack(state)
        self.steps, device = int(held["steps"]), self.ids.device
        self.ids = held["ids"].to(device)
        self.vectors = held["vectors"].to(device) if "vectors" in held else None
