"""Write docs/reference.md from the docstrings of the public names, and docs/config.md from the config's keys.

Run it after changing one.
"""

import dataclasses
import enum
import inspect
import re
import typing
from pathlib import Path

from pydantic import BaseModel

import twotower as tt
from twotower.config.columns import TAGS, meanings, options_of
from twotower.config.config import Config
from twotower.config.describe import of_field
from twotower.config.sections import Positive, Search, StopEarly
from twotower.config.yaml_file import write_yaml
from twotower.data.columns import KINDS

PAGE = Path(__file__).parent / "reference.md"
HEAD = "# Reference\n\nEvery public name, from its docstring. Written by `python docs/make_reference.py`.\n"


def reference() -> str:
    """The page as text."""
    return HEAD + "".join(_entry(name, getattr(tt, name)) for name in sorted(tt.__all__, key=str.lower))


def _entry(name: str, thing: object) -> str:
    if name == "TwoTowerModel":
        return "\n## TwoTowerModel\n\nThe same as TwoTowerModelV2.\n"
    # how an Enum is called is Python's own, and differs between its versions
    signature = "" if inspect.isclass(thing) and issubclass(thing, enum.Enum) else _signature(name, thing)
    text = f"\n## {name}\n\n{signature}{_doc(thing)}"
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            function = value.__func__ if isinstance(value, classmethod) else value
            if member[0] != "_" and inspect.isfunction(function) and function.__doc__:
                text += f"\n### {name}.{member}\n\n{_signature(f'{name}.{member}', function)}{_doc(function)}"
    return text


def _signature(name: str, thing: object) -> str:
    try:
        parameters = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    shown = [str(p.replace(annotation=p.empty)) for p in parameters if p.name != "self"]
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", f"`{name}({', '.join(shown)})`\n\n")


def _doc(thing: object) -> str:
    return f"```text\n{inspect.getdoc(thing)}\n```\n"


CONFIG_PAGE = PAGE.with_name("config.md")
CONFIG_HEAD = """# Every key of the config

One YAML file for `twotower train`, `evaluate` and `tune` ([how to use them](cli.md)). `twotower init` writes one from your
tables. Only `data` and `columns` have no defaults. Unknown keys and values of another type are errors that name the key and its
line. Written by `python docs/make_reference.py`.
"""


def config_page() -> str:
    """The page as text."""
    text = CONFIG_HEAD
    for name, field in Config.model_fields.items():
        text += f"\n## {name}\n\n{field.description}\n"
        section = next((m for m in _models(field.annotation)), None)
        text += _keys(section) if section is not None else _columns()
        inner = {
            "data": ("positive", Positive),
            "training": ("stop_early", StopEarly),
            "tune": ("space.<key>", Search),
        }.get(name)
        if inner is not None:
            text += f"\n### {name}.{inner[0]}\n\n{inspect.getdoc(inner[1])}\n{_keys(inner[1])}"
    return text


def _keys(section: type[BaseModel]) -> str:
    lines = ["", "| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        takes = of_field(field).split(" with ")[0] if "a section" in of_field(field) else of_field(field)
        default = "" if field.is_required() else f"`{_value(field.default)}`"
        lines.append(f"| `{key}` | {takes} | {default} | {field.description} |".replace("{|", "{"))
    return "\n".join(lines) + "\n"


def _columns() -> str:
    tags = ", ".join(f"`{tag}`" for tag in TAGS)
    text = (
        f"\nEach entry has a `kind` and `tags`: {tags}, one or several. The other keys are the options of its kind.\n"
    )
    for kind, declaration in KINDS.items():
        summary = (inspect.getdoc(declaration) or "").split("\n\n")[0].replace("\n", " ")
        text += f"\n### kind: {kind}\n\n{summary}\n\n| option | default | meaning |\n|---|---|---|\n"
        for name, option in options_of(declaration).items():
            default = "" if option.default is dataclasses.MISSING else f"`{_value(option.default)}`"
            text += f"| `{name}` | {default} | {meanings(declaration)[name].replace('|', '/')} |\n"
    return text


def _models(annotation: object) -> list[type[BaseModel]]:
    parts = typing.get_args(annotation) or (annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def _value(value: object) -> str:
    plain = value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value
    if isinstance(plain, dict):
        plain = {
            k: v.model_dump(mode="json", exclude_defaults=True) if isinstance(v, BaseModel) else v
            for k, v in plain.items()
        }
    plain = list(plain) if isinstance(plain, tuple) else plain
    return " ".join(write_yaml(plain).removesuffix("...\n").split())


if __name__ == "__main__":
    PAGE.write_text(reference())
    CONFIG_PAGE.write_text(config_page())
