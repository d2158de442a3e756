"""Small matters of the site: buttons that need an address, display mathematics exactly as a chapter wrote it, and the
pages' text by sections, so that the search can say where in a page it found something."""

import json
import pathlib

from docutils import nodes
from sphinx.transforms import SphinxTransform

COLAB = "https://colab.research.google.com"
PROVIDERS = ("github.com", "gitlab.com", "bitbucket.org")


def use_address(app, config):
    """Switch on the buttons that need the book's address where `repository.url` has one."""
    options = config.html_theme_options
    url = options.get("repository_url") or ""
    if not any(provider in url for provider in PROVIDERS):
        for key in ("repository_url", "repository_branch", "path_to_docs", "launch_buttons"):
            options.pop(key, None)
        return
    options["use_repository_button"] = True
    options["use_issues_button"] = True  # "report a problem" on every page
    options["launch_buttons"] = {"colab_url": COLAB, "notebook_interface": "jupyterlab"} if "github.com" in url else {}


def use_comments(app, config):
    """Margin comments by hypothes.is where `html.comments.hypothesis` is true; off by default: they need its host."""
    if config.comments_config.get("hypothesis"):
        app.add_js_file("https://hypothes.is/embed.js", loading_method="async")


class DisplayAsWritten(SphinxTransform):
    r"""Keep Sphinx from wrapping `$$ … \\ … \tag{1.2} $$` in a split environment, where a tag is an error."""

    default_priority = 500

    def apply(self):
        for node in self.document.findall(nodes.math_block):
            if not node.get("nowrap"):
                node["nowrap"] = True
                node.children = [nodes.Text(rf"\[{node.astext().strip()}\]")]


def words(node):
    """Yield the texts of a section that a reader would search: not its subsections, mathematics and outputs."""
    for child in node.children:
        if isinstance(child, nodes.Text | nodes.literal):
            yield child.astext()
        elif isinstance(child, nodes.literal_block):
            yield child.astext() + " "
        elif isinstance(child, nodes.math):
            yield "…"
        elif not isinstance(child, nodes.section | nodes.title | nodes.raw | nodes.math_block | nodes.Invisible):
            if child.get("nb_element") != "cell_code_output":
                yield "".join(words(child)) + ("" if isinstance(child, nodes.Inline) else " ")


def sections(doctree):
    """Yield (id, title, text) for every section of a page."""
    for section in doctree.findall(nodes.section):
        title = section.next_node(nodes.title)
        text = " ".join("".join(words(section)).split())
        yield section["ids"][0], title.astext() if title else "", text


def collect_sections(app, doctree):
    """Keep a page's sections; env.book_sections is {page: [[id, title, text], …]}."""
    if not hasattr(app.env, "book_sections"):
        app.env.book_sections = {}
    app.env.book_sections[app.env.docname] = [list(found) for found in sections(doctree)]


def write_sections(app, env):
    """Write them as a script, which a page read from a file may load where it may not fetch."""
    folder = pathlib.Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: rows for name, rows in sorted(env.book_sections.items()) if name in env.found_docs}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (folder / "sections.js").write_text(f"const BOOK_SECTIONS = {text};\n", encoding="utf-8")


def load_sections(app, pagename, templatename, context, doctree):
    """Only the search page needs them."""
    if pagename == "search":
        app.add_js_file("sections.js")


def write_sources(app, error):
    """Beside every page's source the same as a script: how a page read from a file can save it (book.js)."""
    if error or app.builder.format != "html":
        return
    for source in sorted((pathlib.Path(app.outdir) / "_sources").rglob("*")):
        if source.is_file() and source.suffix != ".js":
            text = json.dumps(source.read_text(encoding="utf-8"))
            script = source.with_name(f"{source.name}.js")
            script.write_text(f"saveSource({json.dumps(source.name)}, {text});\n", encoding="utf-8")


def setup(app):
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it whether or not comments are wanted
    # before the theme reads its options
    app.connect("config-inited", use_address, priority=1)
    app.connect("config-inited", use_comments)
    app.add_transform(DisplayAsWritten)
    app.connect("doctree-read", collect_sections)
    app.connect("env-updated", write_sections)
    app.connect("html-page-context", load_sections)
    app.connect("build-finished", write_sources)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
