"""InputBlockV2: the columns of a schema to one vector a row."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from twotower.blocks.embedding import Embeddings
from twotower.blocks.numbers import Continuous, ContinuousEmbedding
from twotower.blocks.pooling import combine
from twotower.blocks.pretrained import PretrainedEmbeddings
from twotower.data.batch import Batch
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
from twotower.schema import ColumnSchema, Schema, Tags

OURS = (Embeddings, Continuous, ContinuousEmbedding, PretrainedEmbeddings)


class InputBlockV2(nn.Module):
    """Every column of a schema through the block for its kind, then joined to (B, width).

    Args:
        schema: the columns; targets are left out. A column is categorical (tag CATEGORICAL, or no kind's tag and an
            integer domain), continuous (CONTINUOUS) or a vector (EMBEDDING).
        categorical: the block for the categorical columns, such as `Embeddings(schema, dim=64)`; by default
            `Embeddings` with inferred widths. Columns of one domain share a table.
        continuous: the block for the continuous columns, such as `ContinuousEmbedding(schema, dim=64)`; by default
            `Continuous`, the numbers as they are.
        pretrained_embeddings: the block for the columns that hold vectors, or row numbers of vectors.
        pre: a module on the batch (dict in, dict out).
        post: a module on the joined vector.
        aggregation: "concat" (columns in the order of their names), "sum" and "elementwise-multiply" (all of one
            width), or "stack" to (B, columns, width).

    Raises:
        ValueError: a column of no kind, no column at all, a column that a block given for its kind lacks, a missing column
            of weights, or widths that cannot be summed.

    A column that holds weights of a list (`Embeddings(sequence_weights=...)`) stands in the schema, so that it
    is delivered, but is no feature. `select_by_tag` gives a block on some of the columns that holds the same tables: the
    way to share tables between
    two towers.

    Example:
        >>> genre = ColumnSchema("genre", tags=[Tags.CATEGORICAL], dtype="int64",
        ...                      properties={"domain": {"min": 0, "max": 9}})
        >>> InputBlockV2(Schema([genre]))({"genre": torch.tensor([3, 4])}).shape
        torch.Size([2, 8])
    """

    @explain_options
    def __init__(
        self,
        schema: Schema,
        *,
        categorical: nn.Module | None = None,
        continuous: nn.Module | None = None,
        pretrained_embeddings: nn.Module | None = None,
        pre: nn.Module | None = None,
        post: nn.Module | None = None,
        aggregation: str = "concat",
    ) -> None:
        super().__init__()
        self.schema = schema.excluding_targets()
        if len(self.schema) == 0:
            raise ValueError(f"an input block needs at least one column that is no target; got {schema.column_names}.")
        choose("aggregation", aggregation, AGGREGATIONS)
        kinds = _by_kind(self.schema, _weights(self.schema, categorical).values())
        _check_covered("categorical", categorical, kinds["categorical"])
        _check_covered("continuous", continuous, kinds["continuous"])
        _check_covered("pretrained_embeddings", pretrained_embeddings, kinds["embedding"])
        self.categorical = categorical or _build(Embeddings, kinds["categorical"])
        self.continuous = continuous or _build(Continuous, kinds["continuous"])
        self.pretrained_embeddings = pretrained_embeddings or _build(PretrainedEmbeddings, kinds["embedding"])
        self.pre = pre
        self.post = post
        self.aggregation = aggregation

    def forward(self, batch: Batch) -> Tensor:
        """The schema's columns of the batch to (B, width)."""
        read = self.pre(batch) if self.pre is not None else batch
        parts: dict[str, Tensor] = {}
        for block in (self.categorical, self.continuous, self.pretrained_embeddings):
            for name, part in (block(read) if block is not None else {}).items():
                parts[name] = combine(part, "mean") if isinstance(part, Ragged) else part
        return self._join(parts)

    def every_position(self, batch: Batch, name: str) -> Ragged:
        """The joined vectors before the first and after each element of one list column, the other columns repeated.

        Args:
            batch: B rows.
            name: a column that a HistoryEncoder pools.

        Returns:
            (P, width) in B rows, each one longer than the list (or its part that the encoder reads).
        """
        read = self.pre(batch) if self.pre is not None else batch
        assert isinstance(self.categorical, Embeddings)
        others, states = self.categorical.every_position(read, name)
        for block in (self.continuous, self.pretrained_embeddings):
            others |= block(read) if block is not None else {}
        row = states.row_of_value()
        parts = {n: combine(p, "mean") if isinstance(p, Ragged) else p for n, p in others.items()}
        parts = {n: part.index_select(0, row) for n, part in parts.items()} | {name: states.values}
        return Ragged(self._join(parts), states.offsets)

    def _join(self, parts: Mapping[str, Tensor]) -> Tensor:
        joined = AGGREGATIONS[self.aggregation]([parts[name] for name in sorted(parts)])
        return self.post(joined) if self.post is not None else joined

    def select_by_tag(self, tags: Tags | str | list[Tags | str]) -> "InputBlockV2":
        """The columns with any of the tags, with the same tables."""
        if self.pre is not None or self.post is not None:
            raise ValueError("select_by_tag cannot split pre and post; give them to the Encoder of each tower instead.")
        weights = _weights(self.schema, self.categorical)
        kinds = _by_kind(self.schema.select_by_tag(tags), weights.values())
        columns = [c for kind in kinds.values() for c in kind]
        if not columns:
            raise ValueError(f"no column is tagged {tags!r} among {self.schema.column_names}.")
        names = {c.name for c in columns} | {weights[c.name] for c in columns if c.name in weights}
        return InputBlockV2(
            Schema([c for c in self.schema if c.name in names]),  # a list takes its weights along
            categorical=_part(self.categorical, kinds["categorical"]),
            continuous=_part(self.continuous, kinds["continuous"]),
            pretrained_embeddings=_part(self.pretrained_embeddings, kinds["embedding"]),
            aggregation=self.aggregation,
        )

    def regularization(self, batch: Batch) -> dict[str, Tensor]:
        """The L2 terms of the embedding tables, by column."""
        return self.categorical.regularization(batch) if isinstance(self.categorical, Embeddings) else {}


