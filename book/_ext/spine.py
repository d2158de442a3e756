"""The spine on the front page: the chapters with questions, measured times and dependencies, and a live figure."""

import html
import math
import pathlib
import re
import sys

import nbformat
import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from jupyter_cache import get_cache
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
import chapters

logger = logging.getLogger(__name__)
SPINE = chapters.ROOT / "book" / "spine.yml"
WORDS_A_MINUTE = 150  # prose with mathematics and code is read more slowly than prose


def read_spine():
    """The entries of spine.yml, each with `needed_by` worked out."""
    entries = yaml.safe_load(SPINE.read_text(encoding="utf-8"))
    for entry in entries:
        entry["needed_by"] = [other["number"] for other in entries if entry["number"] in other["needs"]]
    return entries


def reading_minutes(path):
    """Minutes to read a chapter: its words outside formulas and code, and half a minute for each of these."""
    cells = chapters.read(path)["cells"]
    prose = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    formulas = len(re.findall(r"\$\$.+?\$\$", prose, re.S))
    words = len(
        re.findall(r"[^\W\d_]{2,}", re.sub(r"\$\$.*?\$\$|```.*?```|<[^>]*>|\]\([^)]*\)", " ", prose, flags=re.S))
    )
    code = sum(cell["cell_type"] == "code" for cell in cells)
    return words / WORDS_A_MINUTE + 0.5 * (formulas + code)


def running_seconds(env, path):
    """Seconds that the chapter's last execution for the site took, from the cache; None where it has not run."""
    cache = get_cache(env.mystnb_config.execution_cache_path)
    try:
        return cache.match_cache_notebook(nbformat.read(path, 4)).data.get("execution_seconds")
    except KeyError:
        return None


class Spine(SphinxDirective):
    """The table of chapters."""

    def run(self):
        self.env.note_dependency(str(SPINE))
        rows = "".join(self.row(entry) for entry in read_spine())
        heads = "".join(f'<th scope="col">{name}</th>' for name in ("", "chapter", "needs", "needed by", "read, run"))
        markup = (
            f'<div class="ledger-scroll"><table class="table spine"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
        return [nodes.raw("", markup, format="html")]

    def row(self, entry):
        title, times = html.escape(entry["title"]), ""
        if "file" in entry:
            path = chapters.ROOT / "notebooks" / f"{entry['file']}.ipynb"
            self.env.note_dependency(str(path))
            title = f'<a href="../notebooks/{entry["file"]}.html" data-chapter="{entry["file"]}">{title}</a>'
            seconds = running_seconds(self.env, path)
            times = f"{reading_minutes(path):.0f} min" + (f", {math.ceil(seconds / 10) * 10} s" if seconds else "")
        question = f'<br><span class="ledger-note">{html.escape(entry["question"])}</span>'
        needs, needed = (", ".join(map(str, entry[key])) or "–" for key in ("needs", "needed_by"))
        kind = "" if "file" in entry else ' class="planned"'
        cells = (entry["number"], title + question, needs, needed, times or "planned")
        return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


class ChapterFigure(SphinxDirective):
    """A slider figure out of an executed chapter: the argument names the chapter, `index` says which, from 0."""

    required_arguments = 1
    option_spec = {"index": directives.nonnegative_int}

    def run(self):
        path = chapters.ROOT / "notebooks" / f"{self.arguments[0]}.ipynb"
        self.env.note_dependency(str(path))
        cache = get_cache(self.env.mystnb_config.execution_cache_path)
        try:
            notebook = cache.merge_match_into_notebook(nbformat.read(path, 4))[1]
        except KeyError:
            logger.warning("the chapter has not been executed", location=self.env.docname, type="spine")
            return []
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        pages = [output["data"].get("text/html", "") for output in outputs if "data" in output]
        figures = [page for page in pages if 'class="companion-explore"' in page]
        return [nodes.raw("", figures[self.options.get("index", 0)], format="html")]


def setup(app):
    app.add_directive("spine", Spine)
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_js_file("progress.js")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
