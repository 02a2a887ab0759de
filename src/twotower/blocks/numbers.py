"""Columns of numbers: as they are, or each with a learnt embedding."""

import math

import torch
from torch import Tensor, nn

from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
from twotower.schema import Schema

KINDS = {"linear": "x w + b", "periodic": "[sin, cos](2 pi c x) W + b"}


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
        return {c.name: numbers(column(batch, c.name), c.name) for c in self.schema}


class ContinuousEmbedding(nn.Module):
    """A vector for each number, so that numbers can be summed, stacked and crossed with the embeddings of ids.

    Each column has weights of its own. "linear" is e = x w + b; a layer after it sees no more than x. "periodic" is
    e = [sin(2 pi c x), cos(2 pi c x)] W + b with k learnt frequencies c, in which a layer can find bands of x, such as
    an age or an hour. Give it numbers of size 1, as the Preprocessor makes them.

    Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022, whose
    "L" and "PL" these are. Their "PLR" has a ReLU at the end, which would keep sums with embeddings of ids one-sided.

    Args:
        schema: columns of one number a row.
        dim: D, the width of the vectors.
        kind: "linear" or "periodic".
        num_frequencies: k.
        frequency_scale: the standard deviation of the frequencies at the start, in periods per unit of x. It decides how
            fine the bands are; worth trying between 0.01 and 10.

    Raises:
        ValueError: an unknown kind, a column of lists, or sizes that are not positive.

    Example:
        >>> price = ColumnSchema("price", tags=[Tags.CONTINUOUS], dtype="float32")
        >>> embedding = ContinuousEmbedding(Schema([price]), dim=8, kind="periodic")
        >>> embedding({"price": torch.tensor([0.5, -1.0])})["price"].shape
        torch.Size([2, 8])
    """

    @explain_options
    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        kind: str = "linear",
        num_frequencies: int = 16,
        frequency_scale: float = 0.3,
    ) -> None:
        super().__init__()
        choose("kind of ContinuousEmbedding", kind, KINDS)
        if dim < 1 or num_frequencies < 1 or not 0 < frequency_scale < math.inf:
            raise ValueError(
                "ContinuousEmbedding needs dim >= 1, num_frequencies >= 1 and frequency_scale > 0; got "
                f"{dim}, {num_frequencies} and {frequency_scale}."
            )
        lists = [c.name for c in schema if c.is_list]
        if lists or not len(schema):
            raise ValueError(
                f"ContinuousEmbedding embeds columns of one number a row, but got lists in {lists} of {schema.column_names}. "
                "Leave such columns to a Continuous block."
            )
        self.schema = schema
        self.dim = dim
        self.kind = kind
        self.num_frequencies = num_frequencies
        self.frequency_scale = frequency_scale
        columns, inner = len(schema), 1 if kind == "linear" else 2 * num_frequencies
        self.frequencies = None
        if kind == "periodic":
            self.frequencies = nn.Parameter(torch.randn(columns, num_frequencies) * frequency_scale)
        limit = 1 / math.sqrt(inner)
        self.weight = nn.Parameter(torch.empty(columns, inner, dim).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(columns, dim).uniform_(-limit, limit))

    def for_columns(self, schema: Schema) -> "ContinuousEmbedding":
        """The same options for some of the columns, with weights of their own."""
        return ContinuousEmbedding(
            schema,
            self.dim,
            kind=self.kind,
            num_frequencies=self.num_frequencies,
            frequency_scale=self.frequency_scale,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One (B, D) tensor for each column."""
        x = torch.cat([numbers(column(batch, c.name), c.name) for c in self.schema], dim=1).to(self.weight.dtype)
        inner = x[:, :, None]
        if self.frequencies is not None:
            angle = 2 * math.pi * self.frequencies * inner
            inner = torch.cat([angle.sin(), angle.cos()], dim=2)
        vectors = torch.bmm(inner.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        return {c.name: vectors[:, place] for place, c in enumerate(self.schema)}


def numbers(values: Tensor | Ragged, name: str) -> Tensor:
    """A column of numbers, or of vectors, as (B, width) floats."""
    if isinstance(values, Ragged):
        raise ValueError(f"column {name!r} holds lists of different lengths; continuous columns need one fixed length.")
    as_floats = values.to(torch.float32) if not values.is_floating_point() else values
    return as_floats[:, None] if as_floats.ndim == 1 else as_floats
