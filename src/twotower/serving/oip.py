"""The Open Inference Protocol, version 2, over JSON: the raw columns of queries are its tensors.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from twotower.serving.inputs import Input
from twotower.serving.problems import Problem
from twotower.serving.requests import Answer, Question

TYPES: dict[str, tuple[type, ...]] = {
    "BOOL": (bool,),
    **{f"{sign}INT{bits}": (int,) for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": (float, int) for bits in (16, 32, 64)},
    "BYTES": (str,),
}
BOUNDS = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
LOWEST = -3.4028234663852886e38  # the score of a place that is not filled


class Tensor(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One input. `data` is flat or nested; parameters {"lengths": "3,1"} cut the rows of a list column short."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, bool | int | float | str] = {}


class Wanted(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An output that the client wants."""

    name: str
    parameters: dict[str, bool | int | float | str] = {}


class InferRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Queries, a row of each tensor for each. Parameter k is how many items each gets."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, bool | int | float | str] = {}
    outputs: list[Wanted] = []


def questions_of(request: InferRequest, inputs: Mapping[str, Input], most: int) -> list[Question]:
    """A question for each row.

    Args:
        request: the tensors.
        inputs: the model's columns.
        most: rows that are read.

    Raises:
        Problem: tensors that do not fit the model's columns or each other.
    """
    unknown = [name for name in request.parameters if name != "k"]
    if unknown:
        raise Problem(422, f"unknown parameter {unknown[0]!r}.", "k is the only one.")
    k = request.parameters.get("k", 10)
    if isinstance(k, bool) or not isinstance(k, int) or not _fits(k, *BOUNDS["INT64"]):
        raise Problem(422, f"parameter k is {_told(k)}, not a whole number of 64 bits.")
    given = [tensor.name for tensor in request.inputs]
    if sorted(given) != sorted(inputs):
        raise Problem(422, f"the inputs are {given}, but the model reads {list(inputs)}.", "Give one tensor for each.")
    # before anything is built: a shape may claim rows without end for which no data came
    shapes = {tensor.name: _shape(tensor, inputs[tensor.name].is_list) for tensor in request.inputs}
    counts = {name: rows for name, (rows, _) in shapes.items()}
    if len(set(counts.values())) > 1:
        raise Problem(422, f"the tensors have different numbers of rows: {counts}.")
    for rows in counts.values():
        if not 0 < rows <= most:
            raise Problem(422, f"the tensors have {rows} rows, they may have 1 to {most}.")
    columns = {
        tensor.name: _rows(tensor, *shapes[tensor.name], inputs[tensor.name].is_list) for tensor in request.inputs
    }
    return [
        Question(query=dict(zip(columns, row, strict=True)), k=k, fields=[])
        for row in zip(*columns.values(), strict=True)
    ]


def infer_response(
    name: str, version: str, request: InferRequest, answers: Sequence[Answer], k: int, ids_are_integers: bool
) -> dict[str, Any]:
    """The answers as tensors: ids and scores, (rows, k), and how many places of each row are filled."""
    k = max((len(answer.results) for answer in answers), default=0) or k
    nobody: int | str = -1 if ids_are_integers else ""
    rows = len(answers)
    ids = [[r.id for r in answer.results] for answer in answers]
    scores = [[r.score for r in answer.results] for answer in answers]
    every: dict[str, dict[str, Any]] = {
        "ids": {
            "shape": [rows, k],
            "datatype": "INT64" if ids_are_integers else "BYTES",
            "data": [i for row in ids for i in [*row, *[nobody] * (k - len(row))]],
        },
        "scores": {
            "shape": [rows, k],
            "datatype": "FP32",
            "data": [s for row in scores for s in [*row, *[LOWEST] * (k - len(row))]],
        },
        "counts": {"shape": [rows], "datatype": "INT64", "data": [len(row) for row in ids]},
    }
    wanted = [output.name for output in request.outputs] or list(every)
    for output in wanted:
        if output not in every:
            raise Problem(422, f"there is no output {output!r}.", f"The outputs are {', '.join(every)}.")
    response: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        response["id"] = request.id
    return {**response, "outputs": [{"name": output, **every[output]} for output in wanted]}


