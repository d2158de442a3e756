"""API pages from docstrings that are plain text or light reST, with signatures as they stand in the source."""

import ast
import inspect
import re
import textwrap

KEEP = re.compile(r"``.+?``|:[\w:+-]+:`[^`]+`|`[^`\n]+`|https?://[^\s)>]+")
LIST_ITEM = re.compile(r"(?:[-*+•]|\d+[.)])\s")


def escape(text):
    """Plain text as reST: code stays code (one backtick or two), everything else means what it says."""
    done, at = [], 0
    for match in KEEP.finditer(text):
        done.append(re.sub(r"([\\*|_])", r"\\\1", text[at : match.start()]))
        kept = match[0]
        done.append(f"``{kept[1:-1]}``" if kept.startswith("`") and not kept.startswith("``") else kept)
        at = match.end()
    return "".join([*done, re.sub(r"([\\*|_])", r"\\\1", text[at:])])


def light(lines):
    """A docstring's lines as reST that cannot fail: paragraphs, lists, and indented blocks kept as lines."""
    text = textwrap.dedent("\n".join(lines)).strip("\n")
    for block in re.split(r"\n\s*\n", text):
        rows = block.split("\n")
        if LIST_ITEM.match(rows[0]):
            items = []
            for row in rows:
                if LIST_ITEM.match(row):
                    items.append(LIST_ITEM.sub("", row, count=1))
                else:
                    items[-1] += " " + row.strip()
            yield from (f"- {escape(item)}" for item in items)
        elif any(row.startswith((" ", "\t")) for row in rows):
            for row in rows:
                indent = len(row) - len(row.lstrip())
                yield "| " + " " * indent + escape(row.strip())
        else:
            # a paragraph; as one line no row of it can look like a list, a title or a directive
            yield escape(" ".join(row.strip() for row in rows))
        yield ""


def docstring(app, what, name, obj, options, lines):
    """Replace a docstring's lines by their light form."""
    lines[:] = list(light(lines))


def source_function(obj):
    """The syntax tree of a function, or of a class's own __init__; None where there is none."""
    if inspect.isclass(obj):
        obj = obj.__dict__.get("__init__")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj))))
    except (TypeError, OSError, SyntaxError):
        return None
    node = tree.body[0]
    return node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def signature(app, what, name, obj, options, given, returns):
    """Arguments as written: jaxtyping's shapes keep their words (`Float[Tensor, "batch channel height width"]`)."""
    if what not in ("function", "method", "class"):
        return None
    node = source_function(obj)
    if node is None:
        return None
    positional = node.args.posonlyargs or node.args.args
    if what == "class" or (what == "method" and positional and positional[0].arg in ("self", "cls")):
        del positional[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns and what != "class" else None


def skip(app, what, name, obj, skipped, options):
    """Leave out the fields that a named tuple documents as aliases of their numbers."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
