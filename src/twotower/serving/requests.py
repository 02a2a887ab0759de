"""Questions of every kind, answered together: each gets the answer that it would get alone, bit for bit.

Those whose queries have values of the same types are encoded together, those that ask the same of the candidates searched
together. One that cannot be answered is refused, and changes nothing for the others.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
import polars as pl
import torch
from torch import Tensor

from twotower.indexes.filters import Filter
from twotower.serving.cards import Cards
from twotower.serving.encoding import embed_rows
from twotower.serving.items import RawId
from twotower.serving.queries import check_query, signature, with_contexts
from twotower.serving.retriever import Retriever

T = TypeVar("T")
WAYS = ("query", "user", "history", "item")
UNREADABLE = (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError)  # what odd values of a query lead to


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One question, in one of four ways.

    Args:
        query: all raw columns of the query tower, None for what is not known.
        user: an id that the feature store knows.
        history: ids of items, the latest last.
        item: an id of an item, to which others are similar by cosine.
        context: other raw columns of this moment, with user or history.
        k: how many items.
        exclude: ids that must not come.
        only: ids that may come.
        where: what the items' columns must be, as `tt.Filter` reads it.
        seen: whether what the user has seen, or the history's own items, may come.
        fields: the items' columns to give; by default all but vectors.
    """

    query: dict[str, Any] | None = None
    user: int | str | None = None
    history: list[int | str] | None = None
    item: int | str | None = None
    context: dict[str, Any] | None = None
    k: int = 10
    exclude: list[int | str] = []
    only: list[int | str] | None = None
    where: dict[str, Any] | None = None
    seen: bool = False
    fields: list[str] | None = None


class Result(msgspec.Struct, frozen=True):
    """One item: its raw id, its score, and its other columns."""

    id: int | str
    score: float
    fields: dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """The best items, best first."""

    results: list[Result]


class Refusal(msgspec.Struct, frozen=True):
    """Why there is no answer.

    Args:
        error: what came, what was expected, what to do.
        status: of HTTP: 404 for an unknown user or item, 422 for what cannot be answered, 503 for a feature store that does
            not answer.
    """

    error: str
    status: int = 422


def answer(retriever: Retriever, questions: Sequence[Question], cards: Cards | None = None) -> list[Answer | Refusal]:
    """The answers, or why there is none, in order.

    Args:
        retriever: answers.
        questions: of any kinds.
        cards: those of the Retriever's items, to be used again.
    """
    return _Answering(retriever, questions, cards or Cards(retriever.items)).done()


@dataclass(frozen=True, eq=False)
class _Search:
    """A vector, and what the candidates must be."""

    vector: Tensor
    cosine: bool
    hidden: Sequence[RawId]


class _Terms(NamedTuple):
    """What questions must have in common to be searched together."""

    k: int
    only: tuple[int, ...] | None
    where: Filter | None


