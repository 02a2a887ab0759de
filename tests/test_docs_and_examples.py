"""What the README, the docs and the examples show runs as it stands."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "```python" in page.read_text())


def test_there_are_snippets() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "tutorial.md", "how-to.md", "migrating-from-merlin.md"}


@pytest.mark.filterwarnings("ignore:.*positives were seen before")  # films rated twice; evaluate says so
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a page, one after another in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name} links to {link}"


def test_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["reference"]()
    assert (ROOT / "docs" / "reference.md").read_text() == made, "run python docs/make_reference.py"


def test_quickstart_beats_popularity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    printed = capsys.readouterr().out
    ratio = re.search(r"Recall@20 is ([\d.]+) times that of popularity", printed)
    assert ratio is not None
    assert float(ratio.group(1)) > 1.3
    assert "item-kNN" in printed
    assert re.search(r"User \d+ rated: ", printed)
    assert "The Matrix Reloaded (2003)" in printed or "Films like The Matrix (1999)" in printed
    assert (tmp_path / "runs" / "quickstart" / "bundle" / "manifest.json").exists()
