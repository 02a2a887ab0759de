"""From the config's Parquet to tables: the positives in three parts, the items, the users."""

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from twotower.config.config import Config
from twotower.config.sections import Positive
from twotower.data.columns import Column
from twotower.data.dataset import Dataset
from twotower.data.inference import ids_of_one_type
from twotower.data.splits import Parts, k_core, leave_last_out, split_at_random, split_by_time, split_by_user
from twotower.errors import unknown
from twotower.files import PathLike, folder_written_aside
from twotower.tags import Tags, several_tags

MARKER = "train.parquet"  # by which a folder of tables is known


@dataclass(frozen=True, eq=False)
class Tables:
    """What a run works on.

    Args:
        train, validation, test: positive interactions, raw.
        items: all candidates, one row each.
        users: one row each, or None.
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None

    def before(self, part: str) -> pl.DataFrame:
        """What was known when a part began: for the test also the validation, and everything for what comes after."""
        held = {"validation": [self.train], "test": [self.train, self.validation]}
        return pl.concat(held.get(part, [self.train, self.validation, self.test]))

    def joined(self) -> "Tables":
        """The validation as a part of the training."""
        return replace(self, train=self.before("test"), validation=self.validation.clear())

    def save(self, path: PathLike) -> None:
        """Write a folder; it appears whole or not at all."""
        with folder_written_aside(path, MARKER) as folder:
            for name in ("train", "validation", "test", "items", "users"):
                table = getattr(self, name)
                if table is not None:
                    table.write_parquet(folder / f"{name}.parquet")

    @classmethod
    def load(cls, path: PathLike) -> "Tables":
        """Read what `save` wrote."""
        folder = Path(path)
        train, validation, test, items = (
            pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in ("train", "validation", "test", "items")
        )
        users = folder / "users.parquet"
        return cls(train, validation, test, items, pl.read_parquet(users, glob=False) if users.exists() else None)


def read_tables(config: Config) -> tuple[Tables, list[str]]:
    """Read, filter and split; and what was left out on the way, in words.

    Raises:
        ValueError: a file or column that is not there, ids that are missing or repeat, or parts that would be empty.
    """
    data = config.data
    notes: list[str] = []
    rows = read_interactions(config, data.interactions, "data.interactions", notes)
    users = None if data.users is None else read_owners(config, data.users, data.user, "data.users")
    items = None if data.items is None else read_owners(config, data.items, data.item, "data.items")
    _check_users(config, rows, users)
    if users is not None:
        rows, users = _one_type(data.user, rows, users, "data.users")
    if items is not None:
        rows, items = _one_type(data.item, rows, items, "data.items")
        listed = rows.join(items.select(data.item), on=data.item, how="semi", maintain_order="left")
        if len(listed) < len(rows):
            notes.append(
                f"{len(rows) - len(listed):,} of {len(rows):,} interactions are with items that data.items lacks; they are left "
                "out of training, and cannot be recommended."
            )
        if not len(listed):
            raise ValueError(
                f"no {data.item!r} of data.interactions is among those of data.items, such as {rows[data.item][0]!r} and "
                f"{items[data.item][0]!r}: are they the same ids?"
            )
        rows = listed
    if data.k_core is not None:
        before, rows = rows, k_core(rows, user=data.user, item=data.item, k=data.k_core)
        if len(rows) < len(before):
            kept = [f"{len(rows):,} of {len(before):,} rows"]
            kept += [f"{rows[n].n_unique():,} of {before[n].n_unique():,} {n!r}" for n in (data.user, data.item)]
            notes.append(f"data.k_core: {data.k_core} keeps {', '.join(kept)}; the figures are of these alone.")
    train, validation, test = _split(config, rows)
    if items is None:
        items = latest_items(config, train)
    _check_sources(config, rows, items, users)
    return Tables(train, validation, test, items, users), notes


def read_interactions(config: Config, paths: tuple[str, ...], key: str, notes: list[str] | None = None) -> pl.DataFrame:
    """The positive rows of some files, with the columns that are needed; what was left out is added to the notes."""
    data, dataset = config.data, Dataset(list(paths))
    ids = {"data.user": data.user, "data.item": data.item, "data.time": data.time}
    if data.positive is not None:
        ids["data.positive.column"] = data.positive.column
    for name, column in ids.items():
        if column is not None and column not in dataset.column_names:
            raise ValueError(f"{name}: {unknown(f'column of {key}', column, dataset.column_names)}")
    wanted = [n for n in dataset.column_names if n in {*ids.values(), *_raw_columns(config), *config.evaluation.slices}]
    rows = dataset.select(wanted).to_polars()
    if not len(rows):
        raise ValueError(f"{key}: {', '.join(paths)} has no rows.")
    kept = rows if data.positive is None else _positives(data.positive, rows, key, [] if notes is None else notes)
    for name in ("data.user", "data.item", "data.time"):
        missing = 0 if ids[name] is None else _missing(kept[str(ids[name])])
        if missing:
            raise ValueError(
                f"{name}: {missing:,} of {len(kept):,} rows of {key} have no {ids[name]!r}. Leave them out, or fill them."
            )
    return kept


def _missing(values: pl.Series) -> int:
    """How many are null, or NaN, which is how tables of floats say the same."""
    return values.null_count() + (int(values.is_nan().sum()) if values.dtype.is_float() else 0)


def _positives(rule: Positive, rows: pl.DataFrame, key: str, notes: list[str]) -> pl.DataFrame:
    """The rows that the rule keeps, and a note of the others."""
    values = rows[rule.column]
    if not values.dtype.is_numeric() and (rule.at_least is not None or rule.at_most is not None):
        raise ValueError(
            f"data.positive: {rule.column!r} holds {values.dtype}, which at_least and at_most cannot be compared with."
        )
    nowhere = [v for v in rule.one_of if not rows.select(_is_value(v, values).any()).item()]
    absent = f" Of one_of {', '.join(map(repr, nowhere))} occur nowhere." if nowhere else ""
    kept = rows.filter(_is_positive(rule, values))
    if not len(kept):
        some = ", ".join(repr(v) for v in values.drop_nulls().unique(maintain_order=True).head(5).to_list())
        raise ValueError(
            f"data.positive keeps none of the {len(rows):,} rows of {key}.{absent} {rule.column!r} holds {values.dtype}, such as "
            f"{some or 'nothing but nulls'}."
        )
    if len(kept) < len(rows) or nowhere:
        holes = _missing(values)
        notes.append(
            f"data.positive keeps {len(kept):,} of {len(rows):,} rows of {key}; it refuses {len(rows) - len(kept) - holes:,}, and "
            f"{holes:,} have no {rule.column!r}, which counts as refused.{absent}"
        )
    return kept


def _is_positive(rule: Positive, values: pl.Series) -> pl.Expr:
    column, kept = pl.col(rule.column), pl.lit(True)
    if values.dtype.is_float():
        column = column.fill_nan(None)  # NaN is larger than every number in Polars
    if rule.at_least is not None:
        kept = kept & (column >= rule.at_least)
    if rule.at_most is not None:
        kept = kept & (column <= rule.at_most)
    if rule.one_of:
        kept = kept & pl.any_horizontal([_is_value(v, values) for v in rule.one_of])
    return kept.fill_null(False)


def _is_value(value: str | int | float | bool, values: pl.Series) -> pl.Expr:
    """Whether rows hold a value of the config: numbers are compared as numbers, so that 5 finds 5.0, and others as texts."""
    column = pl.col(values.name)
    if not values.dtype.is_numeric():
        return column.cast(pl.String) == (str(value).lower() if isinstance(value, bool) else str(value))
    if isinstance(value, bool):
        return pl.lit(False)
    try:
        return column == (float(value) if isinstance(value, str) else value)
    except ValueError:
        return pl.lit(False)


def _raw_columns(config: Config) -> set[str]:
    made = config.history.column if config.history is not None else None
    return {source for name, column in config.declarations().items() for source in column.reads(name) if name != made}


def read_owners(config: Config, paths: tuple[str, ...], owner: str, key: str) -> pl.DataFrame:
    """A table with one row for each id; a user's with what is read of it alone, an item's whole, for display."""
    data, table = config.data, Dataset(list(paths)).to_polars()
    if owner not in table.columns:
        raise ValueError(
            f"{key}: {unknown('column', owner, table.columns)} It must hold the ids under the name that the interactions have."
        )
    repeats, missing = len(table) - table[owner].n_unique(), _missing(table[owner])
    if repeats or missing:
        raise ValueError(
            f"{key}: expected one row for each {owner!r}, but {repeats:,} of {len(table):,} rows repeat an id, and "
            f"{missing:,} have none. Keep the row of each that counts."
        )
    foreign = [n for n in (data.user, data.item, data.time) if n != owner and n in table.columns]
    if foreign:
        raise ValueError(
            f"{key}: {', '.join(paths)} holds the column {foreign[0]!r}, which in data.interactions says whose event it is, of "
            f"what or when; expected one row for each {owner!r} with what is always true of it. Rename the column in {key}, or "
            "leave it out."
        )
    wanted = {owner, *_raw_columns(config), *config.evaluation.slices}
    return table if key == "data.items" else table.select([name for name in table.columns if name in wanted])


def _one_type(name: str, rows: pl.DataFrame, owners: pl.DataFrame, key: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions and their owners' table with ids of one type."""
    ours, theirs = ids_of_one_type({"data.interactions": rows[name], key: owners[name]})
    return rows.with_columns(ours), owners.with_columns(theirs)


