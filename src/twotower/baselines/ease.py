"""The linear autoencoder without a diagonal, solved exactly."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.baselines.base import above_zero, at_least
from twotower.baselines.matrix import MatrixBaseline
from twotower.data.dataset import Dataset
from twotower.errors import need

BLOCK = 512  # items handled at once


class EASE(MatrixBaseline):
    """Scores X B, where B rebuilds the matrix X of users and items with a zero diagonal and least squares.

    With P = (X'X + regularization I)^-1, B_ij = -P_ij / P_jj and B_jj = 0. Steck, "Embarrassingly Shallow Autoencoders for
    Sparse Data", WWW 2019. Solved in float32 and in place: one N x N matrix of 4 N^2 bytes is held, and about N^3 multiplications
    and additions are done (41,000 items: 6.7 GB, a quarter of an hour on one core). An item without training events scores 0.

    Args:
        train, user, item, catalog: as of every Baseline.
        regularization: lambda of the paper, above 0; its best value grows with the data, from tens to thousands.
        max_items: the most items, those of `train` and `catalog` together, for which N x N numbers are made; the default is
            8.1 GB.

    Attributes:
        weights: B, (N, N) float32.

    Raises:
        ValueError: as every Baseline, an option is out of range, there are more than `max_items` items, or the matrix is so badly
            conditioned that float32 cannot invert it.
        ImportError: SciPy is not installed.
    """

    def __init__(
        self,
        train: Dataset,
        user: str,
        item: str,
        catalog: Dataset | None = None,
        *,
        regularization: float = 300.0,
        max_items: int = 45_000,
    ) -> None:
        above_zero("regularization", regularization)
        at_least("max_items", max_items, 1)
        self.regularization = regularization
        self.max_items = max_items
        super().__init__(train, user, item, catalog)

    def fit(self) -> None:
        """The closed form."""
        n = len(self.items)
        if n > self.max_items:
            raise ValueError(
                f"EASE makes a matrix of items x items: {n:,} items need {4 * n * n / 1e9:.1f} GB and minutes to hours. Leave out "
                f"rare items (k_core), or, with the memory at hand, give max_items={n} (now {self.max_items:,})."
            )
        lapack = need("scipy.linalg.lapack", "EASE", "baselines")
        gram = np.empty((n, n), np.float32, order="F")  # LAPACK works in place on columns
        for start in range(0, n, BLOCK):
            some = slice(start, start + BLOCK)
            gram[:, some] = (self.matrix.T @ self.matrix[:, some]).toarray()
        gram[np.diag_indices(n)] += np.float32(self.regularization)
        root, failed = lapack.spotrf(gram, lower=1, clean=0, overwrite_a=1)
        if not failed:
            inverse, failed = lapack.spotri(root, lower=1, overwrite_c=1)
        if failed:
            raise ValueError(
                f"the matrix of items cannot be inverted in float32 with regularization={self.regularization}: raise it."
            )
        for start in range(0, n, BLOCK):  # LAPACK leaves the inverse below the diagonal
            stop = min(start + BLOCK, n)
            corner = np.tril(inverse[start:stop, start:stop])
            inverse[start:stop, start:stop] = corner + np.tril(corner, -1).T
            inverse[start:stop, stop:] = inverse[stop:, start:stop].T
        self.weights = inverse.T  # the same numbers, row after row, as the product with a sparse matrix wants them
        self.weights /= -self.weights.diagonal().copy()
        np.fill_diagonal(self.weights, 0)

    def score_rows(self, rows: Int[np.ndarray, "R"]) -> Float[Tensor, "R N"]:
        """X B of some rows."""
        return torch.from_numpy(self.matrix[rows] @ self.weights)
