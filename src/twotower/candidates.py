"""The records that travel: one training step into the samplers, candidates into the loss, top-k results out of the index."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.data.batch import Batch

EncodeIds = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Candidates:
    """N candidates: their ids (N,) int64, their vectors (N, D), and how often each counts (N,) int64; None for once."""

    ids: Int[Tensor, "N"]
    vectors: Float[Tensor, "N D"]
    counts: Int[Tensor, "N"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def total(self) -> int:
        """The sum of the counts."""
        return len(self) if self.counts is None else int(self.counts.sum())

    def log_counts(self) -> Float[Tensor, "N"]:
        """log of the counts, in the vectors' precision."""
        if self.counts is None:
            return self.vectors.new_zeros(len(self))
        return self.counts.to(self.vectors.dtype).log()

    @classmethod
    def concat(cls, parts: "list[Candidates]") -> "Candidates":
        """The candidates of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        counts = [torch.ones_like(p.ids) if p.counts is None else p.counts for p in parts]
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.vectors for p in parts]), torch.cat(counts))


@dataclass(frozen=True, eq=False)
class Step:
    """One training step, as samplers and outputs see it: B rows, each distinct query and candidate encoded once.

    Args:
        batch: all columns, for targets, weights and explicit negatives.
        query: (Q, D) the vectors of the distinct queries.
        candidate: the distinct candidates of the batch; `counts` says how many rows each stands in.
        encode: the candidate tower on ids (M,), to (M, D), with the features of the catalogue and with gradient.
        encode_fixed: the same as in prediction, without gradient, dropout or batch statistics; None takes `encode`.
        query_row: (B,) which of the Q queries each row has; None when row i has query i.
        candidate_row: (B,) the same for candidates.
        query_ids: (Q,) the ids of the queries, None where no column tells them apart.
    """

    batch: Batch
    query: Float[Tensor, "Q D"]
    candidate: Candidates
    encode: EncodeIds
    query_row: Int[Tensor, "B"] | None = None
    candidate_row: Int[Tensor, "B"] | None = None
    query_ids: Int[Tensor, "Q"] | None = None
    encode_fixed: EncodeIds | None = None

    def queries(self) -> Float[Tensor, "B D"]:
        """The query vector of each row."""
        return rows(self.query, self.query_row)

    def positives(self) -> Float[Tensor, "B D"]:
        """The candidate vector of each row."""
        return rows(self.candidate.vectors, self.candidate_row)

    def positive_ids(self) -> Int[Tensor, "B"]:
        """The candidate id of each row."""
        return rows(self.candidate.ids, self.candidate_row)


def rows(distinct: Tensor, row: Int[Tensor, "B"] | None) -> Tensor:
    """distinct[row], or all of it in its order when row is None."""
    return distinct if row is None else distinct.index_select(0, row)


@dataclass(frozen=True, eq=False)
class Draw:
    """What a sampler gives for one step.

    Args:
        candidates: the N candidates drawn; ids may repeat.
        log_expected_count: for any ids (M,), log E_j (M,) float64: how often j is expected among the N. -inf for an id that
            cannot be drawn.
        log_expected_negatives: the same when it is known that one row's own positive, another id than j, is among the
            N for certain; None where the draw does not depend on the rows.
        row: (N,) the one row that each candidate is a negative of; None when all are negatives of every row. Negatives
            of one row are no sample of the catalogue: they enter the loss as they are, uncorrected.
    """

    candidates: Candidates
    log_expected_count: Callable[[Tensor], Tensor]
    log_expected_negatives: Callable[[Tensor], Tensor] | None = None
    row: Int[Tensor, "N"] | None = None


@dataclass(frozen=True, eq=False)
class TopK:
    """The K best candidates of B queries, best first.

    Args:
        scores: (B, K) float32.
        ids: (B, K) int64 tensor, or an array of strings when the candidates' ids are strings.
    """

    scores: Float[Tensor, "B K"]
    ids: Tensor | np.ndarray
