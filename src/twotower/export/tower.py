"""export_tower: one tower as a file that other runtimes read."""

import copy
import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twotower.encoder import EmbeddingEncoder, Encoder, Tower, evaluating
from twotower.errors import choose, explain_options, need
from twotower.export.checking import TOLERANCE, Run, example_inputs, largest_difference, weighed
from twotower.export.graph import trace, write_onnx
from twotower.export.inputs import BATCH, OUTPUT, TowerInput, tower_inputs
from twotower.files import PathLike, folder_written_aside

FORMAT = 1
MARKER = "export.json"


@explain_options
def export_tower(tower: Tower, path: PathLike, format: str = "onnx", *, check: bool = True) -> None:
    """Write a folder from which ONNX Runtime, or PyTorch without this library, computes the tower's vectors.

    It holds `tower.onnx` (with `tower.onnx.data` beside it when the weights exceed 2 GB) or `tower.pt2`, and `export.json`: the
    inputs by name, their types, shapes and meaning, the width of the output `vector` (B, D), versions, and what `check` found.
    B and the lengths of lists are free. It is written aside, and replaces an older export only when it is complete.

    Args:
        tower: `model.query_encoder` or `model.candidate_encoder`, in float32.
        path: the folder.
        format: "onnx" (needs `pip install 'twotower[onnx]'`), or "torch" for a program of torch.export.
        check: run what was written, by ONNX Runtime or torch.export.load, and refuse it when it differs from the tower by more
            than 1e-5 (relative where numbers exceed 1): random rows, one row, empty lists, lists longer than the tower
            reads, the largest, missing and unknown ids.

    Inputs are what a Preprocessor makes of raw values; `flat_inputs` makes them of a batch. An id outside its domain is an error
    of the runtime on the CPU. Weights of lists are not compared with their lists.

    Raises:
        ValueError: no tower, another precision, an unknown format, a block that cannot be exported, or a difference.

    Example:
        >>> export_tower(model.query_encoder, "query-tower")                                    # doctest: +SKIP
        >>> session = onnxruntime.InferenceSession("query-tower/tower.onnx")                    # doctest: +SKIP
        >>> session.run(["vector"], flat_inputs(batch, model.query_encoder.schema))[0].shape    # doctest: +SKIP
        (1024, 64)
    """
    write = choose("format", format, FORMATS)
    held = _exportable(tower)
    inputs = tower_inputs(held.schema, weighed(held))
    with folder_written_aside(path, MARKER) as folder, evaluating(held):
        told, run = write(held, inputs, folder)
        checked = None
        if check:
            batches, difference = largest_difference(held, run())
            checked = {"batches": batches, "largest_difference": difference, "tolerance": TOLERANCE}
        text = {
            "format": FORMAT,
            "twotower": importlib.import_module("twotower").__version__,
            "torch": torch.__version__,
            **told,
            "inputs": [each.describe() for each in inputs],
            "output": {"name": OUTPUT, "dtype": "float32", "shape": [BATCH, held.dim]},
            "checked": checked,
        }
        (folder / MARKER).write_text(json.dumps(text, indent=2))


def _exportable(tower: Tower) -> Tower:
    """The tower, on the CPU."""
    if not isinstance(tower, (Encoder, EmbeddingEncoder)):
        raise ValueError(
            f"export_tower writes one tower, got a {type(tower).__name__}: give model.query_encoder or model.candidate_encoder."
        )
    kinds = {parameter.dtype for parameter in tower.parameters()} - {torch.float32}
    if kinds:
        raise ValueError(
            f"export_tower writes float32, but the tower holds {sorted(map(str, kinds))}: call tower.float() first."
        )
    if all(parameter.device.type == "cpu" for parameter in tower.parameters()):
        return tower
    return copy.deepcopy(tower).cpu()


Written = tuple[dict[str, Any], Callable[[], Run]]


def _write_torch(tower: Tower, inputs: list[TowerInput], folder: Path) -> Written:
    file = folder / "tower.pt2"
    torch.export.save(trace(tower, inputs, example_inputs(tower)), file)
    return {"file": file.name}, partial(_run_torch, file)


def _run_torch(file: Path) -> Run:
    program = torch.export.load(file).module()

    def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            vectors: torch.Tensor = program({name: torch.from_numpy(array) for name, array in arrays.items()})
        return vectors.numpy()

    return run


def _write_onnx(tower: Tower, inputs: list[TowerInput], folder: Path) -> Written:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        need(name, "format='onnx'", "onnx")
    file = folder / "tower.onnx"
    opset = write_onnx(trace(tower, inputs, example_inputs(tower)), inputs, file)
    return {"file": file.name, "opset": opset}, partial(_run_onnx, file)


def _run_onnx(file: Path) -> Run:
    session = need("onnxruntime", "format='onnx'", "onnx").InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
        vectors: np.ndarray = session.run([OUTPUT], arrays)[0]
        return vectors

    return run


FORMATS: dict[str, Callable[[Tower, list[TowerInput], Path], Written]] = {"onnx": _write_onnx, "torch": _write_torch}
