"""A popularity that is counted: what it adds to a score, that training does not learn it again, and how fast it fades."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from tests.worlds import id_column
from twotower import Tags
from twotower.config.config import Config
from twotower.data.batch import Batch
from twotower.data.fading import FLOOR, faded_counts, half_life
from twotower.experiment.run import encode, fit_model
from twotower.experiment.tables import Tables
from twotower.nightly.learning import learn
from twotower.training.checkup import Checkup

T = 0.5
USER, ITEM = id_column("user", Tags.USER_ID, 3), id_column("item", Tags.ITEM_ID, 2)
BATCH: Batch = {"user": torch.tensor([0, 1, 2, 3]), "item": torch.tensor([0, 0, 1, 2])}


def towers(prior: bool, **more: Any) -> tt.RetrievalModelV2:
    """The same weights with and without."""
    torch.manual_seed(0)
    query = tt.Encoder(tt.Schema([USER]), tt.MLPBlock([4]), post=tt.L2Norm(), prior=tt.PriorWeight() if prior else None)
    own = tt.PopularityPrior(ITEM, T) if prior else None
    candidate = tt.Encoder(tt.Schema([ITEM]), tt.MLPBlock([4]), post=tt.L2Norm(), prior=own)
    model = tt.TwoTowerModelV2(query, candidate, logits_temperature=T, **more)
    if own is not None:
        own.set_shares(trained=torch.tensor([0.5, 0.25, 0.25]), served=torch.tensor([0.1, 0.1, 0.8]))
    return model


def test_the_score_is_that_of_the_towers_and_t_log_p() -> None:
    plain, with_prior = towers(prior=False).eval(), towers(prior=True)
    log_p = {True: [0.5, 0.5, 0.25, 0.25], False: [0.1, 0.1, 0.1, 0.8]}  # of the items 0, 0, 1, 2
    for training, share in log_p.items():
        with_prior.train(training)
        added = with_prior(BATCH)[:, 0] - plain(BATCH)[:, 0]
        torch.testing.assert_close(added, T * torch.tensor(share).log())


def test_in_batch_the_prior_and_the_correction_cancel() -> None:
    """The batch holds the items as the data do: log p less log E is the same for all, and a softmax does not see it."""
    corrected, uncorrected = towers(prior=True), towers(prior=False, logq_sampling_correction=False)
    for model in (corrected, uncorrected):
        model.adapt({name: column.numpy() for name, column in BATCH.items()})
        model.train()
    torch.testing.assert_close(corrected.loss(BATCH), uncorrected.loss(BATCH))
    served = towers(prior=True)
    served.adapt({name: column.numpy() for name, column in BATCH.items()})
    assert not torch.isclose(served.eval().loss(BATCH), uncorrected.loss(BATCH), atol=1e-3)


def test_it_is_not_trained_and_is_saved(tmp_path: Path) -> None:
    model = towers(prior=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = {name: column.numpy() for name, column in BATCH.items()}
    model.compile(learning_rate=0.1)
    model.fit(tt.Dataset(data, tt.Schema([USER, ITEM])), batch_size=4, epochs=2, verbose=False)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("prior" in name for name in changed)
    model.save(tmp_path / "model")
    torch.testing.assert_close(tt.RetrievalModelV2.load(tmp_path / "model").eval()(BATCH), model.eval()(BATCH))


def test_every_position_of_a_history_is_weighed() -> None:
    seen = tt.ColumnSchema(
        "seen",
        [Tags.CATEGORICAL, Tags.USER],
        "int64",
        is_list=True,
        properties={"domain": {"min": 0, "max": 2, "name": "item"}},
    )
    tables = tt.Embeddings(tt.Schema([seen]), 4, sequence_combiner={"seen": tt.HistoryBag(4)})
    tower = tt.Encoder(tt.InputBlockV2(tt.Schema([seen]), categorical=tables), tt.MLPBlock([4]), prior=tt.PriorWeight())
    batch: Batch = {"seen": tt.Ragged(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3]))}
    every = tower.eval().every_position(batch, "seen")
    assert every.values[:, -1].tolist() == [10.0] * 5
    torch.testing.assert_close(every.values[every.offsets[1:] - 1], tower(batch))


def test_health_looks_at_what_is_learnt() -> None:
    found = []
    for model in (towers(prior=False), towers(prior=True)):
        data = tt.Dataset({name: column.numpy() for name, column in BATCH.items()}, tt.Schema([USER, ITEM]))
        model.adapt(data)
        health = Checkup(model, data).measure(BATCH, {}, 0, epoch_end=False, lists=False)
        found.append((health.query.mean_cosine, health.candidate.norm, health.logit_spread))
    assert found[0] == pytest.approx(found[1])


def test_where_the_prior_would_be_weighed_otherwise_is_refused() -> None:
    def build(temperature: Any, **more: Any) -> None:
        query = tt.Encoder(tt.Schema([USER]), tt.MLPBlock([4]), prior=tt.PriorWeight())
        candidate = tt.Encoder(tt.Schema([ITEM]), tt.MLPBlock([4]), prior=tt.PopularityPrior(ITEM, T))
        output = tt.ContrastiveOutput(tt.DotProduct(), schema=tt.Schema([ITEM]), logits_temperature=temperature, **more)
        tt.TwoTowerModelV2(query, candidate, outputs=output)

    build(T)
    with pytest.raises(ValueError, match=r"temperature 0.5 and the output 1.0, but the prior stands for log p only"):
        build(1.0)
    with pytest.raises(ValueError, match="a learned one cannot be had beside a prior"):
        build(tt.LearnedTemperature(T))
    with pytest.raises(ValueError, match=r"prefixes \(2,\) cut the PopularityPrior off"):
        build(T, prefixes=(2,))


def test_unfreezing_a_tower_does_not_train_it() -> None:
    model = towers(prior=True)
    model.requires_grad_(False).requires_grad_(True)
    before = prior_of(model).trained.weight.clone()
    data = {name: column.numpy() for name, column in BATCH.items()}
    model.compile(learning_rate=0.1)
    model.fit(tt.Dataset(data, tt.Schema([USER, ITEM])), batch_size=4, epochs=2, verbose=False)
    assert torch.equal(prior_of(model).trained.weight, before)


def test_shares_must_be_of_every_id_and_above_zero() -> None:
    prior = tt.PopularityPrior(ITEM, T)
    good = torch.ones(3)
    for bad in (torch.ones(2), torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match="a share above 0 for each of the 3 ids of 'item'"):
            prior.set_shares(trained=good, served=bad)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        tt.PopularityPrior(ITEM, 0)


def test_it_counts_what_is_late() -> None:
    """Nine events of 0 long ago, then one of 1: what is trained on is the same share for all, what is served is 1."""
    prior = tt.PopularityPrior(ITEM, T)
    ids, times = np.array([1] + [0] * 9 + [1] * 3), np.array([1002, *range(9), 1000, 1001, 1003])
    half = prior.count(ids, times, trained=torch.tensor([0, 0, 0, 1]))
    trained, served = prior.trained.weight[:, 0].exp(), prior.served.weight[:, 0].exp()
    torch.testing.assert_close(trained, torch.tensor([3.1, 1.1, 0.1]) / 4.3 * 2)
    expected = np.array(
        [sum(0.5 ** ((1003 - t) / half) for i, t in zip(ids, times, strict=True) if i == n) for n in range(3)]
    )
    np.testing.assert_allclose(served, (expected + 0.1) / (expected + 0.1).sum() * 2, rtol=1e-5)
    assert served[1] > 10 * served[0]


@pytest.mark.parametrize(
    ("ids", "times", "said"),
    [
        (
            [],
            [],
            "ids must be encoded ids of 'item', whole numbers from 0 to 2, one for each event; got float64 of shape",
        ),
        ([0, 3], [1, 2], r"got int64 of shape \(2,\) from 0 to 3"),
        ([0, -1], [1, 2], "from -1 to 0"),
        (["a"], [1], "ids must be encoded"),
        ([0, 1], [1], r"times must be a number for each of the 2 events, .*; got int64 of shape \(1,\)"),
        ([0, 1], [1.0, float("nan")], "1 of 2 times are missing"),
        ([0], np.array(["2020-01-01"], dtype="datetime64[s]"), r"times must be a number .*; got datetime64\[s\]"),
    ],
)
def test_what_cannot_be_counted(ids: Any, times: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tt.PopularityPrior(ITEM, T).count(ids, times)


# ---- how fast popularity fades


def test_an_event_counts_half_after_a_half_life() -> None:
    counts = faded_counts(np.array([0, 0, 1, 2]), np.array([0.0, 20.0, 10.0, 30.0]), now=30.0, half_life=10.0, size=4)
    np.testing.assert_allclose(counts, [1 / 8 + 1 / 2, 1 / 4, 1, 0])


def hits(number: int, reigns: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Events at moments 0 to 1, of 200 items; one of them has half of the events, another one after each reign."""
    rng, times = np.random.default_rng(seed), np.linspace(0, 1, number)
    is_hit = rng.random(number) < 0.5
    return np.where(is_hit, (times / reigns).astype(int), rng.integers(0, 200, number)), times


