"""Exported towers in ONNX Runtime and in torch.export, beside the tower itself; what cannot be exported is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import twotower as tt
from tests.worlds import id_column
from twotower import Ragged, Tags
from twotower.data.batch import Batch, take
from twotower.export.checking import BatchMaker, batches, example_inputs, weighed
from twotower.export.graph import trace, write_onnx
from twotower.export.inputs import tower_inputs

KNOWN = {"unknown_id": 2}


def ids(name: str, largest: int = 19, domain: str | None = None, **shape: Any) -> tt.ColumnSchema:
    properties = {"domain": {"min": 0, "max": largest, "name": domain or name}, **KNOWN}
    return tt.ColumnSchema(name, [Tags.CATEGORICAL], "int64", properties=properties, **shape)


def numbers(name: str, **shape: Any) -> tt.ColumnSchema:
    return tt.ColumnSchema(name, [Tags.CONTINUOUS], "float32", **shape)


def lists(*names: str, domain: str | None = None) -> list[tt.ColumnSchema]:
    return [ids(name, domain=domain, is_list=True) for name in names]


def pooled() -> tt.Encoder:
    """Every way to pool a list by name, by attention and by weights; names that PyTorch gives its operators."""
    columns = [ids("embedding"), *lists("mean", "sum", "index", "max", "item", "linear", domain="genre")]
    combiners = {"sum": "sum", "index": "sqrtn", "max": "max", "item": tt.AttentionPooling()}
    weights = numbers("weight", is_list=True)
    categorical = tt.Embeddings(
        tt.Schema(columns), 8, sequence_combiner=combiners, sequence_weights={"linear": "weight"}
    )
    inputs = tt.InputBlockV2(tt.Schema([*columns, weights]), categorical=categorical)
    mlp = tt.MLPBlock([12, 6], "gelu", normalization="batch_norm", dropout=0.3, no_activation_last_layer=True)
    return tt.Encoder(inputs, tt.CrossBlock(2, low_rank_dim=3), mlp, post=tt.L2Norm())


HISTORIES: dict[str, Callable[[], tt.HistoryEncoder]] = {
    "bag": lambda: tt.HistoryBag(8, output_dim=5),
    "bag, decay": lambda: tt.HistoryBag(8, "sum", weights="decay", max_length=6),
    "bag, positions": lambda: tt.HistoryBag(8, weights="positions", max_length=4),
    "gru": lambda: tt.HistoryGRU(8, 2, output_dim=7),
    "gru, cut": lambda: tt.HistoryGRU(8, max_length=3),
    "transformer": lambda: tt.HistoryTransformer(8, 2, 2, max_length=9),
    "transformer, rotary": lambda: tt.HistoryTransformer(8, 1, 2, positions="rotary", pre_norm=False, max_length=40),
}


def of_history(name: str) -> tt.Encoder:
    columns = tt.Schema([ids("user_id"), *lists("seen", domain="item")])
    categorical = tt.Embeddings(columns, 8, sequence_combiner={"seen": HISTORIES[name]()})
    return tt.Encoder(tt.InputBlockV2(columns, categorical=categorical), tt.MLPBlock([6], "tanh"))


def features() -> tt.Encoder:
    """Numbers and vectors of all kinds, of the width of the ids, summed."""
    rows = [
        tt.ColumnSchema(name, [Tags.EMBEDDING], "int64", properties={"domain": {"min": 0, "max": 9}}, is_list=is_list)
        for name, is_list in (("image", False), ("images", True))
    ]
    given = tt.ColumnSchema("text", [Tags.EMBEDDING], "float32", dims=((0, None), (5, 5)))
    vectors = {name: torch.randn(10, 4).half() for name in ("image", "images")}
    columns = [ids("user"), numbers("age"), numbers("price"), *rows, given]
    inputs = tt.InputBlockV2(
        tt.Schema(columns),
        continuous=tt.ContinuousEmbedding(tt.Schema(columns[1:3]), 8, kind="periodic"),
        categorical=tt.Embeddings(tt.Schema(columns[:1]), 8, id_dropout=0.5),
        pretrained_embeddings=tt.PretrainedEmbeddings(tt.Schema([*rows, given]), 8, "l2-norm", vectors=vectors),
        aggregation="sum",
    )
    return tt.Encoder(inputs, tt.MLPBlock([6], "selu", dropout=0.2, normalization="layer_norm"))


def plain() -> tt.Encoder:
    """Columns as they are: numbers, whole numbers, fixed lists of both kinds; a module before, PyTorch's layers after."""
    three, four = ((0, None), (3, 3)), ((0, None), (4, 4))
    hour = tt.ColumnSchema("hour", [Tags.CONTINUOUS], "int64", properties={"domain": {"min": 0, "max": 23}})
    columns = tt.Schema([ids("user"), ids("last", dims=three), numbers("x"), numbers("xs", dims=four), hour])
    return tt.Encoder(columns, nn.Linear(8 + 8 + 1 + 4 + 1, 6), nn.Softplus(), pre=Halved())


