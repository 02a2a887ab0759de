"""Id dropout: in training some ids become the unknown id, so that its row is trained and features learn to do without ids."""

import torch
from torch import Tensor

from twotower.data.ragged import Ragged
from twotower.schema import ColumnSchema


def drop_ids(ids: Tensor | Ragged, probability: float, unknown_id: int) -> Tensor | Ragged:
    """Replace each known id by an unknown one, each with the same probability and by itself.

    Ids 1 to `unknown_id` are unknown, 0 is missing; both stay. Where there are several unknown ids, one is drawn. Numbers
    come from PyTorch's generator of the device, as in nn.Dropout.

    Args:
        ids: of any shape, or lists.
        probability: that a known id is replaced.
        unknown_id: the largest unknown id.

    Volkovs, Yu and Poutanen, "DropoutNet: Addressing Cold Start in Recommender Systems", NeurIPS 2017, replace the whole
    preference vector of some users and items by zeros or by a mean; here it is the row of the unknown id, which is learnt.
    """
    if isinstance(ids, Ragged):
        return Ragged(_drop(ids.values, probability, unknown_id), ids.offsets)
    return _drop(ids, probability, unknown_id)


def _drop(ids: Tensor, probability: float, unknown_id: int) -> Tensor:
    dropped = (torch.rand(ids.shape, device=ids.device) < probability) & (ids > unknown_id)
    if unknown_id == 1:
        return ids.masked_fill(dropped, 1)
    return torch.where(dropped, torch.randint_like(ids, 1, unknown_id + 1), ids)


def unknown_id_of(column: ColumnSchema, probability: float) -> int:
    """The largest unknown id of a column whose ids are dropped; 0 where none are.

    Raises:
        ValueError: a probability outside [0, 1), or a column without an unknown id.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"id_dropout of column {column.name!r} must be in [0, 1), got {probability}.")
    if not probability:
        return 0
    unknown_id = column.properties.get("unknown_id")
    # schema.pbtxt knows no integers, so a whole number may come as a float
    known = float(unknown_id) if isinstance(unknown_id, (int, float)) else 0.0
    if not known.is_integer() or not 1 <= known < column.cardinality:
        raise ValueError(
            f"id_dropout replaces ids by the unknown id, but column {column.name!r} has the unknown id {unknown_id!r}. Encode it "
            'with the Preprocessor, say it, properties={"unknown_id": 1, ...}, or name the columns to drop ids of: '
            'id_dropout={"item_id": 0.1}.'
        )
    return int(known)
