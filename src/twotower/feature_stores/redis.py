"""Features in Redis, shared by many servers."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from twotower.data.dataset import Dataset, Source
from twotower.errors import need
from twotower.feature_stores.base import FeatureStore, RawId, check_key
from twotower.feature_stores.cells import check_storable, from_cells, schema_from_text, schema_to_text, to_cells
from twotower.feature_stores.sqlite import SQLiteFeatures
from twotower.files import PathLike

AT_ONCE = 10_000


class RedisFeatures(FeatureStore):
    """A table of features in Redis, one string of JSON for each id, under `<prefix>:<id>`.

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
        about = self._client.get(f"{prefix}/about")
        if about is None:
            raise ValueError(
                f"Redis holds no features under {prefix!r}. RedisFeatures.create(client, table, key) writes them."
            )
        text = json.loads(about)
        super().__init__(text["key"], schema_from_text(text["schema"]))

    @classmethod
    def create(cls, client: Any, table: Source, key: str, prefix: str = "twotower:users") -> "RedisFeatures":
        """Write a table under a prefix; what stands there under ids that the table lacks is kept until `remove`.

        Raises:
            ValueError: ids that repeat or are missing, or columns that JSON cannot hold.
        """
        frame = Dataset(table).to_polars()
        check_key(frame, key)
        check_storable(frame.schema)
        connected = _connected(client)
        about = json.dumps({"key": key, "schema": schema_to_text(frame.schema)})
        connected.set(f"{prefix}/about", about)
        store = cls(connected, prefix)
        store.put(frame)
        return store

    def __len__(self) -> int:
        return sum(1 for _ in self._client.scan_iter(f"{self.prefix}:*", count=AT_ONCE))

    def rows_of(self, ids: Sequence[RawId]) -> pl.DataFrame:
        found = self._client.mget([f"{self.prefix}:{raw}" for raw in ids]) if ids else []
        return from_cells([json.loads(text) for text in found if text is not None], self.schema)

    def some_ids(self, count: int) -> list[RawId]:
        names = sorted(itertools.islice(self._client.scan_iter(f"{self.prefix}:*", count=count), count))
        found = self._client.mget(names) if names else []
        rows = from_cells([json.loads(text) for text in found if text is not None], self.schema)
        return rows[self.key].to_list()

    def put(self, table: Source) -> None:
        frame = self.check_table(table)
        for part in frame.iter_slices(AT_ONCE):
            named = zip(part[self.key].to_list(), to_cells(part), strict=True)
            self._client.mset({f"{self.prefix}:{raw}": json.dumps(cells) for raw, cells in named})

    def remove(self, ids: Sequence[RawId]) -> None:
        names = [f"{self.prefix}:{raw}" for raw in self.check_ids(ids)]
        if names:
            self._client.delete(*names)

    def write_sqlite(self, path: PathLike) -> None:
        names = list(self._client.scan_iter(f"{self.prefix}:*", count=AT_ONCE))
        texts = [
            text
            for start in range(0, len(names), AT_ONCE)
            for text in self._client.mget(names[start : start + AT_ONCE])
        ]
        rows = [json.loads(text) for text in texts if text is not None]
        SQLiteFeatures.create(path, from_cells(rows, self.schema), self.key)


def _connected(client: Any) -> Any:
    if not isinstance(client, str):
        return client
    redis = need("redis", "RedisFeatures", "redis")
    return redis.Redis.from_url(client)
