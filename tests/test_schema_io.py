"""Schema files: Merlin's two formats are read as they are, and nothing is lost on the way there and back."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twotower as tt
from twotower import ColumnSchema, Schema, Tags
from twotower.schema_io import find_schema, schema_from_json, schema_from_pbtxt, schema_to_json, schema_to_pbtxt

# the form in which Merlin writes schema.pbtxt: extra_metadata is a serialised Struct (here is_list, is_ragged,
# dtype_item_size 32 and num_buckets null)
MERLIN_PBTXT = r"""
feature {
  name: "movieId"
  type: INT
  int_domain { name: "movieId" max: 56680 is_categorical: true }
  annotation {
    tag: "item"
    tag: "item_id"
    extra_metadata {
      type_url: "type.googleapis.com/google.protobuf.Struct"
      value: "\n\034\n\017dtype_item_size\022\t\021\000\000\000\000\000\000@@\n\021\n\013num_buckets\022\002\010\000\n\r\n\007is_list\022\002 \000\n\017\n\tis_ragged\022\002 \000"
    }
  }
}
feature {
  name: "genres"
  value_count { min: 1 max: 10 }
  type: INT
  int_domain { name: "genre_domain" max: 20 is_categorical: true }
  presence { min_fraction: 1.0 }
}
feature { name: "price" type: FLOAT float_domain { min: 0.5 max: 9 } annotation { tag: "continuous" } }
feature { name: "title" type: BYTES }
"""
MERLIN_JSON = json.dumps(
    {
        "feature": [
            {
                "name": "user_id",
                "type": "INT",
                "intDomain": {"name": "user_id", "min": "0", "max": "9007199254740995", "isCategorical": True},
                "annotation": {
                    "tag": ["user_id", "user", "vip"],
                    "extraMetadata": [
                        {
                            "is_list": False,
                            "is_ragged": False,
                            "dtype_item_size": 64.0,
                            "_dims": [[0, None]],
                            "freq_threshold": 3,
                        }
                    ],
                },
            },
            {"name": "hist", "valueCount": {"min": "2", "max": "2"}, "type": "FLOAT", "annotation": {}},
        ]
    }
)


def test_reading_merlins_pbtxt() -> None:
    schema = schema_from_pbtxt(MERLIN_PBTXT)
    movie, genres, price, title = schema
    assert (movie.dtype, movie.is_list, movie.cardinality) == ("int32", False, 56681)
    assert Tags.ITEM_ID in movie.tags
    assert Tags.CATEGORICAL in movie.tags  # from is_categorical
    assert movie.properties["num_buckets"] is None
    assert (genres.dtype, genres.is_ragged, genres.value_count) == ("int64", True, tt.Domain(1, 10))
    assert genres.int_domain == tt.Domain(0, 20, "genre_domain")
    assert price.float_domain == tt.Domain(0.5, 9)
    assert title.dtype == "string"


def test_reading_merlins_json() -> None:
    user, hist = schema_from_json(MERLIN_JSON)
    assert user.int_domain is not None
    assert user.int_domain.max == 9007199254740995  # beyond what a double holds
    assert user.tags == tt.TagSet([Tags.USER_ID, "vip", Tags.CATEGORICAL])
    assert user.properties["freq_threshold"] == 3
    assert (hist.dtype, hist.is_list, hist.is_ragged) == ("float64", True, False)


# what merlin-core 23.8 wrote for an int64 scalar, a ragged int32 list, a list of three, one of one to four, and a float
WRITTEN_BY_MERLIN = """{"feature": [
{"name": "user_id", "type": "INT", "intDomain": {"name": "user_id", "max": "9007199254740995", "isCategorical": true},
 "annotation": {"tag": ["user", "id", "categorical"], "extraMetadata": [{"is_ragged": false, "num_buckets": null,
 "dtype_item_size": 64.0, "freq": 3.0, "_dims": [], "is_list": false}]}},
{"name": "hist", "valueCount": {}, "type": "INT", "intDomain": {"name": "item_id", "max": "20"}, "annotation": {"tag": ["item"],
 "extraMetadata": [{"is_list": true, "_dims": [[0.0, null], [0.0, null]], "dtype_item_size": 32.0, "is_ragged": true}]}},
{"name": "fix", "valueCount": {"min": "3", "max": "3"}, "type": "FLOAT", "annotation": {"extraMetadata":
 [{"_dims": [[0.0, null], 3.0], "is_list": true, "is_ragged": false, "dtype_item_size": 32.0}]}},
{"name": "rag", "valueCount": {"min": "1", "max": "4"}, "type": "FLOAT", "annotation": {"extraMetadata":
 [{"is_list": true, "is_ragged": true, "_dims": [[0.0, null], [1.0, 4.0]], "dtype_item_size": 32.0}]}},
{"name": "price", "type": "FLOAT", "floatDomain": {"name": null, "min": 0.5, "max": 9}, "annotation": {"tag": ["vip"],
 "extraMetadata": [{"dtype_item_size": 64.0, "_dims": [], "is_list": false, "is_ragged": false}]}}]}"""


def test_reading_what_merlin_wrote() -> None:
    user, hist, fix, rag, price = schema_from_json(WRITTEN_BY_MERLIN)
    assert (user.dtype, user.is_list, user.cardinality) == ("int64", False, 9007199254740996)
    assert (hist.dtype, hist.is_list, hist.is_ragged, hist.int_domain) == (
        "int32",
        True,
        True,
        tt.Domain(0, 20, "item_id"),
    )
    assert (fix.is_list, fix.is_ragged, fix.value_count) == (True, False, tt.Domain(3, 3))
    assert (rag.is_list, rag.is_ragged, rag.value_count) == (True, True, tt.Domain(1, 4))
    assert price.float_domain == tt.Domain(0.5, 9)


def test_written_text_keeps_the_metadata_packed() -> None:
    """Merlin's reader knows no other form than type_url and value."""
    text = schema_to_pbtxt(Schema([ColumnSchema("a", dtype="int64")]))
    assert 'type_url: "type.googleapis.com/google.protobuf.Struct"' in text


