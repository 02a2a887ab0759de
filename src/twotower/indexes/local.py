"""LocalIndex: what all indexes in this process share. A kind finds candidates; scores, filters and ties are exact here."""

import math
import threading
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twotower.indexes.base import Found, Index, Json, Keys, check_attributes, check_vectors, key_array, key_numbers
from twotower.indexes.filters import DataType, Filter
from twotower.indexes.rows import Rows
from twotower.indexes.scan import ordered, scan

# what float32 holds, with room for the terms of a sum
LARGEST = 1e38
# filters whose answers are kept
KEPT_FILTERS = 16
# a structure is built anew when one slot in so many is empty
EMPTY_SHARE = 8
# the vectors of up to so many allowed candidates, or one in so many, are put together and kept with the filter; among more, all
# are scored and the others left out
GATHERED, SPARSE = 20_000, 16


def number_of_lists(candidates: int) -> int:
    """The power of two nearest to 2 sqrt(N), at most N: reading lists then costs about as much as finding them."""
    return max(1, min(candidates, 2 ** round(math.log2(2 * math.sqrt(max(1, candidates))))))


def wider(k: int) -> int:
    """How many candidates to compare in float32 for the best k by 16-bit codes, whose rounding may have changed their order."""
    return k + k // 8 + 8


class Allowed:
    """The slots that a filter and a whitelist leave, (M,) ascending, with what searches among them need again and again."""

    def __init__(self, slots: Int[np.ndarray, "M"], used: int) -> None:
        self.slots = slots
        self.used = used
        self.notes: dict[str, object] = {}  # of the kind of index, such as a bitmap of the slots

    def __len__(self) -> int:
        return len(self.slots)

    def mask(self) -> Bool[np.ndarray, "S"]:
        """Whether a slot is among them."""
        mask = np.zeros(self.used, dtype=bool)
        mask[self.slots] = True
        return mask


