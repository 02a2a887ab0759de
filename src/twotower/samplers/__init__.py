"""Samplers of negative candidates, and the names they go by."""

from collections.abc import Callable, Sequence

from twotower.errors import choose
from twotower.samplers.base import CandidateSampler
from twotower.samplers.frequency import CountFrequency
from twotower.samplers.in_batch import InBatchSamplerV2
from twotower.samplers.popularity import PopularityBasedSamplerV2
from twotower.samplers.uniform import UniformSampler
from twotower.schema import ColumnSchema

__all__ = ["SAMPLERS", "CandidateSampler", "CountFrequency", "Samplers", "resolve_samplers"]

Samplers = str | CandidateSampler | Sequence[str | CandidateSampler]


def _in_batch(candidate_id: ColumnSchema) -> CandidateSampler:
    return InBatchSamplerV2()


def _popularity(candidate_id: ColumnSchema) -> CandidateSampler:
    # the Preprocessor's ids: 0 missing, 1 unknown, then by falling frequency
    known = candidate_id.cardinality - 2
    return PopularityBasedSamplerV2(candidate_id.cardinality - 1, min_id=2, max_num_samples=max(1, min(1000, known)))


def _uniform(candidate_id: ColumnSchema) -> CandidateSampler:
    return UniformSampler()


SAMPLERS: dict[str, Callable[[ColumnSchema], CandidateSampler]] = {
    "in-batch": _in_batch,
    "popularity": _popularity,
    "uniform": _uniform,
}


def resolve_samplers(samplers: Samplers, candidate_id: ColumnSchema) -> list[CandidateSampler]:
    """Instances from names, instances, or a list that mixes them."""
    given = [samplers] if isinstance(samplers, (str, CandidateSampler)) else list(samplers)
    if not given:
        raise ValueError(f"a contrastive loss needs negatives: give at least one sampler, such as {sorted(SAMPLERS)}.")
    return [choose("sampler", s, SAMPLERS)(candidate_id) if isinstance(s, str) else s for s in given]