def test_written_json_is_in_merlins_form() -> None:
    column = ColumnSchema(
        "a", [Tags.ITEM_ID, Tags.CATEGORICAL], "int32", properties={"domain": {"min": 0, "max": 5}, "k": 1}
    )
    feature = json.loads(schema_to_json(Schema([column])))["feature"][0]
    assert feature["type"] == "INT"
    assert feature["intDomain"] == {"name": "a", "min": "0", "max": "5", "isCategorical": True}
    assert set(feature["annotation"]["tag"]) == {"item", "id", "categorical"}
    extra = {"is_list": False, "is_ragged": False, "dtype_item_size": 32.0, "k": 1}
    assert feature["annotation"]["extraMetadata"] == [extra]


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
json_values = st.none() | st.booleans() | st.text("ab", max_size=3) | st.floats(-5, 5).filter(lambda x: x != 0)


@st.composite
def columns(draw: st.DrawFn) -> ColumnSchema:
    tags = draw(st.sets(st.sampled_from([Tags.USER_ID, Tags.ITEM, Tags.TARGET, Tags.TIME, "own tag"])))
    dtype = draw(st.sampled_from(["int64", "uint8", "int32", "float32", "float64", "bool", "string", None]))
    properties = draw(st.dictionaries(st.text("klm", min_size=1, max_size=3), json_values, max_size=2))
    if dtype in ("int64", "uint8"):
        properties["domain"] = {
            "min": 0,
            "max": draw(st.integers(0, 2**62)),
            "name": draw(st.sampled_from(["shared", "x"])),
        }
    if dtype == "float64":
        properties["domain"] = {"min": -1.5, "max": draw(st.floats(0, 100))}
    shape = draw(
        st.sampled_from([{}, {"is_list": True}, {"dims": ((0, None), (2, 7))}, {"is_list": True, "is_ragged": False}])
    )
    if shape == {} and draw(st.booleans()):
        properties["value_count"] = draw(st.sampled_from([{"min": 3, "max": 3}, {"min": 0, "max": 4}]))
    return ColumnSchema(draw(names | st.just("x")), tags, dtype, properties=properties, **shape)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(columns(), max_size=4, unique_by=lambda c: c.name))
def test_nothing_is_lost_there_and_back(made: list[ColumnSchema]) -> None:
    schema = Schema(made)
    assert schema_from_json(schema_to_json(schema)) == schema
    assert schema_from_pbtxt(schema_to_pbtxt(schema)) == schema


def test_files_beside_the_data(tmp_path) -> None:  # type: ignore[no-untyped-def]
    schema = schema_from_json(MERLIN_JSON)
    assert find_schema(tmp_path) is None
    with pytest.raises(ValueError, match=r"no schema in .*looked for \.merlin/schema\.json"):
        tt.load_schema(tmp_path)
    tt.save_schema(schema, tmp_path / "schema.pbtxt")
    assert tt.load_schema(tmp_path) == schema
    other = Schema([ColumnSchema("x", dtype="int64")])
    tt.save_schema(other, tmp_path / ".merlin" / "schema.json")
    assert tt.load_schema(tmp_path) == other
    (tmp_path / "part").mkdir()
    assert tt.load_schema(tmp_path / "part") == other  # the parent's
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".schema")]  # nothing left aside


def test_wrong_files_say_so(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name, text in (("schema.pbtxt", "feature { name: }"), ("schema.json", "[1, 2"), ("schema.json", "[1]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"this is no {name}"):
            tt.load_schema(tmp_path / name)
    with pytest.raises(ValueError, match="ends in .pbtxt or .json"):
        tt.save_schema(Schema(), tmp_path / "schema.txt")
    with pytest.raises(ValueError, match="no schema file at"):
        tt.load_schema(tmp_path / "none.json")
    two = '{"feature": [{"name": "a", "annotation": {"extraMetadata": [{}, {}]}}]}'
    with pytest.raises(ValueError, match="column 'a': annotation.extra_metadata must have one entry, has 2"):
        schema_from_json(two)
