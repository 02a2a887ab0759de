"""TwoTowerModelV2."""

from collections.abc import Sequence

from twotower.encoder import EmbeddingEncoder, Encoder, Tower
from twotower.errors import explain_options
from twotower.logits import LearnedTemperature
from twotower.models.base import RetrievalModelV2
from twotower.models.parts import candidate_id_column
from twotower.outputs import ContrastiveOutput, DotProduct, ModelOutput
from twotower.samplers import Samplers
from twotower.schema import Schema, Tags


@explain_options
def TwoTowerModelV2(  # noqa: N802  (the name that Merlin users know)
    query_tower: Tower,
    candidate_tower: Tower,
    candidate_id_tag: Tags | str = Tags.ITEM_ID,
    outputs: ModelOutput | Sequence[ModelOutput] | None = None,
    logits_temperature: float | LearnedTemperature = 1.0,
    negative_samplers: Samplers | None = None,
    schema: Schema | None = None,
    *,
    logq_sampling_correction: bool | str | None = None,
    downscore_false_negatives: bool | None = None,
    target: str | None = None,
    sample_weight: str | None = None,
) -> RetrievalModelV2:
    """Two towers trained against sampled negatives, corrected for sampling bias.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019.

    Args:
        query_tower: an Encoder of the query's (user's) columns.
        candidate_tower: an Encoder of the candidate's (item's) columns, of the same width.
        candidate_id_tag: the tag of the candidate's id.
        outputs: an output or a list of them, in place of the contrastive output that the other options describe.
        logits_temperature: T of the contrastive output.
        negative_samplers: of the contrastive output; "in-batch" by default.
        schema: holds the candidate id column, for a candidate tower that does not read it.
        logq_sampling_correction: "logq" (the default), "corrected" or False, as in ContrastiveOutput.
        downscore_false_negatives: mask pool candidates equal to the row's positive; True by default.
        target: a column whose rows > 0 are the positives; by default all rows.
        sample_weight: a column of row weights.

    Raises:
        ValueError: towers of different widths, no candidate id, or `outputs` together with options of the default one.
        TypeError: a tower that is no Encoder, or an unknown option.

    Example:
        >>> def ids(name, tag):
        ...     domain = {"min": 0, "max": 99}
        ...     return Schema([ColumnSchema(name, tags=[tag], dtype="int64", properties={"domain": domain})])
        >>> model = TwoTowerModelV2(
        ...     Encoder(ids("user_id", Tags.USER_ID), MLPBlock([16])), Encoder(ids("item_id", Tags.ITEM_ID), MLPBlock([16])))
        >>> model({"user_id": torch.tensor([1, 2]), "item_id": torch.tensor([3, 4])}).shape
        torch.Size([2, 1])
    """
    for place, tower in (("query_tower", query_tower), ("candidate_tower", candidate_tower)):
        if not isinstance(tower, (Encoder, EmbeddingEncoder)):
            raise TypeError(
                f"{place} must be an Encoder, got {type(tower).__name__}: wrap it, Encoder(schema, MLPBlock([64]))."
            )
    given = {
        "logits_temperature": None if logits_temperature == 1.0 else logits_temperature,
        "negative_samplers": negative_samplers,
        "logq_sampling_correction": logq_sampling_correction,
        "downscore_false_negatives": downscore_false_negatives,
        "target": target,
        "sample_weight": sample_weight,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if outputs is not None and chosen:
        raise ValueError(
            f"outputs= brings its own settings, so {', '.join(chosen)} would be ignored. Set them on the output, "
            f"ContrastiveOutput(DotProduct(), schema=..., {', '.join(f'{name}=...' for name in chosen)}), or leave out outputs."
        )
    if outputs is None:
        column = candidate_id_column(candidate_tower.schema, schema, candidate_id_tag)
        outputs = ContrastiveOutput(DotProduct(), schema=Schema([column]), **chosen)  # type: ignore[arg-type]
    return RetrievalModelV2(
        query=query_tower, candidate=candidate_tower, output=outputs, schema=schema, candidate_id_tag=candidate_id_tag
    )


TwoTowerModel = TwoTowerModelV2  # the name in Merlin's documented example
