"""Raw queries as a table: every dict complete, and every column of one type."""

from collections.abc import Mapping, Sequence

import polars as pl

from twotower.data.dataset import Dataset, Source
from twotower.errors import unknown

Query = Mapping[str, object]


def query_frame(queries: Source | Sequence[Query], needed: Sequence[str]) -> pl.DataFrame:
    """The needed columns of some queries, a row for each.

    Args:
        queries: a list of dicts with a value, or None, for each needed column, or a table that has them; other columns are
            not read.
        needed: the raw columns that the query tower reads.

    Raises:
        ValueError: no queries, a missing column, or values of several types in one column.
    """
    if isinstance(queries, (list, tuple)):
        return _of_dicts(queries, needed)
    frame = Dataset(queries).to_polars()  # type: ignore[arg-type]
    missing = [name for name in needed if name not in frame.columns]
    if missing or not len(frame):
        raise ValueError(f"a query needs {list(needed)}, but these queries have {frame.columns} and {len(frame)} rows.")
    return frame.select(needed)


def check_query(query: object, needed: Sequence[str]) -> Query:
    """A dict with the needed columns, and no other: what a stranger sends."""
    checked = _complete(query, needed)
    extra = [name for name in checked if name not in needed]
    if extra:
        raise ValueError(f"the model does not read all of a query. {unknown('column', str(extra[0]), needed)}")
    return checked


def _complete(query: object, needed: Sequence[str]) -> Query:
    if not isinstance(query, Mapping):
        raise ValueError(
            f"queries must be dicts of column to value, or a table; got a list with a {type(query).__name__}."
        )
    missing = [name for name in needed if name not in query]
    if missing:
        raise ValueError(
            f"a query needs {list(needed)}, but one has {list(query)}: {missing[0]!r} is missing. Give None for what is not known."
        )
    return query


def with_contexts(rows: pl.DataFrame, contexts: Sequence[Query]) -> pl.DataFrame:
    """Rows of raw columns, in which contexts, one a row and all of the same columns, take the place of what was there.

    Raises:
        ValueError: a column that the rows do not have.
    """
    named = list(contexts[0]) if contexts else []
    extra = [name for name in named if name not in rows.columns]
    if extra:
        raise ValueError(f"the model does not read {extra[0]!r}; a context may hold {rows.columns}.")
    return rows.with_columns(query_frame(list(contexts), named).get_columns()) if named else rows


def signature(query: Query) -> tuple[tuple[str, str], ...]:
    """The types of a query's values: what may stand in one table with it has the same, but for missing values."""
    return tuple(sorted((name, kind) for name, value in query.items() if (kind := _kind(value)) is not None))


def _of_dicts(queries: Sequence[object], needed: Sequence[str]) -> pl.DataFrame:
    if not queries:
        raise ValueError(f"a query needs {list(needed)}, but these queries have no columns and 0 rows.")
    checked = [_complete(query, needed) for query in queries]
    columns = []
    for name in needed:
        values = [query[name] for query in checked]
        kinds = {kind for value in values if (kind := _kind(value)) is not None}
        if kinds == {"int", "float"} or kinds & {"list of float and int"}:  # JSON writes 2.0 as 2
            values, kinds = [_floats(value) for value in values], {"float"}
        if len(kinds) > 1:
            raise ValueError(
                f"column {name!r} of the queries holds values of several types: {', '.join(sorted(kinds))}."
            )
        try:
            columns.append(pl.Series(name, values, strict=True))
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"column {name!r} of the queries cannot be read: {error}") from error
    return pl.DataFrame(columns)


def _floats(value: object) -> object:
    """Numbers, in lists too, as floats."""
    if isinstance(value, (list, tuple)):
        return [_floats(element) for element in value]
    return float(value) if isinstance(value, int) else value


def _kind(value: object) -> str | None:
    """The type of a value, that of its elements for a list; None for one that is missing."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        kinds = {kind for element in value if (kind := _kind(element)) is not None}
        return f"list of {' and '.join(sorted(kinds))}" if kinds else None
    return type(value).__name__
