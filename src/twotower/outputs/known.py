"""Known positives: candidates that are no negatives of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from twotower.candidates import Candidates, Draw, Step, rows
from twotower.data.batch import column
from twotower.data.ragged import Ragged
from twotower.logits import equal_pairs
from twotower.losses.fused import Hidden

# the name for the positives that the batch itself shows
IN_BATCH = "in-batch"


@dataclass(frozen=True, eq=False)
class KnownPositives:
    """Pairs of a row and a candidate id; `distinct` when no pair can occur twice."""

    row: Int[Tensor, "P"]
    ids: Int[Tensor, "P"]
    distinct: bool

    def hidden_in(self, pool_ids: Int[Tensor, "N"]) -> Hidden:
        """Where they stand in a pool, each place once."""
        pair, place = equal_pairs(self.ids, pool_ids)
        row = self.row[pair]
        if not self.distinct and len(pool_ids):
            cell = torch.unique(row * len(pool_ids) + place)
            row, place = cell // len(pool_ids), cell % len(pool_ids)
        return Hidden(row, place)

    def kept_out_of(self, draws: Sequence[Draw]) -> tuple[Candidates, Int[Tensor, "M"]] | None:
        """The negatives of single rows with their rows, less the known positives; None for no such negatives."""
        if not draws:
            return None
        row = torch.cat([draw.row for draw in draws if draw.row is not None])
        candidates = Candidates.concat([draw.candidates for draw in draws])
        number = torch.unique(torch.cat([candidates.ids, self.ids]), return_inverse=True)[1]
        pair = torch.cat([row, self.row]) * (len(number) + 1) + number
        keep = ~torch.isin(pair[: len(row)], pair[len(row) :])
        return Candidates(candidates.ids[keep], candidates.vectors[keep]), row[keep]


def known_positives(
    step: Step, own: bool, sources: Sequence[str], taken: Bool[Tensor, "B"] | None = None
) -> KnownPositives:
    """Each row's own positive, if asked for, and the others that the sources know.

    Args:
        step: the training step.
        own: whether a row's own positive counts.
        sources: "in-batch" for the other candidates of the row's query in the batch, and names of columns with lists
            of candidate ids.
        taken: the rows whose candidate is a positive; None for all.

    Raises:
        ValueError: "in-batch" without a column that tells queries apart, or a column that holds no lists.
    """
    ids = step.positive_ids()
    every = torch.arange(len(ids), device=ids.device)
    found = [(every, ids)] if own else [(every[:0], ids[:0])]
    for source in sources:
        found.append(_in_batch(step, ids, taken) if source == IN_BATCH else _listed(source, column(step.batch, source)))
    row, known = (torch.cat(part) for part in zip(*found, strict=True))
    return KnownPositives(row, known, distinct=not sources)


def _in_batch(step: Step, ids: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor]:
    if step.query_ids is None:
        raise ValueError(
            f"known_positives={IN_BATCH!r} needs a column that tells queries apart: tag one of the query tower's USER_ID."
        )
    query = rows(step.query_ids, step.query_row)
    row, other = equal_pairs(query, query)
    if taken is not None:
        row, other = row[taken[other]], other[taken[other]]
    return row, ids[other]


def _listed(name: str, held: Tensor | Ragged) -> tuple[Tensor, Tensor]:
    if isinstance(held, Ragged):
        return held.row_of_value(), held.values
    if held.ndim != 2:
        raise ValueError(f"known_positives: column {name!r} holds one value a row; expected lists of candidate ids.")
    return torch.arange(len(held), device=held.device).repeat_interleave(held.shape[1]), held.flatten()
