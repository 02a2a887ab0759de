"""Models on a world whose answer is known: they learn it, in fit and in a loop of one's own alike."""

import math
import warnings
from contextlib import nullcontext

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import twotower as tt
from tests.worlds import clubs, id_column, towers
from twotower import Tags


def two_tower(data: tt.Dataset, **options: object) -> tt.RetrievalModelV2:
    torch.manual_seed(0)
    return tt.TwoTowerModelV2(*towers(data), **options)


def test_documented_example() -> None:
    train = clubs()
    user_schema = train.schema.select_by_tag(Tags.USER)
    item_schema = train.schema.select_by_tag(Tags.ITEM)
    query = tt.Encoder(user_schema, tt.MLPBlock([128]))
    candidate = tt.Encoder(item_schema, tt.MLPBlock([128]))
    model = tt.TwoTowerModel(query, candidate)
    model.compile(optimizer="adam")
    history = model.fit(train, epochs=10, batch_size=512, verbose=False)
    assert len(history.history["loss"]) == 10
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_training_finds_the_best_ranking() -> None:
    train, test = clubs(rows=6000, seed=1), clubs(rows=600, seed=2)
    model = two_tower(train, logits_temperature=1.0)
    model.compile(learning_rate=0.02, metrics=["recall_at_10", "ndcg_at_10"])
    before = model.adapt(train).evaluate(test)
    model.fit(train, epochs=15, batch_size=256, verbose=False)
    after = model.evaluate(test)
    # each club has 10 of the 40 items and nine events of ten stay within it: about .9 of the positives can be found
    best = float(
        np.mean([len({i for i in items if i % 4 == user % 4}) / min(10, len(items)) for user, items in by_user(test)])
    )
    assert before["recall_at_10"] < 0.4
    assert after["recall_at_10"] > 0.95 * best
    top = model.to_top_k_encoder(k=10).predict(tt.unique_rows_by_features(train, Tags.USER))
    users = tt.unique_rows_by_features(train, Tags.USER).to_polars()["user_id"].to_numpy()
    assert (top.ids.numpy() % 4 == users[:, None] % 4).mean() > 0.95


def by_user(data: tt.Dataset) -> list[tuple[int, list[int]]]:
    grouped = data.to_polars().group_by("user_id").agg(pl.col("item_id").unique())
    return [(user, items) for user, items in grouped.iter_rows()]


def test_correction_restores_popularity_within_the_club() -> None:
    """The corrected softmax estimates log p(item | user); without correction popular items are punished as negatives.

    Batches are small, so that an item's expected count stays below one and it is seldom masked as a false negative.
    """
    train = clubs(rows=3000, seed=3)
    in_club = 1 / (1 + torch.arange(10))
    truth = 0.925 * in_club / in_club.sum()  # .9 + .1 / 4 of the events, by weight 1 / (1 + rank)
    share = {}
    for correction in (True, False):
        model = two_tower(train, logq_sampling_correction=correction).adapt(train)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(6 if correction else 2):
            for batch in tt.Loader(train, batch_size=8):
                optimizer.zero_grad()
                model.loss(batch).backward()
                optimizer.step()
        users = torch.arange(4)
        with torch.no_grad():
            query = model.query({"user_id": users, "user_height": users / 60})
            p = torch.softmax(query @ model.candidate(model.catalog.features).T, dim=1)
        of_club = torch.stack([p[club, model.catalog.ids % 4 == club] for club in range(4)])
        share[correction] = of_club.mean(0)
    assert (share[True] - truth).abs().max() < 0.08
    assert share[False][0] < 0.5 * truth[0]


