"""Feature stores: one contract for every kind, and what each keeps on disk."""

import contextlib
import datetime
import math
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twotower as tt
from twotower.feature_stores.cells import from_cells, schema_from_text, schema_to_text, to_cells

USERS = pl.DataFrame(
    {
        "user": [3, 1, 2],
        "age": pl.Series([30, None, 2**62], dtype=pl.Int64),
        "height": pl.Series([0.1, -1e-300, None], dtype=pl.Float32),
        "active": [True, None, False],
        "name": ["Zoë 😀", None, '"quoted"'],
        "joined": [datetime.datetime(2024, 1, 31, 10, 0, 0, 123456), None, datetime.datetime(1969, 12, 31)],
        "day": [datetime.date(2024, 2, 29), None, datetime.date(1900, 1, 1)],
        "words": [["a", None, "b"], [], None],
        "times": [[datetime.datetime(2024, 1, 1, 1, 1, 1, 1)], None, []],
        "seen": [["x", "y"], [], None],
    }
)
Make = Callable[[pl.DataFrame, str], tt.FeatureStore]


def _redis(frame: pl.DataFrame, key: str) -> tt.FeatureStore:
    fakeredis = pytest.importorskip("fakeredis")
    return tt.RedisFeatures.create(fakeredis.FakeRedis(), frame, key)


