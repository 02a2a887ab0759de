"""CatalogEarlyStopping: the best weights by catalogue recall, whatever training does afterwards."""

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

import twotower as tt
from tests.worlds import clubs, towers
from twotower.evaluation import Queries, ScoreQueries
from twotower.training.early_stopping import CatalogEarlyStopping

METRICS = ["recall_at_5", "ndcg_at_5"]


def make(learning_rate: float = 0.01) -> tuple[tt.TwoTowerModelV2, tt.Dataset, tt.Evaluator]:
    train, test = clubs(rows=1500), clubs(rows=300, seed=2)
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(*towers(train))
    model.compile(learning_rate=learning_rate)
    return (
        model,
        train,
        tt.Evaluator(test, candidates=train, query=["user_id", "user_height"], user="user_id", metrics=METRICS),
    )


def test_it_ends_with_the_best_weights_and_says_which() -> None:
    model, train, evaluator = make(learning_rate=0.3)  # too fast: epochs go up and down
    stop = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=2)
    history = model.fit(train, batch_size=256, epochs=30, callbacks=stop, verbose=False, health_steps=0)
    curve = history.history["val_ndcg_at_5"]
    best = max(range(len(curve)), key=lambda epoch: curve[epoch])
    assert len(curve) == best + 1 + 2 < 30  # two more epochs without gain
    assert curve[-1] < curve[best]
    assert stop.best is not None
    assert stop.best_step == (best + 1) * 6  # 1,500 rows in batches of 256
    assert evaluator(model)["ndcg_at_5"].mean == pytest.approx(curve[best]) == stop.best["ndcg_at_5"].mean


def test_the_last_weights_stay_if_asked() -> None:
    model, train, evaluator = make(learning_rate=0.3)
    stop = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=2, restore_best=False)
    history = model.fit(train, batch_size=256, epochs=30, callbacks=stop, verbose=False, health_steps=0)
    assert evaluator(model)["ndcg_at_5"].mean == pytest.approx(history.history["val_ndcg_at_5"][-1])


def test_it_looks_within_an_epoch_too() -> None:
    model, train, evaluator = make()
    seen: list[int] = []

    class Counting:
        def score_queries(self, queries: Queries, candidates: tt.Dataset) -> ScoreQueries:
            seen.append(len(queries))
            return model.score_queries(queries, candidates)

    stop = CatalogEarlyStopping(evaluator, monitor="recall_at_5", patience=100, every_steps=2)
    stop.ranker = Counting()
    stop.restore_best = False
    model.fit(train, batch_size=256, epochs=2, callbacks=stop, verbose=False, health_steps=0)
    assert len(seen) == 2 * 3  # after steps 2 and 4 of 6, and at the end


@pytest.mark.parametrize("patience", [2, 12])  # stopped before the last epoch, and not
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, patience: int) -> None:
    whole, train, evaluator = make(learning_rate=0.3)
    options = {"batch_size": 256, "verbose": False, "health_steps": 0}
    stop = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=patience)
    curve = whole.fit(train, epochs=12, callbacks=stop, **options).history["val_ndcg_at_5"]
    assert (len(curve) < 12) == (patience == 2)

    broken, train, evaluator = make(learning_rate=0.3)

    class PowerCut(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.current_epoch == len(curve) - 1:  # the last but one look was no gain
                raise KeyError

    first = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=patience)
    with pytest.raises(KeyError):
        broken.fit(train, epochs=12, callbacks=[first, PowerCut()], checkpoint=tmp_path, **options)
    again, train, evaluator = make(learning_rate=0.3)
    second = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=patience)
    resumed = again.fit(train, epochs=12, callbacks=second, checkpoint=tmp_path, resume_from="auto", **options)
    assert resumed.history["val_ndcg_at_5"] == curve
    assert second.best_step == stop.best_step
    once_more, train, evaluator = make(
        learning_rate=0.3
    )  # killed after the last checkpoint: there is nothing left to train
    third = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=patience)
    resumed = once_more.fit(train, epochs=12, callbacks=third, checkpoint=tmp_path, resume_from="auto", **options)
    assert resumed.history["val_ndcg_at_5"] == curve
    for one, other, last in zip(whole.parameters(), again.parameters(), once_more.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, last)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*num_workers.*")
def test_a_module_of_ones_own_gives_its_ranker() -> None:
    """A LightningModule that is not fit's: the callback keeps the weights of the whole module."""
    model, train, evaluator = make()
    model.adapt(train)

    class Own(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.towers = model

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            return self.towers.loss(batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    stop = CatalogEarlyStopping(evaluator, monitor="recall_at_5", patience=2, ranker=model)
    trainer = L.Trainer(
        max_epochs=3, callbacks=[stop], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Own(), train_dataloaders=tt.Loader(train, 256))
    assert stop.best is not None
    assert evaluator(model)["recall_at_5"].mean == pytest.approx(stop.best["recall_at_5"].mean)


def test_wrong_options_are_told() -> None:
    _, _, evaluator = make()
    with pytest.raises(
        ValueError, match="unknown metric of hits of the evaluator 'recall_at_10'.*Did you mean 'recall_at_5'"
    ):
        CatalogEarlyStopping(evaluator)
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        CatalogEarlyStopping(evaluator, monitor="recall_at_5", patience=0)


def test_a_callback_starts_anew_with_each_fit() -> None:
    first, train, evaluator = make(learning_rate=0.3)
    second, _, _ = make(learning_rate=0.01)
    stop = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=2)
    first.fit(train, batch_size=256, epochs=6, callbacks=stop, verbose=False, health_steps=0)
    curve = second.fit(train, batch_size=256, epochs=3, callbacks=stop, verbose=False, health_steps=0).history
    assert evaluator(second)["ndcg_at_5"].mean == pytest.approx(max(curve["val_ndcg_at_5"]))


def test_weights_that_are_no_numbers_leave_the_best_ones() -> None:
    model, train, evaluator = make()

    class Spoil(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    next(iter(model.query.parameters())).fill_(torch.nan)

    stop = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=5)
    with pytest.raises(ValueError, match="scores candidates with nan"):
        model.fit(train, batch_size=256, epochs=5, callbacks=[Spoil(), stop], verbose=False, health_steps=0)
    assert stop.best is not None
    assert evaluator(model)["ndcg_at_5"].mean == pytest.approx(stop.best["ndcg_at_5"].mean)


def test_a_gain_is_more_than_min_delta() -> None:
    model, train, evaluator = make(learning_rate=0.01)
    stop = CatalogEarlyStopping(evaluator, monitor="ndcg_at_5", patience=2, min_delta=2.0)  # NDCG cannot gain so much
    history = model.fit(train, batch_size=256, epochs=9, callbacks=stop, verbose=False, health_steps=0)
    assert history.epochs == 3  # the first is better than nothing, and two are not
