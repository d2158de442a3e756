"""Set the book's public address (`python book/tools/address.py https://…`), or unset it (with "").

The address stands in _config.yml, `repository.url`. From there it goes into every chapter's set-up cell and Colab line.
"""

import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chapters
import setup_cell

LINE = re.compile(r'^  url: "([^"\n]*)"[ \t]*$', re.M)
BRANCH = re.compile(r"^  branch: *(\S+)[ \t]*$", re.M)
MARK = "# Set-up, the same in every chapter"


def current(root=chapters.ROOT):
    """The address and branch that _config.yml holds."""
    text = (pathlib.Path(root) / "_config.yml").read_text(encoding="utf-8")
    return LINE.search(text)[1], BRANCH.search(text)[1]


def apply(notebook, name, url, branch):
    """Bring a notebook's set-up cell and Colab line in step with an address, in place."""
    cells = [c for c in notebook["cells"] if c.get("id") != setup_cell.BADGE_ID]
    for place, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            if not "".join(cell["source"]).startswith(MARK):
                raise ValueError(f"{name}: the first code cell is not the set-up cell")
            cell["source"] = setup_cell.cell(url).splitlines(keepends=True)
            line = setup_cell.badge(url, branch, name)
            if line:
                badge = {"cell_type": "markdown", "id": setup_cell.BADGE_ID, "metadata": {}, "source": [line]}
                cells.insert(place, badge)
            break
    notebook["cells"] = cells


def write(url, root=chapters.ROOT):
    """Set the address everywhere below `root`; running it twice changes nothing more."""
    if url and not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+", url):
        raise ValueError(f"URL: expected https://host/owner/repository without a slash at the end, got {url!r}")
    config = pathlib.Path(root) / "_config.yml"
    text = config.read_text(encoding="utf-8")
    config.write_text(LINE.sub(f'  url: "{url}"', text, count=1), encoding="utf-8")
    branch = current(root)[1]
    for path in chapters.paths(root):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        apply(notebook, path.name, url, branch)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write(sys.argv[1].strip() if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(str(error))
