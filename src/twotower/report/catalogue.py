"""The items with what the sections need of them: a text to show, a category, popularity, exposure, a vector."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from twotower.evaluation.result import RECOMMENDED
from twotower.report.record import ReportData

TITLES = ("title", "name")
NO_TITLES = ("url", "link", "image", "img")  # within the name of a column that nobody reads
DISTINCT = 0.8  # of the values of a title, at least
LONGEST = 90  # characters of a title
MOST = 2**31 - 1  # more recommendations than a list has


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All items, in the order of the table.

    Args:
        frame: id, title, category (a list of text), events (in training), shown_0, shown_1, ... (how often each evaluation
            recommended the item).
        vectors: (N, D) of the items; nan for those that the Retriever lacks.
        title, category: the columns that were chosen, "" for none.
        first: how many recommendations of each list count as shown; None for all.
    """

    frame: pl.DataFrame
    vectors: Float[Tensor, "N D"]
    title: str
    category: str
    first: int | None

    def titles(self) -> dict[object, str]:
        """By id."""
        return dict(self.frame.select("id", "title").iter_rows())


def describe_items(data: ReportData, first: int | None) -> Catalogue:
    """Everything known of the items; `first` recommendations of each list count as shown, all of it for None."""
    items = data.items.unique(data.item, keep="first", maintain_order=True)
    ids = items[data.item]
    title = data.display or title_column(items, data.item)
    category = data.category or category_column(items, (data.item, title))
    shown = ids.cast(pl.String) if not title else items[title].cast(pl.String).fill_null(ids.cast(pl.String))
    words = shown.map_elements(_short, return_dtype=pl.String)
    columns = [
        ids.alias("id"),
        words.alias("title"),
        as_lists(items, category),
        _count(ids, data.train[data.item], "events"),
    ]
    for place, evaluation in enumerate(data.evaluations):
        columns.append(
            _count(
                ids, evaluation.values[RECOMMENDED].list.head(first or MOST).explode().drop_nulls(), f"shown_{place}"
            )
        )
    return Catalogue(pl.DataFrame(columns), _vectors(data, ids), title, category, first)


def title_column(items: pl.DataFrame, item: str) -> str:
    """The column to show: title or name, else the first of nearly unique text, those with title or name in theirs before others.

    "" if there is none; web addresses and pictures are never taken.
    """
    texts = [
        name
        for name in items.columns
        if name != item and items[name].dtype == pl.String and not any(word in name.lower() for word in NO_TITLES)
    ]
    exact = [name for wanted in TITLES for name in texts if name.lower() == wanted]
    unique = [name for name in texts if _distinct(items[name]) >= DISTINCT]
    alike = [name for name in unique if any(word in name.lower() for word in TITLES)]
    return next(iter([*exact, *alike, *unique]), "")


def _distinct(values: pl.Series) -> float:
    """The share of different ones."""
    known = values.drop_nulls()
    return known.n_unique() / max(1, len(known))


def category_column(items: pl.DataFrame, but: tuple[str, ...]) -> str:
    """A column of few values: lists first, then text, then whole numbers; "" if there is none."""
    found = []
    for name, kind in items.schema.items():
        several = isinstance(kind, pl.List | pl.Array)
        inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
        words = inner in (pl.String, pl.Categorical, pl.Enum, pl.Boolean)
        if name in but or not (words or inner.is_integer()):
            continue
        rank = 0 if several else 1 if words else 2
        values = (items[name].explode() if several else items[name]).drop_nulls()
        most = 60 if rank < 2 else 12
        there = 1 - items[name].null_count() / max(1, len(items))
        if 2 <= values.n_unique() <= min(most, len(items) / 2) and there >= 0.5:
            found.append((rank, values.n_unique(), name))
    return min(found)[2] if found else ""


def as_lists(items: pl.DataFrame, category: str) -> pl.Series:
    """The values of a column as lists of texts, none for ""."""
    if not category:
        return pl.Series("category", [[]] * len(items), dtype=pl.List(pl.String))
    column = items[category]
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String)).list.drop_nulls().fill_null([]).alias("category")
    frame = items.select(category=pl.concat_list(pl.col(category).cast(pl.String)).list.drop_nulls())
    return frame["category"]


def _count(ids: pl.Series, events: pl.Series, name: str) -> pl.Series:
    """How often each id occurs."""
    counts = events.cast(ids.dtype, strict=False).alias("id").to_frame().group_by("id").len(name)
    return (
        ids.alias("id")
        .to_frame()
        .join(counts, on="id", how="left", maintain_order="left")[name]
        .fill_null(0)
        .cast(pl.Int64)
    )


def _vectors(data: ReportData, ids: pl.Series) -> Tensor:
    bundle = data.retriever.bundle
    known = bundle.items[data.item].cast(ids.dtype).alias("id").to_frame().with_row_index("place")
    places = ids.alias("id").to_frame().join(known, on="id", how="left", maintain_order="left")["place"]
    at = torch.from_numpy(places.fill_null(0).to_numpy().astype(np.int64))
    missing = torch.from_numpy(places.is_null().to_numpy().copy())
    return bundle.vectors[at].float().masked_fill(missing[:, None], torch.nan)


def _short(words: str) -> str:
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
