"""Catalog: every candidate once, from its id to its features."""

import warnings
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from twotower.data.batch import Batch, scalar_column, take, to_device
from twotower.data.dataset import Dataset
from twotower.schema import Schema


@dataclass(frozen=True, eq=False)
class Catalog:
    """U distinct candidates, sorted by id.

    Args:
        id_name: the id column.
        ids: (U,) int64, rising.
        features: the candidate tower's columns, row u belonging to `ids[u]`.
    """

    id_name: str
    ids: Tensor
    features: Batch

    @classmethod
    def from_dataset(cls, dataset: Dataset, id_name: str, schema: Schema) -> "Catalog":
        """The distinct ids of a dataset with the features of their first row.

        Warns when an id comes with different features, since a catalogue holds one row for each candidate; and when ids
        are missing or outside the Preprocessor's vocabulary, since those are no candidate that could be recommended.
        """
        names = list(dict.fromkeys([id_name, *schema.column_names]))
        unknown_id = dataset.schema[id_name].properties.get("unknown_id")
        distinct = _distinct(dataset, names, id_name, unknown_id)
        first = distinct.unique([id_name], keep="first", maintain_order=True).sort(id_name)
        if len(distinct) > len(first):
            warnings.warn(
                f"{len(distinct) - len(first)} rows give an id of {id_name!r} other features than an earlier row; the "
                "catalogue keeps the first. Give a dataset with one row for each id as `catalog` to choose yourself.",
                stacklevel=3,
            )
        read = Dataset(first, dataset.schema.select_by_name([n for n in names if n in dataset.schema]))
        columns = read.batch(Schema([dataset.schema[id_name]]) + schema)
        return cls(id_name, scalar_column(columns, id_name), {name: columns[name] for name in schema.column_names})

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Catalog":
        """The catalogue on a device."""
        return Catalog(self.id_name, self.ids.to(device), to_device(self.features, device))

    def slice(self, start: int, stop: int) -> Batch:
        """The features of some rows."""
        return take(self.features, torch.arange(start, min(stop, len(self)), device=self.ids.device))

    def positions(self, ids: Tensor) -> Tensor:
        """(M,) the row of each id; -1 for ids that are not in the catalogue."""
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[place] == ids, place, -1)

    def lookup(self, ids: Tensor) -> Batch:
        """The features of the ids (M,).

        Raises:
            ValueError: an id is not in the catalogue.
        """
        rows = self.positions(ids)
        if bool((rows < 0).any()):
            missing = ids[rows < 0].unique()
            raise ValueError(
                f"{len(missing)} of the sampled ids have no row in the catalogue of {len(self)} candidates, such as "
                f"{missing[:5].tolist()} in column {self.id_name!r}. Give fit (or adapt) a `catalog` that holds them, or "
                "narrow the sampler's ids (min_id, max_id)."
            )
        return take(self.features, rows)


def _distinct(dataset: Dataset, names: list[str], id_name: str, unknown_id: int | None) -> pl.DataFrame:
    """The distinct rows, part after part, less those of the Preprocessor's missing and unknown ids: they are anybody's."""
    found, left_out = None, 0
    for frame in dataset.frames(names):
        kept = frame if unknown_id is None else frame.filter(pl.col(id_name) > unknown_id)
        left_out += len(frame) - len(kept)
        found = (kept if found is None else pl.concat([found, kept])).unique(maintain_order=True)
    if left_out:
        warnings.warn(
            f"{left_out} rows hold no id or one that the Preprocessor did not know in {id_name!r}; they are "
            "not in the catalogue. Fit the Preprocessor on the table of all candidates to know them.",
            stacklevel=4,
        )
    assert found is not None  # a dataset has at least one part
    return found
