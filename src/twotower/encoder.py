"""Encoder: one tower, from the columns of a batch to a vector for each row."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.blocks.initializers import Initializer
from twotower.blocks.inputs import InputBlockV2
from twotower.blocks.table import EmbeddingTable
from twotower.data.arrow import from_tensor
from twotower.data.batch import Batch, column, example_batch, in_precision, to_device
from twotower.data.dataset import Dataset
from twotower.data.loader import Loader
from twotower.data.ragged import Ragged
from twotower.errors import unknown
from twotower.files import PathLike
from twotower.saving import load_module, save_module
from twotower.schema import ColumnSchema, Schema, Tags


class Encoder(nn.Module):
    """A tower: input block, then blocks, to (B, D).

    Args:
        inputs: the tower's columns, for which an InputBlockV2 is built; or an input block.
        blocks: modules from (B, width) to (B, other width), such as MLPBlock([128, 64]) or any nn.Module.
        pre: a module on the batch before the inputs.
        post: a module on the result, such as L2Norm().
        prior: a module from the batch and the vectors to one more column, (B, 1): PopularityPrior on the candidate's side,
            PriorWeight on the query's.

    The encoder shows its layers one made-up batch when it is built, so that their widths and `dim` are known at once.

    Raises:
        ValueError: columns that cannot be read, or blocks that do not end in one vector a row.

    Example:
        >>> user = ColumnSchema("user_id", tags=[Tags.USER_ID, Tags.CATEGORICAL], dtype="int64",
        ...                     properties={"domain": {"min": 0, "max": 99}})
        >>> encoder = Encoder(Schema([user]), MLPBlock([16]))
        >>> encoder({"user_id": torch.tensor([3, 50, 99])}).shape, encoder.dim
        (torch.Size([3, 16]), 16)
    """

    def __init__(
        self,
        inputs: Schema | InputBlockV2,
        *blocks: nn.Module,
        pre: nn.Module | None = None,
        post: nn.Module | None = None,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.inputs = InputBlockV2(inputs) if isinstance(inputs, Schema) else inputs
        self.blocks = nn.ModuleList(blocks)
        self.pre = pre
        self.post = post
        self.prior = prior
        self.schema = self.inputs.schema
        self.mixes_rows = _mixes_rows(self)
        self.dim = _output_width(self)
        self.own_dim = self.dim - (prior is not None)  # columns that are learnt

    def forward(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The tower's columns of the batch, among others it may hold, to (B, D)."""
        return self._run(batch)

    def every_position(self, batch: Batch, name: str) -> Ragged:
        """The vectors before the first and after each element of one list column: (P, D) in B rows, each one longer than
        its list.

        The last vector of a row is that of `forward`. The row's other columns are as they are at every position.

        Args:
            batch: B rows.
            name: a column that a HistoryEncoder pools; of a list that is longer than its max_length, the latest elements.
        """
        hidden = self.inputs.every_position(self._read(batch), name)
        return Ragged(self._finish(hidden.values, batch), hidden.offsets)

    def _run(self, batch: Batch) -> Tensor:
        return self._finish(self.inputs(self._read(batch)), batch)

    def _read(self, batch: Batch) -> Batch:
        kind = next((p.dtype for p in self.parameters()), torch.float32)
        if (
            kind != torch.float32
        ):  # a model in another precision reads its columns in it, in training and prediction alike
            batch = in_precision(batch, kind)
        return self.pre(batch) if self.pre is not None else batch

    def _finish(self, hidden: Tensor, batch: Batch) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        vectors = self.post(hidden) if self.post is not None else hidden
        if self.prior is None:
            return vectors
        return torch.cat([vectors, self.prior(batch, vectors).to(vectors.dtype)], dim=1)

    def regularization(self, batch: Batch) -> dict[str, Tensor]:
        """The L2 terms of the tower's tables, by column."""
        return self.inputs.regularization(batch)

    def encode(self, dataset: Dataset, index: str | Tags, batch_size: int = 1024) -> Dataset:
        """The vectors of every row, as a Dataset: the index column, then columns "0" to "D-1".

        Args:
            dataset: rows with the tower's columns and the index column.
            index: the id column, by name or tag.
            batch_size: rows encoded at once.
        """
        return encode(self, dataset, index, batch_size)

    def save(self, path: PathLike) -> None:
        """Write the tower to a folder, without pickle; whole or not at all."""
        save_module(self, path)

    @classmethod
    def load(cls, path: PathLike, custom_objects: Mapping[str, type] | None = None) -> "Encoder":
        """Read what `save` wrote; blocks of your own by name in `custom_objects`."""
        return load_module(path, custom_objects)

    def fit(self, *_: object, **__: object) -> None:
        """Towers are trained inside a model: always raises NotImplementedError."""
        raise NotImplementedError(
            "an Encoder is trained as a tower: TwoTowerModelV2(query_tower, candidate_tower).fit(...)."
        )


