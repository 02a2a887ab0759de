"""The kinds of index by name, and reading any of them."""

from collections.abc import Callable

import polars as pl
from torch import Tensor

from twotower.errors import choose
from twotower.files import PathLike
from twotower.indexes.base import Index, read_index_json
from twotower.indexes.exact import ExactIndex

KINDS = {ExactIndex.kind: ExactIndex}
MakeIndex = Callable[[Tensor, Tensor, pl.DataFrame], Index]


def index_kind(name: str) -> MakeIndex:
    """What makes an index of a kind, such as "exact"."""
    return choose("kind of index", name, KINDS)


def load_index(path: PathLike) -> Index:
    """Read an index of any kind.

    Raises:
        ValueError: no index at the path, or one of an unknown kind or format.
    """
    return choose("kind of index", read_index_json(path)["kind"], KINDS).load(path)
