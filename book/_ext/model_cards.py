"""The models that ship, from their cards in companion/weights."""

import base64
import html
import json
import pathlib

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
GRID_BYTES = 200_000
FOLDER = pathlib.Path(__file__).resolve().parents[2] / "companion" / "weights"


def row(name, value):
    return f'<tr><th scope="row">{name}</th><td>{value}</td></tr>'


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def parts(model):
    """Yield in words what a model is made of, however its card nests it: classes, and what it predicts."""
    if isinstance(model, dict) and "class" in model:
        yield model["class"]
    elif isinstance(model, dict):
        for key, value in model.items():
            yield from [f"predicts {value}"] if key == "kind" and value else parts(value)
    elif isinstance(model, list | tuple):
        for part in model:
            yield from parts(part)
    elif model:
        yield str(model)


def facts(card):
    """Yield the rows of one card that say how the model came to be; what a card lacks is left out."""
    text = {key: html.escape(str(value)) for key, value in card.items() if value is not None}
    yield row("network", html.escape(", ".join(parts(card.get("model")))))
    yield row("parameters", f"{card['parameters']:,} in {card['bytes'] / 1e6:.1f} MB")
    yield row("data", text.get("data", "–"))
    if "begun" in text:
        yield row("begun", text["begun"])
    batch = f" of {text['batch']}" if "batch" in text else ""
    steps = [f"{card['steps']:,} steps{batch}"] if card.get("steps") else []
    steps += [f"seed {text['seed']}"] if "seed" in text else []
    yield row("training", f"<code>{text.get('recipe', '–')}</code><br>{', '.join(steps)}")
    took = [text["hardware"]] if "hardware" in text else []
    took += [duration(card["seconds"])] if card.get("seconds") else []
    yield row("hardware", "; ".join(took) or "–")
    if "remark" in text:
        yield row("remark", text["remark"])
    if card.get("versions"):
        yield row("versions", html.escape(" ".join(f"{k} {v}" for k, v in card["versions"].items())))
    if "licence" in text:
        yield row("licence", text["licence"])
    yield row("sha256", f'<code class="long">{text["sha256"]}</code>')


def number(value):
    return f"{value:.4g}" if isinstance(value, int | float) else "–" if value is None else html.escape(str(value))


def measured(metrics):
    """The table of what was measured: one row a quantity, one column a set of samples; empty where nothing was."""
    metrics = {name: found for name, found in (metrics or {}).items() if found}
    if not metrics:
        return ""
    quantities = list(dict.fromkeys(name for found in metrics.values() for name in found))
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ["", *metrics])
    rows = ""
    for quantity in quantities:
        found = [number(values.get(quantity)) for values in metrics.values()]
        rows += row(html.escape(quantity), "</td><td>".join(found))
    return f'<table class="table model-card"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def grid(card, folder=FOLDER):
    """The picture NAME.webp or NAME.png beside a card, inside the page, with the card's own words; "" without one."""
    found = [path for kind in ("webp", "png") if (path := folder / f"{card['name']}.{kind}").exists()]
    if not found:
        return ""
    content, words = found[0].read_bytes(), html.escape(card.get("grid") or "")
    if not words:
        logger.warning(f'{found[0].name}: its card has no words for it ("grid")', type="model_cards")
    if len(content) > GRID_BYTES:
        logger.warning(f"{found[0].name}: {len(content):,} bytes, expected at most {GRID_BYTES:,}", type="model_cards")
    source = f"data:image/{found[0].suffix[1:]};base64,{base64.b64encode(content).decode()}"
    return (
        f'<figure class="companion-figure model-grid"><img class="dark-light" src="{source}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


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
        section += nodes.paragraph("", card.get("description") or "")
        section += nodes.raw("", grid(card), format="html")
        table = f'<table class="table model-card"><tbody>{"".join(facts(card))}</tbody></table>'
        for part in filter(None, (table, measured(card.get("metrics")))):
            section += nodes.raw("", f'<div class="ledger-scroll" tabindex="0">{part}</div>', format="html")
        return section


def setup(app):
    app.add_directive("model-cards", ModelCards)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
