"""How the learning rate changes over a fit: constant, linear and cosine, with a warm-up."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

# name: the factor of the learning rate at a share of the way from the end of the warm-up to the last step
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda way: 1.0,
    "linear": lambda way: 1.0 - way,
    "cosine": lambda way: 0.5 * (1.0 + math.cos(math.pi * way)),
}


def factor(schedule: str, warmup: float, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step, from 0 on, of so many; "linear" and "cosine" reach 0 after the last one.

    Args:
        schedule: one of SCHEDULES.
        warmup: the share of the steps in which the factor rises to 1 in equal parts.
        step: the optimiser steps made so far.
        steps: of the whole fit.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return SCHEDULES[schedule](min(1.0, (step - rising) / max(1, steps - rising)))


def make_schedule(optimizer: torch.optim.Optimizer, schedule: str, warmup: float, steps: int) -> LambdaLR:
    """PyTorch's scheduler of all of an optimiser's groups, to be stepped after every optimiser step."""
    return LambdaLR(optimizer, lambda step: factor(schedule, warmup, step, steps))
