"""Index: the candidates' vectors behind one interface, whatever finds the nearest."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.errors import unknown
from twotower.files import PathLike, folder_written_aside, sha256_of
from twotower.indexes.filters import DataType, Filter

FORMAT = 2
Json = Any
Keys = Tensor | np.ndarray | Sequence[int]
Found = tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]
Some = TypeVar("Some", bound="Index")


class Index(ABC):
    """Candidates that a query vector can be compared with by inner product.

    Every kind is made as `Kind(vectors, keys, attributes, options of its own)`. A key is the candidate's number, int64, by
    which results name it, any but -1; without keys they are the rows, 0 to N-1. Attributes are what filters ask about.

    Attributes:
        dim: D, the width of the vectors.
        build_seconds: what making it took; None for one that was loaded.
    """

    kind: ClassVar[str]
    dim: int
    build_seconds: float | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def keys(self) -> Int[Tensor, "N"]:
        """The keys of all candidates."""

    @property
    @abstractmethod
    def attribute_types(self) -> Mapping[str, DataType] | None:
        """Names and types of the attributes; None where there are none."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int | None:
        """What vectors, attributes and search structure take in this process; None if they are kept elsewhere."""

    @abstractmethod
    def vectors_of(self, keys: Keys) -> Float[Tensor, "M D"]:
        """The vectors of some candidates, float32; ValueError for a key that is not there."""

    @abstractmethod
    def rebuilt(self, vectors: Float[Tensor, "N D"], keys: Keys, attributes: pl.DataFrame | None) -> "Index":
        """An index of this kind, made with the same wishes, over other candidates.

        Raises:
            ValueError: the kind cannot be made anew beside itself.
        """

    @final
    def search(
        self,
        queries: Float[Tensor, "B D"],
        k: int,
        *,
        exclude: Int[Tensor, "pairs 2"] | None = None,
        only: Keys | None = None,
        where: Filter | None = None,
    ) -> Found:
        """The k candidates of the largest inner products, best first, and of equal ones those with the smaller keys.

        Args:
            queries: (B, D), finite.
            k: from 1 to the number of candidates.
            exclude: (pairs, 2) query row and key that must not come for this row. Keys that are no candidates change nothing.
            only: (M,) the keys that may come; others that are no candidates change nothing.
            where: what the attributes of those that come must be.

        Returns:
            Scores (B, k) float32 and keys (B, k) int64, on the queries' device. Where fewer than k candidates are allowed,
            the last places have score -inf and key -1.

        Raises:
            ValueError: k out of range; queries of another width, or with nan or inf, or so large that products with them
                pass float32; a pair whose row is no query; a filter that asks for what the candidates lack.
        """
        # scores are the same bit for bit however the caller's numbers lie in memory
        queries = queries.detach().float().contiguous()
        self._check_queries(queries, k, exclude)
        if where is not None and self.attribute_types is None:
            raise ValueError("the index holds no attributes to filter by: give attributes when it is built.")
        among = None if only is None else torch.from_numpy(key_numbers(only))
        return self._search(queries, k, exclude, among, where)

    @final
    def upsert(self, keys: Keys, vectors: Float[Tensor, "M D"], attributes: pl.DataFrame | None = None) -> None:
        """Add candidates; one whose key is there already is replaced. All of them or none.

        Args:
            keys: (M,) int64, all different.
            vectors: (M, D), finite.
            attributes: (M rows) the columns that the index holds, if it holds any.

        Raises:
            ValueError: repeated keys, vectors of another width or number, nan, or other attributes than the index holds.
        """
        numbers = key_array(keys)
        checked = check_vectors(vectors, numbers, self.dim)
        held = self.attribute_types
        if (held is None) != (attributes is None):
            raise ValueError(
                "the index holds no attributes: build it with them." if held is None
                else f"the index holds attributes, {list(held)}: give those of the new candidates too."
            )  # fmt: skip
        if held is not None and attributes is not None:
            attributes = fitting(attributes, held, len(numbers))
        if len(numbers):
            self._upsert(numbers, checked, attributes)

    @final
    def delete(self, keys: Keys) -> None:
        """Remove candidates, all of them or none.

        Raises:
            ValueError: repeated keys, or one that is no candidate.
        """
        numbers = key_array(keys)
        if len(numbers):
            self._delete(numbers)

    @final
    def save(self, path: PathLike) -> None:
        """Write a folder with index.json, whole or not at all, without pickle; it replaces an older one."""
        with folder_written_aside(path, "index.json") as folder:
            text = {"format": FORMAT, "kind": self.kind, "dim": self.dim, "count": len(self), **self._save(folder)}
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            text["files"] = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
            (folder / "index.json").write_text(json.dumps(text, indent=1))

    @classmethod
    def load(cls: type[Some], path: PathLike) -> Some:
        """Read what `save` wrote.

        Raises:
            ValueError: no index at the path, one of another kind or format, or a file that is missing or was changed.
        """
        index = cls.__new__(cls)
        index._restore(path)
        return index

    @final
    def _restore(self, path: PathLike) -> None:
        text = read_index_json(path)
        if text["kind"] != self.kind:
            raise ValueError(f"{path} holds an index of kind {text['kind']!r}, not {self.kind!r}: use load_index.")
        self.dim = text["dim"]
        for name, digest in text["files"].items():
            file = Path(path) / name
            if not file.is_file() or sha256_of(file) != digest:
                state = "was changed or cut short" if file.is_file() else "is missing"
                raise ValueError(f"the index at {path} is damaged: {name} {state}. Save it again.")
        try:
            self._load(Path(path), text)
        except (ValueError, ImportError):
            raise
        except Exception as error:
            raise ValueError(
                f"the index at {path} is damaged: {type(error).__name__}, {error}. Save it again."
            ) from error
        if len(self) != text["count"]:
            raise ValueError(f"the index at {path} is damaged: {len(self)} candidates, {text['count']} were saved.")
        some = self.keys[:1]
        if len(some) and self.vectors_of(some).shape[1] != self.dim:
            raise ValueError(
                f"the index at {path} is damaged: its vectors do not have the width {self.dim} of index.json."
            )

    # ---- what a kind does; everything is checked before

    @abstractmethod
    def _search(
        self, queries: Tensor, k: int, exclude: Tensor | None, only: Tensor | None, where: Filter | None
    ) -> Found: ...

    @abstractmethod
    def _upsert(self, keys: np.ndarray, vectors: Tensor, attributes: pl.DataFrame | None) -> None: ...

    @abstractmethod
    def _delete(self, keys: np.ndarray) -> None: ...

    @abstractmethod
    def _save(self, folder: Path) -> Mapping[str, Json]:
        """Write files into the folder; what is returned stands in index.json."""

    @abstractmethod
    def _load(self, folder: Path, text: Mapping[str, Json]) -> None: ...

    def _check_queries(self, queries: Tensor, k: int, exclude: Tensor | None) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self):
            raise ValueError(f"k must be from 1 to the number of candidates, {len(self)}; got {k}.")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"queries have {'width ' + str(queries.shape[1]) if queries.ndim == 2 else f'shape {tuple(queries.shape)}'}, "
                f"the index holds vectors of width {self.dim}: they come from different models."
            )
        if not bool(torch.isfinite(queries).all()):
            raise ValueError("queries hold nan or inf: look for it in the query tower's inputs and weights.")
        if exclude is None or not len(exclude):
            return
        if exclude.ndim != 2 or exclude.shape[1] != 2 or exclude.is_floating_point():
            raise ValueError(
                f"exclude must be (pairs, 2) whole numbers, query row and key, got {tuple(exclude.shape)} of {exclude.dtype}."
            )
        if not 0 <= int(exclude[:, 0].min()) <= int(exclude[:, 0].max()) < len(queries):
            raise ValueError(f"exclude names query rows out of range: there are {len(queries)} queries.")


