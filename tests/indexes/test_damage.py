"""Folders of an index that were cut, changed or put together from two: refused in words, and never read as something else."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

import twotower as tt
from twotower.files import sha256_of

KINDS = {"exact": tt.ExactIndex, "flat": tt.FlatIndex, "ivf": tt.IVFIndex, "hnsw": tt.HNSWIndex}
N, D = 60, 4


def saved(kind: str, folder: Path, rows: int = N, dim: int = D, seed: int = 0) -> Path:
    """An index from which a candidate was deleted."""
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    options = {} if kind == "exact" else {"exact_below": 0}
    index = KINDS[kind](vectors, torch.arange(rows) * 3, pl.DataFrame({"n": list(range(rows))}), **options)  # type: ignore[abstract]
    index.delete([3 * seed])
    index.save(folder)
    return folder


def with_true_checksums(folder: Path) -> None:
    """As one who changes a file on purpose would leave it."""
    text = json.loads((folder / "index.json").read_text())
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "index.json"]
    text["files"] = {f.relative_to(folder).as_posix(): sha256_of(f) for f in files}
    (folder / "index.json").write_text(json.dumps(text))


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_of_any_file_may_change(kind: str, tmp_path: Path) -> None:
    index = saved(kind, tmp_path / "index")
    files = sorted(f for f in index.iterdir() if f.name != "index.json")
    assert len(files) == (2 if kind == "exact" else 3)
    for file in files:
        whole = file.read_bytes()
        for at in (0, 1, len(whole) // 3, len(whole) - 1):
            flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            for changed in (whole[:at], flipped, whole + b"\0"):
                file.write_bytes(changed)
                with pytest.raises(ValueError, match=f"is damaged: {file.name} was changed or cut short"):
                    tt.load_index(index)
        file.unlink()
        with pytest.raises(ValueError, match=f"is damaged: {file.name} is missing"):
            tt.load_index(index)
        file.write_bytes(whole)
    assert len(tt.load_index(index)) == N - 1


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dim": 5}, "of width 5 for metric 0, not"),
        ({"rows": 70}, r"of (70|69) vectors of width 4 for metric 0, not \w+ of (60|59) of width 4"),
        ({"seed": 1}, None),
    ],
)
def test_a_structure_of_another_index(kind: str, other: dict[str, int], message: str | None, tmp_path: Path) -> None:
    index = saved(kind, tmp_path / "index")
    shutil.copy(saved(kind, tmp_path / "other", **other) / "structure.faiss", index)
    with pytest.raises(ValueError, match=r"structure\.faiss was changed"):
        tt.load_index(index)
    with_true_checksums(index)
    if message is None and kind != "ivf":  # of the same size: which candidates are looked at, scores are exact
        assert len(tt.load_index(index)) == N - 1
        return
    with pytest.raises(
        ValueError, match=message or "the lists in .* are damaged: rows.safetensors has other candidates"
    ):
        tt.load_index(index)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_structure_of_another_kind(kind: str, tmp_path: Path) -> None:
    index = saved(kind, tmp_path / "index")
    other = {"flat": "hnsw", "hnsw": "ivf", "ivf": "flat"}[kind]
    shutil.copy(saved(other, tmp_path / "other") / "structure.faiss", index)
    with_true_checksums(index)
    with pytest.raises(ValueError, match=r"structure\.faiss is damaged: it holds a Index\w+ of"):
        tt.load_index(index)


def test_lists_of_candidates_that_are_not_there(tmp_path: Path) -> None:
    """A search would read beyond the vectors."""
    index = saved("ivf", tmp_path / "index")
    file = str(index / "structure.faiss")
    lists = faiss.read_index(file)
    for wrong in (10**6, -1, 5):  # beyond, none, twice
        at = next(n for n in range(lists.nlist) if lists.invlists.list_size(n))
        ids = faiss.rev_swig_ptr(lists.invlists.get_ids(at), lists.invlists.list_size(at))
        ids[0] = wrong if wrong != 5 or ids[0] != 5 else 6
        faiss.write_index(lists, file)
        with_true_checksums(index)
        with pytest.raises(ValueError, match="the lists in .* are damaged"):
            tt.load_index(index)


def test_a_graph_that_links_to_nowhere(tmp_path: Path) -> None:
    index = saved("hnsw", tmp_path / "index")
    file = str(index / "structure.faiss")
    graph = faiss.read_index(file)
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    links[0] = 10**6
    faiss.copy_array_to_vector(links, graph.hnsw.neighbors)
    faiss.write_index(graph, file)
    with_true_checksums(index)
    with pytest.raises(ValueError, match="damaged"):
        tt.load_index(index)


@pytest.mark.parametrize(
    "harm",
    [
        lambda rows: rows | {"keys": rows["keys"][:-1]},
        lambda rows: rows | {"alive": rows["alive"].int()},
        lambda rows: rows | {"keys": rows["keys"].float()},
        lambda rows: rows | {"vectors": rows["vectors"].half()},
        lambda rows: rows | {"vectors": rows["vectors"].flatten()},
        lambda rows: {"keys": rows["keys"]},
    ],
)
def test_rows_that_no_index_wrote(harm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path) -> None:
    index = saved("exact", tmp_path / "index")
    file = index / "rows.safetensors"
    safetensors.torch.save_file(harm(safetensors.torch.load_file(file)), file)
    with_true_checksums(index)
    with pytest.raises(ValueError, match=rf"{re.escape(str(index))}.* is damaged"):
        tt.load_index(index)


def test_attributes_of_another_index(tmp_path: Path) -> None:
    index = saved("exact", tmp_path / "index")
    shutil.copy(saved("exact", tmp_path / "other", rows=70) / "attributes.parquet", index)
    with_true_checksums(index)
    with pytest.raises(ValueError, match="60 candidates came with 70 rows of attributes"):
        tt.load_index(index)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_structure_that_is_no_structure(kind: str, tmp_path: Path) -> None:
    index = saved(kind, tmp_path / "index")
    file = index / "structure.faiss"
    whole = file.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 40).astype(int):
        file.write_bytes(whole[:at])
        with_true_checksums(index)
        with pytest.raises(ValueError, match="is damaged"):
            tt.load_index(index)
