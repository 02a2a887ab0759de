"""What every output is: a task with a training loss and a score of pairs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from twotower.candidates import Step
from twotower.data.batch import Batch, scalar_column
from twotower.errors import choose

RowLoss = Callable[[Tensor, Tensor], Tensor]


class ModelOutput(nn.Module, ABC):
    """One task of a model.

    Args:
        name: stands before the task's loss and metrics when a model has several outputs.
        losses: the losses it can be compiled with; the first is the default.
        target: the target column, if it reads one.
        sample_weight: the column of row weights, if it reads one.
    """

    def __init__(self, name: str, losses: Mapping[str, RowLoss], target: str | None, sample_weight: str | None) -> None:
        super().__init__()
        self.name = name
        self.losses = losses
        self.target = target
        self.sample_weight = sample_weight

    @abstractmethod
    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The training loss, a scalar; `loss` replaces the output's default."""

    @abstractmethod
    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The score of each row's pair."""

    def resolve_loss(self, loss: str | RowLoss | None) -> RowLoss:
        """The loss function by name, as it is, or the default; ValueError with the choices."""
        if loss is None:
            return next(iter(self.losses.values()))
        return choose(f"loss for {self.name}", loss, self.losses) if isinstance(loss, str) else loss

    def columns(self) -> list[str]:
        """The target and weight columns that training reads."""
        return [c for c in (self.target, self.sample_weight) if c is not None]

    def row_weights(
        self, batch: Batch, like: Float[Tensor, "B"], counts: Bool[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B"]:
        """w / sum(w) of the rows that count, w from the weight column or 1, 0 for the others; all 0 if all w are 0."""
        weight = torch.ones_like(like)
        if self.sample_weight is not None:
            weight = scalar_column(batch, self.sample_weight).to(like.dtype)
            if bool((weight < 0).any()):
                raise ValueError(
                    f"column {self.sample_weight!r} holds negative weights, down to {float(weight.min())}."
                )
        weight = weight if counts is None else weight * counts
        total = weight.sum()
        return weight / torch.where(total > 0, total, 1.0)


class DotProduct(nn.Module):
    """<q, c> of each row, (B, 1).

    Example:
        >>> DotProduct()(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])
    """

    def forward(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """(B, D) twice to (B, 1)."""
        return (query * candidate).sum(-1, keepdim=True)
