"""The kinds of index by name, and reading one whose kind its folder tells."""

from collections.abc import Callable, Mapping
from typing import cast

import polars as pl
from torch import Tensor

from twotower.errors import choose
from twotower.files import PathLike
from twotower.indexes.base import Index, read_index_json
from twotower.indexes.exact import ExactIndex
from twotower.indexes.flat import FlatIndex
from twotower.indexes.hnsw import HNSWIndex
from twotower.indexes.ivf import IVFIndex
from twotower.indexes.qdrant import QdrantIndex
from twotower.indexes.scann import ScaNNIndex

INDEXES: dict[str, type[Index]] = {
    "exact": ExactIndex,
    "flat": FlatIndex,
    "ivf": IVFIndex,
    "hnsw": HNSWIndex,
    "scann": ScaNNIndex,
    "qdrant": QdrantIndex,
}

MakeIndex = Callable[[Tensor, Tensor, pl.DataFrame], Index]


def index_kind(name: str) -> MakeIndex:
    """What makes an index of a kind from vectors, keys and attributes."""
    return cast(MakeIndex, choose("kind of index", name, INDEXES))


def load_index(path: PathLike, custom_objects: Mapping[str, type[Index]] | None = None) -> Index:
    """The index that `Index.save` wrote to a folder, of whatever kind.

    Args:
        path: the folder.
        custom_objects: kinds of your own, by their `kind`.

    Raises:
        ValueError: no index at the path, or one of an unknown kind.
    """
    kind = read_index_json(path)["kind"]
    return choose("kind of index", kind, INDEXES | dict(custom_objects or {})).load(path)
