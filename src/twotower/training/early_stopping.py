"""CatalogEarlyStopping: measure over the whole catalogue while training, stop when it no longer gains, keep the best."""

import math
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from twotower.encoder import evaluating
from twotower.errors import choose
from twotower.evaluation import Evaluation, Evaluator, Ranker


class CatalogEarlyStopping(Callback):
    """Evaluates at every epoch's end, logs `val_<metric>`, stops without gain, and puts the best weights back.

    The optimiser's state stays that of the last step: a fit that goes on from here starts from the best weights with it.

    Args:
        evaluator: of the validation data.
        monitor: one of its metrics of hits, such as recall or NDCG.
        patience: stop after so many evaluations in a row without gain.
        min_delta: a gain is more than this.
        every_steps: evaluate after every so many optimiser steps as well, for epochs that are long.
        restore_best: end with the weights of the best evaluation; else with the last.
        ranker: what to evaluate; by default the model that `fit` trains. A LightningModule of your own gives its own.

    Raises:
        ValueError: a metric of hits that the evaluator does not measure, or a patience or every_steps below 1.

    Example:
        >>> stop = CatalogEarlyStopping(evaluator, monitor="recall_at_20", patience=3)    # doctest: +SKIP
        >>> model.fit(train, batch_size=1024, epochs=100, callbacks=stop)                 # doctest: +SKIP
        >>> print(stop.best)                                                              # doctest: +SKIP
    """

    def __init__(
        self,
        evaluator: Evaluator,
        monitor: str = "recall_at_10",
        patience: int = 3,
        min_delta: float = 0.0,
        every_steps: int | None = None,
        restore_best: bool = True,
        ranker: Ranker | None = None,
    ) -> None:
        hits = {metric.name: metric for metric in evaluator.metrics.ranking}  # of other metrics more need not be better
        choose("metric of hits of the evaluator", monitor, hits)
        for name, value in (("patience", patience), ("every_steps", 1 if every_steps is None else every_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.evaluator, self.monitor = evaluator, monitor
        self.patience, self.min_delta, self.every_steps = patience, min_delta, every_steps
        self.restore_best = restore_best
        self.ranker = ranker
        self._forget()

    def _forget(self) -> None:
        self.best: Evaluation | None = None
        self.best_step = 0
        self._best_value = -math.inf
        self._weights: dict[str, Tensor] = {}
        self._without_gain = 0
        self._last_step = -1
        self._values: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A fit begins, of this model or another; a resumed one has its state read after this."""
        self._forget()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A fit that is resumed from its last checkpoint may have been stopped there."""
        trainer.should_stop = trainer.should_stop or self._without_gain >= self.patience

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """In the middle of an epoch, if asked for; its end has an evaluation of its own."""
        step = trainer.global_step
        if self.every_steps is not None and step % self.every_steps == 0 and not trainer.is_last_batch:
            values = self._look(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate, and log for other callbacks and the History."""
        for name, value in self._look(trainer, pl_module).items():
            pl_module.log(name, value, prog_bar=name == f"val_{self.monitor}", batch_size=1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best weights back."""
        self._restore(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same for a fit that is resumed after its last epoch: it trains nothing, so its training does not end."""
        self._restore(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A training that breaks off, such as by weights that are no numbers, leaves the best weights too."""
        self._restore(pl_module)

    def _restore(self, pl_module: L.LightningModule) -> None:
        if self.restore_best and self._weights:
            self._model(pl_module).load_state_dict(self._weights)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        if trainer.global_step == self._last_step:  # several batches may share one step, and an epoch end after one
            return self._values
        self._last_step = trainer.global_step
        model = self._model(pl_module)
        with evaluating(model):
            evaluation = self.evaluator(self.ranker or model)  # type: ignore[arg-type]
        self._values = {f"val_{name}": value for name, value in evaluation.means().items()}
        value = evaluation[self.monitor].mean
        if value > self._best_value + self.min_delta:
            self.best, self.best_step, self._best_value, self._without_gain = evaluation, trainer.global_step, value, 0
            if self.restore_best:
                self._weights = {name: held.detach().cpu().clone() for name, held in model.state_dict().items()}
        else:
            self._without_gain += 1
            trainer.should_stop = trainer.should_stop or self._without_gain >= self.patience
        return self._values

    def _model(self, pl_module: L.LightningModule) -> nn.Module:
        return pl_module if self.ranker is not None else pl_module.model  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: a resumed run knows the best weights so far."""
        return {
            "best_value": self._best_value,
            "best_step": self.best_step,
            "without_gain": self._without_gain,
            "last_step": self._last_step,
            "values": self._values,
            "weights": self._weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint. `best` is not among it: evaluate the model again to have it."""
        self._best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self._without_gain, self._last_step = state_dict["without_gain"], state_dict["last_step"]
        self._values = state_dict["values"]
        self._weights = {name: torch.as_tensor(held) for name, held in state_dict["weights"].items()}
