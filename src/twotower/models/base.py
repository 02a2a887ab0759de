"""RetrievalModelV2: two towers, their outputs, and the verbs of a model's life."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twotower.blocks.pretrained import Vectors
from twotower.candidates import Step
from twotower.data.arrow import from_tensor
from twotower.data.batch import Batch, scalar_column
from twotower.data.catalog import Catalog
from twotower.data.dataset import Dataset, Source
from twotower.data.loader import Loader
from twotower.distinct import encode_in_parts
from twotower.encoder import Tower, embeddings_dataset, encode, evaluating
from twotower.errors import explain_options, explain_options_with
from twotower.evaluation import Queries, ScoreQueries
from twotower.files import PathLike
from twotower.metrics import Metrics, resolve_metrics
from twotower.models import growing, parts, positions, scoring, storing
from twotower.optimizers import MakeOptimizer
from twotower.outputs import ContrastiveOutput, ModelOutput, RowLoss
from twotower.schema import Schema, Tags
from twotower.top_k import TopKEncoder
from twotower.training.compiled import Compiled, check_compiled
from twotower.training.history import History

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger


class RetrievalModelV2(nn.Module):
    """A query tower and a candidate tower that meet in one or more outputs.

    Args:
        query: the query tower.
        output: an output, or a list of them for several tasks.
        candidate: the candidate tower. Without it, an embedding table on the contrastive output's id column.
        schema: holds the candidate id column, for a candidate tower that does not read it.
        candidate_id_tag: the tag of the candidate id.

    Raises:
        ValueError: towers of different widths, no candidate id, no output, or two outputs of one name.
    """

    @explain_options
    def __init__(
        self,
        *,
        query: Tower,
        output: ModelOutput | Sequence[ModelOutput],
        candidate: Tower | None = None,
        schema: Schema | None = None,
        candidate_id_tag: Tags | str = Tags.ITEM_ID,
    ) -> None:
        super().__init__()
        self.output = nn.ModuleList([output] if isinstance(output, ModelOutput) else output)
        self.query = query
        self.candidate = parts.table_tower(self.outputs, query.dim) if candidate is None else candidate
        self.schema = schema
        self.candidate_id_tag = candidate_id_tag
        self.candidate_id = parts.candidate_id_column(self.candidate.schema, schema, candidate_id_tag)
        parts.check_widths(self.query, self.candidate)
        parts.check_outputs(self.outputs, query.dim)
        parts.check_prior(self.candidate, self.outputs)
        self.compiled = Compiled()
        self.catalog: Catalog | None = None
        # of the last fit; the next fit goes on from it
        self.optimizer_state: dict[str, Any] | None = None

    # ---- what it is made of

    @property
    def query_encoder(self) -> Tower:
        """The query tower."""
        return self.query

    @property
    def candidate_encoder(self) -> Tower:
        """The candidate tower."""
        return self.candidate

    @property
    def outputs(self) -> list[ModelOutput]:
        """The outputs, one for each task."""
        return [output for output in self.output if isinstance(output, ModelOutput)]

    @property
    def input_schema(self) -> Schema:
        """The feature columns that the towers and the candidate id need; targets and weights are not among them."""
        return self.query.schema + self.candidate.schema + Schema([self.candidate_id])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    # ---- one batch

    def forward(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        """The score of the query and the candidate on each row, (B, 1); by output's name if there are several."""
        query, candidate = self.query(batch), self.candidate(batch)
        scores = {output.name: output.predict(query, candidate) for output in self.outputs}
        return scores if len(scores) > 1 else next(iter(scores.values()))

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar: the outputs' losses by their weights, and the L2 terms."""
        return self.losses(batch)["loss"]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The training loss under "loss" and, if it has several parts, each part under its name."""
        steps = self._steps(batch)
        values = {
            f"{o.name}_loss": o(replace(steps[o.name], encode_fixed=self._encode_fixed), self.compiled.loss_of(o.name))
            for o in self.outputs
        }
        weights = torch.tensor([self.compiled.weight_of(o.name) for o in self.outputs], device=self.device)
        total = (torch.stack(list(values.values())) * weights).sum()
        terms = [*self.query.regularization(batch).values(), *self.candidate.regularization(batch).values()]
        if terms:
            values["regularization_loss"] = torch.stack(terms).sum()
            total = total + values["regularization_loss"]
        return {"loss": total, **(values if len(values) > 1 else {})}

    def _steps(self, batch: Batch) -> dict[str, Step]:
        """What each output is trained on, by its name."""
        name, encode = self.compiled.every_position, self._encode_ids
        if name is not None:
            return positions.make_steps(
                self.query, self.candidate, self.candidate_id, self.outputs, name, batch, encode
            )
        at_once = self.compiled.encode_rows
        step = parts.make_step(self.query, self.candidate, self.candidate_id.name, batch, encode, at_once)
        return dict.fromkeys([output.name for output in self.outputs], step)

    def _encode_ids(self, ids: Tensor) -> Tensor:
        """The candidate tower on ids alone, their other features from the catalogue."""
        if self.candidate.schema.column_names == [self.candidate_id.name]:
            return encode_in_parts(self.candidate, {self.candidate_id.name: ids}, self.compiled.encode_rows)
        catalog = self._known_catalog("a sampler that draws candidates by id needs their features")
        if catalog.ids.device != ids.device:
            self.catalog = catalog = catalog.to(ids.device)
        return encode_in_parts(self.candidate, catalog.lookup(ids), self.compiled.encode_rows)

    def _encode_fixed(self, ids: Tensor) -> Tensor:
        """The same as in prediction."""
        with evaluating(self.candidate):
            return self._encode_ids(ids)

    def _known_catalog(self, why: str) -> Catalog:
        if self.catalog is None:
            raise ValueError(
                f"{why}, but the model knows no catalogue yet: call fit (or adapt before a loop of your own), or give "
                "catalog=<a Dataset with one row for each candidate>."
            )
        return self.catalog

    # ---- training

    @explain_options_with(" PyTorch's Module.compile is another thing: use torch.compile(model) for it.")
    def compile(  # type: ignore[override]
        self,
        optimizer: str | MakeOptimizer = "adam",
        loss: str | RowLoss | Mapping[str, str | RowLoss] | None = None,
        metrics: Metrics | None = None,
        loss_weights: Mapping[str, float] | None = None,
        learning_rate: float | None = None,
        table_optimizer: str | None = None,
        table_learning_rate: float | None = None,
        encode_rows: int | None = None,
        every_position: str | None = None,
        schedule: str = "constant",
        warmup: float = 0.0,
    ) -> None:
        """Choose how to train and what to measure. PyTorch's Module.compile is `torch.compile(model)`.

        Args:
            optimizer: "adam", "adamw", "adagrad", "rmsprop", "sgd", or a function from parameters to an optimiser.
            loss: for the only output, or a dict by output's name; None takes each output's default.
            metrics: names such as "recall_at_20", or records; None takes recall, MRR, NDCG, MAP and precision at 10.
            loss_weights: by output's name; 1 by default.
            learning_rate: of the named optimiser; None takes its default.
            table_optimizer: for the embedding tables, of which a step then touches the rows looked up and no others:
                "lazy_adam", "row_adam", "rowwise_adagrad", "adagrad", "sgd"; "dense" treats them like everything else. By default
                tables of at least 10,000 rows go with the named optimiser: "row_adam" with "adam", "adagrad" and
                "sgd" with their namesakes, whose result is the same, and dense with the rest. None of them decays weights.
            table_learning_rate: of the table optimiser; None takes learning_rate.
            encode_rows: encode at most so many rows at a time, twice each, for towers whose activations would not fit
                into memory (GradCache); None encodes all at once. The result is the same.
            every_position: a query column of candidate ids in order of time, pooled by a history encoder: beside the row's
                own candidate after all of the list, each element is a positive of the query before it, the first one of the
                query with an empty list (see docs/concepts/history.md). None trains each row on its own candidate.
            schedule: of all learning rates over the steps of one fit: "constant", or "linear" and "cosine", which fall to 0.
            warmup: the share of the steps, at first, in which the learning rates rise to what was chosen; 0 for none.

        Raises:
            ValueError: an unknown name, one loss for several outputs, or a model that cannot be trained on every position.
        """
        self.compiled = check_compiled(
            self.outputs,
            optimizer,
            loss,
            metrics,
            loss_weights,
            learning_rate,
            table_optimizer,
            table_learning_rate,
            encode_rows,
            every_position,
            schedule,
            warmup,
        )
        if every_position is not None:
            positions.check(self.query, self.candidate_id, self.outputs, every_position, encode_rows)
        self.optimizer_state = None

    def adapt(self, train: Source, catalog: Source | None = None) -> "RetrievalModelV2":
        """Learn what needs no gradient: item frequencies for the samplers, and the catalogue.

        `fit` calls it. A loop of your own calls it once, before the first step.

        Args:
            train: the interactions.
            catalog: one row for each candidate; by default the distinct candidates of `train`.
        """
        ids = scalar_column(Dataset(train).batch(Schema([self.candidate_id])), self.candidate_id.name)
        self.catalog = self._catalog_of(train if catalog is None else catalog)
        queries = parts.ids_of_queries(self.query, Dataset(train))
        if self.compiled.every_position is not None:
            every = positions.all_targets(self.query, self.candidate_id, self.compiled.every_position, Dataset(train))
            ids, queries = every.ids, None if queries is None else queries[every.row.to(queries.device)]
            self.catalog = positions.covering(self.catalog, self.candidate.schema, ids, given=catalog is not None)
        for output in self.outputs:
            if isinstance(output, ContrastiveOutput):
                output.adapt(ids.to(self.device), self.catalog.ids.to(self.device), queries)
        return self

    def _catalog_of(self, data: Source) -> Catalog:
        return Catalog.from_dataset(Dataset(data), self.candidate_id.name, self.candidate.schema)

    def extend(
        self, schema: Schema, *, vectors: Mapping[str, Vectors] | None = None, catalog: Source | None = None
    ) -> "RetrievalModelV2":
        """Take in the new ids of a schema that has grown; old ids keep their vectors, and so their scores, bit for bit.

        Tables get rows for the ids that were appended to their domains (see EmbeddingTable.extend), and the next fit goes on
        from the optimiser's state of the last. New candidates are ranked once a catalogue holds them: the next fit's, or
        `catalog`. An error changes nothing.

        Args:
            schema: all columns that the model reads, such as `preprocessor.extend(new_data).schema`;
                columns that have not grown stay as they are.
            vectors: for the columns that PretrainedEmbeddings looks up and that have grown, all vectors, the old ones first.
            catalog: all candidates, one row each.

        Raises:
            ValueError: a column is missing, has lost ids or is another one; no vectors or weights for the new ids of
                PretrainedEmbeddings and PopularitySampler; a part was frozen since the last fit without compile().
        """
        growing.extend(self, schema, vectors or {})
        if catalog is not None:
            self.catalog = self._catalog_of(catalog)
        return self

    @explain_options
    def fit(
        self,
        train: Source,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        validation_data: Source | None = None,
        catalog: Source | None = None,
        seen: Source | None = None,
        group: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        steps_per_epoch: int | None = None,
        train_metrics_steps: int = 0,
        health_steps: int = 100,
        callbacks: "Callback | Sequence[Callback]" = (),
        logger: "Logger | Sequence[Logger] | bool" = False,
        checkpoint: PathLike | None = None,
        checkpoint_steps: int = 1000,
        resume_from: PathLike | None = None,
        trainer_options: Mapping[str, object] | None = None,
        verbose: bool = True,
    ) -> History:
        """Train on interactions, on Lightning's Trainer. A second fit goes on from the first.

        Args:
            train: the interactions, with the towers' columns, targets and weights.
            batch_size: rows in a step; with in-batch sampling also the number of negatives.
            epochs: passes over the data.
            validation_data: interactions to `evaluate` after every epoch, logged as `val_<metric>`, which callbacks
                such as EarlyStopping can monitor.
            catalog: all candidates, one row each, when `train` does not hold them all.
            seen, group: as in `evaluate`, for the validation.
            shuffle, seed, drop_last: as in Loader.
            steps_per_epoch: end an epoch after that many steps.
            train_metrics_steps: at the first and every n-th step of an epoch, log how the batch's rows rank their own
                candidate among the batch's, as `in_batch_<metric>`; 0 for never.
            health_steps: measure `Health` at every n-th step and an epoch's end, and warn of findings; 0 for never.
            callbacks, logger: Lightning's, passed through.
            checkpoint, checkpoint_steps: a folder, in which `step-<number>.ckpt` is written after every so many optimiser
                steps and at the end of every epoch; the newest two are kept.
            resume_from: go on from such a folder's newest checkpoint, or from a file of it or of Lightning's
                ModelCheckpoint; "auto" takes the newest in `checkpoint`, and starts afresh where there is none. With the
                same model, data and options the losses are those of an unbroken run, bit for bit.
            trainer_options: more arguments of Lightning's Trainer, such as {"accelerator": "gpu", "precision":
                "bf16-mixed", "gradient_clip_val": 1.0}.
            verbose: show progress bars.

        Returns:
            History: the logged values of every epoch.

        Raises:
            ValueError: no batch_size, missing columns, an unknown Trainer option; no checkpoint to go on from, a damaged
                one, or one of another model, data or options; a folder with checkpoints of another run.
        """
        # takes two seconds to import, and only fit needs it
        from twotower.training import checkpoint as ckpt
        from twotower.training import lightning

        train, size = Dataset(train), parts.checked_batch_size(batch_size, epochs, steps_per_epoch)
        parts.check_intervals(health_steps=health_steps, train_metrics_steps=train_metrics_steps)
        checkpoints = ckpt.resolve(checkpoint, checkpoint_steps, resume_from)
        columns = self.input_schema + train.schema.select_by_name(parts.columns_read(self.outputs))
        loader = Loader(train, size, shuffle=shuffle, seed=seed, drop_last=drop_last, schema=columns)
        self.adapt(train, catalog)
        validate = partial(self.evaluate, seen=seen, group=group)
        return lightning.run(
            self,
            loader,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validate=None if validation_data is None else partial(validate, validation_data),
            batch_metrics=lambda batch: scoring.batch_metrics(self, batch),
            train_metrics_steps=train_metrics_steps,
            health_steps=health_steps,
            callbacks=callbacks,
            logger=logger,
            checkpoints=checkpoints,
            trainer_options=trainer_options or {},
            verbose=verbose,
        )

    # ---- measuring and predicting

    @explain_options
    def evaluate(
        self,
        data: Source,
        *,
        catalog: Source | None = None,
        seen: Source | None = None,
        group: str | None = None,
        metrics: Metrics | None = None,
        batch_size: int = 1024,
        sampled: str | None = None,
    ) -> dict[str, float]:
        """Rank the whole catalogue for every query and measure where its positives stand.

        Rows that agree in the query tower's columns are one query with several positives. Ties lose. Outputs with a
        target add their own metrics, as `<output>/<metric>`.

        Args:
            data: interactions.
            catalog: the candidates to rank, one row each; by default those the model was fitted with.
            seen: earlier interactions, whose candidates are not ranked for the same user.
            group: a column that tells queries apart beyond the tower's own columns, such as a raw user id: users that
                the Preprocessor does not know share an id, and are one query without it.
            metrics: as in compile; by default those chosen there.
            batch_size: rows encoded at once.
            sampled: "in-batch" ranks each row's candidate among its batch only, as `in_batch_<metric>`: numbers that
                depend on batch_size, for comparing with older tables.

        Returns:
            The mean of each metric over the queries.
        """
        chosen = self.compiled.metrics if metrics is None else resolve_metrics(metrics)
        if sampled is not None:
            if sampled != "in-batch":
                raise ValueError(
                    f"unknown sampled {sampled!r}: choose 'in-batch', or None to rank the whole catalogue."
                )
            return scoring.evaluate_in_batch(self, Dataset(data), metrics=chosen, batch_size=batch_size)
        known = self._known_catalog("evaluate ranks all candidates") if catalog is None else self._catalog_of(catalog)
        return scoring.evaluate(
            self,
            Dataset(data),
            known,
            metrics=chosen,
            seen=None if seen is None else Dataset(seen),
            group=group,
            batch_size=batch_size,
        )

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """The scores of all candidates for some queries, as an Evaluator asks them.

        Args:
            queries: with the query tower's columns.
            candidates: ids, and the candidate tower's columns or, without these, ids of the model's catalogue.
        """
        return scoring.score_queries(self, queries, candidates)

    def predict(self, dataset: Source, batch_size: int = 1024) -> Tensor | dict[str, Tensor]:
        """The score of the query and the candidate on each row, (rows, 1); by output's name if there are several."""
        scores = scoring.predict(self, Dataset(dataset), batch_size)
        return scores if len(scores) > 1 else next(iter(scores.values()))

    def batch_predict(self, dataset: Source, batch_size: int = 1024, columns: Sequence[str] | None = None) -> Dataset:
        """The dataset's columns (or some of them) with one score column for each output, named after it."""
        dataset = Dataset(dataset)
        table = dataset.table if columns is None else dataset.select(columns).table
        for name, values in scoring.predict(self, dataset, batch_size).items():
            table = table.append_column(name, from_tensor(values.squeeze(1)))
        return Dataset(table)

    def query_embeddings(self, dataset: Dataset, index: str | Tags = Tags.USER_ID, batch_size: int = 1024) -> Dataset:
        """The query vector of every row: the index column, then "0" to "D-1". Rows are not de-duplicated."""
        return encode(self.query, dataset, index, batch_size)

    def candidate_embeddings(
        self, dataset: Dataset | None = None, index: str | Tags | None = None, batch_size: int = 1024
    ) -> Dataset:
        """The candidate vector of every row of a dataset, or of the catalogue the model was fitted with."""
        if dataset is not None:
            return encode(self.candidate, dataset, index or self.candidate_id.name, batch_size)
        catalog = self._known_catalog("candidate_embeddings without a dataset embeds the catalogue")
        ids = Dataset({catalog.id_name: catalog.ids.cpu().numpy()}, Schema([self.candidate_id]))
        return embeddings_dataset(ids, catalog.id_name, scoring.embed_catalog(self, catalog, batch_size).cpu())

    @explain_options
    def to_top_k_encoder(
        self,
        candidates: Dataset | None = None,
        *,
        candidate_id: str | Tags | None = None,
        strategy: str = "brute-force-topk",
        index_options: Mapping[str, Any] | None = None,
        k: int = 10,
        batch_size: int = 1024,
    ) -> TopKEncoder:
        """The query tower with an index of candidates.

        Args:
            candidates: one row for each candidate, with the candidate tower's columns; by default the catalogue.
            candidate_id: the column or tag of the ids to return; it need not be one that the tower reads.
            strategy, index_options: the kind of index and its options, as TopKEncoder takes them.
            k: how many to find by default.
            batch_size: candidates encoded at once.
        """
        vectors = self.candidate_embeddings(candidates, candidate_id, batch_size)
        return TopKEncoder(self.query, vectors, topk_layer=strategy, index_options=index_options, k=k)

    # ---- files

    def save(self, path: PathLike, include_optimizer: bool = False) -> None:
        """Write a folder with everything: structure, weights, samplers, compile's choices, catalogue.

        The folder appears whole or not at all, and replaces an older one. No pickle.

        Args:
            path: the folder.
            include_optimizer: also the optimiser's state of the last fit, so that training goes on exactly.
        """
        storing.save(self, path, include_optimizer)

    @classmethod
    def load(cls, path: PathLike, custom_objects: Mapping[str, type] | None = None) -> "RetrievalModelV2":
        """Read what `save` wrote.

        Args:
            path: the folder.
            custom_objects: classes of your own that the model is built from, by name.
        """
        return storing.load(path, custom_objects)
