"""Categorical: ids, names, categories, and lists of them, by a vocabulary."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, holding, keep_counts, keep_tags
from twotower.data.columns.values import element_type, is_list, on_values, plain
from twotower.data.columns.vocabulary import Vocabulary, grown
from twotower.data.raw import RawTable
from twotower.schema import ColumnSchema, Tags
from twotower.tags import several_tags


@dataclass(frozen=True)
class Categorical(Column):
    """Ids, names, categories, or lists of them: each distinct value gets an id.

    Ids are 0 for null, 1 to `oov_buckets` for values outside the vocabulary, then the values by falling frequency, ties in
    the order of the values.

    Args:
        tags: what the column means, such as `Tags.ITEM_ID`; `Tags.CATEGORICAL` is added.
        min_count: values seen fewer times stay out of the vocabulary.
        max_size: keep only so many values, the most frequent ones; None for all.
        oov_buckets: how many ids the values outside the vocabulary share, by a hash of the value alone.
        share: use the vocabulary of this other Categorical column, and so its embedding table: a list of earlier items shares
            the item id's.
        learns: False only uses the shared vocabulary, and adds no values to it: those that the others do not hold are unknown.
        beside: learn only from tables that hold this raw column as well. With the user's column, a second reading of the item's
            id knows the items of the events, and items that only stand in the table of items are unknown to the tower: it
            goes by their features (see "Cold items" in docs/how-to.md).
        source: the raw column to read; by default the one of the same name.

    Raises:
        ValueError: counts below 1, `share` together with options that the owner of the vocabulary has, or learns=False
            without `share`.
    """

    kind: ClassVar[str] = "categorical"
    tags: Tagged = ()
    min_count: int = 1
    max_size: int | None = None
    oov_buckets: int = 1
    share: str | None = None
    learns: bool = True
    beside: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)
        keep_counts(self, "min_count", "max_size", "oov_buckets")
        if self.share is not None and (self.min_count, self.max_size, self.oov_buckets) != (1, None, 1):
            raise ValueError(
                f"a column that shares the vocabulary of {self.share!r} has its min_count, max_size and oov_buckets from "
                "there; leave them out."
            )

        if self.share is None and not self.learns:
            raise ValueError("learns=False uses another column's vocabulary: name that column as share.")

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or name,)

    def group(self, name: str) -> str:
        return self.share or name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        self.extend(name, tables, columns, known)
        source = self.reads(name)[0]
        return _Coded(name, self, known, any(t.is_list(source) for t in holding(tables, [source])))

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        if self.group(name) == name:
            sharing = {
                n: c for n, c in columns.items() if isinstance(c, Categorical) and c.group(n) == name and c.learns
            }
            wanted = [(c.reads(n)[0], c.beside) for n, c in sharing.items()]
            counts = _counted(tables, wanted, name)
            known.vocabularies[name] = grown(
                known.vocabularies.get(name), name, counts, self.min_count, self.max_size, self.oov_buckets
            )

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Coded(name, self, known, state["lists"])


def _counted(
    tables: Sequence[RawTable], columns: Sequence[tuple[str, str | None]], name: str
) -> Iterator[pl.DataFrame]:
    """Tables (value, count) of the columns' values in all tables, or in those that hold another column too."""
    kinds: set[str] = set()
    for column, beside in dict.fromkeys(columns):
        for table in holding(tables, [column] if beside is None else [column, beside]):
            for counts in table.counts(column):
                if not len(counts):
                    continue
                typed = counts.with_columns(plain(counts["value"], column, "Categorical"))
                kinds.add(str(typed["value"].dtype))
                if len(kinds) > 1:
                    raise ValueError(
                        f"the vocabulary of {name!r} would mix {' and '.join(sorted(kinds))}; make the columns one type first."
                    )
                yield typed


class _Coded(Learnt):
    """Ids from a vocabulary."""

    def __init__(self, name: str, column: Categorical, known: Known, lists: bool) -> None:
        super().__init__(name, lists)
        self.column = column
        self.known = known

    @property
    def vocabulary(self) -> Vocabulary:
        return self.known.vocabularies[self.column.group(self.name)]

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        (source,) = self.column.reads(self.name)
        return [coded(raw[source], source, self.vocabulary, self.lists, "Categorical").alias(self.name)]

    def schema(self) -> list[ColumnSchema]:
        return [categorical_schema(self.name, self.column.tags, self.vocabulary, self.lists)]

    def inverse(self, codes: pl.Series) -> pl.Series:
        return self.vocabulary.decode(codes)

    def state(self) -> Json:
        return {"lists": self.lists}


def coded(raw: pl.Series, source: str, vocabulary: Vocabulary, listed: bool, declared: str) -> pl.Series:
    """Ids of a raw column, in lists where it holds lists."""
    if element_type(raw) == pl.Null:
        kind = vocabulary.values.dtype
        raw = raw.cast(pl.List(kind) if listed else kind)
    if is_list(raw) != listed:
        expected = "lists" if listed else "one value a row"
        raise ValueError(f"column {source!r} was learnt from {expected}, but now holds {raw.dtype}.")

    def ids(values: pl.Series) -> pl.Series:
        typed = plain(values, source, declared)
        if typed.dtype != vocabulary.values.dtype:
            raise ValueError(
                f"column {source!r} holds {typed.dtype}, but its vocabulary was learnt from {vocabulary.values.dtype} values."
            )
        return vocabulary.encode(typed)

    return on_values(raw, ids)


def categorical_schema(name: str, tags: Tagged, vocabulary: Vocabulary, listed: bool) -> ColumnSchema:
    """The schema of an encoded column; columns that share a vocabulary share the domain's name."""
    properties = {
        "domain": {"min": 0, "max": vocabulary.largest_id, "name": vocabulary.name},
        "unknown_id": vocabulary.oov_buckets,
        "vocabulary": vocabulary.fingerprint,
    }
    return id_schema(name, tags, listed, properties)


def id_schema(name: str, tags: Tagged, listed: bool, properties: Mapping[str, object]) -> ColumnSchema:
    """The schema of a column of ids."""
    all_tags = (*several_tags(tags), Tags.CATEGORICAL)
    return ColumnSchema(name, all_tags, dtype="int64", is_list=listed, is_ragged=listed, properties=properties)
