"""Config: one YAML file says what the tables are, and how to split, train and measure."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from twotower.config.columns import declare
from twotower.config.mistakes import ConfigError, mistakes_of
from twotower.config.sections import Data, Evaluation, History, Model, Section, Serving, Split, Training, Tune
from twotower.config.yaml_file import KeyPath, Lines, read_yaml, write_yaml
from twotower.data.columns import Categorical, Column
from twotower.errors import unknown
from twotower.files import PathLike
from twotower.schema import Tags
from twotower.tags import several_tags


def _declared(entry: dict[str, Any]) -> dict[str, Any]:
    declare(entry)
    return entry


class Config(Section):
    """What the tables are, and how to split, train and measure; every key is in docs/config.md.

    Args:
        data: the tables and their columns.
        columns: how to read each column, by name: its `kind`, its `tags`, and the options of that kind.
        history: what the user did before, as a feature.
        split: training, validation and test.
        model: the two towers.
        training: how they are fitted.
        evaluation: what is measured.
        serving: what finds the items.
        tune: the search.

    Raises:
        ConfigError: a ValueError with one line for each mistake, which names the key (from `load` and `from_dict`).

    Example:
        >>> columns = {"film": {"kind": "categorical", "tags": ["item_id"]}, "who": {"kind": "categorical", "tags": ["user_id"]}}
        >>> given = {"data": {"interactions": "clicks.parquet", "user": "who", "item": "film"}, "columns": columns}
        >>> tt.Config.from_dict(given).training.batch_size
        1024
        >>> tt.Config.from_dict(given | {"training": {"batch_size": "big"}})
        Traceback (most recent call last):
        twotower.config.mistakes.ConfigError: training.batch_size: got 'big', expected a whole number of at least 1.
    """

    data: Data = Field(description="The tables and their columns.")
    columns: dict[str, Annotated[dict[str, Any], AfterValidator(_declared)]] = Field(
        description="How to read each column, by its name."
    )
    history: History | None = Field(
        None, description="What the user did before, as a feature of the query. Needs data.time."
    )
    split: Split = Field(Split(), description="Training, validation and test.")
    model: Model = Field(Model(), description="The two towers.")
    training: Training = Field(Training(), description="How they are fitted.")
    evaluation: Evaluation = Field(Evaluation(), description="What is measured.")
    serving: Serving = Field(Serving(), description="The bundle that `twotower train` writes.")
    tune: Tune = Field(Tune(), description="The search of `twotower tune`.")

    @model_validator(mode="after")
    def _of_one_piece(self) -> "Config":
        wrong = [*_wrong_columns(self), *_wrong_times(self), *_wrong_split(self), *_wrong_metrics(self)]
        if wrong:
            raise JointError(wrong)
        return self

    @classmethod
    def load(cls, path: PathLike, changes: Mapping[str, Any] | None = None) -> "Config":
        """Read a YAML file; paths in it are relative to its folder.

        Args:
            path: the file.
            changes: values by dotted key that take the place of the file's, such as {"training.epochs": 3}.
        """
        data, lines = read_yaml(path)
        for key, value in (changes or {}).items():
            data = changed(data, key, value)
        config = _checked(data, Path(path).name, lines, frozenset(changes or ()))
        return config.beside(Path(path).resolve().parent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Config":
        """The same from a dict; paths are relative to the working directory."""
        return _checked(dict(data), "", {}, frozenset())

    def to_yaml(self) -> str:
        """All keys with their values, defaults too; `load` reads it back."""
        return write_yaml(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values; what does not belong to the kind of split, or needs a time, is left out."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        for name in ("validation", "test") if self.split.kind == "last" else ("last",):
            del plain["split"][name]
        plain["evaluation"]["baselines"] = self.baselines
        return plain

    def with_changes(self, changes: Mapping[str, Any]) -> "Config":
        """Another config, with values by dotted key, such as {"model.dim": 32}."""
        data = self.to_dict()
        for key, value in changes.items():
            data = changed(data, key, value)
        return Config.from_dict(data)

    @property
    def main_metric(self) -> str:
        """The first of evaluation.metrics."""
        return self.evaluation.metrics[0]

    @property
    def split_kind(self) -> str:
        """How the rows are split."""
        return self.split.kind or ("time" if self.data.time is not None else "random")

    @property
    def baselines(self) -> list[str]:
        """What ranks beside the model."""
        return [n for n in self.evaluation.baselines if n != "recent_popularity" or self.data.time is not None]

    def declarations(self) -> dict[str, Column]:
        """The columns as the Preprocessor takes them, the history among them."""
        made = {name: declare(entry) for name, entry in self.columns.items()}
        if self.history is not None:
            made[self.history.column] = Categorical(Tags.USER, share=self.data.item)
        return made

    def beside(self, folder: Path) -> "Config":
        """The same config with its paths, which are relative to a folder, made absolute."""
        data = self.to_dict()
        for key in ("interactions", "items", "users"):
            data["data"][key] = data["data"][key] and [_absolute(folder, path) for path in data["data"][key]]
        for entry in data["columns"].values():
            if isinstance(entry.get("vectors"), str):
                entry["vectors"] = _absolute(folder, entry["vectors"])
        return Config.from_dict(data)


class JointError(ValueError):
    """Mistakes of keys that do not go together, each with its key."""

    def __init__(self, mistakes: list[tuple[KeyPath, str]]) -> None:
        super().__init__("; ".join(text for _, text in mistakes))
        self.mistakes = mistakes


def changed(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the value of a dotted key replaced; sections that are not there come to be."""
    first, _, rest = key.partition(".")
    if not rest:
        return {**data, first: value}
    inner = data.get(first)
    return {**data, first: changed(inner if isinstance(inner, Mapping) else {}, rest, value)}


