"""Optimisers by name: one for the dense parameters, one for the embedding tables."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from twotower.blocks.table import EmbeddingTable
from twotower.errors import choose
from twotower.optimizers.clipping import clip_gradients, gradient_norm
from twotower.optimizers.rows import (
    LazyAdam,
    OtherOptimizerError,
    RowAdagrad,
    RowAdam,
    RowOptimizer,
    RowSGD,
    RowwiseAdagrad,
)
from twotower.optimizers.schedule import SCHEDULES, make_schedule
from twotower.optimizers.split import SplitOptimizer

__all__ = [
    "OPTIMIZERS", "SCHEDULES", "TABLE_OPTIMIZERS", "LazyAdam", "MakeOptimizer", "OtherOptimizerError", "RowAdagrad",
    "RowAdam", "RowOptimizer", "RowSGD", "RowwiseAdagrad", "SplitOptimizer", "clip_gradients", "gradient_norm",
    "make_optimizer", "make_schedule", "use_dense_gradients",
]  # fmt: skip

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# name: class, default learning rate, and the table optimiser that goes with it where the tables are large
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float, str]] = {
    # fused: the same step in a third of the time
    "adam": (partial(torch.optim.Adam, fused=True), 1e-3, "row_adam"),
    "adamw": (partial(torch.optim.AdamW, fused=True), 1e-3, "dense"),
    "adagrad": (torch.optim.Adagrad, 1e-2, "adagrad"),
    "rmsprop": (torch.optim.RMSprop, 1e-3, "dense"),
    "sgd": (torch.optim.SGD, 1e-2, "sgd"),
}
# name: class and default learning rate; "dense" leaves the tables to the other optimiser
TABLE_OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float] | None] = {
    "lazy_adam": (LazyAdam, 1e-3),
    "row_adam": (RowAdam, 1e-3),
    "rowwise_adagrad": (RowwiseAdagrad, 1e-2),
    "adagrad": (RowAdagrad, 1e-2),
    "sgd": (RowSGD, 1e-2),
    "dense": None,
}
# a table of fewer rows is updated densely unless a table optimiser is asked for: there are no rows to spare
LARGE_TABLE_ROWS = 10_000


def make_optimizer(
    module: nn.Module,
    optimizer: str | MakeOptimizer,
    learning_rate: float | None = None,
    table_optimizer: str | None = None,
    table_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """The optimiser of a module's trainable parameters; tells the tables which form of gradient it takes.

    Args:
        module: a model.
        optimizer: a name, or a function from parameters to an optimiser.
        learning_rate: of a named optimiser; None for its default.
        table_optimizer: for all embedding tables, by name. None: a named optimiser brings its own for tables of at
            least 10,000 rows, and a function takes the tables as well.
        table_learning_rate: of the table optimiser; None for `learning_rate`, or its default where that is None too.
    """
    tables = _tables(module, table_optimizer, optimizer)
    use_dense_gradients(module)
    for table in tables:
        table.row_gradients = True
    weights = list(dict.fromkeys(table.weight for table in tables))  # tied tables have one
    rest = [p for p in module.parameters() if p.requires_grad and not any(p is weight for weight in weights)]
    if not rest and not weights:
        raise ValueError(
            "nothing to train: every parameter is frozen. Call requires_grad_(True) on a part of the model."
        )
    parts = [_dense(optimizer, learning_rate, rest)] if rest else []
    if tables:
        name = table_optimizer or choose("optimizer", str(optimizer), OPTIMIZERS)[2]
        made = choose("table_optimizer", name, TABLE_OPTIMIZERS)
        assert made is not None
        kind, default = made
        rate = default if learning_rate is None else learning_rate
        parts.append(kind(weights, lr=rate if table_learning_rate is None else table_learning_rate))
    return parts[0] if len(parts) == 1 else SplitOptimizer(parts)


def use_dense_gradients(module: nn.Module) -> None:
    """Back to the gradients that any optimiser of PyTorch takes."""
    for part in module.modules():
        if isinstance(part, EmbeddingTable):
            part.row_gradients = False


def _tables(module: nn.Module, chosen: str | None, optimizer: str | MakeOptimizer) -> Sequence[EmbeddingTable]:
    """The tables that are updated by their rows."""
    own = choose("optimizer", optimizer, OPTIMIZERS)[2] if isinstance(optimizer, str) else "dense"
    if (chosen or own) == "dense":
        return []
    tables = [t for t in module.modules() if isinstance(t, EmbeddingTable) and t.weight.requires_grad]
    return [t for t in tables if chosen is not None or t.input_dim >= LARGE_TABLE_ROWS]


def _dense(
    optimizer: str | MakeOptimizer, learning_rate: float | None, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    if not isinstance(optimizer, str):
        return optimizer(parameters)
    kind, default, _ = choose("optimizer", optimizer, OPTIMIZERS)
    made = kind(parameters, lr=default if learning_rate is None else learning_rate)
    # in float16 the gradients are unscaled before they are clipped and measured, not within a fused step
    made._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return made
