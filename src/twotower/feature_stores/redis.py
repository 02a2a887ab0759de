"""Features in Redis, shared by many servers."""

import itertools
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from twotower.data.dataset import Source
from twotower.errors import need
from twotower.feature_stores.base import FeatureStore, RawId, check_key, read_table
from twotower.feature_stores.cells import check_storable, from_cells, schema_from_text, schema_to_text, to_cells
from twotower.feature_stores.sqlite import SQLiteFeatures
from twotower.files import PathLike

AT_ONCE = 10_000
LEASE = 3600  # seconds without a sign of life after which a writer counts as dead


class RedisFeatures(FeatureStore):
    """A table of features in Redis, one string of JSON for each id, under `<prefix>/<generation>:<id>`.

    Each `create` writes a generation of its own, which takes the older one's place at once, for stores that are open too: they
    go on with it if it has their columns, and raise if not.

    Args:
        client: a `redis.Redis` client, or the URL of a server, such as "redis://localhost:6379/0".
        prefix: of the keys.

    Raises:
        ValueError: nothing was written under this prefix; the package redis is missing.

    Example:
        >>> store = RedisFeatures.create("redis://localhost", users, key="user_id")   # doctest: +SKIP
        >>> RedisFeatures("redis://localhost").look_up([42]).rows                     # doctest: +SKIP
    """

    def __init__(self, client: Any, prefix: str = "twotower:users") -> None:
        self._client = _connected(client)
        self.prefix = prefix
        self._about = f"{prefix}/about"
        text = self._read(self._client.get(self._about))
        self._generation: str = text["generation"]
        super().__init__(text["key"], schema_from_text(text["schema"]))

    @classmethod
    def create(cls, client: Any, table: Source, key: str, prefix: str = "twotower:users") -> "RedisFeatures":
        """Write a table under a prefix, in place of an older one only when it is complete.

        What a writer that was killed left is deleted by the first `create` that comes an hour later.

        Raises:
            ValueError: ids that repeat or are missing, or columns that JSON cannot hold; an hour went by between two parts.
        """
        frame = read_table(table)
        check_key(frame, key)
        check_storable(frame.schema)
        connected = _connected(client)
        generation = uuid.uuid4().hex
        about = {"key": key, "schema": schema_to_text(frame.schema), "generation": generation}
        lease = _lease(prefix, generation)
        connected.set(lease, 1, ex=LEASE)
        connected.sadd(f"{prefix}/generations", generation)
        try:
            for part in frame.iter_slices(AT_ONCE):
                connected.mset(_texts(part, key, f"{prefix}/{generation}"))
                if not connected.set(lease, 1, ex=LEASE, xx=True):
                    raise ValueError(
                        f"writing stood still for {LEASE} seconds and was given up. Write the table again."
                    )
            before = connected.getset(f"{prefix}/about", json.dumps(about))
        except BaseException:
            _forget(connected, prefix, generation)
            raise
        if old := json.loads(before or "{}").get("generation"):
            _forget(connected, prefix, old)
        _forget_the_dead(connected, prefix, generation)
        return cls(connected, prefix)

    def __len__(self) -> int:
        return sum(1 for _ in _names(self._client, self.prefix, self._now()))

    def rows_of(self, ids: Sequence[RawId]) -> pl.DataFrame:
        while True:
            generation = self._generation
            about, *found = self._client.mget([self._about, *(f"{self.prefix}/{generation}:{raw}" for raw in ids)])
            self._generation = self._same(about)
            if self._generation == generation:
                return self._rows(found)

    def some_ids(self, count: int) -> list[RawId]:
        names = sorted(itertools.islice(_names(self._client, self.prefix, self._now(), count), count))
        return self._rows(self._client.mget(names) if names else [])[self.key].to_list()

    def put(self, table: Source) -> None:
        frame = self.check_table(table)

        def write(pipe: Any) -> None:
            place = f"{self.prefix}/{self._same(pipe.get(self._about))}"
            pipe.multi()
            for part in frame.iter_slices(AT_ONCE):
                pipe.mset(_texts(part, self.key, place))

        self._client.transaction(write, self._about)  # again, if another generation comes in between

    def remove(self, ids: Sequence[RawId]) -> None:
        checked = self.check_ids(ids)

        def delete(pipe: Any) -> None:
            place = f"{self.prefix}/{self._same(pipe.get(self._about))}"
            pipe.multi()
            if checked:
                pipe.delete(*(f"{place}:{raw}" for raw in checked))

        self._client.transaction(delete, self._about)

    def write_sqlite(self, path: PathLike) -> None:
        while True:
            generation = self._now()
            names = list(_names(self._client, self.prefix, generation))
            parts = [self._client.mget(names[at : at + AT_ONCE]) for at in range(0, len(names), AT_ONCE)]
            if self._now() == generation:
                break
        SQLiteFeatures.create(path, self._rows([text for part in parts for text in part]), self.key)

    def _rows(self, texts: Sequence[Any]) -> pl.DataFrame:
        return from_cells([json.loads(text) for text in texts if text is not None], self.schema)

    def _now(self) -> str:
        return self._same(self._client.get(self._about))

    def _same(self, about: Any) -> str:
        """The generation that stands now, if it has this store's columns."""
        text = self._read(about)
        if text["key"] != self.key or schema_from_text(text["schema"]) != self.schema:
            raise ValueError(
                f"the features under {self.prefix!r} were written anew with other columns than {list(self.schema)}. "
                "Open the store again."
            )
        return str(text["generation"])

    def _read(self, about: Any) -> dict[str, str]:
        text: dict[str, str] = json.loads(about or "{}")
        if "generation" not in text:
            raise ValueError(
                f"Redis holds no features under {self.prefix!r}. RedisFeatures.create(client, table, key) writes them."
            )
        return text


def _texts(frame: pl.DataFrame, key: str, place: str) -> dict[str, str]:
    named = zip(frame[key].to_list(), to_cells(frame), strict=True)
    return {f"{place}:{raw}": json.dumps(cells) for raw, cells in named}


def _names(client: Any, prefix: str, generation: str, count: int = AT_ONCE) -> Iterator[Any]:
    """The keys of a generation's rows, each once: Redis may give one twice."""
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", f"{prefix}/{generation}:") + "*"
    seen = set()
    for name in client.scan_iter(pattern, count=count):
        if name not in seen:
            seen.add(name)
            yield name


def _forget(client: Any, prefix: str, generation: str) -> None:
    names = _names(client, prefix, generation)
    while part := list(itertools.islice(names, AT_ONCE)):
        client.delete(*part)
    client.srem(f"{prefix}/generations", generation)
    client.delete(_lease(prefix, generation))


def _forget_the_dead(client: Any, prefix: str, now: str) -> None:
    """Delete the rows of writers that were killed: neither in use nor, by their lease, at work."""
    for name in client.smembers(f"{prefix}/generations"):
        generation = name.decode() if isinstance(name, bytes) else name
        if generation != now and not client.exists(_lease(prefix, generation)):
            _forget(client, prefix, generation)


def _lease(prefix: str, generation: str) -> str:
    return f"{prefix}/writing:{generation}"


def _connected(client: Any) -> Any:
    if not isinstance(client, str):
        return client
    redis = need("redis", "RedisFeatures", "redis")
    return redis.Redis.from_url(client)
