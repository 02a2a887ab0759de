"""Neighbours of the items that a user had."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.baselines.base import at_least
from twotower.baselines.matrix import MatrixBaseline
from twotower.data.dataset import Dataset
from twotower.errors import need

BLOCK = 2048  # items whose pairs are held at once


class ItemKNN(MatrixBaseline):
    """The sum, over the user's training items, of their cosine with the item: |A and B| / (sqrt(|A| |B|) + shrink).

    A and B are the sets of users of two items. Only the `neighbors` nearest items of each item count; among equally near
    ones, the first in `items`. Popularity, far smaller than any cosine, decides ties. Sarwar et al., "Item-based Collaborative
    Filtering Recommendation Algorithms", WWW 2001; the shrinkage is that of Bell and Koren, "Scalable Collaborative Filtering
    with Jointly Derived Neighborhood Interpolation Weights", ICDM 2007.

    Args:
        train, user, item, catalog: as of every Baseline.
        neighbors: how many of each item, at least 1.
        shrink: at least 0; the larger, the less do small sets count.

    Raises:
        ValueError: as every Baseline, or an option is out of range.
        ImportError: SciPy is not installed.
    """

    def __init__(
        self,
        train: Dataset,
        user: str,
        item: str,
        catalog: Dataset | None = None,
        *,
        neighbors: int = 100,
        shrink: float = 10.0,
    ) -> None:
        at_least("neighbors", neighbors, 1)
        at_least("shrink", shrink, 0)
        self.neighbors = neighbors
        self.shrink = shrink
        super().__init__(train, user, item, catalog)

    def fit(self) -> None:
        """Cosines between the items' user sets."""
        size = np.sqrt(self.popularity.numpy())
        sparse, parts = need("scipy.sparse", "ItemKNN", "baselines"), []
        by_item = self.matrix.T.tocsr()
        for start in range(0, len(self.items), BLOCK):  # all pairs that occur together would not fit into memory
            together = (by_item[start : start + BLOCK] @ self.matrix).tocoo()
            row = together.row + start
            weight = together.data / (size[row] * size[together.col] + self.shrink)
            parts.append(_keep_largest(row, together.col, weight, self.neighbors))
        row, column, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
        self.weights = sparse.csr_matrix((weight, (row, column)), shape=(len(self.items), len(self.items)))
        self._ties = 1e-6 * self.popularity / (self.popularity.max() + 1)

    def score_rows(self, rows: Int[np.ndarray, "R"]) -> Float[Tensor, "R N"]:
        """Sums of neighbours' weights."""
        return torch.from_numpy((self.matrix[rows] @ self.weights).toarray()) + self._ties


def _keep_largest(row: np.ndarray, column: np.ndarray, weight: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """Row, column and weight of the `most` largest weights of each row, the diagonal left out."""
    off = row != column
    row, column, weight = row[off], column[off], weight[off].astype(np.float32)
    order = np.lexsort((column, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < most
    return row[kept], column[kept], weight[kept]
