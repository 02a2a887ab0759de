"""Numbers and names as a reader wants them."""

import math
import re

from twotower.evaluation import Estimate

NAMES = {
    "recall": "Recall",
    "full_recall": "Full recall",
    "precision": "Precision",
    "hit_rate": "Hit rate",
    "mrr": "MRR",
    "map": "MAP",
    "ndcg": "NDCG",
    "coverage": "Coverage",
    "gini": "Gini index",
    "novelty": "Novelty",
    "popularity_lift": "Popularity lift",
}
MEANINGS = {
    "recall": "of what a user chose next, at most {k} of it, the share that stands in the first {k} recommendations",
    "full_recall": "of all that a user chose next, be it more than {k}, the share that stands in the first {k} recommendations",
    "precision": "the share of the first {k} recommendations that users chose next",
    "hit_rate": "the share of users who find something they chose next in the first {k} recommendations",
    "mrr": "one over the rank of the first right recommendation, 0 beyond {k}",
    "map": "the precision at each right recommendation of the first {k}",
    "ndcg": "right recommendations among the first {k}, those higher up counting more",
}
HIGHER_IS_BETTER = tuple(MEANINGS)


def split_name(metric: str) -> tuple[str, str]:
    """Such as ("recall", "20")."""
    found = re.fullmatch(r"(.+)_at_(\d+)", metric)
    return (found.group(1), found.group(2)) if found else (metric, "")


def metric_name(metric: str) -> str:
    """Such as Recall@20."""
    kind, k = split_name(metric)
    name = NAMES.get(kind, kind.replace("_", " ").capitalize())
    return f"{name}@{k}" if k else name


def called(name: str) -> str:
    """A ranker's name within a sentence."""
    return f"“{name}”" if "," in name else name


def plain(name: str) -> str:
    """Such as "cold items" for cold_items and "hidden tail" for hidden-tail."""
    return name if " " in name else name.replace("_", " ").replace("-", " ")


def number(value: float | None) -> str:
    """Such as .262, 12.3 and 1,234; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 999.5:  # 1,000 when rounded, which .3g would write as 1e+03
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) >= 1:
        return f"{value:.3g}".replace("-", "−")
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:.{4 if abs(value) < 0.01 else 3}f}".replace("0.", ".", 1).replace("-", "−")


def signed(value: float) -> str:
    """Such as +.104."""
    return ("+" if value > 0 else "") + number(value)


def interval(low: float, high: float) -> str:
    """Such as [.250, .274], which no line breaks; nothing where there is none."""
    return "" if math.isnan(low) else f"[{number(low)},\u00a0{number(high)}]"


def estimate(found: Estimate) -> str:
    """Such as .262 [.250, .274]."""
    return f"{number(found.mean)} {interval(found.low, found.high)}".strip()


def probability(p: float) -> str:
    """Such as p = .03 and p < .001."""
    return "p\u00a0<\u00a0.001" if p < 0.001 else f"p\u00a0=\u00a0{number(p)}"


def percent(share: float) -> str:
    """Such as 23 % and 0.4 %."""
    if not math.isfinite(share):
        return "–"
    return f"{share:.0%}" if share >= 0.095 or share == 0 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def chosen(events: int) -> str:
    """How often, in training."""
    return "never chosen in training" if events == 0 else "chosen once" if events == 1 else f"chosen {events:,} times"


def listed(names: list[str]) -> str:
    """Such as "a, b and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else "nothing"
