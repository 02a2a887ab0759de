"""Embedding tables: ids to vectors, lists pooled, tables shared by domain."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.initializers import Initializer, initializer
from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
from twotower.schema import ColumnSchema, Schema

T = TypeVar("T")
Combined = Float[Tensor, "B D"]


def infer_embedding_dim(cardinality: int, multiplier: float = 2.0, multiple_of_8: bool = True) -> int:
    """Width of a table from its number of ids: ceil(cardinality ** 0.25 * multiplier), rounded up to a multiple of 8.

    Example:
        >>> infer_embedding_dim(1001), infer_embedding_dim(9)
        (16, 8)
    """
    dim = math.ceil(cardinality**0.25 * multiplier)
    return math.ceil(dim / 8) * 8 if multiple_of_8 else dim


class EmbeddingTable(nn.Module):
    """One vector for each id of one or more columns of the same domain.

    Args:
        dim: D, the width of a vector.
        col_schemas: the columns that look their ids up here; all of one domain, whose max + 1 is the number of rows.
        embeddings_initializer: a name ("uniform" is U(-0.05, 0.05)), a function that fills a tensor, or the
            (rows, D) weights themselves.
        sequence_combiner: how a list becomes one vector: "mean", "sum", "max" or "sqrtn" (sum / sqrt(length)); an
            empty list gives zeros. None leaves lists as they are.
        trainable: False keeps the vectors as they are.
        l2_batch_regularization_factor: `regularization` gives this times the sum of squares of the vectors looked up.
        name: the table's name; the domain's name by default.

    Raises:
        ValueError: no column, a column without an integer domain, columns of different domains, weights of another
            shape, or (in forward) an id outside the domain.

    Example:
        >>> genre = ColumnSchema("genre", dtype="int64", properties={"domain": {"min": 0, "max": 9}})
        >>> EmbeddingTable(4, genre)(torch.tensor([0, 9])).shape
        torch.Size([2, 4])
    """

    @explain_options
    def __init__(
        self,
        dim: int,
        *col_schemas: ColumnSchema,
        embeddings_initializer: str | Initializer | Tensor = "uniform",
        sequence_combiner: str | None = None,
        trainable: bool = True,
        l2_batch_regularization_factor: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        _check_one_domain(col_schemas)
        if dim < 1:
            raise ValueError(f"an embedding needs dim >= 1, got {dim}.")
        if sequence_combiner is not None:
            choose("sequence_combiner", sequence_combiner, COMBINERS)
        self.dim = dim
        self.col_schemas = list(col_schemas)
        self.sequence_combiner = sequence_combiner
        self.trainable = trainable
        self.l2_batch_regularization_factor = l2_batch_regularization_factor
        self.name = name or table_name(col_schemas[0])
        # set by the optimiser: a sparse gradient of the rows looked up, instead of one as large as the table
        self.row_gradients = False
        # weights given as a tensor live in `weight` from here on
        given = isinstance(embeddings_initializer, Tensor)
        self.embeddings_initializer = "zeros" if isinstance(embeddings_initializer, Tensor) else embeddings_initializer
        self.weight = nn.Parameter(torch.empty(self.input_dim, dim), requires_grad=trainable)
        with torch.no_grad():
            if given:
                self.weight.copy_(self._checked(embeddings_initializer))
            else:
                initializer(self.embeddings_initializer)(self.weight)

    @property
    def input_dim(self) -> int:
        """The number of rows: the domain's max + 1."""
        return self.col_schemas[0].cardinality

    def forward(self, ids: Tensor | Ragged) -> Tensor | Ragged:
        """(B,) ids give (B, D); lists (B, L) or Ragged are pooled to (B, D), or keep their form without a combiner."""
        if isinstance(ids, Ragged):
            vectors = Ragged(self.lookup(ids.values), ids.offsets)
            return vectors if self.sequence_combiner is None else combine(vectors, self.sequence_combiner)
        vectors_dense = self.lookup(ids)
        if ids.ndim == 1 or self.sequence_combiner is None:
            return vectors_dense
        rows, length, dim = vectors_dense.shape
        offsets = torch.arange(0, rows * length + 1, max(length, 1), device=ids.device)[: rows + 1]
        return combine(Ragged(vectors_dense.reshape(-1, dim), offsets), self.sequence_combiner)

    def lookup(self, ids: Tensor) -> Tensor:
        """The vectors of ids of any shape (...): (..., D)."""
        try:
            if self.row_gradients and torch.is_grad_enabled():
                return _RowLookup.apply(self.weight, ids)  # type: ignore[no-untyped-call, no-any-return]
            return F.embedding(ids, self.weight)
        except IndexError as error:
            raise ValueError(
                f"table {self.name!r} holds ids 0 to {self.input_dim - 1}, but was asked for ids from {int(ids.min())} "
                f"to {int(ids.max())}. Encode the column with the Preprocessor that made the schema."
            ) from error

    def regularization(self, ids: Tensor | Ragged) -> Tensor:
        """factor * sum of squares of the vectors looked up, after pooling: a scalar."""
        out = self(ids)
        values = out.values if isinstance(out, Ragged) else out
        return self.l2_batch_regularization_factor * values.square().sum()

    def _checked(self, weights: object) -> Tensor:
        assert isinstance(weights, Tensor)
        if weights.shape != self.weight.shape:
            raise ValueError(
                f"table {self.name!r} needs weights of shape {tuple(self.weight.shape)}, got {tuple(weights.shape)}."
            )
        return weights


