"""HealthWatch: the callback that measures a model's health while fit trains it, and warns."""

import warnings
from typing import TYPE_CHECKING

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from twotower.data.batch import Batch
from twotower.data.loader import Loader
from twotower.health.findings import Finding, diagnose
from twotower.health.record import Health, HealthWarning
from twotower.training.checkup import Checkup

if TYPE_CHECKING:
    from twotower.models.base import RetrievalModelV2


class HealthWatch(Callback):
    """Measures at every n-th optimiser step and at the end of each epoch.

    Mid-epoch values go to the loggers, those at an epoch's end to the log, as `health_<name>`. The loss is looked at in
    every step. A symptom, and a cause, is told once.

    Args:
        checkup: takes the measurements.
        every: n.
    """

    def __init__(self, checkup: Checkup, every: int) -> None:
        self.checkup = checkup
        self.every = every
        self.records: list[Health] = []
        self._gradients: dict[str, float] = {}
        self._batch: Batch | None = None
        self._told: set[str] = set()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The batch is looked at when the loss is not finite."""
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Before the first bad gradient reaches the weights, what spoilt the loss can still be told."""
        if "not-finite" not in self._told and not bool(torch.isfinite(loss)):
            assert self._batch is not None
            self._tell(self.checkup.explain_loss(float(loss.detach()), self._batch, trainer.global_step + 1))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Gradients, before they are clipped."""
        if (trainer.global_step + 1) % self.every == 0 or _last_batch(trainer):
            self._gradients = self.checkup.gradients()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Measure in the middle of an epoch; its end has a measurement of its own."""
        step = trainer.global_step
        seen = self.records[-1].step if self.records else 0  # several batches may share one step
        if step % self.every == 0 and step > seen and not _last_batch(trainer):
            health = self._measure(trainer, epoch_end=False)
            for logger in trainer.loggers:
                logger.log_metrics(health.values(), step=step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure with lists."""
        if self._batch is not None:
            for name, value in self._measure(trainer, epoch_end=True).values().items():
                pl_module.log(name, value, batch_size=1)

    def _measure(self, trainer: L.Trainer, epoch_end: bool) -> Health:
        assert self._batch is not None
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        with trainer.precision_plugin.forward_context():
            health = self.checkup.measure(
                self._batch,
                self._gradients,
                trainer.global_step,
                epoch_end=epoch_end,
                lists=epoch_end or not self.records,
            )
        self.records.append(health)
        for finding in diagnose(health, self.checkup.setting(max(rates))):
            self._tell(finding)
        return health

    def _tell(self, finding: Finding) -> None:
        if not {finding.symptom, finding.cause} & self._told:
            warnings.warn(finding.text, HealthWarning, stacklevel=2)
        self._told |= {finding.symptom, finding.cause}


def watching(model: "RetrievalModelV2", loader: Loader, every: int) -> list[HealthWatch]:
    """The callback for `health_steps=every`, none for 0."""
    return [HealthWatch(Checkup(model, loader.dataset), every)] if every else []


def _last_batch(trainer: L.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
