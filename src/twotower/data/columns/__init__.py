"""The kinds of columns; a new one is a file here and its line in KINDS."""

from twotower.data.columns.base import Column
from twotower.data.columns.buckets import Bucketized
from twotower.data.columns.categorical import Categorical
from twotower.data.columns.hashed import Hashed
from twotower.data.columns.numeric import Age, Numeric
from twotower.data.columns.text import Text
from twotower.data.columns.times import Timestamp
from twotower.data.columns.vectors import PretrainedVectors, Vector

__all__ = [
    "KINDS", "Age", "Bucketized", "Categorical", "Column", "Hashed", "Numeric", "PretrainedVectors", "Text", "Timestamp", "Vector",
]  # fmt: skip

KINDS: dict[str, type[Column]] = {
    "age": Age,
    "bucketized": Bucketized,
    "categorical": Categorical,
    "hashed": Hashed,
    "numeric": Numeric,
    "pretrained_vectors": PretrainedVectors,
    "text": Text,
    "timestamp": Timestamp,
    "vector": Vector,
}