class _RowLookup(torch.autograd.Function):
    """An embedding lookup whose gradient is sparse, with each row in it once."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(ids)
        ctx.size = weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        ids, values = ids.flatten(), gradient.reshape(-1, gradient.shape[-1])
        if bool((ids[1:] <= ids[:-1]).any()):  # ids that are distinct already come in rising order
            ids, place = torch.unique(ids, return_inverse=True)
            values = values.new_zeros(len(ids), values.shape[1]).index_add_(0, place, values)
        rows = torch.sparse_coo_tensor(ids[None], values, ctx.size, is_coalesced=True, check_invariants=False)
        return rows, None


def combine(vectors: Ragged, combiner: str) -> Combined:
    """Pool the vectors of each row to one: (B, D); an empty row gives zeros."""
    return choose("sequence_combiner", combiner, COMBINERS)(vectors)


def _reduce(vectors: Ragged, how: str) -> Combined:
    pooled = vectors.values.new_zeros(len(vectors), vectors.values.shape[-1])
    rows = vectors.row_of_value()[:, None].expand_as(vectors.values)
    return pooled.scatter_reduce(0, rows, vectors.values, how, include_self=False)


def _sum(vectors: Ragged) -> Combined:
    pooled = vectors.values.new_zeros(len(vectors), vectors.values.shape[-1])
    return pooled.index_add(0, vectors.row_of_value(), vectors.values)


def _mean(vectors: Ragged) -> Combined:
    return _sum(vectors) / vectors.lengths().clamp(min=1)[:, None]


def _sqrtn(vectors: Ragged) -> Combined:
    return _sum(vectors) / vectors.lengths().clamp(min=1).sqrt()[:, None]


def _max(vectors: Ragged) -> Combined:
    return _reduce(vectors, "amax")


COMBINERS: dict[str, Callable[[Ragged], Tensor]] = {"mean": _mean, "sum": _sum, "sqrtn": _sqrtn, "max": _max}


class Embeddings(nn.Module):
    """A table for each categorical column; columns of one domain share a table.

    Args:
        schema: columns with integer domains.
        dim: D for every column, or a dict by column name; a column without one gets `infer_dim_fn(cardinality)`.
        infer_dim_fn: the width of a table from its number of ids.
        sequence_combiner, embeddings_initializer, trainable, l2_batch_regularization_factor: as in EmbeddingTable; one
            value for all columns, or a dict by column name. A shared table takes them from its first column.
        tables: tables that exist already, by domain name, to be shared with another tower.

    Raises:
        ValueError: a dict names a column that is not in the schema.
    """

    @explain_options
    def __init__(
        self,
        schema: Schema,
        dim: int | Mapping[str, int] | None = None,
        *,
        infer_dim_fn: Callable[[int], int] = infer_embedding_dim,
        sequence_combiner: str | Mapping[str, str] = "mean",
        embeddings_initializer: str | Initializer | Mapping[str, str | Initializer | Tensor] = "uniform",
        trainable: bool | Mapping[str, bool] = True,
        l2_batch_regularization_factor: float | Mapping[str, float] = 0.0,
        tables: Mapping[str, EmbeddingTable] | None = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.dim = dim
        self.sequence_combiner = sequence_combiner
        self.trainable = trainable
        self.l2_batch_regularization_factor = l2_batch_regularization_factor
        options = _PerColumn(schema)
        by_table: dict[str, list[ColumnSchema]] = {}
        for c in schema:
            by_table.setdefault(table_name(c), []).append(c)
        made = dict(tables or {})
        for name, columns in by_table.items():
            if name in made:
                _check_one_domain((*made[name].col_schemas, *columns))
                continue
            first = columns[0].name
            made[name] = EmbeddingTable(
                options.pick(dim, first, None) or infer_dim_fn(columns[0].cardinality),
                *columns,
                embeddings_initializer=options.pick(embeddings_initializer, first, "uniform"),  # type: ignore[arg-type]
                sequence_combiner=options.pick(sequence_combiner, first, "mean"),
                trainable=options.pick(trainable, first, True),
                l2_batch_regularization_factor=options.pick(l2_batch_regularization_factor, first, 0.0),
            )
        self._keys = {name: module_key(name) for name in by_table}
        self._tables = nn.ModuleDict({self._keys[name]: made[name] for name in by_table})

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """The tables by domain name."""
        return {name: self._table(name) for name in self._keys}

    def table(self, column_name: str) -> EmbeddingTable:
        """The table that a column looks its ids up in."""
        return self._table(table_name(self.schema[column_name]))

    def select(self, schema: Schema) -> "Embeddings":
        """The same tables for some of the columns."""
        return Embeddings(schema, tables=self.tables)

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One vector (B, D) for each column; D may differ between columns."""
        return {c.name: self._of(c)(column(batch, c.name)) for c in self.schema}

    def regularization(self, batch: Batch) -> dict[str, Tensor]:
        """The L2 terms of the columns whose table has a factor."""
        columns = [c for c in self.schema if self._of(c).l2_batch_regularization_factor]
        return {c.name: self._of(c).regularization(column(batch, c.name)) for c in columns}

    def _of(self, c: ColumnSchema) -> EmbeddingTable:
        return self._table(table_name(c))

    def _table(self, name: str) -> EmbeddingTable:
        table = self._tables[self._keys[name]]
        assert isinstance(table, EmbeddingTable)
        return table


