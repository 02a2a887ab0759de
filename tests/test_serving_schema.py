"""Requests made up from the OpenAPI description: nothing that it allows, and nothing that it does not, is a failure of ours."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from litestar.testing import TestClient

from twotower.serving.app import make_app
from twotower.serving.live import Live
from twotower.serving.settings import Limits, Settings

from . import serving_world as world

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient[Any]]:
    folder = tmp_path_factory.mktemp("schema") / "bundle"
    world.make_retriever().save(folder)
    front, _ = make_app(Live(folder), Settings(limits=Limits(k=50, timeout=30.0), watch=0, explorer=False))
    with TestClient(front) as made:
        yield made


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize(
    ("path", "method", "examples"),
    [
        ("/recommend", "POST", 40),
        ("/recommend/{user}", "GET", 10),
        ("/similar/{item}", "GET", 10),
        ("/items", "GET", 10),
        ("/items/{item}", "GET", 10),
        ("/v2/models/{name}/infer", "POST", 20),
    ],
)
def test_nothing_that_is_asked_breaks_the_server(
    path: str, method: str, examples: int, mode: Any, client: TestClient[Any]
) -> None:
    described = schemathesis.openapi.from_dict(client.get("/schema/openapi.json").json())
    operation = described[path][method]
    # of the model that is there: another is not found, whatever is sent
    named = {"path_parameters": {"name": "bundle"}} if "{name}" in path else {}

    @seed(1)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(mode, **named))
    def run(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url=str(client.base_url))
        if isinstance(sent.get("data"), (bytes, str)):
            sent["content"] = sent.pop("data")
        sent.pop("cookies", None)
        response = client.request(**sent)
        # what is no method, path or media type of the description is told by these
        if response.status_code not in (404, 405, 415):
            case.validate_response(response, checks=CHECKS)

    run()
