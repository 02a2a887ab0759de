"""A run that is killed and resumed is the unbroken run, bit for bit; and no damaged file is taken for a checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import twotower as tt
from tests.training_job import EPOCHS, STEPS_PER_EPOCH, Record, Stopped, build, train
from tests.worlds import clubs
from twotower.training import checkpoint as ckpt

ROOT = Path(__file__).parents[1]
STEPS = EPOCHS * STEPS_PER_EPOCH
pick = random.Random(20)
# where the processes die; checkpoints are written at steps 3, 6, 8 (the epoch's end), 9, 12, 15, 16, 18, 21, 24
KILLS = {
    "in the first epoch": {"stop_after": pick.randrange(4, STEPS_PER_EPOCH), "dies_in_write": 0},
    "in the last epoch": {"stop_after": pick.randrange(2 * STEPS_PER_EPOCH + 3, STEPS), "dies_in_write": 0},
    "while writing": {"stop_after": None, "dies_in_write": pick.randrange(2, 8)},
}


def losses(file: Path) -> dict[int, str]:
    """The loss of each batch; a batch that was trained twice must have had the same loss twice."""
    found: dict[int, str] = {}
    for line in file.read_text().splitlines():
        number, rest = line.split(maxsplit=1)
        assert found.setdefault(int(number), rest) == rest, f"batch {number} came out otherwise when it was repeated"
    return found


def assert_same_weights(one: tt.RetrievalModelV2, other: tt.RetrievalModelV2) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[tt.RetrievalModelV2, dict[int, str]]:
    file = tmp_path_factory.mktemp("unbroken") / "losses"
    model = train(Record(file))
    return model, losses(file)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that killed processes left."""
    folders = {when: tmp_path_factory.mktemp("killed") for when in KILLS}
    jobs = json.dumps([{"folder": str(folders[when]), **how} for when, how in KILLS.items()])
    command = [sys.executable, "-m", "tests.training_job", jobs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert [int(code) for code in done.stdout.split()] == [-signal.SIGKILL] * len(KILLS), done.stderr
    return folders


@pytest.mark.parametrize("when", KILLS)
def test_killed_and_resumed_is_the_unbroken_run(
    when: str, killed: dict[str, Path], unbroken: tuple[tt.RetrievalModelV2, dict[int, str]]
) -> None:
    folder, (whole, expected) = killed[when], unbroken
    before = losses(folder / "losses")
    assert 0 < len(before) < STEPS
    assert before == {number: expected[number] for number in range(len(before))}
    for path in ckpt.in_folder(folder / "run"):  # what has its final name is whole
        assert ckpt.read(path)["global_step"] == int(path.stem[-8:])
    assert any(name.startswith(".step-") for name in names(folder / "run")) == (when == "while writing")
    torch.manual_seed(99)  # nothing may hang on what the new process drew before
    resumed = train(Record(folder / "losses"), checkpoint=folder / "run", checkpoint_steps=3, resume_from="auto")
    assert losses(folder / "losses") == expected
    assert_same_weights(whole, resumed)
    assert names(folder / "run") == ["step-00000021.ckpt", "step-00000024.ckpt"]
    assert resumed.history.epochs == EPOCHS


def test_a_checkpoint_that_fails_leaves_the_older_ones_whole(tmp_path: Path) -> None:
    record, folder = Record(tmp_path / "losses"), tmp_path / "run"
    real, written = torch.save, []

    def full_disk_at_the_third(content: object, path: Path) -> None:
        real(content, path)
        written.append(path)
        if len(written) == 3:
            os.truncate(path, 1000)
            raise OSError("no space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(torch, "save", full_disk_at_the_third)
        train(record, checkpoint=folder, checkpoint_steps=2)
    assert names(folder) == ["step-00000002.ckpt", "step-00000004.ckpt"]
    (folder / f".step-00000006.ckpt.{'0a' * 16}").write_bytes(b"PK")  # as a kill leaves it
    (folder / "notes.txt").write_text("mine")
    train(record, checkpoint=folder, resume_from="auto", epochs=1)
    assert names(folder) == ["notes.txt", "step-00000004.ckpt", "step-00000008.ckpt"]


# the batch after which a run breaks off, where the case needs a certain one
STOPS = {"the end of a short epoch": 6, "within a short epoch": 7}
CASES: dict[str, dict[str, Any]] = {
    "the end of a short epoch": {"checkpoint_steps": 3, "steps_per_epoch": 4},
    "within a short epoch": {"checkpoint_steps": 1, "steps_per_epoch": 4},
    "accumulation": {"checkpoint_steps": 1, "trainer_options": {"accumulate_grad_batches": 3}},
    "accumulation, short epochs, validation": {
        "checkpoint_steps": 2, "steps_per_epoch": 5, "validation_data": clubs(rows=80), "seed": 3,
        "trainer_options": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    },
    "mixed precision, dropped rows": {
        "checkpoint_steps": 2, "drop_last": True, "trainer_options": {"precision": "bf16-mixed"}, "train_metrics_steps": 2
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*without bfloat16 products")
def test_exact_in_every_combination(case: str, tmp_path: Path) -> None:
    """Broken off by an exception, after a batch that is drawn at random unless the case needs a certain one."""
    options = {"epochs": 2, **CASES[case]}
    whole = train(Record(tmp_path / "whole"), checkpoint=tmp_path / "a", **options)
    expected = losses(tmp_path / "whole")
    stop_after = STOPS.get(case) or random.Random(case).randrange(2, len(expected))
    with pytest.raises(Stopped):
        train(Record(tmp_path / "losses", stop_after), checkpoint=tmp_path / "run", **options)
    resumed = train(Record(tmp_path / "losses"), checkpoint=tmp_path / "run", resume_from="auto", **options)
    assert losses(tmp_path / "losses") == expected
    assert_same_weights(whole, resumed)
    # values of whole epochs are those of the unbroken run; a mean over the broken one is of its steps after the checkpoint
    exact = [0] if stop_after > len(expected) / 2 else [1]
    assert resumed.history.history.keys() == whole.history.history.keys()
    for name, values in whole.history.history.items():
        for epoch in (0, 1) if name.startswith("val_") else exact:
            assert resumed.history.history[name][epoch] == values[epoch], (name, epoch)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("stop_after", [3, 8, 13])  # in the warm-up, at an epoch's end, on the way down
def test_a_schedule_goes_on_where_it_was(schedule: str, stop_after: int, tmp_path: Path) -> None:
    whole = train(Record(tmp_path / "whole"), build(schedule=schedule), epochs=2)
    folder, options = tmp_path / "run", {"epochs": 2, "checkpoint_steps": 1, "checkpoint": tmp_path / "run"}
    with pytest.raises(Stopped):
        train(Record(tmp_path / "losses", stop_after), build(schedule=schedule), **options)
    with pytest.raises(ValueError, match=r"'schedule_steps': \(16, 24\)"):  # other rates than a run of three epochs has
        train(Record(tmp_path / "no"), build(schedule=schedule), **options | {"epochs": 3}, resume_from="auto")
    with pytest.raises(ValueError, match=rf"'schedule': \('{schedule}', 'constant'\)"):
        train(Record(tmp_path / "no"), build(), **options, resume_from="auto")
    resumed = train(Record(tmp_path / "losses"), build(schedule=schedule), **options, resume_from="auto")
    assert losses(tmp_path / "losses") == losses(tmp_path / "whole")
    assert_same_weights(whole, resumed)
    assert names(folder) == ["step-00000015.ckpt", "step-00000016.ckpt"]


class At(Callback):
    """Does something after a batch, or at the end of an epoch."""

    def __init__(self, batch: int | None, do: Callable[[Any], None]) -> None:
        self.batch = batch
        self.do = do

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batch:
            self.do(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.batch is None:
            self.do(trainer)


def stop(trainer: Any) -> None:
    trainer.should_stop = True


def test_training_that_a_callback_ends_within_an_epoch_goes_on_there(
    unbroken: tuple[tt.RetrievalModelV2, dict[int, str]], tmp_path: Path
) -> None:
    record, folder = Record(tmp_path / "losses"), tmp_path / "run"
    train(record, checkpoint=folder, callbacks=[At(5, stop)])
    assert names(folder) == ["step-00000005.ckpt"]
    resumed = train(record, checkpoint=folder, resume_from=folder)
    assert losses(tmp_path / "losses") == unbroken[1]
    assert_same_weights(unbroken[0], resumed)


@pytest.mark.parametrize(
    ("callbacks", "options", "lacks"),
    [
        ([At(3, lambda trainer: trainer.save_checkpoint("it.ckpt"))], {"accumulate_grad_batches": 2}, "the gradients"),
        ([At(5, stop), At(None, lambda trainer: trainer.save_checkpoint("it.ckpt"))], {}, "the rest of an epoch"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(
    callbacks: list[Callback], options: dict[str, int], lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(Record(tmp_path / "losses"), epochs=1, callbacks=callbacks, trainer_options=options)
    with pytest.raises(ValueError, match=rf"it\.ckpt lacks {lacks}"):
        train(Record(tmp_path / "losses"), resume_from="it.ckpt", trainer_options=options)


# ---- files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    train(Record(folder / "losses"), epochs=1, checkpoint=folder / "run")
    return folder / "run"


def small(path: Path) -> bytes:
    """A checkpoint of a few bytes, and what it is made of."""
    content = {name: {"numbers": torch.arange(20)} for name in ckpt.NEEDED} | {"optimizer_states": [1.5, "text", None]}
    ckpt.VerifiedFiles().save_checkpoint(content, path)
    return path.read_bytes()


def test_a_file_cut_off_anywhere_is_named(tmp_path: Path, run: Path) -> None:
    path = tmp_path / "step-00000007.ckpt"
    whole = small(path)
    for size in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"step-00000007\.ckpt \({size} bytes\) is no whole checkpoint"):
            ckpt.read(path)
    whole = (run / "step-00000008.ckpt").read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"step-00000007\.ckpt .*Delete it and resume from an older one"):
            train(Record(tmp_path / "losses"), resume_from=path)
    assert not (tmp_path / "losses").exists()


def test_one_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "step-00000007.ckpt"
    whole = small(path)
    assert torch.equal(ckpt.read(path)["loops"]["numbers"], torch.arange(20))
    with zipfile.ZipFile(path) as archive:  # other tools may still read it
        assert archive.testzip() is None
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"step-00000007\.ckpt .* is no whole checkpoint of fit: it"):
            ckpt.read(path)


@pytest.mark.parametrize("kind", ["json", "npz", "torch"])
def test_another_kind_of_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    if kind == "json":
        path.write_text(json.dumps({"step": list(range(30))}))
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.arange(3))
    else:
        torch.save(dict.fromkeys(ckpt.NEEDED, 0), path)
    with pytest.raises(
        ValueError, match=r"file\.ckpt .* is no whole checkpoint of fit: it does not end with a checksum"
    ):
        ckpt.read(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], r"not a checkpoint of this version's fit: it lacks \['state_dict', 'loops'"),
        (dict.fromkeys(ckpt.NEEDED[1:], 0), r"it lacks \['state_dict'\]"),
        (dict.fromkeys(ckpt.NEEDED, 0), "holds weights only"),
    ],
)
def test_a_whole_file_with_something_else_is_named(content: Any, match: str, tmp_path: Path) -> None:
    ckpt.VerifiedFiles().save_checkpoint(content, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=rf"file\.ckpt .*{match}"):
        ckpt.read(tmp_path / "file.ckpt")


class Bomb:
    """What would run code if it were unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_no_code_is_run_and_none_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({name: Bomb() for name in ckpt.NEEDED}, "bomb.ckpt")
    ckpt._sign(Path("bomb.ckpt"))
    with pytest.raises(ValueError, match=r"bomb\.ckpt holds \['(posix|nt)\.mkdir'\]"):
        ckpt.read(Path("bomb.ckpt"))

    class Stateful(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"bomb": Bomb()}

    with pytest.raises(ValueError, match="such as a callback's state_dict"):
        train(Record(tmp_path / "losses"), checkpoint="run", callbacks=[Stateful()])
    assert names(tmp_path / "run") == []
    assert not Path("exploded").exists()


def test_only_local_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="written to local files, got s3://bucket/it.ckpt"):
        ckpt.VerifiedFiles().save_checkpoint({}, "s3://bucket/it.ckpt")


def test_lightnings_own_checkpoints_are_verified_and_resumed_too(
    unbroken: tuple[tt.RetrievalModelV2, dict[int, str]], tmp_path: Path
) -> None:
    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "kept", every_n_train_steps=11, filename="it")

    with pytest.raises(Stopped):
        train(Record(tmp_path / "losses", stop_after=12), callbacks=[keep()])
    assert names(tmp_path / "kept") == ["it.ckpt"]
    again = ModelCheckpoint(tmp_path / "kept again", every_n_train_steps=11, filename="it")
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        resumed = train(Record(tmp_path / "losses"), resume_from=tmp_path / "kept" / "it.ckpt", callbacks=[again])
    assert losses(tmp_path / "losses") == unbroken[1]
    assert_same_weights(unbroken[0], resumed)


# ---- options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint_steps": 5}, "checkpoint_steps=5 and resume_from=None need checkpoint="),
        ({"resume_from": "auto"}, "resume_from='auto' need checkpoint="),
        ({"checkpoint": "new", "checkpoint_steps": 0}, "checkpoint_steps must be a whole number of at least 1, got 0"),
        ({"checkpoint": "file"}, "checkpoint='file' is a file; give a folder"),
        ({"resume_from": "nowhere"}, 'no checkpoint at nowhere. resume_from takes a file, a folder of checkpoints, or "auto"'),
        ({"resume_from": "empty"}, r"empty holds no checkpoint step-<number>.ckpt, but \['other.ckpt'\]"),
        ({"checkpoint": "run"}, "run holds checkpoints of another run, the newest step-00000008.ckpt, and a fresh start"),
        ({"checkpoint": "run", "resume_from": "run/step-00000004.ckpt"}, "would mix two runs"),
        ({"checkpoint": "new", "trainer_options": {"max_steps": 3}}, "max_steps .*cannot be used together with checkpoint"),
        ({"resume_from": "run", "trainer_options": {"max_steps": 3}}, "Use epochs and steps_per_epoch"),
    ],
)  # fmt: skip
def test_options_are_checked_before_training(
    options: dict[str, Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for folder, held in (("empty", "other.ckpt"), ("run", "step-00000004.ckpt"), ("run", "step-00000008.ckpt")):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / held).touch()
    with pytest.raises(ValueError, match=match):
        train(Record(tmp_path / "losses"), **options)
    assert not Path("losses").exists()
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": clubs(rows=501)}, r"'rows': \(500, 501\)"),
        ({"batch_size": 32}, r"'batch_size': \(64, 32\)"),
        ({"shuffle": False}, r"'shuffle': \(1, 0\)"),
        ({"seed": 4}, r"other settings.*'seed': \(0, 4\)"),
        ({"data": clubs(rows=500, seed=1)}, r"other settings.*'data': "),
        ({"catalog": clubs(rows=60)}, r"'candidates': \(40, \d\d\)"),
        ({"steps_per_epoch": 5}, r"'steps_per_epoch': \(1\.0, 5\)"),
        ({"trainer_options": {"accumulate_grad_batches": 2}}, r"'accumulate_grad_batches': \(1, 2\)"),
        ({"model": build(learning_rate=0.02)}, r"'learning_rate': \(0\.01, 0\.02\)"),
        ({"model": build(logits_temperature=0.5)}, r"'outputs\[0\]\.logits_temperature': \(1\.0, 0\.5\)"),
        ({"model": build(capacity=63)}, r"'outputs\[0\]\.negative_samplers\[2\]\.capacity': \(64, 63\)"),
        ({"model": build(width=9)}, r"of another model; .*weight.*\(8, 16\), \(9, 16\)"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_differs_from_the_run_that_wrote_it_is_refused(
    change: dict[str, Any], match: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        train(Record(tmp_path / "losses"), resume_from=run, **change)
    assert not (tmp_path / "losses").exists()


def test_a_finished_run_is_not_trained_again(run: Path, tmp_path: Path) -> None:
    model = train(Record(tmp_path / "losses"), epochs=1, checkpoint=run, resume_from="auto")
    assert not (tmp_path / "losses").exists()
    assert model.history.epochs == 1
    assert not model.training
    train(Record(tmp_path / "losses"), epochs=2, resume_from=run)
    assert sorted(losses(tmp_path / "losses")) == list(range(8, 16))
    later = tmp_path / "later"
    train(Record(tmp_path / "others"), epochs=2, checkpoint=later)
    with pytest.raises(ValueError, match="the checkpoint is in epoch 2, but epochs=1 in all"):
        train(Record(tmp_path / "others"), epochs=1, resume_from=later)


def test_the_newest_is_by_step_and_not_by_name(tmp_path: Path) -> None:
    for name in ("step-00000009.ckpt", "step-100000000.ckpt", "step-99999999.ckpt", "step-x.ckpt", "epoch=3.ckpt"):
        (tmp_path / name).touch()
    assert [p.name for p in ckpt.in_folder(tmp_path)] == [
        "step-00000009.ckpt",
        "step-99999999.ckpt",
        "step-100000000.ckpt",
    ]


def test_the_random_state_of_the_training_device_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed: a stand-in for torch.cuda shows that its state is kept beside the CPU's and given back."""
    held = [torch.tensor([1, 2])]
    gpu = SimpleNamespace(get_rng_state=lambda: held[0].clone(), set_rng_state=lambda state: held.__setitem__(0, state))
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    state = ckpt.random_state(torch.device("cuda", 0))
    assert set(state) == {"cpu", "cuda"}
    drawn, held[0] = torch.rand(3), torch.tensor([5, 6])
    ckpt.set_random_state(state, torch.device("cuda", 0))
    assert torch.equal(torch.rand(3), drawn)
    assert held[0].tolist() == [1, 2]
