"""A search over keys of the config with Optuna, by the validation part alone; it goes on where it was broken off."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import polars as pl
from lightning.pytorch.callbacks import Callback

from twotower.config.config import Config
from twotower.config.sections import Search
from twotower.experiment.folder import Run, find_run, make_folder, write_text
from twotower.experiment.lock import held
from twotower.experiment.measuring import RawRanker, make_evaluator
from twotower.experiment.run import Say, encode, fit_model, prepare, quiet, read_all
from twotower.experiment.tables import Tables
from twotower.files import PathLike

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Args:
        config: the best.
        value: its validation figure.
        trials: one row for each trial: number, state, value, and the keys searched.
    """

    config: Config
    value: float
    trials: pl.DataFrame


class Report(Callback):
    """Tells Optuna the figure after each epoch, and ends a trial that it gives up.

    Args:
        trial: what to tell.
        name: of the logged figure.
    """

    def __init__(self, trial: "optuna.Trial", name: str) -> None:
        self.trial = trial
        self.name = name

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The callbacks before this one have logged the figure."""
        import optuna

        self.trial.report(float(trainer.callback_metrics[self.name]), trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def tune(
    config: Config,
    folder: PathLike,
    *,
    trials: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    text: str | None = None,
    say: Say = quiet,
) -> Found:
    """Train one config after another, and write the best as best.yaml into the folder, the trials as trials.csv.

    Args:
        config: where the search starts; its tune section says what is searched.
        folder: of the search.
        trials: in all, those of an earlier call that is resumed included; by default tune.trials.
        resume, overwrite, text, say: as in train_run.

    Raises:
        ValueError: Optuna is not installed, no trial came to its end, or as in train_run.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("tune needs Optuna: pip install 'twotower[tune]'.") from error
    _check_space(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with held(folder):
        return _search(config, folder, trials, resume, overwrite, text or config.to_yaml(), say)


def _search(
    config: Config, folder: PathLike, trials: int | None, resume: bool, overwrite: bool, text: str, say: Say
) -> Found:
    started, read = time.perf_counter(), None
    run = find_run(config, folder, resume=resume, overwrite=overwrite, kind="tune")
    if run is None:  # what is wrong with the tables must not cost an old search
        read = read_all(config, say)
        run = make_folder(config, text, folder, "tune")
    with run.noting():
        tables = prepare(run, say, read, started)
        study = _study(run)
        many = config.tune.trials if trials is None else trials
        while (number := _finished(study)) < many:
            trial = study.ask()
            say(f"trial {number + 1} of {many}")
            study.tell(trial, **_tried(run.config, tables, trial), skip_if_finished=True)
            _write(run, study)
    best = _best(study)
    return Found(run.config.with_changes(_drawn(best)), float(best.value or 0.0), _write(run, study))


def _check_space(config: Config) -> None:
    """Try each end and choice, the other keys at their first, before the tables are read: every such draw may come."""
    ends = {
        key: list(search.choices) or [_number(search, search.low), _number(search, search.high)]
        for key, search in config.tune.space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        for value in values:
            drawn = first | {key: value}
            try:
                config.with_changes(drawn)
            except ValueError as error:
                given = ", ".join(f"{k}={v!r}" for k, v in drawn.items())
                raise ValueError(f"tune.space: {given} may be drawn, but is no config: {error}") from error


def _number(search: Search, end: float | int | None) -> float | int | None:
    """An end as it would be drawn: whole where both are."""
    return end if isinstance(search.low, int) and isinstance(search.high, int) else float(end or 0)


def _study(run: Run) -> "optuna.Study":
    import optuna
    from optuna.storages.journal import JournalFileBackend

    wanted = run.config.tune
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(run.folder / "trials.log")))
    study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True)
    # a search that goes on must not draw again what it drew at first
    study.sampler = optuna.samplers.TPESampler(seed=wanted.seed + len(study.trials))
    study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=1) if wanted.prune else optuna.pruners.NopPruner()
    return study


def _finished(study: "optuna.Study") -> int:
    """Trials that came to an end; one that was killed is tried again with other values."""
    return sum(trial.state.is_finished() for trial in study.trials)


def _tried(config: Config, tables: Tables, trial: "optuna.Trial") -> dict[str, Any]:
    """The validation figure of one draw, or that it was given up."""
    import optuna

    for key, search in config.tune.space.items():
        _draw(trial, key, search)
    trial.set_user_attr("drawn", {key: _value(search, trial.params[key]) for key, search in config.tune.space.items()})
    changed = config.with_changes(trial.user_attrs["drawn"])
    metric = config.tune.metric or config.main_metric
    stop = changed.training.stop_early
    callbacks = [Report(trial, f"val_{metric}")] if stop is not None else []
    try:
        preprocessor, rows = encode(changed, tables)
        model, _ = fit_model(changed, tables, preprocessor, rows, callbacks=callbacks)
    except optuna.TrialPruned:
        return {"state": optuna.trial.TrialState.PRUNED}
    evaluator = make_evaluator(changed, tables, "validation", tables.validation)
    return {"values": evaluator(RawRanker(model, preprocessor))[metric].mean}


def _draw(trial: "optuna.Trial", key: str, search: Search) -> None:
    if search.choices:
        trial.suggest_categorical(
            key, list(range(len(search.choices)))
        )  # a choice may be a list, which Optuna cannot keep
    elif isinstance(search.low, int) and isinstance(search.high, int):
        trial.suggest_int(key, search.low, search.high, log=search.log)
    else:
        assert search.low is not None
        assert search.high is not None
        trial.suggest_float(key, search.low, search.high, log=search.log)


def _value(search: Search, drawn: Any) -> Any:
    return search.choices[drawn] if search.choices else drawn


def _drawn(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    return dict(trial.user_attrs["drawn"])


def _best(study: "optuna.Study") -> "optuna.trial.FrozenTrial":
    if all(_figure(trial) is None for trial in study.trials):
        raise ValueError("no trial came to its end: give more --trials.")
    return study.best_trial


def _figure(trial: "optuna.trial.FrozenTrial") -> float | None:
    """What a whole trial came to; for one that was broken off Optuna keeps the figure of its last epoch."""
    return trial.value if trial.state.name == "COMPLETE" else None


def _write(run: Run, study: "optuna.Study") -> pl.DataFrame:
    """The trials as a table, and the best config so far."""
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), "value": _figure(t)}
        | {k: str(v) for k, v in _drawn(t).items()}
        for t in study.trials
        if t.state.is_finished()
    ]
    table = pl.DataFrame(rows, schema_overrides={"value": pl.Float64})
    write_text(run.folder / "trials.csv", table.write_csv())
    if any(row["value"] is not None for row in rows):
        write_text(run.folder / "best.yaml", run.config.with_changes(_drawn(study.best_trial)).to_yaml())
    return table
