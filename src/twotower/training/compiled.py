"""What compile() chose: optimiser, losses, metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from twotower.errors import choose, unknown
from twotower.metrics import DEFAULT_METRICS, Metrics, RankingMetric, resolve_metrics
from twotower.optimizers import OPTIMIZERS, SCHEDULES, TABLE_OPTIMIZERS, MakeOptimizer, make_optimizer
from twotower.outputs import ModelOutput, RowLoss


@dataclass(frozen=True)
class Compiled:
    """The choices of compile(), checked. `losses` and `loss_weights` are by output's name."""

    optimizer: str | MakeOptimizer = "adam"
    learning_rate: float | None = None
    losses: Mapping[str, str | RowLoss] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[RankingMetric, ...] = DEFAULT_METRICS
    table_optimizer: str | None = None
    table_learning_rate: float | None = None
    encode_rows: int | None = None
    every_position: str | None = None
    schedule: str = "constant"
    warmup: float = 0.0

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate changes in a fit."""
        return self.schedule != "constant" or self.warmup > 0

    def loss_of(self, output: str) -> str | RowLoss | None:
        """The chosen loss of an output, None for its default."""
        return self.losses.get(output)

    def weight_of(self, output: str) -> float:
        """The weight of an output's loss."""
        return self.loss_weights.get(output, 1.0)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The chosen optimisers over the trainable parameters."""
        return make_optimizer(model, self.optimizer, self.learning_rate, self.table_optimizer, self.table_learning_rate)


def check_compiled(
    outputs: Sequence[ModelOutput],
    optimizer: str | MakeOptimizer,
    loss: str | RowLoss | Mapping[str, str | RowLoss] | None,
    metrics: Metrics | None,
    loss_weights: Mapping[str, float] | None,
    learning_rate: float | None,
    table_optimizer: str | None,
    table_learning_rate: float | None,
    encode_rows: int | None,
    every_position: str | None,
    schedule: str,
    warmup: float,
) -> Compiled:
    """Resolve what the user gave, so that a wrong name fails in compile and not in the first step."""
    by_name = {output.name: output for output in outputs}
    losses = loss if isinstance(loss, Mapping) else _for_only_output(loss, by_name)
    for name in [*losses, *(loss_weights or {})]:
        if name not in by_name:
            raise ValueError(unknown("output", name, by_name))
    for name, chosen in losses.items():
        by_name[name].resolve_loss(chosen)
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise ValueError(unknown("optimizer", optimizer, OPTIMIZERS))
    if learning_rate is not None and not (isinstance(optimizer, str) and learning_rate > 0):
        raise ValueError(
            f"learning_rate={learning_rate} needs an optimizer by name and must be above 0; a function sets its own."
        )
    if table_optimizer is not None and table_optimizer not in TABLE_OPTIMIZERS:
        raise ValueError(unknown("table_optimizer", table_optimizer, TABLE_OPTIMIZERS))
    if table_learning_rate is not None and not (table_optimizer not in (None, "dense") and table_learning_rate > 0):
        raise ValueError(
            f"table_learning_rate={table_learning_rate} needs a table_optimizer that is not dense, and must be above 0."
        )
    if encode_rows is not None and encode_rows < 1:
        raise ValueError(f"encode_rows must be at least 1, got {encode_rows}; None encodes all rows at once.")
    choose("schedule", schedule, SCHEDULES)
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup}: expected a share of the fit's steps, from 0 to below 1, such as 0.05.")
    return Compiled(
        optimizer,
        learning_rate,
        dict(losses),
        dict(loss_weights or {}),
        resolve_metrics(metrics),
        table_optimizer,
        table_learning_rate,
        encode_rows,
        every_position,
        schedule,
        warmup,
    )


def _for_only_output(loss: str | RowLoss | None, by_name: Mapping[str, ModelOutput]) -> Mapping[str, str | RowLoss]:
    if loss is None:
        return {}
    if len(by_name) > 1:
        raise ValueError(f"the model has several outputs; give loss as a dict by output: {sorted(by_name)}.")
    return {next(iter(by_name)): loss}
