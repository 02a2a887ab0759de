"""Training goes on with the night's rows: new ids, then a few steps at a lower rate."""

import copy
import math

import polars as pl
import torch

from twotower.config.config import Config
from twotower.data.preprocessor import Preprocessor
from twotower.experiment.build import compile_model, trainer_options
from twotower.experiment.measuring import free_name
from twotower.experiment.popularity import set_popularity
from twotower.experiment.rows import own_rows, training_rows
from twotower.experiment.tables import Tables
from twotower.models.base import RetrievalModelV2
from twotower.nightly.known import Known
from twotower.nightly.rules import RefreshRules

STEPS = 10  # of a pass, at least: a short night is cut into smaller batches


def rows_to_learn(known: Known, tables: Tables, rules: RefreshRules) -> tuple[pl.DataFrame, int]:
    """The rows that are new to the model with their features, a sample of old ones behind them, and how many are new.

    Args:
        known: what the live bundle knows.
        tables: `train` holds the known rows, the learnt ones first, and then the fresh rows to learn.
        rules: how many old rows are replayed.
    """
    config, place = known.config, free_name(tables.train, "place")
    numbered = Tables(tables.train.with_row_index(place), tables.validation, tables.test, tables.items, tables.users)
    rows = training_rows(config, numbered)
    rows = rows.join(tables.items.select(config.data.item), on=config.data.item, how="semi", maintain_order="left")
    is_new = pl.col(place) >= len(known.learnt)
    new, old = (own_rows(config, rows.filter(part)) for part in (is_new, ~is_new))
    sample = min(len(old), round(rules.replay * len(new)))
    return pl.concat([new, old.sample(sample, seed=rules.seed + known.night)]).drop(place), len(new)


def learn(
    config: Config,
    live_model: RetrievalModelV2,
    live_preprocessor: Preprocessor,
    tables: Tables,
    rows: pl.DataFrame,
    rules: RefreshRules,
    night: int,
) -> tuple[RetrievalModelV2, Preprocessor]:
    """A copy of the live model that knows the new ids and has learnt the rows; the live one stays as it is."""
    features = [tables.items.drop(config.data.item)]
    features += [] if tables.users is None else [tables.users.drop(config.data.user)]
    wanted = {source for name, column in config.declarations().items() for source in column.reads(name)}
    preprocessor = live_preprocessor.extend(rows, *(table for table in features if wanted & set(table.columns)))
    model = copy.deepcopy(live_model)
    model.extend(preprocessor.schema)
    set_popularity(config, tables.train, rows, preprocessor, model)
    compile_model(config, model, rules.rate * config.training.learning_rate)
    ids = preprocessor.vocabulary(config.data.item)
    met = tables.items.filter(pl.col(config.data.item).is_in(ids.cast(tables.items.schema[config.data.item]).implode()))
    torch.manual_seed(rules.seed + night)  # of dropout
    model.fit(
        preprocessor.transform(rows),
        epochs=rules.epochs,
        batch_size=max(1, min(config.training.batch_size, math.ceil(len(rows) / STEPS))),
        catalog=preprocessor.transform(met),
        seed=rules.seed + night,
        health_steps=0,
        trainer_options=trainer_options(config.training),
        verbose=False,
    )
    return model.cpu().eval(), preprocessor


def is_finite(model: RetrievalModelV2) -> bool:
    """Whether all its numbers are: training may have run away."""
    return all(bool(value.isfinite().all()) for value in model.state_dict().values() if value.is_floating_point())
