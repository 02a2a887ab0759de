"""The report: its numbers are the evaluations', nothing on it comes from elsewhere, and what is missing is said."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from twotower import Tags
from twotower.baselines import Popularity
from twotower.evaluation import Queries, ScoreQueries
from twotower.report.catalogue import Catalogue, category_column, describe_items, title_column
from twotower.report.comparison import Comparison, summarise
from twotower.report.curves import MOST_EPOCHS, training_section
from twotower.report.exposure import norms_figure
from twotower.report.item_map import POPULAR, SAMPLED, map_section
from twotower.report.page import render
from twotower.report.people import people
from twotower.report.scores import sample_scores
from twotower.report.words import MEANINGS, number

USERS, ITEMS, CLUBS = 60, 40, 4
EVIL = [
    "<script>alert(1)</script>",
    "</script><img src=http://evil.example/x>",
    '<b>bold</b> & "quoted" {{ 7 * 7 }} %{x}',
]
FILMS = pl.DataFrame(
    {
        "item_id": range(ITEMS),
        "title": EVIL + [f"Film {i}" for i in range(len(EVIL), ITEMS)],
        "genres": [[f"club {i % CLUBS}", "<i>all</i>"] for i in range(ITEMS)],
    }
)


class Oracle:
    """Ranks the user's own club first: better than popularity, and than anything that is learnt."""

    def score_queries(self, queries: Queries, candidates: tt.Dataset) -> ScoreQueries:
        users = queries.select(["user_id"]).to_polars()["user_id"].to_numpy()
        items = candidates.to_polars()["item_id"].to_numpy()
        scores = torch.from_numpy((users[:, None] % CLUBS == items % CLUBS) - items / 1000)
        return lambda rows: scores[rows].clone()


def events(rows: int, users: int, seed: int) -> pl.DataFrame:
    """Nine of ten within the user's club, the lower ids more often."""
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=rows)
    club = np.where(rng.random(rows) < 0.9, user % CLUBS, rng.integers(CLUBS, size=rows))
    weight = 1 / (1 + np.arange(ITEMS // CLUBS - 1))  # the last item of each club is chosen by nobody
    item = club + CLUBS * rng.choice(len(weight), p=weight / weight.sum(), size=rows)
    return pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.arange(rows)}).unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )


