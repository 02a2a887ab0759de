"""Why an item is recommended: which items of the history it lies near, and what each column of the query adds to its score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from twotower.serving.encoding import embed_rows
from twotower.serving.items import RawId
from twotower.serving.queries import Query, query_frame
from twotower.serving.retriever import Retriever

NEAREST = 3


@dataclass(frozen=True)
class Contribution:
    """What one column of a query adds to the score of one item.

    Args:
        column: the raw column.
        value: the query's.
        adds: the score less the score of the same query without the value; below 0 where the value speaks against the item.
            None if the column may not be missing.
        note: why there is no number; empty if there is one.
    """

    column: str
    value: object
    adds: float | None
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """Why one item has its score for one query.

    Args:
        item: its id.
        score: the inner product of query and item.
        nearest: items of the history, itself left out, with their cosine to it, the nearest first.
        contributions: one for each raw column of the query tower. They need not sum to the score: columns work together.
    """

    item: RawId
    score: float
    nearest: list[tuple[RawId, float]]
    contributions: list[Contribution]


def explain(
    retriever: Retriever,
    asked: Query | RawId,
    item_ids: Sequence[RawId],
    *,
    history: Sequence[RawId] | None = None,
    nearest: int = NEAREST,
) -> list[Explanation]:
    """Why items have their scores: the nearest items of the history, and what each column of the query adds.

    A column's part is found by leaving it out: the query is encoded again with that one column missing, as the Preprocessor
    encodes what is missing (a number by its `fill`). It says what this model does with the value, not what causes a choice.

    Args:
        retriever: with the items.
        asked: a query, a dict of raw column to value; or the id of a user in the feature store.
        item_ids: the items to explain, such as those recommended.
        history: the items to look for near ones among. By default those of the history column, if the query tower reads one,
            and those that the feature store lists as seen. Ids that are no item are passed over.
        nearest: how many of them to give.

    Raises:
        ValueError: an id that is no item, a user that nothing is known of, or an incomplete query.

    Example:
        >>> why = explain(retriever, {"user_id": "u3"}, [42], history=[7, 8])   # doctest: +SKIP
        >>> why[0].nearest, why[0].contributions                               # doctest: +SKIP
        ([(8, 0.93), (7, 0.12)], [Contribution(column='user_id', value='u3', adds=0.61, note='')])
    """
    if nearest < 1:
        raise ValueError(f"nearest must be at least 1, got {nearest}.")
    row, known = _query(retriever, asked)
    items = retriever.bundle.index.vectors_of(retriever.items.keys_of(item_ids))
    scores, without = _scores(retriever, row, items)
    near = nearest_in(retriever, item_ids, known if history is None else history, nearest)
    values = row.row(0, named=True)
    return [
        Explanation(
            raw,
            float(scores[place]),
            near[place],
            [
                Contribution(name, values[name], None, found)
                if isinstance(found, str)
                else Contribution(name, values[name], float(scores[place] - found[place]))
                for name, found in without.items()
            ],
        )
        for place, raw in enumerate(item_ids)
    ]


def may_be_missing(retriever: Retriever, column: str) -> bool:
    """Whether a raw column of the query tower may be None by itself."""
    try:
        retriever.bundle.preprocessor.transform(pl.DataFrame({column: [None]}))
    except ValueError as error:
        # what is read together with other columns cannot be asked alone
        return "the table has none of the columns" in str(error)
    return True


def _query(retriever: Retriever, asked: Query | RawId) -> tuple[pl.DataFrame, list[RawId]]:
    """The one row to encode, and the items that are known of it, each once."""
    if isinstance(asked, Mapping):
        row, seen = query_frame([asked], retriever.query_columns), list[RawId]()
    else:
        if retriever.bundle.users is None:
            raise ValueError(
                "there is no feature store to look users up in: give a query of "
                f"{retriever.query_columns}, or Retriever(..., users=)."
            )
        features = retriever.bundle.users.look_up([asked])
        if not features.known[0]:
            raise ValueError(f"nothing is known of the user {asked!r}. Ask with a query of {retriever.query_columns}.")
        row, seen = features.rows.select(retriever.query_columns), features.seen[0]
    column = retriever.history_column
    listed = row[column].to_list()[0] or [] if column is not None else []
    return row, list(dict.fromkeys([*listed, *seen]))


def _scores(retriever: Retriever, row: pl.DataFrame, items: Tensor) -> tuple[Tensor, dict[str, Tensor | str]]:
    """(M,) scores of items, and those without each column; in place of them the reason why there are none."""

    def scores(asked: pl.DataFrame) -> Tensor:
        return items @ embed_rows(retriever.bundle.model.query, retriever.bundle.preprocessor, asked)[0]

    whole, without = scores(row), dict[str, Tensor | str]()
    for name, kind in row.schema.items():
        try:
            without[name] = scores(row.with_columns(pl.lit(None, dtype=kind).alias(name)))
        except ValueError:  # the same row was encoded with the value: it is the missing one that is refused
            without[name] = "may not be missing"
    return whole, without


def nearest_in(
    retriever: Retriever, item_ids: Sequence[RawId], history: Sequence[RawId], count: int = NEAREST
) -> list[list[tuple[RawId, float]]]:
    """For each item the nearest of a history by cosine, itself left out. Ids of a history that are no item are passed over."""
    known = [raw for raw in dict.fromkeys(history) if raw in retriever.items]
    if not known:
        return [[] for _ in item_ids]
    among = F.normalize(retriever.bundle.index.vectors_of(retriever.items.keys_of(known)), dim=1)
    items = retriever.bundle.index.vectors_of(retriever.items.keys_of(item_ids))
    cosines = F.normalize(items, dim=1) @ among.T
    found = []
    for raw, own in zip(item_ids, cosines, strict=True):
        order = torch.sort(own, descending=True, stable=True)
        pairs = zip(order.indices.tolist(), order.values.tolist(), strict=True)
        found.append([(known[at], cosine) for at, cosine in pairs if known[at] != raw][:count])
    return found
