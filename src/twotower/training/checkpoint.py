"""Checkpoints of fit: when they are written, how they are read, and what must agree for training to go on exactly."""

import hashlib
import inspect
import os
import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor, nn

from twotower.data.loader import Loader
from twotower.files import PathLike, remove_asides, written_aside
from twotower.training.compiled import Compiled

DEFAULT_STEPS = 1000
MAGIC = b"twotower"
MARK = struct.Struct("<8s32s")  # what a file ends with: the magic word, and the SHA-256 of everything before
KEPT = 2  # the newest, and one before it should the newest be lost
AUTO = "auto"
LOADER, RANDOM, SETTINGS, LOST = "twotower_loader", "twotower_rng", "twotower_settings", "twotower_lost"
NEEDED = ("state_dict", "loops", LOADER, RANDOM, SETTINGS, LOST)

Settings = dict[str, Any]  # plain values by name, so that they can be compared and shown


# ---- what fit was asked for


@dataclass(frozen=True)
class Checkpoints:
    """The three arguments of fit, checked.

    Args:
        folder: where checkpoints are written; None for nowhere.
        steps: optimiser steps between two of them.
        resume_from: the file that training goes on from; None for a fresh start.
    """

    folder: Path | None
    steps: int
    resume_from: Path | None


def resolve(checkpoint: PathLike | None, checkpoint_steps: int, resume_from: PathLike | None) -> Checkpoints:
    """Check the arguments, and find the file to go on from.

    Raises:
        ValueError: nothing to resume from, checkpoints of another run in the folder, or options that do not fit together.
    """
    if checkpoint is None and (checkpoint_steps != DEFAULT_STEPS or resume_from == AUTO):
        raise ValueError(
            f"checkpoint_steps={checkpoint_steps} and resume_from={resume_from!r} need checkpoint=<a folder for checkpoints>."
        )
    if checkpoint_steps != int(checkpoint_steps) or checkpoint_steps < 1:
        raise ValueError(f"checkpoint_steps must be a whole number of at least 1, got {checkpoint_steps}.")
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint={str(folder)!r} is a file; give a folder for checkpoints.")
    written = [] if folder is None else in_folder(folder)
    if resume_from == AUTO:
        resume = written[-1] if written else None
    else:
        resume = None if resume_from is None else _file(Path(resume_from))
    if written and (resume is None or resume.resolve() != written[-1].resolve()):
        started = "a fresh start" if resume is None else f"resume_from={str(resume)!r}"
        raise ValueError(
            f"{folder} holds checkpoints of another run, the newest {written[-1].name}, and {started} would mix two runs. Go "
            f'on from it with resume_from="auto", give a folder of its own, or delete the checkpoints that you do not need.'
        )
    return Checkpoints(folder, int(checkpoint_steps), resume)


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest step first."""
    found = [(re.fullmatch(r"step-(\d+)\.ckpt", path.name), path) for path in folder.glob("step-*.ckpt")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _file(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f'no checkpoint at {path}. resume_from takes a file, a folder of checkpoints, or "auto".')
    if path.is_dir():
        found = in_folder(path)
        if not found:
            raise ValueError(
                f"{path} holds no checkpoint step-<number>.ckpt, but {sorted(p.name for p in path.iterdir())[:5]}. Give a file, "
                'or resume_from="auto" with checkpoint=<folder>, which starts afresh where there is none.'
            )
        return found[-1]
    return path


# ---- files


class VerifiedFiles(CheckpointIO):
    """Lightning's checkpoints as local files: whole or not there, without code in them, verified when read."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write aside, see that it can be read again, and put it in place."""
        if storage_options is not None or "://" in os.fspath(path):
            raise ValueError(
                f"checkpoints are written to local files, got {path} and storage_options={storage_options}."
            )
        with written_aside(path) as aside:
            torch.save(checkpoint, aside)
            _sign(aside)
            _unpickle(aside, mmap=True)  # only the structure is read, so this is cheap

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a whole checkpoint; never with code in it, whatever `weights_only` says."""
        return read(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the file."""
        Path(path).unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU.

    Raises:
        ValueError: a file that is cut off or damaged, no checkpoint, or one that training cannot go on from.
    """
    damage = _damage(path)
    if damage:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no whole checkpoint of fit: {damage}. It was cut off or damaged, or is "
            "another kind of file. Delete it and resume from an older one, or start afresh."
        )
    content = _unpickle(path, mmap=False)
    missing = [name for name in NEEDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of this version's fit: it lacks {missing}. Resume from one that is."
        )
    if "optimizer_states" not in content:
        raise ValueError(f"{path} holds weights only, so training cannot go on from it: drop save_weights_only=True.")
    return content


def _sign(path: Path) -> None:
    """Add the checksum of the whole file, as the comment that may stand at the end of a zip archive."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the comment, 0 so far
        file.write(struct.pack("<H", MARK.size))
        file.seek(0)
        file.write(MARK.pack(MAGIC, _checksum(file, path.stat().st_size)))


def _damage(path: Path) -> str:
    """What is wrong with a file that fit wrote; empty if nothing. (PyTorch's reader compares no checksums.)"""
    with path.open("rb") as file:
        size = path.stat().st_size - MARK.size
        file.seek(max(0, size))
        end = file.read()
        if len(end) < MARK.size or not end.startswith(MAGIC):
            return "it does not end with a checksum"
        file.seek(0)
        return "" if _checksum(file, size) == MARK.unpack(end)[1] else "its checksum differs"


