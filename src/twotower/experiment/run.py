"""train_run and evaluate_run: from a config to a run folder, and what a run is worth."""

import hashlib
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as L
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback

from twotower.config.config import Config
from twotower.data.leaks import check_leaks
from twotower.data.preprocessor import Preprocessor
from twotower.evaluation import Evaluation
from twotower.experiment.build import build_model, fit_preprocessor, trainer_options
from twotower.experiment.bundling import check_index, save_run_bundle, users_of
from twotower.experiment.folder import Run, find_run, make_folder
from twotower.experiment.lock import held
from twotower.experiment.measuring import MODEL, RawRanker, check_baselines, make_evaluator, measure_baselines
from twotower.experiment.popularity import set_popularity
from twotower.experiment.rows import own_rows, training_rows
from twotower.experiment.tables import Tables, read_interactions, read_tables
from twotower.files import PathLike, written_aside
from twotower.models.base import RetrievalModelV2
from twotower.serving.retriever import Retriever
from twotower.training.early_stopping import CatalogEarlyStopping
from twotower.training.history import History

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Tell nobody."""


def train_run(
    config: Config,
    folder: PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    text: str | None = None,
    say: Say = quiet,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Read, split, train and save, then measure the model and the baselines on the validation part; never on the test.

    Args:
        config: what to do.
        folder: the run folder to make.
        resume: go on with the run of this config in the folder, from its last checkpoint, or start it if there is none. The
            figures are those of an unbroken run.
        overwrite: delete a run that is in the folder.
        text: the config as it was written, to be kept as config.yaml; by default all keys.
        say: told each stage.
        callbacks: more callbacks for fit.

    Raises:
        ValueError: the folder holds a run and neither `resume` nor `overwrite` was given; another process writes to it; whatever
            is wrong with the tables; a baseline needs what is not installed.

    Example:
        >>> run = tt.train_run(tt.Config.load("twotower.yaml"), "runs/first")    # doctest: +SKIP
        >>> run.evaluations("validation")[0]["recall_at_10"]                     # doctest: +SKIP
    """
    with held(folder):
        return _train(config, folder, resume, overwrite, text or config.to_yaml(), say, callbacks)


def _train(
    config: Config,
    folder: PathLike,
    resume: bool,
    overwrite: bool,
    text: str,
    say: Say,
    callbacks: Sequence[Callback],
) -> Run:
    started, read = time.perf_counter(), None
    run = find_run(config, folder, resume=resume, overwrite=overwrite, kind="run")
    if run is not None and run.complete:
        say("nothing is left to do: the run is finished")
        return run
    check_baselines(config)
    check_index(config)
    if run is None:  # what is wrong with the tables must neither cost an old run nor leave half a new one
        read = read_all(config, say)
        run = make_folder(config, text, folder, "run")
    with run.noting():
        tables = prepare(run, say, read, started)
        if not run.evaluations("validation"):
            with run.stage("train"):
                _choose(run, tables, say, callbacks)
        if not (run.folder / "bundle").exists():
            with run.stage("refit"):
                _refit(run, tables, say, callbacks)
        _beside(run, tables, say)
    return run


def evaluate_run(
    run: Run,
    on: str = "test",
    *,
    data: PathLike | None = None,
    baselines: bool = True,
    overwrite: bool = False,
    say: Say = quiet,
) -> list[Evaluation]:
    """Measure the model, and the baselines beside it, on a part; what was measured before is read again.

    Args:
        run: a finished run.
        on: "validation" or "test".
        data: instead, Parquet of later interactions with the same columns; histories and what was seen then hold all of
            the run's rows. The evaluations are kept apart, in evaluations/data.
        baselines: also those that the config names.
        overwrite: measure anew.
        say: told what is being done.

    Returns:
        The model's evaluation, then the baselines'.
    """
    if on not in ("validation", "test"):
        raise ValueError(f"on={on!r}: choose 'validation' or 'test', or give data=<Parquet>.")
    run.check_complete()
    part = on if data is None else part_of(data)
    known = run.evaluations(part)
    if known and data is not None and not overwrite:
        raise ValueError(
            f"{run.folder} has evaluations on {data} already. Give --overwrite to measure anew, or rename the file."
        )
    names = [e.name for e in known]
    wanted = [MODEL, *(run.config.baselines if baselines else [])]
    if not overwrite and all(name in names for name in wanted):
        say(f"measured before on the {part} part, read again")
        return [e for e in known if e.name in wanted]
    if part == "validation" and run.config.training.refit and (overwrite or not known):
        raise ValueError(
            "the saved model was trained on the validation rows too (training.refit), so they would say nothing of it. What the "
            "validation said before that is in the run's evaluations; measure on the test."
        )
    if data is None and (run.folder / "bundle" / "origin.json").exists():
        raise ValueError(
            f"the bundle of {run.folder} was refreshed since its training: it has learnt the {part} rows, which would say nothing "
            "of it. Its own figures are in bundle.refresh/reports; refresh a copy of a bundle to keep the run as it was."
        )
    if baselines:
        check_baselines(run.config)
    with held(run.folder):
        return _evaluate(run, on, part, data, baselines, say)


