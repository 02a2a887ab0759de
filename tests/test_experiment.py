"""What a run makes of its tables before anything is trained, on made-up events."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config.config import Config
from twotower.experiment.recommending import _ids
from twotower.experiment.tables import read_interactions, read_tables

ROWS = 300


def events(**more: Any) -> pl.DataFrame:
    """20 users, 15 items, one event at each moment."""
    rng = np.random.default_rng(0)
    base = {"who": rng.integers(0, 20, ROWS), "what": rng.integers(0, 15, ROWS), "at": np.arange(ROWS)}
    return pl.DataFrame(base | more)


def config_of(folder: Path, changes: dict[str, Any] | None = None, **tables: pl.DataFrame) -> Config:
    """A config whose tables are written into the folder; `interactions` are `events()` unless given."""
    data: dict[str, Any] = {"user": "who", "item": "what", "time": "at"}
    for name, table in ({"interactions": events()} | tables).items():
        table.write_parquet(folder / f"{name}.parquet")
        data[name] = str(folder / f"{name}.parquet")
    columns = {
        "what": {"kind": "categorical", "tags": ["item_id"]},
        "who": {"kind": "categorical", "tags": ["user_id"]},
    }
    evaluation = {"metrics": ["recall_at_5"], "slices": [], "baselines": ["popularity"], "remove_seen": False}
    config = Config.from_dict({"data": data, "columns": columns, "evaluation": evaluation})
    return config.with_changes(changes or {})


@pytest.mark.parametrize(
    ("table", "column", "said"),
    [
        ("users", "what", "data.users: .*users.parquet holds the column 'what', which in data.interactions"),
        ("users", "at", "data.users: .* holds the column 'at'"),
        ("items", "who", "data.items: .* holds the column 'who'"),
        ("users", "town", "'town' is read, but stands both in data.users and in data.interactions. Rename it"),
    ],
)
def test_no_table_takes_the_place_of_the_event(tmp_path: Path, table: str, column: str, said: str) -> None:
    owner = {"users": "who", "items": "what"}[table]
    own = pl.DataFrame({owner: range(20), column: range(20)})
    town = {"columns.town": {"kind": "categorical", "tags": ["user"]}}
    config = config_of(tmp_path, town, interactions=events(town=["a"] * ROWS), **{table: own})
    with pytest.raises(ValueError, match=said):
        read_tables(config)


def test_an_id_that_cannot_be_one_of_the_data_is_nobodys() -> None:
    whole = _ids([3, "4", "5.0", 6.0, "abc", "7.5", None, float("nan"), 2**70], pl.Int32())
    assert whole.to_list() == [3, 4, 5, 6, None, None, None, None, None]
    assert _ids([3, 4.0, None], pl.String()).to_list() == ["3", "4", None]
    assert _ids(["3", 4], pl.Float64()).to_list() == [3.0, 4.0]


def positive(folder: Path, values: list[Any], rule: dict[str, Any]) -> tuple[int, list[str]]:
    """How many rows a rule keeps of a column, and the notes."""
    table = events(stars=pl.Series(values * (ROWS // len(values)), strict=False))
    config = config_of(folder, {"data.positive": {"column": "stars", **rule}}, interactions=table)
    notes: list[str] = []
    return len(read_interactions(config, config.data.interactions, "data.interactions", notes)), notes


def test_refused_rows_are_told_of(tmp_path: Path) -> None:
    for hole in (None, float("nan")):
        kept, notes = positive(tmp_path, [5.0, 4.0, 1.0, hole], {"at_least": 4})
        assert (kept, notes) == (
            150,
            [
                "data.positive keeps 150 of 300 rows of data.interactions; it refuses 75, and 75 have no 'stars', which counts as "
                "refused."
            ],
        )
    assert positive(tmp_path, [5.0, 4.0], {"at_least": 4}) == (300, [])


@pytest.mark.parametrize(
    ("values", "one_of", "kept"),
    [
        ([5.0, 4.0, None], [5], 100),
        ([5, 4, 3], [5.0, "4"], 200),
        ([0.5, 1.0, 1.5], [0.5, 1], 200),
        (["buy", "view", None], ["buy"], 100),
        ([True, False], [True], 150),
    ],
)
def test_one_of_compares_numbers_as_numbers(tmp_path: Path, values: list[Any], one_of: list[Any], kept: int) -> None:
    assert positive(tmp_path, values, {"one_of": one_of})[0] == kept


def test_values_that_occur_nowhere_are_named(tmp_path: Path) -> None:
    assert "Of one_of 'buys' occur nowhere." in positive(tmp_path, ["buy", "view"], {"one_of": ["buy", "buys"]})[1][0]
    with pytest.raises(
        ValueError, match="keeps none of the 300 rows .* Of one_of 9, 'x', True occur nowhere. 'stars' holds"
    ):
        positive(tmp_path, [1, 2], {"one_of": [9, "x", True]})


def test_the_k_core_tells_what_it_leaves_out(tmp_path: Path) -> None:
    rare = pl.concat([events(), pl.DataFrame({"who": [99], "what": [99], "at": [ROWS]})])
    _, [note] = read_tables(config_of(tmp_path, {"data.k_core": 2}, interactions=rare))
    assert note.startswith("data.k_core: 2 keeps 300 of 301 rows, 20 of 21 'who', 15 of 16 'what'")


def test_nan_is_no_id(tmp_path: Path) -> None:
    table = events().with_columns(pl.when(pl.col("at") < 3).then(float("nan")).otherwise(pl.col("who")).alias("who"))
    with pytest.raises(ValueError, match="data.user: 3 of 300 rows of data.interactions have no 'who'"):
        read_tables(config_of(tmp_path, interactions=table))


@pytest.mark.parametrize("key", ["split.seed", "training.seed", "evaluation.seed", "tune.seed"])
def test_seeds_are_not_below_zero(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: got -1"):
        config_of(tmp_path, {key: -1})
