"""One browser for all tests of the site; without Chromium they are skipped, unless the run requires them."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "book" / "tools"))
import browse

NO_BROWSER = "no Chromium: run `apt install chromium`, or set CHROMIUM=/path/to/it"


@pytest.fixture(scope="session")
def browser():
    if browse.chromium() is None:
        (pytest.fail if os.environ.get("BOOK_SITE_REQUIRED") == "1" else pytest.skip)(NO_BROWSER)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=browse.chromium(), args=["--no-sandbox"])
        yield found
        found.close()