@pytest.fixture(scope="module")
def data() -> tt.ReportData:
    train = events(250, USERS - 8, seed=0)  # the last users are new
    test = events(200, USERS, seed=1).join(train, on=["user_id", "item_id"], how="anti", maintain_order="left")
    columns = {"user_id": tt.Categorical(Tags.USER_ID), "item_id": tt.Categorical(Tags.ITEM_ID)}
    preprocessor = tt.Preprocessor(columns).fit(train, FILMS)
    encoded = preprocessor.transform(train)
    torch.manual_seed(0)
    towers = [tt.Encoder(encoded.schema.select_by_tag(t), tt.MLPBlock([8])) for t in (Tags.USER_ID, Tags.ITEM_ID)]
    model = tt.TwoTowerModelV2(*towers)
    history = model.fit(encoded, epochs=2, batch_size=32, verbose=False, catalog=preprocessor.transform(FILMS))
    evaluator = tt.Evaluator(
        test, candidates=FILMS, seen=train, user="user_id", item="item_id",
        metrics=["ndcg_at_5", "recall_at_30", "recall_at_20", "coverage_at_20"],
        slices=["new_users", "known_users", "cold_items", "genres"],
    )  # fmt: skip
    retriever = tt.Retriever(model, preprocessor, FILMS)
    popular = Popularity(tt.Dataset(train), "user_id", "item_id", catalog=tt.Dataset(FILMS))
    return tt.ReportData(
        title=EVIL[0],
        config="model: two towers # </pre>",
        history=pl.DataFrame({"epoch": [1, 2], **history.history, "val_recall_at_20": [0.1, 0.25]}),
        evaluations=[evaluator(Oracle(), EVIL[1]), evaluator(retriever, "two towers"), evaluator(popular, "popularity")],
        train=train, items=FILMS, user="user_id", item="item_id", retriever=retriever,
        findings=[("hidden-tail", f"the tail is never shown {EVIL[0]}")], environment={"torch": "2", "note": EVIL[0]}, test=test,
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page: tags, the text of headings and paragraphs, tables by heading, scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.right: list[str] = []
        self.words = ""
        self._heading, self._rows = "", []  # type: ignore[var-annotated]
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = [*self._open, tag] if tag not in ("meta", "link", "img", "br") else self._open
        if tag in ("h2", "h3"):
            self._heading = ""
        if tag == "table":
            self._rows = self.tables.setdefault(self._heading.strip(), [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag == "li":
            self._right = dict(attrs).get("class") == "right"
            self.right += [""] * self._right

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data: str) -> None:
        inside = set(self._open)
        if "script" in inside:
            self.scripts[-1] += data
        elif "style" not in inside:
            self.words += data
        if inside & {"h2", "h3"}:
            self._heading += data
        if inside & {"td", "th"}:
            self._rows[-1][-1] += data
        if self._open[-1:] == ["li"] and self._right:
            self.right[-1] += data

    @property
    def plots(self) -> dict[str, dict]:  # type: ignore[type-arg]
        return json.loads(self.scripts[0])

    def says(self, words: str) -> bool:
        return words in re.sub(r"\s+", " ", self.words)  # \\s matches the space that does not break too


@pytest.fixture(scope="module")
def page(data: tt.ReportData) -> Page:
    return Page(render(data))


def floats(cell: str) -> list[float]:
    """The numbers of a cell such as .262 [.250, .274]."""
    return [float(n) for n in re.findall(r"-?\d*\.?\d+", cell.replace("−", "-"))]


def test_the_tables_hold_the_evaluations_numbers(data: tt.ReportData, page: Page) -> None:
    head, *rows = page.tables["All metrics"]
    assert head[1:] == ["NDCG@5", "Recall@30", "Recall@20", "Coverage@20"]
    for evaluation, (name, *cells) in zip(data.evaluations, rows, strict=True):
        assert name == evaluation.name
        for metric, cell in zip(evaluation.metrics.values(), cells, strict=True):
            known = [v for v in (metric.mean, metric.low, metric.high) if not np.isnan(v)]
            assert floats(cell) == pytest.approx(known, abs=5.1e-4)
    table = page.tables["Recall@20 by slice"]
    slices = data.evaluations[0].slices
    for row, (name, part) in zip(table[1:], slices.items(), strict=True):
        assert row[:3] == [name.replace("_", " ", " = " not in name), str(part.queries), str(part.positives)]
        mean = part.metrics["recall_at_20"].mean
        assert row[3] == "–" if np.isnan(mean) else floats(row[3])[0] == pytest.approx(mean, abs=5.1e-4)


def test_the_differences_are_those_of_compare(data: tt.ReportData, page: Page) -> None:
    rows = page.tables["The model less each baseline, query by query: Recall@20"][1:]
    for other, row in zip(data.evaluations[1:], rows, strict=True):
        (found,) = tt.compare(data.evaluations[0], other, ["recall_at_20"])
        assert floats(row[1])[0] == pytest.approx(found.difference, abs=5.1e-4)
        assert floats(row[2]) == pytest.approx([found.low, found.high], abs=5.1e-4)
        assert floats(row[3])[0] == pytest.approx(max(found.p, 0.001), abs=5.1e-4)


def test_the_charts_hold_the_evaluations_numbers(data: tt.ReportData, page: Page) -> None:
    for trace, evaluation in zip(page.plots["forest"]["data"], data.evaluations, strict=True):
        found = evaluation["recall_at_20"]
        assert trace["x"] == [found.mean]
        assert trace["x"][0] + trace["error_x"]["array"][0] == pytest.approx(found.high)
        assert trace["x"][0] - trace["error_x"]["arrayminus"][0] == pytest.approx(found.low)
    assert page.plots["validation"]["data"][0]["y"] == [0.1, 0.25]


def test_exposure_is_counted_as_a_slow_loop_counts_it(data: tt.ReportData, page: Page) -> None:
    popularity = {item: (data.train["item_id"] == item).sum() for item in range(ITEMS)}
    shown = [item for row in data.evaluations[0].values["recommended"].to_list() for item in row[:20]]
    named = {"0": (0, 0), "1": (1, 1), "2–3": (2, 3), "4–7": (4, 7), "8–15": (8, 15), "16–31": (16, 31)}
    for name, items, cell, *_ in page.tables["Popularity against exposure"][1:]:
        own = [item for item in range(ITEMS) if named[name][0] <= popularity[item] <= named[name][1]]
        assert int(items) == len(own)
        assert floats(cell)[0] == pytest.approx(sum(i in own for i in shown) / len(own), rel=0.006)
    assert page.says(f"Its first 20 recommendations hold {len(set(shown)) / ITEMS:.0%} of the catalogue")


def test_the_summary_says_who_wins(data: tt.ReportData, page: Page) -> None:
    assert all(tt.compare(data.evaluations[0], other, ["recall_at_20"])[0].p < 0.001 for other in data.evaluations[1:])
    assert page.says("is not chance: p < .001")
    assert page.says("Beats two towers and popularity")
    assert "summary good" in {a.get("class") for _, a in page.tags}


def test_a_model_that_loses_to_popularity_is_told(data: tt.ReportData) -> None:
    oracle, _, popularity = data.evaluations
    page = Page(
        render(replace(data, evaluations=[replace(popularity, name="mine"), replace(oracle, name="popularity")]))
    )
    assert "summary bad" in {a.get("class") for _, a in page.tags}
    assert page.says("Loses to popularity")
    assert page.says("Popularity did better on this test.")
    alike = Page(render(replace(data, evaluations=[replace(popularity, name="mine"), popularity])))
    assert alike.says("No clear difference from popularity")


def test_words_from_the_data_stay_words(page: Page) -> None:
    assert len(page.scripts) == 3  # the numbers, Plotly, and the page's own
    assert page.words.count(EVIL[0]) >= 3  # title, finding, environment
    assert EVIL[1] in page.words
    assert not [a for tag, a in page.tags if tag in ("img", "b", "i") and a]
    hover = [words for trace in page.plots["item-map"]["data"] for words in trace["text"]]
    assert len(hover) == ITEMS
    assert sum("&lt;script&gt;alert(1)&lt;/script&gt;" in words for words in hover) == 1
    assert all(set(re.findall(r"<[^>]*>", words)) <= {"<b>", "</b>", "<br>"} for words in hover)
    assert any("{{ 7 * 7 }} %{x}" in words for words in hover)


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    loads = [
        value
        for tag, a in page.tags
        for name, value in a.items()
        if name in ("src", "srcset", "href", "data", "action")
    ]
    assert [value for value in loads if value and not value.startswith(("#", "data:"))] == []
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_all_sections_are_there(page: Page) -> None:
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert ids >= {"summary", "metrics", "slices", "exposure", "scores", "map", "people", "training", "health", "made"}
    assert set(page.plots) >= {
        "forest",
        "slices-chart",
        "exposure-chart",
        "shares",
        "score-chart",
        "norms",
        "item-map",
        "loss",
        "validation",
    }
    for name in page.plots:  # each with words in place of the picture
        assert next(a for _, a in page.tags if a.get("id") == name)["aria-label"]
    assert {a["href"] for tag, a in page.tags if tag == "a"} <= {f"#{name}" for name in ids}


def test_right_recommendations_are_marked(data: tt.ReportData, page: Page) -> None:
    """The first example is the only one drawn for a good list; what is marked there is what the user chose next."""
    titles = dict(FILMS.select("item_id", "title").iter_rows())
    names = re.findall(r"user_id (\d+) · Recall@20", page.words)
    assert 3 <= len(names) <= 5
    expected = []
    for user in map(int, names):
        listed = data.evaluations[0].values.filter(pl.col("user_id") == user)["recommended"].to_list()[0][:10]
        assert data.test is not None
        chosen = data.test.filter(pl.col("user_id") == user)["item_id"].to_list()
        expected += [titles[item] for item in listed if item in chosen]
    assert [words.strip() for words in page.right] == expected
    assert expected


EMPTY = pl.DataFrame()
ONLY_IDS = FILMS.select("item_id")
UNMEASURED = pl.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "health_overlap": [float("nan"), None]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"history": EMPTY}, ["There is no training history"]),
        ({"findings": []}, ["Nothing was found wrong"]),
        ({"findings": [], "history": EMPTY}, ["nobody may have looked", "Health: there is no finding, but"]),
        ({"findings": [], "history": UNMEASURED}, ["nobody may have looked", "Health: there is no finding, but"]),
        ({"items": ONLY_IDS}, ["No column of the items has few enough values to colour by"]),
        ({"test": None}, ["What these users chose next was not given", "what users chose in training"]),
        ({"config": "", "environment": {}}, ["No configuration was recorded", "No environment was recorded"]),
        ({"items": FILMS.head(5)}, ["There are 5 items with vectors: too few for a map"]),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(data: tt.ReportData, change: dict[str, object], said: list[str]) -> None:
    page = Page(render(replace(data, **change)))  # type: ignore[arg-type]
    for words in said:
        assert page.says(words), words


