"""HNSWIndex: a graph of neighbours, walked from one to the next."""

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
from twotower.indexes.recall import nearest, recall_of, sample_queries, warn_of_low_recall


class HNSWIndex(LocalIndex):
    """A graph of candidates (HNSW, Malkov and Yashunin 2016, arXiv 1603.09320), from 16-bit codes.

    Graphs are made for distances. Where the lengths of vectors differ, as learned ones do, they may find little: the recall
    is measured when the index is built, and a LowRecallWarning tells it where it is below `target_recall`. Replaced and deleted
    candidates stay in the graph until one in eight is such; it is then built anew. Needs faiss: pip install 'twotower[index]'.

    Args:
        vectors, keys, attributes: as of every index.
        neighbors: of each candidate; two links for each.
        ef_construction: candidates looked at when one is put into the graph.
        ef_search: candidates looked at by a query for k = 100 or less; for more, and under filters, as many times more.
        target_recall: below which a warning comes.
        queries: (Q, D) sample queries to measure with; without them 512 of the candidates serve.
        exact_below: up to so many allowed candidates are compared one by one.

    Attributes:
        measured_recall: at k = 100 (or N) on the sample queries.
    """

    kind: ClassVar[str] = "hnsw"
    options: ClassVar[tuple[str, ...]] = ("neighbors", "ef_construction", "ef_search", "target_recall", "exact_below")

    @explain_options
    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        keys: Keys | None = None,
        attributes: pl.DataFrame | None = None,
        *,
        neighbors: int = 32,
        ef_construction: int = 100,
        ef_search: int = 256,
        target_recall: float = 0.95,
        queries: Float[Tensor, "Q D"] | None = None,
        exact_below: int = 20_000,
    ) -> None:
        if neighbors < 2 or ef_construction < 1 or ef_search < 1:
            raise ValueError(
                f"neighbors must be at least 2, ef_construction and ef_search at least 1; got {neighbors}, {ef_construction}, "
                f"{ef_search}."
            )
        self.neighbors = neighbors
        self.ef_construction = ef_construction
        self.ef_search = ef_search
        self.target_recall = target_recall
        self.exact_below = exact_below
        self._faiss = load_faiss("HNSWIndex")
        super().__init__(vectors, keys, attributes)
        self.measured_recall = self._measure(queries)

    def _measure(self, given: Tensor | None) -> float:
        queries = sample_queries(self.rows.vectors, given, self.dim)
        k = min(100, len(self))
        best = nearest(self.rows, queries, k)
        recall = recall_of(self._find(queries, k, 0, None), best.numpy())
        advice = f"Take IVFIndex or FlatIndex, or a larger ef_search than {self.ef_search}."
        warn_of_low_recall("graph", recall, k, self.target_recall, advice)
        return recall

    def _build(self) -> None:
        faiss = self._faiss
        graph = faiss.IndexHNSWSQ(self.dim, faiss.ScalarQuantizer.QT_fp16, self.neighbors, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self.ef_construction
        self._graph = HalfCodes.of(graph, self.rows.vectors)

    def _find(self, queries: Tensor, k: int, seen: int, allowed: Allowed | None) -> Int[np.ndarray, "B W"]:
        count = self.rows.count if allowed is None else len(allowed)
        if allowed is None and self.rows.count < self.rows.used:
            allowed = self._alive()
        width = min(wider(k + seen), count)
        looked_at = round(self.ef_search * max(1.0, (k + seen) / 100) * self.rows.count / count)
        chosen = self._faiss.SearchParametersHNSW(
            efSearch=min(max(looked_at, width), self.rows.used),
            **({} if allowed is None else {"sel": selector(self._faiss, allowed)}),
        )
        return self._graph.structure.search(queries.numpy(), width, params=chosen)[1]

    def _added(self, slots: np.ndarray) -> None:
        if not self._graph.add(self.rows.vectors[int(slots[0]) :]):
            self._renew()

    def _left(self, slots: np.ndarray) -> None:
        pass

    def _structure_bytes(self) -> int:
        links = self._graph.structure.hnsw
        return int(2 * self.dim * self.rows.used + links.neighbors.size() * 4 + links.offsets.size() * 8)

    def _write(self, folder: Path) -> Mapping[str, Json]:
        write(self._faiss, self._graph.structure, folder)
        return {"scale": self._graph.scale, "measured_recall": self.measured_recall}

    def _read(self, folder: Path, text: Mapping[str, Json]) -> None:
        self._faiss = load_faiss("HNSWIndex")
        structure = read(self._faiss, folder, "IndexHNSWSQ", self.dim, self.rows.used)
        links = self._faiss.vector_to_array(structure.hnsw.neighbors)
        if len(links) and not -1 <= links.min() <= links.max() < self.rows.used:
            raise ValueError(
                f"the graph in {folder} is damaged: it links to candidates that are not there. Save the index again."
            )
        self._graph = HalfCodes(structure, text["scale"])
        self.measured_recall = text["measured_recall"]

    def _device(self, asked: torch.device) -> torch.device:
        return torch.device("cpu")
