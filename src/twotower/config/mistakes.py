"""From pydantic's errors to one line for each mistake: which key, what came, what was expected."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from twotower.config.columns import ColumnError
from twotower.config.describe import expected, of_field
from twotower.config.yaml_file import KeyPath, Lines
from twotower.errors import unknown


class ConfigError(ValueError):
    """What is wrong with a config, a line for each mistake.

    Args:
        mistakes: (key, text) for each.
        name: of the file; "" for a config that was made in Python.
        lines: the line of each key in the file.
        changes: dotted keys whose values came from --set.
    """

    def __init__(
        self,
        mistakes: Sequence[tuple[KeyPath, str]],
        name: str = "",
        lines: Lines | None = None,
        changes: frozenset[str] = frozenset(),
    ) -> None:
        self.mistakes = list(mistakes)
        told = [f"{_where(path, name, lines or {}, changes)}{_text(path, text)}" for path, text in self.mistakes]
        super().__init__("\n".join(told))


def mistakes_of(error: ValidationError, model: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """(key, text) of each mistake; several errors about one key, as those of a union, are one mistake."""
    found: dict[KeyPath, str] = {}
    for detail in error.errors():
        path, takes = _followed(model, detail["loc"])
        found.setdefault(*_explained(detail, path, takes))
    return list(found.items())


def _where(path: KeyPath, name: str, lines: Lines, changes: frozenset[str]) -> str:
    """Where the value came from: --set, or a line of the file."""
    if any(".".join(map(str, path[:n])) in changes for n in range(1, len(path) + 1)):
        return "--set "
    known = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    return "" if not name else f"{name}: " if known is None else f"{name}:{known}: "


def _text(path: KeyPath, text: str) -> str:
    return f"{'.'.join(map(str, path))}: {text}" if path else text


def _explained(detail: Any, path: KeyPath, takes: str) -> tuple[KeyPath, str]:
    if detail["type"] == "missing":
        return path, f"is missing, expected {takes}."
    if detail["type"] == "extra_forbidden":
        return path, takes
    if detail["type"] == "value_error":
        cause = detail["ctx"]["error"]
        own = (cause.option,) if isinstance(cause, ColumnError) and cause.option else ()
        return (*path, *own), str(cause)
    return path, f"got {detail['input']!r}, expected {takes}."


def _followed(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[KeyPath, str]:
    """The key that pydantic's place means, and what is expected there; its place also names the parts of unions."""
    path: list[str | int] = []
    annotation: Any = model
    takes = expected(model)
    for step in loc:
        section = _section(annotation)
        if section is not None and isinstance(step, str):
            if step not in section.model_fields:
                if any(step == part.__name__ for part in _parts(annotation) if isinstance(part, type)):
                    continue  # the name of a union's part
                where = "section" if section is model else "key"
                return (*path, step), unknown(where, step, section.model_fields)
            field = section.model_fields[step]
            annotation, takes = field.annotation, of_field(field)
        elif isinstance(step, int) or get_origin(annotation) is dict:
            inner = get_args(annotation)
            annotation = inner[1] if get_origin(annotation) is dict and len(inner) > 1 else inner[0] if inner else None
            takes = expected(annotation) if annotation is not None else takes
        else:
            break
        path.append(step)
    return tuple(path), takes


def _parts(annotation: Any) -> tuple[Any, ...]:
    inner = get_args(annotation)
    return inner if inner and get_origin(annotation) is not dict else (annotation,)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation means, alone or beside null; of two kinds of sections the last."""
    sections = [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return sections[-1] if sections else None
