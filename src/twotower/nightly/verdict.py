"""What speaks against publishing, in words: each check gives its reason, or None."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import polars as pl

from twotower.evaluation import Difference
from twotower.nightly.known import Affinity
from twotower.nightly.rules import RefreshRules

ALL_SEEN = (
    "every row held out repeats an item that its person had before, and remove_seen of the config leaves such rows out: none is "
    "left to judge by. Wait for more rows; --skip-known takes a longer file."
)


def too_late(known: pl.Series, fresh: pl.Series) -> str | None:
    """Times that lie further ahead than all known ones span."""
    bounds: list[Any] = [known.min(), known.max(), fresh.max()]  # numbers, dates or datetimes
    first, last, now = bounds
    if now - last <= last - first:
        return None
    return (
        f"the fresh rows reach to {now}, further after the last known one, {last}, than the known ones span: is "
        f"{fresh.name!r} written in another unit?"
    )


def apart(known: pl.Series, fresh: pl.Series) -> str | None:
    """A newest time far beyond the bulk: published, it would make every later night one of known rows.

    With t(q) the fresh time at the share q of the rows: max - t(.99) must not exceed t(.99) - t(.01), nor one step, the least
    difference of two times, where nearly all rows are of one moment, such as a date.
    """
    times = fresh.drop_nulls().sort()
    rest: list[Any] = [times[int(share * (len(times) - 1))] for share in (0.01, 0.99)]
    low, high = rest
    newest: Any = times[-1]
    if (
        newest - high <= high - low
        or newest - high <= pl.concat([known, fresh]).drop_nulls().unique().sort().diff().min()
    ):
        return None
    beyond = int((times > high).sum())
    return (
        f"{beyond:,} of {len(times):,} fresh rows reach to {newest}, further beyond the bulk of them, {low} to {high}, than that "
        f"is long: is a clock wrong? Once {fresh.name!r} = {newest} is known, every row before it is late. Take these rows out."
    )


def ahead(fresh: pl.Series, now: datetime) -> str | None:
    """Moments that have not come yet; a day is left to zones of time. Numbers have no unit, and are not looked at."""
    kind = fresh.dtype
    if kind != pl.Date and not isinstance(kind, pl.Datetime):
        return None
    tomorrow = (now + timedelta(days=1)).astimezone(timezone.utc)
    bound: date = tomorrow.date() if kind == pl.Date else tomorrow
    if isinstance(kind, pl.Datetime) and kind.time_zone is None:
        bound = tomorrow.replace(tzinfo=None)
    later = fresh.filter(fresh > bound)
    if not len(later):
        return None
    last: Any = later.max()
    return f"{len(later):,} of {len(fresh):,} fresh rows are of moments to come, up to {last}: is a clock wrong? Take them out."


def damaged(before: Affinity, now: Affinity, rules: RefreshRules) -> str | None:
    """The live bundle must still know whose rows are whose; two standard errors are left to chance."""
    if now.share + 2 * now.error >= 0.5 + rules.trust * (before.share - 0.5):
        return None
    return (
        f"the rows look damaged: the live bundle ranks a person's own item above another's in {now.share:.1%} of the cases, "
        f"{before.share:.1%} on rows before that it had not learnt either, 50% by chance. Are items and people "
        "joined as they should be?"
    )


def reference(before: Affinity | None, now: Affinity | None, sound: bool) -> Affinity | None:
    """What the next night is measured by: it rises when a sound night is surely better, and never falls.

    Were it that of the last night, one bad night that is published would turn the check off for all that follow.
    """
    told = before if before is not None and before.least > 0.5 else None
    if not sound or now is None or now.least <= 0.5:
        return told
    return now if told is None or now.least > told.share else told


def items_lost(lost: int, before: int, rules: RefreshRules) -> str | None:
    """The catalogue must not shrink by much."""
    if lost <= rules.most_lost * before:
        return None
    return (
        f"{lost:,} of {before:,} items are gone, more than {rules.most_lost:.0%}. If they should be, give "
        f"--most-lost {lost / before + 0.005:.2f} (most_lost in RefreshRules)."
    )


def worse(differences: Sequence[Difference], metric: str, rules: RefreshRules) -> str | None:
    """The interval of new less live must lie above the margin."""
    found = next((d for d in differences if d.metric == metric), None)
    if found is None:
        return f"{metric} has no value for each query, so that live and new cannot be compared by it."
    bound = -rules.margin * found.second
    if found.low >= bound:
        return None
    if found.low != found.low:
        return "fewer than ten people are held out: too few to judge by. Wait for more rows; --skip-known takes a longer file."
    what = "worse than" if found.high < 0 else "not proved to be as good as"
    return (
        f"the new bundle is {what} the live one: {found}. The lower end must be at {bound:+.4f} or above, {rules.margin:.0%} of "
        "the live figure."
    )


def all_alike(new: float, live: float, rules: RefreshRules) -> str | None:
    """People's lists must stay as different as they were, or nearly."""
    if 1 - new >= rules.personal * (1 - live):
        return None
    return f"everyone gets the same items: two lists share {new:.0%} of their items, {live:.0%} of the live ones."