def _evaluate(run: Run, on: str, part: str, data: PathLike | None, baselines: bool, say: Say) -> list[Evaluation]:
    """Measure, and keep what was found."""
    tables = run.tables()
    rows, notes = _part(run, tables, on, data)
    for note in notes:
        run.note("left out", note)
        say(note)
    with run.noting(), run.stage(f"evaluate {part}"):
        evaluator = make_evaluator(run.config, tables, part, rows)
        say(f"measuring the model on {part}: queries: {len(evaluator.queries):,}, items: {len(tables.items):,}")
        found = [evaluator(run.retriever(), name=MODEL)]
        if baselines:
            found += measure_baselines(run.config, tables, part, evaluator, say)
        run.save_evaluations(part, found)
    return found


class StopAfter(Callback):
    """Ends a fit after so many epochs of a schedule that is laid out for more.

    Args:
        epochs: to train.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One that is resumed may be at its end already."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch >= self.epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epochs are counted from 0."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.epochs


def encode(config: Config, tables: Tables) -> tuple[Preprocessor, pl.DataFrame]:
    """The fitted Preprocessor, and the raw rows to train on."""
    rows = training_rows(config, tables)
    return fit_preprocessor(config, tables, rows), own_rows(config, rows)


def fit_model(
    config: Config,
    tables: Tables,
    preprocessor: Preprocessor,
    rows: pl.DataFrame,
    *,
    epochs: int | None = None,
    checkpoints: PathLike | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[RetrievalModelV2, History]:
    """Two trained towers and what was logged: the best by the validation part if the config stops early.

    With `epochs` so many are trained, at the rates that the first so many of training.epochs have, and nothing is looked at on the
    way.
    """
    training = config.training
    if epochs is None and training.batch_size > len(rows):
        warnings.warn(
            f"training.batch_size is {training.batch_size:,}, but there are {len(rows):,} rows to train on: an epoch is a single "
            f"step, with all of them. A batch_size of {-(-len(rows) // 10):,} makes ten.",
            stacklevel=1,
        )
    model = build_model(config, preprocessor)
    set_popularity(config, tables.train, rows, preprocessor, model)
    scheduled = training.schedule != "constant" or training.warmup > 0
    watch: list[Callback] = [StopAfter(epochs)] if epochs is not None and scheduled else []
    if training.stop_early is not None and epochs is None:
        stop = training.stop_early
        watch.append(
            CatalogEarlyStopping(
                make_evaluator(config, tables, "validation", tables.validation),
                monitor=stop.monitor or config.main_metric,
                patience=stop.patience,
                min_delta=stop.min_delta,
                ranker=RawRanker(model, preprocessor),
            )
        )
    known = tables.items.join(tables.train.select(config.data.item), on=config.data.item, how="semi")
    history = model.fit(
        preprocessor.transform(rows),
        epochs=training.epochs if epochs is None or scheduled else epochs,
        batch_size=training.batch_size,
        catalog=preprocessor.transform(known),
        seed=training.seed,
        health_steps=training.health_steps,
        callbacks=[*watch, *callbacks],
        checkpoint=checkpoints,
        checkpoint_steps=training.checkpoint_steps if checkpoints is not None else 1000,
        resume_from="auto" if checkpoints is not None else None,
        trainer_options=trainer_options(training),
        verbose=False,
    )
    return model.cpu(), history


def part_of(data: PathLike) -> str:
    """Where evaluations on later rows are kept: apart from those of the run's own parts, whatever the file is called."""
    path = str(data) if "://" in str(data) else str(Path(data).absolute())
    name = re.sub(r"[^\w-]+", "-", Path(path).stem).strip("-")
    return f"data/{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def prepare(run: Run, say: Say, read: tuple[Tables, list[str]] | None = None, started: float | None = None) -> Tables:
    """The parts of the run, made once.

    Args:
        run: whose.
        say: told what is being done.
        read: what `read_all` gave, if that was before the folder came to be.
        started: when that began.
    """
    if (run.folder / "data").exists():
        _check_accelerator(run.config)
        return run.tables()
    with run.stage("data", started):
        tables, notes = read_all(run.config, say) if read is None else read
        for note in notes:
            run.note("left out", note)
        data = run.config.data
        check_leaks(tables.train, tables.validation, user=data.user, item=data.item, time=data.time)
        tables.save(run.folder / "data")
    return tables


