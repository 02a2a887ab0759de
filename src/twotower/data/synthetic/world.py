"""World: made-up data together with the best that anybody could learn from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twotower.data.dataset import Dataset
from twotower.data.ragged import Ragged
from twotower.data.synthetic.features import id_range
from twotower.data.synthetic.laws import Laws
from twotower.data.synthetic.raw import RawTables, raw_ids, raw_side, titles
from twotower.data.synthetic.roles import Roles
from twotower.evaluation import evaluate_ranking, ranking_task
from twotower.metrics import Metrics, resolve_metrics
from twotower.schema import Schema

Ids = Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class World:
    """A made-up world: its data, and the probability of every event, in closed form. `generate_world` makes it.

    p(item | user) = weight[item] * exp(taste[user, t] + flow[s, t]) / Z, where t is the item's topic and s that of the
    user's last item (flow only in worlds with a history). So two towers can learn it to the last digit: the user's side
    is a vector of tastes, the item's side its topic and log weight.

    Args:
        schema: of the sets.
        sets: the events, each set later than the one before; a column `timestamp` (seconds since 1970, rising) stands
            beside the schema's columns unless one of those is tagged TIME.
        users, items: one row for each id, from the smallest to the largest, with its features.
        laws: `taste` (users, topics), `topic` (items,), `weight` (items,), `cold` (items,) and `flow` (topics, topics) or
            None, as NumPy arrays in the order of `users` and `items`.
        roles: which column is what.
        seed: that it was made from.

    Example:
        >>> world = generate_world("testing", 1000, (0.8, 0.2), seed=1)
        >>> train, test = world.sets
        >>> world.probabilities([3, 4]).shape, world.ranking([3], k=2).shape
        (torch.Size([2, 100]), torch.Size([1, 2]))
    """

    schema: Schema
    sets: tuple[Dataset, ...]
    users: Dataset
    items: Dataset
    laws: Laws
    roles: Roles
    seed: int

    @property
    def item_ids(self) -> Tensor:
        """(items,) the ids in the order of `items`."""
        return torch.arange(id_range(self.roles.item).start, id_range(self.roles.item).stop)

    def probabilities(
        self, users: Ids, last: Ids | None = None, *, given: str | None = None, cold: bool = True
    ) -> Tensor:
        """p(item | user), the next event's item, (B, items) float64 in the order of `items`; every row sums to 1.

        Args:
            users: (B,) ids.
            last: (B,) id of each user's last item, which matters in worlds with a history; -1, or None for all, where
                there is none.
            given: a binary target: p(item | user, target = 1).
            cold: as in the last set; False for the sets before, in which cold items have probability 0.

        Raises:
            ValueError: an id or a target that is not of this world.
        """
        places = _places(users, self.roles.user.name, id_range(self.roles.user))
        return self._weighted(places, self._last_places(last), given, cold, torch.float64)

    def target_probabilities(self, users: Ids, target: str) -> Tensor:
        """p(target = 1 | user, item), (B, items) float64.

        The first binary target of the schema is 1 with probability sigmoid(taste[user, topic of the item] - 3); each
        later one only where the one before is, and then with probability sigmoid(taste - 4), and so on.

        Args:
            users: (B,) ids.
            target: a binary target.
        """
        places = _places(users, self.roles.user.name, id_range(self.roles.user))
        return torch.from_numpy(self.laws.target(places, self.roles.level(target))[:, self.laws.topic])

    def ranking(
        self, users: Ids, k: int, last: Ids | None = None, *, given: str | None = None, cold: bool = True
    ) -> Tensor:
        """(B, k) the ids of the most probable items, best first; no other ranking finds more on average."""
        if not 1 <= k <= len(self.items):
            raise ValueError(f"expected 1 <= k <= {len(self.items)} items, got {k}.")
        return self.item_ids[self.probabilities(users, last, given=given, cold=cold).topk(k).indices]

    def best(
        self,
        data: Dataset,
        metrics: Metrics = "recall_at_10",
        *,
        seen: Dataset | None = None,
        given: str | None = None,
        cold: bool = True,
    ) -> dict[str, float]:
        """What the true probabilities reach on some events: the ceiling for every model, up to the luck of the draw.

        Ranked and measured as `model.evaluate` does it, in tiles; a query is a user, or a user and a history where there is
        one, as for a query tower that reads these columns.

        Args:
            data: events of this world, such as `world.sets[-1]`.
            metrics: as in `compile`.
            seen: earlier events, whose items are left out of the ranking of the same user.
            given: the binary target by which `data` was chosen, such as "click" when it holds clicks alone.
            cold: False if `data` is of a set before the last.
        """
        user, item, history = self.roles.user.name, self.roles.item.name, self.roles.history
        task = ranking_task(
            data,
            query=[user] if history is None else [user, history],
            candidate=item,
            candidates=self.item_ids,
            seen=seen,
            seen_by=[user],
        )
        asked = task.queries.batch(self.schema.select_by_name([user] if history is None else [user, history]))
        users = _places(asked[user], user, id_range(self.roles.user))  # type: ignore[arg-type]
        last = None if history is None else self._last_places(last_items(asked[history]))

        def score(rows: Tensor) -> Tensor:
            some = rows.numpy()
            return self._weighted(users[some], None if last is None else last[some], given, cold, torch.float32)

        values = evaluate_ranking(score, task, resolve_metrics(metrics))
        return {name: float(value.mean()) for name, value in values.items()}

    def raw(self, nulls: float = 0.05) -> RawTables:
        """The same world as raw tables, for a Preprocessor to encode.

        Args:
            nulls: the share of nulls in each column of categories and in the titles.

        Example:
            >>> raw = generate_world("testing", 1000, seed=1).raw()
            >>> raw.items.columns
            ['item_id', 'item_category', 'item_words', 'item_price', 'title']
        """
        if not 0 <= nulls < 1:
            raise ValueError(f"expected a share of nulls of at least 0 and below 1, got {nulls}.")
        parts, rng = self.roles, np.random.default_rng([self.seed, 3])
        users = raw_side(self.users.to_polars(), parts.user, parts.user_features, "u", nulls, rng)
        items = raw_side(self.items.to_polars(), parts.item, parts.item_features, "i", nulls, rng)
        events = []
        for one in self.sets:
            frame = one.to_polars()
            kept = [frame[name] for name in [parts.time, *parts.targets.column_names]]
            ids = [raw_ids(frame[parts.user.name], "u"), raw_ids(frame[parts.item.name], "i")]
            events.append(frame.select([*ids, *kept]))
        return RawTables(tuple(events), users, items.with_columns(titles(self.laws.topic, nulls, rng)))

    def _last_places(self, last: Ids | None) -> np.ndarray | None:
        if last is None:
            return None
        ids = torch.as_tensor(last)
        known = _places(ids[ids >= 0], self.roles.item.name, id_range(self.roles.item))
        places = np.full(len(ids), -1)
        places[(ids >= 0).numpy()] = known
        return places

    def _weighted(
        self, users: np.ndarray, last: np.ndarray | None, given: str | None, cold: bool, dtype: torch.dtype
    ) -> Tensor:
        pull, weight = self.laws.pull(users, last), self.laws.weights(cold)
        share = np.exp(pull - pull.max(axis=1, keepdims=True))
        if given is not None:
            share = share * self.laws.target(users, self.roles.level(given))
        mass = np.bincount(self.laws.topic, weights=weight, minlength=share.shape[1])
        share = share / (share @ mass)[:, None]
        return torch.from_numpy(share).to(dtype)[:, torch.from_numpy(self.laws.topic)] * torch.from_numpy(weight).to(
            dtype
        )


def last_items(histories: Tensor | Ragged) -> Tensor:
    """(B,) the last id of each list, -1 for empty ones."""
    assert isinstance(histories, Ragged)  # the schema says so
    last = torch.full((len(histories),), -1)
    filled = histories.lengths() > 0
    last[filled] = histories.values[histories.offsets[1:][filled] - 1]
    return last


def _places(ids: Ids, name: str, known: range) -> np.ndarray:
    given = torch.as_tensor(ids)
    if given.ndim != 1 or given.is_floating_point():
        raise ValueError(f"expected ids of {name!r} as integers (B,), got {given.dtype} of shape {tuple(given.shape)}.")
    wrong = given[(given < known.start) | (given >= known.stop)]
    if len(wrong):
        raise ValueError(
            f"ids of {name!r} go from {known.start} to {known.stop - 1} in this world, got {wrong[:5].tolist()}."
        )
    return (given - known.start).numpy()
