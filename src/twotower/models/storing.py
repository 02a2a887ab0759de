"""A model as a folder: module.json, weights.safetensors, catalog.parquet and, on request, the optimiser's state."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import safetensors.torch
import torch

from twotower.data.arrow import from_batch
from twotower.data.batch import scalar_column
from twotower.data.catalog import Catalog
from twotower.data.dataset import Dataset
from twotower.files import PathLike, folder_written_aside
from twotower.saving import describe, read_json, read_weights, rebuild, write_module
from twotower.schema import Schema
from twotower.training.compiled import Compiled

if TYPE_CHECKING:
    from twotower.models.base import RetrievalModelV2


def save(model: "RetrievalModelV2", path: PathLike, include_optimizer: bool) -> None:
    """Write the folder aside, then put it in place."""
    if include_optimizer and model.optimizer_state is None:
        raise ValueError(
            "include_optimizer=True, but the model has no optimizer state: it was not fitted since compile()."
        )
    with folder_written_aside(path, "module.json") as folder:
        write_module(model, folder, {"compiled": _describe_compiled(model.compiled)})
        if model.catalog is not None:
            catalog = model.catalog
            columns = {catalog.id_name: catalog.ids.cpu()} | catalog.features
            pl.DataFrame(from_batch(columns)).write_parquet(folder / "catalog.parquet")
        if include_optimizer and model.optimizer_state is not None:
            _write_optimizer(model.optimizer_state, folder)


def load(path: PathLike, custom_objects: Mapping[str, type] | None) -> "RetrievalModelV2":
    """Build the model, then fill it."""
    folder = Path(path)
    text = read_json(folder)
    model: RetrievalModelV2 = rebuild(text["module"], custom_objects)
    read_weights(model, folder)
    if text["compiled"] is None:
        warnings.warn(
            "the model was compiled with functions, which are not saved: call compile() again before fit or evaluate.",
            stacklevel=3,
        )
    else:
        model.compiled = _rebuild_compiled(text["compiled"])
    if (folder / "catalog.parquet").exists():
        model.catalog = _read_catalog(model, folder / "catalog.parquet")
    if (folder / "optimizer.json").exists():
        model.optimizer_state = _read_optimizer(folder)
    return model.eval()


def _describe_compiled(compiled: Compiled) -> dict[str, Any] | None:
    functions = [compiled.optimizer, *compiled.losses.values()]
    if not all(isinstance(value, str) for value in functions):
        return None
    return {
        "optimizer": compiled.optimizer,
        "learning_rate": compiled.learning_rate,
        "losses": dict(compiled.losses),
        "loss_weights": dict(compiled.loss_weights),
        "metrics": describe(compiled.metrics),
        "table_optimizer": compiled.table_optimizer,
        "table_learning_rate": compiled.table_learning_rate,
        "encode_rows": compiled.encode_rows,
        "every_position": compiled.every_position,
        "schedule": compiled.schedule,
        "warmup": compiled.warmup,
    }


def _rebuild_compiled(text: dict[str, Any]) -> Compiled:
    return Compiled(**{**text, "metrics": tuple(rebuild(text["metrics"]))})


def _read_catalog(model: "RetrievalModelV2", file: Path) -> Catalog:
    schema = Schema([model.candidate_id]) + model.candidate.schema
    columns = Dataset(file, schema).batch()
    id_name = model.candidate_id.name
    features = {name: columns[name] for name in model.candidate.schema.column_names}
    return Catalog(id_name, scalar_column(columns, id_name), features)


def _write_optimizer(state: dict[str, Any], folder: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            place = tensors if isinstance(value, torch.Tensor) else numbers
            place[f"{parameter}.{name}"] = value.detach().cpu().contiguous() if place is tensors else value
    safetensors.torch.save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps({"numbers": numbers, "param_groups": state["param_groups"]}))


def _read_optimizer(folder: Path) -> dict[str, Any]:
    text = json.loads((folder / "optimizer.json").read_text())
    state: dict[int, dict[str, Any]] = {}
    for key, value in (safetensors.torch.load_file(folder / "optimizer.safetensors") | text["numbers"]).items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": text["param_groups"]}
