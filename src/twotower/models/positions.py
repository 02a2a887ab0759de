"""Training on every position: each item of a history is a positive of the query before it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from twotower.blocks.embedding import Embeddings
from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.pooling import as_ragged
from twotower.blocks.table import table_name
from twotower.candidates import Candidates, EncodeIds, Step
from twotower.data.batch import Batch, column, scalar_column, take
from twotower.data.catalog import Catalog
from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.distinct import one_row_each, query_id
from twotower.encoder import Encoder, Tower
from twotower.models import parts
from twotower.outputs import ContrastiveOutput, ModelOutput
from twotower.schema import ColumnSchema, Schema


@dataclass(frozen=True, eq=False)
class Targets:
    """The positives of B rows at all their positions, row after row, oldest first; missing and unknown ids left out.

    Args:
        ids: (P,) candidate ids.
        row: (P,) the row of each.
        place: (P,) which of the rows' vectors, `Encoder.every_position`, precedes it.
        own: (P,) whether it is its row's own candidate, in place of an element of the list.
    """

    ids: Int[Tensor, "P"]
    row: Int[Tensor, "P"]
    place: Int[Tensor, "P"]
    own: Bool[Tensor, "P"]


def targets(history: Tensor | Ragged, candidate: Int[Tensor, "B"], max_length: int | None, smallest: int) -> Targets:
    """The elements of each row's list and then its own candidate.

    Args:
        history: the lists of candidate ids.
        candidate: the rows' own.
        max_length: of the list, the latest so many; None for all.
        smallest: ids below it are none that could be recommended.
    """
    held = history if isinstance(history, Ragged) else as_ragged(history[:, :, None])
    lists = held if max_length is None else held.latest(max_length)
    rows = torch.arange(len(lists), device=lists.device)
    row = rows.repeat_interleave(lists.lengths() + 1)
    ids, own = torch.empty_like(row), torch.zeros_like(row, dtype=torch.bool)
    own[lists.offsets[1:] + rows] = True
    ids[own] = candidate
    ids[~own] = lists.values.flatten()
    place = (ids >= smallest).nonzero().squeeze(1)
    return Targets(ids[place], row[place], place, own[place])


def make_steps(
    query: Tower,
    candidate: Tower,
    candidate_id: ColumnSchema,
    outputs: Sequence[ModelOutput],
    name: str,
    batch: Batch,
    encode: EncodeIds,
) -> dict[str, Step]:
    """The training step of each output, by its name: all positions for contrastive ones, the rows' own pairs for others.

    A row's columns count for all of its positions, but its target for its own candidate alone: what stands in the list
    is a positive.
    """
    assert isinstance(query, Encoder)
    found = _of_batch(query, candidate_id, name, batch)
    vectors = query.every_position(batch, name)
    row, first = one_row_each(found.ids)
    ids = found.ids[first]
    candidates = Candidates(ids, encode(ids), torch.bincount(row, minlength=len(ids)))
    id_name = query_id(query)
    asked = None if id_name is None else batch[id_name]
    query_ids = asked[found.row] if isinstance(asked, Tensor) and asked.ndim == 1 else None
    rows = take(_read(batch, name, outputs), found.row)
    at_positions = vectors.values.index_select(0, found.place)
    steps = {}
    for output in outputs:
        if isinstance(output, ContrastiveOutput):
            step = Step(
                _positive(rows, output.target, found.own), at_positions, candidates, encode, None, row, query_ids
            )
        else:
            last = vectors.values.index_select(0, vectors.offsets[1:] - 1)
            step = parts.pair_step(last, candidate, candidate_id.name, batch, encode)
        steps[output.name] = step
    return steps


def all_targets(query: Tower, candidate_id: ColumnSchema, name: str, train: Dataset) -> Targets:
    """The positives of all training rows, for the samplers' frequencies."""
    columns = train.batch(Schema([query.schema[name], candidate_id]))
    return _of_batch(query, candidate_id, name, columns)


