"""What a run makes of its tables before anything is trained, on made-up events."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config.config import Config
from twotower.experiment.recommending import _ids
from twotower.experiment.tables import read_tables

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
