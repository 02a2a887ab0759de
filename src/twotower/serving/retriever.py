"""Retriever: raw queries in, raw item ids and their display fields out."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from twotower.bundle import Bundle, load_bundle, save_bundle
from twotower.candidates import TopK
from twotower.data.dataset import Dataset, Source
from twotower.data.preprocessor import Preprocessor
from twotower.evaluation import Queries, ScoreQueries, score_vectors
from twotower.feature_stores.base import Features, FeatureStore
from twotower.files import PathLike
from twotower.indexes.base import Index
from twotower.indexes.exact import ExactIndex
from twotower.indexes.filters import Filter
from twotower.indexes.kinds import MakeIndex, index_kind
from twotower.models.base import RetrievalModelV2
from twotower.serving.encoding import embed_rows, find_history_column
from twotower.serving.items import Items, RawId, check_seen
from twotower.serving.queries import Query, query_frame, with_contexts

Where = Filter | Mapping[str, object]


class Retriever:
    """Recommends from raw queries: dicts or tables as they come from an application.

    Args:
        model: the trained model.
        preprocessor: the one that encoded its training data.
        items: the raw table of all candidates, one row each: the id and whatever the candidate tower reads; the other
            columns are returned with the results, and filters may ask about them.
        index: what finds the best items: "exact", another kind by name, or a function from (vectors, keys, attributes) to an
            Index, such as `functools.partial(tt.IVFIndex, target_recall=0.98)`.
        users: a feature store, from which queries by user id take the raw columns of the query tower and the seen items.
        metrics: what was measured, to be kept with the bundle.

    Raises:
        ValueError: the id column is missing, or an id repeats; model and preprocessor do not belong together; the users lack
            a column that the query tower reads.
    """

    def __init__(
        self,
        model: RetrievalModelV2,
        preprocessor: Preprocessor,
        items: Source,
        *,
        index: str | MakeIndex = "exact",
        users: FeatureStore | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        raw = Items(Dataset(items).to_polars(), model.candidate_id.name)
        # a copy: vectors and towers must stay of one mind if the model is trained on
        mine = copy.deepcopy(model).cpu().eval()
        vectors = embed_rows(mine.candidate, preprocessor, raw.table)
        made = index_kind(index) if isinstance(index, str) else index
        bundle = Bundle(
            mine, preprocessor, raw.table, raw.keys, made(vectors, raw.keys, raw.attributes), users, metrics or {}
        )
        self._use(bundle, raw)

    def _use(self, bundle: Bundle, items: Items) -> None:
        self.bundle = bundle
        self.items = items
        self._unit: Index | None = None
        self.query_columns = bundle.preprocessor.raw_columns(bundle.model.query.schema.column_names)
        self.history_column = find_history_column(bundle.model, bundle.preprocessor, self.query_columns)
        if bundle.users is not None:
            lacking = [n for n in self.query_columns if n not in bundle.users.schema]
            if lacking:
                raise ValueError(
                    f"the feature store lacks {lacking}, which the query tower reads; it has "
                    f"{list(bundle.users.schema)}. Write it with all of {self.query_columns}."
                )
            check_seen(bundle.users, items)

    # ---- files

    def save(self, path: PathLike, *, users: bool = True) -> None:
        """Write a bundle, from which `load` makes the same Retriever elsewhere.

        Args:
            path: a folder.
            users: whether what is known of the users goes along, by id: their features and the items that they have seen.
        """
        save_bundle(self.bundle if users else replace(self.bundle, users=None), path)

    @classmethod
    def load(
        cls,
        path: PathLike,
        custom_objects: Mapping[str, type] | None = None,
        *,
        users: FeatureStore | None = None,
    ) -> "Retriever":
        """Read and verify a bundle.

        Args:
            path: what `save` wrote.
            custom_objects: classes of your own by name.
            users: a feature store in place of the bundle's own.

        Raises:
            ValueError: a damaged bundle, or parts that do not belong together.
        """
        bundle = load_bundle(path, custom_objects)
        if users is not None:
            bundle = replace(bundle, users=users)
        retriever = cls.__new__(cls)
        retriever._use(bundle, Items(bundle.items, bundle.model.candidate_id.name, bundle.keys))
        return retriever

    # ---- questions

    def recommend(
        self,
        queries: Source | Sequence[Query],
        k: int = 10,
        exclude: Sequence[Sequence[RawId]] | None = None,
        *,
        only: Sequence[RawId] | None = None,
        where: Where | None = None,
    ) -> pl.DataFrame:
        """The best k items for every query.

        Args:
            queries: a dict, a list of dicts, or a table, with the query tower's raw columns; None for what is not known. An id
                that training did not know counts as unknown.
            k: how many items.
            exclude: for every query, the raw ids not to recommend, such as those already seen. Ids that are no item
                change nothing.
            only: the raw ids that may be recommended, to anyone.
            where: what the items' columns must be, such as {"genres": "Drama", "year": {"gte": 1990}}; see `tt.Filter`.

        Returns:
            Columns query (row number), rank (from 1), score, and the items' columns; fewer than k rows for a query
            when fewer items are left.

        Raises:
            ValueError: a column of the query tower is missing, or `exclude` has another length than `queries`.
        """
        vectors = self.encode(queries)
        return self._table(self.nearest(vectors, k, exclude, only=only, where=where))

    def recommend_users(
        self,
        users: Sequence[RawId],
        k: int = 10,
        exclude: Sequence[Sequence[RawId]] | None = None,
        *,
        context: Query | None = None,
        seen: bool = False,
        only: Sequence[RawId] | None = None,
        where: Where | None = None,
    ) -> pl.DataFrame:
        """The best k items for users by their id, with what the feature store knows of them.

        Args:
            users: ids as the feature store has them.
            k, exclude, only, where: as in `recommend`.
            context: raw columns that are so for all of these queries now, such as the time, in place of the store's.
            seen: whether items that the store lists as seen may come again.

        Raises:
            ValueError: there is no feature store, or it does not know a user.
        """
        vectors, features = self.encode_users(users, context)
        hidden = exclude if seen else _joined(features.seen, exclude)
        return self._table(self.nearest(vectors, k, hidden, only=only, where=where))

    def recommend_histories(
        self,
        histories: Sequence[Sequence[RawId]],
        k: int = 10,
        exclude: Sequence[Sequence[RawId]] | None = None,
        *,
        context: Query | None = None,
        seen: bool = False,
        only: Sequence[RawId] | None = None,
        where: Where | None = None,
    ) -> pl.DataFrame:
        """The best k items for people of whom only some items are known, the latest last.

        A query tower that reads such a history gets it, with the context, and None for its other columns. Any other tower is
        passed over: the items nearest to the mean of the history's items by cosine.

        Args:
            histories: lists of raw item ids; those that are no items any more count as unknown.
            k, exclude, only, where: as in `recommend`.
            context: other raw columns of these queries, such as the time.
            seen: whether the history's own items may come.

        Raises:
            ValueError: a history without any item; a column that may not be missing is not in the context.
        """
        hidden = exclude if seen else _joined(histories, exclude)
        vectors = self.encode_histories(histories, context)
        find = self.nearest if self.history_column is not None else self.most_similar
        return self._table(find(vectors, k, hidden, only=only, where=where))

    def similar(
        self,
        item_ids: Sequence[RawId],
        k: int = 10,
        exclude: Sequence[Sequence[RawId]] | None = None,
        *,
        only: Sequence[RawId] | None = None,
        where: Where | None = None,
    ) -> pl.DataFrame:
        """The k items nearest to each item by cosine, itself left out; arguments and columns as in `recommend`.

        Raises:
            ValueError: an id that is no item.
        """
        vectors = self.bundle.index.vectors_of(self.items.keys_of(item_ids))
        themselves = _joined([[raw] for raw in item_ids], exclude)
        return self._table(self.most_similar(vectors, k, themselves, only=only, where=where))

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """The scores of raw candidates for raw queries, as an Evaluator on raw tables asks them.

        Raises:
            ValueError: a column of the query tower is missing, or a candidate is not among the items.
        """
        ids = candidates.to_polars()[self.items.id_name].to_list()
        unknown = [raw for raw in ids if raw not in self.items]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(ids)} candidates are not among the Retriever's items, such as {unknown[0]!r}. Make a "
                "Retriever with all items."
            )
        asked = queries.select(self.query_columns).to_polars()
        vectors = embed_rows(self.bundle.model.query, self.bundle.preprocessor, asked)
        return score_vectors(vectors, self.bundle.index.vectors_of(self.items.keys_of(ids)))

    # ---- changes

    def upsert(self, items: Source) -> None:
        """Add items, or replace those of the same ids: they are encoded by the candidate tower and found from now on.

        Not while another thread asks.

        Raises:
            ValueError: other columns than the items have, or repeated ids; nothing is changed then.
        """
        table = Dataset(items).to_polars()
        changed = Items(self.items.table, self.items.id_name, self.items.keys)
        keys = changed.put(table)
        vectors = embed_rows(self.bundle.model.candidate, self.bundle.preprocessor, table)
        self.bundle.index.upsert(keys, vectors, table.select(changed.attributes.columns))
        self._use(replace(self.bundle, items=changed.table, keys=changed.keys), changed)

    def delete(self, item_ids: Sequence[RawId]) -> None:
        """Items that shall not be found any more. Not while another thread asks.

        Raises:
            ValueError: an id that is no item; nothing is changed then.
        """
        changed = Items(self.items.table, self.items.id_name, self.items.keys)
        self.bundle.index.delete(changed.remove(item_ids))
        self._use(replace(self.bundle, items=changed.table, keys=changed.keys), changed)

    # ---- the parts of an answer

    def encode(self, queries: Source | Sequence[Query]) -> Float[Tensor, "B D"]:
        """The vectors of raw queries, given as to `recommend`."""
        rows = self.bundle.preprocessor.rows(queries) if isinstance(queries, Mapping) else queries
        return embed_rows(self.bundle.model.query, self.bundle.preprocessor, query_frame(rows, self.query_columns))

    def encode_users(
        self, users: Sequence[RawId], context: Query | None = None
    ) -> tuple[Float[Tensor, "B D"], Features]:
        """The vectors of users by id, and what the store knows of them; ValueError for one that it does not know."""
        if self.bundle.users is None:
            raise ValueError(
                "there is no feature store to look users up in: give Retriever(..., users=) or Retriever.load(..., users=), or "
                f"ask with whole queries of {self.query_columns}."
            )
        features = self.bundle.users.look_up(users)
        unknown = [raw for raw, known in zip(users, features.known, strict=True) if not known]
        if unknown:
            raise ValueError(
                f"nothing is known of {len(unknown)} of {len(users)} users, such as {unknown[0]!r}. Ask with a query of "
                f"{self.query_columns}, or with a history."
            )
        rows = with_contexts(features.rows.select(self.query_columns), [context or {}] * len(users))
        return embed_rows(self.bundle.model.query, self.bundle.preprocessor, rows), features

    def encode_histories(
        self, histories: Sequence[Sequence[RawId]], context: Query | None = None
    ) -> Float[Tensor, "B D"]:
        """The vectors of histories: of the query tower if it reads them, otherwise the mean of their items' unit vectors."""
        if not histories:
            return torch.zeros(0, self.bundle.index.dim)
        known = [self.items.known_keys_of(history) for history in histories]
        lost = [history for history, keys in zip(histories, known, strict=True) if not len(keys)]
        if lost:
            raise ValueError(
                f"a history holds no item that is known, so that there is nothing to go by: {list(lost[0])[:5]}."
            )
        if self.history_column is not None:
            around = {**dict.fromkeys(self.query_columns), **(context or {})}
            return self.encode([{**around, self.history_column: list(history)} for history in histories])
        if context:
            raise ValueError(
                "the query tower reads no history: a history is answered by its items alone, without a context."
            )
        vectors = self.bundle.index.vectors_of
        return torch.stack([F.normalize(vectors(keys), dim=1).mean(0) for keys in known])

    def nearest(
        self,
        vectors: Float[Tensor, "B D"],
        k: int,
        exclude: Sequence[Sequence[RawId]] | None = None,
        *,
        only: Sequence[RawId] | None = None,
        where: Where | None = None,
    ) -> TopK:
        """The keys and scores of the best items for query vectors; key -1 and score -inf where too few are left."""
        return self._search(self.bundle.index, vectors, k, exclude, only, where)

    def most_similar(
        self,
        vectors: Float[Tensor, "B D"],
        k: int,
        exclude: Sequence[Sequence[RawId]] | None = None,
        *,
        only: Sequence[RawId] | None = None,
        where: Where | None = None,
    ) -> TopK:
        """The same by cosine."""
        if self._unit is None:
            every = F.normalize(self.bundle.vectors, dim=1)
            self._unit = ExactIndex(every, self.items.keys, self.items.attributes)
        return self._search(self._unit, F.normalize(vectors, dim=1), k, exclude, only, where)

    def _search(
        self,
        index: Index,
        vectors: Tensor,
        k: int,
        exclude: Sequence[Sequence[RawId]] | None,
        only: Sequence[RawId] | None,
        where: Where | None,
    ) -> TopK:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        if exclude is not None and len(exclude) != len(vectors):
            raise ValueError(f"exclude must have one list for each of the {len(vectors)} queries, got {len(exclude)}.")
        if not len(index):  # every item was withdrawn
            return TopK(torch.zeros(len(vectors), 0), torch.zeros(len(vectors), 0, dtype=torch.int64))
        scores, keys = index.search(
            vectors,
            min(k, len(index)),
            exclude=self._pairs(exclude) if exclude is not None else None,
            only=self.items.known_keys_of(only) if only is not None else None,
            where=Filter.parse(where) if isinstance(where, Mapping) else where,
        )
        return TopK(scores, keys)

    def _pairs(self, exclude: Sequence[Sequence[RawId]]) -> Int[Tensor, "pairs 2"]:
        pairs = [(row, key) for row, ids in enumerate(exclude) for key in self.items.known_keys_of(ids).tolist()]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    def _table(self, top: TopK) -> pl.DataFrame:
        keys = torch.as_tensor(top.ids)
        rows, k = keys.shape
        ranked = pl.DataFrame(
            {
                "query": torch.arange(rows).repeat_interleave(k).numpy(),
                "rank": torch.arange(1, k + 1).repeat(rows).numpy(),
                "score": top.scores.reshape(-1).numpy(),
            }
        )
        found = (keys >= 0).reshape(-1)
        return pl.concat(
            [ranked.filter(pl.Series(found.numpy())), self.items.at(keys.reshape(-1)[found])], how="horizontal"
        )


def _joined(one: Sequence[Sequence[RawId]], other: Sequence[Sequence[RawId]] | None) -> Sequence[Sequence[RawId]]:
    if other is None:
        return one
    if len(one) != len(other):
        raise ValueError(f"exclude must have one list for each of the {len(one)} queries, got {len(other)}.")
    return [[*a, *b] for a, b in zip(one, other, strict=True)]