def covering(catalog: Catalog, candidate: Schema, ids: Tensor, given: bool) -> Catalog:
    """The catalogue with the ids of all positives, which stand in lists and so need not be any row's candidate.

    Raises:
        ValueError: an id without features that the candidate tower reads.
    """
    missing = torch.unique(ids)
    missing = missing[catalog.positions(missing) < 0]
    alone = candidate.column_names == [catalog.id_name]
    if not len(missing) or (given and alone):
        return catalog
    if not alone:
        raise ValueError(
            f"{len(missing)} items of the histories, such as {missing[:5].tolist()}, have no row in the catalogue of "
            f"{len(catalog)} candidates, so their features {candidate.column_names} are unknown. Give fit (or adapt) "
            "catalog=<a Dataset with one row for each item>."
        )
    both = torch.cat([catalog.ids, missing]).sort().values
    return Catalog(catalog.id_name, both, {catalog.id_name: both})


def check(
    query: Tower, candidate_id: ColumnSchema, outputs: Sequence[ModelOutput], name: str, encode_rows: int | None
) -> None:
    """ValueError that says why a model cannot be trained on every position of a column."""
    said = f"every_position={name!r}"
    if not isinstance(query, Encoder) or not isinstance(query.inputs.categorical, Embeddings):
        raise ValueError(
            f"{said} needs a query tower whose Embeddings read the column: Encoder(InputBlockV2(schema), ...)."
        )
    held, table = query.schema[name], table_name(candidate_id)
    if not held.is_list or held.int_domain is None:
        raise ValueError(f"{said}: the column holds no lists of ids.")
    if table_name(held) != table or held.cardinality != candidate_id.cardinality:
        raise ValueError(
            f"{said}: its elements become positives, so it must hold ids of {candidate_id.name!r} (domain {table!r}, "
            f"{candidate_id.cardinality} ids), but its domain is {table_name(held)!r} with {held.cardinality}. Encode it with "
            f"Categorical(share={candidate_id.name!r})."
        )
    query.inputs.categorical.history_encoder(name)
    others = [c.name for c in query.schema if c.name != name and c.int_domain is not None and table_name(c) == table]
    if others:
        raise ValueError(
            f"{said}: the query tower also reads {others} with ids of {candidate_id.name!r}, which are those of the row's own "
            "moment and would give away the positives of earlier positions. Leave them out of the query tower."
        )
    if query.pre is not None or query.inputs.pre is not None:
        raise ValueError(f"{said} reads the lists as they come, which the query tower's pre may change; leave out pre.")
    if query.mixes_rows:
        raise ValueError(
            f"{said}: batch normalisation in the query tower would let a position see the others. Use "
            'normalization="layer_norm".'
        )
    if encode_rows is not None:
        raise ValueError(f"{said} encodes all positions of a row in one pass; leave out encode_rows={encode_rows}.")
    reads = [
        column for output in outputs if isinstance(output, ContrastiveOutput) for column in output.sampler_columns()
    ]
    if reads:
        raise ValueError(
            f"{said}: the negatives in {reads} belong to the row's own moment, not to earlier positions. Leave the sampler "
            "that reads them out."
        )


def _of_batch(query: Tower, candidate_id: ColumnSchema, name: str, batch: Batch) -> Targets:
    encoder = _history_encoder(query, name)
    domain = candidate_id.int_domain
    assert domain is not None
    smallest = max(int(domain.min), candidate_id.properties.get("unknown_id", -1) + 1)
    return targets(column(batch, name), scalar_column(batch, candidate_id.name), encoder.max_length, smallest)


def _history_encoder(query: Tower, name: str) -> HistoryEncoder:
    assert isinstance(query, Encoder)
    assert isinstance(query.inputs.categorical, Embeddings)
    return query.inputs.categorical.history_encoder(name)


def _read(batch: Batch, name: str, outputs: Sequence[ModelOutput]) -> Batch:
    """The columns to repeat; the lists themselves, whose repetition grows with the square of their length, only if read."""
    return batch if name in parts.columns_read(outputs) else {n: c for n, c in batch.items() if n != name}


def _positive(rows: Batch, target: str | None, own: Bool[Tensor, "P"]) -> Batch:
    if target is None:
        return rows
    values = scalar_column(rows, target)
    return {**rows, target: torch.where(own, values, torch.ones_like(values))}
