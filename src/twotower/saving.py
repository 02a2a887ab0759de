"""Modules to files and back without pickle: the structure as JSON, the weights as safetensors.

The structure is the public class and the arguments it was built with. A class keeps each argument of its constructor
as an attribute of the same name (scikit-learn's convention); initial values are left out, since the weights replace
them. A module that stands in two places, such as a shared table, is written once and shared again.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from twotower.files import PathLike, folder_written_aside
from twotower.metrics import RankingMetric
from twotower.schema import ColumnSchema, Schema, Tags
from twotower.schema_io import schema_from_json, schema_to_json

FORMAT = 1
Json = Any
Classes = Mapping[str, type]


def describe(value: object, names: dict[int, int] | None = None) -> Json:
    """The JSON of a module, with everything it was built from.

    Raises:
        ValueError: an argument that JSON cannot hold, such as a function, or a class that does not keep its arguments.
    """
    return _Describer({} if names is None else names).of(value, "model")


class _Describer:
    def __init__(self, names: dict[int, int]) -> None:
        self.names = names

    def of(self, value: object, where: str) -> Json:
        if isinstance(value, Tags):
            return {"tag": value.value}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Schema):
            return {"schema": json.loads(schema_to_json(value))}
        if isinstance(value, ColumnSchema):
            return {"column": json.loads(schema_to_json(Schema([value])))}
        if isinstance(value, (list, tuple, nn.ModuleList)):
            return [self.of(item, f"{where}[{number}]") for number, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {"entries": [[key, self.of(item, f"{where}[{key!r}]")] for key, item in value.items()]}
        if isinstance(value, (nn.Module, RankingMetric)):
            return self._part(value, where)
        raise ValueError(
            f"{where} is a {type(value).__name__}, which cannot be saved as JSON. Give it by name, or as an nn.Module "
            "class of your own that keeps its constructor's arguments as attributes."
        )

    def _part(self, part: nn.Module | RankingMetric, where: str) -> Json:
        if isinstance(part, nn.Module) and id(part) in self.names:
            return {"same": self.names[id(part)]}
        kind = type(part).__name__
        arguments = {}
        for name, parameter in _parameters(type(part)).items():
            if name.endswith(("initializer", "_fn")):
                continue
            value = _argument(part, name, parameter)
            if value is MISSING or isinstance(value, torch.Tensor):
                raise ValueError(
                    f"{where} ({kind}) does not keep its argument {name!r} as an attribute, so it cannot be saved. Wrap "
                    "it in a class of your own that does, or save its state_dict() with torch.save."
                )
            if parameter.kind is parameter.VAR_POSITIONAL or value is not parameter.default:
                arguments[name] = self.of(value, f"{where}.{name}")
        number = self.names.setdefault(id(part), len(self.names))
        return {"class": kind, "number": number, "arguments": arguments}


def rebuild(text: Json, custom_objects: Classes | None = None) -> Any:
    """The module that `describe` wrote, with new weights.

    Args:
        text: what `describe` gave.
        custom_objects: classes that are not the library's, by name.

    Raises:
        ValueError: a class that is neither public here, nor in torch.nn, nor given.
    """
    return _Rebuilder(dict(custom_objects or {})).of(text)


class _Rebuilder:
    def __init__(self, custom: dict[str, type]) -> None:
        self.custom = custom
        self.made: dict[int, object] = {}

    def of(self, text: Json) -> Any:
        if isinstance(text, list):
            return [self.of(item) for item in text]
        if not isinstance(text, dict):
            return text
        if "tag" in text:
            return Tags(text["tag"])
        if "schema" in text:
            return schema_from_json(json.dumps(text["schema"]))
        if "column" in text:
            return schema_from_json(json.dumps(text["column"])).first
        if "entries" in text:
            return {key: self.of(item) for key, item in text["entries"]}
        if "same" in text:
            return self.made[text["same"]]
        return self._part(text)

    def _part(self, text: Json) -> object:
        kind = self._class(text["class"])
        arguments = {name: self.of(value) for name, value in text["arguments"].items()}
        parameters = _parameters(kind)
        spread = [n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL]
        if not spread:
            made = kind(**arguments)
        else:  # what stands before *arguments can only be given by place
            before = list(parameters)[: list(parameters).index(spread[0])]
            positional = [arguments.pop(name) for name in before] + list(arguments.pop(spread[0]))
            made = kind(*positional, **arguments)
        self.made[text["number"]] = made
        return made

    def _class(self, name: str) -> type:
        library = importlib.import_module("twotower")
        if name in self.custom:
            return self.custom[name]
        if name in library.__all__:
            found = getattr(library, name)
        else:
            found = getattr(nn, name, None)
        if not (isinstance(found, type) and issubclass(found, (nn.Module, RankingMetric))):
            raise ValueError(
                f"the saved model uses a class {name!r} that twotower does not have. Give it: "
                f"load(path, custom_objects={{{name!r}: {name}}})."
            )
        return found


MISSING = object()


def _argument(part: object, name: str, parameter: inspect.Parameter) -> Any:
    """The value that a constructor's argument had, as far as the attributes tell; MISSING if they do not."""
    value = getattr(part, name, MISSING)
    if value is MISSING and isinstance(part, nn.Sequential):
        return list(part)
    if value is MISSING and name in ("device", "dtype"):  # of PyTorch's layers; the weights carry them
        return parameter.default
    if isinstance(parameter.default, bool) and (value is None or isinstance(value, torch.Tensor)):
        return value is not None  # PyTorch's layers ask bias=True, and keep the bias
    return value


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    # a module without a constructor of its own takes no arguments
    if kind.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return {}
    return inspect.signature(kind).parameters


