"""Small matters of the site: buttons that need an address, and display mathematics exactly as a chapter wrote it."""

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


def setup(app):
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it whether or not comments are wanted
    # before the theme reads its options
    app.connect("config-inited", use_address, priority=1)
    app.connect("config-inited", use_comments)
    app.add_transform(DisplayAsWritten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
