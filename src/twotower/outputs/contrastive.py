"""ContrastiveOutput: the positive against a pool of sampled candidates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower import logits
from twotower.candidates import Candidates, Step, rows
from twotower.data.batch import scalar_column
from twotower.errors import choose, explain_options
from twotower.logits import LearnedTemperature
from twotower.losses import LOSSES, UNCORRECTED, fused_ratio, fused_softmax, softmax
from twotower.losses.fused import Hidden, Positives, Workspace
from twotower.outputs.base import DotProduct, ModelOutput, RowLoss
from twotower.outputs.contest import Contest, exact, in_blocks
from twotower.outputs.known import IN_BATCH, known_positives
from twotower.samplers import CandidateSampler, CountFrequency, Samplers, resolve_samplers
from twotower.schema import ColumnSchema, Schema, Tags

# the logq_sampling_correction option: name to (correct the pool, correct the positive too)
CORRECTIONS: dict[str, tuple[bool, bool]] = {"logq": (True, True), "corrected": (True, False), "none": (False, False)}


class ContrastiveOutput(ModelOutput):
    """The positive against a pool of sampled candidates.

    Logits are <q, c> / T, less log E of the candidate, with candidates equal to the row's positive masked; the loss
    is a function of the positive's and the pool's logits, softmax cross-entropy by default. Without a target column
    every row is a positive. Softmax and bsl never hold the B x N logits: see `twotower.losses.fused`.

    Args:
        to_call: DotProduct() together with `schema`; or the candidate id's column (a ColumnSchema, or a Schema of it),
            for which a model without a candidate tower makes an embedding table.
        negative_samplers: a name ("in-batch", "uniform", "popularity", ...), a CandidateSampler, or a list of them whose
            draws form one pool.
        schema: holds the candidate id column; with one column, or one tagged ITEM_ID.
        logits_temperature: T > 0, or a LearnedTemperature; in training only, predictions are plain dot products.
        logq_sampling_correction: "logq" corrects positive and pool for sampling bias (Yi et al., RecSys 2019,
            equation 4) with the summed expected counts of all samplers; a positive that none of them can draw stays as it
            is. "corrected" leaves the positive as it is, since
            it was not sampled, and its row out of the pool's expected counts (Khrylchenko et al., "Correcting the LogQ
            Correction", RecSys 2025, arXiv 2507.09331): the sum is unbiased also for items that fill the batch. (The
            weight 1 - P of the paper is what the gradient of a softmax with its positive in the sum has by itself.)
            False does not correct. True is "logq" for softmax, bsl, slatk and functions of your own, and False for the losses
            that estimate no sum over the catalogue: bpr, top1 and their kin, logistic, hinge, bce, gbce, ccl and psl.
        downscore_false_negatives: mask pool candidates that are the row's own positive.
        known_positives: what else is no negative of a row: "in-batch", the other candidates of its query in the batch
            (the query tower needs a USER_ID column), and names of columns with lists of candidate ids, such as a history.
        two_directional: share of the loss that ranks the batch's queries for each candidate, in [0, 1]; corrected for
            the frequency of queries, with the other queries of the same candidate masked.
        prefixes: widths, such as (16, 32): the loss is the mean over the vectors cut to these widths and the whole, so
            that the first columns serve as smaller vectors (Kusupati et al., "Matryoshka Representation Learning",
            NeurIPS 2022).
        target: a column whose rows > 0 are the positives; other rows only serve as negatives.
        sample_weight: a column of row weights >= 0.
        name: of the task.

    Raises:
        ValueError: unknown sampler or correction, no sampler, no id column, or a temperature that is not positive.
    """

    @explain_options
    def __init__(
        self,
        to_call: DotProduct | ColumnSchema | Schema,
        negative_samplers: Samplers = "in-batch",
        *,
        schema: Schema | None = None,
        logits_temperature: float | LearnedTemperature = 1.0,
        logq_sampling_correction: bool | str = True,
        downscore_false_negatives: bool = True,
        known_positives: str | Sequence[str] = (),
        two_directional: float = 0.0,
        prefixes: Sequence[int] = (),
        target: str | None = None,
        sample_weight: str | None = None,
        name: str = "contrastive_output",
    ) -> None:
        super().__init__(name, LOSSES, target, sample_weight)
        if not isinstance(to_call, (DotProduct, ColumnSchema, Schema)):
            raise TypeError(f"to_call must be DotProduct() or the candidate id's column, got {type(to_call).__name__}.")
        _check_temperature(logits_temperature)
        if any(not isinstance(width, int) or width < 1 for width in prefixes):
            raise ValueError(f"prefixes are widths of at least 1, such as (16, 32); got {prefixes!r}.")
        if not 0 <= two_directional <= 1:
            raise ValueError(f"two_directional is a share of the loss, 0 to 1; got {two_directional}.")
        self.candidate_id = _candidate_id(to_call, schema)
        self.to_call = to_call
        self.schema = schema
        self.negative_samplers = nn.ModuleList(resolve_samplers(negative_samplers, self.candidate_id))
        self.logits_temperature = logits_temperature
        self.logq_sampling_correction = logq_sampling_correction
        self.downscore_false_negatives = downscore_false_negatives
        self.known_positives = [known_positives] if isinstance(known_positives, str) else list(known_positives)
        self.two_directional = two_directional
        self.prefixes = tuple(prefixes)
        correction = logq_sampling_correction
        if not isinstance(correction, str):
            correction = "logq" if correction else "none"
        self._correction = choose("logq_sampling_correction", correction, CORRECTIONS)
        self.query_frequency = CountFrequency()
        self._workspace = Workspace()
        if correction == "corrected" and not downscore_false_negatives:
            raise ValueError(
                'logq_sampling_correction="corrected" takes the positive out of the pool, which downscore_false_negatives='
                "False would leave in. Drop one of the two."
            )
        if self.known_positives and not downscore_false_negatives:
            raise ValueError(
                "known_positives masks more than the row's own positive, which downscore_false_negatives=False leaves in. Drop "
                "one of the two."
            )

    # ---- samplers

    def set_negative_samplers(self, samplers: Samplers) -> None:
        """Replace the samplers; call the model's adapt (or fit) afterwards if they learn from data."""
        self.negative_samplers = nn.ModuleList(resolve_samplers(samplers, self.candidate_id))

    def adapt(self, ids: Tensor, catalog: Tensor | None = None, query_ids: Tensor | None = None) -> None:
        """Show the samplers the candidate ids (rows,) of the training data, and those of all candidates.

        Args:
            ids: (rows,) candidate ids.
            catalog: (N,) distinct ids of all candidates; by default those that occur.
            query_ids: (rows,) query ids, which the two-directional term counts.
        """
        for sampler in self._samplers():
            sampler.adapt(ids, ids.unique() if catalog is None else catalog)
        if query_ids is not None and self.two_directional:
            self.query_frequency.adapt(query_ids)

    def columns(self) -> list[str]:
        """The target, weight, negatives' and known positives' columns that training reads."""
        known = [name for name in self.known_positives if name != IN_BATCH]
        return super().columns() + self.sampler_columns() + known

    def sampler_columns(self) -> list[str]:
        """The columns that the samplers read."""
        return [name for sampler in self._samplers() for name in sampler.reads]

    def _samplers(self) -> list[CandidateSampler]:
        return [sampler for sampler in self.negative_samplers if isinstance(sampler, CandidateSampler)]

    # ---- the loss

    def temperature(self) -> float | Float[Tensor, ""]:
        """The present T."""
        return (
            self.logits_temperature()
            if isinstance(self.logits_temperature, LearnedTemperature)
            else self.logits_temperature
        )

    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The mean loss of the batch's positives."""
        chosen = self.resolve_loss(loss)
        if not len(step.query):  # of a batch whose ids are all unknown, trained on every position
            return step.query.sum()
        contest = self._contest(step, *self._corrects(chosen))
        if any(width > contest.query.shape[1] for width in self.prefixes):
            raise ValueError(f"prefixes {self.prefixes} are wider than the towers' {contest.query.shape[1]} numbers.")
        parts = [self._loss(chosen, contest.cut(width)) for width in (*self.prefixes, contest.query.shape[1])]
        value = torch.stack(parts).mean()
        if not self.two_directional:
            return value
        return (1 - self.two_directional) * value + self.two_directional * self._loss(
            chosen, self._turned(step, contest, *self._corrects(chosen))
        )

    def logits(self, step: Step) -> tuple[Float[Tensor, "B"], Float[Tensor, "B N"]]:
        """Training logits of the positives (B,) and of the pool (B, N), -inf where masked: what the loss is taken of."""
        contest = self._contest(step, *self._corrects(softmax))
        with torch.autocast(step.query.device.type, enabled=False):
            return contest.positive(), contest.negative(slice(None))

    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """<q, c>, without temperature."""
        return (query * candidate).sum(-1, keepdim=True)

    def _loss(self, loss: RowLoss, contest: Contest) -> Tensor:
        with torch.autocast(contest.query.device.type, enabled=False):
            fused, ratio = fused_ratio(loss)
            if not fused:
                return in_blocks(loss, contest)
            own = None if contest.own is None else contest.own_log_sum()
            offset = contest.offset()
        return fused_softmax(
            contest.query, contest.positives, contest.pool.vectors, offset, contest.hidden, contest.weight, own,
            self._workspace, ratio,
        )  # fmt: skip

    def _corrects(self, loss: RowLoss) -> tuple[bool, bool]:
        """Whether the pool is corrected, and whether the positive is too."""
        base = loss.func if isinstance(loss, partial) else loss
        if self.logq_sampling_correction is True and base in UNCORRECTED:
            return CORRECTIONS["none"]
        return self._correction

    def _contest(self, step: Step, corrects_pool: bool, corrects_positive: bool) -> Contest:
        drawn = [sampler(step) for sampler in self._samplers()]
        own = [d for d in drawn if d.row is not None]
        shared = [d for d in drawn if d.row is None and len(d.candidates)]  # a queue that fills up draws nobody yet
        pool = Candidates.concat([d.candidates for d in shared]) if shared else _nobody(step.candidate)
        with torch.autocast(step.query.device.type, enabled=False):
            query, candidate = exact(step.query) / self.temperature(), exact(step.candidate.vectors)
        ids = step.positive_ids()
        taken = self._taken(step)
        known = known_positives(step, self.downscore_false_negatives, self.known_positives, taken)
        positive_offset = pool_correction = None
        if corrects_positive and shared:
            counts = [d.log_expected_count for d in shared]
            correction = _sum_of_counts(counts, step.candidate.ids).to(query.dtype)
            # what no sampler can draw, such as the Preprocessor's unknown id, was not sampled: it is not corrected
            positive_offset = rows(-correction.masked_fill(torch.isneginf(correction), 0.0), step.candidate_row)
        elif shared:
            counts = [d.log_expected_negatives or d.log_expected_count for d in shared]
        if corrects_pool and shared:
            pool_correction = _sum_of_counts(counts, pool.ids).to(query.dtype)
        return Contest(
            query=query,
            positives=Positives(
                candidate, _places(step.query_row, query), _places(step.candidate_row, candidate), positive_offset
            ),
            pool=replace(pool, vectors=exact(pool.vectors)),
            hidden=known.hidden_in(pool.ids),
            pool_correction=pool_correction,
            own=known.kept_out_of(own),
            weight=self.row_weights(step.batch, query.new_empty(len(ids)), taken),
        )

    def _taken(self, step: Step) -> Tensor | None:
        """(B,) the rows whose candidate is a positive; None for all."""
        return None if self.target is None else scalar_column(step.batch, self.target) > 0

    def _turned(self, step: Step, contest: Contest, corrects_pool: bool, corrects_positive: bool) -> Contest:
        """Candidates look for their queries among the batch's queries."""
        row, candidate_row = contest.positives.query_row, contest.positives.row
        counts = torch.bincount(row, minlength=len(contest.query))
        correction = positive_offset = None
        if corrects_pool:
            if step.query_ids is None:
                raise ValueError(
                    "two_directional corrects for the frequency of queries, but the query tower has no column that tells them "
                    "apart: tag one USER_ID, or set logq_sampling_correction=False."
                )
            size = len(row) if corrects_positive else max(len(row) - 1, 1)
            correction = self.query_frequency.log_expected_count(step.query_ids, size).to(contest.query.dtype)
            positive_offset = -rows(correction, row) if corrects_positive else None
        # for a row, every query that takes the row's candidate somewhere in the batch is no negative
        taken = self._taken(step)
        every = candidate_row * len(contest.query) + row
        pair = torch.unique(every if taken is None else every[taken])
        hidden_row, place = logits.equal_pairs(candidate_row, pair // len(contest.query))
        return replace(
            contest,
            query=contest.positives.vectors,
            positives=Positives(contest.query, candidate_row, row, positive_offset),
            pool=Candidates(torch.arange(len(contest.query), device=row.device), contest.query, counts),
            hidden=Hidden(hidden_row, (pair % len(contest.query))[place]),
            pool_correction=correction,
            own=None,
        )


def _check_temperature(temperature: object) -> None:
    if isinstance(temperature, LearnedTemperature):
        return
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError(
            f"logits_temperature must be above 0 and finite, or a LearnedTemperature(...); got {temperature!r}."
        )


def _nobody(like: Candidates) -> Candidates:
    return Candidates(like.ids[:0], like.vectors[:0])


def _places(row: Tensor | None, distinct: Tensor) -> Tensor:
    return torch.arange(len(distinct), device=distinct.device) if row is None else row


def _sum_of_counts(counts: Sequence[Callable[[Tensor], Tensor]], ids: Tensor) -> Tensor:
    """log of the summed expected counts of all samplers, (M,)."""
    return torch.stack([count(ids) for count in counts]).logsumexp(0)


def _candidate_id(to_call: DotProduct | ColumnSchema | Schema, schema: Schema | None) -> ColumnSchema:
    if isinstance(to_call, ColumnSchema):
        return to_call
    holder = to_call if isinstance(to_call, Schema) else schema
    if holder is None:
        raise ValueError(
            "ContrastiveOutput must know the candidate id column: ContrastiveOutput(DotProduct(), schema=item_schema)."
        )
    columns = holder if len(holder) == 1 else holder.select_by_tag(Tags.ITEM_ID)
    if len(columns) != 1:
        raise ValueError(
            f"expected one candidate id column, tagged {Tags.ITEM_ID.value!r}, among {holder.column_names}; "
            f"found {columns.column_names}. Give schema=Schema([the column])."
        )
    return columns.first
