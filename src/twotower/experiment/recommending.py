"""Recommendations for users of a run: what is known of them stands in its bundle, or else in its tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from twotower.experiment.bundling import users_of
from twotower.experiment.folder import Run
from twotower.feature_stores.base import Features, FeatureStore
from twotower.serving.queries import check_query

AT_ONCE = 1024  # users whose lists are made together


class Desk:
    """Answers for users of a run, with what all of its rows tell of them: training, validation and test.

    Args:
        run: a finished run.
    """

    def __init__(self, run: Run) -> None:
        self.config = run.config
        self.retriever = run.retriever()
        self.needed = self.retriever.query_columns
        users, preprocessor = self.retriever.bundle.users, self.retriever.bundle.preprocessor
        self.users: FeatureStore = users_of(self.config, run.tables(), preprocessor) if users is None else users

    def look_up(self, users: Sequence[object]) -> Features:
        """What is known of users: their columns and history, asked at the end of the data, and what they have seen.

        Raises:
            ValueError: nothing is known of a user.
        """
        ids = _ids(users, self.users.schema[self.users.key]).to_list()
        missing = [asked for asked, raw in zip(users, ids, strict=True) if raw is None]
        if not missing:
            found = self.users.look_up(ids)
            missing = [asked for asked, known in zip(users, found.known, strict=True) if not known]
        if missing:
            raise ValueError(
                f"nothing is known of {len(missing)} of {len(users)} users, such as {self.users.key} {missing[0]!r}, in the run's "
                f"data. Give what you know as a query, --query '{{...}}' with {', '.join(self.needed)}."
            )
        return found

    def recommend(self, users: Sequence[object], k: int = 10, seen: bool | None = None) -> pl.DataFrame:
        """The best k items for each user: the user's id, rank, score and the items' columns.

        Args:
            users: ids.
            k: how many items.
            seen: whether what the user did before may come again; by default as evaluation.remove_seen says.
        """
        return pl.concat(self.lists(users, k, seen))

    def lists(self, users: Sequence[object], k: int = 10, seen: bool | None = None) -> Iterator[pl.DataFrame]:
        """The same, some users at a time, so that the lists of many need not be held; all are looked up first."""
        if not users:
            raise ValueError("there are no users to recommend for.")
        known, name = self.look_up(users), self.users.key
        for start in range(0, len(users), AT_ONCE):
            rows = known.rows.slice(start, AT_ONCE)
            hidden = known.seen[start : start + AT_ONCE] if self._hides(seen) else None
            found = self.retriever.recommend(rows, k, hidden)
            ids = rows[name].gather(found["query"])
            yield found.drop("query").insert_column(
                0, ids.alias(name if name not in found.columns else f"query_{name}")
            )

    def answer(self, query: Mapping[str, object], k: int = 10, seen: bool | None = None) -> pl.DataFrame:
        """The best k items for a raw query of your own; what its history holds has been seen."""
        held = query.get(self.config.history.column) if self.config.history is not None else None
        hidden = [list(held) if isinstance(held, (list, tuple)) else []] if self._hides(seen) else None
        return self.retriever.recommend([check_query(query, self.needed)], k, hidden).drop("query")

    def _hides(self, seen: bool | None) -> bool:
        return self.config.evaluation.remove_seen if seen is None else not seen


def _ids(users: Sequence[object], kind: Any) -> pl.Series:
    """Ids as the data's type, from the command line or a table; null where one cannot be that."""
    plain = [int(u) if isinstance(u, float) and u.is_integer() and not kind.is_float() else u for u in users]
    texts = pl.Series([None if u is None else str(u) for u in plain], dtype=pl.String)
    if kind.is_integer():
        texts = texts.str.replace(r"^(-?\d+)\.0+$", "$1")  # a column with holes may have made floats of whole numbers
    return texts.cast(kind, strict=False)
