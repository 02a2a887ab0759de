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
from twotower.report.catalogue import Catalogue, category_column, title_column
from twotower.report.curves import MOST_EPOCHS, training_section
from twotower.report.item_map import POPULAR, SAMPLED, map_section
from twotower.report.page import render

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
    assert page.says("Serving popularity would give users better lists than this model does.")
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"history": EMPTY}, ["There is no training history"]),
        ({"findings": []}, ["Nothing was found wrong"]),
        ({"findings": [], "history": EMPTY}, ["nobody may have looked"]),
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
