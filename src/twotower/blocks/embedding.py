"""Embedding tables: ids to vectors, lists pooled, tables shared by domain."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.initializers import Initializer, initializer
from twotower.blocks.pooling import Combiner, as_ragged, check_combiner, combine
from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import explain_options
from twotower.schema import ColumnSchema, Schema

T = TypeVar("T")


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
        sequence_combiner: how a list becomes one vector: "mean", "sum", "max" or "sqrtn" (sum / sqrt(length)), of which
            an empty list gives zeros; or a module from Ragged vectors to (B, D), such as a history encoder. None leaves
            lists as they are.
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
        sequence_combiner: Combiner | None = None,
        trainable: bool = True,
        l2_batch_regularization_factor: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        _check_one_domain(col_schemas)
        if dim < 1:
            raise ValueError(f"an embedding needs dim >= 1, got {dim}.")
        if sequence_combiner is not None:
            check_combiner(sequence_combiner)
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
        vectors = self.vectors(ids)
        if self.sequence_combiner is None or (isinstance(vectors, Tensor) and vectors.ndim == 2):
            return vectors
        return combine(as_ragged(vectors), self.sequence_combiner)

    def vectors(self, ids: Tensor | Ragged) -> Tensor | Ragged:
        """The vectors of ids in the form of the ids, not pooled."""
        return Ragged(self.lookup(ids.values), ids.offsets) if isinstance(ids, Ragged) else self.lookup(ids)

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


class Embeddings(nn.Module):
    """A table for each categorical column; columns of one domain share a table.

    Args:
        schema: columns with integer domains.
        dim: D for every column, or a dict by column name; a column without one gets `infer_dim_fn(cardinality)`.
        infer_dim_fn: the width of a table from its number of ids.
        sequence_combiner, l2_batch_regularization_factor: as in EmbeddingTable; one value for all columns, or a dict by
            column name.
        embeddings_initializer, trainable: the same; columns that share a table must agree on them.
        tables: tables that exist already, by domain name, to be shared with another tower.

    Raises:
        ValueError: a dict names a column that is not in the schema, or columns of one table differ in its options.
    """

    @explain_options
    def __init__(
        self,
        schema: Schema,
        dim: int | Mapping[str, int] | None = None,
        *,
        infer_dim_fn: Callable[[int], int] = infer_embedding_dim,
        sequence_combiner: Combiner | Mapping[str, Combiner] = "mean",
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
        self.l2_batch_regularization_factor = l2_batch_regularization_factor
        per = _PerColumn(schema)
        by_table: dict[str, list[ColumnSchema]] = {}
        for c in schema:
            by_table.setdefault(table_name(c), []).append(c)
        made = dict(tables or {})
        for name, columns in by_table.items():
            if name in made:
                _check_one_domain((*made[name].col_schemas, *columns))
                continue
            made[name] = EmbeddingTable(
                per.agreed(dim, columns, None) or infer_dim_fn(columns[0].cardinality),
                *columns,
                embeddings_initializer=per.agreed(embeddings_initializer, columns, "uniform"),  # type: ignore[arg-type]
                trainable=per.agreed(trainable, columns, True),
            )
        self._keys = {name: module_key(name) for name in by_table}
        self._tables = nn.ModuleDict({self._keys[name]: made[name] for name in by_table})
        self._combiner: dict[str, Combiner] = {c.name: per.pick(sequence_combiner, c.name, "mean") for c in schema}  # type: ignore[misc]
        self._factor = {c.name: per.pick(l2_batch_regularization_factor, c.name, 0.0) for c in schema}
        for combiner in self._combiner.values():
            check_combiner(combiner)
        # modules among them, so that they are trained with the rest
        self._encoders = nn.ModuleList({id(c): c for c in self._combiner.values() if isinstance(c, nn.Module)}.values())

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """The tables by domain name."""
        return {name: self._table(name) for name in self._keys}

    def table(self, column_name: str) -> EmbeddingTable:
        """The table that a column looks its ids up in."""
        return self._table(table_name(self.schema[column_name]))

    def select(self, schema: Schema) -> "Embeddings":
        """The same tables, and the same pooling, for some of the columns."""
        names = schema.column_names
        return Embeddings(
            schema,
            tables=self.tables,
            sequence_combiner={name: self._combiner[name] for name in names},
            l2_batch_regularization_factor={name: self._factor[name] for name in names},
        )

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One vector (B, D) for each column; D may differ between columns."""
        return {c.name: self._pooled(c, batch) for c in self.schema}

    def every_position(self, batch: Batch, name: str) -> tuple[dict[str, Tensor | Ragged], Ragged]:
        """The other columns as in forward, and one list column's state before its first and after each of its elements."""
        others: dict[str, Tensor | Ragged] = {c.name: self._pooled(c, batch) for c in self.schema if c.name != name}
        vectors = as_ragged(self.table(name).vectors(column(batch, name)))
        return others, self.history_encoder(name).states_from_start(vectors)

    def history_encoder(self, name: str) -> HistoryEncoder:
        """The encoder that pools a column; ValueError when it is pooled in a way that has no state after every item."""
        self.schema[name]
        encoder = self._combiner[name]
        if not isinstance(encoder, HistoryEncoder):
            kind = repr(encoder) if isinstance(encoder, str) else type(encoder).__name__
            raise ValueError(
                f"column {name!r} is pooled by {kind}, which has no state after every item. Give it a history encoder: "
                f"Embeddings(schema, dim=64, sequence_combiner={{{name!r}: HistoryGRU(64)}}); HistoryBag is the mean that has one."
            )
        return encoder

    def regularization(self, batch: Batch) -> dict[str, Tensor]:
        """factor * sum of squares of a column's vectors after pooling, for the columns that have a factor."""
        regular = [c for c in self.schema if self._factor[c.name]]
        return {c.name: self._factor[c.name] * self._pooled(c, batch).square().sum() for c in regular}

    def _pooled(self, c: ColumnSchema, batch: Batch) -> Tensor:
        vectors = self._of(c).vectors(column(batch, c.name))
        if isinstance(vectors, Tensor) and vectors.ndim == 2:
            return vectors
        return combine(as_ragged(vectors), self._combiner[c.name])

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

    def agreed(self, option: T | Mapping[str, T], columns: list[ColumnSchema], default: T) -> T:
        """What the columns of one table were given."""
        self.pick(option, columns[0].name, default)
        if not isinstance(option, Mapping):
            return option
        given = {c.name: option[c.name] for c in columns if c.name in option}
        first = next(iter(given.values()), default)
        if any(value is not first and not _equal(value, first) for value in given.values()):
            raise ValueError(
                f"columns {list(given)} share the table {table_name(columns[0])!r}, but were given different values: {given}."
            )
        return first


def _equal(one: object, other: object) -> bool:
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


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
