"""TopKEncoder: the query tower and an index, from a batch to the ids of the best candidates."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.candidates import TopK
from twotower.data.arrow import from_tensor
from twotower.data.batch import Batch
from twotower.data.dataset import Dataset
from twotower.encoder import Tower, embed
from twotower.errors import choose, explain_options
from twotower.evaluation import evaluate_tower
from twotower.files import PathLike, folder_written_aside
from twotower.indexes.exact import ExactIndex
from twotower.metrics import Metrics, resolve_metrics
from twotower.saving import read_json, read_weights, rebuild, write_module

STRATEGIES: dict[str, type[ExactIndex]] = {"brute-force-topk": ExactIndex}
Identifiers = Tensor | np.ndarray | Sequence[int] | Sequence[str]


class TopKEncoder(nn.Module):
    """Finds the best candidates for the queries of a batch.

    Args:
        query_encoder: the query tower.
        candidates: vectors (N, D); or a Dataset of an id column and columns "0" to "D-1", as candidate_embeddings
            gives it. Without it, call `index_candidates` before the first search.
        identifiers: (N,) the candidates' ids, integers (kept as int64) or strings; by default the Dataset's id column,
            or 0 to N-1.
        topk_layer: "brute-force-topk", the exact search.
        k: how many, unless a call says otherwise.

    Raises:
        ValueError: repeated ids, another number of ids than vectors, vectors of another width than the queries, or
            a search before there are candidates.
    """

    @explain_options
    def __init__(
        self,
        query_encoder: Tower,
        candidates: Tensor | Dataset | None = None,
        identifiers: Identifiers | None = None,
        *,
        topk_layer: str = "brute-force-topk",
        k: int = 10,
    ) -> None:
        super().__init__()
        choose("topk_layer", topk_layer, STRATEGIES)
        self.query_encoder = query_encoder
        self.topk_layer = topk_layer
        self.k = k
        self.index: ExactIndex | None = None
        self.identifiers: pa.Array = pa.array([], type=pa.int64())
        if candidates is not None:
            self.index_candidates(candidates, identifiers)

    def index_candidates(self, candidates: Tensor | Dataset, identifiers: Identifiers | None = None) -> "TopKEncoder":
        """Take these candidates in place of the old ones."""
        vectors, ids = _vectors_and_ids(candidates, identifiers)
        if vectors.ndim != 2 or vectors.shape[1] != self.query_encoder.dim:
            raise ValueError(
                f"candidates must be (N, {self.query_encoder.dim}) like the query tower's vectors, got "
                f"{tuple(vectors.shape)}."
            )
        if len(ids) != len(vectors):
            raise ValueError(f"{len(vectors)} candidate vectors came with {len(ids)} ids; there must be one for each.")
        if len(ids.unique()) < len(ids):
            raise ValueError(
                f"candidate ids must be unique: {len(ids) - len(ids.unique())} of {len(ids)} repeat. "
                "unique_rows_by_features keeps one row for each id."
            )
        device = next(self.query_encoder.parameters()).device
        self.index = STRATEGIES[self.topk_layer](vectors.to(device))
        self.identifiers = ids
        return self

    def forward(self, batch: Batch, k: int | None = None) -> TopK:
        """The k best candidates of every row."""
        return self.search(self.query_encoder(batch), k)

    def search(self, queries: Float[Tensor, "B D"], k: int | None = None) -> TopK:
        """The k best candidates of encoded queries."""
        if self.index is None:
            raise ValueError(
                "the TopKEncoder has no candidates yet: call index_candidates, or model.to_top_k_encoder()."
            )
        scores, positions = self.index.search(queries, self.k if k is None else k)
        return TopK(scores, self.ids_at(positions))

    def ids_at(self, positions: Tensor) -> Tensor | np.ndarray:
        """The ids of candidate positions, of the same shape: int64 tensor, or array of strings."""
        taken = self.identifiers.take(pa.array(positions.cpu().numpy().reshape(-1)))
        if pa.types.is_integer(taken.type):
            return torch.from_numpy(taken.to_numpy().copy()).reshape(positions.shape).to(positions.device)
        return np.array(taken.to_pylist(), dtype=object).reshape(tuple(positions.shape))

    def predict(self, dataset: Dataset, batch_size: int = 1024, k: int | None = None) -> TopK:
        """The k best candidates of every row of a dataset."""
        queries = embed(self.query_encoder, dataset, batch_size)
        device = next(self.query_encoder.parameters()).device
        parts = [self.search(part.to(device), k) for part in queries.split(batch_size)]
        scores = torch.cat([part.scores.cpu() for part in parts])
        if isinstance(parts[0].ids, Tensor):
            return TopK(scores, torch.cat([torch.as_tensor(part.ids).cpu() for part in parts]))
        return TopK(scores, np.concatenate([np.asarray(part.ids) for part in parts]))

    def batch_predict(
        self, dataset: Dataset, batch_size: int = 1024, k: int | None = None, columns: Sequence[str] = ()
    ) -> Dataset:
        """The same as a Dataset: the chosen input columns, then score_0, ..., id_0, ..."""
        top = self.predict(dataset, batch_size, k)
        table = dataset.select(columns).table
        for number in range(top.scores.shape[1]):
            table = table.append_column(f"score_{number}", from_tensor(top.scores[:, number]))
        for number in range(top.scores.shape[1]):
            ids = top.ids[:, number]
            table = table.append_column(f"id_{number}", from_tensor(ids) if isinstance(ids, Tensor) else pa.array(ids))
        return Dataset(table)

    def evaluate(
        self,
        data: Dataset,
        target: str,
        *,
        metrics: Metrics | None = None,
        seen: Dataset | None = None,
        group: str | None = None,
        batch_size: int = 1024,
    ) -> dict[str, float]:
        """Rank all candidates for the queries of a dataset, as the model's evaluate does.

        Args:
            data: interactions with the query tower's columns and the target.
            target: the column with the ids that should be found, of the same kind as the candidates' ids.
            metrics: names or records; None takes recall, MRR, NDCG, MAP and precision at 10.
            seen, group, batch_size: as in RetrievalModelV2.evaluate.
        """
        if self.index is None:
            raise ValueError(
                "the TopKEncoder has no candidates yet: call index_candidates, or model.to_top_k_encoder()."
            )
        return evaluate_tower(
            self.query_encoder,
            data,
            target,
            pl.Series(self.identifiers),
            self.index.vectors_of(torch.arange(len(self.index))),
            metrics=resolve_metrics(metrics),
            seen=seen,
            group=group,
            batch_size=batch_size,
        )

    def save(self, path: PathLike) -> None:
        """Write a folder with the query tower, the candidates and their ids; whole or not at all, without pickle."""
        if self.index is None:
            raise ValueError("the TopKEncoder has no candidates to save: call index_candidates first.")
        with folder_written_aside(path, "module.json") as folder:
            write_module(self.query_encoder, folder, {"topk_layer": self.topk_layer, "k": self.k})
            safetensors.torch.save_file(
                {"vectors": self.index.vectors_of(torch.arange(len(self.index))).cpu()},
                folder / "candidates.safetensors",
            )
            pq.write_table(pa.table({"id": self.identifiers}), folder / "ids.parquet")

    @classmethod
    def load(cls, path: PathLike, custom_objects: Mapping[str, type] | None = None) -> "TopKEncoder":
        """Read what `save` wrote."""
        folder = Path(path)
        text = read_json(folder)
        encoder: Tower = rebuild(text["module"], custom_objects)
        read_weights(encoder, folder)
        vectors = safetensors.torch.load_file(folder / "candidates.safetensors")["vectors"]
        ids = pq.read_table(folder / "ids.parquet")["id"].to_pylist()
        return cls(encoder, vectors, ids, topk_layer=text["topk_layer"], k=text["k"]).eval()


def _vectors_and_ids(candidates: Tensor | Dataset, identifiers: Identifiers | None) -> tuple[Tensor, pa.Array]:
    if isinstance(candidates, Dataset):
        names = candidates.column_names
        numbered = [name for name in names if name.isdigit()]
        others = [name for name in names if not name.isdigit()]
        if not numbered or (identifiers is None and len(others) != 1):
            raise ValueError(
                f"candidates must have one id column and columns '0' to 'D-1', got {names}. candidate_embeddings makes it."
            )
        vectors = torch.from_numpy(
            np.stack([candidates.table.column(str(n)).to_numpy() for n in range(len(numbered))], axis=1)
        )
        column = candidates.table.column(others[0]) if identifiers is None else identifiers
        ids = _id_array(column)
        return vectors.float(), ids
    ids = pa.array(range(len(candidates)), type=pa.int64()) if identifiers is None else _id_array(identifiers)
    return candidates, ids


def _id_array(identifiers: Identifiers | pa.ChunkedArray) -> pa.Array:
    given = identifiers.cpu().numpy() if isinstance(identifiers, Tensor) else identifiers
    ids = given.combine_chunks() if isinstance(given, pa.ChunkedArray) else pa.array(given)
    if ids.null_count:
        raise ValueError(f"candidate ids must not be missing: {ids.null_count} of {len(ids)} are null.")
    if pa.types.is_integer(ids.type):
        return ids.cast(pa.int64())
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return ids
    raise ValueError(f"candidate ids must be integers or strings, got {ids.type}.")
