"""The description of the routes: OpenAPI 3.1, and a page of it that loads nothing from elsewhere."""

import html
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from twotower.serving.inputs import Input, example_query
from twotower.serving.oip import InferRequest
from twotower.serving.problems import ErrorBody
from twotower.serving.requests import Answer, Question, Refusal, Result
from twotower.serving.settings import Limits

Json = dict[str, Any]
BODY_ERRORS = (400, 404, 408, 413, 415, 422, 504)
OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
SAY = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    403: "A page of another site asks, or the server is called by a name that is not its own.",
    404: "There is no such user, item or model.",
    408: "The body did not come in time.",
    409: "The new bundle is broken; the one before is served on.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "It cannot be answered; the error says why.",
    431: "The head of the request is too large.",
    500: "The server failed; its log says why.",
    503: "Not ready, or too busy: ask again.",
    504: "There was no answer in time.",
}


def document(
    name: str, inputs: Mapping[str, Input], some_items: Sequence[int | str], secured: bool, limits: Limits
) -> Json:
    """OpenAPI 3.1.

    Args:
        name: of the model.
        inputs: what a query has.
        some_items: ids, for examples.
        secured: whether a token is asked for.
        limits: of requests.
    """
    shown = [Question, Answer, Refusal, Result, InferRequest, ErrorBody]
    _, components = msgspec.json.schema_components(shown, ref_template="#/components/schemas/{name}")
    question = components["Question"]["properties"]
    question["k"] |= {"minimum": 1, "maximum": limits.k}
    for listed in ("exclude", "only", "history"):
        for kind in [question[listed], *question[listed].get("anyOf", [])]:
            if kind.get("type") == "array":
                kind["maxItems"] = limits.list_length
    paths = _paths(name, inputs, some_items, limits)
    for path, operations in paths.items():
        for operation in operations.values():
            further = (431, 500) if path in OPEN else (401, 403, 431, 500, 503) if secured else (403, 431, 500, 503)
            operation["responses"] |= {str(status): _error(status) for status in further}
            if secured and path not in OPEN:
                operation["security"] = [{"token": []}, {"password": []}]
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": f"twotower: {name}", "version": importlib.import_module("twotower").__version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        schemes = {"token": {"type": "http", "scheme": "bearer"}, "password": {"type": "http", "scheme": "basic"}}
        found["components"]["securitySchemes"] = schemes
    return found


def page(described: Json) -> str:
    """The routes as HTML without scripts."""
    parts = [HEAD.format(title=html.escape(described["info"]["title"]))]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            parts.append(
                f"<h2><b>{method.upper()}</b> {html.escape(path)}</h2><p>{html.escape(operation['summary'])}</p>"
            )
            names = [
                f"<code>{p['name']}</code> {html.escape(p['description'])}" for p in operation.get("parameters", [])
            ]
            parts.append("".join(f"<p class=p>{text}</p>" for text in names))
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for title, example in content.get("examples", {}).items():
                text = html.escape(json.dumps(example["value"], ensure_ascii=False))
                parts.append(f"<p class=p>{html.escape(title)}</p><pre>{text}</pre>")
    return "".join(parts)


