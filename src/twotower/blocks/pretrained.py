"""PretrainedEmbeddings: vectors from elsewhere, such as of texts and images."""

import mmap
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.numbers import numbers
from twotower.blocks.pooling import as_ragged, combine
from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options
from twotower.schema import ColumnSchema, Schema

Vectors = Tensor | np.ndarray | Sequence[int | str]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class PretrainedEmbeddings(nn.Module):
    """Vectors from elsewhere, such as of texts and images: normalised, projected, and never trained themselves.

    They come with the data, (B, W) in a fixed-size list column; or the tower holds all of them, `vectors`, and the
    column says which row is whose. Lists of rows are pooled to the mean of their vectors, an empty one to zeros.

    Args:
        schema: columns tagged EMBEDDING; those of row numbers with an integer domain.
        output_dims: project to this width with a linear layer; one int for all, or a dict by column. None passes the
            vectors through.
        normalizer: "l2-norm" or a module, applied to the incoming vectors.
        vectors: by column, (rows, W) with one row for each number of the column's domain: a tensor or a NumPy array,
            float32 or float16, which stays in that precision (float64 becomes float32). A memory-mapped array is not
            read until its rows are looked up. They are saved with the model. (W, "float32") alone leaves room for
            vectors that are loaded afterwards.

    Raises:
        ValueError: a column of row numbers without vectors or the reverse, or another number of rows than ids.

    Example:
        >>> image = ColumnSchema("image", tags=[Tags.EMBEDDING], dtype="int64",
        ...                      properties={"domain": {"min": 0, "max": 2}})
        >>> block = PretrainedEmbeddings(Schema([image]), vectors={"image": torch.eye(3)})
        >>> block({"image": torch.tensor([2, 0])})["image"].tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    precision: Tensor

    @explain_options
    def __init__(
        self,
        schema: Schema,
        output_dims: int | Mapping[str, int] | None = None,
        normalizer: str | nn.Module | None = None,
        *,
        vectors: Mapping[str, Vectors] | None = None,
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
        given = dict(vectors or {})
        for name in given:
            schema[name]
        for c in schema:
            _check_holds_rows(c, c.name in given)
        # what was given lives in buffers from here on
        self.vectors: dict[str, tuple[int, str]] = {}
        for name, array in given.items():
            held = _tensor(schema[name], array)
            self.register_buffer(buffer_name(name), held)
            self.vectors[name] = (held.shape[1], str(held.dtype).removeprefix("torch."))
        self.register_buffer(
            "precision", torch.empty(0), persistent=False
        )  # follows .to(dtype); vectors may be narrower
        self.projections = nn.ModuleList(nn.LazyLinear(d) if (d := dims.get(c.name)) else nn.Identity() for c in schema)

    def for_columns(self, schema: Schema) -> "PretrainedEmbeddings":
        """The same options and the same vectors for some of the columns, with projections of their own."""
        dims = self.output_dims
        kept = {name: dims[name] for name in dims if name in schema} if isinstance(dims, Mapping) else dims
        held: dict[str, Vectors] = {name: self.held(name) for name in self.vectors if name in schema}
        return PretrainedEmbeddings(schema, kept, self.normalizer, vectors=held)

    def held(self, name: str) -> Tensor:
        """The vectors of a column, (rows, W)."""
        return cast(Tensor, getattr(self, buffer_name(name)))

    def extend(self, schema: Schema, vectors: Mapping[str, Vectors] | None = None) -> None:
        """Take in rows that were appended to the vectors.

        Args:
            schema: holds the block's columns, some with a larger domain.
            vectors: for each of those, all its vectors, the old ones first.

        Raises:
            ValueError: a column that has grown comes without vectors, or with others for the old rows.
        """
        self.take(schema, self.grown(schema, vectors or {}))

    def grown(self, schema: Schema, vectors: Mapping[str, Vectors]) -> dict[str, Tensor]:
        """The vectors of each column after `extend`, which changes nothing yet."""
        return {name: self._grown(schema[name], vectors.get(name)) for name in self.vectors}

    def take(self, schema: Schema, grown: Mapping[str, Tensor]) -> None:
        """What `grown` gave, in place of the old vectors."""
        self.schema = Schema([schema[c.name] for c in self.schema])
        for name, held in grown.items():
            self.register_buffer(buffer_name(name), held)

    def _grown(self, c: ColumnSchema, given: Vectors | None) -> Tensor:
        held = self.held(c.name)
        if c.cardinality == len(held) and given is None:
            return held
        if given is None:
            raise ValueError(
                f"column {c.name!r} has grown from {len(held)} to {c.cardinality} rows, but no vectors came with it: "
                f"extend(schema, vectors={{{c.name!r}: <array of {c.cardinality} rows>}})."
            )
        new = _tensor(c, given).to(held.device, held.dtype)
        if new.shape[1] != held.shape[1] or len(new) < len(held) or not torch.equal(new[: len(held)], held):
            raise ValueError(
                f"the vectors of column {c.name!r} must begin with the {len(held)} of width {held.shape[1]} that the model knows; "
                f"got shape {tuple(new.shape)}, or other numbers in these rows."
            )
        return new

    def forward(self, batch: Batch) -> dict[str, Tensor | Ragged]:
        """One (B, width) tensor for each column."""
        out: dict[str, Tensor | Ragged] = {}
        for c, projection in zip(self.schema, self.projections, strict=True):
            given = column(batch, c.name)
            vectors = self._looked_up(given, c.name) if c.name in self.vectors else numbers(given, c.name)
            out[c.name] = projection(_pooled(self._normalised(vectors), given, c.name in self.vectors))
        return out

    def _normalised(self, vectors: Tensor) -> Tensor:
        if isinstance(self.normalizer, nn.Module):
            return cast(Tensor, self.normalizer(vectors))
        return vectors if self.normalizer is None else F.normalize(vectors, dim=-1)

    def _looked_up(self, given: Tensor | Ragged, name: str) -> Tensor:
        """(number of ids, W), lists one after another."""
        ids = given.values if isinstance(given, Ragged) else given.reshape(-1)
        held = self.held(name)
        try:
            return F.embedding(ids, held).to(self.precision.dtype)
        except IndexError as error:
            raise ValueError(
                f"column {name!r} has vectors for the rows 0 to {len(held) - 1}, but was asked for rows from {int(ids.min())} to "
                f"{int(ids.max())}. Give vectors for all of them."
            ) from error


def buffer_name(name: str) -> str:
    """The buffer that holds a column's vectors."""
    return "vectors_" + name.replace(".", "%2E")


