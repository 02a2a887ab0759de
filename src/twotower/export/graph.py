"""A tower as a graph of tensor operations: PyTorch's ExportedProgram, and ONNX made of it."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from twotower.blocks.inputs import column_kind
from twotower.encoder import Tower
from twotower.export.inputs import BATCH, OUTPUT, TowerInput, batch_of

Shapes = tuple[dict[str, dict[int, Any]]]


class FlatTower(nn.Module):
    """A tower that reads a dict of flat tensors in place of a batch.

    An id below 0 becomes one above the largest, which every runtime refuses: ONNX would count it from the table's end.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        # weights of lists and targets beside, every integer column that is no number is looked up somewhere
        looked_up = [c for c in tower.schema if c.int_domain is not None and column_kind(c) != "continuous"]
        self._beyond = {name: c.cardinality for c in looked_up for name in (c.name, f"{c.name}.values")}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, D), as the tower's."""
        safe = {
            name: torch.where(given < 0, self._beyond[name], given) if name in self._beyond else given
            for name, given in inputs.items()
        }
        return self.tower(batch_of(safe, self.tower.schema))


def trace(tower: Tower, inputs: list[TowerInput], example: Mapping[str, Tensor]) -> ExportedProgram:
    """The tower on inputs of any number of rows and lists of any length.

    Args:
        tower: in evaluation mode.
        inputs: its inputs.
        example: a value for each; neither 0 nor 1 of anything.

    Raises:
        ValueError: a block does something that depends on the data in a way that a graph cannot.
    """
    # without this PyTorch takes sizes of the example, which are not 0 or 1, for a promise that no size ever is
    from torch.fx.experimental import _config as symbols

    try:
        free = symbols.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
        with _quiet(), torch.no_grad(), free:
            program = torch.export.export(FlatTower(tower), (dict(example),), dynamic_shapes=shapes_of(inputs))
    except Exception as error:
        raise ValueError(
            f"{_blamed(error, tower)} cannot be exported: {_first_line(error)}. A graph has no branches, loops and sizes that "
            "depend on the values of its inputs: write the block with tensor operations alone, or serve the tower from Python."
        ) from error
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:  # it names files of this machine
                node.meta.pop("stack_trace", None)
    return program


def shapes_of(inputs: list[TowerInput]) -> Shapes:
    """Which sizes are free, as torch.export asks it."""
    batch = Dim(BATCH)
    sizes: dict[int | str, Any] = {each.shape[0]: Dim(str(each.shape[0])) for each in inputs if each.is_values}
    sizes |= {BATCH: batch, f"{BATCH} + 1": batch + 1}
    return ({each.name: {0: sizes[each.shape[0]]} for each in inputs},)


def write_onnx(program: ExportedProgram, inputs: list[TowerInput], file: Path) -> int:
    """Write the graph as ONNX; weights beyond 2 GB go to `<file>.data`.

    Returns:
        The version of ONNX's operators.
    """
    example = program.example_inputs[0] if program.example_inputs else ()
    try:
        with _quiet():
            made = torch.onnx.export(program, example, dynamic_shapes=shapes_of(inputs), verbose=False)
    except Exception as error:
        raise ValueError(
            f"a block of the tower does what ONNX has no words for: {_first_line(_root(error))}. Export it with "
            "format='torch', or write the block in other operations."
        ) from error
    assert made is not None
    graph = made.model.graph
    _clear_names(graph, {each.name for each in inputs} | {OUTPUT})
    for value, each in zip(graph.inputs, inputs, strict=True):
        value.name = each.name
    graph.outputs[0].name = OUTPUT
    for node in graph.all_nodes():  # it names files of this machine
        node.metadata_props.clear()
        node.doc_string = None
    made.save(file)
    return int(made.model.opset_imports[""])


def _clear_names(graph: Any, wanted: set[str]) -> None:
    """Give values inside the graph other names than those of the inputs."""
    inside = [value for node in graph.all_nodes() for value in node.outputs]
    for number, value in enumerate([*graph.inputs, *inside, *graph.initializers.values()]):
        if value.name in wanted:
            value.name = f"inner_{number}.{value.name}"


def _blamed(error: BaseException, tower: Tower) -> str:
    """The innermost block of the tower that was at work when the error came up."""
    names = {id(part): name for name, part in tower.named_modules()}
    found = tower
    place: TracebackType | None = error.__traceback__
    while place is not None:
        part = place.tb_frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            found = part  # type: ignore[assignment]
        place = place.tb_next
    where = names[id(found)]
    return f"block {where!r} ({type(found).__name__})" if where else f"the {type(found).__name__}"


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch says of itself: deprecated calls of its own, packages not installed, and that sizes have one name."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*shares the same shape constraints", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
