"""A map of the item vectors, computed once beside the requests."""

import importlib.util
import logging
import threading
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from twotower.data.columns.categorical import Categorical
from twotower.report.item_map import project
from twotower.serving.items import RawId
from twotower.serving.retriever import Retriever

OFTEN, SAMPLED = 1000, 1000  # items drawn: the most frequent in training, and a sample of the others
FEWEST = 10  # for t-SNE

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Points:
    """Where the drawn items lie.

    Args:
        ids: of the items drawn.
        places: (n, 2) from 0 to 1, whose aspect is kept.
        units: (n, D) directions of their vectors.
        how: "t-SNE" or "PCA".
    """

    ids: list[RawId]
    places: Float[np.ndarray, "n 2"]
    units: Float[Tensor, "n D"]
    how: str


class ItemMap:
    """The map of one bundle's items; `start` computes it in a thread of its own, once, and always the same.

    Args:
        retriever: whose items are drawn.

    Attributes:
        points: the map, None until it is made.
        failed: why there is none, empty as long as there may be.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.points: Points | None = None
        self.failed = ""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if nobody has."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="twotower-item-map", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until it is made or has failed."""
        self.start()
        assert self._thread is not None
        self._thread.join()

    def place_of(self, raw: RawId) -> tuple[int, bool]:
        """The number of the point at which an item lies, and whether it is the item's own or that of the nearest one drawn."""
        assert self.points is not None
        if raw in self.points.ids:
            return self.points.ids.index(raw), True
        vector = self.retriever.bundle.index.vectors_of(self.retriever.items.keys_of([raw]))
        return int((self.points.units @ F.normalize(vector, dim=1)[0]).argmax()), False

    def _work(self) -> None:
        try:
            self.points = draw(self.retriever)
        except Exception as error:  # a thread has nobody to raise to
            log.exception("the map of the items failed")
            self.failed = f"{type(error).__name__}: {error}"


def draw(retriever: Retriever) -> Points:
    """The map of a retriever's items: t-SNE where scikit-learn is installed, otherwise the first two principal components."""
    ids = chosen(retriever)
    units = F.normalize(retriever.bundle.index.vectors_of(retriever.items.keys_of(ids)), dim=1)
    if len(ids) >= FEWEST and importlib.util.find_spec("sklearn") is not None:
        return Points(ids, scaled(project(units)), units, "t-SNE")
    return Points(ids, scaled(principal(units)), units, "PCA")


def chosen(retriever: Retriever) -> list[RawId]:
    """The items to draw: all, or those that training met most, and a sample of the others at a fixed seed."""
    items = retriever.items
    ids: list[RawId] = items.table[items.id_name].to_list()
    if len(ids) <= OFTEN + SAMPLED:
        return ids
    often = frequent(retriever, OFTEN)
    taken = set(often)
    others = [raw for raw in ids if raw not in taken]
    order = np.random.default_rng(0).permutation(len(others))[: OFTEN + SAMPLED - len(often)]
    return often + [others[at] for at in sorted(order.tolist())]


def frequent(retriever: Retriever, count: int) -> list[RawId]:
    """The items that training met most, if their ids have a vocabulary, which stands by falling frequency; else none."""
    items, preprocessor = retriever.items, retriever.bundle.preprocessor
    if not isinstance(preprocessor.columns.get(items.id_name), Categorical):
        return []
    known = preprocessor.vocabulary(items.id_name).head(2 * count).to_list()
    return [raw for raw in known if raw in items][:count]


def principal(units: Float[Tensor, "n D"]) -> Float[np.ndarray, "n 2"]:
    """The first two principal components, of fixed sign; 0 where there is no second."""
    centred = (units - units.mean(0)).double()
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    places = centred @ (axes * torch.sign(largest)).T
    return F.pad(places, (0, 2 - places.shape[1])).numpy()


def scaled(places: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Into the unit square, both axes by one factor."""
    low, high = places.min(0), places.max(0)
    width = float((high - low).max()) or 1.0
    made: np.ndarray = (places - (low + high) / 2) / width + 0.5
    return made
