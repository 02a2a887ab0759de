"""From raw rows to vectors, the same whoever else asks at the time."""

from collections.abc import Sequence

import polars as pl
from jaxtyping import Float
from torch import Tensor

from twotower.data.preprocessor import Preprocessor
from twotower.encoder import Tower, embed
from twotower.models.base import RetrievalModelV2

TOGETHER = 32  # rows are encoded in multiples of it: smaller products round otherwise, and an answer must not depend on company


def embed_rows(tower: Tower, preprocessor: Preprocessor, frame: pl.DataFrame) -> Float[Tensor, "rows D"]:
    """The vectors of raw rows. A row's vector is the same bit for bit alone and among others, if no tower mixes rows."""
    lacking = -len(frame) % TOGETHER
    rows = pl.concat([frame, frame[[-1] * lacking]]) if len(frame) and lacking else frame
    return embed(tower, preprocessor.transform(rows))[: len(frame)]


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
