"""MovieLens as its readers download it: ml-100k, ml-1m, ml-10m, ml-20m and later."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from twotower.data.delimited import read_delimited
from twotower.files import PathLike

HOME = "https://grouplens.org/datasets/movielens/"
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
NO_GENRES = "(no genres listed)"
MARKERS = ("u.data", "ratings.dat", "ratings.csv")  # each format's file of ratings
RATINGS = ("user_id", "item_id", "rating", "timestamp")


@dataclass(frozen=True, eq=False)
class MovieLens:
    """Tables of a MovieLens set.

    Args:
        ratings: user_id, item_id (int64), rating (float32, 0.5 to 5 stars), timestamp (int64, seconds since 1970).
        movies: item_id, title (with the year, as in the file), year (int16, null where the title has none), genres
            (list of text, empty where none is listed).
        users: of ml-100k and ml-1m: user_id, age (of ml-1m: the first year of the group), gender, occupation (of ml-1m: its
            code), zip_code; None of later sets.
    """

    ratings: pl.DataFrame
    movies: pl.DataFrame
    users: pl.DataFrame | None


def load_movielens(path: PathLike) -> MovieLens:
    """Read a MovieLens set from the official files; nothing is downloaded, since its licence forbids to pass it on.

    Known are ml-100k (u.data), ml-1m and ml-10m (ratings.dat), ml-20m, ml-25m, ml-32m and ml-latest (ratings.csv). Cite F. M.
    Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.

    Args:
        path: the .zip from https://grouplens.org/datasets/movielens/, or the folder that it was unpacked to.

    Raises:
        ValueError: nothing there, files that are not MovieLens's, or damaged ones.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\\n1,7,4.5,978300760\\n")
        >>> _ = (folder / "movies.csv").write_text("movieId,title,genres\\n7,Some Film (1999),Comedy|Drama\\n")
        >>> load_movielens(folder).movies.row(0)
        (7, 'Some Film (1999)', 1999, ['Comedy', 'Drama'])
    """
    files = _files(Path(path))
    for marker, read in zip(MARKERS, (_read_100k, _read_dat, _read_csv), strict=True):
        if marker in files:
            return read(files)
    raise ValueError(
        f"{path} holds no MovieLens set: expected u.data, ratings.dat or ratings.csv, found {sorted(files)[:10]}. Give the .zip "
        f"from {HOME} or the folder it was unpacked to."
    )


Files = dict[str, Callable[[], bytes]]


def _files(path: Path) -> Files:
    """The files of a folder (or of the only folder in it that holds a set), or of a zip, by their names alone."""
    if path.is_dir():
        found = [p for p in path.iterdir() if p.is_file()]
        if not any(p.name in MARKERS for p in found):
            found += [p for p in path.glob("*/*") if p.is_file()]
        return _by_name([(p.as_posix(), p.name, p.read_bytes) for p in found], path)
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX")]
        return _by_name([(n, n.rsplit("/", 1)[-1], _reader(path, n)) for n in names], path)
    what = "is neither a folder nor a .zip" if path.exists() else "does not exist"
    raise ValueError(
        f"{path} {what}. twotower does not download MovieLens, whose licence forbids to pass it on: get a set, such as "
        f"ml-1m.zip, from {HOME} and give its path."
    )


def _reader(path: Path, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    return read


def _by_name(found: Sequence[tuple[str, str, Callable[[], bytes]]], path: Path) -> Files:
    markers = [full for full, name, _ in found if name in MARKERS]
    if len(markers) > 1:
        raise ValueError(f"{path} holds several sets: {markers}. Give the folder of one.")
    return {name: read for _, name, read in found}


def _read_100k(files: Files) -> MovieLens:
    ratings = _table(files, "u.data", "\t", RATINGS)
    users = _table(files, "u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code"))
    flags = [f"genre {number}" for number in range(len(GENRES_100K))]
    movies = _table(files, "u.item", "|", ("item_id", "title", "released", "on_video", "address", *flags))
    named = [pl.when(pl.col(flag) == "1").then(pl.lit(g)) for flag, g in zip(flags, GENRES_100K, strict=True)]
    return MovieLens(
        _ratings(ratings),
        _movies(movies.with_columns(pl.concat_list(named).list.drop_nulls().alias("genres"))),
        _users(users),
    )


def _read_dat(files: Files) -> MovieLens:
    ratings = _table(files, "ratings.dat", "::", RATINGS)
    movies = _table(files, "movies.dat", "::", ("item_id", "title", "genres"))
    people = ("user_id", "gender", "age", "occupation", "zip_code")
    users = _users(_table(files, "users.dat", "::", people)) if "users.dat" in files else None
    return MovieLens(_ratings(ratings), _movies(_listed(movies)), users)


def _read_csv(files: Files) -> MovieLens:
    ratings = _table(files, "ratings.csv", ",", RATINGS, header=("userId", "movieId", "rating", "timestamp"))
    movies = _table(files, "movies.csv", ",", ("item_id", "title", "genres"), header=("movieId", "title", "genres"))
    return MovieLens(_ratings(ratings), _movies(_listed(movies)), None)


def _table(
    files: Files, name: str, separator: str, columns: Sequence[str], header: Sequence[str] | None = None
) -> pl.DataFrame:
    """A file's columns as text, by our names."""
    if name not in files:
        raise ValueError(f"{name} is missing beside {sorted(files)[:10]}. Unpack the whole set from {HOME}.")
    frame = read_delimited(files[name](), name, separator, header=header is not None, quoted=header is not None)
    if len(frame.columns) != len(columns) or (header is not None and frame.columns != list(header)):
        expected = f"the columns {list(header)}" if header is not None else f"{len(columns)} columns"
        came = frame.columns if header is not None else len(frame.columns)
        raise ValueError(
            f"{name} is not as MovieLens wrote it: expected {expected} with separator {separator!r}, got {came}."
        )
    return frame.rename(dict(zip(frame.columns, columns, strict=True)))


def _ratings(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(
        _number(table, "user_id", pl.Int64()),
        _number(table, "item_id", pl.Int64()),
        _number(table, "rating", pl.Float32()),
        _number(table, "timestamp", pl.Int64()),
    )


def _movies(table: pl.DataFrame) -> pl.DataFrame:
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int16).alias("year")
    return table.select(_number(table, "item_id", pl.Int64()), "title", year, "genres")


def _users(table: pl.DataFrame) -> pl.DataFrame:
    numbers = [_number(table, "user_id", pl.Int64()), _number(table, "age", pl.Int64())]
    return table.with_columns(numbers).select("user_id", "age", "gender", "occupation", "zip_code")


def _listed(movies: pl.DataFrame) -> pl.DataFrame:
    named = pl.col("genres").fill_null(NO_GENRES)
    empty = pl.lit([], dtype=pl.List(pl.String))
    return movies.with_columns(pl.when(named == NO_GENRES).then(empty).otherwise(named.str.split("|")).alias("genres"))


def _number(table: pl.DataFrame, name: str, kind: pl.DataType) -> pl.Series:
    values = table[name].cast(kind, strict=False)
    if values.null_count():
        row = values.is_null().arg_true()[0]
        raise ValueError(
            f"row {row} of the data, {table.row(row)}, is damaged: {name!r} is {table[name][row]!r}, expected a number."
        )
    return values
