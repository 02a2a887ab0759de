"""The routes of the server, as a Litestar application."""

import asyncio
import contextlib
import importlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import polars as pl
from litestar import Litestar, MediaType, Response, get, post
from litestar.exceptions import HTTPException

from twotower.serving import openapi
from twotower.serving.explorer.routes import explorer_routes
from twotower.serving.front import Front
from twotower.serving.instruments import CONTENT_TYPE, Instruments
from twotower.serving.items import RawId
from twotower.serving.live import Live, Snapshot
from twotower.serving.oip import InferRequest, infer_response, metadata, questions_of
from twotower.serving.problems import Problem
from twotower.serving.reading import AnyRequest, as_problem, decoded, flag, read_body, read_parameters, whole, words
from twotower.serving.requests import Answer, Question, Refusal
from twotower.serving.service import Service
from twotower.serving.settings import Settings

log = logging.getLogger("twotower.serve")
Reply = Response[bytes]
QUESTIONS = msgspec.json.Decoder(Question | list[Question])
INFER = msgspec.json.Decoder(InferRequest)
ENCODER = msgspec.json.Encoder()
BY_HAND = {"k": whole, "seen": flag, "fields": words}


def as_json(value: object, status: int = 200) -> Reply:
    """A response."""
    return Response(ENCODER.encode(value), status_code=status, media_type=MediaType.JSON)


def refused(refusal: Refusal) -> Reply:
    """The response of one question that is not answered."""
    headers = {"retry-after": "1"} if refusal.status == 503 else None
    return Response(
        ENCODER.encode({"error": refusal.error}), status_code=refusal.status, media_type=MediaType.JSON, headers=headers
    )


def told(request: AnyRequest, error: Exception) -> Reply:
    """The response of an exception."""
    problem = as_problem(error)
    if problem.status == 500:
        log.error("%s %r failed", request.method, request.url.path, exc_info=error)
    return Response(problem.body(), status_code=problem.status, media_type=MediaType.JSON, headers=problem.headers)


def id_of(text: str, kind: object) -> RawId:
    """An id in a path, as the table has it."""
    text = text.removeprefix("/")
    try:
        return whole(text) if isinstance(kind, pl.DataType) and kind.is_integer() else text
    except ValueError:
        raise Problem(404, f"ids are whole numbers, got {text[:100]!r}.") from None


def make_app(live: Live, settings: Settings | None = None) -> tuple[Front, Service]:
    """An ASGI application that serves a bundle, and what runs inside it.

    Args:
        live: what to serve; loaded when the application starts, unless it is already.
        settings: how.
    """
    settings = settings or Settings()
    instruments = Instruments()
    service = Service(live, settings, instruments)
    routes = [*_questions(service), *_items(service), *_about(service), *_open_inference(service)]
    if settings.explorer:
        routes += explorer_routes(
            lambda: service.live.current.site, lambda: service.live.current.manifest.get("created"), service.side
        )
    app = Litestar(
        routes,
        openapi_config=None,
        lifespan=[_running(service)],
        exception_handlers={Problem: told, HTTPException: told, Exception: told},
        request_max_body_size=settings.limits.body_bytes,
        logging_config=None,
    )
    return Front(app, settings, instruments), service


