"""Pooling: the vectors of a list to one vector."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.data.ragged import Ragged
from twotower.errors import choose

Combined = Float[Tensor, "B D"]
# a name of COMBINERS, or a module from Ragged vectors (total, D) to (B, D)
Combiner = str | nn.Module


def combine(vectors: Ragged, combiner: Combiner) -> Combined:
    """Pool the vectors of each row to one: (B, D); by name, an empty row gives zeros."""
    if isinstance(combiner, nn.Module):
        return combiner(vectors)
    return choose("sequence_combiner", combiner, COMBINERS)(vectors)


def check_combiner(combiner: Combiner) -> None:
    """ValueError with the choices for an unknown name."""
    if isinstance(combiner, str):
        choose("sequence_combiner", combiner, COMBINERS)


def as_ragged(vectors: Tensor | Ragged) -> Ragged:
    """Lists of one fixed length, (B, L, D), as B lists of L vectors."""
    if isinstance(vectors, Ragged):
        return vectors
    rows, length, dim = vectors.shape
    offsets = torch.arange(0, rows * length + 1, max(length, 1), device=vectors.device)[: rows + 1]
    return Ragged(vectors.reshape(-1, dim), offsets)


def _reduce(vectors: Ragged, how: str) -> Combined:
    pooled = vectors.values.new_zeros(len(vectors), vectors.values.shape[-1])
    rows = vectors.row_of_value()[:, None].expand_as(vectors.values)
    return pooled.scatter_reduce(0, rows, vectors.values, how, include_self=False)


def _sum(vectors: Ragged) -> Combined:
    pooled = vectors.values.new_zeros(len(vectors), vectors.values.shape[-1])
    return pooled.index_add(0, vectors.row_of_value(), vectors.values)


def _mean(vectors: Ragged) -> Combined:
    return _sum(vectors) / vectors.lengths().clamp(min=1)[:, None]


def _sqrtn(vectors: Ragged) -> Combined:
    return _sum(vectors) / vectors.lengths().clamp(min=1).sqrt()[:, None]


def _max(vectors: Ragged) -> Combined:
    return _reduce(vectors, "amax")


COMBINERS: dict[str, Callable[[Ragged], Tensor]] = {"mean": _mean, "sum": _sum, "sqrtn": _sqrtn, "max": _max}