def test_a_report_of_next_to_nothing(data: tt.ReportData) -> None:
    """One ranker, no slices, no baselines, users without history, unknown queries."""
    lone = replace(data.evaluations[0], slices={}, name="alone")
    nobody = data.train.with_columns(user_id=pl.col("user_id") + 1000)
    page = Page(
        render(replace(data, evaluations=[lone], train=nobody, test=None, history=EMPTY, findings=[], items=ONLY_IDS))
    )
    for words in ("Not compared with any baseline", "has no slices", "this user has no training events"):
        assert page.says(words)
    with pytest.raises(ValueError, match="at least one evaluation"):
        replace(data, evaluations=[])


def test_columns_are_chosen_by_what_they_hold() -> None:
    films = pl.DataFrame(
        {"id": [1, 2, 3, 4], "code": list("abcd"), "Name": list("efgh"), "kind": list("xxyy"), "year": [1, 2, 3, 4]}
    )
    assert title_column(films, "id") == "Name"
    assert title_column(films.drop("Name"), "id") == "code"
    assert title_column(films.select("id", "year"), "id") == ""
    assert category_column(films, ("id", "Name")) == "kind"
    assert category_column(films.select("id", "Name", "year"), ("id", "Name")) == ""  # as many years as films


def test_a_title_is_text_that_tells_items_apart() -> None:
    some = pl.DataFrame(
        {
            "item_id": range(10),
            "genre": ["a", "b"] * 5,
            "image_url": [f"https://x/{i}" for i in range(10)],
            "video_link": [f"https://y/{i}" for i in range(10)],
            "plot": [f"words {i}" for i in range(10)],
            "almost": [*"abcdefgg", None, None],  # 7 of 8
            "short_name": [f"n {i}" for i in range(10)],
            "name": [f"film {i // 2}" for i in range(10)],
        }
    )
    assert title_column(some, "item_id") == "name"
    assert title_column(some.drop("name"), "item_id") == "short_name"
    assert title_column(some.drop("name", "short_name"), "item_id") == "plot"
    assert title_column(some.drop("name", "short_name", "plot"), "item_id") == "almost"
    assert title_column(some.select("item_id", "genre", "image_url", "video_link"), "item_id") == ""


