"""The sections of a config: every key with its type, its default and its meaning."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from twotower.errors import choose
from twotower.losses import LOSSES, UNCORRECTED
from twotower.measures import resolve_all
from twotower.optimizers import OPTIMIZERS, SCHEDULES, TABLE_OPTIMIZERS
from twotower.samplers import SAMPLERS

T = TypeVar("T")
COUNTED = ("uniform", "popularity", "cross-batch", "hard")  # samplers that take how many


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _among(kind: str, table: Any) -> Callable[[str], str]:
    def check(name: str) -> str:
        choose(kind, name, table)
        return name

    return check


def _known_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    resolve_all(names)
    return names


Several = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_one_or_several), Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Unknown keys are errors, and nothing is cast: 'ten' is no number and true is no 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Positive(Section):
    """Which rows are positives."""

    column: str = Field(description="A column of the interactions.")
    at_least: float | None = Field(None, description="Keep rows whose value is this or more, such as 4 stars.")
    at_most: float | None = Field(None, description="Keep rows whose value is this or less.")
    one_of: Annotated[
        Several[str | int | float | bool], Field(description="Keep rows with one of these values, such as [purchase].")
    ] = ()

    @model_validator(mode="after")
    def _says_something(self) -> "Positive":
        if self.at_least is None and self.at_most is None and not self.one_of:
            raise ValueError("say which values to keep: at_least, at_most or one_of.")
        return self


class Data(Section):
    """Where the tables are, and what their columns are."""

    interactions: Paths = Field(
        description="Parquet of who did what: a path, folder or glob, or a list of them; relative to the config file."
    )
    items: Paths | None = Field(
        None,
        description="Parquet of all items that can be recommended, one row each. Without it these are the items of the training "
        "part, with the features of their latest row.",
    )
    users: Paths | None = Field(
        None, description="Parquet of users, one row each, whose columns are joined to the interactions."
    )
    user: str = Field(description="The column of user ids.")
    item: str = Field(description="The column of item ids, of the same name in the items.")
    time: str | None = Field(
        None, description="The column of the moment: a number, date or datetime. Splits by time and histories need it."
    )
    positive: Positive | None = Field(
        None, description="Which rows count as positives; by default all. Others are left out."
    )
    k_core: Count | None = Field(
        None,
        description="Keep users and items with at least so many rows, before the split. It makes the figures better than those "
        "of all users.",
    )


class History(Section):
    """What the user did before, as a feature of the query: it also describes users whom training never saw."""

    column: str = Field("history", description="The name of the list column that is made.")
    length: Count = Field(20, description="Keep the latest so many items.")
    encoder: Literal["mean", "bag", "gru", "transformer"] = Field(
        "mean",
        description="How the list becomes a vector: its mean, a bag that weighs recent items more, a GRU, a transformer.",
    )
    layers: Count | None = Field(None, description="Of the gru (1) or the transformer (2).")
    heads: Count | None = Field(None, description="Of the transformer (2).")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Inside the gru (0) or the transformer (0.2)."
    )
    every_position: bool = Field(
        False,
        description="Train on every position of the list, not on the row's own item alone; needs bag, gru or transformer. The "
        "query's other columns must not give away what came later.",
    )

    @model_validator(mode="after")
    def _options_of_the_encoder(self) -> "History":
        takes = {"mean": (), "bag": (), "gru": ("layers", "dropout"), "transformer": ("layers", "heads", "dropout")}[
            self.encoder
        ]
        for name in ("layers", "heads", "dropout"):
            if getattr(self, name) is not None and name not in takes:
                raise ValueError(
                    f"{name} means nothing to encoder {self.encoder!r}; leave it out, or choose another encoder."
                )
        if self.every_position and self.encoder == "mean":
            raise ValueError(
                "every_position needs encoder 'bag', 'gru' or 'transformer', which have a state after each item."
            )
        return self


class Split(Section):
    """Training, validation and test: the model learns on the first, is chosen by the second and reported on the third."""

    kind: Literal["time", "last", "random", "user"] | None = Field(
        None,
        description="'time' cuts once for everybody; 'last' keeps each user's last rows, 'user' a share of each user's rows (the "
        "latest ones where there is a time); 'random' any rows, not with a history. By default 'time' where data.time is given, "
        "else 'random'.",
    )
    validation: Share = Field(0.1, description="The share of all rows for validation; not for 'last'.")
    test: Share = Field(0.1, description="The share of all rows for the test; not for 'last'.")
    last: Count = Field(
        1,
        description="Of kind 'last': how many last rows of each user are the test, and as many before them the validation.",
    )
    seed: Seed = Field(0, description="Of the kinds that draw rows.")

    @model_validator(mode="after")
    def _shares(self) -> "Split":
        given = self.model_fields_set
        if self.kind == "last" and given & {"validation", "test"}:
            raise ValueError("kind 'last' counts rows: give last=1 or more instead of validation and test.")
        if self.kind != "last" and "last" in given:
            raise ValueError("last belongs to kind 'last'; give validation and test.")
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation and test take {self.validation + self.test:g} of the rows: nothing is left to train on."
            )
        return self


EVEN = {"uniform", "catalog"}  # samplers that draw all items alike, however popular


class Model(Section):
    """Two towers."""

    dim: Count = Field(64, description="Width of the vectors that the towers end in.")
    embedding_dim: Count | None = Field(None, description="Width of the embedding of each id; by default dim.")
    query_layers: Several[Count] = Field(
        (128,), description="Widths of the query tower's hidden layers, before the last one of width dim."
    )
    candidate_layers: Several[Count] = Field((128,), description="The same for the candidate tower.")
    normalize: bool = Field(True, description="Make vectors of length 1, so that the score is a cosine.")
    temperature: Annotated[float, Field(gt=0)] | Literal["learned"] = Field(
        0.1, description="What the scores are divided by in the loss; 'learned' learns it."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Between the layers.")
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="In training, how often a candidate's id is hidden, so that its features learn to do without: for new items. "
        "Without effect where the candidate tower reads the id alone.",
    )
    negatives: Annotated[Several[str | dict[str, Count]], Field(min_length=1)] = Field(
        ("in-batch",),
        description=f"Where negatives come from, together: {', '.join(SAMPLERS)}, or one with a number, such as {{uniform: 512}}, "
        f"for {', '.join(COUNTED)}.",
    )
    correction: Literal["auto", "logq", "corrected", "none"] = Field(
        "auto",
        description="Of sampling bias; see ContrastiveOutput. 'auto' is logq, and none for losses that need none, such as bpr; "
        "'none' favours what is unpopular.",
    )
    loss: Annotated[str, AfterValidator(_among("loss", LOSSES))] = Field(
        "softmax", description=f"One of {', '.join(LOSSES)}."
    )
    popularity: Literal["learned", "recent"] = Field(
        "learned",
        description="Where the part of the score that is the same for everybody comes from: 'learned' by the towers, or counted, "
        "'recent', from the training rows, each of which counts less the older it is (see PopularityPrior). Needs data.time.",
    )

    @model_validator(mode="after")
    def _samplers(self) -> "Model":
        for entry in self.negatives:
            names = [entry] if isinstance(entry, str) else list(entry)
            if len(names) != 1:
                raise ValueError(
                    f"negatives: an entry is one name, such as in-batch or {{uniform: 512}}; got {entry!r}."
                )
            choose("sampler of negatives", names[0], SAMPLERS)
            if not isinstance(entry, str) and names[0] not in COUNTED:
                raise ValueError(f"negatives: {names[0]!r} takes no number; one of {', '.join(COUNTED)} does.")
        if self.popularity == "recent" and self.temperature == "learned":
            raise ValueError(
                "popularity 'recent' is weighed by the temperature, which 'learned' would change under it: give a number, such as "
                "0.1."
            )
        of_the_data = {
            name for entry in self.negatives for name in ([entry] if isinstance(entry, str) else entry)
        } - EVEN
        uncorrected = self.correction == "none" or (self.correction == "auto" and LOSSES[self.loss] in UNCORRECTED)
        if self.popularity == "recent" and of_the_data and uncorrected:
            raise ValueError(
                f"popularity 'recent' needs the correction of sampling bias beside the negatives {sorted(of_the_data)}, which loss "
                f"{self.loss!r} with correction {self.correction!r} goes without: the towers would learn to take popularity away. "
                "Choose the softmax or bsl with correction logq, uniform negatives, or popularity: learned."
            )
        return self


class StopEarly(Section):
    """Stop when the validation figure no longer gains, and keep the best weights."""

    monitor: str | None = Field(None, description="One of evaluation.metrics; by default the first.")
    patience: Count = Field(3, description="Stop after so many epochs in a row without gain.")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="A gain is more than this.")


class Training(Section):
    """How the towers are fitted."""

    epochs: Count = Field(20, description="Passes over the training part, at most.")
    batch_size: Count = Field(1024, description="Rows in a step; with in-batch negatives also their number.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.002, description="Of the optimizer.")
    optimizer: Annotated[str, AfterValidator(_among("optimizer", OPTIMIZERS))] = Field(
        "adam", description=f"One of {', '.join(OPTIMIZERS)}."
    )
    table_optimizer: Annotated[str, AfterValidator(_among("table_optimizer", TABLE_OPTIMIZERS))] | None = Field(
        None,
        description=f"Of the embedding tables: one of {', '.join(TABLE_OPTIMIZERS)}; by default what goes with the optimizer.",
    )
    schedule: Annotated[str, AfterValidator(_among("schedule", SCHEDULES))] = Field(
        "constant",
        description=f"Of the learning rates, over the steps of all epochs: one of {', '.join(SCHEDULES)}; linear and cosine "
        "fall to 0 at the last of them, even if stop_early ends before, and refit follows the same course.",
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="The share of those steps, at first, in which the learning rates rise to what was chosen."
    )
    gradient_clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The largest norm of a step's gradient."
    )
    seed: Seed = Field(0, description="Of the weights and of the order of the rows.")
    stop_early: StopEarly | None = Field(StopEarly(), description="null trains all epochs and keeps the last weights.")
    refit: bool = Field(
        True,
        description="Once the validation has said how many epochs are best, train anew so long on training and validation "
        "rows together: the model that is saved and tested then knows the newest rows too. false saves the first one.",
    )
    checkpoint_steps: Count = Field(
        1000,
        description="Optimiser steps between checkpoints, from which --resume goes on; one is written at each epoch's end too.",
    )
    health_steps: Annotated[int, Field(ge=0)] = Field(
        100, description="Optimiser steps between looks at the model's health; 0 for never."
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field("auto", description="What to train on.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="Of the arithmetic.")


class Evaluation(Section):
    """What is measured, and beside what."""

    metrics: Annotated[Several[str], AfterValidator(_known_metrics)] = Field(
        ("recall_at_10", "ndcg_at_10", "mrr_at_10", "hit_rate_at_10", "coverage_at_10"),
        description="Metrics over the whole catalogue; the first is the main one, which training and tune look at.",
    )
    slices: Several[str] = Field(
        ("known_users", "new_users", "head_items", "tail_items", "cold_items"),
        description="Parts that are measured apart; also columns of the items or the users.",
    )
    remove_seen: bool = Field(
        True, description="Do not rank again what the user did before; false where people come back to items."
    )
    query: Literal["user", "event"] = Field(
        "user",
        description="'user' asks once for each user, at the moment of their first row of the part, for all that they did there; "
        "'event' asks at every row. Histories end where the part begins.",
    )
    baselines: Several[Literal["popularity", "recent_popularity", "item_knn", "ease", "als", "bpr"]] = Field(
        ("popularity", "recent_popularity", "item_knn"),
        description="What ranks beside the model. recent_popularity needs data.time; item_knn and ease need the extra "
        "`baselines`, als and bpr the extra `implicit`.",
    )
    recent_days: Annotated[float, Field(gt=0)] = Field(14.0, description="The window of recent_popularity.")
    confidence: Share = Field(0.95, description="Of the intervals.")
    seed: Seed = Field(0, description="Of the resampling that the intervals come from.")


class Search(Section):
    """What to try for one key: choices, or numbers between two ends, whole ones where both ends are whole."""

    choices: Several[Any] = Field((), description="The values to try.")
    low: float | int | None = Field(None, description="Or the smallest number,")
    high: float | int | None = Field(None, description="and the largest.")
    log: bool = Field(False, description="Draw numbers on a logarithmic scale.")

    @model_validator(mode="after")
    def _one_kind(self) -> "Search":
        ends = (self.low, self.high)
        if bool(self.choices) == (None not in ends) or (
            self.choices and (self.log or any(e is not None for e in ends))
        ):
            raise ValueError("give either choices, or low and high.")
        if (
            self.low is not None
            and self.high is not None
            and (not self.low < self.high or (self.log and self.low <= 0))
        ):
            raise ValueError(f"expected low < high, and low above 0 with log; got {self.low} and {self.high}.")
        return self


class Serving(Section):
    """What finds the items of a bundle."""

    index: Literal["exact", "flat", "ivf", "hnsw", "scann"] = Field(
        "exact",
        description="exact for some hundred thousand items, ivf beyond. flat, ivf and hnsw need the extra `index`, scann its own.",
    )
    target_recall: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95,
        description="Of the 100 best, for people of the data; ivf and scann are set to reach it, hnsw warns if it does not.",
    )
    users: bool = Field(
        True,
        description="Whether the bundle holds what is known of the users, by id: their features, histories and seen items. Without "
        "it a bundle can be given away; whoever serves it by user id brings the store, `twotower serve --users`.",
    )


class Tune(Section):
    """A search over keys of the model, the training, the history and the columns, by the validation part alone."""

    trials: Count = Field(20, description="How many configs to train, those of an interrupted search included.")
    metric: str | None = Field(None, description="One of evaluation.metrics; by default the first. Higher is better.")
    prune: bool = Field(
        True, description="Break off a trial that at some epoch is below the median of the trials before."
    )
    seed: Seed = Field(0, description="Of the search.")
    space: dict[str, Search] = Field(
        {
            "training.learning_rate": Search(low=0.0005, high=0.01, log=True),
            "model.temperature": Search(low=0.03, high=0.3, log=True),
            "model.dim": Search(choices=(32, 64, 128)),
        },
        description="Keys of model, training, history or columns, each with {low, high, log} or {choices: [...]}.",
    )

    @model_validator(mode="after")
    def _keys(self) -> "Tune":
        for key in self.space:
            if key.split(".")[0] not in ("model", "training", "history", "columns") or "." not in key:
                raise ValueError(
                    f"space: {key!r} cannot be searched, expected a key such as model.dim, training.learning_rate, history.length "
                    "or columns.<name>.<option>: another split or another metric would be another question."
                )
        if not self.space:
            raise ValueError("space is empty: name at least one key to search.")
        return self
