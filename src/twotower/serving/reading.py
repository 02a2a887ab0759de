"""Reading requests: strictly, within limits, and with an error that says what was wrong."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import msgspec
from litestar import Request
from litestar.exceptions import ClientException, HTTPException

from twotower.serving.problems import HINTS, Problem
from twotower.serving.requests import Question
from twotower.serving.settings import Limits

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]


async def read_body(request: AnyRequest, limits: Limits) -> bytes:
    """The body; the application's own limit refuses one that is too large."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            415,
            f"the content type is {kind[:100]!r}, not application/json.",
            "Send JSON, with the header content-type: application/json.",
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise Problem(415, f"the body is encoded as {coding[:100]!r}.", "Send it as it is, without content-encoding.")
    try:
        with anyio.fail_after(limits.body_timeout):
            return await request.body()
    except TimeoutError:
        raise Problem(408, f"the body did not come within {limits.body_timeout:g} s.") from None
    except ClientException as error:
        if error.status_code == 413:
            raise Problem(413, f"the body is larger than {limits.body_bytes} bytes.", HINTS[413]) from None
        raise


def decoded(body: bytes, decode: Callable[[bytes], T], example: str) -> T:
    """A body as a record.

    Raises:
        Problem: 400 for what is no JSON, 422 for JSON of another form.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise Problem(422, f"the body has another form than expected: {error}.", f"Such as {example}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "NaN and Infinity are no JSON: give null for what is not known." if body else f"Such as {example}"
        raise Problem(400, f"the body is no JSON: {error}.", hint) from None
    except RecursionError:
        raise Problem(400, "the body is nested too deep.", f"Such as {example}") from None


def check_question(question: Question, limits: Limits) -> None:
    """Problem if it asks for more than the limits allow."""
    if question.k > limits.k:
        raise Problem(
            422,
            f"k is {question.k}, but at most {limits.k} items may be asked for.",
            "Ask for fewer, or raise --max-k.",
        )
    if question.fields is not None and len(set(question.fields)) < len(question.fields):
        raise Problem(422, "fields names a column more than once.", "Name each once.")
    for name in ("exclude", "only", "history", "fields"):
        _check_length(name, getattr(question, name), limits)
    for name in ("query", "context", "where"):
        _check_nested(name, getattr(question, name), limits, limits.depth)


def check_together(questions: Sequence[Question], limits: Limits) -> None:
    """Problem if the questions of one body ask for more than the limits allow."""
    for question in questions:
        check_question(question, limits)
    wanted, most = sum(question.k for question in questions), max(limits.results, limits.k)
    if wanted > most:
        text = f"the questions ask for {wanted} items together, but a body may ask for {most}."
        raise Problem(422, text, "Send them in several bodies, or ask for fewer.")


def _check_length(name: str, value: Sequence[object] | None, limits: Limits) -> None:
    if value is not None and len(value) > limits.list_length:
        raise Problem(
            422, f"{name} has {len(value)} elements, but at most {limits.list_length} are read.", "Shorten it."
        )


def _check_nested(name: str, value: object, limits: Limits, depth: int) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Problem(422, f"{name} holds a number beyond a double.", "Give null for what is not known.")
    if not isinstance(value, (dict, list)):
        return
    if depth == 0:
        raise Problem(
            422, f"{name} is nested deeper than {limits.depth} levels.", "Values are numbers, texts, flags and lists."
        )
    _check_length(name, list(value), limits) if isinstance(value, list) else None
    for element in value.values() if isinstance(value, dict) else value:
        _check_nested(name, element, limits, depth - 1)


def read_parameters(request: AnyRequest, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The parameters after the question mark; Problem for one that is unknown, comes twice or cannot be read."""
    found: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name not in known:
            raise Problem(422, f"unknown parameter {name!r}.", f"This route reads {', '.join(known)}.")
        if name in found:
            raise Problem(422, f"parameter {name!r} came twice.")
        try:
            found[name] = known[name](text)
        except ValueError as error:
            raise Problem(422, f"{name}={text[:100]!r} cannot be read: {error}") from None
    return found


def whole(text: str) -> int:
    """A whole number of 64 bits."""
    if not (text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 20):
        raise ValueError("expected a whole number.")
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise ValueError("expected a whole number of 64 bits.")
    return number


def flag(text: str) -> bool:
    """true or false."""
    if text not in ("true", "false"):
        raise ValueError("expected true or false.")
    return text == "true"


def words(text: str) -> list[str]:
    """Names between commas."""
    return [word for word in text.split(",") if word]


def as_problem(error: Exception) -> Problem:
    """What a client is told of an exception."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException) and error.status_code < 500:
        text = {404: "there is no such route.", 405: "this route does not take this method."}.get(error.status_code)
        return Problem(error.status_code, text or error.detail, HINTS.get(error.status_code), error.headers)
    return Problem(500, "the server failed to answer; its log says why.")
