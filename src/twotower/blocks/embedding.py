"""Embedding tables: ids to vectors, lists pooled, tables shared by domain."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.id_dropout import drop_ids, unknown_id_of
from twotower.blocks.initializers import Initializer, initializer, like_the_mean
from twotower.blocks.pooling import (
    SIZES,
    Combiner,
    as_ragged,
    check_combiner,
    combine,
    combine_weighted,
    parallel_weights,
)
from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
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
        check_one_domain(col_schemas)
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

    @torch.no_grad()
    def extend(self, *col_schemas: ColumnSchema) -> None:
        """Take in ids that were appended to the domain; the old rows stay as they are, bit for bit.

        A new row is the mean of the known ids' rows, whose place an id takes of which nothing is known, with noise of 1 % of
        their deviation, so that no two are alike. Until they are trained, new items are then ranked by the features beside the
        id, better than with rows as of a new table; after that it makes no difference (benchmarks/new_items.py). The unknown
        id's row does as well, but it is arbitrary in a table that has no unknown id.

        Args:
            col_schemas: the same columns with the larger domain.

        Raises:
            ValueError: other columns than the table's, columns of different domains, or a smaller domain.
        """
        check_one_domain(col_schemas)
        names, given = [c.name for c in self.col_schemas], [c.name for c in col_schemas]
        if names != given or col_schemas[0].cardinality < self.input_dim:
            raise ValueError(
                f"table {self.name!r} of the columns {names} has {self.input_dim} rows and can only grow, but was given the "
                f"columns {given} with {col_schemas[0].cardinality} ids."
            )
        number, unknown_id = col_schemas[0].cardinality - self.input_dim, col_schemas[0].properties.get("unknown_id")
        self.col_schemas = list(col_schemas)
        if number:
            known = self.weight[int(unknown_id) + 1 :] if unknown_id is not None else self.weight
            rows = like_the_mean(known if len(known) else self.weight, number)
            self.weight = nn.Parameter(torch.cat([self.weight, rows]), requires_grad=self.weight.requires_grad)

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
        sequence_weights: for a list column, the column that holds a weight for each of its elements, such as
            {"genres": "genre_weight"}; its list is pooled by weighted "mean", "sum" or "sqrtn". The column of weights stands in
            the schema of the InputBlockV2, and is no feature of its own.
        id_dropout: in training, the probability that an id is replaced by the unknown id (in lists, each element by
            itself); one value for all columns, or a dict by column name. It trains the unknown id's row, and the features
            beside the id to do without it, so that new items and users are served well.
        tables: tables that exist already, by domain name, to be shared with another tower.

    Raises:
        ValueError: a dict names a column that is not in the schema, columns of one table differ in its options, weights
            for a column without lists, or id_dropout for a column without an unknown id.

    Example:
        >>> domain = {"min": 0, "max": 9}
        >>> genres = ColumnSchema("genres", dtype="int64", is_list=True, properties={"domain": domain})
        >>> embeddings = Embeddings(Schema([genres]), dim=4, sequence_weights={"genres": "genre_weight"})
        >>> lists, weights = Ragged.from_lists([[3, 5], [4]]), Ragged.from_lists([[0.9, 0.1], [1.0]])
        >>> embeddings({"genres": lists, "genre_weight": weights})["genres"].shape
        torch.Size([2, 4])
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
        sequence_weights: Mapping[str, str] | None = None,
        id_dropout: float | Mapping[str, float] = 0.0,
        tables: Mapping[str, EmbeddingTable] | None = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.dim = dim
        self.sequence_combiner = sequence_combiner
        self.trainable = trainable
        self.l2_batch_regularization_factor = l2_batch_regularization_factor
        self.sequence_weights = dict(sequence_weights or {})
        self.id_dropout = id_dropout
        per = _PerColumn(schema)
        by_table: dict[str, list[ColumnSchema]] = {}
        for c in schema:
            by_table.setdefault(table_name(c), []).append(c)
        made = dict(tables or {})
        for name, columns in by_table.items():
            if name in made:
                check_one_domain((*made[name].col_schemas, *columns))
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
        self._dropout = {c.name: per.pick(id_dropout, c.name, 0.0) for c in schema}
        for combiner in self._combiner.values():
            check_combiner(combiner)
        for name in self.sequence_weights:
            _check_weighable(schema[name], self._combiner[name])
        for c in schema:
            unknown_id_of(c, self._dropout[c.name])
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
            sequence_weights={name: weights for name, weights in self.sequence_weights.items() if name in schema},
            id_dropout={name: self._dropout[name] for name in names},
        )

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One vector (B, D) for each column; D may differ between columns."""
        return {c.name: self._pooled(c, batch, self._dropped(c, column(batch, c.name))) for c in self.schema}

    def regularization(self, batch: Batch) -> dict[str, Tensor]:
        """factor * sum of squares of a column's vectors after pooling, no id dropped, for the columns that have a factor."""
        regular = [c for c in self.schema if self._factor[c.name]]
        pooled = {c.name: self._pooled(c, batch, column(batch, c.name)) for c in regular}
        return {name: self._factor[name] * vectors.square().sum() for name, vectors in pooled.items()}

    def _dropped(self, c: ColumnSchema, ids: Tensor | Ragged) -> Tensor | Ragged:
        probability = self._dropout[c.name]
        return drop_ids(ids, probability, unknown_id_of(c, probability)) if self.training and probability else ids

    def _pooled(self, c: ColumnSchema, batch: Batch, ids: Tensor | Ragged) -> Tensor:
        vectors, combiner = self._of(c).vectors(ids), self._combiner[c.name]
        if isinstance(vectors, Tensor) and vectors.ndim == 2:
            return vectors
        lists, name = as_ragged(vectors), self.sequence_weights.get(c.name)
        if name is None:
            return combine(lists, combiner)
        assert isinstance(combiner, str)
        return combine_weighted(lists, parallel_weights(lists, column(batch, name), c.name, name), combiner)

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


def _check_weighable(c: ColumnSchema, combiner: Combiner) -> None:
    if not c.is_list:
        raise ValueError(f"sequence_weights weighs the elements of lists, but column {c.name!r} holds one id a row.")
    if not isinstance(combiner, str):
        raise ValueError(
            f"sequence_weights goes with a combiner by name, one of {sorted(SIZES)}; column {c.name!r} has a "
            f"{type(combiner).__name__}, which weighs by itself."
        )
    choose(f"sequence_combiner with weights of column {c.name!r},", combiner, SIZES)


def table_name(column_schema: ColumnSchema) -> str:
    """The name of a column's table: its domain's name, or its own."""
    domain = column_schema.int_domain
    return (domain.name if domain is not None else None) or column_schema.name


def module_key(name: str) -> str:
    """A name that nn.ModuleDict accepts: no dots, and none of its own attributes."""
    return "table_" + name.replace(".", "%2E")


def check_one_domain(columns: tuple[ColumnSchema, ...]) -> None:
    if not columns:
        raise ValueError("EmbeddingTable needs at least one column: EmbeddingTable(dim, schema['item_id']).")
    found = {(table_name(c) if len(columns) > 1 else "", c.cardinality) for c in columns}
    if len(found) > 1:
        described = ", ".join(f"{c.name!r} (domain {table_name(c)!r}, {c.cardinality} ids)" for c in columns)
        raise ValueError(
            f"columns of one table must have one domain name and one number of ids, got {described}. Encode them with a "
            "shared vocabulary (Categorical(share=...)), or give them domains with different names."
        )
