"""Schemas as files: Merlin's `schema.pbtxt` and `.merlin/schema.json`, both tensorflow-metadata's Schema message."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    struct_pb2,
    text_format,
)

from twotower.files import PathLike, written_aside
from twotower.schema import ColumnSchema, Schema
from twotower.tags import Tags

_F = descriptor_pb2.FieldDescriptorProto
# the part of the message that schemas use: message to fields (name, type, repeated); numbers do not show in text
MESSAGES: dict[str, list[tuple[str, Any, bool]]] = {
    "IntDomain": [
        ("name", _F.TYPE_STRING, False),
        ("min", _F.TYPE_INT64, False),
        ("max", _F.TYPE_INT64, False),
        ("is_categorical", _F.TYPE_BOOL, False),
    ],
    "FloatDomain": [("name", _F.TYPE_STRING, False), ("min", _F.TYPE_DOUBLE, False), ("max", _F.TYPE_DOUBLE, False)],
    "ValueCount": [("min", _F.TYPE_INT64, False), ("max", _F.TYPE_INT64, False)],
    "Dim": [("size", _F.TYPE_INT64, False), ("name", _F.TYPE_STRING, False)],
    "FixedShape": [("dim", "Dim", True)],
    "Annotation": [("tag", _F.TYPE_STRING, True), ("extra_metadata", "google.protobuf.Any", True)],
    "Feature": [
        ("name", _F.TYPE_STRING, False),
        ("type", "FeatureType", False),
        ("int_domain", "IntDomain", False),
        ("float_domain", "FloatDomain", False),
        ("value_count", "ValueCount", False),
        ("shape", "FixedShape", False),
        ("annotation", "Annotation", False),
    ],
    "Schema": [("feature", "Feature", True)],
}
FEATURE_TYPES = ("TYPE_UNKNOWN", "BYTES", "INT", "FLOAT", "STRUCT")
# what the file says in fields of its own, and so not among the other properties
OWN_KEYS = ("is_list", "is_ragged", "dtype_item_size", "_dims", "_dtype", "_domain_name")


def schema_to_pbtxt(schema: Schema) -> str:
    """The schema as protobuf text."""
    # an empty pool keeps the packed metadata as type_url and value, the one form that Merlin reads
    return text_format.MessageToString(_to_message(schema), descriptor_pool=descriptor_pool.DescriptorPool())


def schema_from_pbtxt(text: str) -> Schema:
    """Read protobuf text; fields that schemas do not use are passed over."""
    try:
        message = text_format.Parse(text, _MESSAGE(), allow_unknown_field=True, descriptor_pool=_POOL)
    except text_format.ParseError as error:
        raise ValueError(f"this is no schema.pbtxt: {error}") from error
    return Schema([_from_feature(feature, None) for feature in message.feature])


def schema_to_json(schema: Schema) -> str:
    """The schema as Merlin's JSON, where int64 are strings."""
    message = _to_message(schema, with_metadata=False)
    body = json_format.MessageToDict(message, descriptor_pool=_POOL)
    for feature, column in zip(body.get("feature", []), schema, strict=True):
        feature.setdefault("annotation", {})["extraMetadata"] = [_metadata(column)]
    return json.dumps(body, indent=1)


def schema_from_json(text: str) -> Schema:
    """Read Merlin's JSON; fields that schemas do not use are passed over."""
    try:
        body = json.loads(text)
        extra = [feature.get("annotation", {}).pop("extraMetadata", []) for feature in body.get("feature", [])]
        message = json_format.ParseDict(body, _MESSAGE(), ignore_unknown_fields=True, descriptor_pool=_POOL)
    except (json.JSONDecodeError, json_format.ParseError, AttributeError) as error:
        raise ValueError(f"this is no schema.json: {error}") from error
    return Schema([_from_feature(feature, e) for feature, e in zip(message.feature, extra, strict=True)])