def _checked(data: dict[str, Any], name: str, lines: Lines, changes: frozenset[str]) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        causes = [detail.get("ctx", {}).get("error") for detail in error.errors()]
        if len(causes) == 1 and isinstance(causes[0], JointError):
            raise ConfigError(causes[0].mistakes, name, lines, changes) from None
        raise ConfigError(mistakes_of(error, Config), name, lines, changes) from None


def _wrong_columns(config: Config) -> list[tuple[KeyPath, str]]:
    """The item's id tells candidates apart, and each tower must have something to read."""
    item, columns = config.data.item, config.columns
    wrong: list[tuple[KeyPath, str]] = []
    if item not in columns:
        return [(("columns", item), "is missing: declare data.item, {kind: categorical, tags: [item_id]}.")]
    own = declare(columns[item])
    if not isinstance(own, Categorical) or Tags.ITEM_ID not in own.tags:  # type: ignore[operator]
        wrong.append((("columns", item), "is data.item, expected {kind: categorical, tags: [item_id]}."))
    elif (own.min_count, own.max_size, own.share, own.source) != (1, None, None, None):
        wrong.append(
            (
                ("columns", item),
                "is data.item, of which every value is a candidate: leave out min_count, max_size, share and source.",
            )
        )
    tags = {name: several_tags(declare(entry).tags) for name, entry in columns.items()}  # type: ignore[attr-defined]
    others = [name for name, own_tags in tags.items() if Tags.ITEM_ID in own_tags and name != item]
    wrong += [(("columns", name, "tags"), f"item_id belongs to data.item, {item!r}; use item.") for name in others]
    if config.history is None and not any({Tags.USER, Tags.USER_ID} & set(own_tags) for own_tags in tags.values()):
        wrong.append(
            (
                ("columns",),
                "no column has the tag user, user_id or context, so the query tower has nothing to read: tag one, or add history.",
            )
        )
    if config.history is not None and config.history.column in columns:
        wrong.append(
            (
                ("history", "column"),
                f"{config.history.column!r} is declared in columns too; give the history another name.",
            )
        )
    return wrong


def _wrong_split(config: Config) -> list[tuple[KeyPath, str]]:
    """What is known before a part is all of training, which after a random split has events from after the part's."""
    if config.history is None or config.data.time is None or config.split_kind != "random":
        return []
    text = (
        "'random' does not go with history: a history at test time would hold what the user did later. Choose 'time', 'last' or "
        "'user', or leave out history."
    )
    return [(("split", "kind"), text)]


def _wrong_times(config: Config) -> list[tuple[KeyPath, str]]:
    if config.data.time is not None:
        return []
    needs: list[tuple[KeyPath, str, bool]] = [
        (
            ("split", "kind"),
            f"{config.split.kind!r} needs data.time, the column of the moment.",
            config.split.kind in ("time", "last"),
        ),
        (
            ("history",),
            "needs data.time, the column of the moment: a history is what came before.",
            config.history is not None,
        ),
        (
            ("model", "popularity"),
            "'recent' needs data.time, the column of the moment; choose 'learned'.",
            config.model.popularity == "recent",
        ),
        (
            ("evaluation", "baselines"),
            "recent_popularity needs data.time, the column of the moment; leave it out.",
            # among the defaults it is left out by itself
            "baselines" in config.evaluation.model_fields_set and "recent_popularity" in config.evaluation.baselines,
        ),
    ]
    return [(path, text) for path, text, wrong in needs if wrong]


def _wrong_metrics(config: Config) -> list[tuple[KeyPath, str]]:
    stop = config.training.stop_early
    asked: list[tuple[KeyPath, str | None]] = [
        (("training", "stop_early", "monitor"), stop.monitor if stop is not None else None),
        (("tune", "metric"), config.tune.metric),
    ]
    known = config.evaluation.metrics
    return [
        (path, unknown("metric of evaluation.metrics", name, known))
        for path, name in asked
        if name is not None and name not in known
    ]


def _absolute(folder: Path, path: str) -> str:
    return path if "://" in path else os.path.normpath(folder / path)
