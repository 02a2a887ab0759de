"""generate_world and generate_data."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from twotower.data.dataset import Dataset
from twotower.data.histories import build_histories
from twotower.data.synthetic.features import context_column, feature_table, id_range
from twotower.data.synthetic.laws import Laws, draw_items, draw_users, make_laws, wanted
from twotower.data.synthetic.roles import Roles, is_binary, roles
from twotower.data.synthetic.schemas import WORLDS
from twotower.data.synthetic.world import World
from twotower.errors import choose, explain_options
from twotower.schema import ColumnSchema, Schema

FIRST_SECOND = 1_704_067_200  # 1 January 2024
SECONDS = 90 * 86_400  # that the events span, at one a second or fewer
LONGEST_HISTORY = 20  # where the schema does not say


@explain_options
def generate_world(
    input: str | Schema,
    num_rows: int,
    set_sizes: Sequence[float] = (1.0,),
    *,
    seed: int = 0,
    taste: float = 2.0,
    popularity: float = 1.0,
    cold_items: float = 0.0,
    sequential: float = 2.0,
) -> World:
    """Make up events whose probabilities are known, so that a model can be held against the best possible.

    Users have tastes for topics, items a topic and a popularity that falls with the id, as 1 / (1 + id)^popularity. Each
    event takes a user (some are far more active than others) and draws an item by `World.probabilities`. Features are functions of
    the id, and tell of tastes and topics; integer ones take all values of their domain about equally often. Binary targets
    follow `World.target_probabilities`; others rise with the taste, with noise. Columns of neither side are noise.
    A list column in the item id's domain (or tagged ITEM_ID) is the user's history, and then the next topic depends on
    that of the last item: a matrix of transitions that an average over the history cannot follow.

    One seed gives the same users, items and probabilities whatever `num_rows` and `set_sizes`.

    Args:
        input: the name of a world ("e-commerce", "e-commerce-large", "movielens-100k", "movielens-1m", "music-streaming",
            "sequence-testing", "social", "testing"), or a Schema with one USER_ID and one ITEM_ID column. Ids and other
            integer columns need a domain, all of whose values exist.
        num_rows: events in all sets together.
        set_sizes: the share of each set, in the order of time; they sum to 1.
        seed: of everything.
        taste: the standard deviation of tastes; 0 makes a world where nobody differs.
        popularity: the exponent of Zipf's law; 0 makes all items alike.
        cold_items: the share of items that come only in the last set.
        sequential: the standard deviation of the flow between topics in worlds with a history.

    Raises:
        ValueError: an unknown name, a Schema that lacks ids or domains, shares that do not sum to 1 or leave a set empty.

    Example:
        >>> world = generate_world("e-commerce", 2000, (0.9, 0.1))
        >>> [len(part) for part in world.sets], len(world.items)
        ([1800, 200], 1001)
        >>> 0 < world.best(world.sets[1])["recall_at_10"] < 1
        True
    """
    schema = choose("world", input, WORLDS) if isinstance(input, str) else input
    parts = roles(schema)
    users, items = len(id_range(parts.user)), len(id_range(parts.item))
    sizes = _set_rows(num_rows, set_sizes)
    _check_strengths(taste=taste, popularity=popularity, sequential=sequential)
    if not 0 <= cold_items < 1 or (cold_items and len(sizes) < 2):
        raise ValueError(
            f"cold_items={cold_items} is the share of items that come only with the last of several sets: expected at least 0 "
            f"and below 1, with two set_sizes or more, got {len(sizes)}."
        )
    # what a world is comes from one stream, what happens in it from another
    of_world, of_events = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    laws, vectors = make_laws(
        users,
        items,
        taste=taste,
        popularity=popularity,
        cold_items=cold_items,
        sequential=sequential if parts.history else 0.0,
        rng=of_world,
    )
    user_table = feature_table(parts.user, parts.user_features, vectors.users, of_world)
    item_table = feature_table(parts.item, parts.item_features, vectors.items, of_world)
    acting = draw_users(users, num_rows, of_world, of_events)
    chosen = _chosen(laws, acting, sizes, of_events)
    table = _events(schema, parts, laws, user_table.take(acting), item_table.take(chosen), acting, chosen, of_events)
    starts = np.r_[0, np.cumsum(sizes)]
    return World(
        schema=schema,
        sets=tuple(Dataset(table.slice(start, rows), schema) for start, rows in zip(starts[:-1], sizes, strict=True)),
        users=Dataset(user_table, schema.select_by_name(user_table.column_names)),
        items=Dataset(item_table, schema.select_by_name(item_table.column_names)),
        laws=laws,
        roles=parts,
        seed=seed,
    )


@explain_options
def generate_data(
    input: str | Schema, num_rows: int, set_sizes: Sequence[float] = (1.0,), *, seed: int = 0
) -> Dataset | tuple[Dataset, ...]:
    """The sets of `generate_world`: one Dataset, or a tuple of them in the order of time. Merlin's helper of that name.

    Args:
        input: the name of a world, or a Schema, as in `generate_world`.
        num_rows: events in all sets together.
        set_sizes: the share of each set; they sum to 1.
        seed: of everything.

    Raises:
        ValueError: as `generate_world`.

    Example:
        >>> train, valid = generate_data("music-streaming", 1000, set_sizes=(0.7, 0.3))
        >>> len(train), len(valid), train.schema.targets.column_names
        (700, 300, ['click', 'like'])
    """
    sets = generate_world(input, num_rows, set_sizes, seed=seed).sets
    return sets if len(sets) > 1 else sets[0]


def _set_rows(num_rows: int, shares: Sequence[float]) -> list[int]:
    if num_rows != int(num_rows) or num_rows < 1:
        raise ValueError(f"num_rows must be a whole number of at least 1, got {num_rows}.")
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"set_sizes are shares above 0 that sum to 1, such as (0.8, 0.2); got {tuple(shares)}.")
    ends = [round(num_rows * sum(shares[: n + 1])) for n in range(len(shares))]
    rows = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(rows) < 1:
        raise ValueError(f"num_rows={num_rows} leaves a set empty: set_sizes={tuple(shares)} make {rows} rows.")
    return rows


def _check_strengths(**strengths: float) -> None:
    for name, strength in strengths.items():
        if not (np.isfinite(strength) and strength >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {strength}.")


def _chosen(laws: Laws, acting: np.ndarray, sizes: list[int], rng: np.random.Generator) -> np.ndarray:
    """(rows,) the item of each event, set after set; cold items come with the last set of several."""
    last = np.full(len(laws.taste), -1)
    parts = np.split(acting, np.cumsum(sizes)[:-1])
    return np.concatenate([draw_items(laws, part, last, n == len(parts) - 1, rng) for n, part in enumerate(parts)])


def _events(
    schema: Schema,
    parts: Roles,
    laws: Laws,
    users: pa.Table,
    items: pa.Table,
    acting: np.ndarray,
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> pa.Table:
    """The schema's columns, and the time."""
    rows = len(acting)
    columns = {name: side.column(name) for side in (users, items) for name in side.column_names}
    columns[parts.time] = pa.array(_times(rows, rng))
    columns |= {column.name: context_column(column, rows, rng) for column in parts.context}
    columns |= _targets(parts, laws, acting, laws.topic[chosen], rng)
    if parts.history is not None:
        columns[parts.history] = _histories(schema[parts.history], parts, columns)
    order = [*schema.column_names, *([parts.time] if parts.time not in schema else [])]
    return pa.table({name: columns[name] for name in order})


