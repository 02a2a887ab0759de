"""MovieLens in its official formats, and anybody's interaction table."""

import datetime
import gzip
import zipfile
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import twotower as tt
from twotower.data.times import seconds

FLAGS = "0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0|0"
SETS = {
    "ml-100k": {
        "u.data": "1\t2\t5\t881250949\n3\t1\t2\t891717742\n",
        "u.user": "1|24|M|technician|85711\n3|53|F|other|T8H1N\n",
        "u.item": f"1|Café Noir (1995)|01-Jan-1995||http://x|{FLAGS}\n2|unknown||||1|{FLAGS[2:]}\n",
    },
    "ml-1m": {
        "ratings.dat": "1::2::5::978300760\n3::1::3::978302109\n",
        "users.dat": "1::F::1::10::48067\n3::M::56::16::70072\n",
        "movies.dat": '1::"1" Café Noir (1995)::Comedy|Drama\n2::Hut | Co: A, B (2000)::Film-Noir\n',
    },
    "ml-25m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,2,4.5,1147880044\n3,1,0.5,1147868817\n",
        "movies.csv": 'movieId,title,genres\n1,"Café ""Noir"", A (1995) ",Comedy|Drama\n2,Sans an,(no genres listed)\n',
        "tags.csv": "userId,movieId,tag,timestamp\n",
    },
}  # fmt: skip


def written(folder: Path, name: str, nested: bool = False) -> Path:
    inner = folder / name if nested else folder
    inner.mkdir(exist_ok=True, parents=True)
    for file, text in SETS[name].items():
        (inner / file).write_bytes(text.encode("utf-8" if name == "ml-25m" else "latin-1"))
    return folder


def zipped(folder: Path, name: str) -> Path:
    path = folder / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/", "")
        for file, text in SETS[name].items():
            archive.writestr(f"{name}/{file}", text.encode("utf-8" if name == "ml-25m" else "latin-1"))
    return path


EXPECTED = {
    "ml-100k": (
        [(1, 2, 5.0, 881250949), (3, 1, 2.0, 891717742)],
        [(1, "Café Noir (1995)", 1995, ["Comedy", "Drama"]), (2, "unknown", None, ["unknown", "Comedy", "Drama"])],
        [(1, 24, "M", "technician", "85711"), (3, 53, "F", "other", "T8H1N")],
    ),
    "ml-1m": (
        [(1, 2, 5.0, 978300760), (3, 1, 3.0, 978302109)],
        [(1, '"1" Café Noir (1995)', 1995, ["Comedy", "Drama"]), (2, "Hut | Co: A, B (2000)", 2000, ["Film-Noir"])],
        [(1, 1, "F", "10", "48067"), (3, 56, "M", "16", "70072")],
    ),
    "ml-25m": (
        [(1, 2, 4.5, 1147880044), (3, 1, 0.5, 1147868817)],
        [(1, 'Café "Noir", A (1995) ', 1995, ["Comedy", "Drama"]), (2, "Sans an", None, [])],
        None,
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_movielens_as_it_comes(tmp_path: Path, name: str) -> None:
    ratings, movies, users = EXPECTED[name]
    for place in (
        written(tmp_path / "flat", name),
        written(tmp_path / "nested", name, nested=True),
        zipped(tmp_path, name),
    ):
        data = tt.load_movielens(place)
        assert data.ratings.columns == ["user_id", "item_id", "rating", "timestamp"]
        assert data.ratings.rows() == ratings
        assert data.movies.rows() == movies
        assert data.movies.schema["genres"] == pl.List(pl.String)
        assert (None if data.users is None else data.users.rows()) == users


def test_movielens_that_is_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"does not exist.*does not download.*https://grouplens.org/datasets/movielens/"
    ):
        tt.load_movielens(tmp_path / "ml-1m.zip")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="neither a folder nor a .zip"):
        tt.load_movielens(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"no MovieLens set: expected u.data, .*found \['a.txt'\]"):
        tt.load_movielens(tmp_path)
    both = written(written(tmp_path / "both", "ml-1m", nested=True), "ml-25m", nested=True)
    with pytest.raises(ValueError, match="several sets"):
        tt.load_movielens(both)
    folder = written(tmp_path / "set", "ml-1m")
    (folder / "ratings.dat").write_text("1::2::5::978300760\n3::1::3\n")
    with pytest.raises(ValueError, match="row 1 of the data, .*is damaged: 'timestamp' is None"):
        tt.load_movielens(folder)
    (folder / "ratings.dat").write_text("1::2::5::978300760\n3::1::3::4::5\n")
    with pytest.raises(ValueError, match="ratings.dat cannot be read as a table"):
        tt.load_movielens(folder)
    (folder / "ratings.dat").write_text("1:2:5:978300760\n")
    with pytest.raises(ValueError, match="ratings.dat is not as MovieLens wrote it: expected 4 columns.*got 1"):
        tt.load_movielens(folder)
    written(folder, "ml-1m")
    (folder / "movies.dat").unlink()
    with pytest.raises(ValueError, match="movies.dat is missing beside"):
        tt.load_movielens(folder)


ROWS = {"who": ["ann", "bob", "ann"], "what": [7, 3_000_000_000, 7], "stars": [1.0, 2.5, 5.0], "when": [30, 20, 10]}
EXPECTED_ROWS = [("ann", 7, 1.0, 30), ("bob", 3_000_000_000, 2.5, 20), ("ann", 7, 5.0, 10)]
NAMES = {"user": "who", "item": "what", "time": "when", "rating": "stars"}


