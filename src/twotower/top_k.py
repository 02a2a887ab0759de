"""TopKEncoder: the query tower and an index, from a batch to the ids of the best candidates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.candidates import TopK
from twotower.data.arrow import from_tensor
from twotower.data.batch import Batch, to_device
from twotower.data.dataset import Dataset
from twotower.encoder import Tower, embed, evaluating
from twotower.errors import choose, explain_options, unknown
from twotower.evaluation import evaluate_tower
from twotower.files import PathLike, folder_written_aside, written_aside
from twotower.indexes.base import Index
from twotower.indexes.exact import ExactIndex
from twotower.indexes.kinds import INDEXES, load_index
from twotower.metrics import Metrics, resolve_metrics
from twotower.saving import Json, read_json, read_weights, rebuild, write_module

Kind = Callable[..., Index]
STRATEGIES: dict[str, Kind] = {"brute-force-topk": ExactIndex, **INDEXES}
Identifiers = Tensor | np.ndarray | Sequence[int] | Sequence[str]
# rows that batch_predict writes at once
ROW_GROUP = 65_536


class TopKEncoder(nn.Module):
    """Finds the best candidates for the queries of a batch.

    Args:
        query_encoder: the query tower.
        candidates: vectors (N, D); or a Dataset of an id column and columns "0" to "D-1", as candidate_embeddings
            gives it. Without it, call `index_candidates` before the first search.
        identifiers: (N,) the candidates' ids, integers (kept as int64) or strings; by default the Dataset's id column,
            or 0 to N-1.
        topk_layer: how they are found: "brute-force-topk" or "exact", "flat", "ivf", "hnsw", "scann", "qdrant"; a kind of Index; or
            an Index that holds the candidates already, whose keys are the ids.
        index_options: the kind's own options, such as {"target_recall": 0.98} of "ivf".
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
        topk_layer: str | Kind | Index = "brute-force-topk",
        index_options: Mapping[str, Any] | None = None,
        k: int = 10,
    ) -> None:
        super().__init__()
        self.query_encoder = query_encoder
        self.index_options = dict(index_options or {})
        self.k = k
        self.index: Index | None = None
        self._identifiers: pa.Array | None = None  # None: the index's keys are the ids
        if isinstance(topk_layer, Index):
            if candidates is not None or identifiers is not None or index_options is not None:
                raise ValueError("an Index that is built holds its candidates: give no others, nor ids or options.")
            self.kind: Kind = type(topk_layer)
            self._use(topk_layer)
        else:
            self.kind = choose("topk_layer", topk_layer, STRATEGIES) if isinstance(topk_layer, str) else topk_layer
        if candidates is not None:
            self.index_candidates(candidates, identifiers)

    def _use(self, index: Index) -> None:
        if index.dim != self.query_encoder.dim:
            raise ValueError(
                f"the index holds vectors of width {index.dim}, the query tower gives {self.query_encoder.dim}."
            )
        self.index = index

    @property
    def identifiers(self) -> pa.Array:
        """The candidates' ids."""
        if self._identifiers is not None:
            return self._identifiers
        return pa.array([] if self.index is None else self.index.keys.numpy(), type=pa.int64())

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
        self._use(self.kind(vectors.to(device), **self.index_options))  # keyed by place
        self._identifiers = ids
        return self

    def forward(self, batch: Batch, k: int | None = None) -> TopK:
        """The k best candidates of every row."""
        return self.search(self.query_encoder(batch), k)

    def search(self, queries: Float[Tensor, "B D"], k: int | None = None) -> TopK:
        """The k best candidates of encoded queries."""
        scores, keys = self._held().search(queries, self.k if k is None else k)
        return TopK(scores, self.ids_at(keys))

    def _held(self) -> Index:
        if self.index is None:
            raise ValueError(
                "the TopKEncoder has no candidates yet: call index_candidates, or model.to_top_k_encoder()."
            )
        return self.index

    def ids_at(self, positions: Tensor) -> Tensor | np.ndarray:
        """The ids of candidates by the keys that they have in the index, of the same shape: int64 tensor, or array of strings."""
        if self._identifiers is None:
            return positions
        taken = self._identifiers.take(pa.array(positions.cpu().numpy().reshape(-1)))
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
        self,
        dataset: Dataset,
        batch_size: int = 1024,
        k: int | None = None,
        columns: Sequence[str] = (),
        path: PathLike | None = None,
    ) -> Dataset:
        """The same as a Dataset: the chosen input columns, then score_0, ..., id_0, ...

        Args:
            dataset: rows with the query tower's columns.
            batch_size: rows encoded and searched at once.
            k: how many candidates, by default the encoder's k.
            columns: input columns to keep.
            path: a Parquet file to write batch by batch, whole or not at all; it takes the memory of a row group of the
                input and 65,536 rows of the output, and is what the returned Dataset reads.
        """
        for name in columns:
            if name not in dataset.column_names:
                raise ValueError(unknown("column", name, dataset.column_names))
        if path is None:
            top = self.predict(dataset, batch_size, k)
            return Dataset(_beside(dataset.select(columns).table, top))
        with written_aside(path) as aside:
            self._write_predictions(dataset, batch_size, k, columns, aside)
        return Dataset(path)

    def _write_predictions(
        self, dataset: Dataset, batch_size: int, k: int | None, columns: Sequence[str], file: Path
    ) -> None:
        names = list(dict.fromkeys([*self.query_encoder.schema.column_names, *columns]))
        device = next(self.query_encoder.parameters()).device
        writer: pq.ParquetWriter | None = None
        waiting: list[pa.Table] = []

        def flush() -> None:
            nonlocal writer
            if waiting:
                table = pa.concat_tables(waiting)
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
                waiting.clear()

        try:
            with evaluating(self.query_encoder):
                for frame in dataset.frames(names):
                    part = Dataset(frame, self.query_encoder.schema)
                    for start in range(0, len(frame), batch_size):
                        rows = Dataset(part.table.slice(start, batch_size), part.schema)
                        queries = self.query_encoder(to_device(rows.batch(), device)).float()
                        waiting.append(_beside(rows.table.select(columns), self.search(queries, k)))
                        if sum(map(len, waiting)) >= ROW_GROUP:
                            flush()
            flush()
            if writer is None:
                raise ValueError("the dataset has no rows to predict for.")
        finally:
            if writer is not None:
                writer.close()

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
        index = self._held()
        keys = index.keys if self._identifiers is None else torch.arange(len(index))
        return evaluate_tower(
            self.query_encoder,
            data,
            target,
            pl.Series(self.identifiers),
            index.vectors_of(keys),
            metrics=resolve_metrics(metrics),
            seen=seen,
            group=group,
            batch_size=batch_size,
        )

    def save(self, path: PathLike) -> None:
        """Write a folder with the query tower, the index and the ids; whole or not at all, without pickle.

        Of the index's options only numbers are kept: sample queries serve its building alone, and a place to connect to is not
        taken from a file.
        """
        if self.index is None:
            raise ValueError("the TopKEncoder has no candidates to save: call index_candidates first.")
        options = _numbers(self.index_options)
        with folder_written_aside(path, "module.json") as folder:
            write_module(self.query_encoder, folder, {"index_options": options, "k": self.k})
            self.index.save(folder / "index")
            if self._identifiers is not None:
                pq.write_table(pa.table({"id": self._identifiers}), folder / "ids.parquet")

    @classmethod
    def load(cls, path: PathLike, custom_objects: Mapping[str, type] | None = None) -> "TopKEncoder":
        """Read what `save` wrote; blocks of your own by class name, and kinds of index by their `kind`, in `custom_objects`."""
        folder = Path(path)
        text = read_json(folder)
        encoder: Tower = rebuild(text["module"], custom_objects)
        read_weights(encoder, folder)
        kinds = {name: kind for name, kind in (custom_objects or {}).items() if issubclass(kind, Index)}
        loaded = cls(encoder, topk_layer=load_index(folder / "index", kinds), k=text["k"])
        loaded.index_options = _numbers(text["index_options"])
        if (folder / "ids.parquet").exists():
            loaded._identifiers = pq.read_table(folder / "ids.parquet")["id"].combine_chunks()
        return loaded.eval()


def _numbers(options: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in options.items() if isinstance(value, (bool, int, float))}


def _beside(table: pa.Table, top: TopK) -> pa.Table:
    """Columns score_0, ..., id_0, ... beside those of the rows."""
    found = {f"score_{place}": from_tensor(top.scores[:, place]) for place in range(top.scores.shape[1])}
    for place in range(top.scores.shape[1]):
        ids = top.ids[:, place]
        found[f"id_{place}"] = from_tensor(ids) if isinstance(ids, Tensor) else pa.array(ids)
    return pa.table({name: table[name] for name in table.column_names} | found)


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
