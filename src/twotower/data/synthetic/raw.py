"""A made-up world as raw tables: names, words, prices and holes in place of ids and standard numbers."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from twotower.schema import ColumnSchema, Schema

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
TOPIC_WORDS = 8  # of each topic, two of which stand in a title
COMMON_WORDS = 200  # that titles of all topics share, one in each


@dataclass(frozen=True, eq=False)
class RawTables:
    """What a shop would have in its database.

    Args:
        events: a frame for each set, in the order of time: `user_id` "u17" and `item_id` "i5" (17 and 5 being the ids of the
            world's datasets; the columns are called as in its schema), the time in seconds since 1970, and the targets.
        users, items: one row for each, with the features: categories and lists as words, some of them null; numbers without a
            domain as prices, 20 exp(x). Items have a `title` as well: two words of their topic, a common one, the number.
    """

    events: tuple[pl.DataFrame, ...]
    users: pl.DataFrame
    items: pl.DataFrame


def word(number: int) -> str:
    """A made-up word for each number from 0, no two alike.

    Example:
        >>> word(0), word(1), word(4900)
        ('baba', 'beba', 'bababe')
    """
    syllables: list[str] = []
    while number or len(syllables) < 2:
        number, place = divmod(number, len(SYLLABLES))
        syllables.append(SYLLABLES[place])
    return "".join(syllables)


def raw_side(
    table: pl.DataFrame, ids: ColumnSchema, features: Schema, mark: str, nulls: float, rng: np.random.Generator
) -> pl.DataFrame:
    """The users or the items with raw values; a share `nulls` of each category column is null."""
    columns = [raw_ids(table[ids.name], mark)]
    for column in features:
        values = table[column.name]
        if column.int_domain is None and not column.is_list:
            unit = values.cast(pl.Float64) if column.float_domain else 20 * values.cast(pl.Float64).exp()
            columns.append(unit.round(2))
        elif column.int_domain is not None and column.is_list:
            columns.append(values.cast(pl.List(values.dtype.inner)).list.eval(_words(pl.element(), column)))  # type: ignore[attr-defined]
        elif column.int_domain is not None:
            named = values.to_frame().select(_words(pl.col(column.name), column)).to_series()
            columns.append(_with_nulls(named, nulls, rng))
        else:
            columns.append(values)
    return pl.DataFrame(columns)


def titles(topic: np.ndarray, nulls: float, rng: np.random.Generator) -> pl.Series:
    """A title for each item, which tells of its topic."""
    first = len(SYLLABLES) ** 2  # three syllables, unlike the words of small domains
    of_topics = pl.Series([word(first + n) for n in range(int(topic.max() + 1) * TOPIC_WORDS)])
    common = pl.Series([word(first**2 + n) for n in range(COMMON_WORDS)])
    pair = np.stack([rng.integers(TOPIC_WORDS, size=len(topic)), rng.integers(1, TOPIC_WORDS, size=len(topic))])
    pair[1] = (pair[0] + pair[1]) % TOPIC_WORDS  # another word than the first
    parts = [of_topics.gather(topic * TOPIC_WORDS + place).str.to_titlecase() for place in pair]
    shared = common.gather(rng.integers(COMMON_WORDS, size=len(topic)))
    text = parts[0] + " " + parts[1] + " " + shared + " " + pl.Series(np.arange(len(topic))).cast(pl.String)
    return _with_nulls(text.alias("title"), nulls, rng)


def raw_ids(ids: pl.Series, mark: str) -> pl.Series:
    """ "u17" for 17."""
    return (mark + ids.cast(pl.String)).alias(ids.name)


def _words(value: pl.Expr, column: ColumnSchema) -> pl.Expr:
    domain = column.int_domain
    assert domain is not None  # the caller looked
    numbers = pl.Series(range(int(domain.min), int(domain.max) + 1), dtype=pl.Int64)
    made = pl.Series([word(n - int(domain.min)) for n in numbers])
    return value.cast(pl.Int64).replace_strict(numbers, made, return_dtype=pl.String)


def _with_nulls(values: pl.Series, share: float, rng: np.random.Generator) -> pl.Series:
    holes = pl.Series(rng.random(len(values)) < share)
    return values.to_frame().select(pl.when(~holes).then(pl.col(values.name)).alias(values.name)).to_series()
