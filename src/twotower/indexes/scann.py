"""ScaNNIndex: Google's ScaNN, lists of candidates in codes of four bits."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.errors import explain_options, need
from twotower.indexes.base import Json, Keys
from twotower.indexes.local import Allowed, LocalIndex, number_of_lists
from twotower.indexes.recall import nearest, recall_of, sample_queries, warn_of_low_recall

# fewer candidates are compared one by one: too few to learn codes from
FEWEST = 1000

# what ScaNN writes where the candidates have no ids of ScaNN's, which would be a pickle
NEEDED = {"scann_assets.pbtxt", "scann_config.pb"}
FILES = NEEDED | {
    "ah_codebook.pb",
    "datapoint_to_token.npy",
    "dataset.npy",
    "hashed_dataset.npy",
    "serialized_partitioner.pb",
}
ASSET = re.compile(r'asset_path: "([^"\\]*)"')
ASSETS = re.compile(r'assets \{\s*asset_type: \w+\s*asset_path: "[^"\\]*"\s*\}')


class ScaNNIndex(LocalIndex):
    """Lists of candidates in learned codes of four bits (Guo et al. 2020, arXiv 1908.10396), the best compared in float32.

    `leaves_read` is the smallest power of two of lists with which `target_recall` of the best 100 of sample queries are found.
    Where the codes lose too much for that, it is as many as come within 0.005 of all, and a LowRecallWarning tells the recall.
    ScaNN knows no filters: under one, as many more candidates are taken as it leaves out, or the allowed are compared one by
    one. Changed candidates are compared one by one until one in eight is such; then the index is built anew. Needs ScaNN, for
    Linux: pip install 'twotower[scann]'.

    Args:
        vectors, keys, attributes: as of every index.
        num_leaves: lists; None for the power of two nearest to 2 sqrt(N).
        leaves: lists read by every query; None to choose by `target_recall`.
        target_recall: share of the best 100 that should be found.
        queries: (Q, D) sample queries to choose by; without them 512 of the candidates serve, as in IVFIndex.
        compared: candidates compared in float32 for each result.
        exact_below: up to so many allowed candidates are compared one by one.

    Attributes:
        leaves_read: lists that a query reads.
        measured_recall: at k = 100 (or N) on the sample queries.
    """

    kind: ClassVar[str] = "scann"
    options: ClassVar[tuple[str, ...]] = ("num_leaves", "leaves", "target_recall", "compared", "exact_below")
    found: ClassVar[tuple[str, ...]] = ("num_leaves", "leaves")

    @explain_options
    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        keys: Keys | None = None,
        attributes: pl.DataFrame | None = None,
        *,
        num_leaves: int | None = None,
        leaves: int | None = None,
        target_recall: float = 0.95,
        queries: Float[Tensor, "Q D"] | None = None,
        compared: int = 10,
        exact_below: int = 20_000,
    ) -> None:
        if not 0 < target_recall <= 1 or compared < 1:
            raise ValueError(
                f"target_recall must be above 0 and at most 1, compared at least 1; got {target_recall} and {compared}."
            )
        self.num_leaves = number_of_lists(len(vectors)) if num_leaves is None else num_leaves
        if not 1 <= self.num_leaves <= max(1, len(vectors)):
            raise ValueError(
                f"num_leaves must be from 1 to the number of candidates, {len(vectors)}; got {num_leaves}."
            )
        if leaves is not None and not 1 <= leaves <= self.num_leaves:
            raise ValueError(f"leaves must be from 1 to num_leaves, {self.num_leaves}; got {leaves}.")
        self.leaves = leaves
        self.target_recall = target_recall
        self.compared = compared
        self.exact_below = exact_below
        self.measured_recall: float | None = None
        self._samples = queries
        self._load_scann()
        super().__init__(vectors, keys, attributes)

    def _load_scann(self) -> None:
        self._scann = need("scann", "ScaNNIndex", "scann").scann_ops_pybind

    def _build(self) -> None:
        vectors = self.rows.vectors.numpy()
        self._built = len(vectors)
        self.leaves_read = self.leaves or 1
        builder = self._scann.builder(vectors, 10, "dot_product")
        if len(vectors) < FEWEST:
            self._searcher = builder.score_brute_force().build()
            self.measured_recall = 1.0
            return
        sample = min(len(vectors), 250_000)
        lists = builder.tree(min(self.num_leaves, len(vectors) // 4), self._read_at(1), training_sample_size=sample)
        self._searcher = lists.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample).build()
        self._tune()

    def _tune(self) -> None:
        queries = sample_queries(self.rows.vectors, self._samples, self.dim)
        k = min(100, len(self))
        best = nearest(self.rows, queries, k).numpy()
        if self._find(queries[:1], k, 0, None).shape[1] < k:  # so few candidates that a search compares all
            self.leaves_read, self.measured_recall = self.leaves or self.num_leaves, 1.0  # for fewer than k
            return
        recalls: dict[int, float] = {}
        tried = self.leaves_read
        if self.leaves is None:
            while tried not in recalls:
                self.leaves_read = tried
                recalls[tried] = recall_of(self._find(queries, k, 0, None), best)
                if recalls[tried] < self.target_recall:
                    tried = min(2 * tried, self.num_leaves)
            # where the codes, not the lists, lose the rest, reading on finds next to nothing more
            tried = next(
                n for n, recall in recalls.items() if recall >= min(self.target_recall, max(recalls.values()) - 0.005)
            )
        self.leaves_read = tried
        self.measured_recall = recall_of(self._find(queries, k, 0, None), best)
        advice = f"Take IVFIndex or FlatIndex, or compare more than {self.compared} candidates for each result."
        warn_of_low_recall("index", self.measured_recall, k, self.target_recall, advice)

    def _read_at(self, more: float) -> int:
        """Lists to read for so many times as many results as the lists were chosen for."""
        return min(self.num_leaves, math.ceil(self.leaves_read * math.sqrt(max(1.0, more))))

    def _find(self, queries: Tensor, k: int, seen: int, allowed: Allowed | None) -> Int[np.ndarray, "B W"]:
        rows = self.rows
        count = rows.count if allowed is None else len(allowed)
        more = rows.used / count
        width = math.ceil(self.compared * (k + seen) * more) + 16
        if 8 * width > self._built >= FEWEST:
            return np.full((len(queries), 1), -1, dtype=np.int64)  # one by one is no more work
        width = min(width, self._built)
        found = self._searcher.search_batched(
            queries.numpy(),
            final_num_neighbors=width,
            pre_reorder_num_neighbors=width,
            leaves_to_search=self._read_at((k + 3 * seen) * more / 100),
        )
        slots, scores = np.asarray(found[0]).astype(np.int64), np.asarray(found[1])
        slots[~np.isfinite(scores)] = -1
        fresh = np.broadcast_to(np.arange(self._built, rows.used), (len(queries), rows.used - self._built))
        slots = np.concatenate([slots, fresh], axis=1)
        if allowed is not None:
            if "mask" not in allowed.notes:
                allowed.notes["mask"] = allowed.mask()
            mask: Any = allowed.notes["mask"]
            slots[~mask[slots]] = -1
        return slots

    def _added(self, slots: np.ndarray) -> None:
        if (self.rows.used - self._built) * 8 > self.rows.used:
            self._renew()

    def _left(self, slots: np.ndarray) -> None:
        pass

    def _structure_bytes(self) -> int:
        # half a byte for two dimensions, the slot in its list, and the centroids
        return int(self._built * (self.dim / 4 + 4) + self.num_leaves * self.dim * 4)

    def _write(self, folder: Path) -> Mapping[str, Json]:
        (folder / "scann").mkdir()
        self._searcher.serialize(str(folder / "scann"), relative_path=True)
        return {"built": self._built, "leaves_read": self.leaves_read, "measured_recall": self.measured_recall}

    def _read(self, folder: Path, text: Mapping[str, Json]) -> None:
        self._load_scann()
        _check_files(folder / "scann")
        self._searcher = self._scann.load_searcher(str(folder / "scann"))
        self._built, self.measured_recall = text["built"], text["measured_recall"]
        self.leaves_read, self._samples = text["leaves_read"], None

    def _device(self, asked: torch.device) -> torch.device:
        return torch.device("cpu")


def _check_files(folder: Path) -> None:
    """ScaNN runs a pickle of ids that it finds, and reads whatever paths its list of files names."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if not NEEDED <= names <= FILES:
        raise ValueError(
            f"{folder} holds {sorted(names - FILES)} and lacks {sorted(NEEDED - names)}: a ScaNNIndex writes no other files "
            "and always these. Take the index from where it was made."
        )
    if any(file.is_symlink() or not file.is_file() for file in folder.iterdir()):
        raise ValueError(f"{folder} holds links or folders, which a ScaNNIndex never writes.")
    text = (folder / "scann_assets.pbtxt").read_text()
    if ASSETS.sub("", text).strip():
        raise ValueError(f"{folder / 'scann_assets.pbtxt'} is no list of files as a ScaNNIndex writes it.")
    for name in ASSET.findall(text):
        if name not in names:
            raise ValueError(
                f"{folder / 'scann_assets.pbtxt'} names {name!r}, which is none of the files beside it. ScaNN would read it "
                "from wherever it is: take the index from where it was made."
            )