def test_fit_and_a_plain_loop_give_the_same_losses() -> None:
    train = clubs(rows=1000)
    fitted = two_tower(train)
    fitted.compile(optimizer="adam")
    history = fitted.fit(train, epochs=3, batch_size=128, verbose=False)

    model = two_tower(train).adapt(train)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loader = tt.Loader(train, batch_size=128)
    means = []
    for _ in range(3):
        losses = []
        for batch in loader:
            loss = model.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))

    assert history.history["loss"] == pytest.approx(means, abs=1e-6)
    for (name, one), other in zip(fitted.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_a_last_batch_of_one_row_trains() -> None:
    train = clubs(rows=257)
    history = two_tower(train).fit(train, epochs=1, batch_size=128, verbose=False)
    assert math.isfinite(history.history["loss"][0])


@pytest.mark.parametrize(
    "samplers", ["in-batch", "uniform", ["in-batch", "uniform"], "popularity", ["in-batch", "popularity"]]
)
def test_every_sampler_trains_a_feature_tower(samplers: object) -> None:
    train = clubs(rows=4000)
    if "popularity" in samplers:  # by name its ids would start at 2, as the Preprocessor's do
        popular = tt.PopularityBasedSamplerV2(max_id=39, max_num_samples=20, seed=0)
        samplers = popular if samplers == "popularity" else ["in-batch", popular]
    model = two_tower(train, negative_samplers=samplers)
    model.compile(learning_rate=0.02, metrics=["recall_at_10"])
    model.fit(train, epochs=6, batch_size=256, verbose=False)
    assert model.evaluate(clubs(rows=600, seed=2))["recall_at_10"] > 0.75


def test_losses_by_name_train() -> None:
    train, test = clubs(rows=4000), clubs(rows=600, seed=2)
    for loss in ("bpr", "bpr-max", "top1", "hinge"):
        model = two_tower(train, logq_sampling_correction=False)
        model.compile(loss=loss, learning_rate=0.02, metrics=["recall_at_10"])
        model.fit(train, epochs=6, batch_size=256, verbose=False)
        assert model.evaluate(test)["recall_at_10"] > 0.7, loss


def test_several_tasks_train_together() -> None:
    train = clubs(rows=4000)
    query, candidate = towers(train)
    outputs = [
        tt.ContrastiveOutput(tt.DotProduct(), schema=train.schema.select_by_name(["item_id"]), target="like"),
        tt.BinaryOutput("like"),
        tt.RegressionOutput("stars"),
    ]
    model = tt.TwoTowerModelV2(query, candidate, outputs=outputs)
    model.compile(learning_rate=0.02, loss_weights={"stars/regression_output": 0.1})
    history = model.fit(train, epochs=8, batch_size=256, verbose=False)
    names = ["contrastive_output_loss", "like/binary_output_loss", "stars/regression_output_loss"]
    for name in names:
        assert history.history[name][-1] < history.history[name][0]
    last = history.last()
    assert last["loss"] == pytest.approx(last[names[0]] + last[names[1]] + 0.1 * last[names[2]], rel=1e-4)
    values = model.evaluate(clubs(rows=600, seed=2))
    assert values["like/binary_output/auc"] > 0.9
    assert values["stars/regression_output/rmse"] < 1.2
    predicted = model.predict(train)
    assert set(predicted) == {"contrastive_output", "like/binary_output", "stars/regression_output"}
    assert predicted["like/binary_output"].shape == (4000, 1)


def test_matrix_factorization_learns() -> None:
    train = clubs(rows=6000)
    torch.manual_seed(0)
    model = tt.MatrixFactorizationModelV2(train.schema, dim=16, embeddings_l2_batch_regularization=1e-6)
    model.compile(learning_rate=0.05, metrics=["recall_at_10"])
    history = model.fit(train, epochs=10, batch_size=256, verbose=False)
    assert "regularization_loss" in history.history
    assert model.evaluate(clubs(rows=600, seed=2))["recall_at_10"] > 0.75


def test_youtube_dnn_shares_the_history_table_and_learns() -> None:
    rng = np.random.default_rng(0)
    club = rng.integers(4, size=3000)
    item = id_column("item_id", Tags.ITEM_ID, 39)
    history = tt.ColumnSchema(
        "history", tags=[Tags.USER, Tags.CATEGORICAL], dtype="int64", is_list=True, is_ragged=True,
        properties={"domain": {"min": 0, "max": 39, "name": "item_id"}},
    )  # fmt: skip
    rows = {
        "history": [(c + 4 * rng.integers(10, size=rng.integers(1, 5))).tolist() for c in club],
        "item_id": club + 4 * rng.integers(10, size=3000),
    }
    data = tt.Dataset(rows, tt.Schema([history, item]))
    torch.manual_seed(0)
    model = tt.YoutubeDNNRetrievalModelV2(data.schema, top_block=tt.MLPBlock([16]), num_sampled=20)
    assert model.query.inputs.categorical.table("history") is model.candidate.table
    model.compile(learning_rate=0.02, metrics=["recall_at_10"])
    model.fit(data, epochs=10, batch_size=256, verbose=False)
    top = model.to_top_k_encoder(k=10).predict(data)
    assert (top.ids.numpy() % 4 == club[:, None]).mean() > 0.9


def test_callbacks_loggers_and_validation_are_lightnings(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from lightning.pytorch.loggers import CSVLogger

    train, valid = clubs(rows=2000), clubs(rows=300, seed=2)
    model = two_tower(train)
    model.compile(metrics=["recall_at_10"])
    model.fit(train, batch_size=256, callbacks=EarlyStopping("loss"), verbose=False)  # one alone will do
    model.compile(metrics=["recall_at_10"])
    stop = EarlyStopping("val_recall_at_10", mode="max", patience=2, min_delta=1.0)
    keep = ModelCheckpoint(tmp_path / "best", monitor="val_recall_at_10", mode="max")
    history = model.fit(
        train, epochs=20, batch_size=256, validation_data=valid, callbacks=[stop, keep],
        logger=CSVLogger(tmp_path, name="log"), verbose=False,
    )  # fmt: skip
    assert history.epochs == 3  # nothing can gain 1.0: the first epoch and two more
    assert keep.best_model_path.endswith(".ckpt")
    logged = pl.read_csv(next(tmp_path.glob("log/*/metrics.csv")))
    assert logged["val_recall_at_10"].drop_nulls().to_list() == pytest.approx(history.history["val_recall_at_10"])


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("steps", [16, 11])  # at the end of the second epoch of 8 steps, and in the middle of it
def test_resume_gives_the_same_model_as_an_unbroken_run(steps: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    train = clubs(rows=1000)

    def dropping(data: tt.Dataset) -> tt.RetrievalModelV2:
        torch.manual_seed(0)
        sides = (data.schema.select_by_tag(tag) for tag in (Tags.USER, Tags.ITEM))
        return tt.TwoTowerModelV2(*(tt.Encoder(side, tt.MLPBlock([16, 8], dropout=0.3)) for side in sides))

    whole = dropping(train)
    whole.fit(train, epochs=4, batch_size=128, verbose=False)
    broken = dropping(train)
    keep = ModelCheckpoint(tmp_path, filename="broken", every_n_train_steps=steps, save_top_k=1)
    broken.fit(train, epochs=2, batch_size=128, verbose=False, callbacks=[keep])
    again = dropping(train)
    keep = ModelCheckpoint(tmp_path, filename="again", every_n_train_steps=steps)
    again.fit(train, epochs=4, batch_size=128, verbose=False, resume_from=tmp_path / "broken.ckpt", callbacks=[keep])
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_second_fit_goes_on_from_the_first() -> None:
    train = clubs(rows=1000)
    model = two_tower(train)
    model.fit(train, epochs=2, batch_size=128, verbose=False)
    steps = {float(s["step"]) for s in model.optimizer_state["state"].values()}
    assert steps == {16.0}
    model.fit(train, epochs=1, batch_size=128, verbose=False)
    assert {float(s["step"]) for s in model.optimizer_state["state"].values()} == {24.0}


@pytest.mark.parametrize(("steps", "every", "times"), [(6, 2, 3), (6, 3, 2), (12, 4, 3)])
def test_train_metrics_every_n_steps(steps: int, every: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from twotower.models import scoring

    calls = []
    real = scoring.batch_metrics
    monkeypatch.setattr(scoring, "batch_metrics", lambda *given: calls.append(1) or real(*given))
    train = clubs(rows=1200)
    history = two_tower(train).fit(
        train, epochs=1, batch_size=100, steps_per_epoch=steps, train_metrics_steps=every, verbose=False
    )
    assert len(calls) == times
    assert 0 < history.history["in_batch_recall_at_10"][0] <= 1


def test_sampled_metrics_only_by_name() -> None:
    train = clubs(rows=500)
    model = two_tower(train).adapt(train)
    assert not any("in_batch" in name for name in model.evaluate(train))
    assert set(model.evaluate(train, sampled="in-batch", metrics=["recall_at_10"])) == {"in_batch_recall_at_10"}
    with pytest.raises(ValueError, match="unknown sampled 'batch'"):
        model.evaluate(train, sampled="batch")


on_any_processor = pytest.mark.filterwarnings("ignore:.*without bfloat16 products")


@on_any_processor
def test_options_of_the_trainer_pass_through() -> None:
    train = clubs(rows=600)
    model = two_tower(train)
    options = {"precision": "bf16-mixed", "gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "accelerator": "cpu"}
    model.compile(learning_rate=0.02)
    history = model.fit(train, epochs=4, batch_size=100, verbose=False, trainer_options=options)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {float(s["step"]) for s in model.optimizer_state["state"].values()} == {12.0}  # 24 batches, two in a step


def test_training_mode_lasts_through_validation() -> None:
    train = clubs(rows=300)
    model = two_tower(train)
    modes = []
    losses = model.losses
    model.losses = lambda batch: modes.append(model.training) or losses(batch)
    model.fit(train, epochs=3, batch_size=150, validation_data=train, verbose=False)
    assert modes == [True] * 6
    assert not model.training


def test_only_rows_with_a_positive_target_are_to_be_found() -> None:
    train = clubs(rows=1000)
    model = two_tower(train, target="like").adapt(train)
    liked = tt.Dataset(train.to_polars().filter(pl.col("like") > 0), train.schema)
    assert model.evaluate(train) == pytest.approx(model.evaluate(liked))
    one, other = (model.evaluate(data, sampled="in-batch", batch_size=2000) for data in (train, liked))
    assert one == pytest.approx(other)
    assert model.evaluate(train) != pytest.approx(two_tower(train).adapt(train).evaluate(train))


@pytest.mark.parametrize("seed", range(3))
def test_a_binary_model_ranks_by_what_it_learnt(seed: int) -> None:
    """Its learnt weight starts at 1, so that a larger product is a likelier pair and the ranking is not inverted."""
    train = clubs(rows=4000)
    torch.manual_seed(seed)
    model = tt.TwoTowerModelV2(*towers(train), outputs=tt.BinaryOutput("like"))
    model.compile(learning_rate=0.02, metrics=["recall_at_10"])
    model.fit(train, epochs=12, batch_size=256, verbose=False)
    values = model.evaluate(clubs(rows=600, seed=2))
    assert model.outputs[0].to_logit.weight.item() > 0
    assert values["like/binary_output/auc"] > 0.8
    assert values["recall_at_10"] > 0.4  # inverted, it would be near 0


def test_resume_after_short_epochs_begins_a_new_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    train = clubs(rows=1000)

    def run(**given: object) -> list[list[int]]:
        model = two_tower(train)
        seen: list[list[int]] = []
        losses = model.losses
        model.losses = lambda batch: seen.append(batch["item_id"].tolist()) or losses(batch)
        model.fit(train, epochs=3, steps_per_epoch=3, batch_size=100, verbose=False, **given)
        return seen

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = run(callbacks=[keep])
    again = ModelCheckpoint(tmp_path / "again", filename="{epoch}", save_top_k=-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        rest = run(callbacks=[again], resume_from=tmp_path / "epoch=0.ckpt")
    assert rest == whole[3:]


def test_bfloat16_on_a_processor_that_makes_it_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    train = clubs(rows=100)
    for able in (False, True):
        monkeypatch.setattr("twotower.training.lightning.has_bfloat16_products", lambda device, able=able: able)
        with pytest.warns(UserWarning, match="bf16-mixed.* many times slower") if not able else nullcontext():
            two_tower(train).fit(train, batch_size=50, verbose=False, trainer_options={"precision": "bf16-mixed"})


@on_any_processor
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_take_lists(precision: str) -> None:
    data = tt.Preprocessor({"h": tt.Categorical(Tags.USER), "item_id": tt.Categorical(Tags.ITEM_ID)}).fit_transform(
        {"h": [[1], [2, 3], [], [1, 2]] * 10, "item_id": [1, 2, 3, 4] * 10}
    )
    model = tt.TwoTowerModelV2(
        *(tt.Encoder(data.schema.select_by_tag(t), tt.MLPBlock([8])) for t in (Tags.USER, Tags.ITEM))
    )
    history = model.fit(data, batch_size=10, verbose=False, trainer_options={"precision": precision})
    assert math.isfinite(history.history["loss"][0])


def test_a_query_tower_of_numbers_alone() -> None:
    """No column tells queries apart, and none must be mistaken for an id."""
    data = clubs(rows=500)
    _, item = towers(data)
    user = tt.Encoder(data.schema.select_by_name(["user_height"]), tt.MLPBlock([16]))
    history = tt.TwoTowerModelV2(user, item).fit(data, batch_size=100, epochs=2, verbose=False)
    assert history.history["loss"][1] < history.history["loss"][0]


def test_freezing_between_two_fits_asks_for_compile() -> None:
    data = clubs(rows=300)
    model = two_tower(data)
    model.fit(data, batch_size=100, verbose=False)
    model.query.requires_grad_(False)
    with pytest.raises(ValueError, match=r"other trainable parameters than in its last fit.*call compile\(\) again"):
        model.fit(data, batch_size=100, verbose=False)
    model.compile()
    model.fit(data, batch_size=100, verbose=False)
    model.requires_grad_(False)
    model.compile()
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        model.fit(data, batch_size=100, verbose=False)


@on_any_processor
def test_a_model_in_another_precision_predicts_too() -> None:
    data = clubs(rows=400)
    for precision in ("bf16-true", "64-true"):
        model = two_tower(data)
        model.fit(data, batch_size=100, verbose=False, validation_data=data, trainer_options={"precision": precision})
        assert 0 <= model.evaluate(data)["recall_at_10"] <= 1
        assert model.predict(data).isfinite().all()


@pytest.mark.parametrize("steps", [-1, 1.5, None, True])
def test_steps_between_measurements_are_whole(steps: object) -> None:
    from twotower.models import parts

    with pytest.raises(ValueError, match="health_steps must be a whole number of steps, 0 for never"):
        parts.check_intervals(train_metrics_steps=0, health_steps=steps)