def test_the_half_life_follows_how_long_hits_last() -> None:
    found = [half_life(*hits(20_000, reigns)) for reigns in (1.0, 0.15, 0.02)]
    assert found[0] == 1  # nothing changes: everything counts
    assert found[0] > found[1] > found[2]
    assert found[2] <= 0.02
    assert half_life(*(given[::-1][::-1] for given in hits(20_000, 0.15))) == found[1]
    ids, times = hits(20_000, 0.15)
    assert half_life(ids, times * 86400) == pytest.approx(found[1] * 86400)  # whatever the unit


def test_the_half_life_is_that_of_the_largest_likelihood_counted_slowly() -> None:
    ids, times = hits(400, 0.1, seed=3)

    def likelihood(half: float) -> float:
        total = 0.0
        for block in range(10):  # of 8 rows: tenths of the last 80
            start = 320 + 8 * block
            for row in range(start, start + 8):
                weight = 0.5 ** ((times[start] - times[:start]) / half)
                own, every = weight[ids[:start] == ids[row]].sum(), weight.sum()
                total += np.log((own + FLOOR) / (every + FLOOR * (ids.max() + 1)))
        return float(total)

    assert half_life(ids, times) == max([1 / 2**k for k in range(13)], key=likelihood)


@pytest.mark.parametrize("number", [1, 2, 3, 11])
def test_few_rows_or_one_moment_will_do(number: int) -> None:
    assert half_life(np.arange(number), np.arange(number, dtype=float)) > 0
    assert half_life(np.zeros(number, int), np.full(number, 5.0)) == 1


