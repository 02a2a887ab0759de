"""Hashed: ids by a hash of the value alone, without a vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, holding, keep_counts, keep_tags, no_way_back
from twotower.data.columns.categorical import id_schema
from twotower.data.columns.values import buckets_of, element_type, is_list, on_values, plain
from twotower.data.raw import RawTable
from twotower.schema import ColumnSchema


@dataclass(frozen=True)
class Hashed(Column):
    """Ids or names, or lists of them, by a hash of the value alone: nothing is learnt, and values may share an id.

    Ids are 0 for null, and 1 + hash(value) mod `buckets` otherwise. The hash is BLAKE2b of the value's text, the same on every
    machine and in every version; an integer and its decimal text have one hash.

    Args:
        tags: what the column means; `Tags.CATEGORICAL` is added.
        buckets: how many ids there are beside 0.
        domain: the name of the domain; columns of one domain share an embedding table, and must have equal `buckets`. By
            default the column's own.
        source: the raw column to read; by default the one of the same name. Several columns, none of lists, are crossed: each
            combination of their values is hashed as one, and is null where one of them is.

    Raises:
        ValueError: buckets below 1.
    """

    kind: ClassVar[str] = "hashed"
    tags: Tagged = ()
    buckets: int = 1024
    domain: str | None = None
    source: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        keep_tags(self)
        keep_counts(self, "buckets")
        if isinstance(self.source, list):
            object.__setattr__(self, "source", tuple(self.source))

    def reads(self, name: str) -> tuple[str, ...]:
        return self.source if isinstance(self.source, tuple) else (self.source or name,)

    def group(self, name: str) -> str:
        return name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        sources = self.reads(name)
        lists = [s for s in sources if any(t.is_list(s) for t in holding(tables, sources))]
        if lists and len(sources) > 1:
            raise ValueError(
                f"{name!r} crosses {list(sources)}, but {lists} hold lists; cross columns of one value a row."
            )
        return _Bucketed(name, self, bool(lists))

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        return None

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Bucketed(name, self, state["lists"])


class _Bucketed(Learnt):
    def __init__(self, name: str, column: Hashed, lists: bool) -> None:
        super().__init__(name, lists)
        self.column = column

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        sources, buckets = self.column.reads(self.name), self.column.buckets
        if len(sources) > 1:
            return [hashed_ids(_crossed(raw, sources), buckets).alias(self.name)]
        source, values = sources[0], raw[sources[0]]
        if element_type(values) == pl.Null:
            values = values.cast(pl.List(pl.String) if self.lists else pl.String)
        if is_list(values) != self.lists:
            expected = "lists" if self.lists else "one value a row"
            raise ValueError(f"column {source!r} was learnt from {expected}, but now holds {values.dtype}.")
        return [on_values(values, lambda v: hashed_ids(plain(v, source, "Hashed"), buckets)).alias(self.name)]

    def schema(self) -> list[ColumnSchema]:
        domain = {"min": 0, "max": self.column.buckets, "name": self.column.domain or self.name}
        return [id_schema(self.name, self.column.tags, self.lists, {"domain": domain})]

    def inverse(self, codes: pl.Series) -> pl.Series:
        raise no_way_back(self.name, "hashed")

    def state(self) -> Json:
        return {"lists": self.lists}


def _crossed(raw: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Each row's values as one text, every value with its length before it, so that no two combinations are alike."""
    texts = []
    for column in columns:
        values = raw[column].cast(pl.String) if raw[column].dtype == pl.Null else raw[column]
        text = plain(values, column, "Hashed").cast(pl.String)
        texts += [text.str.len_bytes().cast(pl.String), text]
    return pl.select(pl.concat_str(texts, separator=":")).to_series()


def hashed_ids(values: pl.Series, buckets: int) -> pl.Series:
    """(n,) Int64: 0 for null, else 1 + the value's bucket."""
    return (1 + buckets_of(values, buckets)).fill_null(0)
