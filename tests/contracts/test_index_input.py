"""What callers give to an index, in every form, and what they do at the same time: over all kinds."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from tests.contracts.test_indexes import CASES, D, Make, World, asked, same, truth


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Make, bool]:
    return CASES[request.param]


def test_numbers_may_lie_in_memory_as_they_like(case: tuple[Make, bool]) -> None:
    """Bit for bit the same scores: the caller's strides are not the order of addition."""
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    expected = index.search(queries, 9)
    turned = make(world.vectors.T.contiguous().T, *world.parts()[1:])
    apart = torch.stack([queries, queries], dim=2)[:, :, 0]
    for one, other in ((index, queries.T.contiguous().T), (turned, queries), (index, apart), (index, queries.double())):
        found = one.search(other, 9)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    index.upsert(world.keys[:50].astype(np.int32), world.vectors.T.contiguous().T[:50], world.attributes[:50])
    same(index.search(queries, 9), truth(world, queries, 9))


def test_keys_may_be_of_any_whole_type(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    some = world.keys[:20]
    expected = truth(world, queries, 3, only=torch.from_numpy(some))
    for only in (some.tolist(), some.astype(np.uint64), torch.from_numpy(some).int()):
        same(index.search(queries, 3, only=only), expected)
        assert torch.equal(index.vectors_of(only), world.vectors[:20])
    exclude = torch.stack([torch.arange(20) % 5, torch.from_numpy(some)], dim=1)
    same(index.search(queries, 7, exclude=exclude.int()), truth(world, queries, 7, exclude))


def test_the_smallest_and_largest_keys(case: tuple[Make, bool]) -> None:
    make, _ = case
    keys = [2**63 - 1, 0, 7]
    index = make(torch.eye(D)[:3], keys)
    assert index.search(torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0, 0.0]]), 3)[1].tolist() == [keys]
    if not isinstance(index, tt.QdrantIndex):  # whose ids are from 0 on
        index.upsert([-(2**63), -2], torch.eye(D)[3:5])
        found = index.search(torch.tensor([[3.0, 2.0, 1.0, 9.0, 8.0, 0.0]]), 5)[1]
        assert found.tolist() == [[-(2**63), -2, *keys]]
        index.delete([-2])
        assert sorted(index.keys.tolist()) == sorted([*keys, -(2**63)])


def test_what_are_no_keys(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    one, row = world.vectors[:1], world.attributes[:1]
    for keys in (
        np.array([1.5]),
        np.array(["a" * 1000]),
        np.array([2**63], dtype=np.uint64),
        np.array([[1]]),
        torch.tensor([True]),
        torch.tensor([1.0]),
        [2**64],
    ):
        for use in (
            lambda k=keys: index.upsert(k, one, row),
            lambda k=keys: index.delete(k),
            lambda k=keys: index.vectors_of(k),
            lambda k=keys: index.search(queries, 1, only=k),
        ):
            with pytest.raises(ValueError, match=r"keys must be \(N,\) integers of 64 bits, got shape"):
                use()
    with pytest.raises(ValueError, match="no candidate can have the key -1, which stands for none"):
        index.upsert([-1], one, row)
    for exclude in (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0.0, 1.5]]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"exclude must be \(pairs, 2\) whole numbers"):
            index._check_queries(queries, 1, exclude)  # the types of `search` refuse them before, in this run
    same(index.search(queries, 9), truth(world, queries, 9))


def test_numbers_beyond_float32(case: tuple[Make, bool]) -> None:
    """Not only what is inf itself: a product of large numbers would be inf or nan, and no order."""
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    with pytest.raises(ValueError, match="queries hold nan or inf"):
        index.search(queries.double() * 1e300, 1)
    with pytest.raises(ValueError, match="hold nan or inf"):
        index.upsert([1], world.vectors[:1].double() * 1e300 + 1e300, world.attributes[:1])
    if isinstance(index, tt.QdrantIndex):
        return
    with pytest.raises(ValueError, match="inner products of these queries may reach .* beyond float32"):
        index.search(queries * 3e37 + 1e37, 1)
    large = make(world.vectors * 2.0**50, *world.parts()[1:])
    assert torch.equal(large.search(queries * 2.0**50, 1)[1], truth(world, queries, 1)[1])


def test_an_index_may_become_empty_and_be_filled_again_after_loading(case: tuple[Make, bool], tmp_path: Path) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    index.delete(world.keys)
    index.save(tmp_path / "index")
    again = tt.load_index(tmp_path / "index")
    assert (len(again), again.dim, again.keys.tolist()) == (0, D, [])
    again.upsert(*(part[:30] for part in (world.keys, world.vectors, world.attributes)))
    rest = World(whole)
    rest.drop(world.keys[30:])
    same(again.search(queries, 5), truth(rest, queries, 5))


def test_a_save_beside_searches(case: tuple[Make, bool], tmp_path: Path) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    index = make(*world.parts())
    index.delete(world.keys[:3])  # so that structures are asked for what is left
    where = tt.Filter.parse({"share": {"gte": 0.2}})
    expected = index.search(queries, 5, where=where)
    # the embedded Qdrant is for one thread
    with ThreadPoolExecutor(1 if isinstance(index, tt.QdrantIndex) else 3) as threads:
        asking = [threads.submit(index.search, queries, 5, where=where) for _ in range(20)]
        if isinstance(index, tt.QdrantIndex):
            [one.result() for one in asking]
        for turn in range(3):
            index.save(tmp_path / "index")
            assert len(tt.load_index(tmp_path / "index")) == len(index), turn
        assert all(torch.equal(one.result()[1], expected[1]) for one in asking)


def test_the_callers_tables_and_vectors_may_change_afterwards(case: tuple[Make, bool]) -> None:
    make, whole = case
    world, queries = World(whole), asked(whole)
    vectors, attributes = world.vectors.clone(), world.attributes.clone()
    index = make(vectors, world.keys, attributes)
    vectors.zero_()
    attributes.insert_column(0, pl.Series("late", [0] * len(attributes)))
    assert dict(index.attribute_types or {}) == dict(world.attributes.schema)
    index.upsert(world.keys[:2], world.vectors[:2], world.attributes[:2])
    same(index.search(queries, 9), truth(world, queries, 9))
