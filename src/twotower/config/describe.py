"""What a key expects, in words: for the errors and for the page of all keys."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "any value",
}


def expected(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """The kind of value that an annotation takes, such as "a whole number of at least 1"."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        own = [m for extra in more for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return expected(inner, [*metadata, *own])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(part, metadata) for part in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(annotation)))
    if origin is tuple:
        return _tuple(get_args(annotation), metadata)
    if origin is dict:
        value = get_args(annotation)[1]
        inside = "" if value is Any else f", each {expected(value)}"
        return f"a mapping{inside}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section with " + ", ".join(annotation.model_fields)
    bounds = " and ".join(text for m in metadata if (text := _bound(m)))
    return PLAIN.get(annotation, "a value") + (f" {bounds}" if bounds and annotation in (int, float) else "")


def of_field(field: FieldInfo) -> str:
    """The same for a key of a section."""
    return expected(field.annotation, field.metadata)


def _tuple(parts: tuple[Any, ...], metadata: tuple[Any, ...] | list[Any]) -> str:
    if len(parts) == 2 and parts[1] is Ellipsis:
        least = next((m.min_length for m in metadata if isinstance(m, MinLen)), 0)
        return ("a list" if not least else f"a list of at least {least}") + f", each {expected(parts[0])}"
    return f"a list of {len(parts)}: " + ", ".join(expected(part) for part in parts)


def _bound(rule: Any) -> str:
    if isinstance(rule, Ge):
        return f"of at least {rule.ge}"
    if isinstance(rule, Gt):
        return f"above {rule.gt}"
    if isinstance(rule, Le):
        return f"of at most {rule.le}"
    if isinstance(rule, Lt):
        return f"below {rule.lt}"
    return ""
