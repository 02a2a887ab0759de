"""Initial values of weights, by the names that Keras users know."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.errors import choose

Initializer = Callable[[Tensor], object]

INITIALIZERS: dict[str, Initializer] = {
    "uniform": partial(nn.init.uniform_, a=-0.05, b=0.05),
    "normal": partial(nn.init.normal_, std=0.05),
    "truncated_normal": partial(nn.init.trunc_normal_, std=0.05, a=-0.1, b=0.1),
    "glorot_uniform": nn.init.xavier_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "he_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "he_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
}


def initializer(name: str | Initializer) -> Initializer:
    """The function that fills a tensor in place, by name or as it is."""
    return choose("initializer", name, INITIALIZERS) if isinstance(name, str) else name


def like_the_mean(rows: Float[Tensor, "R D"], number: int) -> Float[Tensor, "M D"]:
    """New rows: the mean of some rows, with noise of 1 % of their standard deviation in each dimension."""
    mean, deviation = rows.float().mean(0), rows.float().std(0, correction=0)
    return (mean + 0.01 * deviation * torch.randn(number, len(mean), device=rows.device)).to(rows.dtype)
