"""Writing the page: sections into the template, charts as JSON, and nothing from elsewhere."""

import base64
import hashlib
from importlib import import_module
from importlib.resources import files
from typing import Any

from twotower.files import PathLike, written_aside
from twotower.report.catalogue import describe_items
from twotower.report.comparison import compare_all, metrics_section, slices_section, summarise
from twotower.report.curves import health_section, health_words, training_section
from twotower.report.exposure import exposure_section, exposure_sentence
from twotower.report.item_map import map_section
from twotower.report.people import people
from twotower.report.record import ReportData
from twotower.report.scores import scores_section
from twotower.report.words import plain, split_name

NEEDED = ("jinja2", "plotly", "sklearn")


def write_report(path: PathLike, data: ReportData) -> None:
    """Write the report of a trained model: one HTML file that loads nothing, to be read offline, mailed or printed.

    Args:
        path: of the file; it appears whole or not at all.
        data: what it is computed from.

    Raises:
        ImportError: the report's libraries are not installed.

    Example:
        >>> evaluator = Evaluator(test, candidates=items, seen=train, user="user_id", item="item_id")   # doctest: +SKIP
        >>> write_report("report.html", ReportData(title="Films", config="", history=history, train=train,
        ...     evaluations=[evaluator(retriever), evaluator(popularity)], items=items, user="user_id", item="item_id",
        ...     retriever=retriever, findings=[], environment={}, test=test))                             # doctest: +SKIP
    """
    page = render(data)
    with written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")


def render(data: ReportData) -> str:
    """The page as text."""
    _check_installed()
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    parts = {
        name: (files("twotower") / "report" / "templates" / name).read_text("utf-8")
        for name in ("page.html", "colors.css", "style.css", "page.js")
    }
    scripts = [get_plotlyjs(), parts["page.js"]]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(parts["page.html"]).render(
        **_contents(data),
        style=parts["colors.css"] + parts["style.css"],
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
    )


def _contents(data: ReportData) -> dict[str, Any]:
    """What the template names."""
    comparison = compare_all(data)
    k = split_name(comparison.metric)[1]
    catalogue = describe_items(data, int(k) if k else None)
    summary = summarise(data, comparison)
    sections = [
        metrics_section(data, comparison),
        slices_section(data, comparison),
        exposure_section(data, catalogue),
        scores_section(data, catalogue),
        map_section(catalogue),
        training_section(data),
        health_section(data),
    ]
    return {
        "data": data,
        "plain": plain,
        "sentence": lambda words: words[:1].upper() + words[1:],
        "summary": summary,
        "sentences": [*summary.sentences, exposure_sentence(data, catalogue), _health_sentence(data)],
        "sections": sections,
        "people": people(data, catalogue, comparison.metric),
        "plots": {figure.name: figure.plot for section in sections for figure in section.figures},
        "numbers": _numbers(data),
    }


def _health_sentence(data: ReportData) -> str:
    names = [plain(name) for name, _ in data.findings]
    if not names:
        return f"Health: {health_words(data)[:1].lower()}{health_words(data)[1:]}"
    return f"Health: {len(names)} {'finding' if len(names) == 1 else 'findings'} from training ({', '.join(names)}); see below."


def _numbers(data: ReportData) -> dict[str, str]:
    """The sizes under the title."""
    model = data.evaluations[0]
    return {
        "training events": f"{len(data.train):,}",
        "items": f"{len(data.items):,}",
        "test queries": f"{model.queries:,}",
        "choices to predict": f"{model.positives:,}",
    }


def _check_installed() -> None:
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f"a report needs {name}, which is not installed: pip install 'twotower[report]'."
            ) from error


def _hash(script: str) -> str:
    """By which the page's policy knows its own scripts: no other script runs, wherever it came from."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
