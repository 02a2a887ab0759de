"""Exact search: every query against every candidate."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.errors import explain_options
from twotower.indexes.base import Json, Keys
from twotower.indexes.local import Allowed, LocalIndex


class ExactIndex(LocalIndex):
    """The k largest inner products, exactly, on the device of the queries: the vectors move to it at the first search.

    Args:
        vectors: (N, D) candidate vectors.
        keys: (N,) their int64 keys, by default 0 to N-1.
        attributes: (N rows) what filters may ask for.
        tile: candidates scored at once; None to choose by the number of queries. Memory stays bounded for any N.

    Example:
        >>> index = ExactIndex(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), keys=[7, 8, 9])
        >>> index.search(torch.tensor([[2.0, 1.0]]), k=2)
        (tensor([[3., 2.]]), tensor([[9, 7]]))
        >>> index.search(torch.tensor([[2.0, 1.0]]), k=2, exclude=torch.tensor([[0, 9]]))
        (tensor([[2., 1.]]), tensor([[7, 8]]))
    """

    kind: ClassVar[str] = "exact"
    options: ClassVar[tuple[str, ...]] = ("tile",)
    exact_below = 2**63 - 1

    @explain_options
    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        keys: Keys | None = None,
        attributes: pl.DataFrame | None = None,
        *,
        tile: int | None = None,
    ) -> None:
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be at least 1, got {tile}.")
        self.tile = tile
        super().__init__(vectors, keys, attributes)

    def _build(self) -> None:
        pass

    def _find(self, queries: Tensor, k: int, seen: int, allowed: Allowed | None) -> Int[np.ndarray, "B W"]:
        raise AssertionError("an ExactIndex compares all that is allowed")

    def _added(self, slots: np.ndarray) -> None:
        pass

    def _left(self, slots: np.ndarray) -> None:
        pass

    def _structure_bytes(self) -> int:
        return 0

    def _write(self, folder: Path) -> Mapping[str, Json]:
        return {}

    def _read(self, folder: Path, text: Mapping[str, Json]) -> None:
        pass

    def _device(self, asked: torch.device) -> torch.device:
        return asked
