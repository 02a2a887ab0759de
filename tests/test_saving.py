"""Save and load restore everything, in one folder, whole or not at all, without pickle."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import twotower as tt
from tests.worlds import clubs, towers
from twotower import Tags, files


def trained(**options: object) -> tuple[tt.RetrievalModelV2, tt.Dataset]:
    train = clubs(rows=600)
    torch.manual_seed(0)
    inputs = tt.InputBlockV2(train.schema)
    query = tt.Encoder(inputs.select_by_tag(Tags.USER), tt.MLPBlock([8], dropout=0.1), post=tt.L2Norm())
    candidate = tt.Encoder(
        inputs.select_by_tag(Tags.ITEM), tt.CrossBlock(2), tt.MLPBlock([8], normalization="batch_norm")
    )
    model = tt.TwoTowerModelV2(query, candidate, **options)
    model.compile(optimizer="adagrad", learning_rate=0.02, loss="softmax", metrics=["recall_at_7", tt.NDCGAt(3)])
    model.fit(train, epochs=1, batch_size=100, verbose=False)
    return model, train


def test_everything_comes_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    popular = tt.PopularityBasedSamplerV2(max_id=39, max_num_samples=5, unique=False, seed=4)
    model, train = trained(
        negative_samplers=["in-batch", popular], logits_temperature=0.3, downscore_false_negatives=False
    )
    model.save(tmp_path / "model")
    again = tt.RetrievalModelV2.load(tmp_path / "model")
    output, old = again.outputs[0], model.outputs[0]
    assert output.logits_temperature == 0.3
    assert output.downscore_false_negatives is False
    assert output.logq_sampling_correction is True
    assert output.negative_samplers[1].unique is False
    assert again.compiled == model.compiled
    assert again.candidate_id == model.candidate_id
    torch.testing.assert_close(again.predict(train), model.predict(train))
    assert again.evaluate(train) == model.evaluate(train)  # the catalogue too
    batch = train.batch()
    model.eval()
    again.eval()
    for _ in range(2):  # the samplers' generators and counted frequencies too
        assert again.loss(batch).item() == model.loss(batch).item()
    assert torch.equal(output.negative_samplers[0].frequency.counts, old.negative_samplers[0].frequency.counts)


def test_switched_off_correction_stays_off(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, _ = trained(logq_sampling_correction=False)
    model.save(tmp_path / "model")
    assert tt.RetrievalModelV2.load(tmp_path / "model").outputs[0].logq_sampling_correction is False


def test_shared_tables_are_shared_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=100)
    friend = data.schema["item_id"].with_name("favourite").with_tags(Tags.USER)
    schema = tt.Schema([friend.with_tags(Tags.USER), *data.schema.select_by_tag(Tags.ITEM)])
    schema = tt.Schema([tt.ColumnSchema("favourite", [Tags.USER, Tags.CATEGORICAL], "int64",
                                        properties=friend.properties), *data.schema.select_by_tag(Tags.ITEM)])  # fmt: skip
    inputs = tt.InputBlockV2(schema)
    query, candidate = (tt.Encoder(inputs.select_by_tag(t), tt.MLPBlock([4])) for t in (Tags.USER, Tags.ITEM))
    model = tt.TwoTowerModelV2(query, candidate)
    model.save(tmp_path / "model")
    again = tt.RetrievalModelV2.load(tmp_path / "model")
    assert again.query.inputs.categorical.table("favourite") is again.candidate.inputs.categorical.table("item_id")
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_optimizer_state_on_request(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, train = trained()
    model.save(tmp_path / "with", include_optimizer=True)
    model.save(tmp_path / "without")
    restored, cold = (tt.RetrievalModelV2.load(tmp_path / name) for name in ("with", "without"))
    assert cold.optimizer_state is None
    for one in (model, restored, cold):
        torch.manual_seed(5)
        one.fit(train, epochs=1, batch_size=100, verbose=False)
    for a, b in zip(model.parameters(), restored.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), cold.parameters(), strict=True))
    with pytest.raises(ValueError, match="has no optimizer state: it was not fitted"):
        tt.TwoTowerModelV2(*towers(train)).save(tmp_path / "never", include_optimizer=True)


@pytest.mark.parametrize("kind", ["matrix", "youtube", "tasks"])
def test_other_models_too(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=300)
    if kind == "matrix":
        model = tt.MatrixFactorizationModelV2(data.schema, dim=8, post=tt.L2Norm())
    elif kind == "youtube":
        ids = data.schema.select_by_tag(Tags.ID) + data.schema[["user_height"]]
        model = tt.YoutubeDNNRetrievalModelV2(ids, num_sampled=10)
    else:
        outputs = [tt.BinaryOutput("like", logits_temperature=2.0), tt.RegressionOutput("stars")]
        model = tt.TwoTowerModelV2(*towers(data), outputs=outputs)
    model.fit(data, batch_size=100, verbose=False)
    model.save(tmp_path / "m")
    again = tt.RetrievalModelV2.load(tmp_path / "m")
    one, other = model.predict(data), again.predict(data)
    torch.testing.assert_close(one, other)


def test_pytorchs_own_layers_can_be_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=100)
    user, item = data.schema.select_by_tag(Tags.USER), data.schema.select_by_tag(Tags.ITEM)
    layers = nn.Sequential(nn.LazyLinear(6, bias=False), nn.GELU(), nn.LayerNorm(6), nn.Dropout(0.3), nn.Linear(6, 4))
    model = tt.TwoTowerModelV2(tt.Encoder(user, layers, nn.BatchNorm1d(4)), tt.Encoder(item, nn.LazyLinear(4)))
    model.fit(data, batch_size=50, verbose=False)
    model.save(tmp_path / "m")
    again = tt.RetrievalModelV2.load(tmp_path / "m")
    torch.testing.assert_close(again.predict(data), model.predict(data))
    assert again.query.blocks[0][0].bias is None
    assert again.query.blocks[0][3].p == 0.3


class Scale(nn.Module):
    """A block of the user's own that keeps its argument."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Forgets(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self._f = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._f