def save_schema(schema: Schema, path: PathLike) -> None:
    """Write schema.pbtxt or schema.json, by the file's ending, aside and then renamed."""
    text = schema_to_pbtxt(schema) if Path(path).suffix == ".pbtxt" else schema_to_json(schema)
    if Path(path).suffix not in (".pbtxt", ".json"):
        raise ValueError(f"a schema file ends in .pbtxt or .json, got {os.fspath(path)!r}.")
    with written_aside(path) as aside:
        aside.write_text(text)


def load_schema(path: PathLike) -> Schema:
    """Read a schema file, or the one that lies in a data folder.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        found = find_schema(file)
        if found is None:
            raise ValueError(f"no schema in {file}: looked for .merlin/schema.json there and above, and schema.pbtxt.")
        return found
    if not file.exists():
        raise ValueError(f"no schema file at {file}.")
    return schema_from_pbtxt(file.read_text()) if file.suffix == ".pbtxt" else schema_from_json(file.read_text())


def find_schema(path: PathLike) -> Schema | None:
    """The schema stored beside data: .merlin/schema.json in the folder or its parent, then schema.pbtxt; else None."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    for file in (
        folder / ".merlin" / "schema.json",
        folder.parent / ".merlin" / "schema.json",
        folder / "schema.pbtxt",
    ):
        if file.is_file():
            return load_schema(file)
    return None


def _make_messages() -> tuple[descriptor_pool.DescriptorPool, Any]:
    """The message classes, made at run time in a pool of their own, beside whatever tensorflow-metadata registers."""
    file = descriptor_pb2.FileDescriptorProto(name="twotower_schema.proto", package="tt", syntax="proto2")
    file.dependency.append("google/protobuf/any.proto")
    kinds = file.enum_type.add(name="FeatureType")
    for number, name in enumerate(FEATURE_TYPES):
        kinds.value.add(name=name, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, start=1):
            added = message.field.add(
                name=field, number=number, label=_F.LABEL_REPEATED if repeated else _F.LABEL_OPTIONAL
            )
            if isinstance(kind, str):
                added.type = _F.TYPE_ENUM if kind == "FeatureType" else _F.TYPE_MESSAGE
                added.type_name = f".{kind}" if "." in kind else f".tt.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, struct_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool, message_factory.GetMessageClass(pool.FindMessageTypeByName("tt.Schema"))


_POOL, _MESSAGE = _make_messages()


def _to_message(schema: Schema, with_metadata: bool = True) -> Any:
    message = _MESSAGE()
    for column in schema:
        feature = message.feature.add(name=column.name)
        kind = "TYPE_UNKNOWN" if column.dtype is None else _feature_type(column.dtype)
        feature.type = FEATURE_TYPES.index(kind)
        domain = column.properties.get("domain")
        if domain and column.int_domain is not None:
            feature.int_domain.name = domain.get("name") or column.name
            feature.int_domain.min, feature.int_domain.max = int(domain["min"]), int(domain["max"])
            feature.int_domain.is_categorical = Tags.CATEGORICAL in column.tags
        elif domain and column.float_domain is not None:
            feature.float_domain.name = domain.get("name") or column.name
            feature.float_domain.min, feature.float_domain.max = float(domain["min"]), float(domain["max"])
        if column.is_list:
            count = column.value_count
            feature.value_count.min = 0 if count is None else int(count.min)
            feature.value_count.max = 0 if count is None or math.isinf(count.max) else int(count.max)
        feature.annotation.tag.extend(tag.value if isinstance(tag, Tags) else tag for tag in column.tags)
        if with_metadata:
            values = struct_pb2.Struct()
            values.update(_metadata(column))
            feature.annotation.extra_metadata.add(
                type_url="type.googleapis.com/google.protobuf.Struct", value=values.SerializeToString()
            )
    return message


