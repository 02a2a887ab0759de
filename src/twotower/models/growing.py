"""Growth: a trained model takes in the ids that an extended schema has appended."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twotower.blocks.pretrained import PretrainedEmbeddings, Vectors
from twotower.blocks.table import EmbeddingTable, check_one_domain
from twotower.errors import unknown
from twotower.optimizers import RowOptimizer, SplitOptimizer, use_dense_gradients
from twotower.outputs import ContrastiveOutput
from twotower.samplers.popularity import PopularityBasedSamplerV2, PopularitySampler
from twotower.schema import ColumnSchema, Schema

if TYPE_CHECKING:
    from twotower.models.base import RetrievalModelV2

State = dict[str, Any]


def extend(model: "RetrievalModelV2", schema: Schema, vectors: Mapping[str, Vectors]) -> None:
    """Grow every table, vector store, sampler and schema of a model, and its optimiser's state; all of it or nothing."""
    tables = [part for part in model.modules() if isinstance(part, EmbeddingTable)]
    blocks = [part for part in model.modules() if isinstance(part, PretrainedEmbeddings)]
    # everything that can be wrong is found before anything changes
    _check_complete(model, tables, schema)
    renewals = list(_renewals(model, schema))
    columns = [[grown_column(c, schema[c.name]) for c in table.col_schemas] for table in tables]
    for table_columns in columns:
        check_one_domain(tuple(table_columns))
    stores = _grown_vectors(blocks, schema, vectors)
    samplers = _grown_samplers(model, schema)
    before = None if model.optimizer_state is None else _optimizer_order(model)

    for block, (block_schema, grown) in zip(blocks, stores, strict=True):
        block.take(block_schema, grown)
    replaced = _grow_tables(tables, columns)
    for sampler, max_id in samplers:
        sampler.extend(max_id)
    for part, name, renewed in renewals:
        setattr(part, name, renewed)
    if before is not None:
        model.optimizer_state = _grown_state(model, before, replaced)


# ---- schemas


def grown_column(old: ColumnSchema, new: ColumnSchema) -> ColumnSchema:
    """A column with the domain and the other properties of a newer one of its name; its tags stay.

    Raises:
        ValueError: it is another column, or has lost ids.
    """
    before, after = old.int_domain, new.int_domain
    then = (old.is_list, before and before.name, old.properties.get("unknown_id"))
    now = (new.is_list, after and after.name, new.properties.get("unknown_id"))
    if then != now:
        raise ValueError(
            f"column {old.name!r} is another one than the model was trained with: {then} then, {now} now (whether it holds lists, "
            "its domain's name, its unknown id). Extend the Preprocessor that made the first schema."
        )
    if before is not None and after is not None and after.max < before.max:
        raise ValueError(
            f"the domain of column {old.name!r} ends at {after.max}, but the model knows ids up to {before.max}; it can only grow. "
            "Extend the Preprocessor that made the first schema, which keeps the old ids."
        )
    return old.with_properties(new.properties)


def _check_complete(model: "RetrievalModelV2", tables: Sequence[EmbeddingTable], schema: Schema) -> None:
    names = dict.fromkeys([*model.input_schema.column_names, *(c.name for table in tables for c in table.col_schemas)])
    missing = [name for name in names if name not in schema]
    if missing:
        raise ValueError(
            f"the schema lacks columns that the model reads: {missing}. Give the whole schema of the extended data; this one has "
            f"{schema.column_names}."
        )


def _renewals(model: nn.Module, schema: Schema) -> Iterator[tuple[nn.Module, str, ColumnSchema | Schema]]:
    """Every part keeps what it was built from as attributes (see saving), so that its columns are found there."""
    for part in model.modules():
        for name, value in vars(part).items():
            if isinstance(value, ColumnSchema):
                yield part, name, _renewed(value, schema)
            elif isinstance(value, Schema):
                yield part, name, Schema([_renewed(c, schema) for c in value])


def _renewed(column: ColumnSchema, schema: Schema) -> ColumnSchema:
    # an output may have been shown a whole schema, with targets that are no business of the extended one
    return grown_column(column, schema[column.name]) if column.name in schema else column


# ---- weights


