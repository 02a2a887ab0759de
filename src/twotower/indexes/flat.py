"""FlatIndex: every candidate compared in half precision, the best again in full."""

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
from twotower.indexes.faiss_part import HalfCodes, load_faiss, read, selector, write
from twotower.indexes.local import Allowed, LocalIndex, wider


class FlatIndex(LocalIndex):
    """Every candidate, from 16-bit codes, half the memory traffic of ExactIndex on a CPU; the best compared in float32.

    Rounding to 16 bits moves a score by about 2^-11 of it; k/8 + 8 candidates more than asked for are compared again, which
    leaves next to none of the best out, unless some vectors are a million times as long as the others. Needs faiss:
    pip install 'twotower[index]'.

    Args:
        vectors, keys, attributes: as of every index.
        exact_below: up to so many allowed candidates are compared in float32 at once.

    Example:
        >>> index = FlatIndex(torch.eye(3), keys=[7, 8, 9])
        >>> index.search(torch.tensor([[1.0, 3.0, 2.0]]), k=2)
        (tensor([[3., 2.]]), tensor([[8, 9]]))
    """

    kind: ClassVar[str] = "flat"
    options: ClassVar[tuple[str, ...]] = ("exact_below",)

    @explain_options
    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        keys: Keys | None = None,
        attributes: pl.DataFrame | None = None,
        *,
        exact_below: int = 20_000,
    ) -> None:
        self.exact_below = exact_below
        self._faiss = load_faiss("FlatIndex")
        super().__init__(vectors, keys, attributes)

    def _build(self) -> None:
        faiss = self._faiss
        structure = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._codes = HalfCodes.of(structure, self.rows.vectors)

    def _find(self, queries: Tensor, k: int, seen: int, allowed: Allowed | None) -> Int[np.ndarray, "B W"]:
        faiss = self._faiss
        if allowed is None and self.rows.count < self.rows.used:
            allowed = self._alive()
        width = min(wider(k + seen), self.rows.used)
        if allowed is None:
            return self._codes.structure.search(queries.numpy(), width)[1]
        chosen = faiss.SearchParameters(sel=selector(faiss, allowed))
        return self._codes.structure.search(queries.numpy(), width, params=chosen)[1]

    def _added(self, slots: np.ndarray) -> None:
        if not self._codes.add(self.rows.vectors[int(slots[0]) :]):
            self._renew()

    def _left(self, slots: np.ndarray) -> None:
        pass

    def _structure_bytes(self) -> int:
        return 2 * self.dim * self.rows.used

    def _write(self, folder: Path) -> Mapping[str, Json]:
        write(self._faiss, self._codes.structure, folder)
        return {"scale": self._codes.scale}

    def _read(self, folder: Path, text: Mapping[str, Json]) -> None:
        self._faiss = load_faiss("FlatIndex")
        structure = read(self._faiss, folder, "IndexScalarQuantizer", self.dim, self.rows.used)
        self._codes = HalfCodes(structure, text["scale"])

    def _device(self, asked: torch.device) -> torch.device:
        return torch.device("cpu")
