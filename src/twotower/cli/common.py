"""What several verbs need: where a run goes, values given with --set, the progress of epochs."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from twotower.cli.show import console, number
from twotower.config.config import Config
from twotower.config.yaml_file import read_value


def load(config: Path, changes: Sequence[str]) -> Config:
    """The config with the values of `--set key=value`."""
    return Config.load(config, given(changes))


def given(changes: Sequence[str]) -> dict[str, Any]:
    """--set training.epochs=3 as {"training.epochs": 3}.

    Raises:
        ValueError: no equals sign.
    """
    found = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {change}: expected key=value, such as training.epochs=3.")
        try:
            found[key] = read_value(value)
        except ValueError as error:
            raise ValueError(f"--set {key}: {error}") from error
    return found


def written(config: Path, loaded: Config, changes: Sequence[str]) -> str:
    """The config for the run folder: an exact copy, or all keys where --set changed some."""
    return loaded.to_yaml() if changes else config.read_text(encoding="utf-8")


def say(text: str) -> None:
    """A stage begins."""
    console.print(Text.assemble(("· ", "dim"), text))  # names of columns and files may look like markup


class Epochs(Callback):
    """A bar of the epoch's steps, and a line for each epoch.

    Args:
        progress: draws the bar.
        metric: the logged figure to show.
    """

    def __init__(self, progress: Progress, metric: str) -> None:
        self.progress = progress
        self.metric = metric
        self.task = progress.add_task("epoch", total=None, visible=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new bar."""
        what = f"epoch {trainer.current_epoch + 1} of at most {trainer.max_epochs}"
        self.progress.reset(self.task, description=what, total=trainer.num_training_batches, visible=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """One step more."""
        self.progress.update(self.task, completed=batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What the epoch came to."""
        logged = trainer.callback_metrics
        parts = [f"loss {float(logged['loss']):.3f}"] if "loss" in logged else []
        name = f"val_{self.metric}"
        parts += [f"{self.metric} {number(float(logged[name]))} (validation)"] if name in logged else []
        self.progress.console.print(f"  epoch {trainer.current_epoch + 1:>3}  " + "  ".join(parts))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No bar any more."""
        self.progress.update(self.task, visible=False)


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Ctrl-C leaves a word on how to go on, and exit code 130."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        console.print(Text(f"stopped; go on with: {command}"), soft_wrap=True)
        raise SystemExit(130) from error


@contextmanager
def progress(metric: str) -> Iterator[Epochs]:
    """Show epochs while the block runs; warnings are told in a line of their own."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = warnings.showwarning
    with Progress(*columns, console=console, transient=True) as bar:
        warnings.showwarning = lambda message, category, *rest, **more: bar.console.print(  # type: ignore[assignment]
            f"  warning: {message}", style="yellow", markup=False
        )
        try:
            yield Epochs(bar, metric)
        finally:
            warnings.showwarning = shown
