"""YAML as people mean it: 1e-3 is a number, yes and no are words, a key given twice is an error, and every key has a line."""

import re
from pathlib import Path
from typing import Any

import yaml

from twotower.files import PathLike

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

NUMBER = re.compile(
    r"^[-+]?(\d[\d_]*\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)


class Reader(yaml.SafeLoader):
    """SafeLoader by the rules of YAML 1.2 for plain words: PyYAML's own read 1e-3 as text, `no` as false, and dates."""


KEPT = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag in KEPT]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Reader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Reader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


class Writer(yaml.SafeDumper):
    """SafeDumper that quotes words which Reader would take as numbers, such as 1e5."""


Writer.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def read_yaml(path: PathLike) -> tuple[dict[str, Any], Lines]:
    """The mapping that a YAML file holds, and the line of each of its keys.

    Raises:
        ValueError: no such file, no YAML, no mapping, or a key that is given twice.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no config {file}. `twotower init --interactions <Parquet>` writes one.")
    loader = Reader(file.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        lines: Lines = {}
        if node is not None:
            _walk(node, (), lines, file.name)
        data = {} if node is None else loader.construct_document(node)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file.name}:{mark.line + 1}" if mark is not None else file.name
        raise ValueError(f"{where}: this is no YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file.name}: this is no YAML: {error}.") from error
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]
    if not isinstance(data, dict):
        raise ValueError(f"{file.name}: expected sections such as `data:`, got {type(data).__name__}.")
    return data, lines


def read_value(text: str) -> Any:
    """One value as it would stand in the file, for `--set key=value`."""
    try:
        return yaml.load(text, Loader=Reader)
    except yaml.YAMLError as error:
        raise ValueError(f"got {text!r}, expected a value as in the config, such as 3, word or [64, 32].") from error


def write_yaml(data: Any, width: int = 120) -> str:
    """Text that `read_yaml` reads back, keys in their order."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None}
    return str(yaml.dump(data, Dumper=Writer, width=width, **options))


def _walk(node: yaml.Node, at: KeyPath, lines: Lines, name: str) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        known: set[str] = set()
        for key, value in node.value:
            if key.value in known:
                raise ValueError(
                    f"{name}:{key.start_mark.line + 1}: {'.'.join(map(str, (*at, key.value)))} is given twice; keep one."
                )
            known.add(key.value)
            lines[(*at, key.value)] = key.start_mark.line + 1
            _walk(value, (*at, key.value), lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _walk(value, (*at, number), lines, name)
