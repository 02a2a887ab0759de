"""What is shown of items: their ids and display fields as Python values, kept for those that come often."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import torch

from twotower.errors import unknown
from twotower.serving.items import Items, RawId

KEPT = 200_000  # items whose cards are held; popular ones come again and again


class Cards:
    """Ids and display fields by key.

    Args:
        items: what is shown. Vectors (lists of floats) and bytes are shown only where they are asked for by name.
    """

    def __init__(self, items: Items) -> None:
        self.items = items
        self.every = [name for name in items.table.columns if name != items.id_name]
        self.default = [name for name in self.every if _short(items.table.schema[name])]
        self._kept: dict[int, tuple[RawId, dict[str, Any]]] = {}

    def check(self, fields: Sequence[str]) -> None:
        """ValueError for a field that the items do not have."""
        for name in fields:
            if name not in self.every:
                raise ValueError(f"the items have no such field. {unknown('field', name, self.every)}")

    def of(self, keys: Sequence[int], fields: Sequence[str] | None = None) -> list[tuple[RawId, dict[str, Any]]]:
        """The id and the fields of each key, in order; None for all fields that are shown by default."""
        if fields is not None and not set(fields) <= set(self.default):
            return self._read(keys, list(dict.fromkeys(fields)))
        held = self._kept
        missing = [key for key in dict.fromkeys(keys) if key not in held]
        if missing:
            if len(held) + len(missing) > KEPT:
                held = self._kept = {}
                missing = list(dict.fromkeys(keys))
            held.update(zip(missing, self._read(missing, self.default), strict=True))
        if fields is None:
            return [held[key] for key in keys]
        return [(raw, {name: card[name] for name in fields}) for raw, card in (held[key] for key in keys)]

    def _read(self, keys: Sequence[int], fields: Sequence[str]) -> list[tuple[RawId, dict[str, Any]]]:
        rows = self.items.at(torch.tensor(keys, dtype=torch.int64))
        ids = rows[self.items.id_name].to_list()
        if not fields:
            return [(raw, {}) for raw in ids]
        values = zip(*(rows[name].to_list() for name in fields), strict=True)
        return [(raw, dict(zip(fields, row, strict=True))) for raw, row in zip(ids, values, strict=True)]


def _short(kind: pl.DataType) -> bool:
    inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else None
    return kind != pl.Binary and not isinstance(kind, pl.Array) and not (inner is not None and inner.is_float())
