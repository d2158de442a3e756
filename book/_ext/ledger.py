"""The ledger: every labelled equation of the executed chapters with its check, and the links that join
equation, function and API page in both directions."""

import collections
import html
import importlib
import pathlib
import re
import sys

import nbformat
from docutils import nodes
from docutils.parsers.rst import Directive
from jupyter_cache import get_cache
from myst_nb.core.render import NbElementRenderer
from sphinx import addnodes
from sphinx.util import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
import chapters

logger = logging.getLogger(__name__)
MIME = "application/vnd.companion.check+json"
PLACE = re.compile(r"^ {0,3}#{1,6} (?P<heading>[^\n]+)|<a id=\"(?P<id>(?:eq|def)-[\w-]+)\">", re.M)
API = re.compile(r'<code class="companion-api" data-api="([\w.]+)">.*?</code>', re.S)


def executed(cache, path):
    """The notebook with its outputs as Jupyter Book's cache holds them; None where it has not been executed."""
    try:
        return cache.merge_match_into_notebook(nbformat.read(path, 4))[1]
    except KeyError:
        return None


def shown_checks(notebook):
    """Yield the checks that an executed notebook shows, in order."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if MIME in output.get("data", {}):
                yield dict(output["data"][MIME])


def gaps(equations, checks):
    """What is missing, as sentences: an equation without a check, a check without an equation."""
    labelled, checked = {e.id for e in equations}, {c["id"] for c in checks}
    for name in sorted(labelled - checked):
        if name.startswith("eq-"):
            yield f"equation {name} has no verify that ran"
    for name in sorted(checked - labelled):
        yield f"verify ran for {name}, which is no labelled equation of the chapter"


def headings(notebook):
    """Equation id -> title of the section that the equation stands in."""
    found, title = {}, ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for match in PLACE.finditer(chapters.prose(cell["source"])):
                if match["heading"]:
                    # from the source itself, for prose() has taken the code out
                    title = re.sub(r"[`*$]", "", cell["source"][slice(*match.span("heading"))]).strip()
                else:
                    found[match["id"]] = title
    return found


def collect(app, env):
    """Read the executed chapters once all pages are read: env.ledger is a list of (docname, equations, checks)."""
    env.ledger_headings = {}
    env.ledger = []
    cache = get_cache(env.mystnb_config.execution_cache_path)
    for docname in sorted(d for d in env.found_docs if re.match(r"notebooks/\d\d_", d)):
        source = chapters.read(env.doc2path(docname))
        equations = list(chapters.equations(source))
        env.ledger_headings |= headings(source)
        notebook = executed(cache, env.doc2path(docname))
        checks = list(shown_checks(notebook)) if notebook else []
        for gap in gaps(equations, checks):
            logger.warning(gap, location=docname, type="ledger", subtype="gap")
        env.ledger.append((docname, equations, checks))


class ledger_table(nodes.General, nodes.Element):
    """Stands where the table goes until every chapter has been read."""


class LedgerDirective(Directive):
    def run(self):
        return [ledger_table()]


def real_name(dotted):
    """The name under which an object is defined, e.g. of an inherited method; None where there is no such object."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            for part in parts[cut:]:
                thing = getattr(thing, part)
            return f"{thing.__module__}.{thing.__qualname__}"
        except AttributeError:
            return None
    return None


def api_target(app, docname, dotted):
    """The link from a page to an object's place on its API page, or None."""
    objects = app.env.get_domain("py").objects
    real = real_name(dotted)
    entry = objects.get(dotted) or objects.get(real)
    if entry is None and real:
        # defined in a file of a package, documented under the package that offers it
        last = real.rpartition(".")[2]
        entry = next((objects[name] for name in objects if name.endswith(last) and real_name(name) == real), None)
    if entry is None:
        logger.warning(f"no API page has {dotted}", location=docname, type="ledger", subtype="api")
        return None
    return app.builder.get_relative_uri(docname, entry.docname) + f"#{entry.node_id}"


def chapter_title(app, docname):
    title = app.env.titles.get(docname)
    return title.astext() if title else docname


def number(value):
    return "–" if value is None else f"{value:.1e}" if value else "0"


def check_cells(app, docname, check, common):
    """The table cells of one check; versions only where they are not the common ones."""
    function, lines = check.get("function"), [html.escape(check.get("how") or "")]
    if function:
        target, short = api_target(app, docname, function), html.escape(function.removeprefix("companion."))
        short = f"<code>{short.replace('.', '.<wbr>')}</code>"
        lines.append(f'<a href="{target}">{short}</a>' if target else short)
    yield "<br>".join(filter(None, lines))
    kind = "statistical, " if check.get("statistical") else ""
    yield with_note(number(check.get("difference")), f"{kind}tolerance {number(check.get('tolerance'))}")
    wrong = check.get("wrong") or {}
    nearest = min(wrong, key=wrong.get, default=None)
    count = f", nearest of {len(wrong)}" if len(wrong) > 1 else ""
    yield "–" if nearest is None else with_note(html.escape(nearest), f"{wrong[nearest]:.3g} tolerances off{count}")
    when = html.escape((check.get("time") or "")[:16].replace("T", " "))
    yield when if versions(check) == common else with_note(when, versions(check))


