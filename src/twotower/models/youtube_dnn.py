"""YoutubeDNNRetrievalModelV2."""

from collections.abc import Sequence

from torch import nn

from twotower.blocks.embedding import Embeddings
from twotower.blocks.inputs import InputBlockV2, column_kind
from twotower.blocks.mlp import MLPBlock
from twotower.blocks.table import table_name
from twotower.encoder import EmbeddingEncoder, Encoder
from twotower.errors import explain_options
from twotower.models.base import RetrievalModelV2
from twotower.models.parts import candidate_id_column
from twotower.outputs import ContrastiveOutput, ModelOutput
from twotower.samplers.popularity import PopularityBasedSamplerV2
from twotower.schema import Schema, Tags


@explain_options
def YoutubeDNNRetrievalModelV2(  # noqa: N802
    schema: Schema,
    candidate_id_tag: Tags | str = Tags.ITEM_ID,
    top_block: MLPBlock | None = None,
    post: nn.Module | None = None,
    inputs: InputBlockV2 | None = None,
    outputs: ModelOutput | Sequence[ModelOutput] | None = None,
    logits_temperature: float = 1.0,
    num_sampled: int = 100,
    min_sampled_id: int = 0,
) -> RetrievalModelV2:
    """A query tower over the user's features and history, against a table of item vectors.

    Covington, Adams and Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016. Negatives are
    log-uniform over the item ids, corrected. A history column that shares the item id's domain shares its table.

    Args:
        schema: the item id column (tagged `candidate_id_tag`, one id a row), and the query's columns.
        top_block: the query tower's layers; MLPBlock([64]) by default. Its last width is the item vectors' width.
        post: a module on the query vector.
        inputs: the query tower's input block, in place of one built from the schema.
        outputs: in place of the contrastive output that the next three options describe.
        logits_temperature: T of the softmax.
        num_sampled: distinct negatives in a step.
        min_sampled_id: the smallest id drawn; 2 with ids from the Preprocessor.

    Raises:
        ValueError: the shared item table has another width than the top block.
    """
    if outputs is not None and (logits_temperature, num_sampled, min_sampled_id) != (1.0, 100, 0):
        raise ValueError(
            "outputs= brings its own settings, so logits_temperature, num_sampled and min_sampled_id would be ignored. "
            "Set them on the output."
        )
    top = top_block or MLPBlock([64])
    item = candidate_id_column(schema, None, candidate_id_tag)
    width = top.dimensions[-1]
    block = inputs or _inputs(schema.excluding_by_name([item.name]), table_name(item), width)
    tables = block.categorical.tables if isinstance(block.categorical, Embeddings) else {}
    candidate = EmbeddingEncoder(item, width, table=tables.get(table_name(item)))
    sampler = PopularityBasedSamplerV2(item.cardinality - 1, min_id=min_sampled_id, max_num_samples=num_sampled)
    output = outputs or ContrastiveOutput(item, sampler, logits_temperature=logits_temperature)
    return RetrievalModelV2(
        query=Encoder(block, top, post=post), candidate=candidate, output=output, candidate_id_tag=candidate_id_tag
    )


def _inputs(query: Schema, item_table: str, width: int) -> InputBlockV2:
    categorical = Schema([c for c in query.excluding_targets() if column_kind(c) == "categorical"])
    if not len(categorical):
        return InputBlockV2(query)
    shared = {c.name: width for c in categorical if table_name(c) == item_table}
    return InputBlockV2(query, categorical=Embeddings(categorical, dim=shared))
