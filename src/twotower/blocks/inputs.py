"""InputBlockV2: the columns of a schema to one vector a row."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from twotower.blocks.embedding import Embeddings
from twotower.blocks.pooling import combine
from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
from twotower.schema import ColumnSchema, Schema, Tags


class Continuous(nn.Module):
    """Numbers as they are: (B,) becomes (B, 1), fixed lists stay (B, L). Normalise them in the Preprocessor.

    Args:
        schema: float (or integer) columns.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One (B, width) tensor for each column."""
        return {c.name: _numbers(column(batch, c.name), c.name) for c in self.schema}


class PretrainedEmbeddings(nn.Module):
    """Vectors that come with the data, such as text or image embeddings in a fixed-size list column.

    Args:
        schema: columns tagged EMBEDDING: (B, W) vectors.
        output_dims: project to this width with a linear layer; one int for all, or a dict by column. None passes the
            vectors through.
        normalizer: "l2-norm" or a module, applied to the incoming vectors.
    """

    @explain_options
    def __init__(
        self,
        schema: Schema,
        output_dims: int | Mapping[str, int] | None = None,
        normalizer: str | nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.output_dims = output_dims
        if isinstance(normalizer, str) and normalizer != "l2-norm":
            raise ValueError(f"unknown normalizer {normalizer!r}: choose 'l2-norm' or give a module.")
        self.normalizer = normalizer
        dims = output_dims if isinstance(output_dims, Mapping) else dict.fromkeys(schema.column_names, output_dims)
        for name in dims:
            schema[name]
        self.projections = nn.ModuleList(nn.LazyLinear(d) if (d := dims.get(c.name)) else nn.Identity() for c in schema)

    def for_columns(self, schema: Schema) -> "PretrainedEmbeddings":
        """The same options for some of the columns, with projections of their own."""
        dims = self.output_dims
        kept = {name: dims[name] for name in dims if name in schema} if isinstance(dims, Mapping) else dims
        return PretrainedEmbeddings(schema, kept, self.normalizer)

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One (B, width) tensor for each column."""
        out: dict[str, Tensor | Ragged] = {}
        for c, projection in zip(self.schema, self.projections, strict=True):
            vectors = _numbers(column(batch, c.name), c.name)
            if isinstance(self.normalizer, nn.Module):
                vectors = self.normalizer(vectors)
            elif self.normalizer is not None:
                vectors = nn.functional.normalize(vectors, dim=-1)
            out[c.name] = projection(vectors)
        return out


class InputBlockV2(nn.Module):
    """Every column of a schema through the block for its kind, then joined to (B, width).

    Args:
        schema: the columns; targets are left out. A column is categorical (tag CATEGORICAL, or no kind's tag and an
            integer domain), continuous (CONTINUOUS) or a vector (EMBEDDING).
        categorical: the block for the categorical columns, such as `Embeddings(schema, dim=64)`; by default
            `Embeddings` with inferred widths. Columns of one domain share a table.
        continuous: the block for the continuous columns.
        pretrained_embeddings: the block for the columns that hold vectors.
        pre: a module on the batch (dict in, dict out).
        post: a module on the joined vector.
        aggregation: "concat" (columns in the order of their names), "sum" and "elementwise-multiply" (all of one
            width), or "stack" to (B, columns, width).

    Raises:
        ValueError: a column of no kind, no column at all, or widths that cannot be summed.

    `select_by_tag` gives a block on some of the columns that holds the same tables: the way to share tables between
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
        kinds: dict[str, list[ColumnSchema]] = {"categorical": [], "continuous": [], "embedding": []}
        for c in self.schema:
            kinds[column_kind(c)].append(c)
        _check_covered(categorical, kinds["categorical"])
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
        schema = self.schema.select_by_tag(tags)
        kept = [c for c in schema if column_kind(c) == "categorical"]
        shared = self.categorical.select(Schema(kept)) if isinstance(self.categorical, Embeddings) and kept else None
        vectors = Schema([c for c in schema if column_kind(c) == "embedding"])
        pretrained = None
        if isinstance(self.pretrained_embeddings, PretrainedEmbeddings) and len(vectors):
            pretrained = self.pretrained_embeddings.for_columns(vectors)
        return InputBlockV2(schema, categorical=shared, pretrained_embeddings=pretrained, aggregation=self.aggregation)

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


def _check_covered(block: nn.Module | None, columns: list[ColumnSchema]) -> None:
    left = [c.name for c in columns if isinstance(block, Embeddings) and c.name not in block.schema]
    if left:
        raise ValueError(
            f"the categorical block lacks the columns {left}: give Embeddings all categorical columns of the schema, or "
            "leave them out with schema.excluding_by_name."
        )


def _build(block: Callable[[Schema], nn.Module], columns: list[ColumnSchema]) -> nn.Module | None:
    return block(Schema(columns)) if columns else None


def _numbers(values: Tensor | Ragged, name: str) -> Tensor:
    if isinstance(values, Ragged):
        raise ValueError(f"column {name!r} holds lists of different lengths; continuous columns need one fixed length.")
    numbers = values.to(torch.float32) if not values.is_floating_point() else values
    return numbers[:, None] if numbers.ndim == 1 else numbers


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
