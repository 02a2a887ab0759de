"""Optimisers by name."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from twotower.errors import choose

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# name: class and default learning rate, the class's own where it has one
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], float]] = {
    "adam": (torch.optim.Adam, 1e-3),
    "adamw": (torch.optim.AdamW, 1e-3),
    "adagrad": (torch.optim.Adagrad, 1e-2),
    "rmsprop": (torch.optim.RMSprop, 1e-3),
    "sgd": (torch.optim.SGD, 1e-2),
}


def make_optimizer(
    optimizer: str | MakeOptimizer, learning_rate: float | None, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser that a name or a function stands for, over the trainable parameters.

    Raises:
        ValueError: an unknown name, or a learning rate together with a function, which sets its own.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not isinstance(optimizer, str):
        if learning_rate is not None:
            raise ValueError(
                "learning_rate goes with an optimizer's name; a function sets its own: "
                "optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01)."
            )
        return optimizer(trainable)
    kind, default = choose("optimizer", optimizer, OPTIMIZERS)
    return kind(trainable, lr=default if learning_rate is None else learning_rate)  # type: ignore[call-arg]
