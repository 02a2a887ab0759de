"""Items by their words."""

import polars as pl
import pytest

from twotower.serving.items import Items
from twotower.serving.searching import ItemSearch

FILMS = pl.DataFrame(
    {
        "id": ["tt1", "tt2", "a/b", "TT10", "matrix", "x"],
        "title": [
            "The Matrix (1999)",
            "Matrix Reloaded",
            "Amélie  Poulain!",
            "Straße nach Łódź",
            "No title in common",
            None,
        ],
        "makers": ["Wachowski", None, "Jeunet, Matrixine", "ĐORĐE", "", "Dramatrix"],
        "genres": [["Action", "Sci-Fi"], [], ["Café noir"], None, ["Drama"], ["Sci-Fi", None]],
        "year": [1999, 2003, 2001, 1950, 1, 2],
    }
)


@pytest.fixture(scope="module")
def search() -> ItemSearch:
    return ItemSearch(Items(FILMS, "id"), "title")


def test_the_best_come_first(search: ItemSearch) -> None:
    """The id itself, the title's beginning, a word of the title, a word of another text, and a part of a word."""
    assert search.find("Matrix") == ["matrix", "tt2", "tt1", "a/b", "x"]
    assert search.find("matrix", limit=2) == ["matrix", "tt2"]
    assert search.find("matrix", limit=1) == ["matrix"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("amelie", ["a/b"]),
        ("AMÉLIE poulain", ["a/b"]),
        ("poul ame", ["a/b"]),
        ("strasse lodz", ["TT10"]),
        ("djordje", []),
        ("dorde", ["TT10"]),
        ("sci-fi", ["x", "tt1"]),  # of equal rank, the one without a title is shorter
        ("cafe", ["a/b"]),
        ("reloaded wachowski", []),  # words of two items
        ("a/b", ["a/b"]),
        ("TT1", ["tt1", "TT10"]),
        ("tt10", ["TT10"]),
        ("", []),
        ("   ", []),
        ("!?", []),
        ("%' OR 1=1 --", []),
        ("(1999", ["tt1"]),
        ("[", []),
        ("1999 " * 40, ["tt1"]),
    ],
)
def test_words_are_found_whatever_their_case_and_accents(search: ItemSearch, text: str, found: list[str]) -> None:
    assert search.find(text) == found


def test_whole_numbers_as_ids_and_no_texts_at_all() -> None:
    search = ItemSearch(Items(pl.DataFrame({"id": [12, 123, 5, 512]}), "id"), "")
    assert search.find("12") == [12, 123]
    assert search.find("5") == [5, 512]
    assert search.find("twelve") == []
