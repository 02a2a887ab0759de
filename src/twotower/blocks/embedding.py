"""Embeddings: a schema's ids to vectors, lists pooled, tables shared by domain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.id_dropout import drop_ids, unknown_id_of
from twotower.blocks.initializers import Initializer
from twotower.blocks.pooling import (
    SIZES,
    Combiner,
    as_ragged,
    check_combiner,
    combine_weighted,
    parallel_weights,
)
from twotower.blocks.table import EmbeddingTable, check_one_domain, infer_embedding_dim, module_key, table_name
from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
from twotower.schema import ColumnSchema, Schema

T = TypeVar("T")


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

    def every_position(self, batch: Batch, name: str) -> tuple[dict[str, Tensor | Ragged], Ragged]:
        """The other columns as in forward, and one list column's state before its first and after each of its elements."""
        others: dict[str, Tensor | Ragged] = {
            c.name: self._pooled(c, batch, self._dropped(c, column(batch, c.name)))
            for c in self.schema
            if c.name != name
        }
        vectors = as_ragged(self.table(name).vectors(self._dropped(self.schema[name], column(batch, name))))
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
        """factor * sum of squares of a column's vectors after pooling, no id dropped, for the columns that have a factor."""
        regular = [c for c in self.schema if self._factor[c.name]]
        pooled = {c.name: self._pooled(c, batch, column(batch, c.name)) for c in regular}
        return {name: self._factor[name] * vectors.square().sum() for name, vectors in pooled.items()}

    def _dropped(self, c: ColumnSchema, ids: Tensor | Ragged) -> Tensor | Ragged:
        probability = self._dropout[c.name]
        return drop_ids(ids, probability, unknown_id_of(c, probability)) if self.training and probability else ids

    def _pooled(self, c: ColumnSchema, batch: Batch, ids: Tensor | Ragged) -> Tensor:
        table, combiner, weights = self._of(c), self._combiner[c.name], self.sequence_weights.get(c.name)
        if isinstance(ids, Tensor) and ids.ndim == 1:
            return table.lookup(ids)
        if weights is None:
            return table.pooled(ids, combiner)
        assert isinstance(combiner, str)
        lists = as_ragged(table.vectors(ids))
        return combine_weighted(lists, parallel_weights(lists, column(batch, weights), c.name, weights), combiner)

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
