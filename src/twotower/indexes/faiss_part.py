"""What the indexes on faiss share. faiss is imported when one of them is made, not before."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from twotower.errors import need
from twotower.indexes.local import Allowed

# the largest numbers of float32, nearly, and of half precision
FLOAT32, HALF = 3e38, 65_504


def load_faiss(who: str) -> Any:
    """The module; ImportError that says how to install it."""
    return need("faiss", who, "index")


def selector(faiss: Any, allowed: Allowed) -> Any:
    """The slots that may come, as faiss asks for them in the middle of a search."""
    if "selector" not in allowed.notes:
        bits = np.packbits(allowed.mask(), bitorder="little")
        allowed.notes["selector"] = faiss.IDSelectorBitmap(bits)
        allowed.notes["bits"] = bits  # which the selector only points to
    return allowed.notes["selector"]


def scale_of(vectors: Tensor) -> float:
    """What brings the largest number to 1: half precision holds up to 65,504 and loses digits below 0.0001."""
    largest = float(vectors.abs().max()) if len(vectors) else 0.0
    return 1 / largest if largest > 1 / FLOAT32 else 1.0  # vectors of nothing but zeros need none


def fits(vectors: Tensor, scale: float) -> bool:
    """Whether half precision holds the vectors at a scale that was chosen for others."""
    return float(vectors.abs().max()) * scale <= HALF


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


def read(faiss: Any, folder: Path) -> Any:
    """What `write` wrote."""
    return faiss.read_index(str(folder / "structure.faiss"))
