"""How much of the exact answer an index finds."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.indexes.rows import Rows
from twotower.indexes.scan import scan

# queries that a recall is measured with, where none were given
SAMPLE = 512


def recall_of(found: Int[np.ndarray, "Q W"], best: Int[np.ndarray, "Q K"]) -> float:
    """The share of the best that are among the found."""
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, best, strict=True)]) / best.shape[1])


def sample_queries(vectors: Float[Tensor, "N D"], queries: Tensor | None, dim: int) -> Float[Tensor, "Q D"]:
    """The given queries, at most 2,048 of them, or candidates in their place, drawn with a fixed seed."""
    if queries is not None and (
        queries.ndim != 2 or queries.shape[1] != dim or not len(queries) or not bool(torch.isfinite(queries).all())
    ):
        raise ValueError(f"queries must be (Q, {dim}), finite and at least one, got shape {tuple(queries.shape)}.")
    source = vectors if queries is None else queries.detach().float().cpu()
    most = SAMPLE if queries is None else 4 * SAMPLE
    return source[torch.randperm(len(source), generator=torch.Generator().manual_seed(1))[:most]]


def nearest(
    rows: Rows, queries: Float[Tensor, "Q D"], k: int, some: Int[Tensor, "S"] | None = None
) -> Int[Tensor, "Q K"]:
    """The slots of the best k of all rows, none of which is empty, or of some of them."""
    vectors = rows.vectors if some is None else rows.vectors[some]
    among = torch.arange(rows.used) if some is None else some
    return among[scan(queries, k, vectors, among, rows.largest_norm)[1]]


class LowRecallWarning(UserWarning):
    """An index finds less of the exact answer than was asked for; the text says how much, and what to do."""


def warn_of_low_recall(what: str, recall: float, k: int, target: float, advice: str) -> None:
    """LowRecallWarning if the recall is below the target."""
    if recall < target:
        text = f"the {what} finds {recall:.3f} of the best {k} candidates, less than target_recall={target}. {advice}"
        warnings.warn(text, LowRecallWarning, stacklevel=4)