class LocalIndex(Index):
    """An index whose candidates are held here as float32.

    Up to `exact_below` allowed candidates are compared one by one; among more, the kind finds some, inside its structure and
    allowed ones alone, and their scores are computed. A query for which it finds fewer than there are is searched exactly.
    Searches may run in several threads, changes not at the same time as anything else.

    Args:
        vectors: (N, D), finite; copied.
        keys: (N,) int64, all different; None for 0 to N-1.
        attributes: (N rows) what filters may ask for.

    Raises:
        ValueError: no vectors, nan or inf in them, repeated keys, or another number of keys or attributes than vectors.
    """

    options: ClassVar[tuple[str, ...]] = ()  # kept in index.json
    found: ClassVar[tuple[str, ...]] = ()  # those of them that are found from the vectors unless they are given
    exact_below: int
    tile: int | None = None
    _living: Allowed | None

    def __init__(
        self, vectors: Float[Tensor, "N D"], keys: Keys | None = None, attributes: pl.DataFrame | None = None
    ) -> None:
        start = time.perf_counter()
        numbers = np.arange(len(vectors), dtype=np.int64) if keys is None else key_array(keys)
        held = check_vectors(vectors, numbers)
        if not len(held):
            raise ValueError("an index needs at least one candidate, got none.")
        self.dim = held.shape[1]
        self.rows = Rows(held.to(self._device(held.device)), numbers, check_attributes(attributes, len(held)))
        self._forget()
        self._build()
        self.build_seconds = time.perf_counter() - start

    def __len__(self) -> int:
        return self.rows.count

    @property
    def keys(self) -> Int[Tensor, "N"]:
        """The keys of all candidates, in the order in which they came."""
        return torch.from_numpy(self.rows.keys[self.rows.alive])

    @property
    def attribute_types(self) -> Mapping[str, DataType] | None:
        """Names and types of the attributes; None where there are none."""
        return None if self.rows.attributes is None else self.rows.attributes.schema

    @property
    def memory_bytes(self) -> int:
        """Vectors, attributes and the search structure."""
        return self.rows.memory_bytes + self._structure_bytes()

    def vectors_of(self, keys: Keys) -> Float[Tensor, "M D"]:
        """The vectors of some candidates, float32; ValueError for a key that is not there."""
        numbers = key_numbers(keys)
        slots = self.rows.slots_of(numbers)
        self._check_known(numbers, slots)
        return self.rows.vectors[torch.from_numpy(slots).to(self.rows.vectors.device)]

    def rebuilt(self, vectors: Float[Tensor, "N D"], keys: Keys, attributes: pl.DataFrame | None) -> "LocalIndex":
        """An index of this kind with the same options over other candidates; what was found from the old ones is found anew."""
        wishes = {name: getattr(self, name) for name in self.options if name not in self.found}
        made: LocalIndex = type(self)(vectors, keys, attributes, **wishes)
        return made

    # ---- what a kind does

    @abstractmethod
    def _build(self) -> None:
        """Make the structure of all rows, none of which is empty."""

    @abstractmethod
    def _find(
        self, queries: Float[Tensor, "B D"], k: int, seen: int, allowed: Allowed | None
    ) -> Int[np.ndarray, "B W"]:
        """(B, W) slots, W at least k + seen if possible, among which the best so many are likely; -1 for none, in any order.

        Of the best, up to `seen` will be left out, so that the last k count.
        """

    @abstractmethod
    def _added(self, slots: Int[np.ndarray, "M"]) -> None:
        """Rows came into these new slots, the last ones."""

    @abstractmethod
    def _left(self, slots: Int[np.ndarray, "M"]) -> None:
        """These slots are empty now; `_find` may still give them."""

    @abstractmethod
    def _structure_bytes(self) -> int: ...

    @abstractmethod
    def _write(self, folder: Path) -> Mapping[str, Json]:
        """Write the structure; what is returned stands in index.json."""

    @abstractmethod
    def _read(self, folder: Path, text: Mapping[str, Json]) -> None: ...

    @abstractmethod
    def _device(self, asked: torch.device) -> torch.device:
        """Where vectors must be to search for queries from that device."""

    # ---- searching

    def _search(
        self, queries: Tensor, k: int, exclude: Tensor | None, only: Tensor | None, where: Filter | None
    ) -> Found:
        asked = queries.device
        if not len(queries):
            return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=asked)
        self.rows.to(self._device(asked))
        queries = queries.to(self.rows.vectors.device)
        largest = float(queries.norm(dim=1).max()) * self.rows.largest_norm
        if largest > LARGEST:
            raise ValueError(
                f"inner products of these queries may reach {largest:.2g}, beyond float32: vectors of lengths around 1 are usual. "
                "Look for what makes the towers' outputs so large."
            )
        allowed = self._allowed(only, where)
        row, slot = self._banned(exclude, allowed)
        count = len(self) if allowed is None else len(allowed)
        excluded = np.bincount(row, minlength=len(queries)) if len(row) else np.zeros(len(queries), dtype=np.int64)
        if count <= max(self.exact_below, 4 * k):
            scores, slots = self._scan(queries, k, allowed, row, slot)
        else:
            scores, slots = self._search_structure(queries, k, allowed, row, slot, excluded)
            short = (slots >= 0).sum(1).numpy() < np.minimum(k, count - excluded)
            if short.any():
                again = np.flatnonzero(short)
                mine = np.isin(row, again)
                at = torch.from_numpy(again)
                scores[at], slots[at] = self._scan(
                    queries[at], k, allowed, np.searchsorted(again, row[mine]), slot[mine]
                )
        slots = slots.cpu()
        keys = torch.from_numpy(self.rows.keys)[slots.clamp(min=0)].masked_fill_(slots < 0, -1)
        return scores.to(asked), keys.to(asked)

    def _search_structure(
        self, queries: Tensor, k: int, allowed: Allowed | None, row: np.ndarray, slot: np.ndarray, excluded: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """A query that excludes e candidates asks for k + e, so that k are left; rows that exclude about as many go together."""
        if not len(row):
            return self._score(queries, self._find(queries, k, 0, allowed), k)
        scores = torch.full((len(queries), k), -torch.inf)
        slots = torch.full((len(queries), k), -1)
        order = np.ceil(np.log2(np.maximum(excluded, 16) / 16)).astype(int) * (excluded > 0) - (excluded == 0)
        for group in np.unique(order):
            rows = np.flatnonzero(order == group)
            # as many as the group may exclude, not as these rows do: what one finds must not depend on the others
            more = 16 << int(group) if group >= 0 else 0
            found = self._find(queries[rows], k, more, allowed)
            mine = np.isin(row, rows)
            codes = np.searchsorted(rows, row[mine]) * self.rows.used + slot[mine]
            found[np.isin(np.arange(len(rows))[:, None] * self.rows.used + found, codes)] = -1
            at = torch.from_numpy(rows)
            scores[at], slots[at] = self._score(queries[at], found, k)
        return scores, slots

    def _score(self, queries: Tensor, found: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        real = found >= 0
        if self.rows.count < self.rows.used:
            real &= self.rows.alive[found]
        rough = torch.from_numpy(np.where(real, np.float32(0), -np.float32(np.inf)))
        places = torch.from_numpy(np.where(real, found, 0))
        return ordered(queries, rough, places, self.rows.vectors, torch.from_numpy(self.rows.keys), k)

    def _scan(
        self, queries: Tensor, k: int, allowed: Allowed | None, row: np.ndarray, slot: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Exactly, among the allowed: scores and slots."""
        rows, device = self.rows, queries.device
        keys = torch.from_numpy(rows.keys).to(device)
        norm = rows.largest_norm
        if allowed is None or len(allowed) > max(GATHERED, len(self) // SPARSE):
            banned = torch.from_numpy(np.stack([row, slot], 1)).to(device) if len(row) else None
            alive = rows.alive if rows.count < rows.used else None
            among = alive if allowed is None else allowed.mask()
            mask = None if among is None else torch.from_numpy(among).to(device)
            return scan(queries, k, rows.vectors, keys, norm, banned=banned, mask=mask, tile=self.tile)
        if not len(allowed):
            return torch.full((len(queries), k), -torch.inf, device=device), torch.full(
                (len(queries), k), -1, device=device
            )
        banned = (
            torch.from_numpy(np.stack([row, np.searchsorted(allowed.slots, slot)], 1)).to(device) if len(row) else None
        )
        slots = torch.from_numpy(allowed.slots).to(device)
        taken = allowed.notes.get("vectors")
        if not isinstance(taken, Tensor) or taken.device != device:
            taken = allowed.notes["vectors"] = rows.vectors[slots]
        scores, places = scan(queries, k, taken, keys[slots], norm, banned=banned, tile=self.tile)
        return scores, torch.where(places < 0, -1, slots[places.clamp(min=0)])

    def _allowed(self, only: Tensor | None, where: Filter | None) -> Allowed | None:
        if only is None and where is None:
            return None
        rows = self.rows
        slots = None
        if only is not None:
            slots = np.unique(rows.slots_of(only.numpy()))
            slots = slots[slots >= 0]
        if where is None:
            return Allowed(slots, rows.used) if slots is not None else None
        filtered = self._filtered(where)
        if slots is None:
            return filtered
        return Allowed(np.intersect1d(slots, filtered.slots, assume_unique=True), rows.used)

    def _filtered(self, where: Filter) -> Allowed:
        with self._lock:
            if where in self._filters:
                self._filters.move_to_end(where)
                return self._filters[where]
        assert self.rows.attributes is not None  # search has checked
        allowed = Allowed(np.flatnonzero(where.mask(self.rows.attributes) & self.rows.alive), self.rows.used)
        with self._lock:
            self._filters[where] = allowed
            while len(self._filters) > KEPT_FILTERS:
                self._filters.popitem(last=False)
        return allowed

    def _banned(self, exclude: Tensor | None, allowed: Allowed | None) -> tuple[np.ndarray, np.ndarray]:
        """Row and slot of the excluded pairs that matter, each once."""
        if exclude is None or not len(exclude):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        pairs = exclude.cpu().numpy()
        slot = self.rows.slots_of(pairs[:, 1])
        real = slot >= 0
        if allowed is not None and len(allowed):
            at = np.minimum(np.searchsorted(allowed.slots, slot), len(allowed) - 1)
            real &= allowed.slots[at] == slot
        elif allowed is not None:
            real &= False
        codes = np.unique(pairs[real, 0].astype(np.int64) * self.rows.used + slot[real])
        return codes // self.rows.used, codes % self.rows.used

    # ---- changing

    def _alive(self) -> Allowed:
        """The slots that hold a candidate, for a structure that still knows the others."""
        if self._living is None:
            self._living = Allowed(np.flatnonzero(self.rows.alive), self.rows.used)
        return self._living

    def _forget(self) -> None:
        self._living = None
        self._filters: OrderedDict[Filter, Allowed] = OrderedDict()
        self._lock = threading.Lock()

    def _upsert(self, keys: np.ndarray, vectors: Tensor, attributes: pl.DataFrame | None) -> None:
        old = self.rows.slots_of(keys)
        slots = self.rows.append(keys, vectors, attributes)
        self._forget()
        if not self._tidied():
            self._left(old[old >= 0])
            self._added(slots)

    def _delete(self, keys: np.ndarray) -> None:
        self._check_known(keys, self.rows.slots_of(keys))
        slots = self.rows.drop(keys)
        self._forget()
        if not self._tidied():
            self._left(slots)

    def _tidied(self) -> bool:
        if (self.rows.used - self.rows.count) * EMPTY_SHARE <= self.rows.used or not self.rows.count:
            return False
        self._renew()
        return True

    def _renew(self) -> None:
        """Number the candidates anew and build the structure of them."""
        self.rows = self.rows.compacted()
        self._build()

    def _check_known(self, keys: np.ndarray, slots: np.ndarray) -> None:
        unknown = keys[slots < 0]
        if len(unknown):
            raise ValueError(
                f"{len(unknown)} of {len(keys)} keys are no candidates of the index, such as {unknown[0]}."
            )

    # ---- files

    def _save(self, folder: Path) -> Mapping[str, Json]:
        self.rows.save(folder)
        return {"options": {name: getattr(self, name) for name in self.options}, **self._write(folder)}

    def _load(self, folder: Path, text: Mapping[str, Json]) -> None:
        for name in self.options:
            setattr(self, name, text["options"][name])
        self.rows = Rows.load(folder)
        self._forget()
        self._read(folder, text)
