"""A popularity prior: what of an item's score does not depend on who asks, counted instead of learnt, as a column of its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.blocks.table import EmbeddingTable
from twotower.data.batch import Batch, scalar_column
from twotower.schema import ColumnSchema

# what the query's column holds. The candidate's is divided by it, so that cosines between candidates hardly see the prior
WEIGHT = 10.0


class PopularityPrior(nn.Module):
    """The candidate's last column: T log p / 10, the logarithm of the item's share of the events, counted and not trained.

    Beside it the query tower has `PriorWeight`, a column of 10, so that the score is <q, c> + T log p, and over the temperature T a
    logit is <q, c> / T + log p: the towers learn what raises or lowers an item's chance for this query, and p is known without
    them. In training p is the share of the training events. In evaluation mode it is another one, such as the share of late, since
    what is popular changes faster than what people like. With in-batch negatives and the "logq" correction, log p in training and
    log Q of the correction cancel. Zeros until `set_shares`; ids that are added by `extend` have the mean until it is called again.

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

    @torch.no_grad()
    def set_shares(self, *, trained: Tensor, served: Tensor) -> None:
        """Take the share of the events that each id has, (ids,), all above 0; a common factor changes no ranking.

        Args:
            trained: in the events that the towers are trained on.
            served: in those that the future will be like.

        Raises:
            ValueError: not one number for each id of the column, or one that is not above 0.
        """
        for name, table, shares in (("trained", self.trained, trained), ("served", self.served, served)):
            if len(shares) != table.input_dim or not bool((shares > 0).all()):
                raise ValueError(
                    f"{name} must hold a share above 0 for each of the {table.input_dim} ids of {self.column.name!r}; got "
                    f"{len(shares)} from {float(shares.min())} on. Count every id with a part of an event more."
                )
            table.weight.copy_(shares.log()[:, None])

    def forward(self, batch: Batch, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The column to set beside the vectors."""
        table = self.trained if self.training else self.served
        return table.lookup(scalar_column(batch, self.column.name)) * (self.temperature / WEIGHT)


class PriorWeight(nn.Module):
    """The query's last column, 10 in every row, which takes `PopularityPrior` of the candidate into the score.

    Example:
        >>> PriorWeight()({}, torch.zeros(2, 4)).tolist()
        [[10.0], [10.0]]
    """

    def forward(self, batch: Batch, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The column to set beside the vectors."""
        return torch.full_like(vectors[:, :1], WEIGHT)
