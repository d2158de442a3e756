"""What the tools know about chapters: where they are, their cells, their equations and the checks of these."""

import ast
import json
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.S)
LABELLED = re.compile(r'<a id="((?:eq|def)-[\w-]+)"></a>[ \t]*\n[ \t]*\n\$\$(.+?)\$\$', re.S)
TAG = re.compile(r"\\tag\{([^}]*)\}")


class Equation(NamedTuple):
    """A labelled equation: its id, its number, the index of its cell."""

    id: str
    number: str
    cell: int


class Call(NamedTuple):
    """A call in a code cell: function name, first argument where that is a string, arguments, cell index."""

    name: str
    label: str
    positional: int
    keywords: tuple
    cell: int


def paths(root=ROOT):
    """The chapters' notebooks in order."""
    return sorted((pathlib.Path(root) / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def read(path):
    """A notebook as a dict, with every cell's source joined to one string."""
    notebook = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def prose(source):
    """Markdown with its code taken out, line for line, so that no mathematics is found inside code."""
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731
    return re.sub(r"`[^`\n]+`", blank, re.sub(r"^(```|~~~).*?^\1[^\n]*$", blank, source, flags=re.S | re.M))


def equations(notebook):
    """Yield the labelled equations of a notebook in reading order; the number is "" where the tag is missing."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            for match in LABELLED.finditer(prose(cell["source"])):
                tag = TAG.search(match[2])
                yield Equation(match[1], tag[1] if tag else "", index)


def python(source):
    """A code cell's Python: IPython's magics and shell lines become `pass`."""
    if source.lstrip().startswith("%%"):
        return ""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


def figures(cell):
    """The names of the functions that a cell hands to ``explore``."""
    found = [node for node in ast.walk(ast.parse(python(cell["source"]))) if isinstance(node, ast.Call) and node.args]
    return [
        node.args[0].id
        for node in found
        if isinstance(node.func, ast.Name) and node.func.id == "explore" and isinstance(node.args[0], ast.Name)
    ]


def calls(notebook, *names):
    """Yield the calls of the named functions, plain (`verify(…)`) or by attribute (`companion.verify(…)`), in order."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        found = [node for node in ast.walk(ast.parse(python(cell["source"]))) if isinstance(node, ast.Call)]
        for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in names:
                first = node.args[0] if node.args else None
                label = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
                yield Call(name, label, len(node.args), tuple(k.arg for k in node.keywords), index)
