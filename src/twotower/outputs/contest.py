"""One training step's contest: every row's positive against the negatives that it sees."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twotower import logits
from twotower.candidates import Candidates, rows
from twotower.losses.fused import Hidden, Positives
from twotower.outputs.base import RowLoss

# a loss other than softmax is taken over blocks of rows with at most so many logits
BLOCK_ELEMENTS = 2**26


@dataclass(frozen=True, eq=False)
class Contest:
    """One step's positives against its negatives: the vectors, and what happens to their scores.

    Args:
        query: (Q, D) queries, divided by the temperature.
        positives: the rows' own candidates.
        pool: the shared negatives.
        hidden: the shared negatives that a row does not see.
        pool_correction: (N,) log E, None for none.
        own: negatives of single rows, with their rows.
        weight: (B,) weights of the rows, which sum to 1 (or are all 0).
    """

    query: Tensor
    positives: Positives
    pool: Candidates
    hidden: Hidden
    pool_correction: Tensor | None
    own: tuple[Candidates, Tensor] | None
    weight: Tensor

    def cut(self, width: int) -> "Contest":
        """The same with vectors of their first `width` numbers."""
        if width == self.query.shape[1]:
            return self
        own = None if self.own is None else (_cut(self.own[0], width), self.own[1])
        positives = replace(self.positives, vectors=self.positives.vectors[:, :width])
        return replace(self, query=self.query[:, :width], positives=positives, pool=_cut(self.pool, width), own=own)

    def positive(self) -> Float[Tensor, "B"]:
        """Logits of the positives."""
        held = self.positives
        scores = logits.positive_scores(rows(self.query, held.query_row), rows(held.vectors, held.row))
        return scores if held.offset is None else scores + held.offset

    def offset(self) -> Float[Tensor, "N"]:
        """What is added to the scores of the pool's distinct candidates: log multiplicity less log E."""
        counts = self.pool.log_counts()
        return counts if self.pool_correction is None else logits.correct(counts, self.pool_correction)

    def negative(self, part: slice) -> Float[Tensor, "b N"]:
        """Logits of the pool, each candidate as often as it counts, then the rows' own negatives; for some rows."""
        row = self.positives.query_row[part]
        scores = logits.pool_scores(self.query, self.pool.vectors) if len(row) > len(self.query) else None
        negative = logits.pool_scores(self.query[row], self.pool.vectors) if scores is None else scores[row]
        if self.pool_correction is not None:
            negative = logits.correct(negative, self.pool_correction)
        first, last, _ = part.indices(len(self.positives.query_row))
        within = (self.hidden.row >= first) & (self.hidden.row < last)
        hidden = torch.zeros(negative.shape, dtype=torch.bool, device=row.device)
        hidden[self.hidden.row[within] - first, self.hidden.column[within]] = True
        negative = logits.mask(negative, hidden)
        if self.pool.counts is not None:
            negative = negative.repeat_interleave(self.pool.counts, dim=1)
        return negative if self.own is None else torch.cat([negative, self.own_padded()[part]], dim=1)

    def own_logits(self) -> Float[Tensor, "M"]:
        """Logits of the rows' own negatives; they were not sampled, so nothing is corrected."""
        assert self.own is not None
        candidates, row = self.own
        return logits.positive_scores(self.query[self.positives.query_row[row]], exact(candidates.vectors))

    def own_log_sum(self) -> Float[Tensor, "B"]:
        """log-sum-exp of each row's own negatives, -inf for none."""
        return torch.logsumexp(self.own_padded(), dim=1)

    def own_padded(self) -> Float[Tensor, "B K"]:
        """Each row's own negatives side by side, -inf where there are fewer."""
        assert self.own is not None
        row = self.own[1]
        order = row.argsort(stable=True)
        ascending = row[order]
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(ascending, ascending)
        width = int(place.max()) + 1 if len(row) else 1
        padded = self.query.new_full((len(self.positives.query_row), width), -torch.inf)
        return padded.index_put((ascending, place), self.own_logits()[order])


def in_blocks(loss: RowLoss, contest: Contest) -> Tensor:
    """A loss of any form over blocks of rows, whose logits are made again for the gradient."""
    positive = contest.positive()
    height = max(1, BLOCK_ELEMENTS // max(contest.pool.total(), 1))
    if height >= len(positive):
        return (loss(positive, contest.negative(slice(None))) * contest.weight).sum()

    def block(part: slice) -> Tensor:
        return (loss(positive[part], contest.negative(part)) * contest.weight[part]).sum()

    parts = [slice(first, first + height) for first in range(0, len(positive), height)]
    return torch.stack([checkpoint(block, part, use_reentrant=False) for part in parts]).sum()


def exact(vectors: Tensor) -> Tensor:
    """The loss is taken in float32 at least, whatever the towers' precision."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _cut(candidates: Candidates, width: int) -> Candidates:
    return replace(candidates, vectors=candidates.vectors[:, :width])
