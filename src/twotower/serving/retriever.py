"""Retriever: raw queries in, raw item ids and their display fields out."""

import copy
from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from twotower.bundle import Bundle, load_bundle, save_bundle
from twotower.data.dataset import Dataset, Source
from twotower.data.preprocessor import Preprocessor
from twotower.encoder import embed
from twotower.evaluation import Queries, ScoreQueries, score_vectors
from twotower.files import PathLike
from twotower.indexes.exact import ExactIndex
from twotower.models.base import RetrievalModelV2
from twotower.schema import Schema

RawId = int | str


class Retriever:
    """Recommends from raw queries: dicts or tables as they come from an application.

    Args:
        model: the trained model.
        preprocessor: the one that encoded its training data.
        items: the raw table of all candidates, one row each: the id and whatever the candidate tower reads; the other
            columns are returned with the results.

    Raises:
        ValueError: the id column is missing, or an id repeats.
    """

    def __init__(self, model: RetrievalModelV2, preprocessor: Preprocessor, items: Source) -> None:
        raw = Dataset(items).to_polars()
        name = model.candidate_id.name
        if name not in raw.columns or raw[name].n_unique() < len(raw):
            found = f"{raw[name].n_unique()} distinct of {len(raw)}" if name in raw.columns else f"only {raw.columns}"
            raise ValueError(f"items needs a column {name!r} with a different id in each row; found {found}.")
        taken = [name for name in ("query", "rank", "score") if name in raw.columns]
        if taken:
            raise ValueError(f"items has columns named {taken}, as the results have; rename them.")
        _check_of_one_mind(model.input_schema, preprocessor.schema)
        # a copy: vectors and towers must stay of one mind if the model is trained on
        mine = copy.deepcopy(model).cpu().eval()
        self._use(Bundle(mine, preprocessor, raw, embed(mine.candidate, preprocessor.transform(raw))))

    def _use(self, bundle: Bundle) -> None:
        _check_of_one_mind(bundle.model.input_schema, bundle.preprocessor.schema)
        self.bundle = bundle
        self._id = bundle.model.candidate_id.name
        self._index = ExactIndex(bundle.vectors)
        self._unit = ExactIndex(F.normalize(bundle.vectors, dim=1))
        self._position = {raw: place for place, raw in enumerate(bundle.items[self._id].to_list())}

    def save(self, path: PathLike) -> None:
        """Write a bundle, from which `load` makes the same Retriever elsewhere."""
        save_bundle(self.bundle, path)

    @classmethod
    def load(cls, path: PathLike, custom_objects: Mapping[str, type] | None = None) -> "Retriever":
        """Read and verify a bundle; classes of your own by name in `custom_objects`."""
        retriever = cls.__new__(cls)
        retriever._use(load_bundle(path, custom_objects))
        return retriever

    def recommend(
        self,
        queries: Source | Sequence[Mapping[str, object]],
        k: int = 10,
        exclude: Sequence[Sequence[RawId]] | None = None,
    ) -> pl.DataFrame:
        """The best k items for every query.

        Args:
            queries: a dict, a list of dicts, or a table, with the query tower's raw columns. An id that training did not know
                counts as unknown.
            k: how many items.
            exclude: for every query, the raw ids not to recommend, such as those already seen. Ids that are no item
                change nothing.

        Returns:
            Columns query (row number), rank (from 1), score, and the items' columns; fewer than k rows for a query
            when fewer items are left.

        Raises:
            ValueError: a column of the query tower is missing, or `exclude` has another length than `queries`.
        """
        frame = _frame(self.bundle.preprocessor.rows(queries) if isinstance(queries, Mapping) else queries)
        needed = self.bundle.preprocessor.raw_columns(self.bundle.model.query.schema.column_names)
        missing = [name for name in needed if name not in frame.columns]
        if missing or not len(frame):
            raise ValueError(f"a query needs {needed}, but these queries have {frame.columns} and {len(frame)} rows.")
        if exclude is not None and len(exclude) != len(frame):
            raise ValueError(f"exclude must have one list for each of the {len(frame)} queries, got {len(exclude)}.")
        vectors = embed(self.bundle.model.query, self.bundle.preprocessor.transform(frame.select(needed)))
        return self._table(*self._index.search(vectors, self._at_most(k), exclude=self._pairs(exclude or [])))

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """The scores of raw candidates for raw queries, as an Evaluator on raw tables asks them.

        Raises:
            ValueError: a column of the query tower is missing, or a candidate is not among the items.
        """
        model, preprocessor = self.bundle.model, self.bundle.preprocessor
        ids = candidates.to_polars()[self._id].to_list()
        unknown = [raw for raw in ids if raw not in self._position]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(ids)} candidates are not among the Retriever's items, such as {unknown[0]!r}. Make a "
                "Retriever with all items."
            )
        asked = queries.select(preprocessor.raw_columns(model.query.schema.column_names))
        places = torch.tensor([self._position[raw] for raw in ids])
        return score_vectors(embed(model.query, preprocessor.transform(asked)), self.bundle.vectors[places])

    def similar(self, item_ids: Sequence[RawId], k: int = 10) -> pl.DataFrame:
        """The k items nearest to each item by cosine, itself left out; columns as in `recommend`.

        Raises:
            ValueError: an id that is no item.
        """
        unknown = [raw for raw in item_ids if raw not in self._position]
        if unknown:
            raise ValueError(f"no item has the id {unknown[0]!r} ({len(unknown)} of {len(item_ids)} ids are unknown).")
        places = torch.tensor([self._position[raw] for raw in item_ids], dtype=torch.int64)
        itself = torch.stack([torch.arange(len(places)), places], dim=1)
        return self._table(*self._unit.search(self._unit.vectors_of(places), self._at_most(k), exclude=itself))

    def _at_most(self, k: int) -> int:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        return min(k, len(self._index))

    def _pairs(self, exclude: Sequence[Sequence[RawId]]) -> Tensor:
        pairs = [(row, self._position[raw]) for row, ids in enumerate(exclude) for raw in ids if raw in self._position]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    def _table(self, scores: Tensor, places: Tensor) -> pl.DataFrame:
        rows, k = scores.shape
        ranked = pl.DataFrame(
            {
                "query": torch.arange(rows).repeat_interleave(k).numpy(),
                "rank": torch.arange(1, k + 1).repeat(rows).numpy(),
                "score": scores.reshape(-1).numpy(),
            }
        )
        items = self.bundle.items[places.clamp(min=0).reshape(-1).numpy()]
        return pl.concat([ranked, items], how="horizontal").filter(pl.col("score").is_finite())


def _check_of_one_mind(model: Schema, preprocessor: Schema) -> None:
    """ValueError when the model was trained on other codes than the Preprocessor gives."""
    for column in model:
        if column.name not in preprocessor:
            continue
        given = preprocessor[column.name]
        trained, now = ((c.int_domain, c.properties.get("vocabulary")) for c in (column, given))
        if trained != now and trained[1] is not None:
            raise ValueError(
                f"column {column.name!r} was trained on other ids than this Preprocessor gives ({trained} against {now}). Give the "
                "Preprocessor of the training data; after preprocessor.extend, call model.extend(preprocessor.schema) first."
            )


def _frame(queries: Source | Sequence[Mapping[str, object]]) -> pl.DataFrame:
    if isinstance(queries, (list, tuple)):
        wrong = [type(query).__name__ for query in queries if not isinstance(query, Mapping)]
        if wrong:
            raise ValueError(f"queries must be dicts of column to value, or a table; got a list with a {wrong[0]}.")
        return pl.DataFrame(list(queries), infer_schema_length=None)
    return Dataset(queries).to_polars()  # type: ignore[arg-type]
