"""fit on Lightning's Trainer: the model's loss is the step, the Trainer brings everything around it."""

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from twotower.data.batch import Batch, to_device
from twotower.data.catalog import Catalog
from twotower.data.loader import Loader
from twotower.devices import has_bfloat16_products
from twotower.encoder import evaluating
from twotower.errors import unknown
from twotower.health.record import Health
from twotower.optimizers import OtherOptimizerError, clip_gradients, make_schedule, use_dense_gradients
from twotower.training import checkpoint as ckpt
from twotower.training.compiled import Compiled
from twotower.training.history import History
from twotower.training.watch import watching

Validate = Callable[[], Mapping[str, float]]
BatchMetrics = Callable[[Batch], Mapping[str, float]]


class Task(L.LightningModule):
    """A model as Lightning sees it."""

    def __init__(self, model: nn.Module, loader: Loader, batch_metrics: BatchMetrics, train_metrics_steps: int) -> None:
        super().__init__()
        self.model = model
        self.loader = loader
        self.batch_metrics = batch_metrics
        self.train_metrics_steps = train_metrics_steps
        self.rng_state: Mapping[str, Tensor] | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step's loss; parts and asked-for batch metrics go to the log."""
        losses = self.model.losses(batch)  # type: ignore[operator]
        for name, value in losses.items():
            self.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=1, prog_bar=name == "loss")
        self.log("step_loss", losses["loss"].detach(), on_step=True, on_epoch=False, prog_bar=True)
        if self.train_metrics_steps and batch_idx % self.train_metrics_steps == 0:
            self.log_dict(dict(self.batch_metrics(batch)), on_step=False, on_epoch=True, batch_size=1)
        total: Tensor = losses["loss"]
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and the schedule that compile chose."""
        compiled, state = self.model.compiled, self.model.optimizer_state
        assert isinstance(compiled, Compiled)
        optimizer = compiled.make_optimizer(self.model)
        rates = [group.get("lr") for group in optimizer.param_groups]
        if state is not None:
            try:
                optimizer.load_state_dict(state)  # type: ignore[arg-type]
            except OtherOptimizerError:
                raise
            except ValueError as error:
                raise ValueError(
                    "the model has other trainable parameters than in its last fit, so the optimizer cannot go on from there: call "
                    "compile() again after freezing or unfreezing a part."
                ) from error
        if not compiled.scheduled:
            return optimizer
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = group["initial_lr"] = rate  # a fit that goes on from another one begins its schedule anew
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = make_schedule(optimizer, compiled.schedule, compiled.warmup, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of tables' rows as well."""
        if gradient_clip_val is not None:
            clip_gradients(self.model.parameters(), gradient_clip_val, gradient_clip_algorithm or "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The position in the data, the state of the random numbers and the settings belong to the checkpoint."""
        position = self.loader.state_dict()
        if self.trainer.is_last_batch:  # steps_per_epoch may end it early
            position["batches_done"] = len(self.loader)
        # Lightning keeps the loader's position too, which does not know of epochs that end early
        checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        checkpoint[ckpt.LOADER] = position
        checkpoint[ckpt.RANDOM] = ckpt.random_state(self.device)
        checkpoint[ckpt.SETTINGS] = self._settings()
        checkpoint[ckpt.LOST] = ckpt.lost(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the batch after the last one, if nothing else has changed."""
        if checkpoint[ckpt.LOST]:
            raise ValueError(
                f"{self.trainer.ckpt_path} lacks {checkpoint[ckpt.LOST]}, so training cannot go on exactly. Resume from a "
                "checkpoint that fit(checkpoint=...) wrote."
            )
        now = self._settings()
        self.loader.load_state_dict(checkpoint[ckpt.LOADER])
        ckpt.check_settings(checkpoint[ckpt.SETTINGS], now)
        ckpt.check_epochs(checkpoint["loops"], self.trainer.max_epochs or 0)
        ckpt.check_model(checkpoint["state_dict"], self.state_dict())
        self.rng_state = checkpoint[ckpt.RANDOM]

    def on_train_start(self) -> None:
        """Dropout goes on with the numbers that an unbroken run would draw."""
        if self.rng_state is not None:
            ckpt.set_random_state(self.rng_state, self.device)

    def _settings(self) -> ckpt.Settings:
        compiled, catalog = self.model.compiled, self.model.catalog
        assert isinstance(compiled, Compiled)
        assert isinstance(catalog, Catalog)
        return ckpt.settings_of(self.trainer, self.loader, compiled, len(catalog), self.model.outputs)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning does not know Ragged."""
        return to_device(batch, device)


class Validation(Callback):
    """Evaluates after every epoch and logs val_<metric>; stands before the user's callbacks, which may monitor it."""

    def __init__(self, validate: Validate) -> None:
        self.validate = validate

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rank the validation queries with the model as it stands."""
        with evaluating(pl_module):  # parts that were frozen in evaluation mode stay so
            values = self.validate()
        for name, value in values.items():
            pl_module.log(f"val_{name}", value, prog_bar=name.startswith(("recall", "ndcg")), batch_size=1)


class Recorder(Callback):
    """Collects what was logged in each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch's values; the last step's loss says little beside the epoch's mean."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({name: value for name, value in logged.items() if name != "step_loss"})

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: a resumed run tells of all its epochs."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.epochs = list(state_dict["epochs"])

    def history(self, health: Sequence[Health]) -> History:
        """One list for each name."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        values = {name: [epoch.get(name, math.nan) for epoch in self.epochs] for name in names}
        return History(values, tuple(health))


def run(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    steps_per_epoch: int | None,
    validate: Validate | None,
    batch_metrics: BatchMetrics,
    train_metrics_steps: int,
    health_steps: int,
    callbacks: Callback | Sequence[Callback],
    logger: Logger | Sequence[Logger] | bool,
    checkpoints: ckpt.Checkpoints,
    trainer_options: Mapping[str, object],
    verbose: bool,
) -> History:
    """Train a model on a loader's batches, and leave it in evaluation mode, ready to predict."""
    recorder = Recorder()
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    first = [Validation(validate)] if validate is not None else []
    watch = watching(model, loader, health_steps)  # type: ignore[arg-type]
    if checkpoints.folder is not None:
        given.append(ckpt.StepCheckpoints(checkpoints.folder, checkpoints.steps))
    options: dict[str, object] = {
        "devices": 1,
        "max_epochs": epochs,
        "limit_train_batches": steps_per_epoch if steps_per_epoch is not None else 1.0,
        "callbacks": [*first, *watch, *given, recorder],
        "logger": list(logger) if isinstance(logger, Sequence) else logger,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in given),
        "enable_progress_bar": verbose,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": min(50, steps_per_epoch or len(loader)),
    }
    for name in trainer_options:
        if name in ("max_epochs", "callbacks", "logger", "limit_train_batches"):
            raise ValueError(f"trainer_options: {name!r} is set by fit's own arguments; give it there.")
        if name not in _trainer_arguments():
            raise ValueError(unknown("option of Lightning's Trainer", name, _trainer_arguments()))
    if "max_steps" in trainer_options and (checkpoints.folder or checkpoints.resume_from):
        raise ValueError(
            "trainer_options: with max_steps Lightning does not go on at the step where it stopped, so it cannot be used "
            "together with checkpoint and resume_from. Use epochs and steps_per_epoch."
        )
    plugins = trainer_options.get("plugins") or []
    whole = [*(plugins if isinstance(plugins, Sequence) else [plugins]), ckpt.VerifiedFiles()]
    with _quiet():
        trainer = L.Trainer(**(options | dict(trainer_options) | {"plugins": whole}))  # type: ignore[arg-type]
        if trainer.world_size > 1:
            raise ValueError(
                f"fit trains in one process, but the Trainer asks for {trainer.world_size}; give devices=1."
            )
        if trainer.precision.startswith("bf16") and not has_bfloat16_products(trainer.strategy.root_device.type):
            warnings.warn(
                f"precision {trainer.precision!r} on a processor without bfloat16 products: it makes them up, many times "
                "slower than float32. Leave the precision out.",
                stacklevel=4,
            )
        task = Task(model, loader, batch_metrics, train_metrics_steps)
        model.train()  # a loaded model comes in evaluation mode
        try:
            resume_from = None if checkpoints.resume_from is None else str(checkpoints.resume_from)
            trainer.fit(task, train_dataloaders=loader, ckpt_path=resume_from)
        finally:
            use_dense_gradients(model)
        model.optimizer_state = trainer.optimizers[0].state_dict()  # type: ignore[assignment]
    model.eval()
    return recorder.history([health for each in watch for health in each.records])


def _trainer_arguments() -> list[str]:
    return [name for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Lightning's notes on hardware and on products, and warnings about loaders that are not PyTorch's."""
    notes = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")]
    levels = [note.level for note in notes]
    for note in notes:
        note.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        for note, level in zip(notes, levels, strict=True):
            note.setLevel(level)
