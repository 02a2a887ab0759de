"""A popularity prior: what of an item's score does not depend on who asks, counted instead of learnt, as a column of its own."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from twotower.blocks.table import EmbeddingTable
from twotower.data.batch import Batch, scalar_column
from twotower.data.fading import faded_counts, half_life, shares
from twotower.schema import ColumnSchema

# what the query's column holds. The candidate's is divided by it, so that cosines between candidates hardly see the prior
WEIGHT = 10.0


class PopularityPrior(nn.Module):
    """The candidate's last column: T log p / 10, the logarithm of the item's share of the events, counted and not trained.

    Beside it the query tower has `PriorWeight`, a column of 10, so that the score is <q, c> + T log p, and over the temperature T a
    logit is <q, c> / T + log p: the towers learn what raises or lowers an item's chance for this query, and p is known without
    them. In training p is the share of the training events. In evaluation mode it is another one, such as the share of late, since
    what is popular changes faster than what people like. With in-batch negatives and the "logq" correction, log p in training and
    log Q of the correction cancel. Zeros until `count` or `set_shares`; ids that are added by `extend` have about the mean
    until one of them is called again. An id that stands for several items, such as that of unknown ones, counts what all have.

    Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, add log p of the training in the same way to
    take popularity out of what is served; here another p is put back.

    Args:
        column: of candidate ids.
        temperature: T of the output's loss.

    Raises:
        ValueError: a temperature that is not above 0.

    Example:
        >>> item = ColumnSchema("item", tags=[Tags.ITEM_ID], dtype="int64", properties={"domain": {"min": 0, "max": 1}})
        >>> prior = PopularityPrior(item, temperature=0.1).eval()
        >>> prior.set_shares(trained=torch.tensor([0.5, 0.5]), served=torch.tensor([0.9, 0.1]))
        >>> prior({"item": torch.tensor([0])}, torch.zeros(1, 4))  # 0.1 log(0.9) / 10
        tensor([[-0.0011]])
    """

    def __init__(self, column: ColumnSchema, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, the T of the output's loss; got {temperature}.")
        self.column = column
        self.temperature = temperature
        self.trained, self.served = (
            EmbeddingTable(1, column, embeddings_initializer="zeros", trainable=False) for _ in range(2)
        )

    def count(self, ids: ArrayLike, times: ArrayLike, trained: ArrayLike | None = None) -> float:
        """Take the shares of some events: for serving those of late, where an event counts half after a half-life.

        The half-life is the one of which the last fifth of the events is foretold best from those before, of the whole span of
        time, a half of it, a quarter and so on. Every id has a tenth of an event more, so that nothing is impossible.

        Args:
            ids: (events,) encoded ids of the candidates, such as a column of a Dataset's `to_polars()`.
            times: (events,) numbers of any unit, in any order.
            trained: (rows,) ids of the rows that the towers are trained on, where these are others.

        Returns:
            float: the half-life, in the unit of the times.

        Raises:
            ValueError: no events, ids that the column does not have, or times that are missing or no numbers.
        """
        size = self.trained.input_dim
        own, late = self._checked(ids), self._checked(ids if trained is None else trained)
        moments = np.asarray(times)
        if moments.shape != own.shape or moments.dtype.kind not in "iuf":
            raise ValueError(
                f"times must be a number for each of the {len(own)} events, such as seconds since 1970; got {moments.dtype} of "
                f"shape {moments.shape}."
            )
        if not np.isfinite(moments).all():
            raise ValueError(
                f"{(~np.isfinite(moments)).sum()} of {len(own)} times are missing. Leave these events out."
            )
        order = np.argsort(moments, kind="stable")
        own, moments = own[order], moments[order].astype(np.float64)
        half = half_life(own, moments)
        self.set_shares(
            trained=shares(np.bincount(late, minlength=size)),
            served=shares(faded_counts(own, moments, moments[-1], half, size)),
        )
        return half

    def _checked(self, ids: ArrayLike) -> np.ndarray:
        found, size = np.asarray(ids), self.trained.input_dim
        whole = found.ndim == 1 and len(found) > 0 and found.dtype.kind in "iu"
        if not whole or found.min() < 0 or found.max() >= size:
            raise ValueError(
                f"ids must be encoded ids of {self.column.name!r}, whole numbers from 0 to {size - 1}, one for each event; got "
                f"{found.dtype} of shape {found.shape}{f' from {found.min()} to {found.max()}' if whole else ''}."
            )
        return found

    @torch.no_grad()
    def set_shares(self, *, trained: Tensor, served: Tensor) -> None:
        """Take the share of the events that each id has, (ids,), all above 0; a common factor changes no ranking.

        Args:
            trained: in the events that the towers are trained on.
            served: in those that the future will be like.

        Raises:
            ValueError: not one number for each id of the column, or one that is not above 0.
        """
        for name, table, given in (("trained", self.trained, trained), ("served", self.served, served)):
            if len(given) != table.input_dim or not bool((given > 0).all()):
                raise ValueError(
                    f"{name} must hold a share above 0 for each of the {table.input_dim} ids of {self.column.name!r}; got "
                    f"{len(given)} from {float(given.min())} on. Count every id with a part of an event more."
                )
            table.weight.copy_(given.log()[:, None])

    def forward(self, batch: Batch, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The column to set beside the vectors."""
        table = self.trained if self.training else self.served
        return table.lookup(scalar_column(batch, self.column.name)).detach() * (self.temperature / WEIGHT)


class PriorWeight(nn.Module):
    """The query's last column, 10 in every row, which takes `PopularityPrior` of the candidate into the score.

    Example:
        >>> PriorWeight()({}, torch.zeros(2, 4)).tolist()
        [[10.0], [10.0]]
    """

    def forward(self, batch: Batch, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The column to set beside the vectors."""
        return torch.full_like(vectors[:, :1], WEIGHT)