def _check_users(config: Config, rows: pl.DataFrame, users: pl.DataFrame | None) -> None:
    """A column of the event and one of the user may differ in meaning, so that neither may take the other's place."""
    both = [] if users is None else [n for n in users.columns if n in rows.columns and n != config.data.user]
    if both:
        raise ValueError(
            f"data.users: the column {both[0]!r} is read, but stands both in data.users and in data.interactions. Rename it in "
            "one of them, or leave it out there."
        )


def _split(config: Config, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The test is taken from all rows, the validation from what is left, in the same way."""
    split = config.split

    def cut(part: pl.DataFrame, share: float) -> Parts:
        user, time = config.data.user, config.data.time
        if config.split_kind == "time":
            assert time is not None
            return split_by_time(part, time, share)
        if config.split_kind == "last":
            assert time is not None
            return leave_last_out(part, user, time, split.last)
        if config.split_kind == "user":
            return split_by_user(part, user, share, time=time, seed=split.seed)
        return split_at_random(part, share, seed=split.seed)

    try:
        rest, test = cut(rows, split.test)
        return *cut(rest, split.validation / (1 - split.test)), test
    except ValueError as error:
        raise ValueError(f"split: {error}") from error


def latest_items(config: Config, train: pl.DataFrame) -> pl.DataFrame:
    """The items of the training part, with the features of their last row."""
    ordered = train if config.data.time is None else train.sort(config.data.time, maintain_order=True)
    return (
        ordered.select(config.data.item, *(n for n in item_columns(config) if n in train.columns))
        .unique(config.data.item, keep="last", maintain_order=True)
        .sort(config.data.item)
    )


def item_columns(config: Config) -> list[str]:
    """The raw columns that the candidate tower reads, beside the id."""
    read = [s for n, c in config.declarations().items() if _of_item(c) for s in c.reads(n)]
    return [name for name in dict.fromkeys(read) if name != config.data.item]


def _of_item(column: Column) -> bool:
    return bool({Tags.ITEM, Tags.ITEM_ID} & set(several_tags(column.tags)))  # type: ignore[attr-defined]


def _check_sources(config: Config, rows: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame | None) -> None:
    """Item features must stand in the items, other features in the interactions or the users; none in both."""
    asked = [*rows.columns, *([] if users is None else users.columns)]
    both = {config.data.user, config.data.time} & set(item_columns(config))
    for name, column in config.declarations().items():
        if config.history is not None and name == config.history.column:
            continue
        place, known = ("the items", items.columns) if _of_item(column) else ("the interactions and users", asked)
        for source in column.reads(name):
            if source not in known:
                raise ValueError(f"columns.{name}: {unknown(f'column of {place}', source, known)}")
            if source in both or (not _of_item(column) and source in item_columns(config)):
                raise ValueError(
                    f"columns.{name}: {source!r} would be read both of the item and of the query or its moment. Rename the "
                    "column in one of the tables."
                )
