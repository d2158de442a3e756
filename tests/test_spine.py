"""The spine: it agrees with the chapters that are there, and what chapters say of themselves is so."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "tools"), str(ROOT / "book" / "_ext")]
import chapters
import spine

ENTRIES = spine.read_spine()


def test_every_chapter_is_in_the_spine_and_in_the_contents():
    files = [path.stem for path in chapters.paths()]
    assert [entry["file"] for entry in ENTRIES if "file" in entry] == files
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert [item["file"] for item in contents["parts"][0]["chapters"]] == [f"notebooks/{name}" for name in files]
    for entry in ENTRIES:
        if "file" in entry:
            title = chapters.read(ROOT / "notebooks" / f"{entry['file']}.ipynb")["cells"][0]["source"].splitlines()[0]
            assert title == f"# {entry['number']}. {entry['title']}"


def test_needs_come_before():
    assert [entry["number"] for entry in ENTRIES] == list(range(1, len(ENTRIES) + 1))
    for entry in ENTRIES:
        assert all(0 < need < entry["number"] for need in entry["needs"])
        assert entry["number"] == 1 or entry["needs"]


@pytest.mark.parametrize("path", chapters.paths(), ids=lambda path: path.stem)
def test_stated_reading_time_is_the_counted_one(path):
    opening = chapters.read(path)["cells"][0]["source"]
    stated = int(re.search(r"\*\*Reading time\*\* about (\d+) minutes", opening)[1])
    assert stated == pytest.approx(spine.reading_minutes(path), rel=0.2)
    assert re.search(r"\*\*Running time\*\* about \d+ seconds on one CPU thread", opening)
