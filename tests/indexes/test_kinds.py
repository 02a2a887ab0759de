"""What is each kind's own: recall where it was promised, changes far beyond what it was built for, warnings."""

import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import twotower as tt
from tests.indexes.test_damage import with_true_checksums
from twotower.indexes.kinds import INDEXES
from twotower.indexes.recall import recall_of


def learned(rows: int, queries: int, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clusters of vectors of different lengths, and queries from the same clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(60, dim, generator=generator)

    def drawn(n: int) -> Tensor:
        cluster = torch.randint(60, (n,), generator=generator)
        return centres[cluster] + 0.7 * torch.randn(n, dim, generator=generator)

    length = torch.exp(0.3 * torch.randn(rows, 1, generator=generator))
    return drawn(rows) * length, drawn(queries)


VECTORS, QUERIES = learned(12_000, 300)
SHARE = torch.rand(12_000, generator=torch.Generator().manual_seed(3))
ATTRIBUTES = pl.DataFrame({"share": SHARE.numpy(), "long": (VECTORS.norm(dim=1) > 4.5).numpy()})
EXACT = tt.ExactIndex(VECTORS, attributes=ATTRIBUTES)


def recall(index: tt.Index, k: int, **how: object) -> float:
    best = EXACT.search(QUERIES, k, **how)[1].numpy()  # type: ignore[arg-type]
    return recall_of(index.search(QUERIES, k, **how)[1].numpy(), best)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ivf() -> tt.IVFIndex:
    sample = learned(12_000, 600)[1][300:]
    return tt.IVFIndex(VECTORS, attributes=ATTRIBUTES, queries=sample, target_recall=0.9, exact_below=0)


def test_lists_reach_the_recall_asked_for_at_every_depth(ivf: tt.IVFIndex) -> None:
    """Within 0.03: the spread between two samples of 300 queries."""
    assert 0.87 <= ivf.measured_recall <= 0.97  # type: ignore[operator]
    assert ivf.lists_read(100) < ivf.nlist / 2
    for k in (10, 100, 700):
        assert recall(ivf, k) >= 0.87
    for share in (0.5, 0.1, 0.03):
        assert recall(ivf, 50, where=tt.Filter.parse({"share": {"lt": share}})) >= 0.87
    assert recall(ivf, 50, where=tt.Filter.parse({"long": False})) >= 0.85  # what the queries like least
    assert ivf.lists_read(10) <= ivf.lists_read(100) <= ivf.lists_read(1000) <= ivf.lists_read(10**9) == ivf.nlist


def test_a_higher_target_reads_more_lists(ivf: tt.IVFIndex) -> None:
    more = tt.IVFIndex(VECTORS, queries=QUERIES, target_recall=0.99)
    assert more.lists_read(100) > ivf.lists_read(100)
    assert more.measured_recall >= 0.985  # type: ignore[operator]
    assert tt.IVFIndex(VECTORS, nprobe=3, exact_below=0).lists_read(100) == 3


def test_a_user_who_has_seen_the_best_hundreds(ivf: tt.IVFIndex) -> None:
    best = EXACT.search(QUERIES, 500)[1]
    rows = torch.arange(len(QUERIES))[:, None].expand(-1, 500)
    exclude = torch.stack([rows.flatten(), best.flatten()], dim=1)
    assert recall(ivf, 20, exclude=exclude) >= 0.85
    found = ivf.search(QUERIES, 20, exclude=exclude)[1]
    assert not (found[:, :, None] == best[:, None, :]).any()


def test_flat_codes_hold_any_size_of_vectors() -> None:
    for size in (1e-9, 1.0, 1e9):
        index = tt.FlatIndex(VECTORS * size, exact_below=0)
        best = EXACT.search(QUERIES, 100)[1].numpy()
        assert recall_of(index.search(QUERIES, 100)[1].numpy(), best) > 0.9995


@pytest.mark.parametrize("kind", [tt.FlatIndex, tt.HNSWIndex])
@pytest.mark.parametrize("first", [0.0, 1e-6])
def test_codes_hold_vectors_far_larger_than_the_first(kind, first: float) -> None:  # type: ignore[no-untyped-def]
    """1e6 times 1 / 1e-6 is beyond half precision, whose largest number is 65,504; nothing but zeros has no largest number."""
    index = kind(first * VECTORS[:50], exact_below=0)
    index.upsert(torch.arange(50, 1050), 1e6 * VECTORS[:1000])
    truth = tt.ExactIndex(torch.cat([first * VECTORS[:50], 1e6 * VECTORS[:1000]]))
    best = truth.search(QUERIES, 20)[1].numpy()
    assert recall_of(index.search(QUERIES, 20)[1].numpy(), best) > 0.95


def test_a_graph_tells_what_it_misses() -> None:
    with pytest.warns(
        tt.LowRecallWarning, match=r"the graph finds 0\.\d+ of the best 100 candidates, less than target_recall"
    ):
        index = tt.HNSWIndex(VECTORS[:4000], neighbors=2, ef_construction=4, ef_search=4, exact_below=0)
    assert index.measured_recall < 0.9
    good = tt.HNSWIndex(VECTORS, attributes=ATTRIBUTES, queries=QUERIES, ef_search=512, exact_below=0)
    assert good.measured_recall == pytest.approx(recall(good, 100), abs=0.01)
    assert recall(good, 20, where=tt.Filter.parse({"share": {"lt": 0.1}})) > 0.9


def test_scann_reads_as_many_lists_as_it_needs() -> None:
    index = tt.ScaNNIndex(VECTORS, attributes=ATTRIBUTES, queries=QUERIES, exact_below=0)
    assert index.measured_recall >= 0.95  # type: ignore[operator]
    assert index.leaves_read < index.num_leaves
    assert recall(index, 100) == pytest.approx(index.measured_recall, abs=0.01)
    for share in (0.5, 0.2):
        assert recall(index, 20, where=tt.Filter.parse({"share": {"lt": share}})) >= 0.93


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "scann_docids.pkl").write_bytes(b""), r"holds \['scann_docids.pkl'\]"),
        (lambda folder: (folder / "scann_config.pb").unlink(), r"lacks \['scann_config.pb'\]"),
        (lambda folder: rename_asset(folder, "../../other.npy"), "names '../../other.npy', which is none of the files"),
        (lambda folder: rename_asset(folder, "/etc/passwd"), "names '/etc/passwd', which is none of the files"),
        (lambda folder: rename_asset(folder, r"\\057etc\\057passwd"), "is no list of files"),
        (lambda folder: rename_asset(folder, "x' asset_path: '/etc/passwd"), "names .*which is none of the files"),
        (lambda folder: link(folder / "dataset.npy"), "holds links or folders"),
    ],
)
def test_scann_reads_its_own_files_alone(spoil, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It would run the pickle, and read another path."""
    tt.ScaNNIndex(VECTORS[:100]).save(tmp_path / "index")
    assert len(tt.load_index(tmp_path / "index")) == 100
    spoil(tmp_path / "index" / "scann")
    with_true_checksums(tmp_path / "index")
    with pytest.raises(ValueError, match=message):
        tt.load_index(tmp_path / "index")


def rename_asset(folder: Path, name: str) -> None:
    text = (folder / "scann_assets.pbtxt").read_text()
    (folder / "scann_assets.pbtxt").write_text(text.replace("dataset.npy", name))


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


@pytest.mark.parametrize("kind", [tt.FlatIndex, tt.IVFIndex, tt.HNSWIndex, tt.ScaNNIndex])
def test_an_index_that_grew_and_shrank_finds_as_much_as_a_new_one(kind) -> None:  # type: ignore[no-untyped-def]
    sample = {} if kind is tt.FlatIndex else {"queries": QUERIES}
    index = kind(VECTORS[:3000], exact_below=0, **sample)
    for start in range(3000, 12_000, 1500):
        index.upsert(torch.arange(start, start + 1500), VECTORS[start : start + 1500])
    index.delete(torch.arange(0, 2000))
    index.upsert(torch.arange(2000, 2500), VECTORS[:500])  # replaced
    vectors = torch.cat([VECTORS[:500], VECTORS[2500:]])
    truth = tt.ExactIndex(vectors, torch.arange(2000, 12_000))
    scores, keys = index.search(QUERIES, 50)
    best = truth.search(QUERIES, 50)[1].numpy()
    assert recall_of(keys.numpy(), best) > 0.9
    true = (QUERIES[:, None] * vectors[keys - 2000]).sum(-1)
    torch.testing.assert_close(scores, true)
    index.delete(torch.arange(2001, 12_000))
    assert index.search(QUERIES, 1)[1].unique().tolist() == [2000]


def test_wrong_options_say_so() -> None:
    some = VECTORS[:100]
    for make, message in (
        (lambda: tt.IVFIndex(some, nlist=101), "nlist must be from 1 to the number of candidates, 100; got 101"),
        (lambda: tt.IVFIndex(some, nlist=8, nprobe=9), "nprobe must be from 1 to nlist, 8; got 9"),
        (lambda: tt.IVFIndex(some, target_recall=0.0), "target_recall must be above 0 and at most 1, got 0.0"),
        (lambda: tt.IVFIndex(some, queries=torch.ones(0, 16)), r"queries must be \(Q, 16\)"),
        (lambda: tt.HNSWIndex(some, queries=torch.full((1, 16), torch.inf)), r"queries must be \(Q, 16\)"),
        (lambda: tt.ScaNNIndex(some, num_leaves=0), "num_leaves must be from 1"),
        (lambda: tt.ScaNNIndex(some, num_leaves=3, leaves=4), "leaves must be from 1 to num_leaves, 3; got 4"),
        (lambda: tt.ScaNNIndex(some, compared=0), "compared at least 1"),
        (lambda: tt.HNSWIndex(some, neighbors=1), "neighbors must be at least 2"),
        (lambda: tt.ExactIndex(some, tile=0), "tile must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="FlatIndex: unknown option 'tile'"):
        tt.FlatIndex(some, tile=3)  # type: ignore[call-arg]


def test_a_filter_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = tt.ExactIndex(VECTORS, attributes=ATTRIBUTES)
    asked = []
    mask = tt.Filter.mask
    monkeypatch.setattr(tt.Filter, "mask", lambda self, frame: asked.append(len(frame)) or mask(self, frame))
    for _ in range(3):
        index.search(QUERIES, 5, where=tt.Filter.parse({"share": {"lt": 0.5}}))
    index.upsert([1], VECTORS[:1], ATTRIBUTES[:1])
    index.search(QUERIES, 5, where=tt.Filter.parse({"share": {"lt": 0.5}}))
    assert asked == [12_000, 12_001]  # the replaced one's old slot too


def test_report() -> None:
    indexes = {"all": EXACT, "lists": tt.IVFIndex(VECTORS, nprobe=1, exact_below=0)}
    table = tt.index_report(indexes, QUERIES, k=10)
    assert table["index"].to_list() == ["all", "lists"]
    assert table["recall"][0] == 1
    assert table["recall"][1] == pytest.approx(recall(indexes["lists"], 10))
    assert (table["p50_ms"] <= table["p99_ms"]).all()
    assert table["memory_mb"][0] > 12_000 * 16 * 4 / 1e6
    start = time.perf_counter()
    EXACT.search(QUERIES, 10)
    assert table["batch_qps"][0] == pytest.approx(300 / (time.perf_counter() - start), rel=10)
    names = tt.index_report([EXACT, EXACT], QUERIES[:2], k=1)["index"].to_list()
    assert names == ["exact 0", "exact 1"]
    with pytest.raises(ValueError, match="at least one index and one query"):
        tt.index_report([], QUERIES)


def test_scores_are_float32_inner_products_whatever_the_batch() -> None:
    """Bit for bit, in every kind: the order of addition does not depend on what else is searched."""
    flat, ivf = tt.FlatIndex(VECTORS, exact_below=0), tt.IVFIndex(VECTORS, exact_below=0, nlist=10, nprobe=10)
    expected = EXACT.search(QUERIES, 20)
    for index in (flat, ivf, tt.ExactIndex(VECTORS, tile=999)):
        scores, keys = index.search(QUERIES[7:8], 20)
        assert np.array_equal(scores, expected[0][7:8])
        assert np.array_equal(keys, expected[1][7:8])


def test_what_is_passed_over_was_not_among_the_best() -> None:
    """Many tiles of several blocks, scores that rise and fall along the catalogue, and equal ones in crowds."""
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randint(-3, 4, (5000, 4), generator=generator).float()
    vectors *= torch.linspace(0.1, 3, 5000).round()[:, None].clamp(min=1)
    queries = torch.randint(-3, 4, (40, 4), generator=generator).float()
    keys = torch.randperm(5000, generator=generator)
    index = tt.ExactIndex(vectors, keys, tile=700)
    scores, found = index.search(queries, 30)
    order = np.lexsort((keys.expand(40, -1).numpy(), -(queries @ vectors.T).numpy()), axis=1)[:, :30]
    assert np.array_equal(found, keys[order])
    assert np.array_equal(scores, (queries @ vectors.T).gather(1, torch.from_numpy(order)))


def test_what_one_query_finds_does_not_depend_on_what_others_exclude() -> None:
    random = np.random.default_rng(3)
    vectors = torch.from_numpy(random.normal(size=(4000, 16)).astype(np.float32))
    index = tt.IVFIndex(vectors, nlist=64, target_recall=0.7, exact_below=0)
    queries = torch.from_numpy(random.normal(size=(60, 16)).astype(np.float32))
    pairs = torch.tensor(
        [(row, key) for row in range(60) for key in random.choice(4000, row % 40, replace=False).tolist()]
    )
    scores, keys = index.search(queries, 10, exclude=pairs)
    for row in range(60):
        own = pairs[pairs[:, 0] == row] * torch.tensor([0, 1])
        alone = index.search(queries[row : row + 1], 10, exclude=own)
        assert torch.equal(alone[1][0], keys[row])
        assert torch.equal(alone[0][0], scores[row])


@pytest.mark.parametrize("kind", ["exact", "ivf"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda text: [],
        lambda text: {},
        lambda text: text | {"kind": ["x"]},
        lambda text: text | {"count": "50"},
        lambda text: text | {"count": 7},
        lambda text: text | {"dim": 9},
        lambda text: text | {"options": {}},
    ],
)
def test_an_index_json_that_was_changed_is_refused_in_words(kind: str, harm, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = INDEXES[kind](torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))  # type: ignore[call-arg]
    made.save(tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    file.write_text(json.dumps(harm(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match="is damaged"):
        tt.load_index(tmp_path / "index")
    file.write_text("{")
    with pytest.raises(ValueError, match="was changed or cut short"):
        tt.load_index(tmp_path / "index")
