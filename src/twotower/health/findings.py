"""From a measurement to findings: the symptom with its number, the likely cause, what to do."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from twotower.health.record import Health, ListHealth, Setting, TowerHealth

# before so many optimiser steps a model is as it was initialised, and says nothing about its training
MIN_STEPS = 50
# models learn what is popular first and who likes what later: the quickstart, at a learning rate of .002, shows no tail
# item after 88 steps, and .7 % after 176. Before so many steps only causes count that no further training cures
SETTLED_STEPS = 1000
# the 10 best of fewer candidates overlap because there is not enough choice
MIN_CATALOG = 100
# of fewer lists, shares and overlaps are chance
MIN_QUERIES = 20
# nine of ten items in common with any other user's list: the order may differ, the items do not
SAME_LISTS = 0.9
# half in common is much (the quickstart ends below a quarter), and enough where the tail is missing as well
SIMILAR_LISTS = 0.5
# of the scores' variance, where no lists were taken; lists of queries that differ by less agree in nine items of ten
IMPERSONAL = 0.01
# logits that differ by a standard deviation of .1 give all candidates one probability, to 10 %
FLAT_LOGITS = 0.1
# and by 50, one: healthy models stand at 1 to 5, whatever the temperature
EXPLODED_LOGITS = 50.0
# vectors that lie within 1 % of their length around one vector (a variance of .01^2)
COLLAPSED = 1e-4
# the square of Spearman's .7 is one half: popularity explains more of the lengths' order than everything else
FOLLOWS_POPULARITY = 0.7
# lengths that differ by less cannot outweigh directions
MIN_NORM_SPREAD = 0.1
# the best list of ten holds popular items as a rule, so a tail that is shown less than it is used is no sign of illness, nor
# is one that is never shown while lists differ; a fiftieth of its share is about 10 of 2,560 places
HIDDEN_TAIL = 0.02
# lists of ten are of popular items; a head that gets less than half of its share of interactions is being pushed down
HIDDEN_HEAD = 0.5
# fewer distinct negatives than a tenth of the batch's rows, and of the catalogue: the batch is not a mix of the data
FEW_NEGATIVES = 0.1
# towers of one width see gradients of one scale; Adam's epsilon (1e-8) begins to count at about this ratio
VANISHED = 1e-6
# in the outer 2 % of the range (of log T) the sigmoid that holds T has lost 92 % of its slope
AT_BOUND = 0.02
# normalised vectors give logits of at most 1 / T: with T = .5, e^2 : e^-2 is the most that can be told apart
HOT = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        symptom: a short name of what is seen, such as "same-items".
        cause: a short name of the likely cause, such as "collapsed-query".
        text: both in words, with the numbers and what to do.
    """

    symptom: str
    cause: str
    text: str


def diagnose(health: Health, setting: Setting) -> list[Finding]:
    """What is wrong at this measurement; [] for a model that looks healthy. No cause is named twice."""
    if health.step < MIN_STEPS:
        return []
    broken = list(_not_finite(health))
    if broken:
        return broken
    found = list(_mechanical(health, setting))
    settled = health.step >= SETTLED_STEPS
    if (health.epoch_end or settled) and health.catalog >= MIN_CATALOG:
        found = [*(f for f in _learnt(health, setting) if settled or f.cause not in CURED_BY_TRAINING), *found]
    return list({finding.cause: finding for finding in reversed(found)}.values())[::-1]


def _towers(health: Health) -> list[tuple[str, TowerHealth]]:
    return [("query", health.query), ("candidate", health.candidate)]


def _not_finite(health: Health) -> Iterator[Finding]:
    for name, tower in _towers(health):
        if not math.isfinite(tower.norm):
            yield Finding(
                "not-finite",
                f"vectors-{name}",
                f"the {name} tower gives vectors that are not finite. Likely cause: nan in its columns, or a learning rate that "
                "is too high. Look for nan in the data, lower the learning rate, or give trainer_options="
                '{"gradient_clip_val": 1.0}.',
            )


# ---- what holds whether or not the model has learnt yet


