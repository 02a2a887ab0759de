"""The examples on real data, on a slice; they need data that the package may not hold."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def data_folder(name: str) -> Path:
    """The folder of data sets, in TWOTOWER_DATA or beside the repository; without it, or without the set, the test is skipped."""
    folder = Path(os.environ.get("TWOTOWER_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / name).is_dir():
        pytest.skip(f"no data set {name} in {folder}; put it there, or name its folder in TWOTOWER_DATA")
    return folder


def printed_by(
    example: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: beside another test, more threads wait for each other
    try:
        runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out


def results(printed: str) -> dict[str, list[float]]:
    """The rows of the table of results, by name; null is nan."""
    rows = re.findall(r"^│ (\S[^┆│]*?) +┆ ([^│]+)│$", printed, re.MULTILINE)
    return {
        name: [float(value.replace("null", "nan")) for value in values.split("┆")]
        for name, values in rows
        if re.fullmatch(r"[\s.\d┆nul]+", values)
    }


def test_gift_cards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(data_folder("amazon-gift-cards")), "--users", "150", "--seeds", "1"]
    printed = printed_by("gift_cards.py", arguments, monkeypatch, capsys)
    found = results(printed)
    warm, unreviewed = 0, 3
    # a random order would find 20 of 1,547 products, .013
    assert found["features"][warm] > 0.2
    assert found["features"][unreviewed] > 0.1 > found["ids"][unreviewed]
    assert {"popularity", "item-kNN"} <= set(found)
    assert re.search(r"^User \w+ reviewed: .*Gift Card", printed, re.MULTILINE)
    assert "which training never saw" in printed


def test_wikispeedia(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(data_folder("wikispeedia")), "--articles", "900"]
    printed = printed_by("wikispeedia.py", arguments, monkeypatch, capsys)
    found = results(printed)
    warm, cold, unlinked = 0, 2, 3
    assert found["features"][warm] > 1.1 * found["most linked"][warm]
    # a random order would find 20 of 900 articles, .022
    assert found["features"][cold] > 0.05 > found["ids"][cold]
    assert found["features"][unlinked] > found["features"][cold]
    assert "TF-IDF, text with title" in found
    assert re.search(r"^Next to .+, which no link of training leads to: .+; .+", printed, re.MULTILINE)


def test_ml_1m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(data_folder("ml-1m")), "--people", "300", "--epochs", "7"]
    printed = printed_by("ml_1m.py", arguments, monkeypatch, capsys)
    found = results(printed)
    recall = 0
    # one in 300 people is .0033: twice as many found is far outside what chance gives
    assert found["transformer"][recall] > 1.5 * found["popularity"][recall] > 0
    assert found["transformer"][recall] > 1.5 * found["mean of the history"][recall]
    assert re.search(r"rated last: .+\(\d{4}\); .+\(\d{4}\)", printed)


def test_globo_news(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(data_folder("globo-news")), "--days", "2", "--share", "0.1"]
    printed = printed_by("globo_news.py", arguments, monkeypatch, capsys)
    recall = {
        name: float(value)
        for name, value in re.findall(r"^  (\w[\w ]+?)  +recall_at_20 ([.\d]+)", printed, re.MULTILINE)
    }
    assert set(recall) == {"refreshed", "left since day 1", "popular"}
    # yesterday's articles are stale, so only a model that took in the new ones finds anything
    assert recall["refreshed"] > 0.3 > 0.05 > recall["left since day 1"]


@pytest.mark.parametrize("example", ["gift_cards.py", "wikispeedia.py", "ml_1m.py", "globo_news.py"])
def test_data_that_is_not_there(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [example, "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no file .*\.parquet: --data must name a folder with .* it comes from"):
        runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
