"""Check the chapters' sources: equations and their checks, links, set-up cell, alternative texts, nothing stored.

`python book/tools/lint_notebooks.py` prints one line a fault, with file and cell; `--fix` first strips outputs,
counts and metadata that do not belong in a stored notebook, folds long checks and writes the set-up cell anew.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import re
import symtable
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import address
import chapters
import setup_cell

ANCHOR = re.compile(r'<a id="([^"]*)">')
LINK_TO_EQUATION = re.compile(r"\]\([^)\s]*#(?:eq|def)-[\w-]+\)")
MYST = re.compile(r"^\s*:::|^\s*```\{|\{[\w:+-]+\}`|^\([\w-]+\)=\s*$", re.M)
BARE_ENVIRONMENT = re.compile(r"\\begin\{(?:align|equation|gather|multline)\*?\}")
NUMBER = re.compile(r"\([1-9]\d?\.[1-9]\d?\)")
# where an equation's number may stand, or what looks like one
NOT_PROSE = re.compile(
    r"\$\$.+?\$\$|(?<!\\)\$[^$]+?\$"  # mathematics
    r"|!?\[[^\]]*\]\([^)\s]*#[\w-]+\)|<a\s[^>]*href=.*?</a>"  # links
    r"|^ {0,3}#{1,6} [^\n]*",  # headings
    re.S | re.M,
)
FOLD, KEEP = "hide-input", "keep-output"
LONG = 14  # lines of a check that a page shows unfolded
MOST = 40  # lines of any cell
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}


def shorten(formula):
    return " ".join(formula.split())[:50]


def mathematics(notebook, chapter):
    """Yield (cell, fault) about displayed equations, their ids and their numbers."""
    expected = itertools.count(1)
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "markdown":
            continue
        text = chapters.prose(cell["source"])
        labelled = list(chapters.LABELLED.finditer(text))
        bodies = {match.span(2) for match in labelled}
        for match in ANCHOR.finditer(text):
            name = match[1]
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                yield index, f"id {name!r}: use small letters, digits and hyphens"
            if name.startswith(("eq-", "def-")) and not any(m[1] == name for m in labelled):
                yield index, f"id {name!r}: expected a blank line and then $$ … $$ after the anchor"
        for match in labelled:
            tags = chapters.TAG.findall(match[2])
            wanted = f"{chapter}.{next(expected)}"
            if tags != [wanted]:
                yield index, f"equation {match[1]}: expected \\tag{{{wanted}}}, found {tags or 'no tag'}"
        for match in chapters.DISPLAY.finditer(text):
            if match.span(1) in bodies:
                continue
            if chapters.TAG.search(match[1]):
                yield index, f"a numbered equation without an id: {shorten(match[1])}"
            elif not LINK_TO_EQUATION.search(text):
                yield index, f"no id, and no link to the equation this is a step of: {shorten(match[1])}"
        if text.count("$$") % 2:
            yield index, "an odd number of $$"
        if BARE_ENVIRONMENT.search(chapters.DISPLAY.sub(" ", text)):
            yield index, "a LaTeX environment outside $$ … $$"


def checks(notebook):
    """Yield (cell, fault) about equations without a check and checks without an equation."""
    equations = {e.id: e for e in chapters.equations(notebook)}
    calls = list(chapters.calls(notebook, "verify"))
    for equation in equations.values():
        later = [c for c in calls if c.label == equation.id and c.cell > equation.cell]
        if equation.id.startswith("eq-") and not later:
            yield equation.cell, f'equation {equation.id}: no verify("{equation.id}", …) in a later cell'
    for call in calls:
        if call.label not in equations:
            yield call.cell, f"verify({call.label!r}, …): no such equation in this chapter"
        if "wrong" not in call.keywords:
            yield call.cell, f"verify({call.label!r}, …): no wrong=, so nothing shows that the check can fail"


def figures(notebook):
    """Yield (cell, fault) about figures without alternative text."""
    for call in chapters.calls(notebook, "show", "explore", "score_field"):
        if "alt" not in call.keywords and not (call.name == "show" and call.positional >= 3):
            yield call.cell, f"{call.name}(…): no alternative text (alt=)"


def portability(notebook):
    """Yield (cell, fault) about text that JupyterLab and Colab would show raw."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            match = MYST.search(re.sub(r"\$\$?.+?\$\$?", " ", cell["source"], flags=re.S))
            if match:
                yield index, f"MyST syntax that other readers show raw: {match[0].strip()!r}"
            if re.search(r"!\[\s*\]\(", cell["source"]):
                yield index, "a picture without alternative text"
            for words in re.findall(r"<summary>(.*?)</summary>", cell["source"], flags=re.S):
                if re.search(r"[$`*]|\]\(", words):
                    yield index, f"Markdown in a summary, which pages show raw: {words[:40]!r}; HTML is read"