# ---- in a run


def config() -> Config:
    entries = {"what": {"kind": "categorical", "tags": ["item_id"]}}
    given = {
        "data": {"interactions": "clicks.parquet", "user": "who", "item": "what", "time": "at"},
        "columns": entries,
        "history": {"length": 3},
        "model": {"dim": 4, "popularity": "recent", "temperature": T},
        "training": {"epochs": 1, "batch_size": 64, "stop_early": None, "health_steps": 0},
    }
    return Config.from_dict(given)


def tables() -> Tables:
    """An old hit, a, and a late one, z, which few events are of; the item n has none."""
    number = 400
    what = ["a"] * 300 + ["b", "c"] * 30 + ["z"] * 40
    rows = pl.DataFrame({"who": [n % 20 for n in range(number)], "what": what, "at": range(number)})
    empty = rows.clear()
    return Tables(
        rows.sample(fraction=1, shuffle=True, seed=0), empty, empty, pl.DataFrame({"what": list("abcnz")}), None
    )


def prior_of(model: tt.RetrievalModelV2) -> tt.PopularityPrior:
    return next(part for part in model.modules() if isinstance(part, tt.PopularityPrior))


def test_a_run_counts_the_popularity_of_late() -> None:
    wanted, given = config(), tables()
    preprocessor, rows = encode(wanted, given)
    model, _ = fit_model(wanted, given, preprocessor, rows)
    ids = dict(zip("abcnz", preprocessor.transform(given.items).to_polars()["what"], strict=True))
    prior = prior_of(model)
    trained, served = prior.trained.weight[:, 0].exp(), prior.served.weight[:, 0].exp()
    # 400 events of 4 items, a tenth more of each of the ids, shares relative to the mean of the 4
    size = preprocessor.schema["what"].cardinality
    assert float(trained[ids["a"]]) == pytest.approx(300.1 / (400 + 0.1 * size) * 4, rel=1e-5)
    assert float(trained[ids["n"]]) == pytest.approx(0.1 / (400 + 0.1 * size) * 4, rel=1e-5)
    assert int(served.argmax()) == ids["z"]
    assert served[ids["z"]] > 3 * served[ids["a"]]
    # what is served is ranked by it: towers that are hardly trained give the late hit
    ask = tt.Retriever(model, preprocessor, given.items)
    assert ask.recommend([{"history": []}], k=1)["what"].to_list() == ["z"]


