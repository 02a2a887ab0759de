"""Initial values of weights, by the names that Keras users know."""

from collections.abc import Callable
from functools import partial

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