def _running(service: Service) -> Callable[[Litestar], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def running(_: Litestar) -> AsyncIterator[None]:
        await service.load()
        watching = asyncio.ensure_future(service.watch()) if service.settings.watch else None
        try:
            yield
        finally:
            service.draining = True
            if watching is not None:
                watching.cancel()
            service.close()

    return running


def _questions(service: Service) -> list[Any]:
    limits = service.settings.limits

    @post("/recommend", status_code=200)
    async def recommend(request: AnyRequest) -> Reply:
        asked = decoded(await read_body(request, limits), QUESTIONS.decode, '{"user": 42, "k": 10}')
        if isinstance(asked, Question):
            (one,) = await service.answers([asked], request)
            return as_json(one) if isinstance(one, Answer) else refused(one)
        if not 0 < len(asked) <= limits.questions:
            raise Problem(
                422,
                f"the body has {len(asked)} questions, it may have 1 to {limits.questions}.",
                "Send them in several bodies.",
            )
        return as_json(await service.answers(asked, request))

    @get("/recommend/{user:path}")
    async def recommend_user(request: AnyRequest) -> Reply:
        given = read_parameters(request, BY_HAND)
        users = service.live.current.retriever.bundle.users
        raw = id_of(request.path_params["user"], None if users is None else users.schema[users.key])
        (one,) = await service.answers([Question(user=raw, **given)], request)
        return as_json(one) if isinstance(one, Answer) else refused(one)

    @get("/similar/{item:path}")
    async def similar(request: AnyRequest) -> Reply:
        given = read_parameters(request, {"k": whole, "fields": words})
        items = service.live.current.retriever.items
        raw = id_of(request.path_params["item"], items.table.schema[items.id_name])
        (one,) = await service.answers([Question(item=raw, **given)], request)
        return as_json(one) if isinstance(one, Answer) else refused(one)

    return [recommend, recommend_user, similar]


def _items(service: Service) -> list[Any]:
    most = service.settings.limits.search

    @get("/items")
    async def items(request: AnyRequest) -> Reply:
        given = read_parameters(request, {"search": str, "limit": whole})
        text, limit = given.get("search", ""), given.get("limit", min(10, most))
        if not 1 <= limit <= most or len(text) > 200:
            raise Problem(422, f"limit must be 1 to {most}, and search at most 200 characters.")

        def find(snapshot: Snapshot) -> dict[str, Any]:
            held = snapshot.retriever.items
            ids = snapshot.site.search.find(text, limit) if text.strip() else held.table[held.id_name].head(limit)
            cards = snapshot.cards.of(held.keys_of(list(ids)).tolist())
            return {"items": [{"id": raw, "fields": card} for raw, card in cards]}

        return as_json(await service.aside(find, request))

    @get("/items/{item:path}")
    async def item(request: AnyRequest) -> Reply:
        fields = read_parameters(request, {"fields": words}).get("fields")

        def look_up(snapshot: Snapshot) -> dict[str, Any]:
            held = snapshot.retriever.items
            raw = id_of(request.path_params["item"], held.table.schema[held.id_name])
            if raw not in held:
                raise Problem(404, f"no item has the id {raw!r}.", "GET /items?search= finds items.")
            try:
                snapshot.cards.check(fields or ())
            except ValueError as error:
                raise Problem(422, str(error)) from None
            ((_, card),) = snapshot.cards.of(held.keys_of([raw]).tolist(), fields)
            return {"id": raw, "fields": card}

        return as_json(await service.aside(look_up, request))

    return [items, item]


def _about(service: Service) -> list[Any]:
    live, limits = service.live, service.settings.limits

    @get("/")
    async def info() -> Reply:
        snapshot = live.current
        retriever, bundle = snapshot.retriever, snapshot.retriever.bundle
        return as_json(
            {
                "name": live.name,
                "version": snapshot.version,
                "twotower": importlib.import_module("twotower").__version__,
                "created": snapshot.manifest.get("created"),
                "loaded": snapshot.loaded.isoformat(timespec="seconds"),
                "load_seconds": round(snapshot.seconds, 3),
                "refused": live.refused,
                "items": len(retriever.items),
                "id": retriever.items.id_name,
                "fields": {
                    name: str(kind)
                    for name, kind in retriever.items.table.schema.items()
                    if name in snapshot.cards.every
                },
                "query": {n: f"list of {c.datatype}" if c.is_list else c.datatype for n, c in snapshot.inputs.items()},
                "history": retriever.history_column,
                "users": None if bundle.users is None else bundle.users.key,
                "index": bundle.index.kind,
                "dim": bundle.index.dim,
                "metrics": dict(bundle.metrics),
                "manifest": snapshot.manifest,
                "limits": {
                    name: getattr(limits, name) for name in ("body_bytes", "k", "questions", "list_length", "timeout")
                },
                "schema": "/schema",
            }
        )

    @get("/health/live")
    async def alive() -> Reply:
        return as_json({"live": True})

    @get("/health/ready")
    async def ready() -> Reply:
        body = {"ready": service.ready, "refused": live.refused}
        return as_json(
            {**body, "version": live.current.version} if live.loaded else body, 200 if service.ready else 503
        )

    @get("/metrics")
    async def metrics() -> Reply:
        service.instruments.queue.set(service.batcher.waiting)
        service.instruments.ready.set(service.ready)
        return Response(service.instruments.page(), media_type=CONTENT_TYPE)

    @post("/reload", status_code=200)
    async def reload() -> Reply:
        await service.reload(force=True)
        return as_json({"version": live.current.version, "loaded": live.current.loaded})

    @get("/schema")
    async def schema() -> Reply:
        return Response(openapi.page(_document()).encode(), media_type=MediaType.HTML)

    @get("/schema/openapi.json")
    async def schema_json() -> Reply:
        return as_json(_document())

    def _document() -> dict[str, Any]:
        snapshot = live.current
        items = snapshot.retriever.items
        some = items.table[items.id_name].head(1).to_list()
        return openapi.document(live.name, snapshot.inputs, some, service.settings.token is not None, limits)

    return [info, alive, ready, metrics, reload, schema, schema_json]


def _open_inference(service: Service) -> list[Any]:
    live, limits = service.live, service.settings.limits

    def checked(request: AnyRequest) -> Snapshot:
        snapshot = live.current
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != live.name or version not in (None, snapshot.version):
            raise Problem(
                404, f"there is no model {name!r} of version {version!r}.", f"GET /v2/models/{live.name} is there."
            )
        return snapshot

    def integers(snapshot: Snapshot) -> bool:
        items = snapshot.retriever.items
        return items.table.schema[items.id_name].is_integer()

    @get("/v2")
    async def server() -> Reply:
        return as_json(
            {"name": "twotower", "version": importlib.import_module("twotower").__version__, "extensions": []}
        )

    @get("/v2/health/live")
    async def alive() -> Reply:
        return as_json({"live": True})

    @get("/v2/health/ready")
    async def ready() -> Reply:
        return as_json({"ready": service.ready}, 200 if service.ready else 503)

    @get(["/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"])
    async def model(request: AnyRequest) -> Reply:
        snapshot = checked(request)
        return as_json(metadata(live.name, snapshot.version, snapshot.inputs, integers(snapshot)))

    @get(["/v2/models/{name:str}/ready", "/v2/models/{name:str}/versions/{version:str}/ready"])
    async def model_ready(request: AnyRequest) -> Reply:
        checked(request)
        return as_json({"name": live.name, "ready": service.ready}, 200 if service.ready else 503)

    @post(["/v2/models/{name:str}/infer", "/v2/models/{name:str}/versions/{version:str}/infer"], status_code=200)
    async def infer(request: AnyRequest) -> Reply:
        snapshot = checked(request)
        example = '{"inputs": [{"name": "user_id", "shape": [1], "datatype": "INT64", "data": [42]}]}'
        asked = decoded(await read_body(request, limits), INFER.decode, example)
        questions = questions_of(asked, snapshot.inputs, limits.questions)
        answers = []
        for number, one in enumerate(await service.answers(questions, request)):
            if isinstance(one, Refusal):
                raise Problem(one.status, f"row {number}: {one.error}")
            answers.append(one)
        return as_json(infer_response(live.name, snapshot.version, asked, answers, questions[0].k, integers(snapshot)))

    return [server, alive, ready, model, model_ready, infer]
