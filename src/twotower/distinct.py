"""Each distinct query and candidate of a batch is encoded once, and large batches in parts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twotower.data.batch import Batch, column, take
from twotower.data.ragged import Ragged
from twotower.encoder import Tower
from twotower.schema import Tags

Row = Int[Tensor, "B"]


def encode_distinct(
    tower: Tower, batch: Batch, id_name: str | None, rows_at_once: int | None = None
) -> tuple[Float[Tensor, "U D"], Row | None, Int[Tensor, "U"]]:
    """The vectors of a tower on a batch, once for each distinct id where the tower's columns follow from the id.

    That they do is checked on every batch, by comparison; where they do not, and where a row's vector depends on the
    other rows (batch normalisation), every row is encoded by itself. With dropout, equal rows share what is dropped.

    Args:
        tower: the tower.
        batch: B rows.
        id_name: the id column; None when there is none to go by.
        rows_at_once: as in `encode_in_parts`.

    Returns:
        The vectors (U, D); which of them each row has (B,), None when row i has vector i; and one row of each (U,).
    """
    columns: Batch = {name: column(batch, name) for name in tower.schema.column_names}
    some = next(iter(columns.values()))
    every = torch.arange(len(some), device=some.device)
    ids = batch.get(id_name) if id_name is not None else None
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point() or tower.mixes_rows:
        return encode_in_parts(tower, columns, rows_at_once), None, every
    row, first = one_row_each(ids)
    once = take(columns, first)
    if not all(name == id_name or _same(once[name], row, columns[name]) for name in columns):
        return encode_in_parts(tower, columns, rows_at_once), None, every
    return encode_in_parts(tower, once, rows_at_once), row, first


def one_row_each(ids: Int[Tensor, "B"]) -> tuple[Row, Int[Tensor, "U"]]:
    """Which of the distinct ids, in rising order, each row has (B,), and one row of each of them (U,)."""
    distinct, row = torch.unique(ids, return_inverse=True)
    first = torch.empty(len(distinct), dtype=torch.int64, device=ids.device)
    return row, first.scatter_(0, row, torch.arange(len(ids), device=ids.device))


def encode_in_parts(tower: Tower, columns: Batch, rows_at_once: int | None) -> Float[Tensor, "U D"]:
    """The vectors of a tower on all rows, which holds the activations of no more than some rows at a time.

    For the gradient every part is encoded once more, with the same dropout: a second pass through the tower is the price.
    The result is that of encoding all rows at once (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup", RepL4NLP 2021, known as GradCache).

    Args:
        tower: the tower.
        columns: its columns.
        rows_at_once: rows of a part; None for all.

    Raises:
        ValueError: a tower whose rows depend on each other.
    """
    size = len(next(iter(columns.values())))
    if rows_at_once is None or size <= rows_at_once:
        return tower(columns)
    if tower.mixes_rows:
        raise ValueError(
            f"encode_rows={rows_at_once} encodes {size} rows in parts, but the tower has batch normalisation, which needs "
            'them all at once. Use normalization="layer_norm", or leave out encode_rows.'
        )
    every = torch.arange(size, device=next(iter(columns.values())).device)
    parts = [take(columns, part) for part in every.split(rows_at_once)]
    return torch.cat([checkpoint(tower, part, use_reentrant=False) for part in parts])


def query_id(tower: Tower) -> str | None:
    """The column that tells queries apart: the one tagged USER_ID, or a tower's only column if it holds ids."""
    tagged = tower.schema.select_by_tag(Tags.USER_ID)
    columns = tagged if len(tagged) == 1 else tower.schema
    return columns.first.name if len(columns) == 1 and columns.first.int_domain is not None else None


def _same(once: Tensor | Ragged, row: Row, every: Tensor | Ragged) -> bool:
    if isinstance(once, Ragged) and isinstance(every, Ragged):
        spread = once.take(row)
        return torch.equal(spread.offsets, every.offsets) and torch.equal(spread.values, every.values)
    return isinstance(once, Tensor) and isinstance(every, Tensor) and torch.equal(once.index_select(0, row), every)