def test_enums_and_arrays_can_be_categories(data: tt.ReportData) -> None:
    kinds = pl.Series([["x", "y"][i % 2] for i in range(ITEMS)], dtype=pl.Enum(["x", "y"]))
    pairs = pl.Series([[i % 3, 7] for i in range(ITEMS)], dtype=pl.Array(pl.Int64, 2))
    vectors = pl.Series([[i / 7, 0.0] for i in range(ITEMS)], dtype=pl.Array(pl.Float64, 2))
    items = FILMS.select("item_id", kind=kinds, pair=pairs, vector=vectors)
    found = describe_items(replace(data, items=items), 20)
    assert found.category == "pair"
    assert found.frame["category"].to_list() == [[str(i % 3), "7"] for i in range(ITEMS)]
    found = describe_items(replace(data, items=items.drop("pair")), 20)
    assert (found.title, found.category) == ("", "kind")
    assert found.frame["category"].to_list() == [["x"], ["y"]] * (ITEMS // 2)
    named = describe_items(replace(data, items=items, display="kind", category="kind"), 20)
    assert (named.title, named.category, named.frame["title"].to_list()) == ("kind", "kind", ["x", "y"] * (ITEMS // 2))


def test_tables_of_other_kinds_give_the_same_page(data: tt.ReportData) -> None:
    assert data.test is not None
    others = replace(
        data, train=data.train.to_dict(as_series=False), items=tt.Dataset(data.items), test=data.test.to_arrow()
    )
    assert others.train.equals(data.train)
    assert others.items.equals(data.items)
    assert others.test is not None
    assert others.test.equals(data.test)
    short = tt.ReportData(
        "t", evaluations=data.evaluations, train=data.train.to_arrow(), items=FILMS, user="user_id", item="item_id",
        retriever=data.retriever,
    )  # fmt: skip
    assert (short.config, len(short.history), short.findings, short.environment) == ("", 0, [], {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time": "when"}, "time='when' is no column of train"),
        ({"user": "who"}, "user='who' is no column of train"),
        ({"item": "what"}, "item='what' is no column of train"),
        ({"display": "titel"}, "display='titel' is no column of items.*Did you mean 'title'"),
        ({"category": "genre"}, "category='genre' is no column of items"),
    ],
)
def test_a_column_that_is_not_there_is_named(data: tt.ReportData, change: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(data, **change)  # type: ignore[arg-type]


def test_a_nan_in_the_history_stays_out_of_the_json(data: tt.ReportData) -> None:
    gaps = pl.DataFrame({"epoch": [1.0, float("nan"), 3.0, None], "loss": [3.0, 2.0, float("nan"), 1.0]})
    section = training_section(replace(data, history=gaps))
    (figure,) = section.figures
    json.dumps(figure.plot, allow_nan=False)
    assert (figure.plot["data"][0]["x"], figure.plot["data"][0]["y"]) == ([1.0, 3.0], [3.0, None])
    assert "Rows of the history without an epoch are left out: 2." in section.notes


def test_a_history_is_read_in_the_order_of_time(data: tt.ReportData) -> None:
    later_first = data.train.with_columns(timestamp=-pl.col("timestamp"), moment=pl.int_range(pl.len()) * 7 % 101)
    for time, column in ((None, "timestamp"), ("moment", "moment")):
        changed = replace(data, train=later_first, time=time)
        titles = dict(FILMS.select("item_id", "title").iter_rows())
        shown = [
            p for p in people(changed, describe_items(changed, 20), "recall_at_20") if len(p.history) + p.more >= 3
        ]
        assert shown
        for person in shown:
            own = [r for r in later_first.iter_rows(named=True) if r["user_id"] == int(person.name.split()[1])]
            newest = sorted(own, key=lambda r: -r[column])
            assert person.history == [titles[r["item_id"]] for r in newest[:8]]


def catalogue(events: list[int], vectors: torch.Tensor, categories: list[str]) -> Catalogue:
    frame = pl.DataFrame(
        {"id": range(len(events)), "title": "x", "category": [[c] for c in categories], "events": events}
    )
    return Catalogue(frame, vectors, "title", "kind", None)


def test_lengths_are_cut_at_a_tenth_a_half_and_nine_tenths() -> None:
    lengths = torch.arange(11.0)[:, None] * torch.tensor([[0.6, 0.8]])
    figure = norms_figure(catalogue([1] * 11, lengths, ["a"] * 11))
    assert figure is not None
    assert figure.table.rows == [["1", "1", "5", "9"]]


def test_the_mean_cosine_is_of_two_different_items() -> None:
    """a: three along x, three along y, so 6 of 15 pairs point the same way; with six more along x, 39 of 66."""
    along = [(2.0, 0.0)] * 3 + [(0.0, 3.0)] * 3 + [(1.0, 0.0)] * 6
    section = map_section(catalogue([1] * 12, torch.tensor(along), ["a"] * 6 + ["b"] * 6))
    rows = section.figures[0].table.rows
    assert rows == [["a", "6", ".400"], ["b", "6", "1"], ["all items drawn", "12", ".591"]]


def test_a_chosen_item_that_scores_higher_counts_as_above(data: tt.ReportData) -> None:
    """Everyone chose the item of score 0: above it lie the items of score > 0, and it ties with itself."""
    asked = data.evaluations[0].values
    everyone = asked.select("user_id", item_id=pl.lit(0, pl.Int64))
    vectors = torch.cat([torch.zeros(1, 8), torch.ones(9, 8), -torch.ones(ITEMS - 10, 8)])
    found = describe_items(data, 20)
    scores = sample_scores(replace(data, test=everyone), replace(found, vectors=vectors), asked)
    assert not scores.chosen.any()
    assert len(scores.random) == 50 * len(asked)
    below, same = int((scores.random < 0).sum()), int((scores.random == 0).sum())
    assert below > 0.6 * len(scores.random)  # or else the two sides could be mistaken for each other
    assert scores.above == pytest.approx((below + same / 2) / len(scores.random))


def difference(p: float, apart: float = 0.1) -> tt.Difference:
    return tt.Difference("recall_at_20", 0.3, 0.3 - apart, apart, apart - 0.05, apart + 0.05, p, 0.6, 0.2)


def test_the_verdict_turns_at_five_in_a_hundred() -> None:
    assert [difference(p).verdict for p in (0.0, 0.049, 0.05, 0.051)] == ["better", "better", "unclear", "unclear"]
    assert difference(0.049, -0.1).verdict == "worse"
    assert replace(difference(0.02), confidence=0.99).verdict == "unclear"


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.0009, "is not chance: p\u00a0<"), (0.001, "is hardly chance: p"), (0.049, "is hardly chance: p"),
     (0.05, "may be chance: p")],
)  # fmt: skip
def test_how_sure_a_difference_is(data: tt.ReportData, p: float, said: str) -> None:
    other = data.evaluations[2]
    for apart in (0.1, -0.1):
        words = summarise(data, Comparison("recall_at_20", [(other, difference(p, apart))])).sentences
        assert said in words[1]
        assert ("Popularity did better on this test." in words[1]) == (p < 0.05 and apart < 0)


def test_the_weakest_slice_has_at_least_thirty_queries(data: tt.ReportData) -> None:
    def part(queries: int, mean: float) -> tt.SliceEstimates:
        return tt.SliceEstimates(queries, queries, {"recall_at_20": tt.Estimate(mean, mean, mean, queries)})

    slices = {"few": part(29, 0.1), "enough": part(30, 0.2), "many": part(31, 0.3)}
    model = replace(data.evaluations[0], slices=slices)
    pairs = [(data.evaluations[2], difference(0.01))]
    sentences = summarise(replace(data, evaluations=[model]), Comparison("recall_at_20", pairs)).sentences
    assert [words for words in sentences if "weakest" in words] == [
        "It is weakest on enough: .200 [.200,\u00a0.200] over 30 queries."
    ]


def test_numbers_near_a_thousand() -> None:
    assert [number(v) for v in (999.4, 999.5, 999.6, -999.6, 1234.5)] == ["999", "1,000", "1,000", "−1,000", "1,234"]


def test_recall_is_called_what_it_is() -> None:
    """Of 40 chosen, 20 among the first 20 are a recall of 1 and a full recall of .5."""
    assert "at most {k}" in MEANINGS["recall"]
    assert "more than {k}" in MEANINGS["full_recall"]


def test_a_large_catalogue_is_sampled() -> None:
    size = 20_000
    frame = pl.DataFrame({"id": range(size), "title": "x", "category": [["a"]] * size, "events": range(size)})
    vectors = torch.ones(size, 3)  # all in one place: t-SNE is not what is tested
    section = map_section(Catalogue(frame, vectors, "title", "kind", None))
    (figure,) = section.figures
    drawn = sum(len(trace["x"]) for trace in figure.plot["data"])
    assert drawn == POPULAR + SAMPLED
    assert any(f"{drawn:,} of {size:,} items are drawn" in note for note in section.notes)


def test_a_long_history_is_thinned(data: tt.ReportData) -> None:
    long = pl.DataFrame({"epoch": range(1, 1001), "loss": np.linspace(5, 1, 1000)})
    section = training_section(replace(data, history=long))
    assert len(section.figures[0].table.rows) <= MOST_EPOCHS
    assert any("of 1,000 epochs is shown" in note for note in section.notes)


def test_the_same_data_gives_the_same_page_whole_or_not_at_all(
    data: tt.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tt.write_report(tmp_path / "one.html", data)
    written = (tmp_path / "one.html").read_text("utf-8")
    assert written == render(data)
    assert len(written) < 8_000_000

    def cut_short(self: Path, text: str, encoding: str = "") -> None:
        self.write_bytes(text[:1000].encode())
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", cut_short)
    with pytest.raises(OSError, match="full"):
        tt.write_report(tmp_path / "one.html", data)
    assert (tmp_path / "one.html").read_text("utf-8") == written
    assert [path.name for path in tmp_path.iterdir()] == ["one.html"]


@pytest.mark.parametrize("library", ["jinja2", "plotly", "sklearn"])
def test_without_its_libraries_it_says_what_to_install(
    data: tt.ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}.*pip install 'twotower\[report\]'"):
        tt.write_report(tmp_path / "report.html", data)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened in a browser")
def test_a_browser_draws_every_chart(data: tt.ReportData, page: Page, tmp_path: Path) -> None:
    tt.write_report(tmp_path / "report.html", data)
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=1000", f"file://{tmp_path}/report.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for name in page.plots:
        assert re.search(rf'<div class="plot js-plotly-plot" id="{name}".*?<svg class="main-svg"', shown, re.DOTALL), (
            name
        )
