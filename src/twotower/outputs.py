"""Outputs: from the two vectors of a row to a loss in training and a score in prediction."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from twotower import logits
from twotower.blocks.mlp import LazyDense
from twotower.candidates import Candidates
from twotower.data.batch import Batch, scalar_column
from twotower.errors import choose, explain_options
from twotower.losses import LOSSES
from twotower.samplers import CandidateSampler, Samplers, resolve_samplers
from twotower.schema import ColumnSchema, Schema, Tags

RowLoss = Callable[[Tensor, Tensor], Tensor]
# the logq_sampling_correction option: name to (correct the pool, correct the positive too)
CORRECTIONS: dict[str, tuple[bool, bool]] = {
    "logq": (True, True),
    "True": (True, True),
    "corrected": (True, False),
    "False": (False, False),
}


def _bce(logit: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def _mse(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).square()


def _mae(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).abs()


def _huber(value: Tensor, target: Tensor) -> Tensor:
    return F.huber_loss(value, target, reduction="none")


BINARY_LOSSES: dict[str, RowLoss] = {"binary_crossentropy": _bce, "bce": _bce}
REGRESSION_LOSSES: dict[str, RowLoss] = {"mse": _mse, "mean_squared_error": _mse, "mae": _mae, "huber": _huber}


@dataclass(frozen=True, eq=False)
class Step:
    """What an output sees of one training batch.

    Args:
        batch: all columns, for targets and weights.
        query: (B, D) query vectors.
        candidate: the batch's B candidates, ids and vectors.
        encode: the candidate tower on ids (M,), to (M, D).
    """

    batch: Batch
    query: Float[Tensor, "B D"]
    candidate: Candidates
    encode: Callable[[Tensor], Tensor]


class ModelOutput(nn.Module, ABC):
    """One task of a model.

    Args:
        name: stands before the task's loss and metrics when a model has several outputs.
        losses: the losses it can be compiled with; the first is the default.
        target: the target column, if it reads one.
        sample_weight: the column of row weights, if it reads one.
    """

    def __init__(self, name: str, losses: Mapping[str, RowLoss], target: str | None, sample_weight: str | None) -> None:
        super().__init__()
        self.name = name
        self.losses = losses
        self.target = target
        self.sample_weight = sample_weight

    @abstractmethod
    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The training loss, a scalar; `loss` replaces the output's default."""

    @abstractmethod
    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The score of each row's pair."""

    def resolve_loss(self, loss: str | RowLoss | None) -> RowLoss:
        """The loss function by name, as it is, or the default; ValueError with the choices."""
        if loss is None:
            return next(iter(self.losses.values()))
        return choose(f"loss for {self.name}", loss, self.losses) if isinstance(loss, str) else loss

    def columns(self) -> list[str]:
        """The target and weight columns that training reads."""
        return [c for c in (self.target, self.sample_weight) if c is not None]

    def weighted_mean(
        self, rows: Float[Tensor, "B"], batch: Batch, counts: Bool[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        """sum(w * loss) / sum(w) over the rows that count, w from the weight column or 1; 0 if all weights are 0."""
        weight = torch.ones_like(rows)
        if self.sample_weight is not None:
            weight = scalar_column(batch, self.sample_weight).to(rows.dtype)
            if bool((weight < 0).any()):
                raise ValueError(
                    f"column {self.sample_weight!r} holds negative weights, down to {float(weight.min())}."
                )
        weight = weight if counts is None else weight * counts
        total = weight.sum()
        return (rows * weight).sum() / torch.where(total > 0, total, 1.0)


class DotProduct(nn.Module):
    """<q, c> of each row, (B, 1).

    Example:
        >>> DotProduct()(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])
    """

    def forward(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """(B, D) twice to (B, 1)."""
        return (query * candidate).sum(-1, keepdim=True)


class ContrastiveOutput(ModelOutput):
    """The positive against a pool of sampled candidates.

    Logits are <q, c> / T, less log E of the candidate, with candidates equal to the row's positive masked; the loss
    is a function of the positive's and the pool's logits, softmax cross-entropy by default. Without a target column
    every row is a positive.

    Args:
        to_call: DotProduct() together with `schema`; or the candidate id's column (a ColumnSchema, or a Schema of it),
            for which a model without a candidate tower makes an embedding table.
        negative_samplers: "in-batch", "uniform", "popularity", a CandidateSampler, or a list of them whose draws form one pool.
        schema: holds the candidate id column; with one column, or one tagged ITEM_ID.
        logits_temperature: T > 0; in training only, predictions are plain dot products.
        logq_sampling_correction: True or "logq" corrects positive and pool for sampling bias (Yi et al., RecSys 2019,
            equation 4) with the summed expected counts of all samplers. "corrected" leaves the positive as it is, since
            it was not sampled, and its row out of the pool's expected counts (Khrylchenko et al., "Correcting the LogQ
            Correction", RecSys 2025, arXiv 2507.09331): the sum is unbiased also for items that fill the batch. False
            does not correct.
        downscore_false_negatives: mask pool candidates that are the row's own positive.
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
        logits_temperature: float = 1.0,
        logq_sampling_correction: bool | str = True,
        downscore_false_negatives: bool = True,
        target: str | None = None,
        sample_weight: str | None = None,
        name: str = "contrastive_output",
    ) -> None:
        super().__init__(name, LOSSES, target, sample_weight)
        if not isinstance(to_call, (DotProduct, ColumnSchema, Schema)):
            raise TypeError(f"to_call must be DotProduct() or the candidate id's column, got {type(to_call).__name__}.")
        if not logits_temperature > 0:
            raise ValueError(f"logits_temperature must be above 0, got {logits_temperature}.")
        self.candidate_id = _candidate_id(to_call, schema)
        self.to_call = to_call
        self.schema = schema
        self.negative_samplers = nn.ModuleList(resolve_samplers(negative_samplers, self.candidate_id))
        self.logits_temperature = logits_temperature
        self.logq_sampling_correction = logq_sampling_correction
        self.downscore_false_negatives = downscore_false_negatives
        corrections = choose("logq_sampling_correction", str(logq_sampling_correction), CORRECTIONS)
        self._corrects_pool, self._corrects_positive = corrections
        if logq_sampling_correction == "corrected" and not downscore_false_negatives:
            raise ValueError(
                'logq_sampling_correction="corrected" takes the positive out of the pool, which downscore_false_negatives='
                "False would leave in. Drop one of the two."
            )

    def set_negative_samplers(self, samplers: Samplers) -> None:
        """Replace the samplers; call the model's adapt (or fit) afterwards if they learn from data."""
        self.negative_samplers = nn.ModuleList(resolve_samplers(samplers, self.candidate_id))

    def adapt(self, ids: Tensor, catalog: Tensor | None = None) -> None:
        """Show the samplers the candidate ids (rows,) of the training data, and those of all candidates."""
        for sampler in self.negative_samplers:
            assert isinstance(sampler, CandidateSampler)
            sampler.adapt(ids, ids.unique() if catalog is None else catalog)

    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The mean loss of the batch's positives."""
        positive, negative = self.logits(step)
        rows = self.resolve_loss(loss)(positive, negative)
        return self.weighted_mean(rows, step.batch, self._is_positive(step.batch))

    def _is_positive(self, batch: Batch) -> Tensor | None:
        return None if self.target is None else scalar_column(batch, self.target) > 0

    def logits(self, step: Step) -> tuple[Float[Tensor, "B"], Float[Tensor, "B N"]]:
        """Training logits of the positives (B,) and of the pool (B, N), -inf where masked."""
        draws = [sampler(step.candidate, step.encode) for sampler in self.negative_samplers]
        pool = Candidates.concat([draw.candidates for draw in draws])
        # the loss is taken in float32 whatever the towers' precision; autocast would take the product in half precision
        with torch.autocast(step.query.device.type, enabled=False):
            query, own = step.query.float(), step.candidate.vectors.float()
            positive = logits.scale(logits.positive_scores(query, own), self.logits_temperature)
            negative = logits.scale(logits.pool_scores(query, pool.vectors.float()), self.logits_temperature)
        if self._corrects_positive:
            counts = [draw.log_expected_count for draw in draws]
            positive = logits.correct(positive, _sum_of_counts(counts, step.candidate.ids))
        else:
            counts = [draw.log_expected_negatives or draw.log_expected_count for draw in draws]
        if self._corrects_pool:
            negative = logits.correct(negative, _sum_of_counts(counts, pool.ids))
        if self.downscore_false_negatives:
            negative = logits.mask(negative, logits.false_negatives(step.candidate.ids, pool.ids))
        return positive, negative

    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """<q, c>, without temperature."""
        return (query * candidate).sum(-1, keepdim=True)


class BinaryOutput(ModelOutput):
    """The probability of a 0/1 target: sigmoid((w v + b) / T), v the value of the pair, w and b learnt.

    The loss is taken on the logit, so it stays exact where the sigmoid saturates.

    Args:
        target: the 0/1 column.
        pre: a module from (query, candidate) to (B, width); DotProduct() by default.
        logits_temperature: T > 0, in training and prediction.
        sample_weight: a column of row weights >= 0.
        name: of the task; `<target>/binary_output` by default.
    """

    @explain_options
    def __init__(
        self,
        target: str | ColumnSchema,
        pre: nn.Module | None = None,
        *,
        logits_temperature: float = 1.0,
        sample_weight: str | None = None,
        name: str | None = None,
    ) -> None:
        target = target.name if isinstance(target, ColumnSchema) else target
        super().__init__(name or f"{target}/binary_output", BINARY_LOSSES, target, sample_weight)
        if not logits_temperature > 0:
            raise ValueError(f"logits_temperature must be above 0, got {logits_temperature}.")
        self.pre = pre or DotProduct()
        self.logits_temperature = logits_temperature
        self.to_logit = _head()

    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The mean loss over the batch."""
        logit = self._logit(step.query.float(), step.candidate.vectors.float()).squeeze(1)
        rows = self.resolve_loss(loss)(logit, pair_target(step.batch, str(self.target)))
        return self.weighted_mean(rows, step.batch)

    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The probability of each pair."""
        return torch.sigmoid(self._logit(query, candidate))

    def _logit(self, query: Tensor, candidate: Tensor) -> Tensor:
        return logits.scale(self.to_logit(self.pre(query, candidate)), self.logits_temperature)


class RegressionOutput(ModelOutput):
    """A number: w v + b, v the value of the pair, w and b learnt; mean squared error by default.

    Args:
        target: the column of numbers.
        pre: a module from (query, candidate) to (B, width); DotProduct() by default.
        sample_weight: a column of row weights >= 0.
        name: of the task; `<target>/regression_output` by default.
    """

    @explain_options
    def __init__(
        self,
        target: str | ColumnSchema,
        pre: nn.Module | None = None,
        *,
        sample_weight: str | None = None,
        name: str | None = None,
    ) -> None:
        target = target.name if isinstance(target, ColumnSchema) else target
        super().__init__(name or f"{target}/regression_output", REGRESSION_LOSSES, target, sample_weight)
        self.pre = pre or DotProduct()
        self.to_value = _head()

    def forward(self, step: Step, loss: str | RowLoss | None = None) -> Tensor:
        """The mean loss over the batch."""
        value = self.predict(step.query.float(), step.candidate.vectors.float()).squeeze(1)
        rows = self.resolve_loss(loss)(value, pair_target(step.batch, str(self.target)))
        return self.weighted_mean(rows, step.batch)

    def predict(self, query: Float[Tensor, "B D"], candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """The predicted number of each pair."""
        return self.to_value(self.pre(query, candidate))


def _sum_of_counts(counts: Sequence[Callable[[Tensor], Tensor]], ids: Tensor) -> Tensor:
    """log of the summed expected counts of all samplers, (M,)."""
    return torch.stack([count(ids) for count in counts]).logsumexp(0)


def _head() -> nn.Module:
    """w v + b, from w = 1 and b = 0: a larger product starts, and so ends, as a better pair."""
    return LazyDense(1, True, "ones", "zeros")


def pair_target(batch: Batch, name: str) -> Float[Tensor, "B"]:
    """A target column as float32."""
    return scalar_column(batch, name).to(torch.float32)


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
