"""QdrantIndex: candidates in a Qdrant collection, embedded or on a server, with filters in Qdrant's own search."""

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.errors import explain_options, need
from twotower.files import PathLike
from twotower.indexes.base import Found, Index, Json, Keys, check_attributes, check_vectors, key_array, key_numbers
from twotower.indexes.filters import INT64, NEGATIONS, RANGES, Condition, DataType, Filter, checked
from twotower.indexes.payloads import check_held, column, innermost, moment, payload, payload_schema
from twotower.indexes.rows import Rows

# points or queries in one request
POINTS, QUERIES = 1000, 64
KEY_OF_THE_API = "QDRANT_API_KEY"


class QdrantIndex(Index):
    """Candidates in a Qdrant collection. Exclusions, whitelists and filters go into Qdrant's search.

    On a server the search is approximate (HNSW) unless `exact`; the embedded store compares all, and is meant for some
    thousands of candidates. Scores are Qdrant's. A server changes points request by request, so what is checked here first is
    all or nothing, but not what a broken connection interrupts. Needs qdrant-client: pip install 'twotower[qdrant]'.

    `save` writes the candidates themselves and nothing of where they are: `load` fills a collection in memory with them, or the
    one that it is given. The embedded store of a folder is read with pickle, which runs what it holds: name only folders of
    your own.

    Args:
        vectors, keys, attributes: as of every index; keys from 0 on.
        location: ":memory:", a folder for the embedded store, or the URL of a server, whose API key is read from the
            environment's QDRANT_API_KEY.
        collection: its name there.
        replace: whether a collection of that name may be deleted first.
        exact: whether a server compares all candidates that the filter leaves.

    Raises:
        ValueError: besides what every index raises: a collection of that name is there already, or keys below 0.
    """

    kind: ClassVar[str] = "qdrant"
    _may_replace: bool

    @explain_options
    def __init__(
        self,
        vectors: Float[Tensor, "N D"],
        keys: Keys | None = None,
        attributes: pl.DataFrame | None = None,
        *,
        location: str = ":memory:",
        collection: str = "candidates",
        replace: bool = False,
        exact: bool = False,
    ) -> None:
        start = time.perf_counter()
        numbers = np.arange(len(vectors), dtype=np.int64) if keys is None else key_array(keys)
        held = check_vectors(vectors, numbers)
        if not len(held):
            raise ValueError("an index needs at least one candidate, got none.")
        check_attributes(attributes, len(held))
        self.dim = held.shape[1]
        self.exact = exact
        self._connect(location, collection, None)
        self._fill(numbers, held, attributes, replace)
        self.build_seconds = time.perf_counter() - start

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        location: str = ":memory:",
        collection: str = "candidates",
        replace: bool = False,
        api_key: str | None = None,
    ) -> "QdrantIndex":
        """Read what `save` wrote, and fill a collection with it: in memory, or where it is asked for here.

        Args:
            path: the folder.
            location, collection, replace: as when an index is made.
            api_key: of a server; None for the environment's QDRANT_API_KEY.

        Raises:
            ValueError: no index at the path, or one of another kind or format; a collection of that name is there already.
        """
        index = cls.__new__(cls)
        index._connect(location, collection, api_key)
        index._may_replace = replace
        try:
            index._restore(path)
        except BaseException:
            index.close()
            raise
        return index

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Int[Tensor, "N"]:
        """The keys of all candidates, ascending."""
        found: list[int] = []
        offset: Any = None
        while True:
            points, offset = self._client.scroll(
                self.collection, limit=10 * POINTS, offset=offset, with_payload=False, with_vectors=False
            )
            found += [int(point.id) for point in points]
            if offset is None:
                return torch.tensor(sorted(found), dtype=torch.int64)

    @property
    def attribute_types(self) -> Mapping[str, DataType] | None:
        """Names and types of the attributes; None where there are none."""
        return None if self._types is None else self._types.schema

    @property
    def memory_bytes(self) -> None:
        """None: the candidates are Qdrant's."""
        return None

    def vectors_of(self, keys: Keys) -> Float[Tensor, "M D"]:
        """The vectors of some candidates, float32; ValueError for a key that is not there."""
        numbers = key_numbers(keys)
        found = self._retrieve(numbers, vectors=True)
        return torch.tensor([found[key] for key in numbers.tolist()], dtype=torch.float32).reshape(-1, self.dim)

    def close(self) -> None:
        """Let go of the connection, or of the embedded store's folder, which one process at a time may use."""
        self._client.close()

    # ---- searching

    def rebuilt(self, vectors: Float[Tensor, "N D"], keys: Keys, attributes: pl.DataFrame | None) -> "QdrantIndex":
        """Always a ValueError: the collection is being searched, and another needs a name of its own."""
        raise ValueError(
            f"the collection {self.collection!r} cannot be made anew while it is searched. Make "
            "QdrantIndex(..., collection=<another name>), or bring this one up to date with upsert and delete."
        )

    def _search(
        self, queries: Tensor, k: int, exclude: Tensor | None, only: Tensor | None, where: Filter | None
    ) -> Found:
        models = self._models
        must = [] if where is None else [self._translated(condition) for condition in where.conditions]
        if only is not None:
            wanted = only.unique()
            must.append(models.HasIdCondition(has_id=wanted[wanted >= 0].tolist()))
        banned: dict[int, list[int]] = {}
        for row, key in [] if exclude is None else exclude.cpu().tolist():
            banned.setdefault(row, []).append(key)
        filters = []
        for row in range(len(queries)):
            ids = sorted({key for key in banned.get(row, []) if key >= 0})
            must_not = [models.HasIdCondition(has_id=ids)] if ids else None
            filters.append(models.Filter(must=must or None, must_not=must_not) if must or must_not else None)
        scores, keys = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), -1)
        asked = queries.cpu().tolist()
        for rows in _parts(list(range(len(queries))), QUERIES):
            for row, found in zip(
                rows, self._best([asked[r] for r in rows], [filters[r] for r in rows], k), strict=True
            ):
                for place, (score, key) in enumerate(found):
                    scores[row, place], keys[row, place] = score, key
        return scores.to(queries.device), keys.to(queries.device)

    def _best(self, queries: list[list[float]], filters: list[Any], k: int) -> list[list[tuple[float, int]]]:
        """The best k of each query; where equal scores go on beyond what came, it is asked for more."""
        limit = k + 16
        results: list[list[tuple[float, int]]] = [[] for _ in queries]
        open_rows = list(range(len(queries)))
        while open_rows:
            requests = [
                self._models.QueryRequest(
                    query=queries[row],
                    filter=filters[row],
                    limit=limit,
                    with_payload=False,
                    params=self._models.SearchParams(exact=True) if self.exact else None,
                )
                for row in open_rows
            ]
            tied = []
            answers = self._client.query_batch_points(self.collection, requests=requests)
            for row, answer in zip(open_rows, answers, strict=True):
                points = answer.points
                if len(points) == limit < self._count and points[-1].score >= points[k - 1].score:
                    tied.append(row)
                best = sorted((-point.score, int(point.id)) for point in points)[:k]
                results[row] = [(-score, key) for score, key in best]
            open_rows, limit = tied, 4 * limit
        return results

    def _translated(self, condition: Condition) -> Any:
        """A condition in Qdrant's words; a negation also asks that there is a value."""
        models, name = self._models, condition.column
        assert self._types is not None  # search has checked
        kind, values = checked(condition, self._types)
        dtype = self._types.schema[name]
        if kind == "null":
            return models.HasIdCondition(has_id=[])
        if any(isinstance(value, int) and value not in INT64 for value in values):
            raise ValueError(
                f"Qdrant has no numbers from 2^63 on: attribute {name!r} cannot be compared with {values}."
            )
        if condition.operator in RANGES:
            if kind == "number" and dtype.is_integer() and abs(values[0]) > 2**53:
                raise ValueError(
                    f"Qdrant orders numbers as floats, which are whole up to 2^53: attribute {name!r} cannot be compared with "
                    f"{values[0]}."
                )
            if kind == "text":
                raise ValueError(
                    f"Qdrant has no order of texts: attribute {name!r} can be asked for eq, ne, in and not_in."
                )
            if kind == "time":
                asked = models.DatetimeRange(**{condition.operator: moment(values[0], name)})
            else:
                asked = models.Range(**{condition.operator: payload(values[0])})
            return models.FieldCondition(key=name, range=asked)
        floats = kind.endswith("number") and not innermost(dtype).is_integer()
        met: list[Any]
        if kind.endswith("time"):
            spans = [models.DatetimeRange(gte=moment(v, name), lte=moment(v, name)) for v in values]
            met = [models.FieldCondition(key=name, range=span) for span in spans]
        elif floats:
            met = [models.FieldCondition(key=name, range=models.Range(gte=payload(v), lte=payload(v))) for v in values]
        elif kind.endswith("flag"):
            met = [models.FieldCondition(key=name, match=models.MatchValue(value=v)) for v in values]
        else:
            known = [v for v in values if isinstance(v, (int, str))]  # no integer is a half
            met = [models.FieldCondition(key=name, match=models.MatchAny(any=known))] if known else []
        held = models.Filter(should=met) if met else models.HasIdCondition(has_id=[])
        if condition.operator not in NEGATIONS:
            return held
        missing = models.IsNullCondition(is_null=models.PayloadField(key=name))
        return models.Filter(must_not=[held, missing])

    # ---- changing

    def _upsert(self, keys: np.ndarray, vectors: Tensor, attributes: pl.DataFrame | None) -> None:
        _check_keys(keys)
        check_held(attributes)
        payloads: Sequence[dict[str, Json]] = [{}] * len(keys)
        if attributes is not None:
            payloads = [{name: payload(v) for name, v in row.items()} for row in attributes.iter_rows(named=True)]
        rows = vectors.cpu().tolist()
        for part in _parts(list(range(len(keys))), POINTS):
            batch = self._models.Batch(
                ids=[int(keys[at]) for at in part],
                vectors=[rows[at] for at in part],
                payloads=[payloads[at] for at in part],
            )
            self._client.upsert(self.collection, points=batch, wait=True)
        self._recount()

    def _delete(self, keys: np.ndarray) -> None:
        self._retrieve(keys, vectors=False)
        for part in _parts(keys.tolist(), POINTS):
            self._client.delete(self.collection, points_selector=self._models.PointIdsList(points=part), wait=True)
        self._recount()

    def _recount(self) -> None:
        self._count = int(self._client.count(self.collection, exact=True).count)

    def _retrieve(self, keys: np.ndarray, vectors: bool) -> dict[int, Any]:
        found = {}
        for part in _parts(keys[keys >= 0].tolist(), POINTS):
            points = self._client.retrieve(self.collection, ids=part, with_payload=False, with_vectors=vectors)
            found.update({int(point.id): point.vector for point in points})
        unknown = [key for key in keys.tolist() if key not in found]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(keys)} keys are no candidates of the index, such as {unknown[0]}."
            )
        return found

    # ---- files and connection

    def _save(self, folder: Path) -> Mapping[str, Json]:
        keys, vectors, payloads, offset = [], [], [], None
        while True:
            points, offset = self._client.scroll(
                self.collection, limit=POINTS, offset=offset, with_payload=self._types is not None, with_vectors=True
            )
            keys += [int(point.id) for point in points]
            vectors.append(np.array([point.vector for point in points], dtype=np.float32).reshape(-1, self.dim))
            payloads += [point.payload for point in points]
            if offset is None:
                break
        attributes = None
        if self._types is not None:
            columns = {name: [row.get(name) for row in payloads] for name in self._types.columns}
            attributes = pl.DataFrame([column(n, columns[n], dtype) for n, dtype in self._types.schema.items()])
        rows = Rows(torch.from_numpy(np.concatenate(vectors)), np.array(keys, dtype=np.int64), attributes)
        rows.save(folder)
        return {"count": rows.count, "options": {"exact": self.exact}}

    def _load(self, folder: Path, text: Mapping[str, Json]) -> None:
        self.exact = text["options"]["exact"]
        rows = Rows.load(folder)
        self._fill(rows.keys, rows.vectors, rows.attributes, self._may_replace)

    def _connect(self, location: str, collection: str, api_key: str | None) -> None:
        """To what the caller names: an address or a folder that came from a file would have the key, or run its pickles."""
        self.location, self.collection = str(location), collection
        package = need("qdrant_client", "QdrantIndex", "qdrant")
        self._models = package.models
        self._remote = self.location.startswith(("http://", "https://"))
        if self._remote:
            key = os.environ.get(KEY_OF_THE_API) if api_key is None else api_key
            self._client = package.QdrantClient(url=self.location, api_key=key)
        elif api_key is not None:
            raise ValueError(f"api_key is for a server's URL, and location is {self.location!r}.")
        elif self.location == ":memory:":
            self._client = package.QdrantClient(":memory:")
        else:
            self._client = package.QdrantClient(path=self.location)

    def _fill(self, keys: np.ndarray, vectors: Tensor, attributes: pl.DataFrame | None, replace: bool) -> None:
        """Make the collection and put the candidates into it."""
        _check_keys(keys)
        self._types = None if attributes is None else attributes.clear()
        for name in [] if attributes is None else attributes.columns:
            _check_name(name)
        check_held(attributes)
        if self._client.collection_exists(self.collection):
            if not replace:
                raise ValueError(
                    f"{self.location} has a collection {self.collection!r} already: give another name, or replace=True to "
                    "delete it."
                )
            self._client.delete_collection(self.collection)
        models = self._models
        self._client.create_collection(
            self.collection, vectors_config=models.VectorParams(size=self.dim, distance=models.Distance.DOT)
        )
        if self._remote and self._types is not None:
            for name, dtype in self._types.schema.items():
                self._client.create_payload_index(self.collection, name, field_schema=payload_schema(dtype))
        self._upsert(keys, vectors, attributes)


def _parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    whole = iter(items)
    while part := list(itertools.islice(whole, size)):
        yield part


def _check_keys(keys: np.ndarray) -> None:
    if len(keys) and int(keys.min()) < 0:
        raise ValueError(f"Qdrant knows no ids below 0, got the key {int(keys.min())}.")


def _check_name(name: str) -> None:
    if any(sign in name for sign in '.[]"'):
        raise ValueError(f"Qdrant reads '.', '[' and ']' in names as paths: rename attribute {name!r}.")
