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
from twotower.indexes.faiss_part import fits, load_faiss, read, scale_of, selector, write
from twotower.indexes.local import Allowed, LocalIndex, wider


class FlatIndex(LocalIndex):
    """Every candidate, from 16-bit codes, half the memory traffic of ExactIndex on a CPU; the best compared in float32.

    Rounding to 16 bits moves a score by about 2^-11 of it; k/8 + 8 candidates more than asked for are compared again, which
    leaves next to none of the best out. Needs faiss: pip install 'twotower[index]'.

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
        faiss, vectors = self._faiss, self.rows.vectors
        self._scale = scale_of(vectors)
        self._codes = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._add(vectors)

    def _add(self, vectors: Tensor) -> None:
        for part in vectors.split(65_536):
            self._codes.add((part * self._scale).numpy())

    def _find(self, queries: Tensor, k: int, seen: int, allowed: Allowed | None) -> Int[np.ndarray, "B W"]:
        faiss = self._faiss
        if allowed is None and self.rows.count < self.rows.used:
            allowed = self._alive()
        width = min(wider(k + seen), self.rows.used)
        if allowed is None:
            return self._codes.search(queries.numpy(), width)[1]
        chosen = faiss.SearchParameters(sel=selector(faiss, allowed))
        return self._codes.search(queries.numpy(), width, params=chosen)[1]

    def _added(self, slots: np.ndarray) -> None:
        vectors = self.rows.vectors[int(slots[0]) :]
        if fits(vectors, self._scale):
            self._add(vectors)
        else:
            self._renew()

    def _left(self, slots: np.ndarray) -> None:
        pass

    def _structure_bytes(self) -> int:
        return int(self._codes.ntotal * self._codes.code_size)

    def _write(self, folder: Path) -> Mapping[str, Json]:
        write(self._faiss, self._codes, folder)
        return {"scale": self._scale}

    def _read(self, folder: Path, text: Mapping[str, Json]) -> None:
        self._faiss = load_faiss("FlatIndex")
        self._codes = read(self._faiss, folder)
        self._scale = text["scale"]

    def _device(self, asked: torch.device) -> torch.device:
        return torch.device("cpu")
