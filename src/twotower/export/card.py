"""The model card of a Retriever: what it is, what it reads, how good it is, how to load it."""

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from twotower.encoder import Tower
from twotower.evaluation import Estimate, Evaluation
from twotower.schema import ColumnSchema
from twotower.serving.retriever import Retriever
from twotower.tags import Tags

Measured = Evaluation | Mapping[str, float]
NUMBER = ".4g"


def model_card(
    retriever: Retriever,
    repo_id: str,
    license: str,
    *,
    description: str = "",
    metrics: Measured | None = None,
    example: Mapping[str, object] | None = None,
    users: int = 0,
) -> str:
    """README.md of a repository of models: Markdown, with the fields that the hub reads in front.

    Args:
        retriever, repo_id, license, description, metrics, example: as in push_to_hub.
        users: how many users' features the repository holds.

    Raises:
        ValueError: the example is no query that the Retriever answers.
    """
    bundle = retriever.bundle
    query = dict(_made_up(retriever) if example is None else example)
    _try(retriever, query)
    library = importlib.import_module("twotower")
    fields = {"license": license, "library_name": "twotower", "tags": ["recommender-systems", "retrieval", "two-tower"]}
    about = f"A two-tower retrieval model: raw queries in, the best of {len(bundle.items):,} items out."
    towers = _towers(bundle.model.query, bundle.model.candidate)
    sections = [
        f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n",
        f"# {repo_id.rpartition('/')[2]}\n",
        f"{about}\n" + (f"\n{description.strip()}\n" if description.strip() else ""),
        f"## Towers\n\n{towers}",
        f"The vectors have {bundle.model.query.dim} numbers. Results hold the columns {_names(bundle.items.columns)}.\n",
        f"## How good it is\n\n{_measured(metrics)}",
        f"## Load it\n\n{_snippet(repo_id, query)}",
        "The repository holds the towers, the items' vectors and display columns, and the preprocessor with its vocabularies: raw "
        f"ids among them{_of_users(retriever)}. {_store(users)} It holds no code and no pickle, and is checked against the "
        "checksums in manifest.json when it is loaded.\n",
        f"Written by twotower {library.__version__}.\n",
    ]
    return "\n".join(sections)


def _of_users(retriever: Retriever) -> str:
    query = retriever.bundle.model.query.schema
    ids = [c.name for c in query if Tags.USER_ID in c.tags and "vocabulary" in c.properties]
    return f", of users too ({_names(ids)})" if ids else ""


def _store(users: int) -> str:
    if users:
        return (
            f"**It holds what is known of {users:,} users**, by id: their features, and the items that they have seen."
        )
    return "It holds nothing else of users: questions by user id need a feature store, load_from_hub(..., users=)."


def _made_up(retriever: Retriever) -> dict[str, object]:
    """A query: of each raw column the first value of its vocabulary, nothing where there is none."""
    preprocessor, query = retriever.bundle.preprocessor, retriever.bundle.model.query
    made: dict[str, object] = {}
    for c in query.schema:
        for raw in preprocessor.raw_columns([c.name]):
            made.setdefault(raw, None)
            if "vocabulary" in c.properties:
                first = preprocessor.vocabulary(c.name).head(1).to_list()
                made[raw] = first if c.is_list else first[0] if first else None
    return made


def _try(retriever: Retriever, query: Mapping[str, object]) -> None:
    try:
        json.dumps(query)
        retriever.recommend([query], k=1)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the card shows a query that runs, but {query!r} does not ({error}): give example={{column: value, ...}} with the raw "
            "columns of the query tower."
        ) from error


def _towers(query: Tower, candidate: Tower) -> str:
    rows = [("tower", "column", "kind", "ids"), ("---", "---", "---", "---:")]
    for side, tower in (("query", query), ("candidate", candidate)):
        for c in tower.schema:
            domain = c.int_domain
            rows.append((side, c.name, _kind(c), "" if domain is None else f"{int(domain.max) + 1:,}"))
    return _table(rows)


def _kind(c: ColumnSchema) -> str:
    return ("ids" if c.int_domain is not None else "numbers") + (", a list" if c.is_list else "")


def _measured(metrics: Measured | None) -> str:
    if metrics is None:
        return "Not measured.\n"
    found: Mapping[str, Any] = metrics.metrics if isinstance(metrics, Evaluation) else metrics
    rows = [("metric", "value"), ("---", "---:"), *((name, _number(value)) for name, value in found.items())]
    note = ""
    if isinstance(metrics, Evaluation):
        note = (
            f"\nOf {metrics.queries:,} queries with {metrics.positives:,} positives among {metrics.candidates:,} candidates; in "
            f"brackets the {metrics.confidence:.0%} bootstrap interval.\n"
        )
    return _table(rows) + note


def _number(value: Estimate | float) -> str:
    return str(value) if isinstance(value, Estimate) else format(value, NUMBER)


def _snippet(repo_id: str, query: Mapping[str, object]) -> str:
    return (
        "```\npip install 'twotower[hub]'\n```\n\n"
        f"```python\nimport twotower as tt\n\nretriever = tt.load_from_hub({repo_id!r})\n"
        f"print(retriever.recommend([{query!r}], k=10))\n```\n"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def _names(columns: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in columns)
