"""Recommendations for users of a run: what is known of them is looked up in the run's data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from twotower.experiment.folder import Run
from twotower.experiment.rows import with_latest_history, with_users
from twotower.experiment.tables import Tables

AT_ONCE = 1024  # users whose lists are made together


@dataclass(frozen=True, eq=False)
class Known:
    """Users and what is known of them.

    Args:
        queries: a row for each user: their id and the raw columns that the query tower reads.
        seen: the items of each, in the same order, as lists.
    """

    queries: pl.DataFrame
    seen: pl.Series


class Desk:
    """Answers for users of a run, from all of its rows: training, validation and test.

    Args:
        run: a finished run.
    """

    def __init__(self, run: Run) -> None:
        self.config = run.config
        self.tables: Tables = run.tables()
        self.retriever = run.retriever()
        model, preprocessor = self.retriever.bundle.model, self.retriever.bundle.preprocessor
        self.needed = preprocessor.raw_columns(model.query.schema.column_names)
        self.rows = self.tables.before("everything")

    def look_up(self, users: Sequence[object]) -> Known:
        """What a query for each user needs: the user's columns, the history, and the context of their last row, at the last moment
        of the data.

        Raises:
            ValueError: nothing is known of a user.
        """
        user, item, time = self.config.data.user, self.config.data.item, self.config.data.time
        asked = pl.DataFrame({user: _ids(users, self.rows.schema[user])})
        rows = self.rows.join(asked.unique(), on=user, how="semi", maintain_order="left")
        known = asked[user].is_in(rows[user].implode())
        if self.tables.users is not None:
            known = known | asked[user].is_in(self.tables.users[user].implode())
        known = known.fill_null(False)  # an id that the data's type cannot hold is nobody's
        if not known.all():
            missing = [u for u, k in zip(users, known.to_list(), strict=True) if not k]
            raise ValueError(
                f"nothing is known of {len(missing)} of {len(users)} users, such as {user} {missing[0]!r}, in the run's data. Give "
                f"what you know as a query, --query '{{...}}' with {', '.join(self.needed)}."
            )
        ordered = rows if time is None else rows.sort(time, maintain_order=True)
        last = ordered.unique(user, keep="last")
        found = with_users(self.config, asked.join(last, on=user, how="left", maintain_order="left"), self.tables.users)
        found = with_latest_history(self.config, found, rows)
        if time is not None:  # asked now, which is the end of the data
            found = found.with_columns(pl.lit(self.rows[time].max(), dtype=rows.schema[time]).alias(time))
        items = ordered.group_by(user).agg(pl.col(item))
        seen = asked.join(items, on=user, how="left", maintain_order="left")[item].fill_null([])
        return Known(found.select(list(dict.fromkeys([user, *self.needed]))), seen)

    def recommend(self, users: Sequence[object], k: int = 10, seen: bool | None = None) -> pl.DataFrame:
        """The best k items for each user: the user's id, rank, score and the items' columns.

        Args:
            users: ids.
            k: how many items.
            seen: whether what the user did before may come again; by default as evaluation.remove_seen says.
        """
        return pl.concat(self.lists(users, k, seen))

    def lists(self, users: Sequence[object], k: int = 10, seen: bool | None = None) -> Iterator[pl.DataFrame]:
        """The same, some users at a time, so that the lists of many need not be held; what is known of all is looked up first."""
        if not users:
            raise ValueError("there are no users to recommend for.")
        known, name = self.look_up(users), self.config.data.user
        for start in range(0, len(users), AT_ONCE):
            queries = known.queries.slice(start, AT_ONCE)
            hidden = known.seen.slice(start, AT_ONCE).to_list() if self._hides(seen) else None
            found = self.retriever.recommend(queries.select(self.needed), k, hidden)
            ids = queries[name].gather(found["query"])
            yield found.drop("query").insert_column(
                0, ids.alias(name if name not in found.columns else f"query_{name}")
            )

    def answer(self, query: Mapping[str, object], k: int = 10, seen: bool | None = None) -> pl.DataFrame:
        """The best k items for a raw query of your own; what its history holds has been seen."""
        extra = [name for name in query if name not in self.needed]
        if extra:
            raise ValueError(
                f"this query holds {', '.join(extra)}, which the model does not read; it needs {', '.join(self.needed)} "
                "and no more. Correct the name, or leave it out."
            )
        missing = [name for name in self.needed if name not in query]
        if missing:
            raise ValueError(f"a query needs {', '.join(self.needed)}; this one lacks {', '.join(missing)}.")
        held = query.get(self.config.history.column) if self.config.history is not None else None
        hidden = [list(held) if isinstance(held, (list, tuple)) else []] if self._hides(seen) else None
        asked = [{name: query[name] for name in self.needed}]
        return self.retriever.recommend(asked, k, hidden).drop("query")

    def _hides(self, seen: bool | None) -> bool:
        return self.config.evaluation.remove_seen if seen is None else not seen


def _ids(users: Sequence[object], kind: pl.DataType) -> pl.Series:
    """Ids as the data's type, from the command line or a table; null where one cannot be that."""
    plain = [int(u) if isinstance(u, float) and u.is_integer() and not kind.is_float() else u for u in users]
    texts = pl.Series([None if u is None else str(u) for u in plain], dtype=pl.String)
    if kind.is_integer():
        texts = texts.str.replace(r"^(-?\d+)\.0+$", "$1")  # a column with holes may have made floats of whole numbers
    return texts.cast(kind, strict=False)