def column_kind(c: ColumnSchema) -> str:
    """How a column is read: "categorical", "continuous" or "embedding"."""
    if Tags.EMBEDDING in c.tags:
        return "embedding"
    if Tags.CONTINUOUS in c.tags:
        return "continuous"
    if Tags.CATEGORICAL in c.tags or c.int_domain is not None:
        return "categorical"
    raise ValueError(
        f"column {c.name!r} has no tag that says how to read it: add Tags.CATEGORICAL and an integer domain, "
        "Tags.CONTINUOUS or Tags.EMBEDDING, or leave it out with schema.excluding_by_name."
    )


def _by_kind(schema: Schema, left_out: Collection[str]) -> dict[str, list[ColumnSchema]]:
    """The feature columns by their kind."""
    kinds: dict[str, list[ColumnSchema]] = {"categorical": [], "continuous": [], "embedding": []}
    for c in schema:
        if c.name not in left_out:
            kinds[column_kind(c)].append(c)
    return kinds


def _weights(schema: Schema, categorical: nn.Module | None) -> dict[str, str]:
    """The columns of weights by the lists that they weigh."""
    given = categorical.sequence_weights if isinstance(categorical, Embeddings) else {}
    for name, weights in given.items():
        if weights not in schema:
            raise ValueError(
                f"the weights of column {name!r} stand in column {weights!r}, which the schema lacks: {schema.column_names}. Add "
                f'it: schema + Schema([ColumnSchema({weights!r}, tags=[Tags.CONTINUOUS], dtype="float32", is_list=True)]).'
            )
    return given


def _check_covered(place: str, block: nn.Module | None, columns: list[ColumnSchema]) -> None:
    left = [c.name for c in columns if isinstance(block, OURS) and c.name not in block.schema]
    if left:
        raise ValueError(
            f"the {place} block lacks the columns {left}: give {type(block).__name__} all such columns of the schema, or "
            "leave them out with schema.excluding_by_name."
        )


def _part(block: nn.Module | None, columns: list[ColumnSchema]) -> nn.Module | None:
    """A block for some of its columns."""
    if block is None or not columns:
        return None
    if isinstance(block, Embeddings):
        return block.select(Schema(columns))
    if isinstance(block, (ContinuousEmbedding, PretrainedEmbeddings)):
        return block.for_columns(Schema(columns))
    if isinstance(block, Continuous):
        return Continuous(Schema(columns))
    raise ValueError(
        f"select_by_tag cannot split a {type(block).__name__}: give each tower an InputBlockV2 with a block of its own."
    )


def _build(block: Callable[[Schema], nn.Module], columns: list[ColumnSchema]) -> nn.Module | None:
    return block(Schema(columns)) if columns else None


def _same_width(parts: list[Tensor]) -> list[Tensor]:
    widths = {part.shape[-1] for part in parts}
    if len(widths) > 1:
        raise ValueError(
            f"this aggregation needs columns of one width, got {sorted(widths)}: give Embeddings(dim=...)."
        )
    return parts


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(_same_width(parts)).sum(0)


def _multiply(parts: list[Tensor]) -> Tensor:
    return torch.stack(_same_width(parts)).prod(0)


def _stack(parts: list[Tensor]) -> Tensor:
    return torch.stack(_same_width(parts), dim=1)


def _concat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=-1)


AGGREGATIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "concat": _concat,
    "sum": _sum,
    "element-wise-sum": _sum,
    "elementwise-multiply": _multiply,
    "stack": _stack,
}