def test_a_night_is_learnt_by_its_own_shares_and_served_by_those_of_late() -> None:
    """Else the difference of the two would be learnt, and counted a second time."""
    wanted, given = config(), tables()
    preprocessor, rows = encode(wanted, given)
    model, _ = fit_model(wanted, given, preprocessor, rows)
    later = pl.DataFrame(
        {"who": [1] * 90, "what": ["b"] * 30 + ["n"] * 60, "at": range(400, 490), "history": [["a"]] * 90}
    )
    known = pl.concat([given.train, later.drop("history")])
    together = Tables(known, given.validation, given.test, given.items, None)
    live = prior_of(model).served.weight.clone()
    new, grown = learn(wanted, model, preprocessor, together, later, tt.RefreshRules(), 1)
    assert torch.equal(prior_of(model).served.weight, live)
    ids = dict(zip("abn", grown.transform(pl.DataFrame({"what": list("abn")})).to_polars()["what"], strict=True))
    prior, size = prior_of(new), grown.schema["what"].cardinality
    assert len(prior.served.weight) == size == preprocessor.schema["what"].cardinality + 1
    trained, served = prior.trained.weight[:, 0].exp(), prior.served.weight[:, 0].exp()
    for name, count in {"a": 0, "b": 30, "n": 60}.items():
        assert float(trained[ids[name]]) == pytest.approx((count + 0.1) / (90 + 0.1 * size) * 2, rel=1e-5)
    assert int(served.argmax()) == ids["n"]


def test_on_every_position_the_items_of_the_histories_count() -> None:
    """Everybody's last item is z, so that rows alone would say that nothing else is learnt."""
    wanted = config().with_changes(
        {"history.every_position": True, "history.encoder": "gru", "training.batch_size": 15}
    )
    number = 60
    rows = pl.DataFrame(
        {"who": [n // 4 for n in range(number)], "what": ["a", "a", "b", "z"] * 15, "at": range(number)}
    )
    given = Tables(rows, rows.clear(), rows.clear(), pl.DataFrame({"what": list("abz")}), None)
    preprocessor, learnt = encode(wanted, given)
    assert learnt["what"].to_list() == ["z"] * 15
    model, _ = fit_model(wanted, given, preprocessor, learnt)
    ids = dict(zip("abz", preprocessor.transform(given.items).to_polars()["what"], strict=True))
    trained = prior_of(model).trained.weight[:, 0].exp()
    assert float(trained[ids["a"]] / trained[ids["z"]]) == pytest.approx(30.1 / 15.1, rel=1e-5)
    assert float(trained[ids["b"]] / trained[ids["z"]]) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data.time": None, "history": None, "columns.who": {"kind": "categorical", "tags": ["user_id"]}},
            "needs data.time",
        ),
        ({"model.temperature": "learned"}, "popularity 'recent' is weighed by the temperature"),
        (
            {"model.loss": "bpr"},
            "needs the correction of sampling bias beside the negatives \\['in-batch'\\], which loss 'bpr'",
        ),
        ({"model.correction": "none"}, "with correction 'none' goes without"),
        ({"model.popularity": "late"}, "got 'late', expected one of 'learned', 'recent'"),
    ],
)
def test_what_does_not_go_with_it_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"model.*{said}"):
        config().with_changes(changes)
    config().with_changes({"model.loss": "bpr", "model.negatives": [{"uniform": 8}]})  # draws all items alike