def _mechanical(health: Health, setting: Setting) -> Iterator[Finding]:
    towers = _towers(health)
    for (name, tower), (other_name, other) in (towers, towers[::-1]):
        if tower.gradient_norm <= VANISHED * other.gradient_norm and other.gradient_norm > 0:
            yield _no_gradient(name, tower, other_name, other)
    if (
        setting.in_batch
        and health.distinct_candidates < FEW_NEGATIVES * min(health.rows, health.catalog)
        and health.catalog >= MIN_CATALOG
    ):
        yield Finding(
            "few-negatives",
            "duplicates",
            f"a batch of {health.rows} rows holds {health.distinct_candidates} distinct candidates (of {health.catalog}), so "
            "that in-batch negatives are few and mostly masked. Likely cause: the data is sorted and not shuffled, or a few "
            'items have nearly all interactions. Give shuffle=True, or negative_samplers=["in-batch", "uniform"].',
        )
    bounds = setting.learnt_temperature
    if bounds is not None:
        place = math.log(health.temperature / bounds[0]) / math.log(bounds[1] / bounds[0])
        if min(place, 1 - place) < AT_BOUND:
            yield _at_bound(health.temperature, bounds, low=place < 0.5)


def _no_gradient(name: str, tower: TowerHealth, other_name: str, other: TowerHealth) -> Finding:
    if tower.spread < COLLAPSED and not tower.constant_input:
        cause = "its units have died (it gives all rows the same vector), from a learning rate that was too high."
    else:
        cause = "its vectors are cut off from the loss by detach(), no_grad() or a layer that saturates or rounds."
    return Finding(
        "no-gradient",
        f"no-gradient-{name}",
        f"the {name} tower gets no gradient: its norm is {tower.gradient_norm:.2g}, the {other_name} tower's "
        f"{other.gradient_norm:.2g}. Likely cause: {cause} It stays as it is while the other tower learns around it. Look at "
        f"p.grad of model.{name}.parameters() after model.loss(batch).backward(), or lower the learning rate.",
    )


def _at_bound(temperature: float, bounds: tuple[float, float], low: bool) -> Finding:
    words = (
        f"its minimum {bounds[0]:g}. Likely cause: the model remembers the training data and asks for ever sharper "
        "distributions. Regularise it, stop earlier, or fix T with logits_temperature=0.05 to 0.2."
        if low
        else f"its maximum {bounds[1]:g}. Likely cause: towers that are not normalised, whose lengths take over the part of "
        "1 / T, or labels that are mostly noise. Give both towers post=L2Norm(), or fix T with logits_temperature."
    )
    return Finding(
        "temperature-bound",
        f"temperature-{'minimum' if low else 'maximum'}",
        f"the learnt temperature is {temperature:.3g}, at {words}",
    )


# ---- what the model should have learnt by now

CURED_BY_TRAINING = ("untrained", "norms", "popularity", "frozen-query", "frozen-candidate")


def _learnt(health: Health, setting: Setting) -> Iterator[Finding]:
    lists = health.lists if health.lists is not None and health.lists.queries >= MIN_QUERIES else None
    share, percent = health.personal_share, f"{health.personal_share:.1%}"
    if health.query.constant_input:
        yield _with_cause("same-items", "everyone gets the same items: nothing tells users apart.", health, setting)
    elif health.logit_spread < FLAT_LOGITS:
        yield _with_cause(
            "flat-scores",
            f"all candidates score alike: a query's logits differ by {health.logit_spread:.2g} only (standard deviation).",
            health,
            setting,
        )
    elif lists is not None and lists.overlap >= SAME_LISTS:
        yield _with_cause(
            "same-items",
            f"everyone gets the same items: two users' lists of ten have {lists.overlap:.0%} in common, and {percent} of the "
            "differences between scores depend on who asks.",
            health,
            setting,
        )
    elif lists is None and share < IMPERSONAL:
        yield _with_cause(
            "same-items",
            f"everyone gets the same items: {percent} of the differences between scores depend on who asks.",
            health,
            setting,
        )
    elif lists is not None:
        yield from _wrong_share(health, lists, setting)