def write_module(module: nn.Module, folder: Path, extra: Mapping[str, Json] | None = None) -> None:
    """module.json and weights.safetensors in an existing folder."""
    library = importlib.import_module("twotower")
    text = {"format": FORMAT, "twotower": library.__version__, "module": describe(module), **(extra or {})}
    text["frozen"] = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    (folder / "module.json").write_text(json.dumps(text, indent=1))
    safetensors.torch.save_file(_distinct(module.state_dict()), folder / "weights.safetensors")


def pack(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Named tensors of any sizes as one, (bytes,) uint8: the extra state of a module whose sizes the data gives."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return torch.frombuffer(bytearray(safetensors.torch.save(whole)), dtype=torch.uint8)


def unpack(packed: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `pack` was given."""
    return safetensors.torch.load(packed.cpu().numpy().tobytes())


def save_module(module: nn.Module, path: PathLike) -> None:
    """Write a module's folder aside, then put it in place."""
    with folder_written_aside(path, "module.json") as folder:
        write_module(module, folder)


def load_module(path: PathLike, custom_objects: Classes | None = None) -> Any:
    """The module that `save_module` wrote, in evaluation mode."""
    folder = Path(path)
    module: nn.Module = rebuild(read_json(folder)["module"], custom_objects)
    read_weights(module, folder)
    return module.eval()


def read_json(folder: Path) -> Json:
    """module.json of a folder; ValueError if it is not there or of another format."""
    file = folder / "module.json"
    if not file.exists():
        raise ValueError(f"no saved model at {folder}: module.json is missing. Give the folder that save() wrote.")
    text = json.loads(file.read_text())
    if text["format"] != FORMAT:
        raise ValueError(
            f"{file} has format {text['format']}, written by twotower {text['twotower']}; this version reads {FORMAT}."
        )
    return text


def read_weights(module: nn.Module, folder: Path) -> None:
    """Load weights.safetensors into the module; every weight must be there, and no other."""
    saved = safetensors.torch.load_file(folder / "weights.safetensors")
    shared = {name: first for name, first in _names_of_shared(module.state_dict()).items() if first in saved}
    module.load_state_dict(saved | {name: saved[first] for name, first in shared.items()})
    frozen = set(read_json(folder)["frozen"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _names_of_shared(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    first_by_place: dict[tuple[int, torch.Size], str] = {}
    shared: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue
        first = first_by_place.setdefault((tensor.data_ptr(), tensor.shape), name)
        if first != name:
            shared[name] = first
    return shared


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    shared = _names_of_shared(state)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in shared}
