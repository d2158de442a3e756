"""The models that ship, from their cards in companion/weights."""

import html
import json
import pathlib

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "companion" / "weights"


def row(name, value):
    return f'<tr><th scope="row">{name}</th><td>{value}</td></tr>'


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def facts(card):
    """Yield the rows of one card that say how the model came to be."""
    text = {key: html.escape(str(value)) for key, value in card.items()}
    parts = card.get("model", {})
    names = [parts[key]["class"] for key in ("net", "schedule") if key in parts]
    names += [f"predicts {parts['kind']}"] if "kind" in parts else []
    yield row("network and schedule", html.escape(", ".join(names)))
    yield row("parameters", f"{card['parameters']:,} in {card['bytes'] / 1e6:.1f} MB")
    yield row("data", text["data"])
    steps = f"{card['steps']:,} steps of {text['batch']}, seed {text['seed']}"
    yield row("training", f"<code>{text['recipe']}</code><br>{steps}")
    yield row("hardware", f"{text['hardware']}; {duration(card['seconds'])}")
    yield row("versions", html.escape(" ".join(f"{k} {v}" for k, v in card.get("versions", {}).items())))
    yield row("licence", text.get("licence", ""))
    yield row("sha256", f"<code>{text['sha256']}</code>")


def measured(metrics):
    """The table of what was measured: one row a quantity, one column a set of samples."""
    sets = list(metrics)
    quantities = list(dict.fromkeys(name for found in metrics.values() for name in found))
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ["", *sets])
    rows = ""
    for quantity in quantities:
        found = [f"{metrics[s][quantity]:.4g}" if quantity in metrics[s] else "–" for s in sets]
        rows += row(html.escape(quantity), "</td><td>".join(found))
    return f'<table class="table model-card"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


class ModelCards(SphinxDirective):
    """A section for every model that ships, found under its name."""

    def run(self):
        return [self.section(json.loads(path.read_text(encoding="utf-8"))) for path in self.cards()]

    def cards(self):
        for path in sorted(FOLDER.glob("*.json")):
            self.env.note_dependency(str(path))
            yield path

    def section(self, card):
        section = nodes.section(ids=[card["name"]], names=[card["name"]])
        section += nodes.title("", "", nodes.literal("", card["name"]))
        section += nodes.paragraph("", card["description"])
        table = f'<table class="table model-card"><tbody>{"".join(facts(card))}</tbody></table>'
        body = table + measured(card.get("metrics", {}))
        section += nodes.raw("", f'<div class="ledger-scroll" tabindex="0">{body}</div>', format="html")
        return section


def setup(app):
    app.add_directive("model-cards", ModelCards)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
