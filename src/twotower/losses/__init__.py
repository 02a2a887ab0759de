"""Losses: functions `(positive (B,), negative (B, N)) -> (B,)`. Any callable of that form is a loss."""

from collections.abc import Callable

from torch import Tensor

from twotower.losses.fused import fused_softmax
from twotower.losses.pairwise import bpr, bpr_max, hinge, logistic, top1, top1_max, top1_v2
from twotower.losses.softmax import softmax

__all__ = [
    "LOSSES",
    "Loss",
    "bpr",
    "bpr_max",
    "fused_softmax",
    "hinge",
    "logistic",
    "softmax",
    "top1",
    "top1_max",
    "top1_v2",
]

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "softmax": softmax,
    "categorical_crossentropy": softmax,
    "ce": softmax,
    "bpr": bpr,
    "bpr-max": bpr_max,
    "top1": top1,
    "top1_v2": top1_v2,
    "top1-max": top1_max,
    "logistic": logistic,
    "hinge": hinge,
}
