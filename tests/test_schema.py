"""Schema: tags, domains, shapes and selections, by hand; Merlin's known faults put right."""

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch

import twotower as tt
from twotower import ColumnSchema, Schema, Tags, TagSet
from twotower.schema import schema_from_arrow

DOMAIN = {"domain": {"min": 0, "max": 9, "name": "thing"}}
USER = ColumnSchema("user_id", tags=[Tags.USER_ID, Tags.CATEGORICAL], dtype="int64", properties=DOMAIN)
AGE = ColumnSchema("age", tags=[Tags.USER, Tags.CONTINUOUS], dtype="float32")
ITEM = ColumnSchema("item_id", tags=["ITEM_ID", "premium"], dtype="int64")
CLICK = ColumnSchema("click", tags=[Tags.BINARY_CLASSIFICATION], dtype="bool")
SCHEMA = Schema([USER, AGE, ITEM, CLICK])


def test_compound_tags_fall_apart_and_are_found_again() -> None:
    assert set(TagSet(Tags.USER_ID)) == {Tags.USER, Tags.ID}
    assert Tags.USER_ID in TagSet([Tags.USER, Tags.ID])
    assert Tags.ITEM_ID not in TagSet(Tags.USER_ID)
    assert Tags.ITEM_ID in ITEM.tags  # "ITEM_ID" equals the member's value in any case
    assert "premium" in ITEM.tags
    assert Tags.BINARY_CLASSIFICATION in CLICK.tags
    assert Tags.BINARY not in CLICK.tags


def test_tags_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="column 'x': tags 'categorical' and 'continuous' exclude each other"):
        ColumnSchema("x", tags=[Tags.CATEGORICAL, Tags.CONTINUOUS])
    assert TagSet([Tags.CATEGORICAL, Tags.USER]).override(Tags.CONTINUOUS) == TagSet([Tags.CONTINUOUS, Tags.USER])
    assert TagSet([Tags.USER]) + Tags.ID == TagSet(Tags.USER_ID)
    assert TagSet(Tags.USER_ID) - Tags.ID == TagSet(Tags.USER)


def test_select_by_tag() -> None:
    assert SCHEMA.select_by_tag(Tags.USER).column_names == ["user_id", "age"]
    assert SCHEMA.select_by_tag(Tags.USER_ID).column_names == ["user_id"]
    # Merlin falls back to any atom of a list and would find age as well
    assert SCHEMA.select_by_tag([Tags.ITEM_ID, Tags.USER_ID]).column_names == ["user_id", "item_id"]
    assert SCHEMA.select_by_tag([Tags.USER, Tags.CONTINUOUS], pred_fn=all).column_names == ["age"]
    assert SCHEMA.excluding_by_tag(Tags.USER).column_names == ["item_id", "click"]
    assert SCHEMA.targets.column_names == ["click"]
    assert SCHEMA.excluding_targets().column_names == ["user_id", "age", "item_id"]


def test_select_by_name_keeps_the_order_and_knows_its_columns() -> None:
    assert SCHEMA.select_by_name(["item_id", "age"]).column_names == ["item_id", "age"]
    assert SCHEMA[["age"]] == Schema([AGE])
    assert SCHEMA.without("age").column_names == ["user_id", "item_id", "click"]
    with pytest.raises(ValueError, match="unknown column 'agee': choose from .*Did you mean 'age'"):
        SCHEMA.select_by_name("agee")
    with pytest.raises(ValueError, match="unknown column 'x'"):
        SCHEMA.excluding_by_name(["x"])


def test_set_algebra() -> None:
    other = Schema([ColumnSchema("age", tags=[Tags.CATEGORICAL], dtype="int32"), ColumnSchema("new")])
    union = Schema([AGE]) + other
    assert union.column_names == ["age", "new"]
    assert union["age"].dtype == "int32"
    assert union["age"].tags == TagSet([Tags.USER, Tags.CATEGORICAL])
    assert (SCHEMA - other).column_names == ["user_id", "item_id", "click"]
    assert Schema([USER]) == Schema([copy.deepcopy(USER)])
    assert Schema([USER]) != Schema([USER.with_name("u")])
    assert len({Schema([USER]), Schema([copy.deepcopy(USER)])}) == 1
    with pytest.raises(ValueError, match="no columns, so it has no first"):
        Schema([]).first  # noqa: B018
    with pytest.raises(TypeError, match="a list of ColumnSchema or names"):
        Schema("user_id")
    with pytest.raises(ValueError, match="different column names"):
        Schema(["a", "a"])