@pytest.fixture(params=["parquet", "sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    kinds: dict[str, Make] = {
        "parquet": lambda frame, key: tt.ParquetFeatures(frame, key),
        "sqlite": lambda frame, key: tt.SQLiteFeatures.create(tmp_path / "users.sqlite", frame, key),
        "redis": _redis,
    }
    return kinds[request.param]


def test_some_ids_are_known_ones_each_once(make: Make) -> None:
    store = make(USERS, "user")
    assert sorted(store.some_ids(10)) == [1, 2, 3]
    two = store.some_ids(2)
    assert len(set(two)) == 2
    assert set(two) < {1, 2, 3}
    assert store.some_ids(2) == two
    store.remove([1, 2, 3])
    assert store.some_ids(5) == []


def test_rows_come_back_as_they_were_in_the_order_asked(make: Make) -> None:
    store = make(USERS, "user")
    assert len(store) == 3
    found = store.look_up([2, 9, 3, 2, 1])
    assert found.known == [True, False, True, True, True]
    assert found.seen == [[], [], ["x", "y"], [], []]
    expected = USERS.drop("seen")[[2, 0, 2, 1]]
    assert found.rows.filter(pl.Series(found.known)).equals(expected)
    assert found.rows.schema == expected.schema
    assert found.rows["user"].to_list() == [2, 9, 3, 2, 1]
    assert found.rows.drop("user")[1].equals(USERS.drop("user", "seen").clear(1))


def test_nothing_asked_nothing_found(make: Make) -> None:
    found = make(USERS, "user").look_up([])
    assert (len(found.rows), found.seen, found.known) == (0, [], [])
    assert found.rows.schema == USERS.drop("seen").schema


def test_put_replaces_and_adds_and_remove_forgets(make: Make) -> None:
    store = make(USERS, "user")
    changed = USERS.head(1).with_columns(age=pl.lit(31, pl.Int64), seen=pl.lit(["z"], pl.List(pl.String)))
    store.put(pl.concat([changed, changed.with_columns(user=pl.lit(7, pl.Int64))]))
    found = store.look_up([3, 7, 1])
    assert found.rows["age"].to_list() == [31, 31, None]
    assert found.seen == [["z"], ["z"], []]
    assert len(store) == 4
    store.remove([3, 999])
    assert store.look_up([3, 7]).known == [False, True]


def test_any_store_can_be_written_as_a_file(make: Make, tmp_path: Path) -> None:
    store = make(USERS, "user")
    store.write_sqlite(tmp_path / "copy.sqlite")
    copy = tt.SQLiteFeatures(tmp_path / "copy.sqlite", read_only=True)
    one, other = (s.look_up([1, 2, 3]) for s in (store, copy))
    assert one.rows.equals(other.rows)
    assert (one.seen, one.known) == (other.seen, other.known)


def test_keys_of_64_bits_without_a_sign(make: Make) -> None:
    ids = [2**64 - 1, 0, 2**63]
    store = make(pl.DataFrame({"user": pl.Series(ids, dtype=pl.UInt64), "n": [1, 2, 3]}), "user")
    assert store.look_up([2**63, 5, 2**64 - 1]).rows["n"].to_list() == [3, None, 1]
    assert sorted(store.some_ids(3)) == sorted(ids)
    store.remove([2**64 - 1])
    assert store.look_up(ids).known == [False, True, True]


def test_what_is_no_number_is_no_null(make: Make) -> None:
    values = [math.nan, None, math.inf, -math.inf, -0.0]
    frame = pl.DataFrame({"user": range(5), "x": values, "f": pl.Series(values, dtype=pl.Float32), "l": [values] * 5})
    found = make(frame, "user").look_up(range(5)).rows
    assert found.equals(frame)  # NaN equals NaN there
    assert math.copysign(1, found["x"][4]) == -1


@pytest.mark.parametrize(("column", "kind"), [("user", pl.Int128()), ("n", pl.Int128()), ("n", pl.List(pl.Int128))])
def test_integers_of_128_bits_are_refused(column: str, kind: pl.DataType, make: Make) -> None:
    wide = pl.DataFrame({"user": [1], "n": [1]}).with_columns(pl.Series(column, [None], dtype=kind))
    with pytest.raises(ValueError, match=f"column '{column}' holds .*Int128.* integers of up to 64 bits. Cast it"):
        make(wide, "user")


@pytest.mark.parametrize("make", ["sqlite", "redis"], indirect=True)
def test_columns_that_cannot_be_stored_are_refused_by_name(make: Make) -> None:
    with pytest.raises(ValueError, match="columns 'Age' and 'age' differ only in the case of letters.*Rename one"):
        make(pl.DataFrame({"user": [1], "Age": [1], "age": [2]}), "user")
    both = make(pl.DataFrame({"user": [1], "Ä": [1], "ä": [2]}), "user")  # these SQLite does tell apart
    assert both.look_up([1]).rows.to_dicts() == [{"user": 1, "Ä": 1, "ä": 2}]


def test_string_keys_and_no_seen(make: Make) -> None:
    store = make(pl.DataFrame({"who": ["1", "ü:*", ""], "n": [1, 2, 3]}), "who")
    found = store.look_up(["ü:*", "", "2"])
    assert found.rows["n"].to_list() == [2, 3, None]
    assert found.seen == [[], [], []]


@pytest.mark.parametrize(
    ("ids", "says"), [(["3"], "'3' is str"), ([3.0], "3.0 is float"), ([True], "True is bool"), ([2**63], "outside")]
)
def test_ids_of_another_type_are_refused(ids: list[object], says: str, make: Make) -> None:
    with pytest.raises(ValueError, match=says):
        make(USERS, "user").look_up(ids)  # type: ignore[arg-type]


def test_wrong_tables_are_refused_and_change_nothing(make: Make) -> None:
    with pytest.raises(ValueError, match="1 repeat"):
        make(pl.concat([USERS, USERS.head(1)]), "user")
    with pytest.raises(ValueError, match="unknown column 'usr'"):
        make(USERS, "usr")
    with pytest.raises(ValueError, match="'seen' must hold lists"):
        make(USERS.with_columns(seen=pl.lit("x")), "user")
    store = make(USERS, "user")
    wrong = {
        "lacks \\['name'\\]": USERS.drop("name"),
        "unknown column 'nam'": USERS.with_columns(nam=pl.lit(1)),
        "'age' holds String, but Int64": USERS.cast({"age": pl.String}),
        "1 of 3 are missing": USERS.with_columns(user=pl.Series([1, None, 8])),
    }
    for says, table in wrong.items():
        with pytest.raises(ValueError, match=says):
            store.put(table)
    assert store.look_up([3, 1, 2]).rows.equals(USERS.drop("seen"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "users.sqlite"
    tt.SQLiteFeatures.create(file, USERS, "user")
    with pytest.raises(ValueError, match="holds Struct"):
        tt.SQLiteFeatures.create(file, USERS.with_columns(s=pl.struct("age")), "user")
    assert tt.SQLiteFeatures(file).look_up([3]).known == [True]
    assert [p.name for p in tmp_path.iterdir()] == ["users.sqlite"]


def test_the_file_is_plain_sqlite_and_no_other_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "users.sqlite"
    tt.SQLiteFeatures.create(file, USERS, "user")
    with contextlib.closing(sqlite3.connect(file)) as other:
        row = other.execute("SELECT age, words FROM features WHERE user = 3").fetchone()
    assert row == (30, '["a", null, "b"]')
    with pytest.raises(ValueError, match="no feature store at"):
        tt.SQLiteFeatures(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(ValueError, match="is no feature store"):
        tt.SQLiteFeatures(tmp_path / "text")


def test_a_read_only_store_refuses_to_write(tmp_path: Path) -> None:
    tt.SQLiteFeatures.create(tmp_path / "users.sqlite", USERS, "user")
    store = tt.SQLiteFeatures(tmp_path / "users.sqlite", read_only=True)
    with pytest.raises(ValueError, match="read only"):
        store.put(USERS)
    with pytest.raises(ValueError, match="read only"):
        store.remove([3])
    assert store.look_up([3]).known == [True]


@pytest.mark.parametrize("old_stays", [True, False])
def test_a_read_only_store_goes_on_reading_the_file_that_it_opened(old_stays: bool, tmp_path: Path) -> None:
    """Threads that had not asked before too, when a folder with another table takes the place of its own."""
    for folder, table in {"served": {"user": [3], "age": [30]}, "next": {"user": [3], "town": ["x"]}}.items():
        tt.SQLiteFeatures.create(tmp_path / folder / "users.sqlite", table, "user")
    store = tt.SQLiteFeatures(tmp_path / "served" / "users.sqlite", read_only=True)
    (tmp_path / "served").rename(tmp_path / "previous")
    (tmp_path / "next").rename(tmp_path / "served")
    if not old_stays:
        shutil.rmtree(tmp_path / "previous")

    def ask(_: int) -> tuple[list[dict[str, object]], int, list[int | str]]:
        return store.look_up([3]).rows.to_dicts(), len(store), store.some_ids(2)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(50))) == [([{"user": 3, "age": 30}], 1, [3])] * 50
    store.write_sqlite(tmp_path / "copy.sqlite")
    assert tt.SQLiteFeatures(tmp_path / "copy.sqlite").look_up([3]).rows["age"].to_list() == [30]


def test_every_thread_goes_on_with_the_file_that_takes_the_place_of_another(tmp_path: Path) -> None:
    """Those that had asked before, and those that had not: nobody reads from one file and writes to another."""
    file = tmp_path / "users.sqlite"
    store = tt.SQLiteFeatures.create(file, {"user": [1, 2], "age": [30, 40]}, "user")
    with ThreadPoolExecutor(1) as early, ThreadPoolExecutor(1) as late:
        ask = lambda: store.look_up([1, 2, 3]).rows["age"].to_list()  # noqa: E731
        assert early.submit(ask).result() == ask() == [30, 40, None]
        tt.SQLiteFeatures.create(file, {"user": [2, 3], "age": [41, 50]}, "user")
        assert early.submit(ask).result() == late.submit(ask).result() == ask() == [None, 41, 50]
        tt.SQLiteFeatures.create(file, {"user": [2, 3], "age": [42, 51]}, "user")
        early.submit(store.put, {"user": [1], "age": [31]}).result()
        late.submit(store.remove, [2]).result()
        assert early.submit(ask).result() == late.submit(ask).result() == ask() == [31, None, 51]
        tt.SQLiteFeatures.create(file, {"user": [1], "height": [180]}, "user")
        for thread in (early, late):
            for use in (ask, lambda: store.put({"user": [1], "age": [1]}), ask):
                with pytest.raises(ValueError, match="written anew with other columns than .*Open the store again"):
                    thread.submit(use).result()
        file.unlink()
        with pytest.raises(ValueError, match="is gone"):
            early.submit(ask).result()
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_replaced_in_the_middle_of_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal would be rolled back into the new file."""
    file = tmp_path / "users.sqlite"
    store = tt.SQLiteFeatures.create(file, {"user": [1], "age": [30]}, "user")
    monkeypatch.setattr("twotower.feature_stores.sqlite.PATIENCE", 0.05)
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("UPDATE features SET age = 31")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            tt.SQLiteFeatures.create(file, {"user": [1], "age": [50]}, "user")
        assert store.look_up([1]).rows["age"].to_list() == [30]
        other.commit()
    tt.SQLiteFeatures.create(file, {"user": [1], "age": [50]}, "user")
    assert store.look_up([1]).rows["age"].to_list() == [50]
    file.write_bytes(b"no database")
    tt.SQLiteFeatures.create(file, {"user": [1], "age": [60]}, "user")
    assert store.look_up([1]).rows["age"].to_list() == [60]


def test_a_read_only_store_leaves_the_file_and_its_folder_alone(tmp_path: Path) -> None:
    """It takes no lock, so waits for none, and makes none of the files that SQLite keeps beside one that is written to."""
    file = tmp_path / "users.sqlite"
    tt.SQLiteFeatures.create(file, USERS, "user")
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert tt.SQLiteFeatures(file, read_only=True).look_up([3]).known == [True]
        other.rollback()
        other.execute("PRAGMA journal_mode = WAL")
    before = file.read_bytes()
    assert tt.SQLiteFeatures(file, read_only=True).look_up([3]).known == [True]
    assert [p.name for p in tmp_path.iterdir()] == ["users.sqlite"]
    assert file.read_bytes() == before


@pytest.mark.parametrize("replaced", [True, False])
def test_a_read_that_trips_over_a_replaced_file_is_made_again(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's error says nothing of the file that stands there now; of the file that was read before it is one."""
    file, people = tmp_path / "users.sqlite", pl.DataFrame({"user": [1], "a": [0]})
    store = tt.SQLiteFeatures.create(file, people, "user")
    assert store.look_up([1]).rows["a"].to_list() == [0]
    true_connection = store._connection
    tripped: list[bool] = []

    class Trips:
        def execute(self, *_: object) -> None:
            tripped.append(True)
            if replaced:
                tt.SQLiteFeatures.create(file, people.with_columns(a=pl.lit(7, pl.Int64)), "user")
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "_connection", lambda: true_connection() if tripped else Trips())
    if replaced:
        assert store.look_up([1]).rows["a"].to_list() == [7]
    else:
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            store.look_up([1])


def test_a_writer_and_many_readers_at_once(tmp_path: Path) -> None:
    """Every row that is read is one that was written whole."""
    people = pl.DataFrame({"user": range(200), "a": [0] * 200, "b": [[0]] * 200})
    store = tt.SQLiteFeatures.create(tmp_path / "users.sqlite", people, "user")
    wrong: list[object] = []

    def read() -> None:
        try:
            for _ in range(30):
                rows = store.look_up(list(range(200))).rows
                wrong.extend(rows.filter(pl.col("b").list.first() != pl.col("a")).to_dicts())
        except Exception as error:
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    for turn in range(1, 10):
        store.put(people.with_columns(a=pl.lit(turn, pl.Int64), b=pl.lit([turn], pl.List(pl.Int64))))
    for thread in readers:
        thread.join()
    assert wrong == []


def test_other_columns_under_the_same_prefix_in_redis() -> None:
    """No value is ever read as another column's: the rows of the older table go, and a store that is open says so."""
    client = pytest.importorskip("fakeredis").FakeRedis()
    old = tt.RedisFeatures.create(client, {"user": [1, 2], "age": [30, 40], "seen": [[1], [2]]}, "user")
    new = tt.RedisFeatures.create(client, {"user": [2], "height": [180], "seen": [[3]]}, "user")
    assert new.look_up([1, 2]).rows["height"].to_list() == [None, 180]
    assert (len(new), new.some_ids(5)) == (1, [2])
    for use in (lambda: old.look_up([1]), lambda: old.put({"user": [1], "age": [1], "seen": [[4]]}), lambda: len(old)):
        with pytest.raises(ValueError, match="written anew with other columns than .*Open the store again"):
            use()
    assert len(client.keys()) == 4  # what the table is, its generation and lease, and its row


def test_an_open_store_goes_on_with_a_new_table_of_the_same_columns_in_redis() -> None:
    client = pytest.importorskip("fakeredis").FakeRedis()
    store = tt.RedisFeatures.create(client, {"user": [1, 2], "age": [30, 40]}, "user")
    tt.RedisFeatures.create(client, {"user": [2, 3], "age": [41, 50]}, "user")
    assert store.look_up([1, 2, 3]).rows["age"].to_list() == [None, 41, 50]
    store.put({"user": [3], "age": [51]})
    store.remove([2])
    assert tt.RedisFeatures(client).look_up([1, 2, 3]).rows["age"].to_list() == [None, None, 51]


def test_a_failed_create_in_redis_leaves_the_older_table(monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("fakeredis").FakeRedis()
    store = tt.RedisFeatures.create(client, {"user": [1], "age": [30]}, "user")
    before = client.keys()
    with monkeypatch.context() as patched, pytest.raises(ConnectionError):
        patched.setattr(client, "getset", lambda *_: (_ for _ in ()).throw(ConnectionError()))
        tt.RedisFeatures.create(client, {"user": [1, 2], "age": [31, 32]}, "user")
    assert client.keys() == before
    assert store.look_up([1]).rows["age"].to_list() == [30]


def test_what_a_killed_create_left_in_redis_goes_once_its_lease_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("fakeredis").FakeRedis()
    store = tt.RedisFeatures.create(client, {"user": [1], "age": [30]}, "user")
    with monkeypatch.context() as patched, pytest.raises(ConnectionError):
        for broken in ("getset", "delete", "scan_iter"):
            patched.setattr(client, broken, lambda *_, **__: (_ for _ in ()).throw(ConnectionError()))
        tt.RedisFeatures.create(client, {"user": [1, 2], "age": [31, 32]}, "user")
    (dead,) = {n.decode().split(":")[-1] for n in client.keys("*writing*")} - {store._generation}
    rows = lambda: client.keys(f"*{dead}:*")  # noqa: E731
    assert len(rows()) == 2
    store.put({"user": [3], "age": [33]})
    tt.RedisFeatures.create(client, {"user": [1], "age": [40]}, "user")
    assert len(rows()) == 2  # it may be at work
    client.delete(f"twotower:users/writing:{dead}")  # as an hour later
    tt.RedisFeatures.create(client, {"user": [1], "age": [41]}, "user")
    assert rows() == []
    assert store.look_up([1]).rows["age"].to_list() == [41]
    assert len(client.keys()) == 4


def test_a_writer_that_lost_its_lease_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows may have been taken for a dead one's."""
    client = pytest.importorskip("fakeredis").FakeRedis()
    store = tt.RedisFeatures.create(client, {"user": [1], "age": [30]}, "user")
    mset = client.mset

    def slow(rows: dict[str, str]) -> None:
        mset(rows)
        client.delete(*client.keys("*writing*"))

    monkeypatch.setattr(client, "mset", slow)
    with pytest.raises(ValueError, match="stood still for 3600 seconds"):
        tt.RedisFeatures.create(client, {"user": [1], "age": [31]}, "user")
    assert store.look_up([1]).rows["age"].to_list() == [30]


def test_prefixes_in_redis_do_not_see_each_other(tmp_path: Path) -> None:
    client = pytest.importorskip("fakeredis").FakeRedis()
    prefixes = ["p", "p:beta", "p/x", "p*", "[p]", "p?x", "\\p"]
    stores = [tt.RedisFeatures.create(client, {"user": [n], "n": [n]}, "user", p) for n, p in enumerate(prefixes)]
    for number, store in enumerate(stores):
        assert (len(store), store.some_ids(9)) == (1, [number])
        store.write_sqlite(tmp_path / "copy.sqlite")
        assert tt.SQLiteFeatures(tmp_path / "copy.sqlite").some_ids(9) == [number]
    tt.RedisFeatures.create(client, {"user": [9], "other": [1.5]}, "user", "p*")
    assert [len(store) for store in stores if store.prefix != "p*"] == [1] * 6


VALUES = {
    pl.Int64(): st.integers(-(2**63), 2**63 - 1),
    pl.UInt8(): st.integers(0, 255),
    pl.UInt64(): st.integers(0, 2**64 - 1),
    pl.Float64(): st.floats(),
    pl.String(): st.text(st.characters(exclude_categories=["Cs"])),
    pl.Boolean(): st.booleans(),
    pl.Datetime("ns"): st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)),
    pl.Datetime("us", "UTC"): st.datetimes(timezones=st.just(datetime.timezone.utc)),
    pl.Duration("ms"): st.integers(-(10**9), 10**9).map(lambda n: datetime.timedelta(milliseconds=n)),
}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_cells_lose_nothing(data: st.DataObject) -> None:
    columns = []
    rows = data.draw(st.integers(0, 4))
    for number, (kind, values) in enumerate(VALUES.items()):
        some = st.none() | values
        columns.append(pl.Series(f"c{number}", data.draw(st.lists(some, min_size=rows, max_size=rows)), dtype=kind))
        lists = st.none() | st.lists(some, max_size=3)
        drawn = data.draw(st.lists(lists, min_size=rows, max_size=rows))
        columns.append(pl.Series(f"l{number}", drawn, dtype=pl.List(kind)))
    frame = pl.DataFrame(columns)
    assert schema_from_text(schema_to_text(frame.schema)) == frame.schema
    assert from_cells(to_cells(frame), frame.schema).equals(frame)
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE cells ({', '.join(frame.columns)})")
        places = ", ".join("?" * frame.width)
        database.executemany(f"INSERT INTO cells VALUES ({places})", to_cells(frame))
        kept = database.execute("SELECT * FROM cells ORDER BY rowid").fetchall()
    assert from_cells(kept, frame.schema).equals(frame)
