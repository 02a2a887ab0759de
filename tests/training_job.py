"""A training run that can be killed, for tests/test_checkpoint.py: as a process of its own, and within the tests."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

import twotower as tt
from tests.worlds import clubs
from twotower import Tags

EPOCHS, STEPS_PER_EPOCH = 3, 8


class Stopped(Exception):  # noqa: N818 - not an error, the end of a run
    """Where a test breaks a run off without killing its own process."""


class Record(Callback):
    """Appends "number of the batch, number of the step, loss" to a file; may stop or kill the run after a batch."""

    def __init__(self, file: Path, stop_after: int | None = None, kill: bool = False) -> None:
        self.file = file
        self.stop_after = stop_after
        self.kill = kill

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        with self.file.open("a") as file:
            file.write(f"{number} {trainer.global_step} {outputs['loss'].item()!r}\n")
        if number + 1 == self.stop_after:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped


def build(
    width: int = 8, learning_rate: float = 0.01, capacity: int = 64, schedule: str = "constant", **options: Any
) -> tt.RetrievalModelV2:
    """Everything that has a state: dropout, rows of tables, estimated frequencies, draws, a queue, mined negatives."""
    torch.manual_seed(0)
    sides = (clubs(rows=1).schema.select_by_tag(tag) for tag in (Tags.USER, Tags.ITEM))
    samplers = [
        tt.InBatchSamplerV2(tt.StreamingFrequency(num_buckets=256)),
        tt.UniformSampler(max_num_samples=8),
        tt.CrossBatchSampler(capacity=capacity, warmup_steps=2),
        tt.HardNegativeSampler(num_negatives=2, skip=2, refresh_steps=3, warmup_steps=3),
    ]
    model = tt.TwoTowerModelV2(
        *(tt.Encoder(side, tt.MLPBlock([16, width], dropout=0.3)) for side in sides),
        negative_samplers=samplers,
        **options,
    )
    warmup = 0.0 if schedule == "constant" else 0.2
    options = {"learning_rate": learning_rate, "table_optimizer": "lazy_adam", "schedule": schedule, "warmup": warmup}
    model.compile(metrics=["recall_at_10"], **options)
    return model


def train(record: Record, model: tt.RetrievalModelV2 | None = None, **options: Any) -> tt.RetrievalModelV2:
    """Fit a fresh model: 8 steps in an epoch, three epochs, unless the options say otherwise."""
    torch.set_num_threads(1)
    model = build() if model is None else model
    given = {"epochs": EPOCHS, "batch_size": 64, "verbose": False, **options}
    given["callbacks"] = [record, *options.get("callbacks", [])]
    data = given.pop("data", clubs(rows=500))
    assert given["batch_size"] != 64 or len(data) != 500 or -(-len(data) // 64) == STEPS_PER_EPOCH
    model.history = model.fit(data, **given)
    return model


def die_in_the_middle_of_writing(number: int) -> None:
    """From now on the n-th checkpoint is half on disk when the process dies."""
    save, left = torch.save, [number]

    def half(content: object, path: Path) -> None:
        save(content, path)
        left[0] -= 1
        if not left[0]:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def die(folder: str, stop_after: int | None, dies_in_write: int) -> None:
    """Train until the end of this process."""
    if dies_in_write:
        die_in_the_middle_of_writing(dies_in_write)
    record = Record(Path(folder) / "losses", stop_after, kill=True)
    train(record, checkpoint=Path(folder) / "run", checkpoint_steps=3, resume_from="auto")


if __name__ == "__main__":
    # imports take seconds, so one process makes them and its children train and die
    for job in json.loads(sys.argv[1]):
        child = os.fork()
        if not child:
            die(**job)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