def loose_numbers(notebook):
    """Yield (cell, fault) about equation numbers that a reader cannot follow."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            for number in NUMBER.findall(NOT_PROSE.sub(" ", chapters.prose(cell["source"]))):
                yield index, f"the number {number} is no link: write [{number}](#eq-…), or NN_chapter.ipynb#eq-…"


def scopes(table):
    """A scope and all inside it."""
    yield table
    for child in table.get_children():
        yield from scopes(child)


def overwritten(notebook):
    """Yield (cell, fault) about sliders that a later cell breaks: their figure reads a name that it assigns anew."""
    code = {
        index: symtable.symtable(chapters.python(cell["source"]), f"cell {index}", "exec")
        for index, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "code"
    }
    drawn = {index: chapters.figures(notebook["cells"][index]) for index in code}
    for index, names in drawn.items():
        functions = {}  # name: the globals that it reads, as defined so far
        for table in (t for k, t in code.items() if k <= index for t in t.get_children()):
            functions[table.get_name()] = {
                symbol.get_name() for scope in scopes(table) for symbol in scope.get_symbols() if symbol.is_global()
            }
        needed, ahead = set(), list(names)
        while ahead:
            name = ahead.pop()
            new = functions.get(name, set()) - needed
            needed |= new
            ahead += new
        for later in (k for k in code if k > index):
            for symbol in sorted(code[later].get_symbols(), key=lambda symbol: symbol.get_name()):
                if symbol.is_assigned() and symbol.get_name() in needed:
                    yield index, f"the figure with sliders reads {symbol.get_name()!r}, which cell {later} assigns anew"


def long_checks(notebook):
    """Indices of the cells that check an equation in so many lines that a page folds them."""
    checking = {call.cell for call in chapters.calls(notebook, "verify")}
    return {index for index in checking if len(notebook["cells"][index]["source"].splitlines()) > LONG}


def long_cells(notebook):
    """Yield (cell, fault) about cells of code that nobody reads in one sitting."""
    for index, cell in enumerate(notebook["cells"]):
        lines = len(cell["source"].splitlines())
        if cell["cell_type"] == "code" and lines > MOST:
            yield index, f"{lines} lines of code: at most {MOST}; split it, or move a part to the package"


def tags(notebook):
    """Yield (cell, fault) about folded and unfolded cells, and tags that mean nothing here."""
    folded = long_checks(notebook)
    for index, cell in enumerate(notebook["cells"]):
        found = cell["metadata"].get("tags", [])
        if index in folded and FOLD not in found:
            yield index, f"a check of more than {LONG} lines without the tag {FOLD} (--fix adds it)"
        if index not in folded and FOLD in found:
            yield index, f"the tag {FOLD} is for checks of more than {LONG} lines (--fix removes it)"
        for tag in sorted(set(found) - {FOLD, KEEP}):
            yield index, f"tag {tag!r}: only {FOLD} and {KEEP} are used"


def plain(metadata):
    """A notebook's metadata, whatever the kernel calls itself."""
    kernel = metadata.get("kernelspec", {}) | {"display_name": KERNEL["display_name"]}
    return metadata | {"kernelspec": kernel}


def kept(cell):
    return KEEP in cell["metadata"].get("tags", [])


