"""Text: words or character n-grams as a list of ids."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import pyarrow as pa

from twotower.data.columns.base import Column, Json, Known, Learnt, Tagged, holding, keep_counts, keep_tags, no_way_back
from twotower.data.columns.categorical import categorical_schema, id_schema
from twotower.data.columns.hashed import hashed_ids
from twotower.data.columns.values import lists, on_values, whole
from twotower.data.columns.vocabulary import Vocabulary, grown
from twotower.data.raw import RawTable
from twotower.errors import choose
from twotower.schema import ColumnSchema

WORD = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*"  # marks, such as the vowels of Devanagari, stay with the letter before them
ANALYZERS = {"word": "runs of words", "char_wb": "characters within words"}


@dataclass(frozen=True)
class Text(Column):
    """Free text, or lists of texts: its lower-case n-grams, each with an id; the column becomes a list, a bag.

    Words are runs of letters, with their marks, and digits, in Unicode's composed form (NFC): é is one word's letter however it
    was typed. A null text is an empty list.

    Args:
        tags: what the column means; `Tags.CATEGORICAL` is added.
        min_count: n-grams seen fewer times stay out of the vocabulary, and are unknown.
        max_size: keep only so many n-grams, the most frequent ones; None for all.
        buckets: hash the n-grams to so many ids, as in Hashed, instead of learning a vocabulary.
        ngram_range: the smallest and the largest n, both included.
        analyzer: "word" joins n neighbouring words with spaces; "char_wb" takes n neighbouring characters of each word with
            a space before and after it, which finds parts of words and survives misspellings.
        share: use the n-grams of this other Text column, and so its embedding table: a page's text and the titles of the
            pages that it may link to. Both must cut texts alike (`ngram_range`, `analyzer`, `buckets`).
        source: the raw column to read; by default the one of the same name.

    `ngram_range` and `analyzer` mean what they do in scikit-learn's CountVectorizer, but words of one letter count too.

    Raises:
        ValueError: an unknown analyzer, a range that is no range, counts that are no whole numbers from 1, or the limits of a
            vocabulary together with `buckets`, which learns none, or `share`, whose owner has them.
    """

    kind: ClassVar[str] = "text"
    tags: Tagged = ()
    min_count: int = 2
    max_size: int | None = None
    buckets: int | None = None
    ngram_range: tuple[int, int] = (1, 1)
    analyzer: str = "word"
    share: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        keep_tags(self)
        keep_counts(self, "min_count", "max_size", "buckets")
        choose("analyzer", self.analyzer, ANALYZERS)
        if len(self.ngram_range) != 2 or self.ngram_range[0] > self.ngram_range[1]:
            raise ValueError(
                f"ngram_range must be (smallest, largest) with 1 <= smallest <= largest, got {self.ngram_range}."
            )
        object.__setattr__(self, "ngram_range", tuple(whole("n of ngram_range", n) for n in self.ngram_range))
        if self.buckets is not None and (self.min_count, self.max_size) != (2, None):
            raise ValueError(
                f"buckets={self.buckets} hashes n-grams, and min_count and max_size limit a vocabulary, which it does not learn: "
                "leave out one or the other."
            )
        if self.share is not None and (self.min_count, self.max_size) != (2, None):
            raise ValueError(
                f"a column that shares the n-grams of {self.share!r} has its min_count and max_size from there; leave them out."
            )

    def reads(self, name: str) -> tuple[str, ...]:
        return (self.source or name,)

    def group(self, name: str) -> str:
        return self.share or name

    def learn(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> Learnt:
        owner = columns[self.group(name)]
        if isinstance(owner, Text) and owner.cut != self.cut:
            raise ValueError(
                f"{name!r} shares the n-grams of {self.share!r}, but cuts texts otherwise: {self.cut} against {owner.cut}. "
                "Give both the same ngram_range, analyzer and buckets."
            )
        self.extend(name, tables, columns, known)
        source = self.reads(name)[0]
        return _Bag(name, self, known, any(t.is_list(source) for t in holding(tables, [source])))

    def extend(self, name: str, tables: Sequence[RawTable], columns: Mapping[str, Column], known: Known) -> None:
        if self.buckets is None and self.group(name) == name:
            sharing = dict.fromkeys(c.reads(n)[0] for n, c in columns.items() if c.group(n) == name)
            counts = (part for source in sharing for part in self._counts(tables, source))
            known.vocabularies[name] = grown(
                known.vocabularies.get(name), name, counts, self.min_count, self.max_size, oov_buckets=1
            )

    def restore(self, name: str, state: Json, known: Known) -> Learnt:
        return _Bag(name, self, known, state["lists"])

    @property
    def cut(self) -> dict[str, object]:
        """How texts become n-grams; the same for columns that share them."""
        return {"ngram_range": self.ngram_range, "analyzer": self.analyzer, "buckets": self.buckets}

    def tokens(self, raw: pl.Series) -> pl.Series:
        """The n-grams of each row of a raw column, as lists of String."""
        return ngrams(words(raw), self.ngram_range, self.analyzer)

    def _counts(self, tables: Sequence[RawTable], source: str) -> Iterator[pl.DataFrame]:
        for table in holding(tables, [source]):
            for part in table.parts([source]):
                found = self.tokens(part[source]).explode().drop_nulls().alias("value")
                yield found.value_counts(name="count").with_columns(pl.col("count").cast(pl.Int64))


class _Bag(Learnt):
    def __init__(self, name: str, column: Text, known: Known, lists: bool) -> None:
        super().__init__(name, lists)
        self.column = column
        self.known = known

    @property
    def vocabulary(self) -> Vocabulary:
        return self.known.vocabularies[self.column.group(self.name)]

    def encode(self, raw: pl.DataFrame) -> list[pl.Series]:
        column = self.column
        tokens = column.tokens(raw[column.reads(self.name)[0]])
        if column.buckets is None:
            return [on_values(tokens, self.vocabulary.encode).alias(self.name)]
        buckets = column.buckets
        return [on_values(tokens, lambda values: hashed_ids(values, buckets)).alias(self.name)]

    def schema(self) -> list[ColumnSchema]:
        column = self.column
        if column.buckets is None:
            return [categorical_schema(self.name, column.tags, self.vocabulary, listed=True)]
        domain = {"min": 0, "max": column.buckets, "name": column.group(self.name)}
        return [id_schema(self.name, column.tags, True, {"domain": domain})]

    def inverse(self, codes: pl.Series) -> pl.Series:
        if self.column.buckets is not None:
            raise no_way_back(self.name, "hashed")
        return self.vocabulary.decode(codes)

    def state(self) -> Json:
        return {"lists": self.lists}


def words(text: pl.Series) -> pl.Series:
    """Lower-case runs of letters with their marks and digits, in NFC, a list for each row; null gives an empty list.

    Raises:
        ValueError: a column that holds neither text nor lists of text.
    """
    name = text.name
    if text.dtype == pl.Null:
        text = text.cast(pl.String)
    joined = text.list.join(" ", ignore_nulls=True) if text.dtype == pl.List(pl.String) else text
    if joined.dtype in (pl.Categorical, pl.Enum):
        joined = joined.cast(pl.String)
    if joined.dtype != pl.String:
        raise ValueError(f"column {name!r} is declared Text, but holds {text.dtype}.")
    found = pl.col(name).str.to_lowercase().str.normalize("NFC").str.extract_all(WORD).fill_null([])
    return joined.to_frame().select(found)[name]


def ngrams(tokens: pl.Series, ngram_range: tuple[int, int], analyzer: str) -> pl.Series:
    """The n-grams of lists of words, for each n of the range, in the order of n and then of the text."""
    low, high = ngram_range
    if analyzer == "char_wb":
        return on_rows(tokens, lambda word: _characters(word, low, high))
    if (low, high) == (1, 1):
        return tokens
    frame = pl.DataFrame({"word": tokens}).with_row_index("row").explode("word").drop_nulls("word")
    sizes = [_runs(frame, n) for n in range(low, high + 1)]
    found = pl.concat(sizes).sort("row", maintain_order=True)
    return _regrouped(found["word"], found["row"].to_numpy(), len(tokens), tokens.name)


def on_rows(tokens: pl.Series, parts: Callable[[str], list[str]]) -> pl.Series:
    """Each word of each list replaced by its parts."""
    frame = pl.DataFrame({"word": tokens}).with_row_index("row").explode("word").drop_nulls("word")
    distinct = frame["word"].unique()
    table = pl.DataFrame(
        {"word": distinct, "part": pl.Series([parts(word) for word in distinct], dtype=pl.List(pl.String))}
    )
    found = frame.join(table, on="word", how="left", maintain_order="left").explode("part")
    return _regrouped(found["part"], found["row"].to_numpy(), len(tokens), tokens.name)


def _runs(frame: pl.DataFrame, n: int) -> pl.DataFrame:
    """Every n neighbouring words of a row, joined with spaces; frame holds (row, word)."""
    run = pl.concat_str([pl.col("word").shift(-k) for k in range(n)], separator=" ")
    return frame.with_columns(word=run).filter(frame["row"] == frame["row"].shift(1 - n))


def _characters(word: str, low: int, high: int) -> list[str]:
    padded = f" {word} "
    found: list[str] = []
    for n in range(low, high + 1):
        found += [padded[at : at + n] for at in range(max(len(padded) - n, 0) + 1)]
        if n >= len(padded):  # longer n-grams would be the same again
            break
    return found


def _regrouped(values: pl.Series, rows: np.ndarray, count: int, name: str) -> pl.Series:
    """Values with their rows, rising, as `count` lists."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)
    return lists(values, pa.array(offsets), name)
