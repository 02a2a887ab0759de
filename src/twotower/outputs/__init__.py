"""Outputs: from the vectors of a step to a loss in training, and to a score in prediction."""

from twotower.outputs.base import DotProduct, ModelOutput, RowLoss
from twotower.outputs.contrastive import ContrastiveOutput
from twotower.outputs.targets import BinaryOutput, RegressionOutput, pair_target

__all__ = [
    "BinaryOutput",
    "ContrastiveOutput",
    "DotProduct",
    "ModelOutput",
    "RegressionOutput",
    "RowLoss",
    "pair_target",
]