def test_classes_of_ones_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=100)
    user, item = data.schema.select_by_tag(Tags.USER), data.schema.select_by_tag(Tags.ITEM)
    model = tt.TwoTowerModelV2(
        tt.Encoder(user, tt.MLPBlock([4]), Scale(2.5), nn.ReLU()), tt.Encoder(item, tt.MLPBlock([4]))
    )
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match="uses a class 'Scale' that twotower does not have.*custom_objects"):
        tt.RetrievalModelV2.load(tmp_path / "m")
    again = tt.RetrievalModelV2.load(tmp_path / "m", custom_objects={"Scale": Scale})
    assert again.query.blocks[1].factor == 2.5
    torch.testing.assert_close(again.predict(data), model.predict(data))
    bad = tt.TwoTowerModelV2(tt.Encoder(user, tt.MLPBlock([4]), Forgets(2.5)), tt.Encoder(item, tt.MLPBlock([4])))
    with pytest.raises(ValueError, match=r"model.query.blocks\[1\] \(Forgets\) does not keep its argument 'factor'"):
        bad.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_functions_in_compile_are_asked_for_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, _ = trained()
    model.compile(optimizer=torch.optim.SGD)
    model.save(tmp_path / "m")
    with pytest.warns(UserWarning, match="compiled with functions, which are not saved: call compile"):
        tt.RetrievalModelV2.load(tmp_path / "m")


def test_no_pickle_in_the_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, _ = trained()
    model.save(tmp_path / "m", include_optimizer=True)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "catalog.parquet", "module.json", "optimizer.json", "optimizer.safetensors", "weights.safetensors",
    ]  # fmt: skip


def test_wrong_folders_say_so(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no saved model at .*module.json is missing"):
        tt.RetrievalModelV2.load(tmp_path)
    model, _ = trained()
    model.save(tmp_path / "m")
    text = json.loads((tmp_path / "m" / "module.json").read_text())
    (tmp_path / "m" / "module.json").write_text(json.dumps(text | {"format": 99}))
    with pytest.raises(ValueError, match="has format 99"):
        tt.RetrievalModelV2.load(tmp_path / "m")


def test_a_failed_write_leaves_the_old_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with files.folder_written_aside(tmp_path / "f", "mark") as folder:
        (folder / "a").write_text("old")
        (folder / "mark").touch()
    with pytest.raises(RuntimeError), files.folder_written_aside(tmp_path / "f", "mark") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "f" / "a").read_text() == "old"
    with pytest.raises(RuntimeError), files.written_aside(tmp_path / "f" / "a") as aside:
        aside.write_text("new")
        raise RuntimeError
    assert (tmp_path / "f" / "a").read_text() == "old"
    with files.folder_written_aside(tmp_path / "f", "mark") as folder:
        (folder / "b").write_text("new")
    assert os.listdir(tmp_path) == ["f"]
    assert os.listdir(tmp_path / "f") == ["b"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="a file stands there"), files.folder_written_aside(tmp_path / "file", "mark"):
        pass