@dataclass(frozen=True)
class _PerColumn:
    """Reads options that are one value for all columns, or a dict by column name."""

    schema: Schema

    def pick(self, option: T | Mapping[str, T], name: str, default: T) -> T:
        if not isinstance(option, Mapping):
            return option
        for given in option:
            self.schema[given]  # an unknown column is an error with the list of columns
        return option.get(name, default)


def table_name(column_schema: ColumnSchema) -> str:
    """The name of a column's table: its domain's name, or its own."""
    domain = column_schema.int_domain
    return (domain.name if domain is not None else None) or column_schema.name


def module_key(name: str) -> str:
    """A name that nn.ModuleDict accepts: no dots, and none of its own attributes."""
    return "table_" + name.replace(".", "%2E")


def _check_one_domain(columns: tuple[ColumnSchema, ...]) -> None:
    if not columns:
        raise ValueError("EmbeddingTable needs at least one column: EmbeddingTable(dim, schema['item_id']).")
    found = {(table_name(c) if len(columns) > 1 else "", c.cardinality) for c in columns}
    if len(found) > 1:
        described = ", ".join(f"{c.name!r} (domain {table_name(c)!r}, {c.cardinality} ids)" for c in columns)
        raise ValueError(
            f"columns of one table must have one domain name and one number of ids, got {described}. Encode them with a "
            "shared vocabulary (Categorical(share=...)), or give them domains with different names."
        )