def _wrong_share(health: Health, lists: ListHealth, setting: Setting) -> Iterator[Finding]:
    if lists.overlap >= SIMILAR_LISTS and lists.tail_share < HIDDEN_TAIL * lists.tail_interactions:
        yield _with_cause(
            "hidden-tail",
            f"the tail is never shown: it has {lists.tail_interactions:.0%} of the interactions and {lists.tail_share:.1%} of "
            f"the places in users' lists, of which two have {lists.overlap:.0%} in common.",
            health,
            setting,
        )
    head, head_interactions = 1 - lists.tail_share, 1 - lists.tail_interactions
    if setting.in_batch and not setting.corrected and head < HIDDEN_HEAD * head_interactions:
        yield Finding(
            "hidden-head",
            "uncorrected",
            f"popular items are hardly shown: they have {head_interactions:.0%} of the interactions and {head:.1%} of the "
            "places in users' lists. Likely cause: in-batch negatives are mostly popular items, and without correction the "
            'model learns to push them down. Give logq_sampling_correction="logq" (the default).',
        )


def _with_cause(symptom: str, seen: str, health: Health, setting: Setting) -> Finding:
    cause, words = _cause(health, setting)
    return Finding(symptom, cause, f"{seen} Likely cause: {words}")


def _cause(health: Health, setting: Setting) -> tuple[str, str]:
    """The first that applies, from the input to the loss."""
    for name, tower in _towers(health):
        if tower.constant_input:
            return f"constant-{name}", (
                f"the columns of the {name} tower are the same in all rows, so nothing tells its rows apart. Give it columns "
                "that differ, such as an id or a history, and look at how the Preprocessor encoded them."
            )
    for name, tower in _towers(health):
        if tower.spread < COLLAPSED:
            return f"collapsed-{name}", (
                f"the {name} tower gives all its rows nearly one vector (mean cosine {tower.mean_cosine:.4f}): it has collapsed "
                "or ignores its columns. Most often the learning rate is too high (now "
                f"{setting.learning_rate:g}; try a tenth, or another initialisation), else a column of huge numbers drowns the "
                "others (scale it)."
            )
    if health.logit_spread > EXPLODED_LOGITS:
        return "exploded", (
            f"logits differ by {health.logit_spread:.2g} (standard deviation; 1 to 5 are common), so that one candidate takes all: "
            f"the learning rate ({setting.learning_rate:g}) is too high or the temperature ({health.temperature:g}) too low for "
            f"vectors of length {health.query.norm:.2g} and {health.candidate.norm:.2g}. Give both towers post=L2Norm() and "
            "logits_temperature=0.05 to 0.2, and try a tenth of the learning rate."
        )
    normalised = max(health.query.norm_spread, health.candidate.norm_spread) < 1e-3
    if normalised and health.temperature >= HOT:
        return "hot", (
            f"the temperature {health.temperature:g} is too high for normalised towers, whose logits it keeps within "
            f"{1 / health.temperature:.2g} of 0. Give logits_temperature=0.05 to 0.2."
        )
    for name, tower in _towers(health):
        if not tower.trained:
            return f"frozen-{name}", (
                f"no parameter of the {name} tower is trained (requires_grad is False in all of them). If it was not frozen on "
                f"purpose, call model.{name}.requires_grad_(True) and compile again."
            )
    if health.logit_spread < FLAT_LOGITS:
        return "untrained", (
            f"the model has hardly learnt: the learning rate ({setting.learning_rate:g}) is too low, there were too few steps "
            f"({health.step}), or the temperature ({health.temperature:g}) is too high for vectors of length "
            f"{health.candidate.norm:.2g}."
        )
    return _popularity(health)


def _popularity(health: Health) -> tuple[str, str]:
    if _norms_rule(health):
        return "norms", (
            f"items' lengths follow their popularity (rank correlation {health.norm_popularity:.2f}), and long vectors win "
            "every dot product. Give both towers post=L2Norm() and logits_temperature=0.05 to 0.2."
        )
    return "popularity", (
        "the model has learnt what is popular and little else. Give the query tower more to tell users apart, the candidate "
        'tower features beside the id, negative_samplers=["in-batch", "uniform"], and more epochs.'
    )


def _norms_rule(health: Health) -> bool:
    return health.norm_popularity >= FOLLOWS_POPULARITY and health.candidate.norm_spread >= MIN_NORM_SPREAD