@pytest.mark.parametrize("name", ["f", "f[0-9]", "f*"])
def test_what_a_dead_writer_left_is_cleared_and_what_others_have_is_not(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    digits = "0123456789abcdef" * 2
    foreign = [f".{name}.{digits}.tmp", f".{name}.{digits}", f".f7.{digits}.new", f".{name}.{digits}.new.new"]
    for other in foreign:
        (tmp_path / other).mkdir()
    (tmp_path / f".{name}.{digits}.old").write_text("a file")
    (tmp_path / f".{name}.{digits}.new").mkdir()  # a dead writer's: no process holds its lock
    with files.folder_written_aside(tmp_path / name, "mark") as folder:
        (folder / "mark").touch()
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, f".{name}.{digits}.old", name])


# a writer that says when it is at work, and goes on when told to
SLOW_WRITER = """
import sys
from twotower import files
with files.folder_written_aside(sys.argv[1], "mark") as folder:
    (folder / "mark").write_text("slow")
    print("at work", flush=True)
    sys.stdin.readline()
"""


def test_a_writer_at_work_is_left_alone_wherever_it_runs(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """In another container too, whose processes cannot be asked for: here no process can."""
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError()))
    command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path / "f")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout.readline() == "at work\n"
        with files.folder_written_aside(tmp_path / "f", "mark") as folder:
            (folder / "mark").write_text("fast")
        assert (tmp_path / "f" / "mark").read_text() == "fast"
        slow.communicate("go on\n", timeout=60)
    assert slow.returncode == 0
    assert (tmp_path / "f" / "mark").read_text() == "slow"
    assert os.listdir(tmp_path) == ["f"]


def test_without_the_systems_exchange_a_folder_in_between_is_not_put_back(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """One who looks for the folder between a living writer's two renames leaves the writer's work alone."""
    monkeypatch.setattr(files, "_exchange_call", lambda: None)
    for name in ("f", "next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").write_text(name)
    rename, moved = os.rename, []

    def watched(one: object, other: object) -> None:
        rename(one, other)  # type: ignore[call-overload]
        moved.append(one)
        if len(moved) == 1:
            files.restore_folder(tmp_path / "f")
            assert not (tmp_path / "f").exists()

    monkeypatch.setattr(os, "rename", watched)
    files.exchange_folders(tmp_path / "next", tmp_path / "f")
    assert [(tmp_path / name / "mark").read_text() for name in ("f", "next")] == ["next", "f"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, _ = trained()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my thesis")
    with pytest.raises(ValueError, match=r"holds other files \(\['notes.txt'\], ...\) and no module.json"):
        model.save(tmp_path / "mine")
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="and no preprocessor.json"):
        tt.Preprocessor({"x": tt.Numeric()}).fit({"x": [1, 2]}).save(tmp_path / "model")
    os.symlink(tmp_path / "model", tmp_path / "current")
    model.save(tmp_path / "current")  # through the link, which stays
    assert (tmp_path / "current").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["current", "mine", "model"]
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_frozen_parts_stay_frozen(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, _ = trained()
    model.candidate.requires_grad_(False)
    model.save(tmp_path / "m")
    again = tt.RetrievalModelV2.load(tmp_path / "m")
    assert not any(p.requires_grad for p in again.candidate.parameters())
    assert all(p.requires_grad for p in again.query.parameters())


def test_compile_starts_the_optimizer_anew() -> None:
    model, train = trained()
    assert model.optimizer_state is not None
    model.compile(optimizer="adagrad", learning_rate=0.5)
    assert model.optimizer_state is None
    model.fit(train, epochs=1, batch_size=100, verbose=False)
    assert model.optimizer_state["param_groups"][0]["lr"] == 0.5