def test_one_table_from_anywhere(tmp_path: Path) -> None:
    frame = pl.DataFrame(ROWS)
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "c.dat").write_text("ann::7::1::30\nbob::3000000000::2.5::20\nann::7::5.0::10\n")
    for source in (
        ROWS,
        frame,
        pd.DataFrame(ROWS),
        *(tmp_path / n for n in ("a.csv", "a.tsv", "b.csv.gz", "a.parquet")),
    ):
        made = tt.load_interactions(source, **NAMES)
        assert made.columns == ["user_id", "item_id", "rating", "timestamp"]
        assert made.rows() == EXPECTED_ROWS
    places = {"user": 0, "item": 1, "rating": 2, "time": 3}
    assert (
        tt.load_interactions(str(tmp_path / "c.dat"), **places, separator="::", has_header=False).rows()
        == EXPECTED_ROWS
    )
    assert tt.load_interactions(ROWS, user="who", item="what").columns == ["user_id", "item_id"]


def test_ids_keep_what_they_say(tmp_path: Path) -> None:
    """007 and 7 are two items; int64's neighbours beyond 2^53 stay apart."""
    (tmp_path / "a.csv").write_text("u,i,j\n1,007,9007199254740993\n2,7,9007199254740992\n")
    made = tt.load_interactions(tmp_path / "a.csv", user="u", item="i")
    assert made.rows() == [(1, "007"), (2, "7")]
    assert tt.load_interactions(tmp_path / "a.csv", user="u", item="j")["item_id"].to_list() == [2**53 + 1, 2**53]
    # a frame's text ids are text
    assert tt.load_interactions({"u": ["1"], "i": ["2"]}, user="u", item="i").rows() == [("1", "2")]


MOMENT = 1_706_695_200  # 2024-01-31 10:00:00 UTC, by date -u -d '2024-01-31 10:00' +%s


@pytest.mark.parametrize(
    "times",
    [
        [MOMENT, MOMENT + 1],
        [MOMENT * 1000 + 999, MOMENT * 1000 + 1000],
        [MOMENT * 10**6 + 5, (MOMENT + 1) * 10**6],
        [MOMENT * 10**9 + 999_999_999, (MOMENT + 1) * 10**9],
        [MOMENT + 0.75, MOMENT + 1.25],
        [str(MOMENT), str(MOMENT + 1)],
        ["2024-01-31 10:00:00", "2024-01-31T10:00:01Z"],
        ["2024-01-31T11:00:00.999+01:00", "2024-01-31 04:30:01-0530"],
        [datetime.datetime(2024, 1, 31, 10), datetime.datetime(2024, 1, 31, 10, 0, 1)],
    ],
)
def test_times_become_seconds(times: list[object]) -> None:
    made = seconds(pl.Series("t", times))
    assert made.dtype == pl.Int64
    assert made.to_list() == [MOMENT, MOMENT + 1]


def test_more_times() -> None:
    berlin = pl.Series([datetime.datetime(2024, 1, 31, 10)]).dt.convert_time_zone("Europe/Berlin")
    for one in (berlin, berlin.cast(pl.Datetime("ns", "Europe/Berlin")), pl.Series(["2024-01-31 10:00"])):
        assert seconds(one).to_list() == [MOMENT]
    assert seconds(pl.Series([datetime.date(2024, 1, 31)])).to_list() == [MOMENT - 36_000]
    assert seconds(pl.Series(["2024-01-31"])).to_list() == [MOMENT - 36_000]
    before = datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)
    assert seconds(pl.Series([before])).to_list() == [-1]  # rounded down, before 1970 too
    assert seconds(pl.Series([1, 2, 3])).to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2024-01-31", "soon", "later"], "'t' holds 'soon' in row 1, and 1 more that are no times: expected ISO 8601"),
        (["2024-02-30"], "'2024-02-30' in row 0"),
        (["2024-01-31", None], "1 times missing"),
        ([MOMENT, MOMENT * 1000], "the first would be seconds since 1970, the last milliseconds"),
        ([0, MOMENT * 1000], "remove zeros"),
        ([20240131, 20240201], "dates written as numbers, such as 20240131"),
        ([float("nan")], "nan or infinite"),
        ([True], "holds Boolean, not times"),
    ],
)
def test_what_is_no_time_is_said(times: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seconds(pl.Series("t", times, strict=False))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (ROWS, {"item": "whta"}, "unknown column 'whta'.*Did you mean 'what'"),
        (ROWS, {"item": 9}, "no column 9: the table has 4, counted from 0"),
        ({**ROWS, "what": [1, None, None]}, {}, "'what' has 2 nulls in 3 rows, the first in row 1"),
        ({**ROWS, "what": [1.0, 2.0, 3.0]}, {}, "ids are integers or text, but column 'what' holds Float64"),
        ({**ROWS, "stars": ["1", "good", "2"]}, {}, "'stars' holds 'good' in row 1"),
        ({**ROWS, "when": ["x"] * 3}, {}, "'when' holds 'x' in row 0"),
        ({name: column[:0] for name, column in ROWS.items()}, {}, "no rows"),
        (ROWS, {"separator": ","}, "separator and has_header are for text files, but a dict came"),
        ("clicks.dat", {}, r"say the separator"),
        ("clicks.csv", {}, "there is no file clicks.csv"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said(source: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tt.load_interactions(source, **NAMES | options)  # type: ignore[arg-type]
