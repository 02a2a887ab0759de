"""Losses: functions `(positive (B,), negative (B, N)) -> (B,)`. Any callable of that form is a loss."""

from collections.abc import Callable

from torch import Tensor

from twotower.losses.fused import fused_ratio, fused_softmax
from twotower.losses.pairwise import bpr, bpr_max, hinge, logistic, top1, top1_max, top1_v2
from twotower.losses.pointwise import bce, ccl, gbce
from twotower.losses.softmax import bsl, psl, slatk, softmax

__all__ = [
    "LOSSES", "UNCORRECTED", "Loss",
    "bce", "bpr", "bpr_max", "bsl", "ccl", "fused_ratio", "fused_softmax", "gbce", "hinge", "logistic", "psl",
    "slatk", "softmax", "top1", "top1_max", "top1_v2",
]  # fmt: skip

Loss = Callable[[Tensor, Tensor], Tensor]

# losses that estimate no sum over the catalogue, which is what the sampling-bias correction puts right
UNCORRECTED: tuple[Callable[..., Tensor], ...] = (
    bpr, bpr_max, top1, top1_v2, top1_max, logistic, hinge, bce, gbce, ccl, psl,
)  # fmt: skip
# gbce must be told the sampling rate, so it has no name: loss=functools.partial(gbce, sampling_rate=...)
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
    "bce": bce,
    "binary_crossentropy": bce,
    "ccl": ccl,
    "bsl": bsl,
    "psl": psl,
    "slatk": slatk,
}
