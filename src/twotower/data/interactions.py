"""Your own interaction table, from wherever it is, under standard names."""

from pathlib import Path

import fsspec
import polars as pl

from twotower.data.columns.values import INT64_MAX
from twotower.data.dataset import Dataset, Source
from twotower.data.delimited import read_delimited
from twotower.data.times import seconds
from twotower.errors import explain_options, unknown

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
Column = str | int


@explain_options
def load_interactions(
    source: Source,
    *,
    user: Column,
    item: Column,
    time: Column | None = None,
    rating: Column | None = None,
    separator: str | None = None,
    has_header: bool = True,
) -> pl.DataFrame:
    """Any table of who did what, with its columns under the names that the rest of the library's examples use.

    Args:
        source: path or URL of a text file (maybe gzipped), or whatever Dataset reads: Parquet, a frame, a dict.
        user, item: the columns of the ids, integers or text. Of text files, integers are those that are written as such, all
            of them: "007" is text.
        time: the column of the moment: numbers in s, ms, us or ns since 1970, told apart by their size, datetimes, or ISO
            text; no zone means UTC. It becomes whole seconds, rounded down.
        rating: the column of a number for the event, such as stars or plays.
        separator: of a text file, one character or several; by default "," of .csv and a tab of .tsv. With it, any file is
            read as text.
        has_header: the first line of a text file names the columns; if not, give their places, 0 the first.

    Returns:
        user_id, item_id (int64 or text), rating (float64) and timestamp (int64, seconds since 1970) as far as given, in
        the order of the rows.

    Raises:
        ValueError: unknown columns, nulls, ids of other types, times or ratings that cannot be read, no rows.

    Example:
        >>> clicks = {"who": ["ann", "bob"], "what": [7, 8], "when": ["2024-01-31", "2024-01-31T00:00:05Z"]}
        >>> load_interactions(clicks, user="who", item="what", time="when").rows()
        [('ann', 7, 1706659200), ('bob', 8, 1706659205)]
    """
    frame, is_text = _frame(source, separator, has_header)
    given = {"user_id": user, "item_id": item, "rating": rating, "timestamp": time}
    columns = {name: _column(frame, column) for name, column in given.items() if column is not None}
    if not len(frame):
        raise ValueError("the table has no rows.")
    for column in columns.values():
        _check_whole(column)
    made = {name: _ids(columns[name], is_text) for name in ("user_id", "item_id")}
    if rating is not None:
        made["rating"] = _ratings(columns["rating"])
    if time is not None:
        made["timestamp"] = seconds(columns["timestamp"])
    return pl.DataFrame(made)


def _frame(source: Source, separator: str | None, has_header: bool) -> tuple[pl.DataFrame, bool]:
    """The table, and whether it came as text."""
    if not isinstance(source, (str, Path)):
        if separator is not None or not has_header:
            raise ValueError(f"separator and has_header are for text files, but a {type(source).__name__} came.")
        return Dataset(source).to_polars(), False
    suffixes = [s for s in Path(source).suffixes if s != ".gz"]
    ending = suffixes[-1] if suffixes else ""
    between = separator or SEPARATORS.get(ending)
    if between is None:
        if ending and ending != ".parquet" and not Path(source).is_dir():
            raise ValueError(
                f"{source} is neither {', '.join(SEPARATORS)} nor .parquet: say the separator, such as separator='\\t'."
            )
        if not has_header:
            raise ValueError(f"has_header=False is for text files, but {source} would be read as Parquet.")
        return Dataset(source).to_polars(), False
    try:
        with fsspec.open(str(source), "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {source}.") from error
    return read_delimited(data, str(source), between, header=has_header), True


def _column(frame: pl.DataFrame, column: Column) -> pl.Series:
    if isinstance(column, int):
        if not 0 <= column < len(frame.columns):
            raise ValueError(f"there is no column {column}: the table has {len(frame.columns)}, counted from 0.")
        return frame.to_series(column)
    if column not in frame.columns:
        raise ValueError(unknown("column", column, frame.columns))
    return frame[column]


def _check_whole(column: pl.Series) -> None:
    if column.null_count():
        row = column.is_null().arg_true()[0]
        raise ValueError(
            f"column {column.name!r} has {column.null_count()} nulls in {len(column)} rows, the first in row {row}. Remove or fill "
            "them before."
        )


def _ids(column: pl.Series, is_text: bool) -> pl.Series:
    kind = column.dtype
    if kind.is_integer():
        if kind == pl.UInt64 and column.max() > INT64_MAX:  # type: ignore[operator]
            raise ValueError(
                f"column {column.name!r} holds {column.max()!r}, more than int64 can; make its ids text first."
            )
        return column.cast(pl.Int64)
    if kind in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if kind != pl.String:
        raise ValueError(f"ids are integers or text, but column {column.name!r} holds {kind}.")
    if is_text:
        numbers = column.cast(pl.Int64, strict=False)
        if (numbers.cast(pl.String) == column).fill_null(False).all():
            return numbers
    return column


def _ratings(column: pl.Series) -> pl.Series:
    known = column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String)
    values = column.cast(pl.Float64, strict=False) if known else pl.Series([None] * len(column), dtype=pl.Float64)
    wrong = values.is_null() | ~values.is_finite()
    if wrong.any():
        row = wrong.arg_true()[0]
        raise ValueError(f"ratings are finite numbers, but column {column.name!r} holds {column[row]!r} in row {row}.")
    return values
