"""The inputs of an exported tower: flat arrays by name, and what each of them means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twotower.data.batch import Batch, column, example_batch
from twotower.data.ragged import Ragged
from twotower.schema import ColumnSchema, Schema

BATCH = "batch"
OUTPUT = "vector"
DTYPES = {torch.int64: "int64", torch.float32: "float32"}


@dataclass(frozen=True)
class TowerInput:
    """One input of an exported tower.

    Args:
        name: the column's name, or `<column>.values` and `<column>.offsets` of a column of lists.
        column: the column that it comes from.
        dtype: "int64" or "float32".
        shape: sizes, or the names of those that a call is free to choose.
    """

    name: str
    column: ColumnSchema
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def is_values(self) -> bool:
        """Whether it holds lists, one after another."""
        return self.name == f"{self.column.name}.values"

    @property
    def is_offsets(self) -> bool:
        """Whether it says where lists begin and end."""
        return self.name == f"{self.column.name}.offsets"

    def describe(self) -> dict[str, Any]:
        """It as JSON."""
        told: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return told | {"column": self.column.name, "meaning": _meaning(self)} | _ids_of(self)


def tower_inputs(schema: Schema, weighed: Mapping[str, str] | None = None) -> list[TowerInput]:
    """The inputs of a tower that reads the schema's columns, in the order of the columns.

    Args:
        schema: the tower's.
        weighed: for columns of weights, the list column that they weigh, whose sizes they have.

    Raises:
        ValueError: a column is named like a part of another one.
    """
    found: list[TowerInput] = []
    goes_with = weighed or {}
    listed = schema.column_names
    for c, example in zip(schema, example_batch(schema).values(), strict=True):
        if isinstance(example, Ragged):
            total = f"total_{listed.index(goes_with.get(c.name, c.name))}"
            found.append(TowerInput(f"{c.name}.values", c, DTYPES[example.values.dtype], (total,)))
            found.append(TowerInput(f"{c.name}.offsets", c, "int64", (f"{BATCH} + 1",)))
        else:
            found.append(TowerInput(c.name, c, DTYPES[example.dtype], (BATCH, *example.shape[1:])))
    names = [OUTPUT, *(each.name for each in found)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two inputs or outputs of the exported tower would be called {name!r}: a list column gives <column>.values and "
                f"<column>.offsets, and the result is called {OUTPUT!r}. Rename a column of {schema.column_names}."
            )
    return found


def flat_inputs(batch: Batch, schema: Schema) -> dict[str, np.ndarray]:
    """The arrays that an exported tower reads, by the names of its inputs.

    Args:
        batch: with the schema's columns, among others it may hold.
        schema: the tower's, `tower.schema`.

    Returns:
        For a column of lists `<column>.values`, the lists one after another, and `<column>.offsets`: row i is
        `values[offsets[i]:offsets[i + 1]]`. Other columns under their own names. Ids are int64, numbers float32.

    Raises:
        ValueError: a column is missing, or holds lists where it should not.

    Example:
        >>> genres = ColumnSchema("genres", dtype="int64", is_list=True, properties={"domain": {"min": 0, "max": 9}})
        >>> flat = flat_inputs({"genres": Ragged.from_lists([[5, 7], [], [9]])}, Schema([genres]))
        >>> {name: array.tolist() for name, array in flat.items()}
        {'genres.values': [5, 7, 9], 'genres.offsets': [0, 2, 2, 3]}
    """
    flat: dict[str, np.ndarray] = {}
    for each in tower_inputs(schema):
        given = column(batch, each.column.name)
        if each.is_values or each.is_offsets:
            lists = _lists(given, each.column.name)
            part = lists.offsets if each.is_offsets else lists.values
        elif isinstance(given, Ragged) or tuple(given.shape[1:]) != each.shape[1:]:
            came = "lists" if isinstance(given, Ragged) else f"shape {tuple(given.shape)}"
            raise ValueError(f"column {each.name!r} must be of shape {each.shape}, got {came}. See the tower's schema.")
        else:
            part = given
        flat[each.name] = part.detach().cpu().numpy().astype(each.dtype)
    return flat


def batch_of(inputs: Mapping[str, Tensor], schema: Schema) -> Batch:
    """The batch that `flat_inputs` flattened."""
    return {
        c.name: inputs[c.name] if c.name in inputs else Ragged(inputs[f"{c.name}.values"], inputs[f"{c.name}.offsets"])
        for c in schema
    }


def _lists(given: Tensor | Ragged, name: str) -> Ragged:
    if isinstance(given, Ragged):
        return given.check()
    if given.ndim != 2:
        raise ValueError(f"column {name!r} holds lists in the tower's schema, but came as {tuple(given.shape)}.")
    return Ragged(given.reshape(-1), torch.arange(len(given) + 1) * given.shape[1])


def _meaning(each: TowerInput) -> str:
    name = each.column.name
    if each.is_offsets:
        return (
            f"where the lists begin: row i is {name}.values[offsets[i]:offsets[i + 1]]; starts at 0, ends at the total"
        )
    kind = "ids" if each.dtype == "int64" else "numbers"
    if each.is_values:
        return f"{kind} of all lists, one list after another, without padding"
    return f"{kind}, {each.shape[1]} a row" if len(each.shape) == 2 else f"{kind}, one a row"


def _ids_of(each: TowerInput) -> dict[str, Any]:
    domain, known = each.column.int_domain, each.column.properties
    if domain is None or each.is_offsets:
        return {}
    told: dict[str, Any] = {"smallest_id": 0, "largest_id": int(domain.max)}
    if domain.name:
        told["domain"] = domain.name
    # 0 is a missing value and 1 to unknown_id are unknown ones, where the Preprocessor made the column
    return told | ({"missing_id": 0, "unknown_id": known["unknown_id"]} if "unknown_id" in known else {})
