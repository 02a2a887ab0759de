"""MatrixFactorizationModelV2."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from twotower.blocks.initializers import Initializer
from twotower.encoder import EmbeddingEncoder
from twotower.errors import explain_options, unknown
from twotower.models.base import RetrievalModelV2
from twotower.models.two_tower import TwoTowerModelV2
from twotower.outputs import ModelOutput
from twotower.samplers import Samplers
from twotower.schema import ColumnSchema, Schema, Tags

T = TypeVar("T")


@explain_options
def MatrixFactorizationModelV2(  # noqa: N802
    schema: Schema,
    dim: int,
    query_id_tag: Tags | str = Tags.USER_ID,
    candidate_id_tag: Tags | str = Tags.ITEM_ID,
    embeddings_initializers: str | Initializer | Mapping[str, str | Initializer] = "uniform",
    embeddings_l2_batch_regularization: float | Mapping[str, float] = 0.0,
    post: nn.Module | None = None,
    outputs: ModelOutput | Sequence[ModelOutput] | None = None,
    negative_samplers: Samplers | None = None,
    logits_temperature: float = 1.0,
    *,
    logq_sampling_correction: bool | str | None = None,
) -> RetrievalModelV2:
    """Two towers that are one embedding table each.

    Args:
        schema: holds the two id columns.
        dim: width of the vectors.
        query_id_tag, candidate_id_tag: the tags of the id columns.
        embeddings_initializers, embeddings_l2_batch_regularization: one value, or a dict by column name.
        post: a module on both towers' vectors, such as L2Norm().
        outputs, negative_samplers, logits_temperature, logq_sampling_correction: as in TwoTowerModelV2.
    """
    query, candidate = (
        EmbeddingEncoder(
            column,
            dim,
            embeddings_initializer=_pick(embeddings_initializers, column.name, schema, "uniform"),  # type: ignore[arg-type]
            embeddings_l2_batch_regularization=_pick(embeddings_l2_batch_regularization, column.name, schema, 0.0),
            post=post,
        )
        for column in (_one(schema, query_id_tag), _one(schema, candidate_id_tag))
    )
    return TwoTowerModelV2(
        query,
        candidate,
        candidate_id_tag=candidate_id_tag,
        outputs=outputs,
        negative_samplers=negative_samplers,
        logits_temperature=logits_temperature,
        logq_sampling_correction=logq_sampling_correction,
    )


def _one(schema: Schema, tag: Tags | str) -> ColumnSchema:
    found = schema.select_by_tag(tag)
    if len(found) != 1:
        raise ValueError(f"expected one column tagged {tag!s} among {schema.column_names}, found {found.column_names}.")
    return found.first


def _pick(option: T | Mapping[str, T], name: str, schema: Schema, default: T) -> T:
    if not isinstance(option, Mapping):
        return option
    for given in option:
        if given not in schema:
            raise ValueError(unknown("column", given, schema.column_names))
    return option.get(name, default)
