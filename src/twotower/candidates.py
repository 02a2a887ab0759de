"""The records that travel: candidates into the loss, top-k results out of the index."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """N candidates: their ids (N,) int64 and their vectors (N, D)."""

    ids: Int[Tensor, "N"]
    vectors: Float[Tensor, "N D"]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concat(cls, parts: "list[Candidates]") -> "Candidates":
        """The candidates of all parts, in order."""
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.vectors for p in parts]))


@dataclass(frozen=True, eq=False)
class Draw:
    """What a sampler gives for one step.

    Args:
        candidates: the N candidates drawn; ids may repeat.
        log_expected_count: for any ids (M,), log E_j (M,): how often j is expected among the N. -inf for an id that
            cannot be drawn.
        log_expected_negatives: the same when it is known that one row's own positive, another id than j, is among the
            N for certain; None where the draw does not depend on the rows.
    """

    candidates: Candidates
    log_expected_count: Callable[[Tensor], Tensor]
    log_expected_negatives: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class TopK:
    """The K best candidates of B queries, best first.

    Args:
        scores: (B, K) float32.
        ids: (B, K) int64 tensor, or an array of strings when the candidates' ids are strings.
    """

    scores: Float[Tensor, "B K"]
    ids: Tensor | np.ndarray