def read_all(config: Config, say: Say) -> tuple[Tables, list[str]]:
    """The tables and what was left out; what would fail only after the training is said now."""
    _check_accelerator(config)
    say("reading and splitting the tables")
    tables, notes = read_tables(config)
    taken = [name for name in ("query", "rank", "score") if name in tables.items.columns]
    if taken:
        raise ValueError(
            f"the items have columns named {', '.join(taken)}, as recommendations have: rename them in data.items, and in columns."
        )
    with warnings.catch_warnings():  # they come again in the run, which keeps them
        warnings.simplefilter("ignore")
        make_evaluator(
            config, tables, "validation", tables.validation
        )  # metrics and slices that these tables do not allow
    return tables, notes


def _check_accelerator(config: Config) -> None:
    there = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    asked = config.training.accelerator
    if not there.get(asked, True):
        raise ValueError(
            f"training.accelerator: got {asked!r}, but PyTorch finds none here. Give auto, which takes what is there, or cpu."
        )


def _choose(run: Run, tables: Tables, say: Say, callbacks: Sequence[Callback]) -> None:
    """Fit on the training part; what the model is worth on the validation part is kept, and ends the stage."""
    say(
        f"{len(tables.train):,} rows to train on, {len(tables.validation):,} for validation, {len(tables.test):,} for the test; "
        f"{len(tables.items):,} items"
    )
    preprocessor, rows = encode(run.config, tables)
    users = users_of(run.config, tables, preprocessor)
    say("training")
    folder = run.folder / "checkpoints" / "train"
    model, history = fit_model(run.config, tables, preprocessor, rows, checkpoints=folder, callbacks=callbacks)
    epochs = pl.DataFrame({"epoch": range(1, history.epochs + 1)} | {n: list(v) for n, v in history.history.items()})
    with written_aside(run.folder / "history.csv") as aside:
        epochs.write_csv(aside)
    say("measuring the model on the validation part")
    retriever = Retriever(model, preprocessor, tables.items)
    evaluation = make_evaluator(run.config, tables, "validation", tables.validation)(retriever, name=MODEL)
    if not run.config.training.refit:
        save_run_bundle(run.folder / "bundle", run.config, tables, model, preprocessor, users, evaluation.means())
    evaluation.save(run.folder / "evaluations" / "validation" / MODEL)


def _refit(run: Run, tables: Tables, say: Say, callbacks: Sequence[Callback]) -> None:
    """Fit anew on training and validation rows, for as many epochs as were best; the bundle ends the stage."""
    epochs = best_epoch(run.config, run.history())
    say(f"training anew on the training and validation rows together, epochs: {epochs}")
    together = tables.joined()
    preprocessor, rows = encode(run.config, together)
    users = users_of(run.config, tables, preprocessor)
    folder = run.folder / "checkpoints" / "refit"
    model, _ = fit_model(
        run.config, together, preprocessor, rows, epochs=epochs, checkpoints=folder, callbacks=callbacks
    )
    metrics = run.evaluations("validation")[0].means()
    save_run_bundle(run.folder / "bundle", run.config, tables, model, preprocessor, users, metrics)


def best_epoch(config: Config, history: pl.DataFrame) -> int:
    """How many epochs were best on the validation part; all of them without stop_early."""
    stop = config.training.stop_early
    if stop is None:
        return len(history)
    best, at = -float("inf"), 1
    for number, value in enumerate(history[f"val_{stop.monitor or config.main_metric}"], start=1):
        if value > best + stop.min_delta:
            best, at = value, number
    return at


def _beside(run: Run, tables: Tables, say: Say) -> None:
    """The baselines on the validation part, and metrics.json, by which a run is known to be whole."""
    with run.stage("baselines"):
        evaluator = make_evaluator(run.config, tables, "validation", tables.validation)
        model = run.evaluations("validation")[:1]
        run.save_evaluations(
            "validation", [*model, *measure_baselines(run.config, tables, "validation", evaluator, say)]
        )


def _part(run: Run, tables: Tables, on: str, data: PathLike | None) -> tuple[pl.DataFrame, list[str]]:
    """The rows to measure on, and what was left out of them, in words."""
    if data is None:
        return (tables.validation if on == "validation" else tables.test), []
    notes: list[str] = []
    rows = read_interactions(run.config, (str(data),), str(data), notes)
    return rows.select(n for n in rows.columns if n in tables.train.columns), notes
