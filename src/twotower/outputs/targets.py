"""Outputs that learn a target column of each pair: a probability or a number."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.mlp import LazyDense
from twotower.candidates import Step
from twotower.data.batch import Batch, scalar_column
from twotower.errors import explain_options
from twotower.outputs.base import DotProduct, ModelOutput, RowLoss
from twotower.schema import ColumnSchema


def _bce(logit: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def _mse(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).square()


def _mae(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).abs()


def _huber(value: Tensor, target: Tensor) -> Tensor:
    return F.huber_loss(value, target, reduction="none")


BINARY_LOSSES: dict[str, RowLoss] = {"binary_crossentropy": _bce, "bce": _bce}
REGRESSION_LOSSES: dict[str, RowLoss] = {"mse": _mse, "mean_squared_error": _mse, "mae": _mae, "huber": _huber}


class BinaryOutput(ModelOutput):
    """The probability of a 0/1 target: sigmoid((w v + b) / T), v the value of the pair, w and b learnt.

    The loss is taken on the logit, so it stays exact where the sigmoid saturates.

    Args:
        target: the 0/1 column.
        pre: a module from (query, candidate) to (B, width); DotProduct() by default.
        logits_temperature: T > 0, in training and prediction.
        sample_weight: a column of row weights >= 0.
        name: of the task; `<target>/binary_output` by default.
    """

    @explain_options
    def __init__(
        self,
        target: str | ColumnSchema,
        pre: nn.Module | None = None,
        *,
        logits_temperature: float = 1.0,
        sample_weight: str | None = None,
        name: str | None = None,
    ) -> None:
        target = target.name if isinstance(target, ColumnSchema) else target
        super().__init__(name or f"{target}/binary_output", BINARY_LOSSES, target, sample_weight)
        if not logits_temperature > 0:
            raise ValueError(f"logits_temperature must be above 0, got {logits_temperature}.")
        self.pre = pre or DotProduct()
        self.logits_temperature = logits_temperature
        self.to_logit = _head()

    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The mean loss over the batch."""
        logit = self._logit(step.queries().float(), step.positives().float()).squeeze(1)
        rows = self.resolve_loss(loss)(logit, pair_target(step.batch, str(self.target)))
        return (rows * self.row_weights(step.batch, rows)).sum()

    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The probability of each pair."""
        return torch.sigmoid(self._logit(query, candidate))

    def _logit(self, query: Tensor, candidate: Tensor) -> Tensor:
        return self.to_logit(self.pre(query, candidate)) / self.logits_temperature


class RegressionOutput(ModelOutput):
    """A number: w v + b, v the value of the pair, w and b learnt; mean squared error by default.

    Args:
        target: the column of numbers.
        pre: a module from (query, candidate) to (B, width); DotProduct() by default.
        sample_weight: a column of row weights >= 0.
        name: of the task; `<target>/regression_output` by default.
    """

    @explain_options
    def __init__(
        self,
        target: str | ColumnSchema,
        pre: nn.Module | None = None,
        *,
        sample_weight: str | None = None,
        name: str | None = None,
    ) -> None:
        target = target.name if isinstance(target, ColumnSchema) else target
        super().__init__(name or f"{target}/regression_output", REGRESSION_LOSSES, target, sample_weight)
        self.pre = pre or DotProduct()
        self.to_value = _head()

    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The mean loss over the batch."""
        value = self.predict(step.queries().float(), step.positives().float()).squeeze(1)
        rows = self.resolve_loss(loss)(value, pair_target(step.batch, str(self.target)))
        return (rows * self.row_weights(step.batch, rows)).sum()

    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The predicted number of each pair."""
        return self.to_value(self.pre(query, candidate))


def _head() -> nn.Module:
    """w v + b, from w = 1 and b = 0: a larger product starts, and so ends, as a better pair."""
    return LazyDense(1, True, "ones", "zeros")


def pair_target(batch: Batch, name: str) -> Float[Tensor, "B"]:
    """A target column as float32."""
    return scalar_column(batch, name).to(torch.float32)
