"""Health: worlds made sick on purpose, healthy ones that give no warning, and training that it must not change."""

import math
import warnings
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import twotower as tt
from tests.worlds import clubs
from twotower import Tags
from twotower.encoder import evaluating
from twotower.health import findings, measures
from twotower.health.findings import diagnose
from twotower.health.record import Setting
from twotower.training.checkup import Checkup

# ---- worlds


def market(change: pl.Expr | None = None) -> tt.Dataset:
    """400 items in 8 clubs, 200 users, 80 batches of 100."""
    data = clubs(rows=8000, users=200, items=400, groups=8)
    return data if change is None else tt.Dataset(data.to_polars().with_columns(change), data.schema)


def model_of(data: tt.Dataset, post: nn.Module | None = None, query_post: nn.Module | None = None, **options: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    sides = [(data.schema.select_by_tag(Tags.USER), query_post), (data.schema.select_by_tag(Tags.ITEM), post)]
    both = [tt.Encoder(side, tt.MLPBlock([32, 16], no_activation_last_layer=True), post=p) for side, p in sides]
    return tt.TwoTowerModelV2(*both, **options)


def warned(model: tt.RetrievalModelV2, data: tt.Dataset, rate: float = 0.01, **options: object) -> list[str]:
    """The warnings of an epoch."""
    model.compile(learning_rate=rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(data, **{"batch_size": 100, "verbose": False, "health_steps": 30} | options)
    assert {w.category for w in caught} <= {tt.HealthWarning}
    return [str(w.message) for w in caught]


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Deaf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x) + 1e-6 * torch.tanh(x)


def test_healthy_worlds_give_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    data = market()
    with monkeypatch.context() as patch:
        patch.setattr(findings, "SETTLED_STEPS", 160)  # no more excuses for beginners
        assert warned(model_of(data), data, epochs=2) == []
    normed = model_of(data, tt.L2Norm(), tt.L2Norm(), logits_temperature=tt.LearnedTemperature(0.1))
    assert warned(normed, data) == []
    assert warned(model_of(data), data, rate=0.001) == []  # everyone gets the same items yet: it has only begun
    torch.manual_seed(0)
    assert warned(tt.MatrixFactorizationModelV2(data.schema, dim=16), data, rate=0.05) == []
    given = model_of(data)
    given.candidate.requires_grad_(False)  # frozen on purpose
    assert warned(given, data) == []


def test_a_tiny_catalogue_is_not_judged_by_its_lists() -> None:
    data = clubs(rows=6000, users=60, items=12)
    assert warned(model_of(data), data) == []


def one(texts: list[str]) -> str:
    assert len(texts) == 1, texts
    return texts[0]


def test_constant_query_columns() -> None:
    data = market(pl.lit(3).cast(pl.Int64).alias("user_id"))
    data = tt.Dataset(data.to_polars().with_columns(user_height=pl.lit(0.5, dtype=pl.Float32)), data.schema)
    text = one(warned(model_of(data), data))
    assert "everyone gets the same items" in text
    assert "columns of the query tower are the same in all rows" in text


@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_a_learning_rate_that_collapses_a_tower(rate: float) -> None:
    data = market()
    text = one(warned(model_of(data), data, rate=rate))
    assert "nearly one vector" in text
    assert f"learning rate is too high (now {rate:g}" in text


def test_logits_that_exploded() -> None:
    data = market()
    text = one(warned(model_of(data), data, rate=3.0))
    assert "one candidate takes all: the learning rate (3) is too high" in text


def test_a_candidate_tower_that_ignores_its_columns() -> None:
    data = market()
    text = one(warned(model_of(data, Deaf()), data))
    assert text.startswith("all candidates score alike")
    assert "candidate tower gives all its rows nearly one vector" in text


@pytest.mark.parametrize("side", ["query", "candidate"])
def test_a_tower_without_gradient(side: str) -> None:
    data = market()
    model = model_of(data, *((None, Detached()) if side == "query" else (Detached(), None)))
    assert f"the {side} tower gets no gradient: its norm is 0" in one(warned(model, data))


def test_a_frozen_tower_is_the_cause_once_there_was_time_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = market()
    model = model_of(data)
    with torch.no_grad():
        for parameter in model.candidate.parameters():
            parameter.mul_(0.1)  # vectors of length .0001
    model.candidate.requires_grad_(False)
    monkeypatch.setattr(findings, "SETTLED_STEPS", 80)
    text = one(warned(model, data))
    assert text.startswith("all candidates score alike")
    assert "no parameter of the candidate tower is trained" in text


def test_an_uncorrected_world_hides_its_head() -> None:
    data = market()
    text = one(warned(model_of(data, logq_sampling_correction=False), data))
    assert "popular items are hardly shown: they have 80% of the interactions" in text
    assert 'logq_sampling_correction="logq"' in text


@pytest.mark.parametrize(("low", "bound"), [(True, "minimum 0.3"), (False, "maximum 1.2")])
def test_a_learnt_temperature_at_its_bound(low: bool, bound: str) -> None:
    data = market()
    learnt = tt.LearnedTemperature(0.303 if low else 1.19, 0.3, 1.2)
    text = one(warned(model_of(data, tt.L2Norm(), tt.L2Norm(), logits_temperature=learnt), data, rate=0.005))
    assert f"at its {bound}" in text


def test_a_temperature_that_is_too_high_for_normalised_towers() -> None:
    data = market()
    text = one(warned(model_of(data, tt.L2Norm(), tt.L2Norm(), logits_temperature=20.0), data))
    assert "the temperature 20 is too high for normalised towers" in text


def test_sorted_data_that_is_not_shuffled() -> None:
    data = market()
    data = tt.Dataset(data.to_polars().sort("item_id", descending=True), data.schema)
    text = one(warned(model_of(data), data, shuffle=False))
    assert "distinct candidates (of 399), so that in-batch negatives are few" in text


def test_data_sorted_by_user_is_not_taken_for_one_user() -> None:
    """The last batches hold one user each: nothing can be said about whether users get the same."""
    data = clubs(rows=8000, users=80, items=400, groups=8)
    data = tt.Dataset(data.to_polars().sort("user_id"), data.schema)
    model = model_of(data)
    model.compile(learning_rate=1e-4)
    assert warned(model, data, shuffle=False, rate=1e-4, batch_size=50, health_steps=10) == []


def test_a_column_of_huge_numbers() -> None:
    data = market(
        pl.when(pl.int_range(pl.len()) == 4000)
        .then(3e38)
        .otherwise("user_height")
        .cast(pl.Float32)
        .alias("user_height")
    )
    text = one(warned(model_of(data), data))
    assert "the loss of step 58 is nan" in text  # the batch that drew row 4000
    assert "column 'user_height' holds numbers as large as 3e+38" in text


class Spoil(Callback):
    """Puts nan into a column of one batch, or into a parameter."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if batch_idx == 5 and self.what == "column":
            batch["user_height"][:3] = math.nan
        if batch_idx == 5 and self.what == "parameter":
            with torch.no_grad():
                pl_module.model.query.blocks[0].layers[0].weight[0, 0] = math.nan


def test_nan_is_traced_to_its_column_or_parameter() -> None:
    data = market()
    text = one(warned(model_of(data), data, callbacks=Spoil("column")))
    assert "the loss of step 6 is nan" in text
    assert "column 'user_height' holds 3 numbers in this batch that are not finite" in text
    model = model_of(data)
    name = next(n for n, p in model.named_parameters() if p is model.query.blocks[0].layers[0].weight)
    assert f"{name!r} first" in one(warned(model, data, callbacks=Spoil("parameter")))


# ---- findings that small worlds do not reach


def record(data: tt.Dataset, **values: object) -> tt.Health:
    model = model_of(data).adapt(data)
    health = Checkup(model, data).measure(
        next(iter(tt.Loader(data, 100))), {"query": 1.0, "candidate": 1.0}, 2000, epoch_end=True, lists=True
    )
    assert health.lists is not None
    lists = {name: value for name, value in values.items() if hasattr(health.lists, name)}
    rest = {name: value for name, value in values.items() if name not in lists}
    return replace(health, logit_spread=2.0, personal_share=0.3, lists=replace(health.lists, **lists), **rest)


SETTING = Setting(learning_rate=0.001, corrected=True, in_batch=True, learnt_temperature=None)


def test_lengths_that_follow_popularity_are_named() -> None:
    data = market()
    sick = record(data, norm_popularity=0.9, tail_share=0.001, tail_interactions=0.2, overlap=0.6)
    (found,) = diagnose(sick, SETTING)
    assert (found.symptom, found.cause) == ("hidden-tail", "norms")
    (found,) = diagnose(record(data, norm_popularity=0.9, overlap=0.95), SETTING)
    assert (found.symptom, found.cause) == ("same-items", "norms")
    (found,) = diagnose(record(data, norm_popularity=0.1, overlap=0.95), SETTING)
    assert (found.symptom, found.cause) == ("same-items", "popularity")
    assert diagnose(record(data, norm_popularity=0.9, tail_share=0.001, overlap=0.2), SETTING) == []
    assert diagnose(replace(sick, step=999), SETTING) == []
    assert diagnose(replace(sick, catalog=99), SETTING) == []
    middle = replace(sick, epoch_end=False, lists=None, personal_share=0.001)
    assert [f.symptom for f in diagnose(middle, SETTING)] == ["same-items"]


def test_nothing_is_judged_in_the_first_steps() -> None:
    data = market()
    learnt = tt.LearnedTemperature(0.0101, 0.01, 1.0)
    model = model_of(data, tt.L2Norm(), tt.L2Norm(), logits_temperature=learnt)
    assert warned(model, data, steps_per_epoch=49, rate=1e-4) == []
    assert "at its minimum" in one(warned(model, data, steps_per_epoch=50, rate=1e-4))


# ---- measured beside training


def test_gradient_norms_and_lists_against_plain_code() -> None:
    data = market()
    model = model_of(data).adapt(data)
    batch = next(iter(tt.Loader(data, 500)))
    model.loss(batch).backward()
    checkup = Checkup(model, data)
    gradients = checkup.gradients()
    for name, tower in (("query", model.query), ("candidate", model.candidate)):
        assert gradients[name] == pytest.approx(sum(float(p.grad.square().sum()) for p in tower.parameters()) ** 0.5)
    health = checkup.measure(batch, gradients, 7, epoch_end=True, lists=True)
    assert health.gradient_ratio == pytest.approx(gradients["query"] / gradients["candidate"])
    one_of = {name: pl.Series(batch[name].numpy()).unique().to_list() for name in ("user_id", "item_id")}
    frames = {name: data.to_polars().unique(name).filter(pl.col(name).is_in(ids)) for name, ids in one_of.items()}
    columns = {"user_id": ("user_id", "user_height"), "item_id": ("item_id", "item_club")}
    asked, known = (
        tower({n: torch.from_numpy(frames[name][n].to_numpy().copy()) for n in columns[name]}).detach()
        for name, tower in (("user_id", model.query), ("item_id", model.candidate))
    )
    shared, personal = measures.score_variance(asked, known)
    assert health.personal_share == pytest.approx(personal / (shared + personal), rel=1e-3)
    assert health.logit_spread == pytest.approx((shared + personal) ** 0.5, rel=1e-3)
    # 200 users and 400 items: all queries of the batch are asked, all items ranked
    users = data.to_polars().unique("user_id").filter(pl.col("user_id").is_in(batch["user_id"].tolist()))
    query = model.query({n: torch.from_numpy(users[n].to_numpy().copy()) for n in ("user_id", "user_height")})
    best = (query @ model.candidate(model.catalog.features).T).topk(10).indices
    counts = data.to_polars()["item_id"].value_counts().sort("count", "item_id", descending=[True, False])
    together = counts["count"].cum_sum() - counts["count"]
    tail = set(counts.filter(together >= 0.8 * len(data))["item_id"])
    shown = model.catalog.ids[best].flatten().tolist()
    assert health.lists is not None
    assert health.lists.candidates == len(model.catalog)
    assert health.lists.tail_share == pytest.approx(np.mean([i in tail for i in shown]), abs=1e-6)
    assert health.lists.overlap == pytest.approx(measures.list_overlap(best), abs=1e-6)
    used = counts.filter(pl.col("item_id").is_in(list(tail)))["count"].sum() / len(data)
    assert health.lists.tail_interactions == pytest.approx(used, abs=1e-6)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.values.append(outputs["loss"].item())


def dropping(data: tt.Dataset) -> tt.RetrievalModelV2:
    """With all that could be disturbed: dropout, a batch norm, a streaming frequency, a queue, a random sampler."""
    torch.manual_seed(0)
    sides = (data.schema.select_by_tag(tag) for tag in (Tags.USER, Tags.ITEM))
    both = [tt.Encoder(s, tt.MLPBlock([16, 8], dropout=0.3), nn.BatchNorm1d(8), nn.Dropout(0.1)) for s in sides]
    samplers = [tt.InBatchSamplerV2("streaming"), tt.CrossBatchSampler(500, warmup_steps=3), tt.UniformSampler()]
    return tt.TwoTowerModelV2(*both, negative_samplers=samplers, logits_temperature=tt.LearnedTemperature(0.5))


def test_training_is_the_same_to_the_bit() -> None:
    data = clubs(rows=1200, users=100, items=120)
    seen = []
    for steps in (0, 2):
        model, losses = dropping(data), Losses()
        history = model.fit(data, epochs=2, batch_size=100, callbacks=losses, health_steps=steps, verbose=False)
        assert (len(history.health), "health_overlap" in history.history) == ((0, False), (12, True))[steps // 2]
        seen.append((losses.values, model.state_dict(), torch.get_rng_state()))
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][2], seen[1][2])
    for name, value in seen[0][1].items():
        torch.testing.assert_close(value, seen[1][1][name], rtol=0, atol=0, msg=name)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_measures_what_an_unbroken_one_does(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = clubs(rows=1200, users=100, items=120)
    whole = dropping(data).fit(data, epochs=2, batch_size=100, health_steps=5, verbose=False)
    keep = ModelCheckpoint(tmp_path, filename="broken", every_n_train_steps=14)
    dropping(data).fit(data, epochs=2, batch_size=100, health_steps=5, verbose=False, callbacks=[keep])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        again = dropping(data)
        rest = again.fit(
            data, epochs=2, batch_size=100, health_steps=5, verbose=False, resume_from=tmp_path / "broken.ckpt",
            callbacks=[ModelCheckpoint(tmp_path / "again", every_n_train_steps=14)],
        )  # fmt: skip
    assert [h.step for h in whole.health] == [5, 10, 12, 15, 20, 24]
    assert [h.step for h in rest.health] == [15, 20, 24]
    assert rest.health[1:] == whole.health[-2:]  # the one before has lists: it is the first of its fit
    assert replace(rest.health[0], lists=None) == whole.health[3]


def test_a_part_in_evaluation_mode_stays_there() -> None:
    model = dropping(clubs(rows=300)).train()
    frozen = model.query.blocks[1].eval()
    with evaluating(model):
        assert not model.candidate.training
    assert not frozen.training
    assert model.training
    assert model.candidate.training


def test_values_reach_the_history_and_the_loggers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = market()
    model = model_of(data)
    model.compile(metrics=["recall_at_10"])
    history = model.fit(data, batch_size=100, epochs=2, health_steps=30, logger=CSVLogger(tmp_path), verbose=False)
    assert [(h.step, h.epoch_end, h.lists is not None) for h in history.health] == [
        (30, False, True), (60, False, False), (80, True, True), (90, False, False), (120, False, False),
        (150, False, False), (160, True, True),
    ]  # fmt: skip
    ends = [h.values() for h in history.health if h.epoch_end]
    for name, values in history.history.items():
        if name.startswith("health_"):
            assert values == pytest.approx([end[name] for end in ends], nan_ok=True, rel=1e-6)
    assert {"health_overlap", "health_query_effective_rank", "health_gradient_ratio"} <= set(history.history)
    logged = pl.read_csv(next(tmp_path.glob("*/*/metrics.csv")), infer_schema_length=None)
    ranks = logged.select("step", "health_candidate_effective_rank").drop_nulls()
    assert set(ranks["step"]) >= {30, 60, 90, 120, 150}


@pytest.mark.filterwarnings("ignore:.*without bfloat16 products")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: str) -> None:
    data = market()
    history = model_of(data).fit(
        data, batch_size=100, steps_per_epoch=4, verbose=False, trainer_options={"precision": precision}
    )
    assert math.isfinite(history.health[0].lists.overlap)


def test_batches_that_share_a_step_and_tables_updated_by_rows() -> None:
    data = market()
    model = model_of(data)
    model.compile(table_optimizer="lazy_adam")
    history = model.fit(
        data, batch_size=100, health_steps=10, verbose=False, trainer_options={"accumulate_grad_batches": 2}
    )
    assert [h.step for h in history.health] == [10, 20, 30, 40]
    assert all(h.query.gradient_norm > 0 for h in history.health)


def test_health_steps_are_checked() -> None:
    data = market()
    with pytest.raises(ValueError, match="health_steps must be a whole number of steps, 0 for never; got -1"):
        model_of(data).fit(data, batch_size=100, health_steps=-1, verbose=False)