def _pooled(vectors: Tensor, given: Tensor | Ragged, looked_up: bool) -> Tensor:
    """One vector a row; `given` are the ids that they were looked up by, or the vectors as they came."""
    if isinstance(given, Ragged):
        return combine(Ragged(vectors, given.offsets), "mean")
    if given.ndim == 1 or not looked_up:
        return vectors
    return combine(as_ragged(vectors.reshape(*given.shape, vectors.shape[1])), "mean")


def _check_holds_rows(c: ColumnSchema, with_vectors: bool) -> None:
    if with_vectors and c.int_domain is None:
        raise ValueError(
            f"vectors are looked up by row number, but column {c.name!r} has no integer domain: its schema needs dtype int64 and "
            'properties={"domain": {"min": 0, "max": <largest row>}}.'
        )
    if not with_vectors and c.int_domain is not None and not c.is_list:
        raise ValueError(
            f"column {c.name!r} holds row numbers of vectors, but no vectors were given: "
            f"PretrainedEmbeddings(schema, vectors={{{c.name!r}: <array of {c.cardinality} rows>}})."
        )


def _tensor(c: ColumnSchema, given: Vectors) -> Tensor:
    if isinstance(given, Sequence):
        width, dtype = given
        return torch.zeros(c.cardinality, int(width), dtype=choose("dtype of vectors", str(dtype), DTYPES))
    held = torch.from_numpy(_writable(given)) if isinstance(given, np.ndarray) else given.detach()
    if held.ndim != 2 or len(held) != c.cardinality or not held.is_floating_point():
        raise ValueError(
            f"column {c.name!r} needs floating-point vectors of shape ({c.cardinality}, W), a row for each number from 0 to "
            f"{c.cardinality - 1}; got {held.dtype} of shape {tuple(held.shape)}."
        )
    return held.float() if held.dtype == torch.float64 else held


def _writable(array: np.ndarray) -> np.ndarray:
    """The array, or one of the same content that may be written to, which PyTorch asks for.

    A file mapped for reading is mapped again, copy-on-write: still nothing is read, and the file never changes. What is no
    such mapping of a whole file with a name is copied.
    """
    if array.flags.writeable:
        return array
    whole = array.flags.c_contiguous and isinstance(array.base, mmap.mmap)
    if not whole or not isinstance(array, np.memmap) or array.filename is None:
        return array.copy()
    return np.memmap(array.filename, array.dtype, "c", array.offset, array.shape)
