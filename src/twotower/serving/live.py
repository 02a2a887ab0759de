"""The bundle that is served now, and changing it for a newer one while questions go on."""

import datetime
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twotower.bundle import read_manifest
from twotower.feature_stores.base import FeatureStore
from twotower.files import PathLike
from twotower.serving.cards import Cards
from twotower.serving.explorer.site import Site
from twotower.serving.inputs import Input, example_query, query_inputs
from twotower.serving.requests import Question, answer
from twotower.serving.retriever import Retriever

log = logging.getLogger("twotower.serve")
TRIES = 3  # a bundle that is replaced while it is read is read again


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A loaded bundle.

    Args:
        retriever: answers.
        version: 12 digits that another bundle does not have: the beginning of the hash of its manifest.
        manifest: what manifest.json says.
        seconds: that it took to load, verify and warm up.
        cards: what is shown of its items.
        inputs: what its queries are made of.
        site: what its pages and its search of items need.
        loaded: when.
    """

    retriever: Retriever
    version: str
    manifest: dict[str, Any]
    seconds: float
    cards: Cards
    inputs: dict[str, Input]
    site: Site
    loaded: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc))


class Live:
    """A bundle's folder and what was loaded from it.

    Args:
        path: a bundle, or a run folder that has one.
        users: opens the feature store in place of the bundle's own, at every load.
        custom_objects: classes of your own that the model is built from.

    Attributes:
        refused: why the bundle that lies there now is not served; None if it is.
    """

    def __init__(
        self,
        path: PathLike,
        users: Callable[[], FeatureStore] | None = None,
        custom_objects: dict[str, type] | None = None,
    ) -> None:
        self.path = bundle_folder(path)
        self.users = users
        self.custom_objects = custom_objects
        self.refused: str | None = None
        self._current: Snapshot | None = None

    @property
    def name(self) -> str:
        """The model's name: the folder's, or the run's for a bundle inside a run."""
        return self.path.parent.name if self.path.name == "bundle" else self.path.name

    @property
    def current(self) -> Snapshot:
        """What is served now; RuntimeError before `take`."""
        if self._current is None:
            raise RuntimeError("no bundle is loaded yet")
        return self._current

    @property
    def loaded(self) -> bool:
        """Whether anything is served."""
        return self._current is not None

    def load(self) -> Snapshot:
        """Read, verify and warm up what lies at the path, beside what is served.

        Raises:
            ValueError: a broken bundle.
        """
        for last in (False,) * (TRIES - 1) + (True,):
            start, version = time.perf_counter(), self.version_there()
            try:
                manifest = read_manifest(self.path)
                users = self.users() if self.users is not None else None
                retriever = Retriever.load(self.path, self.custom_objects, users=users)
                snapshot = Snapshot(
                    retriever,
                    version,
                    manifest,
                    0.0,
                    Cards(retriever.items),
                    query_inputs(retriever.bundle.preprocessor, retriever.query_columns),
                    Site(retriever),
                )
                warm_up(snapshot)
            except (ValueError, OSError):
                if last or self.version_there() == version:
                    raise
                continue
            if self.version_there() == version:
                return replace(snapshot, seconds=time.perf_counter() - start)
        raise ValueError(f"the bundle at {self.path} changed {TRIES} times while it was read. Try again.")

    def take(self, snapshot: Snapshot) -> None:
        """Serve it from now on; what is being answered goes on with the one before."""
        self._current = snapshot
        self.refused = None
        log.info("serving bundle %s of %s, %d items", snapshot.version, self.path, len(snapshot.retriever.items))

    def refuse(self, error: BaseException) -> None:
        """Note that what lies at the path cannot be served."""
        self.refused = str(error) or type(error).__name__
        log.error("the bundle at %s is refused, the one before is served on: %s", self.path, self.refused)

    def version_there(self) -> str:
        """The version of what lies at the path now; "" if there is nothing to be read."""
        try:
            return hashlib.sha256((self.path / "manifest.json").read_bytes()).hexdigest()[:12]
        except OSError:
            return ""


def bundle_folder(path: PathLike) -> Path:
    """The bundle of a run folder; any other path as it is."""
    folder = Path(path)
    inside = folder / "bundle"
    return inside if (inside / "manifest.json").exists() and not (folder / "manifest.json").exists() else folder


def warm_up(snapshot: Snapshot) -> None:
    """Ask a little of everything, so that the first client does not wait for what is made on first use."""
    retriever = snapshot.retriever
    some = retriever.items.table[retriever.items.id_name].head(1).to_list()
    questions = [Question(query=example_query(snapshot.inputs))]
    questions += [Question(item=raw) for raw in some] + [Question(history=some)]
    answer(retriever, questions, snapshot.cards)
    touch_users(snapshot)


def touch_users(snapshot: Snapshot) -> None:
    """Open this thread's connection to the feature store."""
    users = snapshot.retriever.bundle.users
    if users is not None:
        users.look_up([0 if users.schema[users.key].is_integer() else ""])
