"""Ragged columns against plain lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import twotower as tt
from twotower.data.batch import batch_size, example_batch, take

lists = st.lists(st.lists(st.integers(-5, 5), max_size=4), min_size=1, max_size=6)


@settings(derandomize=True, deadline=None)
@given(lists, st.data())
def test_take_is_indexing_a_list(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = tt.Ragged.from_lists(rows)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    assert ragged.take(torch.tensor(wanted, dtype=torch.int64)).to_lists() == [rows[i] for i in wanted]
    assert ragged.lengths().tolist() == [len(row) for row in rows]
    assert ragged.row_of_value().tolist() == [i for i, row in enumerate(rows) for _ in row]


def test_offsets_are_checked() -> None:
    with pytest.raises(ValueError, match=r"offsets must be int64 of shape \(B \+ 1,\), got torch.int32"):
        tt.Ragged(torch.ones(2), torch.tensor([0, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="these start at 0 and end at 3"):
        tt.Ragged(torch.ones(2), torch.tensor([0, 3])).check()
    with pytest.raises(ValueError, match="never fall"):
        tt.Ragged(torch.ones(2), torch.tensor([0, 3, 2])).check()


def test_a_batch_has_one_number_of_rows() -> None:
    batch = {"a": torch.arange(3), "b": tt.Ragged.from_lists([[1], [], [2, 3]])}
    assert batch_size(batch) == 3
    assert take(batch, torch.tensor([2, 0]))["b"].to_lists() == [[2, 3], [1]]
    with pytest.raises(ValueError, match="as many rows in each; got {'a': 3, 'c': 1}"):
        batch_size({"a": torch.arange(3), "c": torch.arange(1)})


def test_example_batch_has_every_kind_of_column() -> None:
    domain = {"domain": {"min": 0, "max": 3}}
    schema = tt.Schema(
        [
            tt.ColumnSchema("id", dtype="int64", properties=domain),
            tt.ColumnSchema("list", dtype="int64", is_list=True, properties=domain),
            tt.ColumnSchema("vector", dtype="float32", dims=((0, None), (5, 5))),
            tt.ColumnSchema("x", dtype="float32"),
        ]
    )
    made = example_batch(schema, rows=3)
    assert made["id"].dtype == torch.int64
    assert made["list"].to_lists() == [[0], [0], [0]]
    assert made["vector"].shape == (3, 5)
    assert made["x"].dtype == torch.float32
