"""EmbeddingTable: the vectors of one domain's ids."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.initializers import Initializer, initializer, like_the_mean
from twotower.blocks.pooling import DIVISORS, Combiner, as_ragged, check_combiner, combine
from twotower.data.ragged import Ragged
from twotower.errors import explain_options
from twotower.schema import ColumnSchema

# precisions in which every device can sum lists while looking them up
BAGGED = (torch.float32, torch.float64)


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
        if self.sequence_combiner is None or (isinstance(ids, Tensor) and ids.ndim == 1):
            return self.vectors(ids)
        return self.pooled(ids, self.sequence_combiner)

    def pooled(self, ids: Tensor | Ragged, combiner: Combiner) -> Tensor:
        """Lists of ids, (B, L) or Ragged, to (B, D)."""
        bagged = (
            not torch.compiler.is_exporting() and self.weight.dtype in BAGGED
        )  # ONNX has no sums of looked up lists
        if not (isinstance(combiner, str) and combiner in DIVISORS and bagged):
            return combine(as_ragged(self.vectors(ids)), combiner)
        lists = ids if isinstance(ids, Ragged) else as_ragged(ids[:, :, None])
        values = lists.values.reshape(-1)
        self._check(values)
        # a sum over each list that never holds the vectors of all its elements
        if self.row_gradients and torch.is_grad_enabled():
            total = _RowBag.apply(self.weight, values, lists.offsets)  # type: ignore[no-untyped-call]
        else:
            total = F.embedding_bag(values, self.weight, lists.offsets, mode="sum", include_last_offset=True)
        return DIVISORS[combiner](total, lists.lengths())

    def vectors(self, ids: Tensor | Ragged) -> Tensor | Ragged:
        """The vectors of ids in the form of the ids, not pooled."""
        return Ragged(self.lookup(ids.values), ids.offsets) if isinstance(ids, Ragged) else self.lookup(ids)

    def lookup(self, ids: Tensor) -> Tensor:
        """The vectors of ids of any shape (...): (..., D)."""
        try:
            if self.row_gradients and torch.is_grad_enabled():
                return _RowLookup.apply(self.weight, ids)  # type: ignore[no-untyped-call, no-any-return]
            return F.embedding(ids, self.weight)
        except IndexError:
            self._check(ids)
            raise

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

    def _check(self, ids: Tensor) -> None:
        if ids.device.type != "cpu" or not ids.numel():  # elsewhere the look would wait for the device
            return
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= self.input_dim:
            raise ValueError(
                f"table {self.name!r} holds ids 0 to {self.input_dim - 1}, but was asked for ids from {low} "
                f"to {high}. Encode the column with the Preprocessor that made the schema."
            )

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


class _RowBag(torch.autograd.Function):
    """The sums of looked up lists, whose gradient is sparse, with each row in it once."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(ids, offsets)
        ctx.size = weight.shape
        return F.embedding_bag(ids, weight, offsets, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ids, offsets = ctx.saved_tensors
        ordered, order = ids.sort(stable=True)
        distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
        # each id gets the gradients of the lists that it stands in: a bag of rows once more
        lists = Ragged(ids, offsets).row_of_value()[order]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        values = F.embedding_bag(lists, gradient.contiguous(), starts, mode="sum", include_last_offset=True)
        rows = torch.sparse_coo_tensor(distinct[None], values, ctx.size, is_coalesced=True, check_invariants=False)
        return rows, None, None


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