class EmbeddingEncoder(nn.Module):
    """A tower that is one embedding table: the id column to (B, D).

    Args:
        schema: the id column (a Schema of one column, or the column).
        dim: D.
        embeddings_initializer: as in EmbeddingTable.
        embeddings_l2_batch_regularization: factor of the L2 term on the vectors looked up.
        post: a module on the result, such as L2Norm().
        table: an existing table to share instead of a new one.
    """

    def __init__(
        self,
        schema: Schema | ColumnSchema,
        dim: int,
        *,
        embeddings_initializer: str | Initializer | Tensor = "uniform",
        embeddings_l2_batch_regularization: float = 0.0,
        post: nn.Module | None = None,
        table: EmbeddingTable | None = None,
    ) -> None:
        super().__init__()
        self.schema = Schema([schema]) if isinstance(schema, ColumnSchema) else schema
        if len(self.schema) != 1:
            raise ValueError(f"EmbeddingEncoder reads one id column, got {self.schema.column_names}.")
        if table is not None and embeddings_l2_batch_regularization not in (0.0, table.l2_batch_regularization_factor):
            raise ValueError(
                "a shared table brings its own l2_batch_regularization_factor, "
                f"{table.l2_batch_regularization_factor}; leave out embeddings_l2_batch_regularization."
            )
        self.embeddings_l2_batch_regularization = embeddings_l2_batch_regularization
        self.table = table or EmbeddingTable(
            dim,
            self.schema.first,
            embeddings_initializer=embeddings_initializer,
            sequence_combiner="mean",
            l2_batch_regularization_factor=embeddings_l2_batch_regularization,
        )
        if self.table.dim != dim:
            raise ValueError(f"the shared table {self.table.name!r} has width {self.table.dim}, not dim={dim}.")
        self.post = post
        self.mixes_rows = _mixes_rows(self)
        self.dim = self.own_dim = dim

    def forward(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The id column of the batch to (B, D)."""
        vectors = self.table(column(batch, self.schema.first.name))
        return self.post(vectors) if self.post is not None else vectors

    def regularization(self, batch: Batch) -> dict[str, Tensor]:
        """The L2 term of the table, by column."""
        name = self.schema.first.name
        on = bool(self.table.l2_batch_regularization_factor)
        return {name: self.table.regularization(column(batch, name))} if on else {}

    def encode(self, dataset: Dataset, index: str | Tags, batch_size: int = 1024) -> Dataset:
        """The vectors of every row, as in Encoder.encode."""
        return encode(self, dataset, index, batch_size)

    def to_dataset(self) -> Dataset:
        """The whole table: the id column, then columns "0" to "D-1"."""
        ids = torch.arange(self.table.input_dim)
        name = self.schema.first.name
        data = Dataset({name: ids.numpy()}, self.schema)
        return encode(self, data, name, batch_size=65536)


Tower = Encoder | EmbeddingEncoder


def embed(tower: Tower, dataset: Dataset, batch_size: int = 1024) -> Float[Tensor, "rows D"]:
    """The vectors of all rows of a dataset, in evaluation mode, on the CPU."""
    return torch.cat(list(embedded(tower, Loader(dataset, batch_size, shuffle=False, schema=tower.schema))))


def embedded(tower: Tower, batches: Iterable[Batch]) -> Iterator[Float[Tensor, "B D"]]:
    """The same, batch by batch."""
    device = next(tower.parameters()).device
    for batch in batches:
        with evaluating(tower):  # for each: whoever asks for the next one has modes of its own
            vectors = tower(to_device(batch, device)).float().cpu()
        yield vectors


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside, every part's old mode afterwards."""
    training = {part: part.training for part in module.modules()}  # parts may differ, such as a frozen batch norm
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in training.items():
            part.training = mode


def encode(tower: Tower, dataset: Dataset, index: str | Tags, batch_size: int = 1024) -> Dataset:
    """Index column and vectors of all rows, as one Dataset."""
    name = index_column(dataset.schema, index)
    if name not in dataset.column_names:
        raise ValueError(f"the data lacks the index column. {unknown('column', name, dataset.column_names)}")
    return embeddings_dataset(dataset, name, embed(tower, dataset, batch_size))


def embeddings_dataset(dataset: Dataset, index: str, vectors: Float[Tensor, "rows D"]) -> Dataset:
    """A Dataset of the index column and one float column, "0", "1", ..., for each dimension."""
    table = dataset.table.select([index])
    for number in range(vectors.shape[1]):
        table = table.append_column(str(number), from_tensor(vectors[:, number]))
    columns = [ColumnSchema(str(n), dtype="float32", tags=[Tags.CONTINUOUS]) for n in range(vectors.shape[1])]
    ids = Schema([dataset.schema[index]]) if index in dataset.schema else Dataset(table.select([index])).schema
    return Dataset(table, ids + Schema(columns))


def index_column(schema: Schema, index: str | Tags) -> str:
    """The name of the id column, given by name or tag."""
    if not isinstance(index, Tags):
        return index
    names = schema.select_by_tag(index).column_names
    if len(names) != 1:
        raise ValueError(f"expected one column tagged {index.value!r} among {schema.column_names}, found {names}.")
    return names[0]


def _mixes_rows(tower: nn.Module) -> bool:
    """Whether a row's vector depends on the other rows of its batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in tower.modules())


def _output_width(encoder: Encoder) -> int:
    with evaluating(encoder):
        vectors = encoder._run(example_batch(encoder.schema))
    if isinstance(vectors, Ragged) or vectors.ndim != 2:
        shape = "lists" if isinstance(vectors, Ragged) else tuple(vectors.shape)
        raise ValueError(f"an Encoder must end in one vector a row, (B, D), but its blocks give {shape} for 2 rows.")
    return int(vectors.shape[1])