HEAD = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}}
h2{{font-size:1.05rem;margin:2rem 0 .2rem;font-family:ui-monospace,monospace}}h2 b{{color:#0a5}}p{{margin:.2rem 0}}.p{{color:#555}}
pre{{background:#f4f4f4;padding:.6rem;overflow:auto}}
@media(prefers-color-scheme:dark){{body{{background:#181818;color:#ddd}}pre{{background:#262626}}.p{{color:#aaa}}}}</style>
<h1>{title}</h1><p>The same as <a href="/schema/openapi.json">OpenAPI 3.1</a>.</p>"""


def _paths(name: str, inputs: Mapping[str, Input], some_items: Sequence[int | str], limits: Limits) -> Json:
    query = example_query(inputs)
    ref, answer = "#/components/schemas/", {"$ref": "#/components/schemas/Answer"}
    k = _parameter("k", "How many items.", {"type": "integer", "minimum": 1, "maximum": limits.k})
    seen = _parameter("seen", "Whether what the user has seen may come.", {"type": "boolean"})
    fields = _parameter("fields", "The items' columns to give, with commas.", {"type": "string"})
    search = _parameter(
        "search", "The beginning of an id, or words of the texts.", {"type": "string", "maxLength": 200}
    )
    limit = _parameter("limit", "How many items.", {"type": "integer", "minimum": 1, "maximum": limits.search})
    several = {"type": "array", "items": {"$ref": ref + "Question"}, "minItems": 1, "maxItems": limits.questions}
    asked = {"oneOf": [{"$ref": ref + "Question"}, several]}
    answered = {"anyOf": [answer, {"type": "array", "items": {"anyOf": [answer, {"$ref": ref + "Refusal"}]}}]}
    examples: Json = {"by query": {"query": query, "k": 10}, "by user": {"user": 42, "exclude": list(some_items)}}
    examples["by history"] = {"history": list(some_items)}
    examples["several"] = [{"item": raw} for raw in some_items]
    item, user = _path("item", "The item's id."), _path("user", "An id that the feature store knows.")
    columns: list[Json] = [
        {
            "name": n,
            "shape": [1, 0] if c.is_list else [1],
            "datatype": c.datatype,
            "data": [] if c.is_list else [c.example],
        }
        for n, c in inputs.items()
    ]
    own, version = {"name": _path("name", "The model's name.")}, {"version": _path("version", "The bundle's version.")}
    paths: Json = {
        "/recommend": {
            "post": _operation(
                "Items for one question, or for each of several, by query, user, history or item. Of several, each is answered or "
                "refused by itself.", answered, BODY_ERRORS, body=(asked, examples)
            )
        },
        "/recommend/{user}": {
            "get": _operation("Items for a user.", answer, (404, 422, 504), [user, k, seen, fields])
        },
        "/similar/{item}": {
            "get": _operation("Items like an item.", answer, (404, 422, 504), [item, k, fields])
        },
        "/items": {"get": _operation("Items by text.", {"type": "object"}, (422, 504), [search, limit])},
        "/items/{item}": {"get": _operation("An item's columns.", {"type": "object"}, (404, 422, 504), [item, fields])},
        "/": {"get": _operation("The model, its bundle and what was measured.", {"type": "object"})},
        "/health/live": {"get": _operation("Whether the process answers.", {"type": "object"})},
        "/health/ready": {"get": _operation("Whether requests are welcome.", {"type": "object"}, (503,))},
        "/metrics": {"get": _operation("Counters for Prometheus.", {"type": "string"}, media="text/plain")},
        "/reload": {"post": _operation("Serve what lies at the path now, if it is whole.", {"type": "object"}, (409,))},
        "/schema": {"get": _operation("This page.", {"type": "string"}, media="text/html")},
        "/schema/openapi.json": {"get": _operation("This page for machines.", {"type": "object"})},
        "/v2": {"get": _operation("The server, in the Open Inference Protocol.", {"type": "object"})},
        "/v2/health/live": {"get": _operation("Whether the process answers.", {"type": "object"})},
        "/v2/health/ready": {"get": _operation("Whether requests are welcome.", {"type": "object"}, (503,))},
    }  # fmt: skip
    infer = ({"$ref": ref + "InferRequest"}, {"a query": {"inputs": columns, "parameters": {"k": 10}}})
    for prefix, given in (("", own), ("/versions/{version}", own | version)):
        base, names = f"/v2/models/{{name}}{prefix}", list(given.values())
        paths[base] = {"get": _operation("The model's inputs and outputs.", {"type": "object"}, (404,), names)}
        paths[f"{base}/ready"] = {"get": _operation("Whether it answers.", {"type": "object"}, (404,), names)}
        summary = f"Items for queries as tensors. The model's name is {name}."
        paths[f"{base}/infer"] = {"post": _operation(summary, {"type": "object"}, BODY_ERRORS, names, infer)}
    return paths


def _operation(
    summary: str,
    schema: Json,
    errors: Sequence[int] = (),
    parameters: Sequence[Json] = (),
    body: tuple[Json, Json] | None = None,
    media: str = "application/json",
) -> Json:
    made: Json = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": {media: {"schema": schema}}},
            **{str(status): _error(status) for status in errors},
        },
    }
    if parameters:
        made["parameters"] = list(parameters)
    if body is not None:
        examples = {title: {"value": value} for title, value in body[1].items()}
        made["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body[0], "examples": examples}},
        }
    return made


def _error(status: int) -> Json:
    # readiness says 503 with a body of its own
    return {
        "description": SAY[status],
        "content": {
            "application/json": {
                "schema": {"type": "object"} if status == 503 else {"$ref": "#/components/schemas/ErrorBody"}
            }
        },
    }


def _parameter(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _path(name: str, description: str) -> Json:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
