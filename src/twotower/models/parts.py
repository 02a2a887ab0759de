"""How the parts of a model fit: the candidate id, the widths, the outputs; and the step that they make together."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from twotower.blocks.prior import PopularityPrior
from twotower.candidates import Candidates, EncodeIds, Step
from twotower.data.batch import Batch, scalar_column
from twotower.data.dataset import Dataset
from twotower.distinct import encode_distinct, query_id
from twotower.encoder import EmbeddingEncoder, Tower, evaluating
from twotower.outputs import ContrastiveOutput, ModelOutput
from twotower.schema import ColumnSchema, Schema, Tags


def candidate_id_column(candidate: Schema, schema: Schema | None, tag: Tags | str) -> ColumnSchema:
    """The candidate id's column: the one with the tag, in the tower's schema or else in the one given."""
    for holder in (candidate, schema):
        found = holder.select_by_tag(tag) if holder is not None else Schema([])
        if len(found) == 1:
            return found.first
    only = candidate if len(candidate) == 1 else Schema([])
    if len(only) == 1 and schema is None:
        return only.first
    name = tag.value if isinstance(tag, Tags) else tag
    raise ValueError(
        f"no single column is tagged {name!r}: the candidate tower reads {candidate.column_names}"
        + (f", and schema holds {schema.column_names}. " if schema is not None else ". ")
        + "Tag the id column, name its tag as candidate_id_tag, or give schema=<a Schema with it>."
    )


def table_tower(outputs: Sequence[ModelOutput], dim: int) -> Tower:
    """The candidate tower of a model that was given none: a table on the contrastive output's id column."""
    for output in outputs:
        if isinstance(output, ContrastiveOutput) and isinstance(output.to_call, (Schema, ColumnSchema)):
            return EmbeddingEncoder(output.candidate_id, dim)
    raise ValueError(
        "a model without a candidate tower needs an output on the candidate id column: "
        "RetrievalModelV2(query=..., output=ContrastiveOutput(schema['item_id'])), or give candidate=<a tower>."
    )


def check_widths(query: Tower, candidate: Tower) -> None:
    """ValueError that names both towers when their widths differ."""
    if query.dim != candidate.dim:
        raise ValueError(
            f"the towers must end in one width, but the query tower ({', '.join(query.schema.column_names)}) gives "
            f"{query.dim} and the candidate tower ({', '.join(candidate.schema.column_names)}) gives {candidate.dim}. "
            "Make the last width of both the same."
        )


def check_outputs(outputs: Sequence[ModelOutput], dim: int) -> None:
    """ValueError for no output or a repeated name; and shows the outputs' layers the towers' width."""
    names = [output.name for output in outputs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a model needs at least one output, and each a name of its own; got {names}. Give name=...")
    for output in outputs:
        with evaluating(output):
            output.predict(torch.zeros(2, dim), torch.zeros(2, dim))


def check_prior(candidate: Tower, outputs: Sequence[ModelOutput]) -> None:
    """ValueError where a popularity prior would not be weighed as it says."""
    prior = getattr(candidate, "prior", None)
    for output in outputs:
        if not isinstance(prior, PopularityPrior) or not isinstance(output, ContrastiveOutput):
            continue
        if output.logits_temperature != prior.temperature:
            raise ValueError(
                f"the PopularityPrior has temperature {prior.temperature} and the output {output.logits_temperature!r}, but the "
                "prior stands for log p only at the same number. Give both the same; a learned one cannot be had beside a prior."
            )
        if output.prefixes:
            raise ValueError(
                f"prefixes {output.prefixes} cut the PopularityPrior off, the vectors' last column. Leave one of the two out."
            )


def columns_read(outputs: Sequence[ModelOutput]) -> list[str]:
    """The columns beside the towers' own that training reads: targets, weights, negatives."""
    return list(dict.fromkeys(name for output in outputs for name in output.columns()))


def checked_batch_size(batch_size: int | None, epochs: int, steps_per_epoch: int | None) -> int:
    """fit's batch_size, if it and the numbers of epochs and steps make sense."""
    if epochs < 1 or (steps_per_epoch is not None and steps_per_epoch < 1):
        raise ValueError(f"epochs and steps_per_epoch must be at least 1, got {epochs} and {steps_per_epoch}.")
    if batch_size is None:
        raise ValueError("fit needs a batch_size, such as fit(train, batch_size=1024): the number of rows in a step.")
    return batch_size


def check_intervals(**steps: object) -> None:
    """ValueError for a number of steps between two measurements that is no whole number from 0 on."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number of steps, 0 for never; got {value!r}.")


def ids_of_queries(query: Tower, train: Dataset) -> Tensor | None:
    """(rows,) the ids of the training data's queries, on the tower's device; None where no column tells them apart."""
    name = query_id(query)
    ids = None if name is None else train.batch(query.schema.select_by_name([name]))[name]
    return ids.to(next(query.parameters()).device) if isinstance(ids, Tensor) and ids.ndim == 1 else None


def make_step(
    query: Tower, candidate: Tower, candidate_id: str, batch: Batch, encode: EncodeIds, encode_rows: int | None
) -> Step:
    """Both towers on the batch, each distinct query and candidate once, at most `encode_rows` at a time."""
    name = query_id(query)
    queries, query_row, query_first = encode_distinct(query, batch, name, encode_rows)
    asked = None if name is None else batch[name]
    query_ids = asked[query_first] if isinstance(asked, Tensor) and asked.ndim == 1 else None
    step = pair_step(queries, candidate, candidate_id, batch, encode, encode_rows)
    return replace(step, query_row=query_row, query_ids=query_ids)


def pair_step(
    queries: Tensor,
    candidate: Tower,
    candidate_id: str,
    batch: Batch,
    encode: EncodeIds,
    encode_rows: int | None = None,
) -> Step:
    """The candidate tower on the batch, each distinct candidate once, beside a vector for each query."""
    vectors, row, first = encode_distinct(candidate, batch, candidate_id, encode_rows)
    ids = scalar_column(batch, candidate_id)[first]
    counts = None if row is None else torch.bincount(row, minlength=len(ids))
    return Step(batch, queries, Candidates(ids, vectors, counts), encode, candidate_row=row)
