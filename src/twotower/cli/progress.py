"""Epochs on the screen; Lightning, which takes seconds to import, is needed by verbs that train alone."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twotower.cli.show import console, number


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
