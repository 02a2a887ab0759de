"""The data that ships with the package."""

from dataclasses import dataclass
from importlib.resources import files

import polars as pl


@dataclass(frozen=True)
class MovieTweetings:
    """Ratings (user_id, item_id, rating 0-10, timestamp in seconds) and movies (item_id, title, year, genres)."""

    ratings: pl.DataFrame
    movies: pl.DataFrame


def load_movietweetings() -> MovieTweetings:
    """MovieTweetings-100K: 100,000 ratings of 10,506 films by 16,554 people, 28 February to 1 September 2013.

    MIT licence, copyright (c) 2013 Simon Dooms; the notice lies beside the files. Source: S. Dooms, T. De Pessemier
    and L. Martens, "MovieTweetings: a Movie Rating Dataset Collected From Twitter", CrowdRec at RecSys 2013.

    Example:
        >>> load_movietweetings().movies["title"][2]
        'The Birth of a Nation (1915)'
    """
    folder = files("twotower") / "data" / "movietweetings-100k"
    tables = [pl.read_parquet((folder / f"{name}.parquet").read_bytes()) for name in ("ratings", "movies")]
    return MovieTweetings(*tables)
