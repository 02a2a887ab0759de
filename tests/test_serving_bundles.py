"""Bundles that come and go, broken ones among them: what is served stays whole."""

import asyncio
import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

import twotower as tt
from twotower.serving import service as service_module
from twotower.serving.app import make_app
from twotower.serving.instruments import Instruments
from twotower.serving.live import Live, bundle_folder
from twotower.serving.problems import Problem
from twotower.serving.service import Service
from twotower.serving.settings import Settings

from . import serving_world as world
from .serving_world import Client, post, same, wait_for


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of the same items, `one` and `two`."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("one", "two")):
        world.make_retriever(seed).save(folder / name)
    return folder


@pytest.fixture
def served(bundles: Path, tmp_path: Path) -> Path:
    """A copy of bundle `one`, to be harmed."""
    shutil.copytree(bundles / "one", tmp_path / "served")
    return tmp_path / "served"


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> tt.Retriever:
    return tt.Retriever.load(bundles / "one")


def test_a_new_bundle_is_served_and_a_broken_one_refused(served: Path, bundles: Path, retriever: tt.Retriever) -> None:
    other = tt.Retriever.load(bundles / "two")
    front, _ = make_app(Live(served), Settings(watch=0, explorer=False))
    with TestClient(front) as client:
        first = client.get("/").json()["version"]
        same(post(client, {"user": 5})["results"], retriever.recommend_users([5]))
        weights = served / "model" / "weights.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1])
        refusal = post(client, None, "/reload", 409)
        assert "model/weights.safetensors was changed or cut short" in refusal["error"]
        assert f"{first} is served on" in refusal["hint"]
        same(post(client, {"user": 5})["results"], retriever.recommend_users([5]))
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert "cut short" in ready.json()["refused"]
        weights.write_bytes(whole)
        other.save(served)
        assert post(client, None, "/reload")["version"] != first
        same(post(client, {"user": 5})["results"], other.recommend_users([5]))
        assert client.get("/health/ready").json()["refused"] is None
        counted = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }
        assert counted["twotower_reloads_total", "served"] == 1
        assert counted["twotower_reloads_total", "refused"] == 1
        assert counted["twotower_bundle_refused",] == 0
        assert counted["twotower_requests_total", "recommend", "200"] == 3
        assert counted["twotower_requests_total", "reload", "409"] == 1
        assert counted["twotower_batch_size_count",] == 3
        assert counted["twotower_items",] == 200
        shutil.rmtree(served)
        assert "manifest.json is missing" in post(client, None, "/reload", 409)["error"]
        same(post(client, {"user": 5})["results"], other.recommend_users([5]))


