"""IVFIndex: the catalogue in lists of neighbours, of which a query reads the nearest."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.errors import explain_options
from twotower.indexes.base import Json, Keys
from twotower.indexes.faiss_part import load_faiss, read, search_lists, selector, write
from twotower.indexes.local import Allowed, LocalIndex, number_of_lists, wider
from twotower.indexes.recall import nearest, recall_of, sample_queries

# how deep recall is looked at when the number of lists is chosen, and with how many results at most
DEPTHS = (10, 100, 1000, 10_000)
RESULTS = 100


class IVFIndex(LocalIndex):
    """Candidates in lists around centroids (k-means), of which a query reads the `nprobe` nearest, from 16-bit codes.

    `nprobe` is the smallest number of lists that hold `target_recall` of the best candidates of sample queries. It is chosen
    for several depths: for k = 100, a thousandth of the catalogue that a filter leaves, or a hundred items that a user has
    seen, the search reads as many more lists as reach the target there. Under a filter only lists with allowed candidates
    count. Needs faiss: pip install 'twotower[index]'.

    Args:
        vectors, keys, attributes: as of every index.
        nlist: lists; None for the power of two nearest to 2 sqrt(N).
        nprobe: lists read by every query; None to choose by `target_recall`.
        target_recall: share of the best k that should be found, for k = 10, 100, 1,000 and 10,000.
        queries: (Q, D) sample queries to choose by, best real ones. Without them 512 of the candidates serve, which two
            towers place elsewhere than queries: the recall of real ones is then another than the measured.
        exact_below: up to so many allowed candidates are compared one by one.

    Attributes:
        measured_recall: at k = 100 (or N) on the sample queries.

    Example:
        >>> index = IVFIndex(torch.randn(2000, 8), exact_below=100)
        >>> index.nlist, index.measured_recall >= 0.94
        (64, True)
    """

    kind: ClassVar[str] = "ivf"
    options: ClassVar[tuple[str, ...]] = ("nlist", "nprobe", "target_recall", "exact_below")
    found: ClassVar[tuple[str, ...]] = ("nlist", "nprobe")

    @explain_options
    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        keys: Keys | None = None,
        attributes: pl.DataFrame | None = None,
        *,
        nlist: int | None = None,
        nprobe: int | None = None,
        target_recall: float = 0.95,
        queries: Float[Tensor, "Q D"] | None = None,
        exact_below: int = 20_000,
    ) -> None:
        if not 0 < target_recall <= 1:
            raise ValueError(f"target_recall must be above 0 and at most 1, got {target_recall}.")
        self.nlist = number_of_lists(len(vectors)) if nlist is None else nlist
        if not 1 <= self.nlist <= max(1, len(vectors)):
            raise ValueError(f"nlist must be from 1 to the number of candidates, {len(vectors)}; got {nlist}.")
        if nprobe is not None and not 1 <= nprobe <= self.nlist:
            raise ValueError(f"nprobe must be from 1 to nlist, {self.nlist}; got {nprobe}.")
        self.nprobe = nprobe
        self.target_recall = target_recall
        self.exact_below = exact_below
        self.measured_recall: float | None = None
        self._samples = queries
        self._curve: list[tuple[int, int]] = []
        self._faiss = load_faiss("IVFIndex")
        super().__init__(vectors, keys, attributes)
        self._samples = None

    def lists_read(self, depth: float) -> int:
        """How many lists a query reads for the best `depth` of the whole catalogue."""
        if self.nprobe is not None:
            return self.nprobe
        at, lists = np.log([d for d, _ in self._curve]), np.log([n for _, n in self._curve])
        wanted = math.log(max(depth, 1))
        beyond = max(0.0, wanted - float(at[-1]))  # deeper than was measured: in proportion
        return max(1, min(self.nlist, math.ceil(math.exp(float(np.interp(wanted, at, lists)) + beyond) - 1e-6)))

    def _build(self) -> None:
        faiss, vectors = self._faiss, self.rows.vectors.numpy()
        if not self._curve:  # after many changes the lists stay as they are
            quantizer = faiss.IndexFlatIP(self.dim)
            self._lists = faiss.IndexIVFScalarQuantizer(
                quantizer, self.dim, self.nlist, faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT
            )
            self._lists.cp.min_points_per_centroid = 1
            self._lists.cp.max_points_per_centroid = 64
            self._lists.train(vectors)
        self._lists.reset()
        self._lists.add_with_ids(vectors, np.arange(len(vectors)))
        self._note_lists()
        if not self._curve:
            self._tune()

    def _tune(self) -> None:
        queries = sample_queries(self.rows.vectors, self._samples, self.dim)
        # list n in the order in which a query would read them
        order = (queries @ self._centroids.T).argsort(dim=1, descending=True)
        read_as = torch.empty_like(order)
        read_as.scatter_(1, order, torch.arange(self.nlist).expand(len(queries), -1))
        shuffled = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        k = min(RESULTS, len(self))
        best = nearest(self.rows, queries, k)
        for depth in DEPTHS:
            # the best 1,000 of all are, as well as can be told, the best 100 of every tenth
            step = max(1, depth // RESULTS)
            if depth > RESULTS and len(self) // step < 2 * RESULTS:
                break
            some = shuffled[: len(self) // step]
            found = best[:, :depth] if step == 1 else nearest(self.rows, queries, k, some)
            needed = read_as.gather(1, self._list_of[found].long()).flatten().sort().values
            self._curve.append((depth, int(needed[math.ceil(self.target_recall * len(needed)) - 1]) + 1))
        self.measured_recall = recall_of(self._find(queries, k, 0, None), best.numpy())

    def _find(self, queries: Tensor, k: int, seen: int, allowed: Allowed | None) -> Int[np.ndarray, "B W"]:
        count = self.rows.count if allowed is None else len(allowed)
        width = min(wider(k + seen), count)
        # of those that come after what was seen, fewer lie in the first lists than of all up to them
        lists = self.lists_read((k + 3 * seen) * self.rows.count / count)
        parameters = self._faiss.SearchParametersIVF
        if allowed is None:
            return self._lists.search(queries.numpy(), width, params=parameters(nprobe=lists))[1]
        if "lists" not in allowed.notes:
            allowed.notes["lists"] = torch.bincount(self._list_of[allowed.slots], minlength=self.nlist) > 0
        holding: Any = allowed.notes["lists"]
        lists = min(lists, int(holding.sum()))
        closest = (queries @ self._centroids.T).masked_fill_(~holding, -torch.inf).topk(lists, dim=1)
        chosen = parameters(nprobe=lists, sel=selector(self._faiss, allowed))
        at, products = closest.indices.numpy(), closest.values.numpy()
        return search_lists(self._faiss, self._lists, queries.numpy(), width, at, products, chosen)

    def _added(self, slots: np.ndarray) -> None:
        self._lists.add_with_ids(self.rows.vectors[torch.from_numpy(slots)].numpy(), slots)
        self._note_lists()

    def _left(self, slots: np.ndarray) -> None:
        if len(slots):
            self._lists.remove_ids(slots)  # which list they were in is not asked any more

    def _note_lists(self) -> None:
        """Which list each slot is in, and the centroids."""
        self._centroids = torch.from_numpy(self._lists.quantizer.reconstruct_n(0, self.nlist))
        list_of = np.zeros(self.rows.used, dtype=np.int32)
        for number in range(self.nlist):
            list_of[self._ids(number)] = number
        self._list_of = torch.from_numpy(list_of)

    def _ids(self, number: int) -> Int[np.ndarray, "L"]:
        """The slots in a list; not to be kept, since faiss may move them."""
        size = self._lists.invlists.list_size(number)
        if not size:
            return np.zeros(0, dtype=np.int64)
        ids: np.ndarray = self._faiss.rev_swig_ptr(self._lists.invlists.get_ids(number), size)
        return ids

    def _structure_bytes(self) -> int:
        each = self._lists.code_size + 8 + self._list_of.element_size()
        return int(self._lists.ntotal * each + 2 * self._centroids.numel() * 4)

    def _write(self, folder: Path) -> Mapping[str, Json]:
        write(self._faiss, self._lists, folder)
        return {"lists_read": self._curve, "measured_recall": self.measured_recall}

    def _read(self, folder: Path, text: Mapping[str, Json]) -> None:
        self._faiss = load_faiss("IVFIndex")
        self._lists = read(self._faiss, folder, "IndexIVFScalarQuantizer", self.dim, self.rows.count)
        quantizer = self._lists.quantizer
        if not self._lists.nlist == quantizer.ntotal == self.nlist or quantizer.d != self.dim:
            raise ValueError(
                f"the structure in {folder} is damaged: it has {self._lists.nlist} lists and {quantizer.ntotal} centroids of width "
                f"{quantizer.d}, not {self.nlist} of width {self.dim}. Save the index again."
            )
        listed = [self._ids(number) for number in range(self.nlist)]
        if not np.array_equal(np.sort(np.concatenate(listed)), np.flatnonzero(self.rows.alive)):
            raise ValueError(
                f"the lists in {folder} are damaged: rows.safetensors has other candidates. Save the index again."
            )
        self._curve = [(int(depth), int(lists)) for depth, lists in text["lists_read"]]
        if not self._curve or min(min(pair) for pair in self._curve) < 1:
            raise ValueError(f"lists_read in {folder} is damaged: pairs from 1 on are expected, not {self._curve}.")
        self.measured_recall = text["measured_recall"]
        self._samples = None
        self._note_lists()

    def _device(self, asked: torch.device) -> torch.device:
        return torch.device("cpu")
