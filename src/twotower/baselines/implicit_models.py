"""Matrix factorisations of the library `implicit` (Ben Frederickson, MIT licence), an optional package."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.baselines.base import above_zero, at_least
from twotower.baselines.matrix import MatrixBaseline
from twotower.data.dataset import Dataset
from twotower.errors import need


class ImplicitModel(MatrixBaseline):
    """Scores are inner products of the user's and the item's factors. An item without training events scores 0.

    Users without training events have no factors: they get the popular items, as in every MatrixBaseline.

    Args:
        train, user, item, catalog: as of every Baseline.
        factors, iterations, threads: at least 1.
        regularization: at least 0.
        seed: of the first factors and of the draws.

    Attributes:
        model: the fitted model of `implicit`.
    """

    def __init__(
        self,
        train: Dataset,
        user: str,
        item: str,
        catalog: Dataset | None = None,
        *,
        factors: int,
        iterations: int,
        regularization: float,
        seed: int,
        threads: int,
    ) -> None:
        at_least("factors", factors, 1)
        at_least("iterations", iterations, 1)
        at_least("regularization", regularization, 0)
        at_least("threads", threads, 1)
        self.options = {
            "factors": factors,
            "iterations": iterations,
            "regularization": regularization,
            "random_state": seed,
            "num_threads": threads,
        }
        super().__init__(train, user, item, catalog)

    @abstractmethod
    def make(self) -> Any:
        """The model of `implicit`, not yet fitted."""

    def fit(self) -> None:
        """Fit on the CPU, the numerical library on one thread: with more it slows implicit's own threads down."""
        name = type(self).__name__
        need("implicit", name, "implicit")  # first: the limits reach only libraries that are loaded
        limits = need("threadpoolctl", name, "implicit").threadpool_limits
        with limits(1, "blas"):
            self.model = self.make()
            self.model.fit(self.matrix, show_progress=False)
        self._users = torch.from_numpy(self.model.user_factors)
        self._items = torch.from_numpy(self.model.item_factors)

    def score_rows(self, rows: Int[np.ndarray, "R"]) -> Float[Tensor, "R N"]:
        """Inner products."""
        return self._users[torch.from_numpy(rows.copy())] @ self._items.T


class ImplicitALS(ImplicitModel):
    """Implicit-feedback matrix factorisation by alternating least squares (iALS), from the library `implicit`.

    Every pair of user and item is fitted to 1 or 0; one that occurred has the weight `alpha`, any other the weight 1. Hu, Koren
    and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008 (whose weight is 1 + alpha). Its quality
    depends much on `alpha`, `regularization` and `factors`: Rendle et al., "Revisiting the Performance of iALS on Item
    Recommendation Benchmarks", RecSys 2022.

    Args:
        train, user, item, catalog: as of every Baseline.
        factors: the width of the vectors.
        alpha: above 0.
        regularization: of the squared length of each vector, not scaled by its number of events.
        iterations: rounds over users and items.
        seed: of the first factors.
        threads: on the CPU; the result does not depend on it.

    Raises:
        ValueError: as every Baseline, or an option is out of range.
        ImportError: `implicit` is not installed.
    """

    def __init__(
        self,
        train: Dataset,
        user: str,
        item: str,
        catalog: Dataset | None = None,
        *,
        factors: int = 64,
        alpha: float = 10.0,
        regularization: float = 1.0,
        iterations: int = 15,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        above_zero("alpha", alpha)
        self.alpha = alpha
        super().__init__(
            train, user, item, catalog,
            factors=factors, iterations=iterations, regularization=regularization, seed=seed, threads=threads,
        )  # fmt: skip

    def make(self) -> Any:
        """AlternatingLeastSquares."""
        module = need("implicit.cpu.als", "ImplicitALS", "implicit")
        return module.AlternatingLeastSquares(alpha=self.alpha, **self.options)


class ImplicitBPR(ImplicitModel):
    """Matrix factorisation by Bayesian personalised ranking, from the library `implicit`.

    Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, with an item bias. The negative of a
    step is the item of a random event, so drawn by popularity, where the paper draws uniformly.

    Args:
        train, user, item, catalog: as of every Baseline.
        factors: the width of the vectors.
        learning_rate: above 0.
        regularization: of the squared length of the vectors of a step.
        iterations: passes over the events.
        seed: of the first factors and of the draws.
        threads: on the CPU; with more than one, the result differs a little from run to run.

    Raises:
        ValueError: as every Baseline, or an option is out of range.
        ImportError: `implicit` is not installed.
    """

    def __init__(
        self,
        train: Dataset,
        user: str,
        item: str,
        catalog: Dataset | None = None,
        *,
        factors: int = 64,
        learning_rate: float = 0.05,
        regularization: float = 0.01,
        iterations: int = 100,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        above_zero("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        super().__init__(
            train, user, item, catalog,
            factors=factors, iterations=iterations, regularization=regularization, seed=seed, threads=threads,
        )  # fmt: skip

    def make(self) -> Any:
        """BayesianPersonalizedRanking."""
        module = need("implicit.cpu.bpr", "ImplicitBPR", "implicit")
        return module.BayesianPersonalizedRanking(learning_rate=self.learning_rate, **self.options)