class Halved(nn.Module):
    def forward(self, batch: Batch) -> Batch:
        return batch | {"x": torch.as_tensor(batch["x"]) / 2}


CASES: dict[str, Callable[[], tt.Encoder | tt.EmbeddingEncoder]] = {
    "pooled": pooled,
    "features": features,
    "plain": plain,
    "one list": lambda: tt.Encoder(tt.Schema(lists("genres")), tt.MLPBlock([6])),
    "embedding encoder": lambda: tt.EmbeddingEncoder(ids("item_id"), 6, post=tt.L2Norm()),
    "popularity prior": lambda: tt.Encoder(
        tt.Schema([ids("item_id")]), tt.MLPBlock([6]), prior=tt.PopularityPrior(ids("item_id"), 0.1)
    ),
    "weight of the prior": lambda: tt.Encoder(tt.Schema([ids("user")]), tt.MLPBlock([6]), prior=tt.PriorWeight()),
    "embedding encoder of lists": lambda: tt.EmbeddingEncoder(lists("genres")[0], 6),
    **{name: partial(of_history, name) for name in HISTORIES},
}


def made(name: str) -> tt.Encoder | tt.EmbeddingEncoder:
    torch.manual_seed(0)
    tower = CASES[name]()
    for parameter in tower.parameters():  # what starts at zero would hide mistakes
        nn.init.normal_(parameter, std=0.4)
    for part in tower.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.uniform_(part.running_mean)  # type: ignore[arg-type]
    return tower


def row_by_row(tower: tt.Encoder | tt.EmbeddingEncoder, batch: Batch) -> np.ndarray:
    """Each row through the tower by itself."""
    rows = len(next(iter(batch.values())))
    with torch.no_grad():
        return torch.cat([tower.eval()(take(batch, torch.tensor([row]))) for row in range(rows)]).numpy()


