"""Errors that help: what came, what was expected, what to do."""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def unknown(kind: str, came: str, choices: Iterable[str]) -> str:
    """The text for a name that is not among the choices."""
    names = sorted(choices)
    close = difflib.get_close_matches(came, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {came!r}: choose from {', '.join(map(repr, names))}.{hint}"


def need(module: str, who: str, extra: str) -> Any:
    """An optional package's module; ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{who} needs {module.partition('.')[0]}, which cannot be imported ({error}): pip install 'twotower[{extra}]'."
        ) from error


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a literal table that a public string names."""
    if name not in table:
        raise ValueError(unknown(kind, name, table))
    return table[name]


def explain_options(function: Callable[P, R]) -> Callable[P, R]:
    """Make a call with an unknown keyword fail with the list of the keywords that exist."""
    return explain_options_with("")(function)


def explain_options_with(note: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The same, with a sentence more."""

    def explain(function: Callable[P, R]) -> Callable[P, R]:
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind in keywords and p.name != "self"]
        where = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in names:
                    raise TypeError(f"{where}: {unknown('option', name, names)}{note}")
            return function(*args, **kwargs)

        return checked

    return explain
