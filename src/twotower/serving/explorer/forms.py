"""A form over the raw columns that a query tower reads, and from what is filled in to a query."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from twotower.data.columns.base import Column
from twotower.data.columns.categorical import Categorical
from twotower.data.columns.hashed import Hashed
from twotower.data.columns.numeric import Age, Numeric
from twotower.data.columns.text import Text
from twotower.data.columns.times import Timestamp
from twotower.data.columns.vectors import PretrainedVectors, Vector
from twotower.indexes.filters import DataType
from twotower.serving.explaining import may_be_missing
from twotower.serving.explorer.asking import FLAGS, MOST_CHOICES, number_of
from twotower.serving.explorer.showing import words
from twotower.serving.items import RawId
from twotower.serving.retriever import Retriever

MOMENT = "moment"
KINDS = {"text": "words", "whole": "a whole number", "number": "a number", "time": "a date or a time, such as 2024-05-31",
         "flag": "yes or no", MOMENT: "a date, a time, or seconds since 1970"}  # fmt: skip


@dataclass(frozen=True)
class QueryField:
    """One raw column of the query tower.

    Args:
        name: of the column.
        kind: of KINDS.
        listed: whether it takes several values.
        needed: whether it may not be left out.
        example: a value to start from; may be empty.
        picks: values to choose from; none where there are too many.
    """

    name: str
    kind: str
    listed: bool
    needed: bool
    example: str
    picks: list[str] = field(default_factory=list)

    @property
    def hint(self) -> str:
        """What to write."""
        return f"several, one a line: {KINDS[self.kind]}" if self.listed else KINDS[self.kind]


def query_fields(retriever: Retriever) -> list[QueryField]:
    """A field for each raw column of the query tower but the history, which is picked otherwise."""
    columns = [name for name in retriever.query_columns if name != retriever.history_column]
    return [_field(retriever, name) for name in columns]


def read_query(fields: Sequence[QueryField], given: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The values of a query and what cannot be understood, in words.

    Args:
        fields: of the form.
        given: texts by column; those that are not there or empty are not known.
    """
    query: dict[str, object] = {}
    errors = []
    for one in fields:
        texts = [line.strip() for line in given.get(one.name, "").splitlines() if line.strip()]
        query[one.name] = None
        try:
            if len(texts) > 1 and not one.listed:
                raise ValueError("it takes one value.")
            values = [_value(text, one.kind) for text in texts]
        except ValueError as error:
            errors.append(f"{one.name}: {error}")
            continue
        if values:
            query[one.name] = values if one.listed else values[0]
        elif one.needed:
            such = f", such as {one.example}" if one.example else ""
            errors.append(f"{one.name} may not be missing for this model: give {one.hint}{such}.")
    return query, errors


def typed_id(text: str, dtype: DataType) -> RawId | None:
    """An id as its column holds it; None for a text that is no such id."""
    if not dtype.is_integer():
        return text
    try:
        return int(text) if text.isascii() and len(text) < 25 and "_" not in text else None
    except ValueError:
        return None


def _value(text: str, kind: str) -> object:
    if kind == "flag":
        if text not in FLAGS:
            raise ValueError(f"{text!r} is neither true nor false.")
        return FLAGS[text]
    if kind in ("whole", "number"):
        number = number_of(text)
        if number is None or (kind == "whole" and not text.lstrip("+-").isdigit()):
            raise ValueError(f"{text!r} is not {KINDS[kind]}.")
        return int(text) if kind == "whole" else number
    if kind == "time":
        try:
            return dt.datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {KINDS[kind]}.") from None
    return int(text) if kind == MOMENT and text.lstrip("-").isdigit() else text


def _field(retriever: Retriever, name: str) -> QueryField:
    preprocessor, users = retriever.bundle.preprocessor, retriever.bundle.users
    readers = [(encoded, column) for encoded, column in preprocessor.columns.items() if name in column.reads(encoded)]
    encoded, column = next((r for r in readers if isinstance(r[1], Categorical)), readers[0])
    if users is not None:
        dtype = users.schema[name]
        listed = isinstance(dtype, pl.List)
        kind = _kind_of_type(dtype.inner if isinstance(dtype, pl.List) else dtype)
    else:
        kind, listed = _kind_of_column(retriever, encoded, column)
    picks = []
    if isinstance(column, Categorical):
        vocabulary = preprocessor.vocabulary(encoded)
        picks = [str(value) for value in vocabulary.to_list()] if len(vocabulary) <= MOST_CHOICES else []
    example = _example(retriever, name, encoded, column)
    return QueryField(name, kind, listed, not may_be_missing(retriever, name), example, picks)


def _kind_of_type(dtype: DataType) -> str:
    if dtype == pl.Boolean:
        return "flag"
    if dtype.is_numeric():
        return "whole" if dtype.is_integer() else "number"
    return "time" if dtype.is_temporal() else "text"


def _kind_of_column(retriever: Retriever, encoded: str, column: Column) -> tuple[str, bool]:
    """From the declaration alone, when no table tells."""
    preprocessor = retriever.bundle.preprocessor
    if isinstance(column, (Categorical, PretrainedVectors)):
        listed = encoded in preprocessor.schema and bool(preprocessor.schema[encoded].is_list)
        if isinstance(column, PretrainedVectors):
            return "text", listed
        return _kind_of_type(preprocessor.vocabulary(encoded).dtype), listed
    if isinstance(column, (Timestamp, Age)):
        return MOMENT, False
    if isinstance(column, Hashed):  # whole numbers and their texts have one hash
        return "text", bool(preprocessor.schema[encoded].is_list)
    if isinstance(column, Text):
        return "text", False
    return "number", isinstance(column, Vector)


def _example(retriever: Retriever, name: str, encoded: str, column: Column) -> str:
    """Of a user in the store, or the mean that a number was scaled by."""
    users, preprocessor = retriever.bundle.users, retriever.bundle.preprocessor
    if users is not None:
        some = users.some_ids(1)
        value = users.look_up(some).rows[name].to_list()[0] if some else None
        return "" if value is None or isinstance(value, list) else words(value)
    if isinstance(column, Numeric) and column.scale == "standard":
        return words(preprocessor.inverse(encoded, [0.0])[0])
    if isinstance(column, Categorical) and len(preprocessor.vocabulary(encoded)):
        return str(preprocessor.vocabulary(encoded)[0])
    return ""