def _grow_tables(
    tables: Sequence[EmbeddingTable], columns: Sequence[Sequence[ColumnSchema]]
) -> dict[nn.Parameter, nn.Parameter]:
    """Grow each table, tied ones together; the new weights by the old ones."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for table, table_columns in zip(tables, columns, strict=True):
        old = table.weight
        table.extend(*table_columns)
        table.weight = replaced.setdefault(old, table.weight)
    return replaced


def _grown_vectors(
    blocks: Sequence[PretrainedEmbeddings], schema: Schema, vectors: Mapping[str, Vectors]
) -> list[tuple[Schema, dict[str, Tensor]]]:
    known = {name for block in blocks for name in block.vectors}
    for name in vectors:
        if name not in known:
            raise ValueError(
                f"the model looks up no vectors by the column of vectors={{{name!r}: ...}}. {unknown('column', name, known)}"
            )
    schemas = [Schema([_renewed(c, schema) for c in block.schema]) for block in blocks]
    return [(new, block.grown(new, vectors)) for block, new in zip(blocks, schemas, strict=True)]


def _grown_samplers(model: "RetrievalModelV2", schema: Schema) -> list[tuple[PopularityBasedSamplerV2, int]]:
    """The samplers that draw up to the last candidate id, and the new last one; the others learn from data."""
    found = []
    for output in model.outputs:
        if not isinstance(output, ContrastiveOutput):
            continue
        old, new = output.candidate_id.cardinality, _renewed(output.candidate_id, schema).cardinality
        for sampler in output.negative_samplers:
            if isinstance(sampler, PopularityBasedSamplerV2) and sampler.max_id == old - 1:
                found.append((sampler, new - 1))
            if isinstance(sampler, PopularitySampler) and sampler.given and new > old > int(sampler.ids.max()):
                raise ValueError(
                    f"PopularitySampler was given weights for the ids up to {old - 1}, and has none for those up to {new - 1}. "
                    "Give one with weights for all: output.set_negative_samplers(...), then extend."
                )
    return found


# ---- the optimiser's state


def _optimizer_order(model: "RetrievalModelV2") -> list[nn.Parameter]:
    """The trainable parameters in the order in which the optimiser's state numbers them."""
    assert model.optimizer_state is not None
    order = _parameters(model.compiled.make_optimizer(model))
    use_dense_gradients(model)
    held = sum(len(group["params"]) for group in model.optimizer_state["param_groups"])
    if held != len(order):
        raise ValueError(
            f"the optimizer's state is of {held} parameters, but the model has {len(order)} that are trained. Call compile() after "
            "freezing or unfreezing a part, before extend()."
        )
    return order


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _grown_state(
    model: "RetrievalModelV2", before: Sequence[nn.Parameter], replaced: Mapping[nn.Parameter, nn.Parameter]
) -> State:
    """The state for the grown model: that of old rows as it was, zeros for new ones.

    A table that has become large goes over to the row optimiser of the same kind, which goes on from the dense one's state.
    """
    assert model.optimizer_state is not None
    old_state, old_groups = model.optimizer_state["state"], model.optimizer_state["param_groups"]
    optimizer = model.compiled.make_optimizer(model)
    use_dense_gradients(model)
    now = {replaced.get(parameter, parameter): (number, parameter) for number, parameter in enumerate(before)}
    state: dict[int, State] = {}
    groups = optimizer.state_dict()["param_groups"]
    parts = optimizer.parts if isinstance(optimizer, SplitOptimizer) else [optimizer]
    by_row = {parameter for part in parts if isinstance(part, RowOptimizer) for parameter in _parameters(part)}
    for place, parameter in enumerate(_parameters(optimizer)):
        number, old = now[parameter]
        if number in old_state:
            values = {name: _grown_value(value, old, parameter) for name, value in old_state[number].items()}
            # the dense Adam counts its steps in a tensor
            state[place] = values | ({"step": int(values["step"])} if parameter in by_row and "step" in values else {})
    # options that a schedule has changed stay, where the groups are still the same
    options = [
        {**group, **{name: value for name, value in old.items() if name != "params"}}
        if old is not None and old.keys() == group.keys()
        else group
        for group, old in zip(groups, [*old_groups, *[None] * len(groups)], strict=False)
    ]
    return {"state": state, "param_groups": options}


def _grown_value(value: Any, old: Tensor, new: Tensor) -> Any:
    """What an optimiser holds for each row of a weight, with zeros for the new rows; anything else as it is."""
    for_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(old) < len(new)
    if not for_rows:
        return value
    return torch.cat([value, value.new_zeros(len(new) - len(old), *value.shape[1:])])