class _Answering:
    def __init__(self, retriever: Retriever, questions: Sequence[Question], cards: Cards) -> None:
        self.retriever, self.questions, self.cards = retriever, questions, cards
        self.given: dict[int, Answer | Refusal] = {}
        self.terms: dict[int, _Terms] = {}

    def done(self) -> list[Answer | Refusal]:
        ways: dict[str, list[int]] = {way: [] for way in WAYS}
        for number, question in enumerate(self.questions):
            try:
                way = _way_of(question)
                self.cards.check(question.fields or ())
                self.terms[number] = self._terms(question)
            except ValueError as error:
                self.given[number] = Refusal(str(error))
            else:
                ways[way].append(number)
        searches = {
            **self._of_queries(ways["query"]),
            **self._of_users(ways["user"]),
            **self._of_histories(ways["history"]),
            **self._of_items(ways["item"]),
        }
        self._search(searches)
        return [self.given[number] for number in range(len(self.questions))]

    def _terms(self, question: Question) -> _Terms:
        only = question.only
        keys = None if only is None else tuple(sorted(set(self.retriever.items.known_keys_of(only).tolist())))
        return _Terms(question.k, keys, None if question.where is None else Filter.parse(question.where))

    # ---- vectors

    def _of_queries(self, numbers: Sequence[int]) -> dict[int, _Search]:
        rows = {n: dict(self.questions[n].query or {}) for n in numbers}
        return self._of_rows(rows, dict.fromkeys(numbers, ()))

    def _of_rows(self, rows: Mapping[int, dict[str, Any]], hidden: Mapping[int, Sequence[RawId]]) -> dict[int, _Search]:
        retriever, columns = self.retriever, self.retriever.query_columns
        readable = {}
        for number, row in rows.items():
            try:
                check_query(row, columns)
                readable[number] = signature(row)
            except ValueError as error:
                self.given[number] = Refusal(str(error))
        return {
            n: _Search(vector, False, hidden[n])
            for group in grouped(readable, lambda n: readable[n])
            for n, vector in self._together(group, lambda some: retriever.encode([rows[n] for n in some]))
        }

    def _of_users(self, numbers: Sequence[int]) -> dict[int, _Search]:
        if not numbers:
            return {}
        retriever, store = self.retriever, self.retriever.bundle.users
        if store is None:
            text = f"there is no feature store to look users up in. Ask with a query of {retriever.query_columns}."
            self.given.update(dict.fromkeys(numbers, Refusal(text)))
            return {}
        asked = dict(self._together(numbers, lambda some: store.check_ids(self._users(some))))
        if not asked:
            return {}
        try:
            found = store.look_up(list(asked.values()))
        except Exception as error:  # of whatever kind the store's own client raises
            text = f"the feature store does not answer ({type(error).__name__}: {error}). Ask again later."
            self.given.update(dict.fromkeys(asked, Refusal(text, 503)))
            return {}
        hint = f"Ask with a query of {retriever.query_columns}, or with a history."
        place = {}
        for row, (number, known) in enumerate(zip(asked, found.known, strict=True)):
            if known:
                place[number] = row
            else:
                self.given[number] = Refusal(f"nothing is known of the user {asked[number]!r}. {hint}", 404)
        rows = found.rows.select(retriever.query_columns)
        contexts = {n: self.questions[n].context or {} for n in place}
        return {
            n: _Search(vector, False, () if self.questions[n].seen else found.seen[place[n]])
            for group in grouped(place, lambda n: (tuple(sorted(contexts[n])), signature(contexts[n])))
            for n, vector in self._together(
                group, lambda some: self._embed(rows[[place[n] for n in some]], [contexts[n] for n in some])
            )
        }

    def _users(self, numbers: Sequence[int]) -> list[RawId]:
        return [user for n in numbers if (user := self.questions[n].user) is not None]

    def _embed(self, rows: pl.DataFrame, contexts: Sequence[Mapping[str, Any]]) -> Tensor:
        """The vectors of users' rows, in which contexts of the same columns take the place of what the store holds."""
        bundle = self.retriever.bundle
        return embed_rows(bundle.model.query, bundle.preprocessor, with_contexts(rows, contexts))

    def _of_histories(self, numbers: Sequence[int]) -> dict[int, _Search]:
        retriever, column = self.retriever, self.retriever.history_column
        histories = {n: list(self.questions[n].history or ()) for n in numbers}
        hidden = {n: () if self.questions[n].seen else histories[n] for n in numbers}
        known = {}
        for n, history in histories.items():
            try:
                if not len(retriever.items.known_keys_of(history)):
                    text = "the history holds no item that is known, so that there is nothing to go by"
                    raise ValueError(f"{text}: {history[:5]}.")
            except ValueError as error:
                self.given[n] = Refusal(str(error))
            else:
                known[n] = history
        if column is not None:
            around = dict.fromkeys(retriever.query_columns)
            return self._of_rows(
                {n: {**around, **(self.questions[n].context or {}), column: h} for n, h in known.items()}, hidden
            )

        def of_items(some: Sequence[int]) -> Iterator[Tensor]:
            for n in some:
                yield from retriever.encode_histories([known[n]], self.questions[n].context)

        vectors = self._together(list(known), of_items)
        return {n: _Search(vector, True, hidden[n]) for n, vector in vectors}

    def _of_items(self, numbers: Sequence[int]) -> dict[int, _Search]:
        items, found = self.retriever.items, {}
        for n in numbers:
            raw = self.questions[n].item
            if raw is None or raw not in items:
                self.given[n] = Refusal(f"no item has the id {raw!r}. GET /items?search= finds items.", 404)
            else:
                found[n] = raw
        vectors = self.retriever.bundle.index.vectors_of(items.keys_of(list(found.values())))
        return {n: _Search(vector, True, [found[n]]) for n, vector in zip(found, vectors, strict=True)}

    # ---- results

    def _search(self, searches: Mapping[int, _Search]) -> None:
        for group in grouped(searches, lambda n: (searches[n].cosine, self.terms[n])):
            for n, (scores, keys) in self._together(group, lambda some: self._found(some, searches)):
                cards = self.cards.of(keys, self.questions[n].fields)
                results = [Result(raw, score, fields) for (raw, fields), score in zip(cards, scores, strict=False)]  # type: ignore[arg-type]
                self.given[n] = Answer(results)

    def _found(self, numbers: Sequence[int], searches: Mapping[int, _Search]) -> list[tuple[list[float], list[int]]]:
        """The scores and keys of each."""
        first, terms = self.questions[numbers[0]], self.terms[numbers[0]]
        find = self.retriever.most_similar if searches[numbers[0]].cosine else self.retriever.nearest
        hidden = [[*searches[n].hidden, *self.questions[n].exclude] for n in numbers]
        top = find(
            torch.stack([searches[n].vector for n in numbers]),
            terms.k,
            hidden if any(hidden) else None,
            only=first.only,
            where=terms.where,
        )
        keys = torch.as_tensor(top.ids).tolist()
        return [(s, [key for key in k if key >= 0]) for s, k in zip(top.scores.tolist(), keys, strict=True)]

    def _together(
        self, numbers: Sequence[int], work: Callable[[Sequence[int]], Iterable[T]]
    ) -> Iterator[tuple[int, T]]:
        """What some work gives for each; where it fails for all of them, for each half, down to those that are to blame."""
        try:
            yield from zip(numbers, list(work(numbers)), strict=True)
        except UNREADABLE as error:
            if len(numbers) == 1:
                self.given[numbers[0]] = Refusal(str(error))
                return
            half = len(numbers) // 2
            yield from self._together(numbers[:half], work)
            yield from self._together(numbers[half:], work)


def _way_of(question: Question) -> str:
    given = [way for way in WAYS if getattr(question, way) is not None]
    if len(given) != 1:
        raise ValueError(f"ask in one way of {', '.join(WAYS)}; this question has {given or 'none'}.")
    if question.context and given[0] not in ("user", "history"):
        raise ValueError(f"a context goes with user or history, not with {given[0]}.")
    if question.k < 1:
        raise ValueError(f"k must be at least 1, got {question.k}.")
    return given[0]


def grouped(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The numbers in lists of equal keys, in the order in which they came."""
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())