def test_the_manifest_is_watched(served: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that is broken for a while, as one that is copied file by file, is served once it is whole."""
    monkeypatch.setattr(service_module, "RETRY", (0.05,))
    front, service = make_app(Live(served), Settings(watch=0.02, explorer=False))
    with TestClient(front) as client:
        first = client.get("/").json()["version"]
        shutil.copy(bundles / "two" / "manifest.json", served / "manifest.json")  # the files do not fit it yet
        wait_for(lambda: client.get("/health/ready").json()["refused"] is not None)
        assert client.get("/").json()["version"] == first
        assert client.get("/recommend/3").status_code == 200
        shutil.copytree(bundles / "two", served, dirs_exist_ok=True)
        wait_for(lambda: client.get("/").json()["version"] != first)
        assert client.get("/health/ready").json()["refused"] is None
        # put back what is served after something broken: nothing is wrong any more
        text = (served / "manifest.json").read_text()
        (served / "manifest.json").write_text("{")
        wait_for(lambda: service.live.refused is not None)
        (served / "manifest.json").write_text(text)
        wait_for(lambda: service.live.refused is None)


def test_no_request_fails_while_bundles_come_and_go(served: Path, bundles: Path, retriever: tt.Retriever) -> None:
    """Every answer is that of the one bundle or of the other."""
    both = [retriever, tt.Retriever.load(bundles / "two")]
    expected = {tuple(r.recommend_users([5])["score"].to_list()) for r in both}
    front, _ = make_app(Live(served), Settings(watch=0, explorer=False))
    seen, failed, stop = set(), [], threading.Event()

    def load(client: Client) -> None:
        while not stop.is_set():
            response = client.post("/recommend", json={"user": 5})
            if response.status_code == 200:
                seen.add(tuple(np.float32(one["score"]).item() for one in response.json()["results"]))
            else:
                failed.append(response.text)

    with TestClient(front) as client:
        threads = [threading.Thread(target=load, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            both[1 - number % 2].save(served)
            post(client, None, "/reload")
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert seen == expected


def test_a_run_folder_serves_its_bundle(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "one", tmp_path / "run" / "bundle")
    assert Live(tmp_path / "run").name == "run"
    assert bundle_folder(tmp_path / "run") == tmp_path / "run" / "bundle"
    assert bundle_folder(tmp_path / "run" / "bundle") == tmp_path / "run" / "bundle"
    with pytest.raises(ValueError, match="no bundle at"):
        Live(tmp_path).load()


def test_the_explorer_holds_no_bundle_that_was_served_before(bundles: Path) -> None:
    front, service = make_app(Live(bundles / "one"), Settings(watch=0))
    with TestClient(front) as client:
        for path in ("/explore", "/explore/search?q=title", "/items?search=title", "/items/i3"):
            assert client.get(path).status_code == 200
        before = weakref.ref(service.live.current.retriever)
        assert client.post("/reload").status_code == 200
        gc.collect()
        assert before() is None


def test_what_was_refused_stays_refused_until_a_load_succeeds(bundles: Path, tmp_path: Path) -> None:
    """The manifest is that of what is served, and the weights below it are broken."""
    served = tmp_path / "served"
    shutil.copytree(bundles / "one", served)
    weights = served / "model" / "weights.safetensors"
    whole = weights.read_bytes()

    async def main() -> None:
        live = Live(served)
        service = Service(live, Settings(watch=0), Instruments())
        await service.load()
        weights.write_bytes(whole[:-1])
        for force in (True, False, False):
            with pytest.raises(Problem, match="cut short"):
                await service.reload(force=force)
            assert live.refused is not None
        weights.write_bytes(whole)
        await service.reload()
        assert live.refused is None
        service.close()

    asyncio.run(main())


def test_the_watch_outlives_whatever_happens(bundles: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        live = Live(bundles / "one")
        service = Service(live, Settings(watch=0.001), Instruments())
        await service.load()
        raised: list[Exception] = []
        done = asyncio.Event()

        async def reload(force: bool = False) -> None:
            if len(raised) < 3:
                raised.append(Problem(409, "of another") if len(raised) == 1 else RuntimeError("odd"))
                raise raised[-1]
            done.set()

        service.reload = reload  # type: ignore[method-assign]
        live.refused = "something"
        watching = asyncio.ensure_future(service.watch())
        await asyncio.wait_for(done.wait(), 20)
        watching.cancel()
        service.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "RETRY", (0.0,))
        asyncio.run(main())
    assert caplog.text.count("RuntimeError: odd") == 2


def test_a_forced_reload_is_not_content_with_one_that_began_before(bundles: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(bundles / "one", served)

    async def main() -> None:
        live = Live(served)
        service = Service(live, Settings(watch=0), Instruments())
        await service.load()
        load, go, begun = live.load, threading.Event(), threading.Event()

        def slow() -> Any:
            found = load()
            begun.set()
            assert go.wait(30)
            return found

        live.load = slow  # type: ignore[method-assign]
        first = asyncio.ensure_future(service.reload(force=True))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        world.make_retriever(1).save(served)
        second = asyncio.ensure_future(service.reload(force=True))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, second)
        assert live.current.version == live.version_there()
        service.close()

    asyncio.run(main())
