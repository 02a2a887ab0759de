"""Samplers of negative candidates, and the names they go by."""

from collections.abc import Callable, Sequence

from torch import nn

from twotower.errors import choose
from twotower.samplers.base import CandidateSampler
from twotower.samplers.catalog import CatalogSampler
from twotower.samplers.cross_batch import CrossBatchSampler
from twotower.samplers.explicit import ColumnSampler
from twotower.samplers.frequency import CountFrequency
from twotower.samplers.hard import HardNegativeSampler
from twotower.samplers.in_batch import InBatchSamplerV2
from twotower.samplers.popularity import PopularityBasedSamplerV2, PopularitySampler
from twotower.samplers.uniform import UniformSampler
from twotower.schema import ColumnSchema

__all__ = ["SAMPLERS", "CandidateSampler", "ColumnSampler", "CountFrequency", "Samplers", "resolve_samplers"]

Samplers = str | CandidateSampler | Sequence[str | CandidateSampler]


def _log_uniform(candidate_id: ColumnSchema) -> CandidateSampler:
    # the Preprocessor's ids: 0 missing, 1 unknown, then by falling frequency
    known = candidate_id.cardinality - 2
    return PopularityBasedSamplerV2(candidate_id.cardinality - 1, min_id=2, max_num_samples=max(1, min(1000, known)))


# ColumnSampler needs to be told its column, so it has no name
SAMPLERS: dict[str, Callable[[ColumnSchema], CandidateSampler]] = {
    "in-batch": lambda candidate_id: InBatchSamplerV2(),
    "uniform": lambda candidate_id: UniformSampler(),
    "popularity": lambda candidate_id: PopularitySampler(),
    "log-uniform": _log_uniform,
    "cross-batch": lambda candidate_id: CrossBatchSampler(),
    "hard": lambda candidate_id: HardNegativeSampler(),
    "catalog": lambda candidate_id: CatalogSampler(),
}


def resolve_samplers(samplers: Samplers, candidate_id: ColumnSchema) -> list[CandidateSampler]:
    """Instances from names, instances, or a list that mixes them."""
    given: list[object] = list(samplers) if isinstance(samplers, (list, tuple, nn.ModuleList)) else [samplers]
    if not given:
        raise ValueError(f"a contrastive loss needs negatives: give at least one sampler, such as {sorted(SAMPLERS)}.")
    made: list[CandidateSampler] = []
    for number, sampler in enumerate(given):
        if sampler in given[:number]:
            raise ValueError(f"the sampler {sampler!r} is in the list twice, where it adds nothing; give it once.")
        if isinstance(sampler, str):
            made.append(choose("sampler", sampler, SAMPLERS)(candidate_id))
        elif isinstance(sampler, CandidateSampler):
            made.append(sampler)
        else:
            raise ValueError(
                f"a negative sampler is a name or an instance, one of {sorted(SAMPLERS)} or UniformSampler(); got {sampler!r}."
            )
    if all(sampler.warmup_steps for sampler in made):
        names = ", ".join(f"{type(s).__name__} (warmup_steps={s.warmup_steps})" for s in made)
        raise ValueError(
            f"{names} would leave the first steps without negatives: use it together with 'in-batch', as in "
            "negative_samplers=['in-batch', ...], or set its warmup_steps to 0."
        )
    return made
