"""What a trained model tells about a dataset: scores of pairs, and how well it ranks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from twotower.data.batch import Batch, scalar_column, to_device
from twotower.data.catalog import Catalog
from twotower.data.dataset import Dataset
from twotower.data.loader import Loader
from twotower.encoder import embed, evaluating
from twotower.evaluation import Queries, ScoreQueries, evaluate_tower, in_batch_relevance, score_vectors
from twotower.metrics import RankingMetric
from twotower.outputs import BinaryOutput, ContrastiveOutput, ModelOutput, RegressionOutput, pair_target
from twotower.schema import Schema

if TYPE_CHECKING:
    from twotower.models.base import RetrievalModelV2


def predict(model: "RetrievalModelV2", dataset: Dataset, batch_size: int) -> dict[str, Tensor]:
    """Every output's score of the pair on each row, (rows, 1), by output's name."""
    loader = Loader(dataset, batch_size, shuffle=False, schema=model.input_schema)
    parts: dict[str, list[Tensor]] = {output.name: [] for output in model.outputs}
    with evaluating(model):
        for batch in loader:
            there = to_device(batch, model.device)
            query, candidate = model.query(there), model.candidate(there)
            for output in model.outputs:
                parts[output.name].append(output.predict(query, candidate).float().cpu())
    return {name: torch.cat(part) for name, part in parts.items()}


def evaluate(
    model: "RetrievalModelV2",
    data: Dataset,
    catalog: Catalog,
    *,
    metrics: Sequence[RankingMetric],
    seen: Dataset | None,
    group: str | None,
    batch_size: int,
) -> dict[str, float]:
    """Ranking metrics over the whole catalogue, and the metrics of outputs that have a target."""
    values = evaluate_tower(
        model.query,
        _positives(model.outputs, data),
        model.candidate_id.name,
        catalog.ids.cpu(),
        embed_catalog(model, catalog, batch_size),
        metrics=metrics,
        seen=seen,
        group=group,
        batch_size=batch_size,
    )
    return values | _target_metrics(model, data, batch_size)


def score_queries(model: "RetrievalModelV2", queries: Queries, candidates: Dataset) -> ScoreQueries:
    """The products of the towers' vectors, candidates in their given order."""
    asked = queries.select(model.query.schema.column_names)
    _check_encoded(model.query.schema, asked, "queries")
    _check_encoded(Schema([model.candidate_id]) + model.candidate.schema, candidates, "candidates")
    ids, columns = model.candidate_id.name, model.candidate.schema.column_names
    if set(columns) <= set(candidates.column_names):
        vectors = embed(model.candidate, candidates)
    elif model.catalog is not None:
        wanted = torch.from_numpy(candidates.to_polars()[ids].to_numpy().astype("int64"))
        known = Catalog(ids, wanted, model.catalog.lookup(wanted.to(model.catalog.ids.device)))
        vectors = embed_catalog(model, known, batch_size=1024)
    else:
        missing = sorted(set(columns) - set(candidates.column_names))
        raise ValueError(
            f"the candidates lack {missing}, which the candidate tower reads, and the model knows no catalogue."
        )
    return score_vectors(embed(model.query, asked), vectors.to(model.device))


def _check_encoded(tower: Schema, data: Dataset, what: str) -> None:
    """ValueError for columns without the Preprocessor's codes: raw integers would pass for them."""
    for column in tower:
        trained = column.properties.get("vocabulary")
        own = data.schema[column.name].properties.get("vocabulary") if column.name in data.schema else None
        if trained is not None and column.name in data.column_names and own != trained:
            raise ValueError(
                f"column {column.name!r} of the {what} does not hold the codes that the model was trained on (of vocabulary "
                f"{trained}, here {own}). Give tables that preprocessor.transform made, with their schema; or rank raw tables with "
                "a Retriever."
            )


def evaluate_in_batch(
    model: "RetrievalModelV2", data: Dataset, *, metrics: Sequence[RankingMetric], batch_size: int
) -> dict[str, float]:
    """The metrics of each row's candidate against its batch's other candidates: depends on batch_size."""
    loader = Loader(_positives(model.outputs, data), batch_size, shuffle=False, schema=model.input_schema)
    rows: dict[str, list[Tensor]] = {}
    with evaluating(model):
        for batch in loader:
            for name, values in in_batch_metrics(model, to_device(batch, model.device), metrics).items():
                rows.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in rows.items()}


def batch_metrics(model: "RetrievalModelV2", batch: Batch) -> dict[str, float]:
    """The means of the compiled metrics within one training batch."""
    with evaluating(model):
        rows = in_batch_metrics(model, batch, model.compiled.metrics)
    return {name: float(values.mean()) for name, values in rows.items()}


def in_batch_metrics(model: "RetrievalModelV2", batch: Batch, metrics: Sequence[RankingMetric]) -> dict[str, Tensor]:
    """One value for each row, (B,), under in_batch_<metric>."""
    query, candidate = model.query(batch), model.candidate(batch)
    ids = scalar_column(batch, model.candidate_id.name)
    relevance = in_batch_relevance(query, candidate, ids, max(metric.k for metric in metrics))
    one = torch.ones(len(ids), device=ids.device)
    return {f"in_batch_{metric.name}": metric(relevance, one).cpu() for metric in metrics}


def embed_catalog(model: "RetrievalModelV2", catalog: Catalog, batch_size: int) -> Tensor:
    """(N, D) vectors of all candidates, on the model's device."""
    with evaluating(model):
        parts = [
            model.candidate(to_device(catalog.slice(start, start + batch_size), model.device)).float()
            for start in range(0, len(catalog), batch_size)
        ]
    return torch.cat(parts)


def _positives(outputs: Sequence[ModelOutput], data: Dataset) -> Dataset:
    """The rows that are positives: where the contrastive (else binary) output has a target, its rows above 0."""
    contrastive = [o.target for o in outputs if isinstance(o, ContrastiveOutput)]
    binary = [o.target for o in outputs if isinstance(o, BinaryOutput)]
    target = (contrastive or binary or [None])[0]
    if target is None:
        return data
    return Dataset(data.to_polars().filter(pl.col(target) > 0), data.schema)


def _target_metrics(model: "RetrievalModelV2", data: Dataset, batch_size: int) -> dict[str, float]:
    """AUC, accuracy, precision and recall of binary outputs, RMSE of regression outputs."""
    from torchmetrics.functional import classification as c  # a second to import, and only targets need it

    values: dict[str, float] = {}
    with_target = [o for o in model.outputs if isinstance(o, (BinaryOutput, RegressionOutput))]
    if not with_target:
        return values
    predicted = predict(model, data, batch_size)
    columns = data.batch(data.schema.select_by_name([str(o.target) for o in with_target]))
    for output in with_target:
        score, target = predicted[output.name].squeeze(1), pair_target(columns, str(output.target))
        if isinstance(output, RegressionOutput):
            values[f"{output.name}/rmse"] = float((score - target).square().mean().sqrt())
            continue
        label = (target > 0).long()
        values[f"{output.name}/auc"] = float(c.binary_auroc(score, label))
        values[f"{output.name}/binary_accuracy"] = float(c.binary_accuracy(score, label))
        values[f"{output.name}/precision"] = float(c.binary_precision(score, label))
        values[f"{output.name}/recall"] = float(c.binary_recall(score, label))
    return values
