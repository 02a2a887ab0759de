"""The raw columns of a query: what each takes, for descriptions, examples and tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from twotower.data.columns import Bucketized, Categorical, Column, Numeric, PretrainedVectors, Text, Vector
from twotower.data.preprocessor import Preprocessor

EXAMPLES = {"INT64": 0, "FP64": 0.0, "BYTES": "", "BOOL": False}


@dataclass(frozen=True)
class Input:
    """One raw column.

    Args:
        datatype: of its values, in the words of the Open Inference Protocol: INT64, FP64 or BYTES (text; ISO for times).
        is_list: whether a query has a list of them.
    """

    datatype: str
    is_list: bool

    @property
    def example(self) -> Any:
        """A value that can be read."""
        return [] if self.is_list else EXAMPLES[self.datatype]


def query_inputs(preprocessor: Preprocessor, columns: Sequence[str]) -> dict[str, Input]:
    """What each raw column takes."""
    found: dict[str, Input] = {}
    for name, column in preprocessor.columns.items():
        for source in column.reads(name):
            if source in columns:
                found.setdefault(source, _input(preprocessor, name, column))
    return {source: found[source] for source in columns}


def example_query(inputs: Mapping[str, Input]) -> dict[str, Any]:
    """A query of values of the right types."""
    return {name: column.example for name, column in inputs.items()}


def _input(preprocessor: Preprocessor, name: str, column: Column) -> Input:
    listed = name in preprocessor.schema and bool(preprocessor.schema[name].is_list)
    if isinstance(column, (Numeric, Bucketized)):
        return Input("FP64", False)
    if isinstance(column, Vector):
        return Input("FP64", True)
    if isinstance(column, (Categorical, PretrainedVectors)):
        return Input("INT64" if preprocessor.vocabulary(name).dtype == pl.Int64 else "BYTES", listed)
    return Input("BYTES", listed and not isinstance(column, Text))  # text, hashes of text, and times
