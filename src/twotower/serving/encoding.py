"""From raw rows to vectors, the same whoever else asks at the time."""

from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from twotower.data.batch import take, to_device
from twotower.data.preprocessor import Preprocessor
from twotower.encoder import Tower, evaluating
from twotower.models.base import RetrievalModelV2

TOGETHER = 32  # rows are encoded in multiples of it: smaller products round otherwise, and an answer must not depend on company
AT_ONCE = 1024  # rows that a tower reads at a time, a multiple of it


def embed_rows(tower: Tower, preprocessor: Preprocessor, frame: pl.DataFrame) -> Float[Tensor, "rows D"]:
    """The vectors of raw rows, on the CPU: the same bit for bit alone and among others, if no tower mixes rows.

    A layer of fewer than 12 outputs may yet round by a row's place: on some processors MKL's narrow products go by how a row lies
    in memory.
    """
    batch = preprocessor.encode_frame(frame, tower.schema)
    device = next(tower.parameters()).device
    # the last row again, until it is a multiple
    order = torch.arange(-(-len(frame) // TOGETHER) * TOGETHER).clamp(max=len(frame) - 1)
    with evaluating(tower):
        parts = [tower(to_device(take(batch, some), device)).float().cpu() for some in order.split(AT_ONCE)]
    return torch.cat(parts)[: len(frame)]


def find_history_column(
    model: RetrievalModelV2, preprocessor: Preprocessor, query_columns: Sequence[str]
) -> str | None:
    """The raw column of the query tower that lists items by the candidates' own vocabulary; None if there is not just one."""
    columns, own = preprocessor.columns, model.candidate_id.name
    if own not in columns:
        return None
    shared = [n for n, c in columns.items() if n != own and c.group(n) == columns[own].group(own)]
    listed = [n for n in shared if n in query_columns and preprocessor.schema[n].is_list]
    return listed[0] if len(listed) == 1 else None
