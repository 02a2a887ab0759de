"""The laws of a made-up world: who likes what, how often, and what follows on what; and draws that obey them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
ROWS = 2**16  # drawn at once
LATENT = 8  # width of the latent vectors
HOME = 0.7  # how much a user's vector is that of the favourite topic
THRESHOLD = 3.0  # the taste at which the first binary target is as likely as not
BLUR = 0.3  # how far an item's own vector, which its features tell of, lies from its topic's


@dataclass(frozen=True, eq=False)
class Laws:
    """p(item | user, last item) = weight[item] * exp(taste[user, t] + flow[t of the last item, t]) / Z, t the item's topic.

    Users and items are counted from 0.

    Args:
        taste: (users, topics) how much a user is drawn to a topic.
        topic: (items,) int64, the topic of each item.
        weight: (items,) the item's popularity.
        cold: (items,) bool, items that come only with the last set: p is 0 before.
        flow: (topics, topics) how much a topic follows on another; None where the last item does not matter.
    """

    taste: Array
    topic: Array
    weight: Array
    cold: Array
    flow: Array | None

    def pull(self, users: Array, last: Array | None) -> Array:
        """(B, topics) the exponent; `last` (B,) is -1 for users without a last item."""
        exponent = self.taste[users]
        if self.flow is None or last is None:
            return exponent
        return exponent + np.where((last >= 0)[:, None], self.flow[self.topic[last]], 0)

    def weights(self, with_cold: bool) -> Array:
        """(items,) the weights, 0 for cold items if they are not there yet."""
        return self.weight if with_cold else np.where(self.cold, 0, self.weight)

    def target(self, users: Array, level: int) -> Array:
        """(B, topics) the probability of the binary target at a level of the funnel, 0 the first."""
        return np.prod([wanted(self.taste[users], step) for step in range(level + 1)], axis=0)


def wanted(taste: Array, step: int) -> Array:
    """The probability of a step of the funnel, once the step before is done."""
    return 1 / (1 + np.exp(THRESHOLD + step - taste))


@dataclass(frozen=True, eq=False)
class Vectors:
    """Where users (users, D) and items (items, D) lie, for their features to tell of."""

    users: Array
    items: Array


def make_laws(
    users: int,
    items: int,
    *,
    taste: float,
    popularity: float,
    cold_items: float,
    sequential: float,
    rng: np.random.Generator,
) -> tuple[Laws, Vectors]:
    """Draw a world: topics, tastes around a favourite topic, items of weight 1 / (1 + id)^popularity.

    Args:
        users, items: how many.
        taste: the standard deviation of the tastes.
        popularity: the exponent of Zipf's law.
        cold_items: the share of items that come with the last set.
        sequential: the standard deviation of the flow between topics; 0 for none.
        rng: the source of all of it.
    """
    topics = int(np.clip(round(items**0.5), 1, 64))
    centres = rng.normal(size=(topics, LATENT))
    topic = rng.permutation(np.arange(items) % topics)
    noise = rng.normal(size=(users, LATENT))
    user_vectors = HOME * centres[rng.integers(topics, size=users)] + (1 - HOME**2) ** 0.5 * noise
    item_vectors = centres[topic] + BLUR * rng.normal(size=(items, LATENT))
    affinity = user_vectors @ centres.T
    cold = np.zeros(items, bool)
    cold[rng.permutation(items)[: round(cold_items * items)]] = True
    laws = Laws(
        taste=taste * affinity / (affinity.std() or 1.0),
        topic=topic,
        weight=(1.0 + np.arange(items)) ** -popularity,
        cold=cold,
        flow=sequential * rng.normal(size=(topics, topics)) if sequential else None,
    )
    return laws, Vectors(user_vectors, item_vectors)


def draw_users(users: int, rows: int, rng_world: np.random.Generator, rng: np.random.Generator) -> Array:
    """(rows,) who acts: users differ in how active they are, log-normally."""
    activity = np.exp(rng_world.normal(size=users))
    return rng.choice(users, size=rows, p=activity / activity.sum())


def draw_items(laws: Laws, users: Array, last: Array, with_cold: bool, rng: np.random.Generator) -> Array:
    """(rows,) an item for each row, one row after the other of the same user.

    Args:
        laws: of the world.
        users: (rows,) in the order of time.
        last: (all users,) the last item of each user, -1 for none; brought up to date in place.
        with_cold: cold items can be drawn.
        rng: the source of the draws.
    """
    items = np.empty(len(users), np.int64)
    draw = _Draw(laws, with_cold)
    for rows in _steps(users) if laws.flow is not None else np.array_split(np.arange(len(users)), 1):
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            items[some] = draw(users[some], last[users[some]], rng)
        last[users[rows]] = items[rows]
    return items


def _steps(users: Array) -> Iterator[Array]:
    """Every user's first row, then every user's second, and so on."""
    order = np.argsort(users, kind="stable")
    new = np.r_[True, users[order][1:] != users[order][:-1]]
    start = np.maximum.accumulate(np.where(new, np.arange(len(users)), 0))
    number = np.arange(len(users)) - start
    by_step = np.argsort(number, kind="stable")
    yield from np.split(order[by_step], np.flatnonzero(np.diff(number[by_step])) + 1)


class _Draw:
    """First a topic, by pull and by the sum of its items' weights; then an item of it, by weight."""

    def __init__(self, laws: Laws, with_cold: bool) -> None:
        weight = laws.weights(with_cold)
        there = np.flatnonzero(weight > 0)
        self.laws = laws
        self.items = there[np.argsort(laws.topic[there], kind="stable")]
        self.ends = weight[self.items].cumsum()
        self.mass = np.bincount(laws.topic, weights=weight, minlength=laws.taste.shape[1])
        self.number = np.bincount(laws.topic[there], minlength=len(self.mass)).cumsum()

    def __call__(self, users: Array, last: Array, rng: np.random.Generator) -> Array:
        pull = self.laws.pull(users, last)
        ends = (np.exp(pull - pull.max(axis=1, keepdims=True)) * self.mass).cumsum(axis=1)
        place = rng.random(len(users)) * ends[:, -1]
        topic = (ends[:, :-1] <= place[:, None]).sum(axis=1)
        first, stop = np.r_[0, self.number][topic], self.number[topic]
        start = np.r_[0, self.ends][first]
        place = start + rng.random(len(users)) * (self.ends[stop - 1] - start)
        # rounding may put a place a hair outside the topic
        return self.items[np.searchsorted(self.ends, place, side="right").clip(first, stop - 1)]
