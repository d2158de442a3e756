"""A figure with sliders that answers with a kernel and without one.

>>> explore(draw, caption="…", alt="…", w=slider(0, 5, steps=11, label="guidance scale w"))     # doctest: +SKIP

``draw(w=…)`` returns a figure. With a kernel, ipywidgets call it at every move; the same output carries a page of its
own in which a few lines of JavaScript show frames computed on a coarse grid.
"""

import html
import importlib.util
import inspect
import itertools
import json
import math
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from companion import figures

MAX_FRAMES = 200
MAX_BYTES = 1_000_000
_IDS = "\ue000"  # stands for the figure's own prefix of ids until its content is known
_seen: Counter[str] = Counter()


@dataclass(frozen=True)
class Control:
    """One slider or choice: the coarse grid of its values, where it starts, and how a value reads."""

    grid: tuple
    value: object
    step: int | float | None = None
    label: str = ""
    format: str = "{}"
    kind: str = "values"

    def text(self, value) -> str:
        """How a value reads, with its unit."""
        return self.format.format(value)

    @property
    def start(self) -> int:
        """The starting value's place in the grid."""
        return self.grid.index(self.value)


def slider(lo, hi=None, *, value=None, steps=11, step=None, label=None, format=None) -> Control:
    """A slider from ``lo`` to ``hi``, with ``steps`` values on the published page and one each ``step`` when live.

    It starts at ``value`` (the grid's middle by default), which joins the grid. An int ``step`` makes a slider over
    ints; ``slider([1, 2, 5, 10])`` is one over a list of values, live and on the page (it starts at the first).
    ``format`` is a format string that may hold a unit, such as "{:d} steps". Raises ValueError where ``lo`` is not
    below ``hi``, ``value`` is outside, ``steps`` is below 2, or a number is not finite; TypeError where one is no
    number.
    """
    if hi is None:
        return _choice(lo, value, label, format or "{}", "values", "slider")
    whole = _check_range(lo, hi, value, steps, step)
    grid = [lo + (hi - lo) * i / (steps - 1) for i in range(steps)]
    grid = [round(v) for v in grid] if whole else [round(float(v), 12) for v in grid]
    value = grid[len(grid) // 2] if value is None else int(value) if whole else float(value)
    grid = tuple(sorted({*grid, value}))
    step = step if step is not None else (hi - lo) / (steps - 1) / 10
    format = format or ("{:d}" if whole else "{:.2f}")
    return _control(grid, value, step, label, format, "int" if whole else "float", "slider")


def _check_range(lo, hi, value, steps, step) -> bool:
    """Raise unless the arguments of ``slider`` make sense together; say whether it runs over ints."""
    for name, number in {"lo": lo, "hi": hi, "value": value, "step": step}.items():
        _number(number, name, none=name in ("value", "step"))
    if lo >= hi:
        raise ValueError(f"slider: lo must be below hi; got lo={lo!r}, hi={hi!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"slider: steps must be an int of 2 or more; got {steps!r}")
    if value is not None and not lo <= value <= hi:
        raise ValueError(f"slider: value must be between lo={lo!r} and hi={hi!r}; got {value!r}")
    if step is not None and not 0 < step <= hi - lo:
        raise ValueError(f"slider: step must be positive and at most hi - lo = {hi - lo!r}; got {step!r}")
    whole = isinstance(step, int)
    if whole and not all(v is None or float(v).is_integer() for v in (lo, hi, value)):
        raise ValueError(f"slider: step={step!r} is an int, so lo, hi and value must be whole numbers")
    return whole


def choice(values, *, value=None, label=None, format="{}") -> Control:
    """A choice of one of several values, starting at ``value`` (the first by default).

    Raises ValueError where there are fewer than two values, two are equal, or ``value`` is none of them.
    """
    return _choice(values, value, label, format, "choice", "choice")


def typed(values, *, value=None, label=None) -> Control:
    """A text that a reader with a kernel types, or picks from ``values``; on the page a choice among these.

    ``figure_fn`` gets the text, and may raise ValueError to say what is wrong with it: the message takes the figure's
    place. Raises as ``choice`` does, and TypeError where a value is no str.
    """
    if not isinstance(values, str) and not all(isinstance(text, str) for text in values):
        raise TypeError("typed: values must all be str")
    return _choice(values, value, label, "{}", "typed", "typed")


def _choice(values, value, label, format, kind: str, caller: str) -> Control:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{caller}: values must be a list or a range; got {type(values).__name__}")
    grid = tuple(values)
    if len(grid) < 2:
        raise ValueError(f"{caller}: values must hold at least two; got {list(grid)!r}")
    for number in grid:
        if isinstance(number, float):
            _number(number, "values", caller=caller)
    value = grid[0] if value is None else value
    if value not in grid:
        raise ValueError(f"{caller}: value must be one of {list(grid)!r}; got {value!r}")
    return _control(grid, value, None, label, format, kind, caller)


def _control(grid, value, step, label, format, kind: str, caller: str) -> Control:
    """The control, once each of its values is known to read differently."""
    try:
        texts = [format.format(v) for v in grid]
    except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{caller}: format must take one of the values {grid!r}; got {format!r} ({error})") from error
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise ValueError(f"{caller}: two values read {twice[0]!r}: equal values, or format={format!r} is too coarse")
    return Control(grid, value, step, label or "", format, kind)


def _number(number, name: str, none: bool = False, caller: str = "slider"):
    if number is None and none:
        return
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{caller}: {name} must be a number; got {type(number).__name__}")
    if not math.isfinite(number):
        raise ValueError(f"{caller}: {name} must be finite; got {number!r}")


def explore(figure_fn, *, caption="", alt=None, frames=MAX_FRAMES, quality=None, **sliders):
    """Display a figure with sliders: live where there is a kernel, and from precomputed frames where there is none.

    ``figure_fn(**values)`` returns a matplotlib figure, or HTML as a str; the same values must give the same figure.
    Each further keyword is one of its arguments: a ``slider``, a ``choice``, a list or range of values, or a slider or
    drop-down of ipywidgets. ``caption`` is HTML, ``alt`` a text or a function of the values that returns one (when not
    given, the sliders' values; the book's chapters always give one). ``frames`` is the most there may be,
    ``quality`` (1 to 100) stores pictures as lossy WebP. Raises TypeError or ValueError, naming the argument: a slider
    that is no argument of ``figure_fn`` or changes nothing, too many frames, more than 1 MB.
    """
    explorer = build(figure_fn, caption=caption, alt=alt, frames=frames, quality=quality, **sliders)
    if figures.in_ipython():
        from IPython.display import display

        display(explorer.bundle(), raw=True)


def build(figure_fn, *, caption="", alt=None, frames=MAX_FRAMES, quality=None, **sliders):
    """What ``explore`` would display: an ``Explorer``; takes and raises the same."""
    return Explorer(figure_fn, caption, alt, frames, quality, sliders)


class Explorer:
    """A figure with sliders: ``html`` is the static page, ``widget`` the live one, ``controls`` its parts by name."""

    def __init__(self, figure_fn, caption, alt, frames, quality, sliders):
        self.figure_fn, self.alt, self.quality = figure_fn, alt, quality
        if not isinstance(caption, str):
            raise TypeError(f"explore: caption must be a str; got {type(caption).__name__}")
        if alt is not None and not callable(alt):
            figures.text(alt, "alt", "explore")
        self.caption = caption
        self.sliders = {name: _as_control(name, spec) for name, spec in sliders.items()}
        _check_names(figure_fn, self.sliders)
        self.error: BaseException | None = None
        self._live = None
        self.frames = self._frames(frames)
        self.html = self._static()
        if len(self.html.encode()) > MAX_BYTES:
            raise ValueError(
                f"explore: {len(self.html.encode()) / 1e6:.2f} MB for {len(self.frames)} frames, more than "
                f"{MAX_BYTES / 1e6:.0f} MB: give fewer steps, draw fewer points or smaller pictures, or set quality=60"
            )

    # -- frames

    def _frames(self, limit: int) -> dict[tuple, tuple[str, str]]:
        """Drawing and alternative text for each combination of the sliders' grids."""
        grids = [control.grid for control in self.sliders.values()]
        count = math.prod(map(len, grids))
        if count > limit:
            sizes = " x ".join(f"{name}: {len(control.grid)}" for name, control in self.sliders.items())
            raise ValueError(f"explore: {count} frames ({sizes}), more than frames={limit}: give fewer steps or values")
        result = {key: self._frame(key) for key in itertools.product(*grids)}
        first = next(iter(result))
        if self._frame(first) != result[first]:
            raise ValueError(f"explore: figure_fn drew two figures for the same values {first}: fix its seed")
        check_alive({key: drawing for key, (drawing, _) in result.items()}, list(self.sliders))
        return result

    def _frame(self, key: tuple) -> tuple[str, str]:
        values = dict(zip(self.sliders, key, strict=True))
        try:
            return self._draw(values, _IDS), self._describe(values)
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"while explore drew the frame of {values}")
            raise

    def _draw(self, values: dict, prefix: str | None = None) -> str:
        """SVG (or the HTML that figure_fn returned) for these values."""
        with figures.style():
            drawn = self.figure_fn(**values)
        if isinstance(drawn, str):
            return drawn
        if not hasattr(drawn, "savefig"):
            raise TypeError(f"explore: figure_fn must return a matplotlib Figure or a str; got {type(drawn).__name__}")
        return figures.to_svg(drawn, prefix, self.quality)

    def _describe(self, values: dict) -> str:
        if self.alt is None:
            return "A figure with " + ", ".join(f"{c.label}: {c.text(values[n])}" for n, c in self.sliders.items())
        return figures.text(self.alt(**values) if callable(self.alt) else self.alt, "alt", "explore")

    # -- without a kernel

    def _static(self) -> str:
        start = tuple(control.value for control in self.sliders.values())
        drawing, alt = self.frames[start]
        token, drawings = _shorten([drawing for drawing, _ in self.frames.values()])
        lines, frames = dedupe(drawings)
        data = {
            "lines": lines,
            "frames": frames,
            "dot": token,
            "alt": [self.alt] if isinstance(self.alt, str) else [alt for _, alt in self.frames.values()],
            "labels": [control.label for control in self.sliders.values()],
            "texts": [[control.text(v) for v in control.grid] for control in self.sliders.values()],
        }
        rows = "".join(_row(name, control) for name, control in self.sliders.items())
        caption = f"<figcaption>{self.caption}</figcaption>" if self.caption else ""
        page = (
            f'<figure class="companion-explore" data-explore="{_IDS}"><style>{_CSS}</style>\n'
            f'<div class="companion-view" role="img" aria-label="{html.escape(alt)}">\n{drawing}</div>\n'
            f'<div class="companion-controls">{rows}</div>\n{caption}\n'
            f'<script type="application/json">{_json(data)}</script>\n<script>{_JS}</script></figure>'
        )
        uid = "x" + sha256(page.encode()).hexdigest()[:7]
        _seen[uid] += 1
        return page.replace(_IDS, uid if _seen[uid] == 1 else f"{uid}-{_seen[uid]}")

    # -- with a kernel

    @property
    def widget(self):
        """The live figure, an ``ipywidgets.VBox``; raises ImportError where ipywidgets is missing."""
        if self._live is None:
            self._live = self._make_widget()
        return self._live

    @property
    def controls(self) -> dict:
        """The live controls by the sliders' names."""
        return dict(zip(self.sliders, self.widget.children[1:-1], strict=True))

    @property
    def view(self):
        """The live ``ipywidgets.HTML`` that holds the figure."""
        return self.widget.children[0]

    def _make_widget(self):
        import ipywidgets

        view = ipywidgets.HTML()
        controls = {name: _live_control(control) for name, control in self.sliders.items()}

        def update(change=None):
            values = {name: control.value for name, control in controls.items()}
            try:
                view.value, self.error = self._live_html(values), None
            except Exception as error:
                self.error = error
                view.value = _live_error(error, said)
                if not said or not isinstance(error, ValueError):
                    raise

        said = any(control.kind == "typed" for control in self.sliders.values())  # what a reader typed may be wrong
        for control in controls.values():
            control.observe(update, names="value")
        update()
        caption = ipywidgets.HTML(f'<div style="{_CAPTION};line-height:1.5">{self.caption}</div>')
        return ipywidgets.VBox([view, *controls.values(), caption])

    def _live_html(self, values: dict) -> str:
        drawing, alt = self._draw(values), self._describe(values)
        return f'<div class="companion-explore-live" role="img" aria-label="{html.escape(alt)}">{drawing}</div>'

    def bundle(self) -> dict:
        """The one output: text/html and text/plain, and the widget where ipywidgets and a kernel are there."""
        start = {name: control.value for name, control in self.sliders.items()}
        values = ", ".join(f"{control.label}: {control.text(control.value)}" for control in self.sliders.values())
        result = {"text/html": self.html, "text/plain": f"{self._describe(start)} [{values}]"}
        if _has_kernel() and importlib.util.find_spec("ipywidgets"):
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
            result["application/vnd.jupyter.widget-view+json"] = view
        return result


def _has_kernel() -> bool:
    """Whether a Jupyter kernel runs this code, so that widgets have somebody to talk to."""
    return figures.in_ipython() and hasattr(sys.modules["IPython"].get_ipython(), "kernel")


def _as_control(name: str, spec) -> Control:
    """The control a keyword of ``explore`` asks for; raises, naming the slider."""
    if all(hasattr(spec, trait) for trait in ("description", "value", "observe")):
        spec = _from_widget(spec)
    if not isinstance(spec, Control):
        try:
            spec = _choice(spec, None, None, "{}", "values", "explore")
        except (TypeError, ValueError) as error:
            raise type(error)(f"explore: slider {name!r}: {error}") from None
    return spec if spec.label else replace(spec, label=name)


def _from_widget(widget) -> Control:
    """The control that an ipywidgets slider, or a drop-down of plain values, describes."""
    label = widget.description or None
    if hasattr(widget, "options"):
        return choice(widget.options, value=widget.value, label=label)
    step = widget.step if isinstance(widget.value, int) else None
    return slider(widget.min, widget.max, value=widget.value, step=step, label=label)


def _check_names(figure_fn, sliders: dict[str, Control]):
    """Raise TypeError unless the sliders are arguments of figure_fn and leave none of its arguments without a value."""
    if not callable(figure_fn):
        raise TypeError(f"explore: figure_fn must be callable; got {type(figure_fn).__name__}")
    if not sliders:
        raise TypeError("explore: give at least one slider, as a keyword")
    try:
        inspect.signature(figure_fn).bind(**sliders)
    except TypeError as error:
        raise TypeError(f"explore: sliders {list(sliders)} do not fit figure_fn: {error}") from None
    labels = Counter(control.label for control in sliders.values())
    for label, count in labels.items():
        if count > 1:
            raise ValueError(f"explore: two sliders have the label {label!r}")


def check_alive(drawings: dict[tuple, str], names: Sequence[str]):
    """Raise ValueError where moving one slider changes none of the drawings, which are keyed by the sliders' values."""
    for place, name in enumerate(names):
        others: dict[tuple, set] = {}
        for key, drawing in drawings.items():
            others.setdefault(key[:place] + key[place + 1 :], set()).add(drawing)
        if all(len(drawn) == 1 for drawn in others.values()):
            raise ValueError(f"explore: slider {name!r} changes nothing: all its frames are equal")


def dedupe(drawings: Sequence[str]) -> tuple[list[str], list[list]]:
    """A list of lines, and each drawing in parts: its own text, or [start, end) of those lines."""
    split = [drawing.splitlines(keepends=True) for drawing in drawings]
    count = Counter(line for lines in split for line in set(lines))
    shared = dict.fromkeys(line for lines in split[1:] for line in lines if count[line] > 1)
    lines = [*split[0], *(line for line in shared if line not in set(split[0]))]
    places: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        places.setdefault(line, []).append(number)
    return lines, [_parts(own, lines, places) for own in split]


def _parts(own: list[str], lines: list[str], places: dict[str, list[int]]) -> list:
    """One drawing in parts: a known line continues the run before it where it can, else starts one further on."""
    parts: list = []
    end = 0
    for line in own:
        last = parts[-1] if parts else None
        if line not in places:
            parts[-1:] = [last + line] if isinstance(last, str) else [*parts[-1:], line]
        elif isinstance(last, list) and end < len(lines) and lines[end] == line:
            last[1] = end = end + 1
        else:
            start = next((place for place in places[line] if place >= end), places[line][0])
            parts.append([start, end := start + 1])
    return parts


def _shorten(drawings: list[str]) -> tuple[str, list[str]]:
    """The drawings with what stands between two dots as one character, and that character ("" where there is none)."""
    token = next((mark for mark in "~^`|" if not any(mark in drawing for drawing in drawings)), "")
    return token, [drawing.replace(figures.BETWEEN_DOTS, token) for drawing in drawings] if token else drawings


def _json(data) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!--", "<\\u0021--")


def _row(name: str, control: Control) -> str:
    """Label, control and current value of one slider."""
    name = f"{_IDS}-{name}"
    label, texts = html.escape(control.label), [control.text(value) for value in control.grid]
    common = f'id="{name}" data-lm-suppress-shortcuts="true" autocomplete="off" disabled'
    head = f'<div><label for="{name}">{label}</label>'
    if control.kind in ("choice", "typed"):
        options = "".join(
            f'<option value="{i}"{" selected" if i == control.start else ""}>{html.escape(text)}</option>'
            for i, text in enumerate(texts)
        )
        return f"{head}<select {common}>{options}</select></div>"
    text = html.escape(texts[control.start])
    return (
        f'{head}<input type="range" {common} min="0" max="{len(texts) - 1}" step="1" value="{control.start}" '
        f'style="--at:{control.start / (len(texts) - 1):.3g}" '
        f'aria-valuetext="{label}: {text}"><output for="{name}" aria-live="polite" '
        f'style="min-width:{max(map(len, texts))}ch">{text}</output></div>'
    )


def _live_control(control: Control):
    """The ipywidgets control: only what versions 7 and 8 share."""
    import ipywidgets

    width = "max-content" if control.kind == "choice" else "100%"
    layout = ipywidgets.Layout(width=width, max_width="672px")
    common = {"description": control.label, "layout": layout, "style": {"description_width": "initial"}}
    if control.kind in ("int", "float"):
        make = ipywidgets.IntSlider if control.kind == "int" else ipywidgets.FloatSlider
        spec = control.format.partition("{:")[2].partition("}")[0] or ("d" if control.kind == "int" else ".2f")
        ends = {"min": control.grid[0], "max": control.grid[-1], "step": control.step}
        return make(control.value, readout_format=spec, **ends, **common)
    if control.kind == "typed":
        free = {"options": list(control.grid), "ensure_option": False, "continuous_update": False}
        return ipywidgets.Combobox(value=control.value, **free, **common)
    options = [(control.text(value), value) for value in control.grid]
    make = ipywidgets.Dropdown if control.kind == "choice" else ipywidgets.SelectionSlider
    return make(options=options, value=control.value, **common)


def _live_error(error: Exception, said: bool = False) -> str:
    """The traceback, in the figure's place; of a ValueError about what was said, the message alone."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    trace = str(error) if said and isinstance(error, ValueError) else trace
    return f'<pre class="companion-error" role="alert" style="white-space:pre-wrap">{html.escape(trace)}</pre>'


_CAPTION = "font-size:.92em;max-width:46em;margin-top:.5em"

_CSS = f"""
.companion-explore{{margin:1em 0}}
.companion-explore .companion-controls{{display:grid;grid-template-columns:fit-content(16em) minmax(8em,1fr) \
max-content;gap:.2em 1em;align-items:center;max-width:672px;margin:.3em 0;font-size:.92em}}
.companion-explore .companion-controls>div{{display:contents}}
.companion-explore label,.companion-explore output{{margin:0;font:inherit}}
.companion-explore output{{font-variant-numeric:tabular-nums;text-align:right}}
.companion-explore input{{appearance:none;-webkit-appearance:none;box-sizing:border-box;width:100%;height:30px;\
margin:0;padding:0;border:0;cursor:pointer;touch-action:pan-y;forced-color-adjust:none;background:\
linear-gradient({figures.DATA} 0 0) 0 50%/calc(10px + (100% - 20px)*var(--at)) 4px no-repeat,\
linear-gradient({figures.NOISE} 0 0) 0 50%/100% 4px no-repeat}}
.companion-explore input::-webkit-slider-thumb{{appearance:none;-webkit-appearance:none;width:20px;height:20px;\
border:0;border-radius:50%;background:{figures.DATA}}}
.companion-explore input::-moz-range-track{{background:none}}
.companion-explore input::-moz-range-thumb{{width:20px;height:20px;border:0;border-radius:50%;\
background:{figures.DATA}}}
.companion-explore input:focus-visible{{outline:none}}
.companion-explore input:focus-visible::-webkit-slider-thumb{{outline:2px solid;outline-offset:2px}}
.companion-explore input:focus-visible::-moz-range-thumb{{outline:2px solid;outline-offset:2px}}
.companion-explore select{{grid-column:2/-1;justify-self:start;min-height:28px;font:inherit;color:inherit;\
background:transparent;border:1px solid {figures.NOISE};border-radius:4px;padding:0 .4em}}
.companion-explore option{{color:#14181e;background:#fff}}
.companion-explore :disabled{{opacity:.5;cursor:default}}
.companion-explore figcaption{{{_CAPTION}}}
@media (max-width:480px){{.companion-explore .companion-controls{{grid-template-columns:1fr max-content}}\
.companion-explore label,.companion-explore select{{grid-column:1/-1}}}}
"""

_JS = f"""
(() => {{
  const root = document.querySelector('figure[data-explore="{_IDS}"]:not([data-ready])');
  if (!root) return;
  root.dataset.ready = "";
  const data = JSON.parse(root.querySelector("script").textContent);
  const view = root.querySelector(".companion-view");
  const controls = [...root.querySelectorAll("input, select")];
  let shown = -1;
  const show = () => {{
    let at = 0;
    controls.forEach((control, k) => {{
      const text = data.texts[k][+control.value];
      at = at * data.texts[k].length + +control.value;
      if (control.type !== "range") return;
      control.style.setProperty("--at", control.value / control.max);
      control.setAttribute("aria-valuetext", data.labels[k] + ": " + text);
      if (control.nextElementSibling.textContent !== text) control.nextElementSibling.textContent = text;
    }});
    if (at === shown) return;
    shown = at;
    const part = own => typeof own === "string" ? own : data.lines.slice(...own).join("");
    const drawing = data.frames[at].map(part).join("");
    view.innerHTML = data.dot ? drawing.replaceAll(data.dot, {json.dumps(figures.BETWEEN_DOTS)}) : drawing;
    view.setAttribute("aria-label", data.alt[at % data.alt.length]);
  }};
  controls.forEach(control => {{
    control.disabled = false;
    control.addEventListener("input", show);
  }});
  show();
}})();
"""