def with_note(text, note):
    return f'{text}<br><span class="ledger-note">{note}</span>'


def versions(check):
    return html.escape(", ".join(f"{k} {v.split('+')[0]}" for k, v in (check.get("versions") or {}).items()))


def rows(app, docname, common):
    """Yield the rows of the ledger's table."""
    for chapter, equations, checks in app.env.ledger:
        uri = app.builder.get_relative_uri(docname, chapter)
        title = f'<a href="{uri}">{html.escape(chapter_title(app, chapter))}</a>'
        yield f'<tr class="ledger-chapter"><th colspan="5" scope="rowgroup">{title}</th></tr>'
        for equation in equations:
            link = f'<a href="{uri}#{equation.id}">({html.escape(equation.number)})</a>'
            link = with_note(link, html.escape(app.env.ledger_headings.get(equation.id, "")))
            row = f'<tr id="{equation.id}">'
            if equation.id.startswith("def-"):
                note = '<td colspan="4" class="ledger-note">a definition; nothing to check</td>'
                yield f"{row}<td>{link}</td>{note}</tr>"
            for check in checks:
                if check["id"] == equation.id:
                    cells = "".join(f"<td>{cell}</td>" for cell in check_cells(app, docname, check, common))
                    yield f"{row}<td>{link}</td>{cells}</tr>"
                    row = "<tr>"


def table(app, docname):
    """The ledger as HTML."""
    checks = [check for _, _, checks in app.env.ledger for check in checks]
    labelled = sum(e.id.startswith("eq-") for _, equations, _ in app.env.ledger for e in equations)
    wrong = sum(len(check.get("wrong") or {}) for check in checks)
    common = collections.Counter(map(versions, checks)).most_common(1)[0][0] if checks else ""
    head = "equation|checked against, and the function|difference|nearest wrong version|last run (UTC)".split("|")
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f"<p><strong>{labelled}</strong> equations, <strong>{len(checks)}</strong> checks, "
        f"<strong>{wrong}</strong> wrong versions rejected. Run with {common}.</p>"
        f'<div class="ledger-scroll" tabindex="0" role="region" aria-label="The ledger"><table class="ledger table">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows(app, docname, common))}</tbody></table></div>"
    )


def verified_by(app, docname):
    """Object name -> list of (number, link) of the equations whose checks name it."""
    found = {}
    for chapter, equations, checks in app.env.ledger:
        numbers = {e.id: e.number for e in equations}
        for check in checks:
            function = check.get("function")
            if function and check["id"] in numbers:
                link = app.builder.get_relative_uri(docname, chapter) + f"#{check['id']}"
                place = found.setdefault(real_name(function) or function, [])
                if (numbers[check["id"]], link) not in place:
                    place.append((numbers[check["id"]], link))
    return found


def add_verified(app, doctree, docname):
    """Below each function's entry: the equations whose checks call it."""
    found = verified_by(app, docname)
    for signature in list(doctree.findall(addnodes.desc_signature)):
        links = next((found[real] for name in signature["ids"] if (real := real_name(name) or name) in found), None)
        if links:
            paragraph = nodes.paragraph(classes=["verified-by"])
            paragraph += nodes.Text("Verified by: ")
            for place, (text, link) in enumerate(links):
                paragraph += nodes.Text(", " if place else "")
                paragraph += nodes.reference("", f"({text})", refuri=link, internal=True)
            signature.parent[-1].append(paragraph)


def resolve(app, doctree, docname):
    """Fill in the table and the links, when every page is known."""
    for node in list(doctree.findall(ledger_table)):
        node.replace_self(nodes.raw("", table(app, docname), format="html"))
    for node in list(doctree.findall(nodes.raw)):
        if node.get("format") == "html" and "companion-api" in node.astext():
            linked = API.sub(lambda match: link_api(app, docname, match), node.astext())
            node.replace_self(nodes.raw("", linked, format="html", classes=node.get("classes", [])))
    add_verified(app, doctree, docname)


def link_api(app, docname, match):
    target = api_target(app, docname, match[1])
    return f'<a class="companion-api-link" href="{target}">{match[0]}</a>' if target else match[0]


def ignore_checks(render):
    """A check's JSON is for the ledger; the page shows the badge that comes with it."""
    return lambda renderer, data: [] if data.mime_type == MIME else render(renderer, data)


def setup(app):
    NbElementRenderer.render_unhandled = ignore_checks(NbElementRenderer.render_unhandled)
    app.add_node(ledger_table)
    app.add_directive("ledger", LedgerDirective)
    app.connect("env-updated", collect)
    app.connect("doctree-resolved", resolve)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