def _times(rows: int, rng: np.random.Generator) -> np.ndarray:
    """(rows,) int64 seconds, each later than the one before."""
    step = max(1, SECONDS // rows)
    return FIRST_SECOND + step * np.arange(rows) + rng.integers(step, size=rows)


def _targets(
    parts: Roles, laws: Laws, acting: np.ndarray, topic: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    taste = laws.taste[acting, topic]
    columns, before, level = {}, np.ones(len(taste), bool), 0
    for target in parts.targets:
        if is_binary(target):
            before = before & (rng.random(len(taste)) < wanted(taste, level))
            level += 1
            columns[target.name] = before.astype(target.dtype or "int64")
        else:
            columns[target.name] = _graded(target, taste + rng.normal(scale=0.5, size=len(taste)))
    return columns


def _graded(target: ColumnSchema, liking: np.ndarray) -> np.ndarray:
    """The liking itself, or squeezed into the target's domain, whole numbers if both ends are."""
    domain = target.int_domain or target.float_domain
    if domain is None:
        return liking.astype(target.dtype or "float32")
    value = domain.min + (domain.max - domain.min) * wanted(liking, 0)
    whole = float(domain.min).is_integer() and float(domain.max).is_integer()
    return (value.round() if whole else value).astype(target.dtype or "float32")


def _histories(history: ColumnSchema, parts: Roles, columns: dict[str, pa.Array]) -> pa.Array:
    count = history.value_count
    length = LONGEST_HISTORY if count is None or not np.isfinite(count.max) else int(count.max)
    names = {"user": parts.user.name, "item": parts.item.name, "time": parts.time}
    events = pa.table({name: columns[name] for name in names.values()})
    return build_histories(events, **names, length=length, name="__history")["__history"].to_arrow()
