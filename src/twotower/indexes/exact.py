"""Exact search: every query against every candidate."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ExactIndex(nn.Module):
    """The k largest inner products, exactly.

    Args:
        vectors: (N, D) candidate vectors.
        tile: candidates scored at once, so that memory stays at B x tile for any N.

    Example:
        >>> index = ExactIndex(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        >>> index.search(torch.tensor([[2.0, 1.0]]), k=2)
        (tensor([[3., 2.]]), tensor([[2, 0]]))
    """

    vectors: Tensor

    def __init__(self, vectors: Float[Tensor, "N D"], tile: int = 262_144) -> None:
        super().__init__()
        if vectors.ndim != 2:
            raise ValueError(f"candidate vectors must be (N, D), got shape {tuple(vectors.shape)}.")
        self.register_buffer("vectors", vectors.detach().float().clone())
        self.tile = tile

    def __len__(self) -> int:
        return len(self.vectors)

    def search(
        self, queries: Float[Tensor, "B D"], k: int, exclude: Int[Tensor, "pairs 2"] | None = None
    ) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """Scores and positions of the k best candidates, best first.

        Args:
            queries: (B, D).
            k: up to N.
            exclude: (pairs, 2) query row and candidate position that must not come; such places have score -inf when
                fewer than k candidates are left.

        Raises:
            ValueError: k beyond N, or queries of another width.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be from 1 to the number of candidates, {len(self)}; got {k}.")
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries have width {queries.shape[1]}, the index holds vectors of width {self.vectors.shape[1]}: "
                "they come from different models."
            )
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(self), self.tile):
            scores = queries.float() @ self.vectors[start : start + self.tile].T
            if exclude is not None:
                here = exclude[(exclude[:, 1] >= start) & (exclude[:, 1] < start + scores.shape[1])]
                scores[here[:, 0], here[:, 1] - start] = -torch.inf
            values, places = scores.topk(min(k, scores.shape[1]), dim=1)
            best = (values, places + start) if best is None else _merge(best, (values, places + start), k)
        assert best is not None  # k <= N, so there is at least one tile
        return best


def _merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    scores, places = torch.cat([one[0], other[0]], 1), torch.cat([one[1], other[1]], 1)
    values, order = scores.topk(min(k, scores.shape[1]), dim=1)
    return values, places.gather(1, order)