def _feature_type(dtype: str) -> str:
    return "INT" if "int" in dtype or dtype == "bool" else "FLOAT" if "float" in dtype else "BYTES"


def _metadata(column: ColumnSchema) -> dict[str, Any]:
    """What the message has no field for. Merlin reads the first four keys, and keeps the others as properties."""
    left = {key: value for key, value in column.properties.items() if key not in ("domain", "value_count")}
    own: dict[str, Any] = {"is_list": column.is_list, "is_ragged": column.is_ragged}
    digits = "".join(filter(str.isdigit, column.dtype or ""))
    if digits:
        own["dtype_item_size"] = float(digits)
    if column.dtype is not None and (not digits or column.dtype.startswith("u")):
        own["_dtype"] = column.dtype
    # a domain without a name is written with the column's; this tells it from one that has that very name
    if (column.properties.get("domain") or {}).get("name") == column.name:
        own["_domain_name"] = column.name
    if column.dims is not None:
        own["_dims"] = [[low, high] for low, high in column.dims]
    return own | left


def _from_feature(feature: Any, json_metadata: list[Mapping[str, Any]] | None) -> ColumnSchema:
    if json_metadata is None:
        extra = [_unpack(packed) for packed in feature.annotation.extra_metadata]
    else:
        extra = [dict(entry.get("value", entry) if "@type" in entry else entry) for entry in json_metadata]
    if len(extra) > 1:
        raise ValueError(f"column {feature.name!r}: annotation.extra_metadata must have one entry, has {len(extra)}.")
    metadata = extra[0] if extra else {}
    properties: dict[str, Any] = {key: value for key, value in metadata.items() if key not in (*OWN_KEYS, "@type")}
    kind = FEATURE_TYPES[feature.type]
    domain_name = "int_domain" if feature.HasField("int_domain") else "float_domain"
    tags: list[str] = list(feature.annotation.tag)
    if feature.HasField(domain_name):
        domain = getattr(feature, domain_name)
        own_name = "_domain_name" in metadata or domain.name != feature.name
        named = {"name": domain.name} if domain.name and own_name else {}
        properties["domain"] = {"min": domain.min, "max": domain.max, **named}
        if domain_name == "int_domain" and domain.is_categorical and Tags.CATEGORICAL.value not in tags:
            tags.append(Tags.CATEGORICAL.value)
    dims = metadata.get("_dims")
    lists = {"dims": tuple(_dim(d) for d in dims)} if dims else _lists(feature, metadata, properties)
    return ColumnSchema(feature.name, tags, _dtype(kind, metadata), properties=properties, **lists)


def _lists(feature: Any, metadata: Mapping[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    if feature.HasField("value_count") and (feature.value_count.min or feature.value_count.max):
        properties["value_count"] = {"min": feature.value_count.min, "max": feature.value_count.max or None}
        return {}
    if feature.HasField("shape") and len(feature.shape.dim) == 1:
        size = feature.shape.dim[0].size
        properties["value_count"] = {"min": size, "max": size}
        return {}
    is_list = bool(metadata.get("is_list", feature.HasField("value_count")))
    return {"is_list": is_list, "is_ragged": bool(metadata.get("is_ragged", is_list))}


def _dtype(kind: str, metadata: Mapping[str, Any]) -> str | None:
    if "_dtype" in metadata:
        return str(metadata["_dtype"])
    size = int(float(metadata.get("dtype_item_size") or 64))
    return {"INT": f"int{size}", "FLOAT": f"float{size}", "BYTES": "string"}.get(kind)


def _dim(written: Any) -> tuple[int, int | None]:
    """Merlin writes one number for a fixed dimension, and smallest and largest for another."""
    low, high = written if isinstance(written, list) else (written, written)
    return int(low or 0), None if high is None else int(high)


def _unpack(packed: any_pb2.Any) -> dict[str, Any]:
    values = struct_pb2.Struct.FromString(packed.value)
    return json_format.MessageToDict(values)
