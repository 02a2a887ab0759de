"""What every index must do: one suite over all kinds. The truth is a slow loop over all candidates."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import twotower as tt
from twotower.indexes.kinds import INDEXES

Make = Callable[..., tt.Index]
# a kind, and whether it compares all that is allowed, so that even equal scores at place k come in order
CASES: dict[str, tuple[Make, bool]] = {
    "exact": (tt.ExactIndex, True),
    "exact, small tiles": (lambda *world: tt.ExactIndex(*world, tile=7), True),
    "flat": (tt.FlatIndex, True),
    "flat, its codes": (lambda *world: tt.FlatIndex(*world, exact_below=0), False),
    "ivf": (tt.IVFIndex, True),
    "ivf, every list": (lambda *world: tt.IVFIndex(*world, exact_below=0, **every_list(world[0])), False),
    "hnsw": (tt.HNSWIndex, True),
    "hnsw, its graph": (lambda *world: tt.HNSWIndex(*world, exact_below=0, neighbors=128, ef_search=1000), False),
    "scann": (tt.ScaNNIndex, True),
    "scann, its codes": (lambda *world: tt.ScaNNIndex(*world, exact_below=0), False),
    "qdrant": (tt.QdrantIndex, True),
}
N, D = 200, 6


def every_list(vectors: Tensor) -> dict[str, int]:
    lists = max(1, min(9, len(vectors)))
    return {"nlist": lists, "nprobe": lists}


class World:
    """Candidates with keys in no order and attributes; integers as vectors make many equal scores."""

    def __init__(self, whole: bool, rows: int = N, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.keys = rng.choice(10_000, rows, replace=False).astype(np.int64)
        drawn = rng.integers(-2, 3, (rows, D)) if whole else rng.normal(size=(rows, D))
        self.vectors = torch.from_numpy(drawn.astype(np.float32))
        self.attributes = pl.DataFrame(
            {
                "share": rng.random(rows),
                "grade": pl.Series(np.arange(rows) % 5 / 10, dtype=pl.Float32),
                "year": pl.Series(rng.integers(1950, 2020, rows).tolist(), dtype=pl.Int32),
                "genres": [
                    rng.choice(["Drama", "War", "Noir"], n, replace=False).tolist() for n in rng.integers(0, 4, rows)
                ],
                "brand": [None if x < 0.2 else "ab"[int(2 * x) % 2] for x in rng.random(rows)],
            }
        )

    def parts(self) -> tuple[Tensor, Tensor, pl.DataFrame]:
        return self.vectors, torch.from_numpy(self.keys), self.attributes

    def put(self, other: "World", keys: np.ndarray) -> None:
        """What upsert should do."""
        table = {key: (v, a) for key, v, a in zip(self.keys, self.vectors, self.attributes.rows(), strict=True)}
        table |= {key: (v, a) for key, v, a in zip(keys, other.vectors, other.attributes.rows(), strict=True)}
        self._set(table)

    def drop(self, keys: np.ndarray) -> None:
        table = {key: (v, a) for key, v, a in zip(self.keys, self.vectors, self.attributes.rows(), strict=True)}
        self._set({key: row for key, row in table.items() if key not in set(keys.tolist())})

    def _set(self, table: dict[int, tuple[Tensor, tuple[object, ...]]]) -> None:
        self.keys = np.array(list(table), dtype=np.int64)
        self.vectors = torch.stack([v for v, _ in table.values()])
        self.attributes = pl.DataFrame([a for _, a in table.values()], schema=self.attributes.schema, orient="row")


def truth(  # type: ignore[no-untyped-def]
    world: World, queries: Tensor, k: int, exclude: Tensor | None = None, only: Tensor | None = None, meets=None
) -> tuple[Tensor, Tensor]:
    scores, keys = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), -1)
    pairs = set() if exclude is None else {tuple(pair) for pair in exclude.tolist()}
    among = set(world.keys.tolist()) if only is None else set(only.tolist())
    met = [meets is None or meets(row) for row in world.attributes.iter_rows(named=True)]
    allowed = [at for at, key in enumerate(world.keys.tolist()) if key in among and met[at]]
    products = (queries.double() @ world.vectors.double().T).tolist()
    for q, product in enumerate(products):
        found = sorted((-product[at], int(world.keys[at])) for at in allowed if (q, int(world.keys[at])) not in pairs)
        for place, (score, key) in enumerate(found[:k]):
            scores[q, place], keys[q, place] = -score, key
    return scores, keys


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert found[0].dtype == torch.float32
    assert found[1].dtype == torch.int64
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], expected[1])


def asked(whole: bool, rows: int = 5, seed: int = 1) -> Tensor:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(-2, 3, (rows, D)) if whole else rng.normal(size=(rows, D))
    return torch.from_numpy(drawn.astype(np.float32))


FILTERS = {
    "all": ({"share": {"gte": 0}}, lambda row: True),
    "half": ({"share": {"lt": 0.5}}, lambda row: row["share"] < 0.5),
    "a tenth": ({"share": {"lt": 0.1}}, lambda row: row["share"] < 0.1),
    "a few": ({"share": {"lt": 0.01}}, lambda row: row["share"] < 0.01),
    "none": ({"share": {"lt": 0}}, lambda row: False),
    "years and genre": (
        {"year": {"gte": 1980, "lt": 2000}, "genres": "War"},
        lambda row: 1980 <= row["year"] < 2000 and "War" in row["genres"],
    ),
    "not a genre": ({"genres": {"ne": "War"}}, lambda row: "War" not in row["genres"]),
    "a grade": ({"grade": 0.1}, lambda row: round(row["grade"], 5) == 0.1),
    "not a grade": ({"grade": {"not_in": [0.1, 0.3]}}, lambda row: round(row["grade"], 5) not in (0.1, 0.3)),
    "brand": ({"brand": {"not_in": ["a"]}}, lambda row: row["brand"] not in ("a", None)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Make, bool]:
    return CASES[request.param]


def test_the_nearest_come_first(case: tuple[Make, bool]) -> None:
    make, whole = case
    world = World(whole)
    index = make(*world.parts())
    assert len(index) == N
    assert index.dim == D
    assert sorted(index.keys.tolist()) == sorted(world.keys.tolist())
    for k in (1, 10, N):
        same(index.search(asked(whole), k), truth(world, asked(whole), k))
    one = index.search(asked(whole)[:1], 10)
    assert torch.equal(one[0], index.search(asked(whole), 10)[0][:1])  # bit for bit, in any batch
    assert index.search(asked(whole)[:0], 3)[0].shape == (0, 3)


def test_the_same_kind_over_other_candidates(case: tuple[Make, bool]) -> None:
    make, whole = case
    old, new = World(whole), World(whole, seed=9)
    index = make(*old.parts())
    if isinstance(index, tt.QdrantIndex):
        with pytest.raises(ValueError, match="cannot be made anew while it is searched"):
            index.rebuilt(*new.parts())
        return
    made = index.rebuilt(*new.parts())
    assert type(made) is type(index)
    expected = truth(new, asked(whole), 10)[1]
    found = made.search(asked(whole), 10)[1]
    assert np.mean([len(set(f) & set(e)) for f, e in zip(found.tolist(), expected.tolist(), strict=True)]) >= 8
    same(index.search(asked(whole), 10), truth(old, asked(whole), 10))
    kept = [name for name in index.options if name not in index.found]  # type: ignore[attr-defined]
    assert [getattr(made, name) for name in kept] == [getattr(index, name) for name in kept]


def test_equal_scores_come_by_key(case: tuple[Make, bool]) -> None:
    make, _ = case
    index = make(torch.ones(50, D), torch.arange(50).flip(0) * 3)
    found = index.search(torch.ones(2, D), 50)[1]
    assert torch.equal(found, (torch.arange(50) * 3).expand(2, -1))


@pytest.mark.parametrize("name", FILTERS)
def test_filters_exclusions_and_whitelists(case: tuple[Make, bool], name: str) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    conditions, meets = FILTERS[name]
    where = tt.Filter.parse(conditions)
    rng = np.random.default_rng(2)
    banned = [
        (row, int(key))
        for row, n in enumerate((0, 1, 20, 150, 190))
        for key in rng.choice(world.keys, n, replace=False)
    ]
    exclude = torch.tensor([*banned, banned[0], (0, 10_002)])
    for k in (3, 40):
        same(index.search(queries, k, where=where), truth(world, queries, k, meets=meets))
        for share in (0.01, 0.3, 1.0):
            only = torch.from_numpy(rng.choice(world.keys, max(1, int(share * N)), replace=False))
            only = torch.cat([only, torch.tensor([10_001])])  # no candidate
            found = index.search(queries, k, exclude=exclude, only=only, where=where)
            same(found, truth(world, queries, k, exclude, only, meets))
    for row in queries:  # all at once or one by one
        assert torch.equal(index.search(row[None], 3, where=where)[1], truth(world, row[None], 3, meets=meets)[1])
    assert index.search(queries, 3, only=torch.zeros(0, dtype=torch.int64))[1].tolist() == [[-1] * 3] * 5


def test_each_alone(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    rng = np.random.default_rng(2)
    for share in (0.01, 0.3, 1.0):
        only = torch.from_numpy(rng.choice(world.keys, max(1, int(share * N)), replace=False))
        exclude = torch.stack([torch.arange(len(only)) % 5, only], dim=1)
        for k in (3, 40):
            same(index.search(queries, k, only=only), truth(world, queries, k, only=only))
            same(index.search(queries, k, exclude=exclude), truth(world, queries, k, exclude))


def test_the_excluded_are_the_best(case: tuple[Make, bool]) -> None:
    """Who has seen the nearest gets the next, however many."""
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    for seen in (1, 30, 100, N):
        _, keys = truth(world, queries, seen)
        exclude = torch.stack([torch.arange(5).repeat_interleave(seen), keys.flatten()], dim=1)
        same(index.search(queries, 20, exclude=exclude), truth(world, queries, 20, exclude))


def test_upsert_and_delete_are_a_new_index(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    where, meets = tt.Filter.parse(FILTERS["half"][0]), FILTERS["half"][1]
    rng = np.random.default_rng(3)
    index.search(queries, 5, where=where)
    for turn in range(6):
        fresh = World(whole, rows=(1, 7, 40, 40, 200, 3)[turn], seed=10 + turn)
        some = rng.permutation(fresh.keys)[: len(fresh.keys) // 2]
        old = rng.choice(np.setdiff1d(world.keys, fresh.keys), len(fresh.keys) - len(some), replace=False)
        keys = np.concatenate([some, old])  # new ones, and some that are there
        index.upsert(torch.from_numpy(keys), fresh.vectors, fresh.attributes)
        world.put(fresh, keys)
        same(index.search(queries, 9), truth(world, queries, 9))
        gone = rng.choice(world.keys, (1, 3, 60, 1, 100, 150)[turn], replace=False)
        index.delete(gone)
        world.drop(gone)
        assert len(index) == len(world.keys)
        assert sorted(index.keys.tolist()) == sorted(world.keys.tolist())
        exclude = torch.stack([torch.arange(5), torch.from_numpy(gone[:1]).expand(5)], dim=1)
        same(index.search(queries, 9, exclude=exclude), truth(world, queries, 9))
        same(index.search(queries, 9, where=where), truth(world, queries, 9, meets=meets))
        at = rng.permutation(len(world.keys))[:4]
        assert torch.equal(index.vectors_of(world.keys[at]), world.vectors[at])
    index.delete(world.keys)
    assert len(index) == 0
    with pytest.raises(ValueError, match="k must be from 1 to the number of candidates, 0; got 1"):
        index.search(queries, 1)
    index.upsert(fresh.keys, fresh.vectors, fresh.attributes)
    same(index.search(queries, 2), truth(fresh, queries, 2))


def test_the_same_after_save_and_load(case: tuple[Make, bool], tmp_path: Path) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    index.delete(world.keys[:5])
    index.save(tmp_path / "index")
    text = json.loads((tmp_path / "index" / "index.json").read_text())
    assert {name: text[name] for name in ("kind", "dim", "count")} == {"kind": index.kind, "dim": D, "count": N - 5}
    assert not [file for file in (tmp_path / "index").rglob("*") if file.suffix in (".pkl", ".pickle", ".pt")]
    where = tt.Filter.parse(FILTERS["half"][0])
    asking = ({}, {"where": where}, {"exclude": torch.tensor([[1, int(world.keys[7])]])})
    before = [index.search(queries, 8, **how) for how in asking]
    again = tt.load_index(tmp_path / "index")
    assert type(again) is type(index)
    assert (len(again), again.dim, dict(again.attribute_types or {})) == (N - 5, D, dict(index.attribute_types or {}))
    for how, one in zip(asking, before, strict=True):
        other = again.search(queries, 8, **how)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    again.upsert(world.keys[:5], world.vectors[:5], world.attributes[:5])
    same(again.search(queries, 8), truth(world, queries, 8))
    with pytest.raises(ValueError, match="no index at"):
        type(index).load(tmp_path)
    (tmp_path / "index" / "index.json").write_text(json.dumps(text | {"kind": "other"}))
    with pytest.raises(ValueError, match=f"holds an index of kind 'other', not '{index.kind}'"):
        type(index).load(tmp_path / "index")


def test_a_single_candidate_and_default_keys(case: tuple[Make, bool]) -> None:
    make, _ = case
    index = make(torch.ones(1, D))
    assert index.search(torch.ones(2, D), 1)[1].tolist() == [[0], [0]]
    assert index.attribute_types is None


def test_bad_input(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    nan = torch.full((1, D), float("nan"))
    two = torch.ones(2, D)
    for k in (0, -1, N + 1):
        with pytest.raises(ValueError, match=f"k must be from 1 to the number of candidates, {N}; got {k}"):
            index.search(queries, k)
    with pytest.raises(ValueError, match="queries have width 7, the index holds vectors of width 6"):
        index.search(torch.ones(2, 7), 1)
    for bad in (nan, nan.nan_to_num(torch.inf)):
        with pytest.raises(ValueError, match="queries hold nan or inf"):
            index.search(bad, 1)
        with pytest.raises(ValueError, match="1 of 1 candidate vectors hold nan or inf"):
            index.upsert([1], bad, world.attributes[:1])
    for row in (-1, 5):
        with pytest.raises(ValueError, match="exclude names query rows out of range: there are 5 queries"):
            index.search(queries, 1, exclude=torch.tensor([[row, 3]]))
    with pytest.raises(ValueError, match="unknown attribute 'yaer'.*Did you mean 'year'"):
        index.search(queries, 1, where=tt.Filter.parse({"yaer": 3}))
    with pytest.raises(ValueError, match="compares attribute 'year'"):
        index.search(queries, 1, where=tt.Filter.parse({"year": "1990"}))
    with pytest.raises(ValueError, match="the index holds no attributes to filter by"):
        make(two).search(two, 1, where=tt.Filter.parse({"year": 3}))
    with pytest.raises(ValueError, match="keys must be different: 1 of 2 repeat"):
        make(two, torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="2 candidate vectors came with 3 keys"):
        make(two, torch.arange(3))
    with pytest.raises(ValueError, match="2 candidates came with 3 rows of attributes"):
        make(two, None, world.attributes[:3])
    with pytest.raises(ValueError, match="at least one candidate"):
        make(torch.ones(0, D))
    with pytest.raises(ValueError, match="1 of 1 candidate vectors hold nan or inf"):
        make(nan)


def test_changes_are_all_or_nothing(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    two, rows = torch.full((2, D), 9.0), world.attributes[:2]
    known = int(world.keys[0])
    wrong = rows.with_columns(year=pl.lit("x"))
    for keys, vectors, attributes, message in (
        ([20_000, 20_000], two, rows, "keys must be different"),
        ([20_000, known], torch.ones(2, 7), rows, "have width 7, the index holds vectors of width 6"),
        ([20_000], two, rows[:1], "2 candidate vectors came with 1 keys"),
        ([20_000, known], two, None, "the index holds attributes, .*: give those of the new candidates too"),
        ([20_000, known], two, rows[:1], "2 candidates came with 1 rows"),
        ([20_000, known], two, rows.drop("year"), "lack a column that the index holds: unknown column 'year'"),
        ([20_000, known], two, rows.with_columns(x=1), "have a column that the index lacks: unknown column 'x'"),
        ([20_000, known], two, wrong, "do not fit the types"),
    ):
        with pytest.raises(ValueError, match=message):
            index.upsert(keys, vectors, attributes)
    with pytest.raises(ValueError, match="1 of 2 keys are no candidates of the index, such as 20000"):
        index.delete([known, 20_000])
    with pytest.raises(ValueError, match="keys must be different"):
        index.delete([known, known])
    with pytest.raises(ValueError, match="1 of 1 keys are no candidates"):
        index.vectors_of([20_000])
    with pytest.raises(ValueError, match="the index holds no attributes: build it with them"):
        make(two).upsert([5], two[:1], rows[:1])
    index.delete([])
    index.upsert([], torch.ones(0, D), rows[:0])
    same(index.search(queries, 7), truth(world, queries, 7))


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        (tt.FlatIndex, "faiss", "index"),
        (tt.IVFIndex, "faiss", "index"),
        (tt.HNSWIndex, "faiss", "index"),
        (tt.ScaNNIndex, "scann", "scann"),
        (tt.QdrantIndex, "qdrant_client", "qdrant"),
    ],
)
def test_what_is_missing_is_named(kind: Make, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(
        ImportError, match=rf"needs {module}, which cannot be imported .*pip install 'twotower\[{extra}\]'"
    ):
        kind(torch.eye(3))


def test_every_kind_has_its_case() -> None:
    assert {make(torch.eye(3)).kind for make, _ in CASES.values()} == set(INDEXES)