@pytest.mark.parametrize("name", CASES)
def test_both_formats_compute_the_towers_vectors(name: str, tmp_path: Path) -> None:
    """In ONNX Runtime and as a program of torch.export that was saved and loaded, each row beside the tower's alone."""
    tower = made(name).eval()
    inputs = tower_inputs(tower.schema, weighed(tower))
    program = trace(tower, inputs, example_inputs(tower))
    write_onnx(program, inputs, tmp_path / "tower.onnx")
    torch.export.save(program, tmp_path / "tower.pt2")
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx")
    loaded = torch.export.load(tmp_path / "tower.pt2").module()
    assert [(each.name, each.type) for each in session.get_inputs()] == [
        (each.name, {"int64": "tensor(int64)", "float32": "tensor(float)"}[each.dtype]) for each in inputs
    ]
    make = BatchMaker(tower)
    given = [make(100 + rows, rows, lengths) for rows, lengths in [(11, None), (1, [2]), (5, [0, 0, 45, 1]), (3, [0])]]
    for batch in [*given, *(batch for _, batch in batches(tower))]:
        flat = tt.flat_inputs(batch, tower.schema)
        expected = row_by_row(tower, batch)
        np.testing.assert_allclose(session.run(["vector"], flat)[0], expected, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            vectors = loaded({name: torch.from_numpy(array) for name, array in flat.items()})
        np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_what_is_told_of_an_export(format: str, tmp_path: Path) -> None:
    tower = tt.Encoder(tt.Schema([ids("user_id"), *lists("seen", domain="item"), numbers("age")]), tt.MLPBlock([6]))
    tt.export_tower(tower, tmp_path / "out", format)
    assert tower.training  # as it was before
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [(each["name"], each["dtype"], each["shape"]) for each in told["inputs"]] == [
        ("user_id", "int64", ["batch"]),
        ("seen.values", "int64", ["total_1"]),
        ("seen.offsets", "int64", ["batch + 1"]),
        ("age", "float32", ["batch"]),
    ]
    known = {"smallest_id": 0, "largest_id": 19, "domain": "item", "missing_id": 0, "unknown_id": 2}
    assert known.items() <= told["inputs"][1].items()
    assert told["output"] == {"name": "vector", "dtype": "float32", "shape": ["batch", 6]}
    assert told["checked"]["batches"] == 13
    assert told["checked"]["largest_difference"] < 1e-6
    file = tmp_path / "out" / told["file"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {file.name, "export.json"}
    assert str(Path(tt.__file__).parent).encode() not in file.read_bytes()  # nothing of this machine
    tt.export_tower(tower, tmp_path / "out", format, check=False)  # in place of the first
    assert json.loads((tmp_path / "out" / "export.json").read_text())["checked"] is None


def test_a_program_runs_without_this_library(tmp_path: Path) -> None:
    tower = made("gru")
    tt.export_tower(tower, tmp_path / "out", "torch")
    batch = BatchMaker(tower)(7, 6)
    np.savez(tmp_path / "inputs.npz", **tt.flat_inputs(batch, tower.schema))
    code = """
import sys, numpy, torch
inputs = {name: torch.from_numpy(array) for name, array in numpy.load("inputs.npz").items()}
numpy.save("vectors.npy", torch.export.load("out/tower.pt2").module()(inputs).detach().numpy())
assert "twotower" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": ""})
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), row_by_row(tower, batch), atol=1e-5, rtol=1e-5)


def test_from_raw_values_to_both_towers(tmp_path: Path) -> None:
    """A Preprocessor's columns: text, unknown values, numbers, vectors; the scores are those of the model."""
    raw = {
        "user_id": ["ann", "bob", "eve"],
        "item_id": [1, 2, 3],
        "title": ["the red car", "a red bus", "blue"],
        "price": [1.0, None, 5.0],
        "image": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
    }
    columns = {
        "user_id": tt.Categorical(Tags.USER_ID),
        "item_id": tt.Categorical(Tags.ITEM_ID),
        "title": tt.Text(Tags.ITEM),
        "price": tt.Numeric(Tags.ITEM, fill="mean", indicator=True),
        "image": tt.Vector(Tags.ITEM),
    }
    preprocessor = tt.Preprocessor(columns).fit(raw)
    sides = (preprocessor.schema.select_by_tag(tag) for tag in (Tags.USER, Tags.ITEM))
    model = tt.TwoTowerModelV2(*(tt.Encoder(side, tt.MLPBlock([4])) for side in sides))
    asked = preprocessor.transform(raw | {"user_id": ["ann", "zoe", None], "title": ["", "red unseen", "blue"]})
    vectors = []
    for side, tower in (("query", model.query_encoder), ("candidate", model.candidate_encoder)):
        tt.export_tower(tower, tmp_path / side)
        session = onnxruntime.InferenceSession(tmp_path / side / "tower.onnx")
        vectors.append(session.run(None, tt.flat_inputs(asked.batch(), tower.schema))[0])
    expected = model.predict(asked, batch_size=2)
    assert isinstance(expected, Tensor)
    np.testing.assert_allclose((vectors[0] * vectors[1]).sum(1), expected[:, 0].numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[tt.Encoder, Any]:
    folder = tmp_path_factory.mktemp("exported")
    columns = tt.Schema([ids("user_id"), *lists("seen", domain="item")])
    encoder = tt.Embeddings(columns, 4, sequence_combiner={"seen": tt.HistoryGRU(4, max_length=5)})
    tower = tt.Encoder(tt.InputBlockV2(columns, categorical=encoder), tt.MLPBlock([3], "linear"))
    tt.export_tower(tower, folder / "out")
    return tower, onnxruntime.InferenceSession(folder / "out" / "tower.onnx")


@given(rows=st.lists(st.tuples(st.integers(0, 19), st.lists(st.integers(0, 19), max_size=9)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_batch(session: tuple[tt.Encoder, Any], rows: list[tuple[int, list[int]]]) -> None:
    tower, run = session
    seen = Ragged.from_lists([lists_ for _, lists_ in rows], torch.int64)
    batch: Batch = {"user_id": torch.tensor([user for user, _ in rows]), "seen": seen}
    (came,) = run.run(None, tt.flat_inputs(batch, tower.schema))
    np.testing.assert_allclose(came, row_by_row(tower, batch), atol=1e-5)


@pytest.mark.parametrize("wrong", [20, -1])
@pytest.mark.parametrize("place", ["user_id", "seen.values"])
def test_ids_outside_the_domain_are_errors_of_the_runtime(
    session: tuple[tt.Encoder, Any], wrong: int, place: str
) -> None:
    """ONNX counts negative places from the end: the last id's vector would be given for -1."""
    tower, run = session
    batch: Batch = {"user_id": torch.tensor([3]), "seen": Ragged.from_lists([[1, 2]])}
    flat = tt.flat_inputs(batch, tower.schema)
    flat[place][0] = wrong
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        run.run(None, flat)


def test_a_program_of_torch_refuses_them_too(tmp_path: Path) -> None:
    tt.export_tower(made("embedding encoder"), tmp_path / "out", "torch")
    program = torch.export.load(tmp_path / "out" / "tower.pt2").module()
    for wrong in (20, -1):
        with pytest.raises(IndexError):
            program({"item_id": torch.tensor([wrong])})


# ---- what is refused


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Twofaced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_exporting() else x


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def with_block(block: nn.Module) -> tt.Encoder:
    return tt.Encoder(tt.Schema([ids("user")]), nn.Sequential(nn.Identity(), block))


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_block_that_decides_by_the_data_is_named(format: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"block 'blocks.0.1' \(Choosing\) cannot be exported.*serve the tower from Py"
    ):
        tt.export_tower(with_block(Choosing()), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def test_a_difference_is_found_before_anything_is_written(tmp_path: Path) -> None:
    good = with_block(nn.Identity())
    tt.export_tower(good, tmp_path / "out", "torch")
    before = (tmp_path / "out" / "tower.pt2").read_bytes()
    with pytest.raises(
        ValueError, match=r"differs from the tower by .*for random rows \(seed 0\); nothing was written"
    ):
        tt.export_tower(with_block(Twofaced()), tmp_path / "out", "torch")
    assert (tmp_path / "out" / "tower.pt2").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_onnx_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ONNX has no words for: .*bessel_j0.*format='torch'"):
        tt.export_tower(with_block(Spectral()), tmp_path / "out")


def test_other_things_than_towers(tmp_path: Path) -> None:
    sides = (tt.EmbeddingEncoder(id_column(n, tag, 3), 4) for n, tag in (("u", Tags.USER_ID), ("i", Tags.ITEM_ID)))
    model = tt.TwoTowerModelV2(*sides)
    for wrong, text in (
        ((model, "onnx"), "model.query_encoder or model.candidate_encoder"),
        ((model.query, "tflite"), "unknown format 'tflite': choose from 'onnx', 'torch'"),
        ((model.query.double(), "torch"), r"holds \['torch.float64'\]: call tower.float\(\)"),
    ):
        with pytest.raises(ValueError, match=text):
            tt.export_tower(wrong[0], tmp_path / "out", wrong[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Did you mean 'check'"):
        tt.export_tower(model.query, tmp_path / "out", chek=False)  # type: ignore[call-arg]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files.*thesis.txt"):
        tt.export_tower(model.candidate, tmp_path / "mine", "torch")


def test_names_that_would_be_given_twice() -> None:
    for columns in ([*lists("a"), ids("a.values")], [ids("vector")]):
        with pytest.raises(ValueError, match="Rename a column"):
            tower_inputs(tt.Schema(columns))


def test_flat_inputs_of_other_forms() -> None:
    """Lists of one length may come as a tensor; whole numbers as numbers; what is no list as no list."""
    schema = tt.Schema([*lists("seen"), numbers("x"), ids("last", dims=((0, None), (2, 2)))])
    batch: Batch = {"seen": torch.tensor([[1, 2], [3, 4]]), "x": torch.tensor([1, 2]), "last": torch.ones(2, 2).long()}
    flat = tt.flat_inputs(batch | {"other": torch.ones(2)}, schema)
    assert {name: (array.dtype.name, array.tolist()) for name, array in flat.items()} == {
        "seen.values": ("int64", [1, 2, 3, 4]),
        "seen.offsets": ("int64", [0, 2, 4]),
        "x": ("float32", [1.0, 2.0]),
        "last": ("int64", [[1, 1], [1, 1]]),
    }
    for wrong, text in (
        ({"seen": torch.tensor([1, 2])}, "holds lists in the tower's schema"),
        ({"x": Ragged.from_lists([[1.0], []])}, r"'x' must be of shape \('batch',\), got lists"),
        ({"last": torch.ones(2, 3).long()}, r"must be of shape \('batch', 2\), got shape \(2, 3\)"),
        ({"seen": Ragged(torch.tensor([1]), torch.tensor([0, 1, 2]))}, "end at the number of values"),
    ):
        with pytest.raises(ValueError, match=text):
            tt.flat_inputs(batch | wrong, schema)
    with pytest.raises(ValueError, match="the batch lacks a column. unknown column 'x'"):
        tt.flat_inputs({"seen": batch["seen"], "last": batch["last"]}, schema)