def key_numbers(keys: Keys) -> np.ndarray:
    """Keys as (N,) int64; ValueError for what are no integers of 64 bits."""
    numbers = keys.cpu().numpy() if isinstance(keys, Tensor) else np.asarray(keys)
    if numbers.size == 0:
        return np.zeros(0, dtype=np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or (numbers.dtype == np.uint64 and numbers.max() >= 2**63):
        raise ValueError(f"keys must be (N,) integers of 64 bits, got shape {numbers.shape} of {numbers.dtype}.")
    return numbers.astype(np.int64)


def key_array(keys: Keys) -> np.ndarray:
    """Keys of candidates as (N,) int64, all different, and none of them -1."""
    numbers = key_numbers(keys)
    if (numbers == -1).any():
        raise ValueError("no candidate can have the key -1, which stands for none in results. Give it another.")
    repeated = len(numbers) - len(np.unique(numbers))
    if repeated:
        raise ValueError(f"keys must be different: {repeated} of {len(numbers)} repeat.")
    return numbers


def check_vectors(vectors: Tensor, keys: np.ndarray, dim: int | None = None) -> Tensor:
    """(N, D) float32 vectors that belong to the keys."""
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise ValueError(f"candidate vectors must be (N, D), got shape {tuple(vectors.shape)}.")
    if dim is not None and vectors.shape[1] != dim:
        raise ValueError(f"candidate vectors have width {vectors.shape[1]}, the index holds vectors of width {dim}.")
    if len(vectors) != len(keys):
        raise ValueError(f"{len(vectors)} candidate vectors came with {len(keys)} keys; there must be one for each.")
    held = vectors.detach().float()
    bad = int((~torch.isfinite(held).all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(held)} candidate vectors hold nan or inf: look for it in the candidate tower.")
    return held


def check_attributes(attributes: pl.DataFrame | None, rows: int) -> pl.DataFrame | None:
    """Attributes with a row for each candidate."""
    if attributes is not None and len(attributes) != rows:
        raise ValueError(
            f"{rows} candidates came with {len(attributes)} rows of attributes; there must be one for each."
        )
    return attributes


def fitting(attributes: pl.DataFrame, held: Mapping[str, DataType], rows: int) -> pl.DataFrame:
    """New attributes in the columns and types of those held."""
    check_attributes(attributes, rows)
    for name in held:
        if name not in attributes.columns:
            raise ValueError(
                f"the attributes lack a column that the index holds: {unknown('column', name, attributes.columns)}"
            )
    for name in attributes.columns:
        if name not in held:
            raise ValueError(f"the attributes have a column that the index lacks: {unknown('column', name, held)}")
    types: dict[Any, Any] = dict(held)
    try:
        return attributes.select(list(held)).cast(types, strict=True)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"the attributes do not fit the types that the index holds, {types}: {error}") from error


def read_index_json(path: PathLike) -> dict[str, Json]:
    """index.json of a folder; ValueError if it is not there or of another format."""
    file = Path(path) / "index.json"
    if not file.exists():
        raise ValueError(f"no index at {path}: index.json is missing. Give the folder that save() wrote.")
    try:
        text: dict[str, Json] = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: it was changed or cut short ({error}). Save the index again.") from error
    if isinstance(text, dict) and text.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{file} has format {text['format']}; this version reads {FORMAT}. Build the index anew.")
    kinds = {"format": int, "kind": str, "dim": int, "count": int, "files": dict}
    wrong = not isinstance(text, dict) or any(type(text.get(name)) is not kind for name, kind in kinds.items())
    if wrong:
        raise ValueError(f"{file} is damaged: it must say format, kind, dim, count and files. Save the index again.")
    return text
