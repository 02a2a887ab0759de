"""Questions answered together: each as it would be alone, and as the Retriever answers in process, bit for bit."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import twotower as tt
from twotower.serving.requests import Answer, Question, Refusal, answer

from . import serving_world as world

RETRIEVER = world.make_retriever()
ITEM = st.integers(0, world.N_ITEMS - 1).map(lambda n: f"i{n}")
AGE = st.one_of(st.integers(0, 90), st.floats(0, 90, width=32), st.just(None), st.just("old"))
QUERY = st.fixed_dictionaries(
    {
        "user_id": st.one_of(st.integers(-5, 60), st.just(None), st.sampled_from(["7", 2**70, True, 1.5])),
        "age": AGE,
        "history": st.one_of(st.lists(ITEM, max_size=4), st.just(None), st.just([None, "i3"]), st.just([3])),
    },
    optional={"more": st.just(1)},
)
WAY = st.one_of(
    st.fixed_dictionaries({"query": QUERY}),
    st.fixed_dictionaries(
        {"user": st.one_of(st.integers(0, world.N_USERS + 2), st.just("7"), st.just(2**66))},
        optional={
            "context": st.fixed_dictionaries({}, optional={"age": AGE, "history": st.lists(ITEM, max_size=2), "x": AGE})
        },
    ),
    st.fixed_dictionaries(
        {"history": st.lists(st.one_of(ITEM, st.just("i999")), max_size=4)},
        optional={"context": st.fixed_dictionaries({"age": AGE})},
    ),
    st.fixed_dictionaries({"item": st.one_of(ITEM, st.just("none such"), st.just(3))}),
)
TERMS = st.fixed_dictionaries(
    {"k": st.sampled_from([1, 3, 10, 250, 0])},
    optional={
        "exclude": st.lists(ITEM, max_size=3),
        "only": st.lists(ITEM, max_size=6),
        "where": st.sampled_from([{"price": {"gte": 4}}, {"genres": "War"}, {"nothing": 3}, {"price": True}, {}]),
        "seen": st.booleans(),
        "fields": st.sampled_from([["title"], [], ["vector", "price"], ["what"]]),
    },
)
QUESTION = st.tuples(WAY, TERMS).map(lambda parts: Question(**parts[0], **parts[1]))  # type: ignore[arg-type]


def in_process(retriever: tt.Retriever, question: Question) -> pl.DataFrame:
    """What the Retriever says."""
    terms: dict[str, Any] = {"k": question.k, "only": question.only, "where": question.where}
    terms["exclude"] = [list(question.exclude)]
    if question.query is not None:
        return retriever.recommend([question.query], **terms)
    if question.user is not None:
        return retriever.recommend_users([question.user], context=question.context, seen=question.seen, **terms)
    if question.history is not None:
        return retriever.recommend_histories([question.history], context=question.context, seen=question.seen, **terms)
    assert question.item is not None
    return retriever.similar([question.item], **terms)


@seed(1)
@settings(max_examples=40, deadline=None)
@given(st.lists(QUESTION, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_in_any_company_as_alone_and_as_in_process(questions: list[Question], random: Any) -> None:
    alone = [answer(RETRIEVER, [question])[0] for question in questions]
    assert answer(RETRIEVER, questions) == alone
    order = list(range(len(questions))) * 2
    random.shuffle(order)
    assert answer(RETRIEVER, [questions[n] for n in order]) == [alone[n] for n in order]
    for question, got in zip(questions, alone, strict=True):
        try:
            expected = in_process(RETRIEVER, question)
        except (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError):
            assert isinstance(got, Refusal)
            continue
        if isinstance(got, Refusal):  # what only a server refuses
            assert question.fields == ["what"] or "more" in (question.query or {}), got
            continue
        assert [result.id for result in got.results] == expected["item_id"].to_list()
        scores = np.array([result.score for result in got.results], dtype=np.float32)
        assert scores.tobytes() == expected["score"].to_numpy().astype(np.float32).tobytes()
        if question.fields is None:
            shown = [result.fields for result in got.results]
            assert shown == expected.select("price", "title", "genres").to_dicts()


def test_the_same_after_loading_and_through_json(tmp_path: Path) -> None:
    RETRIEVER.save(tmp_path / "bundle")
    again = tt.Retriever.load(tmp_path / "bundle")
    questions = [
        Question(user=3, k=5),
        Question(query={"user_id": 3, "age": 20, "history": ["i4"]}),
        Question(history=["i3", "i5"], context={"age": 30.5}),
        Question(item="i9", where={"price": {"lt": 9}}),
    ]
    before = answer(RETRIEVER, questions)
    assert answer(again, questions) == before
    assert all(isinstance(one, Answer) for one in before)
    assert msgspec.json.decode(msgspec.json.encode(before), type=list[Answer]) == before


def test_what_is_asked_wrongly_says_so_and_harms_no_other() -> None:
    good = Question(user=3)
    wrong = {
        "ask in one way": Question(),
        "this question has \\['user', 'item'\\]": Question(user=3, item="i1"),
        "a context goes with user or history": Question(item="i1", context={"age": 3}),
        "nothing is known of the user 99": Question(user=99),
        "holds integers in the feature store": Question(user="3"),
        "no item has the id 'what'": Question(item="what"),
        "'age' is missing": Question(query={"user_id": 3}),
        "holds String, but its vocabulary": Question(query={"user_id": "3", "age": 3.0, "history": None}),
        "unknown field 'colour'": Question(user=3, fields=["colour"]),
        "unknown attribute 'colour'": Question(user=3, where={"colour": "red"}),
    }
    found = answer(RETRIEVER, [good, *wrong.values(), good])
    assert found[0] == found[-1] == answer(RETRIEVER, [good])[0]
    for says, refusal in zip(wrong, found[1:-1], strict=True):
        with pytest.raises(ValueError, match=says):
            assert isinstance(refusal, Refusal)
            raise ValueError(refusal.error)
    assert [r.status for r in found[1:-1] if isinstance(r, Refusal)] == [
        422,
        422,
        422,
        404,
        422,
        404,
        422,
        422,
        422,
        422,
    ]


def test_a_store_that_does_not_answer_refuses_its_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ids: list[int]) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(RETRIEVER.bundle.users, "look_up", broken)
    user, item = answer(RETRIEVER, [Question(user=3), Question(item="i1")])
    assert isinstance(user, Refusal)
    assert user.status == 503
    assert "the feature store does not answer (ConnectionError: gone)" in user.error
    assert isinstance(item, Answer)


def test_users_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    store = RETRIEVER.bundle.users
    assert store is not None
    monkeypatch.setattr(store, "look_up", lambda ids, ask=store.look_up: calls.append(list(ids)) or ask(ids))
    answer(RETRIEVER, [Question(user=1), Question(item="i1"), Question(user=2), Question(user=1)])
    assert calls == [[1, 2, 1]]
