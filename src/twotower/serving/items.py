"""The items of a Retriever: raw ids, display fields, and the keys under which the index holds their vectors."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from twotower.feature_stores.base import SEEN, FeatureStore

RawId = int | str
TAKEN = ("query", "rank", "score")  # columns of the results


class Items:
    """Items by id and by key.

    Args:
        table: (N rows) the id column and others.
        id_name: the id column.
        keys: (N,) int64, all different; 0 to N-1 where they are left out.

    Raises:
        ValueError: the id column is missing, or an id repeats, or a column has a name that results use.
    """

    def __init__(self, table: pl.DataFrame, id_name: str, keys: Int[Tensor, "N"] | None = None) -> None:
        check_items(table, id_name)
        self.id_name = id_name
        self._take(table, torch.arange(len(table)) if keys is None else keys)

    def _take(self, table: pl.DataFrame, keys: Tensor) -> None:
        self.table = table
        self.keys = keys
        self._key = dict(zip(table[self.id_name].to_list(), keys.tolist(), strict=True))
        self._row = np.full(int(keys.max()) + 1 if len(keys) else 0, -1)
        self._row[keys.numpy()] = np.arange(len(keys))

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, raw: object) -> bool:
        return type(raw) in (int, str) and raw in self._key

    @property
    def attributes(self) -> pl.DataFrame:
        """What filters may ask about: numbers, text, booleans, times, and lists of them."""
        return self.table.select([column.name for column in self.table if _plain(column)])

    def keys_of(self, ids: Sequence[RawId]) -> Int[Tensor, "n"]:
        """The keys of ids.

        Raises:
            ValueError: an id that is no item.
        """
        self._check_types(ids)
        unknown = [raw for raw in ids if raw not in self._key]
        if unknown:
            raise ValueError(f"no item has the id {unknown[0]!r} ({len(unknown)} of {len(ids)} ids are unknown).")
        return torch.tensor([self._key[raw] for raw in ids], dtype=torch.int64)

    def known_keys_of(self, ids: Sequence[RawId]) -> Int[Tensor, "n"]:
        """The keys of those ids that are items.

        Raises:
            ValueError: an id of another type than the items have, which could never be one.
        """
        self._check_types(ids)
        return torch.tensor([self._key[raw] for raw in ids if raw in self._key], dtype=torch.int64)

    def _check_types(self, ids: Sequence[RawId]) -> None:
        kind = int if self.table.schema[self.id_name].is_integer() else str
        if isinstance(ids, (str, bytes)):
            raise ValueError(f"ids come in a list, got {ids!r}: put it in brackets.")
        wrong = [raw for raw in ids if type(raw) is not kind]
        if wrong:
            raise ValueError(
                f"ids of items are {'integers' if kind is int else 'strings'}, as column {self.id_name!r} holds them; got "
                f"{wrong[0]!r}, which is {type(wrong[0]).__name__}."
            )

    def at(self, keys: Int[Tensor, "n"]) -> pl.DataFrame:
        """The rows of keys."""
        return self.table[self._row[keys.cpu().numpy()]]

    def put(self, table: pl.DataFrame) -> Int[Tensor, "n"]:
        """Add rows, or replace those of the same ids in place, and give their keys; new ids get new keys.

        Raises:
            ValueError: repeated ids, or other columns or types than the items have.
        """
        check_items(table, self.id_name)
        if table.schema != self.table.schema:
            raise ValueError(
                f"new items must have the columns of the others, {dict(self.table.schema)}; got {dict(table.schema)}."
            )
        ids = table[self.id_name].to_list()
        fresh = int(self.keys.max()) + 1 if len(self.keys) else 0
        new = [raw for raw in ids if raw not in self._key]
        given = dict(zip(new, range(fresh, fresh + len(new)), strict=True))
        keys = torch.tensor([given[raw] if raw in given else self._key[raw] for raw in ids], dtype=torch.int64)
        stays = torch.from_numpy(~np.isin(self.keys.numpy(), keys.numpy()))
        self._take(pl.concat([self.table.filter(pl.Series(stays.numpy())), table]), torch.cat([self.keys[stays], keys]))
        return keys

    def remove(self, ids: Sequence[RawId]) -> Int[Tensor, "n"]:
        """Forget ids and give the keys that they had.

        Raises:
            ValueError: an id that is no item.
        """
        keys = self.keys_of(ids)
        stays = torch.from_numpy(~np.isin(self.keys.numpy(), keys.numpy()))
        self._take(self.table.filter(pl.Series(stays.numpy())), self.keys[stays])
        return keys


def check_items(table: pl.DataFrame, id_name: str) -> None:
    """ValueError unless the table has a column of distinct ids, and no column that results have."""
    if id_name not in table.columns or table[id_name].n_unique() < len(table) or table[id_name].null_count():
        found = f"only {table.columns}"
        if id_name in table.columns:
            found = f"{table[id_name].n_unique()} distinct of {len(table)}, {table[id_name].null_count()} missing"
        raise ValueError(f"items needs a column {id_name!r} with a different id in each row; found {found}.")
    taken = [name for name in TAKEN if name in table.columns]
    if taken:
        raise ValueError(f"items has columns named {taken}, as the results have; rename them.")


def _plain(column: pl.Series) -> bool:
    kind = column.dtype
    inner = kind.inner if isinstance(kind, pl.List) else kind
    return bool(inner.is_numeric() or inner.is_temporal() or inner in (pl.String, pl.Boolean))


def check_seen(users: FeatureStore, items: Items) -> None:
    """ValueError when the seen items have ids of another type than the items: none of them would ever be left out."""
    kind = users.schema.get(SEEN)
    if isinstance(kind, pl.List) and kind.inner != pl.Null:
        own = items.table.schema[items.id_name]
        if (kind.inner.is_integer(), kind.inner == pl.String) != (own.is_integer(), own == pl.String):
            raise ValueError(
                f"the feature store lists seen items as {kind.inner}, but the items' ids are {own}: cast {SEEN!r}."
            )
