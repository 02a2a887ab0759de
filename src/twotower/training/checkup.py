"""Checkup: takes the measures of health from a model in training, and changes nothing in it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from twotower.data.batch import Batch, scalar_column, take, to_device
from twotower.data.catalog import Catalog
from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.distinct import one_row_each, query_id
from twotower.encoder import Tower, evaluating
from twotower.health import measures
from twotower.health.findings import Finding
from twotower.health.record import Health, ListHealth, Setting, TowerHealth
from twotower.logits import LearnedTemperature
from twotower.optimizers import gradient_norm
from twotower.outputs import ContrastiveOutput
from twotower.samplers.catalog import CatalogSampler
from twotower.samplers.in_batch import InBatchSamplerV2
from twotower.samplers.uniform import UniformSampler
from twotower.schema import Schema

if TYPE_CHECKING:
    from twotower.models.base import RetrievalModelV2

VECTORS = 1024  # of each tower: 16 for each of 64 dimensions, and an eighth of the encoding of a batch of 8,192
QUERIES, CANDIDATES, PLACES = 256, 10_000, 10  # of the lists
HUGE = 1e6  # of a feature; scaled ones are around 1
CHUNK = 2048  # candidates encoded at once
Gradients = Mapping[str, float]


class Checkup:
    """Measures a model on a batch: towers in evaluation mode, without gradient, with random numbers of its own.

    Args:
        model: has a catalogue.
        train: the interactions, whose candidates are counted at the first measurement.
    """

    def __init__(self, model: "RetrievalModelV2", train: Dataset) -> None:
        self.model = model
        self.train = train
        self._counts: Tensor | None = None
        self._places: Tensor | None = None
        self._is_constant: dict[str, bool] = {}

    def measure(self, batch: Batch, gradients: Gradients, step: int, *, epoch_end: bool, lists: bool) -> Health:
        """One measurement.

        Args:
            batch: B rows of training data, on the model's device.
            gradients: the towers' gradient norms at some step, from `gradients()`; may be empty.
            step: optimiser steps so far.
            epoch_end: whether an epoch ended.
            lists: also rank candidates, which costs the encoding of up to 10,000 of them.
        """
        model = self.model
        name = query_id(model.query)
        ids = scalar_column(batch, model.candidate_id.name)
        asked = batch.get(name) if name is not None else None
        query_ids = asked if isinstance(asked, Tensor) and asked.ndim == 1 else None
        generator = torch.Generator().manual_seed(step)  # by the step, so that a resumed run draws the same
        every = torch.arange(len(ids), device=ids.device)
        some_queries = _draw(every if query_ids is None else one_row_each(query_ids)[1], VECTORS, generator)
        some = _draw(one_row_each(ids)[1], VECTORS, generator)
        with self._aside():
            query, candidate = model.query(take(batch, some_queries)), model.candidate(take(batch, some))
            ranked = self._lists(query[:QUERIES].float()) if lists and bool(query.isfinite().all()) else None
            # a prior is no part of what the towers have learnt
            query, candidate = query[:, : model.query.own_dim], candidate[:, : model.candidate.own_dim]
            # few and small from here on; in float64, as a model that is ill may hold numbers of any size
            query, candidate = query.cpu().double(), candidate.cpu().double()
            shared, personal = measures.score_variance(query, candidate)
            temperature = self._temperature()
        return Health(
            step=step,
            epoch_end=epoch_end,
            query=_tower(model.query, query, gradients.get("query", math.nan), self._constant("query", batch)),
            candidate=_tower(
                model.candidate, candidate, gradients.get("candidate", math.nan), self._constant("candidate", batch)
            ),
            logit_spread=math.sqrt(shared + personal) / temperature,
            personal_share=personal / (shared + personal) if shared + personal != 0 else 0.0,
            norm_popularity=_norm_popularity(candidate, self._counts_of(ids[some])),
            temperature=temperature,
            rows=len(ids),
            duplicate_queries=math.nan if query_ids is None else measures.duplicate_share(query_ids),
            duplicate_candidates=measures.duplicate_share(ids),
            distinct_candidates=len(torch.unique(ids)),
            catalog=len(self._catalog()),
            lists=ranked,
        )

    def gradients(self) -> dict[str, float]:
        """The norm of each tower's gradient as it stands; nan for a tower of which nothing is trained."""
        return {"query": _gradient(self.model.query), "candidate": _gradient(self.model.candidate)}

    def setting(self, learning_rate: float) -> Setting:
        """What causes can lie in."""
        output = self._output()
        learnt = output.logits_temperature if output is not None else None
        kinds = {type(sampler) for sampler in output.negative_samplers} if output is not None else set()
        return Setting(
            learning_rate=learning_rate,
            corrected=output is not None and output.logq_sampling_correction not in (False, "none"),
            in_batch=InBatchSamplerV2 in kinds and not kinds & {UniformSampler, CatalogSampler},
            learnt_temperature=(learnt.minimum, learnt.maximum) if isinstance(learnt, LearnedTemperature) else None,
        )

    def explain_loss(self, loss: float, batch: Batch, step: int) -> Finding:
        """Why the loss of a batch is not finite: its columns, else the parameters, else the sums in between."""
        said = f"the loss of step {step} is {loss}. Likely cause:"
        for name, column in batch.items():
            bad = ~torch.isfinite(column.values if isinstance(column, Ragged) else column)
            if bool(bad.any()):  # Dataset lets no such number in, but a callback or a loop of one's own may
                return Finding(
                    "not-finite",
                    "column",
                    f"{said} column {name!r} holds {int(bad.sum())} numbers in this batch that are not finite. Fill them before "
                    "training; the model's weights are spoilt from here on.",
                )
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return Finding(
                    "not-finite",
                    "parameter",
                    f"{said} an earlier step has made parameters not finite, {name!r} first: its gradient was nan or too large. "
                    'Lower the learning rate, or give trainer_options={"gradient_clip_val": 1.0}.',
                )
        largest = {name: _largest(column) for name, column in batch.items() if name in self.model.input_schema}
        name = max(largest, key=lambda each: largest[each])
        if largest[name] >= HUGE:
            return Finding(
                "not-finite",
                "huge-column",
                f"{said} column {name!r} holds numbers as large as {largest[name]:.2g}. Scale it, as the Preprocessor's Numeric "
                "does; the model's weights are spoilt from here on.",
            )
        return Finding(
            "not-finite",
            "overflow",
            f"{said} columns and parameters are finite, but what is computed from them is not: the learning rate is too high or "
            'the temperature too low. Lower the one, raise the other, or give trainer_options={"gradient_clip_val": 1.0}.',
        )

    # ---- parts

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Evaluation mode without gradients; random numbers drawn inside, if a layer does, are given back."""
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(self.model):
            yield

    def _output(self) -> ContrastiveOutput | None:
        return next((o for o in self.model.outputs if isinstance(o, ContrastiveOutput)), None)

    def _temperature(self) -> float:
        output = self._output()
        return math.nan if output is None else float(output.temperature())

    def _catalog(self) -> Catalog:
        catalog = self.model.catalog
        assert catalog is not None  # fit has adapted the model
        return catalog

    def _popularity(self) -> Tensor:
        """(N,) how often each candidate of the catalogue occurs in the training data, on the CPU."""
        if self._counts is None:
            column = self.model.candidate_id
            places = self._places_of(scalar_column(self.train.batch(Schema([column])), column.name))
            self._counts = torch.bincount(places[places >= 0], minlength=len(self._catalog()))
        return self._counts

    def _places_of(self, ids: Tensor) -> Tensor:
        catalog = self._catalog()
        return catalog.positions(ids.to(catalog.ids.device)).cpu()

    def _counts_of(self, ids: Tensor) -> Tensor:
        """(M,) how often each id occurs; 0 for one that is not in the catalogue."""
        places = self._places_of(ids)
        return torch.where(places < 0, 0, self._popularity()[places])

    def _lists(self, query: Tensor) -> ListHealth:
        catalog, counts = self._catalog(), self._popularity()
        if self._places is None:  # one sample in the whole of fit, so that its measurements can be compared
            every = torch.arange(len(catalog))
            self._places = _draw(every, CANDIDATES, torch.Generator().manual_seed(0)).sort().values
        places = self._places
        features = take(catalog.features, places.to(catalog.ids.device))
        vectors = torch.cat(
            [
                self.model.candidate(to_device(take(features, part), query.device)).float()
                for part in torch.arange(len(places), device=catalog.ids.device).split(CHUNK)
            ]
        )
        best = (query @ vectors.T).topk(min(PLACES, len(places)), dim=1).indices.cpu()
        tail = measures.tail_items(counts)[places]
        known = counts[places]
        return ListHealth(
            tail_share=float(tail[best].float().mean()),
            tail_interactions=float(known[tail].sum() / known.sum().clamp(min=1)),
            distinct_items=measures.distinct_share(best, len(places)),
            overlap=measures.list_overlap(best),
            candidates=len(places),
            queries=len(query),
        )

    def _constant(self, side: str, batch: Batch) -> bool:
        """Whether a tower's columns are the same everywhere; the whole data is looked at when they are in a batch."""
        tower = self.model.query if side == "query" else self.model.candidate
        if side not in self._is_constant and _same(batch, tower):
            everything = self.train.batch(tower.schema) if side == "query" else self._catalog().features
            self._is_constant[side] = len(self.train) > 1 and _same(everything, tower)
        return self._is_constant.get(side, False)