def _checksum(file: BinaryIO, size: int) -> bytes:
    """The SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0:
        part = file.read(min(size, 2**20))
        digest.update(part)
        size -= len(part)
    return digest.digest()


def _unpickle(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        raise ValueError(
            f"a checkpoint holds tensors and plain values, so that reading it runs no code, but {path} holds "
            f"{kinds or error}: such as a callback's state_dict(). Let it return numbers, texts, lists, dicts and tensors."
        ) from error


class StepCheckpoints(Checkpoint):
    """Writes step-<number>.ckpt after every so many optimiser steps and at the end of every epoch; keeps the newest two.

    Never in the middle of gradient accumulation, whose sums are in no checkpoint. The last step of an epoch is left to the
    epoch's end, which stands after the validation.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.steps = steps
        self.before = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clear away what a kill left half written."""
        remove_asides(self.folder, "step-*.ckpt")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step, to see whether the batch ends one."""
        self.before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time, or if another callback ends the training here."""
        stepped = trainer.global_step > self.before
        due = trainer.global_step % self.steps == 0 or trainer.should_stop
        if stepped and due and not trainer.is_last_batch:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, after the validation and the other callbacks; an epoch that was broken off has its checkpoint already."""
        if trainer.is_last_batch:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}.ckpt")
        for old in in_folder(self.folder)[:-KEPT]:
            old.unlink()


# ---- what must agree


def settings_of(
    trainer: L.Trainer, loader: Loader, compiled: Compiled, candidates: int, outputs: Sequence[nn.Module]
) -> Settings:
    """What decides the numbers beside the model and the position in the data."""
    return {
        "data": loader.fingerprint(),
        "candidates": candidates,
        "seed": loader.seed,
        "drop_last": loader.drop_last,
        "steps_per_epoch": trainer.limit_train_batches,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "precision": trainer.precision,
        "device": trainer.strategy.root_device.type,
        "optimizer": _by_name(compiled.optimizer),
        "learning_rate": compiled.learning_rate,
        "table_optimizer": compiled.table_optimizer,
        "table_learning_rate": compiled.table_learning_rate,
        "every_position": compiled.every_position,
        "schedule": compiled.schedule,
        "warmup": compiled.warmup,
        # a schedule is over all steps: with more of them the rates so far would have been others
        "schedule_steps": trainer.estimated_stepping_batches if compiled.scheduled else None,
        "losses": {name: _by_name(loss) for name, loss in compiled.losses.items()},
        "loss_weights": dict(compiled.loss_weights),
        **_arguments(outputs, "outputs"),
    }


def _arguments(value: object, name: str) -> Settings:
    """What a module was made with, down to plain values, each under the path to it."""
    if isinstance(value, (list, tuple, nn.ModuleList)):
        parts = {f"{name}[{number}]": part for number, part in enumerate(value)}
        found: Settings = {name: len(value)}
    elif isinstance(value, nn.Module):
        known = {**vars(value), **value._modules}
        given = [argument for argument in inspect.signature(type(value)).parameters if argument in known]
        parts = {f"{name}.{argument}": getattr(value, argument) for argument in given}
        found = {name: type(value).__name__}
    else:
        plain = value is None or isinstance(value, (bool, int, float, str))
        return {name: value if plain else type(value).__name__}
    for path, part in parts.items():
        found |= _arguments(part, path)
    return found


def _by_name(choice: object) -> str:
    return choice if isinstance(choice, str) else "a function"


def lost(trainer: L.Trainer) -> str:
    """What a checkpoint at this moment would lack; empty if nothing."""
    if trainer.is_last_batch:
        return ""
    if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches:
        return "the gradients accumulated so far"
    epoch = trainer.fit_loop.epoch_progress.state_dict()["current"]
    return "the rest of an epoch that was broken off" if epoch["processed"] == epoch["started"] else ""


def check_settings(then: Settings, now: Settings) -> None:
    """ValueError that shows every setting that differs."""
    wrong = {name: (then.get(name), value) for name, value in now.items() if then.get(name) != value}
    if wrong:
        raise ValueError(
            f"the checkpoint was written with other settings, so training cannot go on exactly: {wrong} (then, now; `data` is a "
            "checksum of rows). Give the same data and the same options, or start afresh."
        )


def check_model(then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """ValueError for weights of other names or shapes."""
    before, after = _shapes(then), _shapes(now)
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if names:
        shown = {name: (before.get(name), after.get(name)) for name in names[:5]}
        raise ValueError(
            f"the checkpoint is of another model; {len(names)} of its weights differ, such as {shown} (shapes then, now). Build "
            "the model as it was built then."
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...] | str]:
    # the extra state of samplers has the size that the data gave it
    return {n: "any" if n.endswith("_extra_state") else tuple(tensor.shape) for n, tensor in state.items()}


def check_epochs(loops: Mapping[str, Any], epochs: int) -> None:
    """ValueError if the checkpoint stands beyond the epochs asked for."""
    begun = loops["fit_loop"]["epoch_progress"]["current"]["started"]
    if begun > epochs:
        raise ValueError(f"the checkpoint is in epoch {begun}, but epochs={epochs} in all. Give a larger number.")


# ---- random numbers


def random_state(device: torch.device) -> dict[str, Tensor]:
    """PyTorch's random state: of the CPU and, where training runs on another device, of that too."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Draw the numbers that an unbroken run would draw."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
