"""What the indexes on faiss share. faiss is imported when one of them is made, not before."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from twotower.errors import need
from twotower.indexes.local import Allowed

# the largest numbers of float32, nearly, and of half precision
FLOAT32, HALF = 3e38, 65_504
AT_ONCE = 65_536  # vectors brought to scale, and put into a structure, at a time


def load_faiss(who: str) -> Any:
    """The module; ImportError that says how to install it."""
    return need("faiss", who, "index")


def selector(faiss: Any, allowed: Allowed) -> Any:
    """The slots that may come, as faiss asks for them in the middle of a search."""
    if "selector" not in allowed.notes:
        allowed.notes["selector"] = faiss.IDSelectorBitmap(np.packbits(allowed.mask(), bitorder="little"))
    return allowed.notes["selector"]


class HalfCodes:
    """A faiss structure of half-precision codes, which loses digits of numbers below 0.0001 and holds none above 65,504.

    Args:
        structure: of faiss.
        scale: what vectors are multiplied by, so that they fit.
    """

    def __init__(self, structure: Any, scale: float) -> None:
        self.structure = structure
        self.scale = float(scale)

    @classmethod
    def of(cls, structure: Any, vectors: Tensor) -> "HalfCodes":
        """The codes of vectors in an empty structure, at the scale that brings their largest number to 1."""
        largest = _largest(vectors)
        codes = cls(structure, 1 / largest if largest > 1 / FLOAT32 else 1.0)  # nothing but zeros needs none
        codes.add(vectors)
        return codes

    def add(self, vectors: Tensor) -> bool:
        """Put in vectors that come after the others; False, with nothing put in, if half precision does not hold them."""
        if _largest(vectors) * self.scale > HALF:
            return False
        for part in vectors.split(AT_ONCE):
            self.structure.add((part * self.scale).numpy())
        return True


def _largest(vectors: Tensor) -> float:
    return float(vectors.abs().max()) if len(vectors) else 0.0


def search_lists(
    faiss: Any,
    structure: Any,
    queries: np.ndarray,
    width: int,
    lists: np.ndarray,
    products: np.ndarray,
    parameters: Any,
) -> np.ndarray:
    """(B, width) slots found in the lists that are given for each query; faiss offers this with parameters in C alone.

    Args:
        queries: (B, D) float32.
        lists, products: (B, P) the lists to read, and the queries' products with their centroids.
    """
    queries, products = np.ascontiguousarray(queries), np.ascontiguousarray(products, dtype=np.float32)
    lists = np.ascontiguousarray(lists, dtype=np.int64)
    scores, found = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
    pointers = [faiss.swig_ptr(array) for array in (lists, products, scores, found)]
    structure.search_preassigned_c(len(queries), faiss.swig_ptr(queries), width, *pointers, False, parameters)
    return found


def write(faiss: Any, structure: Any, folder: Path) -> None:
    """structure.faiss, faiss's own format."""
    faiss.write_index(structure, str(folder / "structure.faiss"))


def read(faiss: Any, folder: Path, kind: str, dim: int, count: int) -> Any:
    """What `write` wrote.

    Raises:
        ValueError: the file holds another class of structure, or other vectors than `count` of width `dim`.
    """
    file = folder / "structure.faiss"
    found = faiss.read_index(str(file))
    held = (type(found).__name__, found.ntotal, found.d, found.metric_type)
    if held != (kind, count, dim, faiss.METRIC_INNER_PRODUCT):
        raise ValueError(
            f"{file} is damaged: it holds a {held[0]} of {held[1]} vectors of width {held[2]} for metric "
            f"{held[3]}, not {kind} of {count} of width {dim} for inner products. Save the index again."
        )
    return found