def _tower(tower: Tower, vectors: Tensor, gradient: float, constant_input: bool) -> TowerHealth:
    norms = vectors.norm(dim=1)
    return TowerHealth(
        effective_rank=measures.effective_rank(vectors),
        spread=measures.relative_spread(vectors),
        mean_cosine=measures.mean_cosine(vectors),
        dead_dimensions=measures.dead_dimensions(vectors),
        norm=float(norms.mean()),
        norm_spread=float(norms.std(correction=0) / norms.mean().clamp(min=1e-12)),
        gradient_norm=gradient,
        trained=any(parameter.requires_grad for parameter in tower.parameters()),
        constant_input=constant_input,
    )


def _gradient(tower: nn.Module) -> float:
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    return gradient_norm(p.grad for p in trained if p.grad is not None) if trained else math.nan


def _norm_popularity(candidate: Tensor, counts: Tensor) -> float:
    norms = candidate.norm(dim=1).cpu()
    if not float(norms.std(correction=0)) > 1e-3 * float(norms.mean()):  # normalised (the rest is rounding), or nan
        return math.nan
    return measures.rank_correlation(counts.double(), norms.double())


def _largest(column: Tensor | Ragged) -> float:
    """The largest absolute number of a column of numbers; 0 for ids."""
    values = column.values if isinstance(column, Ragged) else column
    return float(values.abs().max()) if values.is_floating_point() and values.numel() else 0.0


def _same(batch: Batch, tower: Tower) -> bool:
    return all(_same_column(batch[name]) for name in tower.schema.column_names)


def _same_column(column: Tensor | Ragged) -> bool:
    if isinstance(column, Tensor):
        return measures.same_rows(column)
    lengths = column.lengths()
    return measures.same_rows(lengths) and measures.same_rows(column.values.reshape(len(lengths), -1))


def _draw(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """At most so many of the rows, without repeats, in random order."""
    return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]