def test_domains() -> None:
    assert USER.cardinality == 10
    assert USER.int_domain == tt.Domain(0, 9, "thing")
    assert tt.Domain(0, 9).is_bounded  # Merlin says no whenever min is 0
    assert ColumnSchema("x", properties=DOMAIN).int_domain is not None  # Merlin gives None without a dtype
    assert ColumnSchema("x", dtype="float32", properties=DOMAIN).float_domain == tt.Domain(0, 9, "thing")
    assert ColumnSchema("x", dtype="float32", properties=DOMAIN).int_domain is None
    with pytest.raises(ValueError, match="'age' has no integer domain.*Encode it with Preprocessor"):
        AGE.cardinality  # noqa: B018
    with pytest.raises(ValueError, match="column 'x': a domain must not end before it starts: min=3, max=2"):
        ColumnSchema("x", dtype="int64", properties={"domain": {"min": 3, "max": 2}})


@pytest.mark.parametrize(
    ("given", "name"),
    [(np.int32, "int32"), (torch.float16, "float16"), (int, "int64"), (float, "float64"), (str, "string"), (bool, "bool"),
     (pa.float32(), "float32"), (pa.string(), "string"), ("uint8", "uint8"), (np.dtype("float64"), "float64"), (None, None)],
)  # fmt: skip
def test_types_by_any_name(given: object, name: str | None) -> None:
    assert ColumnSchema("x", dtype=given).dtype == name


def test_an_unknown_type_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="column 'x': unknown dtype 'int63'.*Did you mean 'int64'"):
        ColumnSchema("x", dtype="int63")


def test_list_shapes_from_flags_counts_and_dims() -> None:
    def shape(**given: object) -> tuple[bool, bool, tt.Domain | None]:
        c = ColumnSchema("x", **given)
        return c.is_list, c.is_ragged, c.value_count

    assert shape() == (False, False, None)
    assert shape(is_list=True) == (True, True, None)
    assert shape(is_list=True, is_ragged=False) == (True, False, None)
    assert shape(properties={"value_count": {"min": 4, "max": 4}}) == (True, False, tt.Domain(4, 4))
    assert shape(properties={"value_count": {"min": 0, "max": 4}}) == (True, True, tt.Domain(0, 4))
    assert shape(dims=((0, None), (3, 3))) == (True, False, tt.Domain(3, 3))
    assert shape(dims=((0, None), (0, None))) == (True, True, tt.Domain(0, np.inf))
    assert shape(dims=((0, None),)) == (False, False, None)
    for wrong in (
        {"is_list": False, "is_ragged": True},
        {"is_list": False, "properties": {"value_count": {"min": 1, "max": 3}}},
        {"is_ragged": True, "dims": ((0, None), (3, 3))},
        {"is_list": True, "dims": ((0, None),)},
    ):
        with pytest.raises(ValueError, match="disagree. Give only one of them"):
            ColumnSchema("x", **wrong)


def test_copies() -> None:
    c = USER.with_name("u").with_tags(Tags.SESSION).with_properties({"a": 1}).with_dtype("int32", is_list=True)
    assert (c.name, c.dtype, c.is_list, c.properties["a"]) == ("u", "int32", True, 1)
    assert Tags.SESSION in c.tags
    assert Tags.USER_ID in c.tags
    assert c.cardinality == 10
    assert c.with_shape(((0, None), (5, 5))).value_count == tt.Domain(5, 5)
    assert (USER.name, USER.dtype, "a" in USER.properties) == ("user_id", "int64", False)
    with pytest.raises(TypeError, match="must be a dict, got list"):
        USER.with_properties([1])  # type: ignore[arg-type]


def test_schema_of_an_arrow_table() -> None:
    table = pa.schema(
        [("a", pa.int32()), ("b", pa.large_string()), ("c", pa.list_(pa.int64())), ("d", pa.list_(pa.float32(), 3)),
         ("e", pa.timestamp("s")), ("f", pa.dictionary(pa.int8(), pa.string()))]
    )  # fmt: skip
    got = [(c.name, c.dtype, c.is_list, c.is_ragged) for c in schema_from_arrow(table)]
    assert got == [
        ("a", "int32", False, False),
        ("b", "string", False, False),
        ("c", "int64", True, True),
        ("d", "float32", True, False),
        ("e", None, False, False),
        ("f", "string", False, False),
    ]


def test_merlins_helpers() -> None:
    made = tt.create_categorical_column("x", 100, domain_name="d", tags=Tags.ITEM, min_value_count=1, max_value_count=4)
    assert made.cardinality == 101
    assert made.int_domain == tt.Domain(0, 100, "d")
    assert (made.is_list, made.is_ragged) == (True, True)
    assert Tags.CATEGORICAL in made.tags
    price = tt.create_continuous_column("price", min_value=0, max_value=5)
    assert price.float_domain == tt.Domain(0, 5)


def test_repr_is_a_table() -> None:
    lines = repr(SCHEMA).splitlines()
    assert lines[0].split() == ["name", "tags", "dtype", "domain", "list"]
    assert lines[1].startswith("user_id  categorical, id, user")
    assert "0 to 9 (thing)" in lines[1]
    assert "<td>age</td>" in SCHEMA._repr_html_()
