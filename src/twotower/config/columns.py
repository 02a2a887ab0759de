"""Columns in the config: the declarations of twotower.data.columns, written as YAML."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from twotower.config.describe import expected
from twotower.data.columns import KINDS, Column
from twotower.errors import unknown
from twotower.schema import Tags

# a context, such as the hour of asking, belongs to the query
TAGS: dict[str, tuple[Tags, ...]] = {
    "user": (Tags.USER,),
    "item": (Tags.ITEM,),
    "user_id": (Tags.USER_ID,),
    "item_id": (Tags.ITEM_ID,),
    "context": (Tags.USER, Tags.CONTEXT),
}


class ColumnError(ValueError):
    """What is wrong with one column, and in which of its options ("" for the column as a whole)."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.option = option


def declare(entry: Mapping[str, Any]) -> Column:
    """The declaration that an entry of `columns` means.

    Raises:
        ColumnError: an unknown kind, tag or option, a missing one, or a value that it does not take.
    """
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        what = "kind is missing" if kind is None else f"got {kind!r}"
        raise ColumnError("kind", f"{what}, expected one of {', '.join(map(repr, KINDS))}.")
    declaration = KINDS[kind]
    options = options_of(declaration)
    given = {name: value for name, value in entry.items() if name not in ("kind", "tags")}
    for name in given:
        if name not in options:
            raise ColumnError(name, unknown(f"option of a {kind} column", name, ["kind", "tags", *options]))
    for name, option in options.items():
        if option.default is dataclasses.MISSING and name not in given:
            raise ColumnError(name, f"is missing: kind {kind!r} needs it.")
    hints = get_type_hints(declaration)
    values = {name: _value(name, value, hints[name]) for name, value in given.items()}
    tags = _tags(entry.get("tags"))
    try:
        return declaration(**values, tags=tags)  # type: ignore[call-arg]
    except ValueError as error:
        named = next((name for name in given if str(error).startswith(name) or f"{name}=" in str(error)), "")
        raise ColumnError(named, str(error)) from error


def options_of(declaration: type[Column]) -> dict[str, "dataclasses.Field[Any]"]:
    """The options of a kind of column, by name, without its tags."""
    return {f.name: f for f in dataclasses.fields(declaration) if f.name != "tags"}


def meanings(declaration: type[Column]) -> dict[str, str]:
    """What each option means, from the `Args:` of the declaration's docstring."""
    text = inspect.getdoc(declaration) or ""
    block = re.search(r"Args:\n((?:    .*\n?)+)", text)
    found: dict[str, str] = {}
    for names, meaning in re.findall(
        r"^    (\w[\w, ]*): ((?:.*\n?(?:        .*\n?)*))", block[1] if block else "", re.MULTILINE
    ):
        found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def _value(name: str, value: Any, hint: Any) -> Any:
    """The value as the option's type; a truth value is no number, though Python takes it as one."""
    try:
        made = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ColumnError(name, f"got {value!r}, expected {expected(hint)}.") from error
    if isinstance(value, bool) and not isinstance(made, bool):
        raise ColumnError(name, f"got {value!r}, expected {expected(hint)}.")
    return made


def _tags(given: Any) -> tuple[Tags, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names:
        raise ColumnError(
            "tags", f"got {given!r}, expected a list of {', '.join(map(repr, TAGS))}, which say who reads the column."
        )
    for name in names:
        if name not in TAGS:
            raise ColumnError("tags", unknown("tag", str(name), TAGS))
    return tuple(dict.fromkeys(tag for name in names for tag in TAGS[name]))
