"""Rows: the vectors, keys and attributes of an index in memory, by slot."""

from pathlib import Path

import numpy as np
import polars as pl
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.indexes.base import check_attributes


class Rows:
    """What an index holds of its candidates. Each stands in a slot; a slot that was left stays empty.

    A candidate that is replaced takes a new slot, so that what a search structure knows of a slot stays true.

    Args:
        vectors: (N, D) float32.
        keys: (N,) int64, all different.
        attributes: (N rows).

    Attributes:
        used: slots given so far, S.
        alive: (S,) whether a slot holds a candidate.
        largest_norm: of all vectors so far.
    """

    def __init__(self, vectors: Float[Tensor, "N D"], keys: np.ndarray, attributes: pl.DataFrame | None) -> None:
        self._vectors = vectors.clone(memory_format=torch.contiguous_format)  # the caller's may change
        self._keys = keys.copy()
        self._alive = np.ones(len(keys), dtype=bool)
        self.used = self.count = len(keys)
        self.attributes = None if attributes is None else attributes.clone()
        self.largest_norm = float(vectors.norm(dim=1).max()) if len(vectors) else 0.0
        order = np.argsort(keys, kind="stable")
        self._sorted, self._slots = keys[order], order.astype(np.int64)

    @property
    def vectors(self) -> Float[Tensor, "S D"]:
        """By slot."""
        return self._vectors[: self.used]

    @property
    def keys(self) -> Int[np.ndarray, "S"]:
        """By slot."""
        return self._keys[: self.used]

    @property
    def alive(self) -> np.ndarray:
        return self._alive[: self.used]

    @property
    def memory_bytes(self) -> int:
        held = 0 if self.attributes is None else int(self.attributes.estimated_size())
        arrays = self._keys.nbytes + self._alive.nbytes + self._sorted.nbytes + self._slots.nbytes
        return held + arrays + self._vectors.numel() * self._vectors.element_size()

    def to(self, device: torch.device) -> None:
        """Move the vectors, if they are elsewhere."""
        if self._vectors.device != device:
            self._vectors = self._vectors.to(device)

    def slots_of(self, keys: np.ndarray) -> Int[np.ndarray, "M"]:
        """(M,) the slots of keys, -1 for what is no candidate."""
        if not len(self._sorted):
            return np.full(len(keys), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._slots[at], -1)

    def append(self, keys: np.ndarray, vectors: Float[Tensor, "M D"], attributes: pl.DataFrame | None) -> np.ndarray:
        """Put candidates into new slots, (M,), and leave the ones that they had."""
        self.leave(self.slots_of(keys))
        first, after = self.used, self.used + len(keys)
        self._reserve(after)
        self._vectors[first:after] = vectors.to(self._vectors.device)
        self._keys[first:after] = keys
        self._alive[first:after] = True
        if self.attributes is not None and attributes is not None:
            self.attributes = self.attributes.vstack(attributes)
            if self.attributes.n_chunks() > 64:
                self.attributes = self.attributes.rechunk()
        self.used, self.count = after, self.count + len(keys)
        self.largest_norm = max(self.largest_norm, float(vectors.norm(dim=1).max()))
        slots = np.arange(first, after)
        self._note(keys, slots)
        return slots

    def drop(self, keys: np.ndarray) -> np.ndarray:
        """Leave the slots of keys, all of which are candidates."""
        slots = self.slots_of(keys)
        self.leave(slots)
        self._note(keys, np.full(len(keys), -1, dtype=np.int64))
        return slots

    def leave(self, slots: np.ndarray) -> None:
        """Empty slots; -1 is none."""
        real = slots[slots >= 0]
        self._alive[real] = False
        self.count -= len(real)

    def compacted(self) -> "Rows":
        """The same candidates without the empty slots, numbered anew."""
        kept = np.flatnonzero(self.alive)
        attributes = None if self.attributes is None else self.attributes[kept]
        return Rows(self.vectors[torch.from_numpy(kept).to(self.vectors.device)], self.keys[kept], attributes)

    def save(self, folder: Path) -> None:
        """rows.safetensors and attributes.parquet."""
        tensors = {
            "vectors": self.vectors.cpu().contiguous(),
            "keys": torch.from_numpy(self.keys.copy()),
            "alive": torch.from_numpy(self.alive.copy()),
        }
        safetensors.torch.save_file(tensors, folder / "rows.safetensors")
        if self.attributes is not None:
            self.attributes.write_parquet(folder / "attributes.parquet")

    @classmethod
    def load(cls, folder: Path) -> "Rows":
        """What `save` wrote, slot for slot.

        Raises:
            ValueError: the parts do not belong together.
        """
        held = safetensors.torch.load_file(folder / "rows.safetensors")
        file = folder / "attributes.parquet"
        vectors, keys, alive = held["vectors"], held["keys"].numpy(), held["alive"].numpy()
        attributes = pl.read_parquet(file, glob=False) if file.exists() else None
        types = (str(vectors.dtype), vectors.ndim, str(keys.dtype), str(alive.dtype))
        if types != ("torch.float32", 2, "int64", "bool") or not vectors.shape[:1] == keys.shape == alive.shape:
            raise ValueError(
                f"{folder / 'rows.safetensors'} is damaged: it holds vectors {tuple(vectors.shape)}, keys {keys.shape} and alive "
                f"{alive.shape}, of {vectors.dtype}, {keys.dtype} and {alive.dtype}, which no index wrote. Save it again."
            )
        rows = cls(vectors, keys, check_attributes(attributes, len(keys)))
        if not alive.all():
            rows._alive[:], rows.count = alive, int(alive.sum())
            live = np.flatnonzero(alive)
            order = live[np.argsort(keys[live])]
            rows._sorted, rows._slots = keys[order], order
        return rows

    def _reserve(self, slots: int) -> None:
        """Room for so many, half as much again whenever more is needed: adding one by one costs each but a share."""
        held = len(self._keys)
        if slots > held:
            more = max(slots, held + held // 2) - held
            self._vectors = torch.cat([self._vectors, self._vectors.new_zeros(more, self._vectors.shape[1])])
            self._keys = np.concatenate([self._keys, np.zeros(more, dtype=np.int64)])
            self._alive = np.concatenate([self._alive, np.zeros(more, dtype=bool)])

    def _note(self, keys: np.ndarray, slots: np.ndarray) -> None:
        at = np.searchsorted(self._sorted, keys)
        inside = np.minimum(at, max(len(self._sorted) - 1, 0))
        known = (self._sorted[inside] == keys) if len(self._sorted) else np.zeros(len(keys), dtype=bool)
        self._slots[at[known]] = slots[known]
        order = np.argsort(keys[~known])
        places = at[~known][order]
        self._sorted = np.insert(self._sorted, places, keys[~known][order])
        self._slots = np.insert(self._slots, places, slots[~known][order])