def metadata(name: str, version: str, inputs: Mapping[str, Input], ids_are_integers: bool) -> dict[str, Any]:
    """What the model reads and gives."""
    ids = "INT64" if ids_are_integers else "BYTES"
    return {
        "name": name,
        "versions": [version],
        "platform": "twotower",
        "inputs": [
            {"name": n, "datatype": column.datatype, "shape": [-1, -1] if column.is_list else [-1]}
            for n, column in inputs.items()
        ],
        "outputs": [
            {"name": "ids", "datatype": ids, "shape": [-1, -1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "counts", "datatype": "INT64", "shape": [-1]},
        ],
    }


def _shape(tensor: Tensor, is_list: bool) -> tuple[int, int]:
    """The rows, and how long each is."""
    shape = tensor.shape
    if shape[1:] == [1] and not is_list:  # a column of one value a row may come as a matrix of one column
        shape = shape[:1]
    if len(shape) != 1 + is_list or not all(0 <= size < 2**31 for size in shape):
        expected = "[rows, length]" if is_list else "[rows]"
        raise Problem(422, f"input {tensor.name!r} has shape {shape[:10]}, expected {expected}.")
    return shape[0], shape[1] if is_list else 1


def _rows(tensor: Tensor, rows: int, length: int, is_list: bool) -> list[Any]:
    """The values of each row, null for what is missing."""
    where = f"input {tensor.name!r}"
    if tensor.datatype not in TYPES:
        raise Problem(422, f"{where} has datatype {tensor.datatype!r}.", f"Known are {', '.join(TYPES)}.")
    flat = tensor.data
    while flat and isinstance(flat[0], list):
        if not all(isinstance(part, list) for part in flat):
            raise Problem(422, f"{where} mixes lists and values.")
        flat = [value for part in flat for value in part]
    if len(flat) != rows * length:
        raise Problem(422, f"{where} has shape {tensor.shape}, but {len(flat)} values.")
    kinds, bounds = TYPES[tensor.datatype], BOUNDS.get(tensor.datatype)
    for value in flat:
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if value is not None and (wrong or (bounds is not None and not _fits(value, *bounds))):
            raise Problem(422, f"{where} is declared {tensor.datatype}, but holds {_told(value)}.")
    if tensor.datatype.startswith("FP"):
        try:
            flat = [None if value is None else float(value) for value in flat]
        except OverflowError:
            raise Problem(422, f"{where} holds a number beyond a double.", "Give null for what is not known.") from None
    unknown = [name for name in tensor.parameters if name != "lengths"]
    if unknown:
        raise Problem(422, f"{where} has an unknown parameter {unknown[0]!r}.", "lengths is the only one.")
    if not is_list:
        return flat
    lengths = _lengths(tensor, rows, length, where)
    return [flat[row * length : row * length + lengths[row]] for row in range(rows)]


def _fits(value: int, lowest: int, highest: int) -> bool:
    return lowest <= value <= highest


def _told(value: object) -> str:
    """As text; numbers of thousands of digits, which Python does not write out, without their digits."""
    if isinstance(value, int) and not _fits(value, -(2**63), 2**64):
        return "a whole number beyond 64 bits"
    return repr(value)[:200]


def _lengths(tensor: Tensor, rows: int, length: int, where: str) -> list[int]:
    text = tensor.parameters.get("lengths")
    if text is None:
        return [length] * rows
    parts = str(text).split(",")
    lengths = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 10]
    if len(lengths) != len(parts) or len(lengths) != rows or max(lengths, default=0) > length:
        raise Problem(422, f"{where}: lengths is {text!r}, expected {rows} numbers up to {length}, with commas.")
    return lengths