def stored(notebook):
    """Yield (cell, fault) about outputs, counts, metadata and ids."""
    if plain(notebook["metadata"]) != METADATA:
        yield None, "metadata that does not belong here (--fix strips it)"
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        yield None, "expected notebook format 4.5, which has cell ids"
    ids = [cell.get("id", "") for cell in notebook["cells"]]
    for index, cell in enumerate(notebook["cells"]):
        if not cell.get("id") or ids.count(cell["id"]) > 1:
            yield index, "a cell id is missing or used twice"
        if set(cell["metadata"]) - {"tags"}:
            yield index, f"cell metadata besides tags: {sorted(set(cell['metadata']) - {'tags'})} (--fix strips it)"
        if cell["cell_type"] != "code":
            continue
        data = [kind for output in cell["outputs"] for kind in output.get("data", {})]
        if any(kind.startswith("image/") for kind in data):
            yield index, "a stored image"
        if not kept(cell) and (cell["outputs"] or cell["execution_count"] is not None):
            yield index, "a stored output or count (--fix strips it; the tag keep-output keeps it)"
        if kept(cell):
            if not cell["outputs"]:
                yield index, "tagged keep-output, but has no output: nothing is compared"
            if any(output["output_type"] == "execute_result" for output in cell["outputs"]):
                if cell["execution_count"] is None:
                    yield index, "an output kept without its count, which never compares equal"
            if "NBVAL_CHECK_OUTPUT" not in cell["source"] and "nbval-check-output" not in cell["metadata"]["tags"]:
                yield index, "tagged keep-output, but nbval is not told to compare it (# NBVAL_CHECK_OUTPUT)"


def set_up(notebook, name, url, branch):
    """Yield (cell, fault) about the set-up cell and the Colab line above it."""
    cells = notebook["cells"]
    first = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), None)
    if first is None or cells[first]["source"] != setup_cell.cell(url):
        yield first, "the first code cell is not the set-up cell of book/tools/setup_cell.py"
    lines = [(i, cell["source"]) for i, cell in enumerate(cells) if cell.get("id") == setup_cell.BADGE_ID]
    expected = setup_cell.badge(url, branch, name)
    if lines != ([(first - 1, expected)] if expected and first else []):
        yield first, "the Colab line does not fit the book's address (`make address URL=…`)"


def unique(found, seen, path):
    """Yield (cell, fault) for ids that stand more than once in the book."""
    for index, name in found:
        if name in seen:
            yield index, f"id {name!r} stands in {seen[name]} already"
        seen[name] = f"{path.name}, cell {index}"


def anchors(notebook):
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            for match in ANCHOR.finditer(chapters.prose(cell["source"])):
                yield index, match[1]


def faults(root=chapters.ROOT):
    """Yield every fault of the chapters below `root` as a line of text."""
    url, branch = address.current(root)
    seen = {}
    for path in chapters.paths(root):
        notebook = chapters.read(path)
        for index, fault in itertools.chain(
            stored(notebook),
            set_up(notebook, path.name, url, branch),
            mathematics(notebook, int(path.name[:2])),
            checks(notebook),
            figures(notebook),
            portability(notebook),
            loose_numbers(notebook),
            overwritten(notebook),
            long_cells(notebook),
            tags(notebook),
            unique(anchors(notebook), seen, path),
        ):
            where = f"notebooks/{path.name}" + ("" if index is None else f", cell {index}")
            yield f"{where}: {fault}"


def strip(notebook):
    """Take out of a stored notebook what does not belong in it, in place."""
    if plain(notebook["metadata"]) != METADATA:
        notebook["metadata"] = METADATA
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        if cell["cell_type"] == "code" and not kept(cell):
            cell["outputs"], cell["execution_count"] = [], None


def fold(notebook, folded):
    """Tag the cells with the given indices to be folded on a page, and no others, in place."""
    for index, cell in enumerate(notebook["cells"]):
        found = [tag for tag in cell["metadata"].pop("tags", []) if tag != FOLD] + [FOLD] * (index in folded)
        if found:
            cell["metadata"]["tags"] = found


def fix(path, url, branch):
    """Mend in a stored notebook what needs no thought: outputs, metadata, folds, set-up cell and Colab line."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    strip(notebook)
    fold(notebook, long_checks(chapters.read(path)))
    with contextlib.suppress(ValueError):  # the first code cell is something else: the lint says so
        address.apply(notebook, path.name, url, branch)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fix", action="store_true")
    parser.add_argument("--root", type=pathlib.Path, default=chapters.ROOT)
    options = parser.parse_args()
    if options.fix:
        for path in chapters.paths(options.root):
            fix(path, *address.current(options.root))
    found = list(faults(options.root))
    print("\n".join(found) or f"{len(chapters.paths(options.root))} chapters: no fault found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
