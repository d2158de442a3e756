"""A mixture in the plane whose blobs can be dragged, under its score; the page itself computes, and needs no kernel.

>>> score_field(toy.GaussianMixture.four(), caption="…", alt="…")                                # doctest: +SKIP

The figure is one piece of HTML. Python draws its first state; a few lines of JavaScript, the same closed form of the
score, draw it anew when a blob is dragged or a slider moved.
"""

import html
import json
import math
from hashlib import sha256

import torch

from companion import explore, figures
from companion.toy import GaussianMixture

_ID, _EDGE, _SIZE = "\ue000", 2.7, 13  # stands for the figure's id; half the width of the view; arrows a side


def score_field(mixture: GaussianMixture, *, sigma: float | int = 0.3, caption: str = "", alt: str = "") -> None:
    """Display the score of a mixture in the plane, with noise ``sigma`` between 0.05 and 2, and handles to drag it by.

    ``caption`` is HTML, ``alt`` says in words what the figure shows. Raises ValueError for a mixture that is not in the
    plane, a sigma outside, or no ``alt``.
    """
    page = build(mixture, sigma=sigma, caption=caption, alt=alt)
    if figures.in_ipython():
        from IPython.display import display

        display({"text/html": page, "text/plain": alt}, raw=True)


def build(mixture: GaussianMixture, *, sigma: float | int = 0.3, caption: str = "", alt: str = "") -> str:
    """The HTML that ``score_field`` would display; takes and raises the same."""
    if mixture.dimension != 2:
        raise ValueError(f"mixture must be in the plane; got dimension {mixture.dimension}")
    if not 0.05 <= sigma <= 2:
        raise ValueError(f"sigma must lie between 0.05 and 2; got {sigma}")
    figures.text(alt, "alt", "score_field")
    state = {
        "weights": mixture.weights.tolist(),
        "means": mixture.means.tolist(),
        "covariances": mixture.covariances.tolist(),
        "sigma": float(sigma),
        "edge": _EDGE,
        "size": _SIZE,
    }
    handles = "".join(f'<g tabindex="0" role="button" data-blob="{k}"></g>' for k in range(len(mixture.weights)))
    blobs = "".join(f'<g class="blob" fill="{figures.DATA}"></g>' for _ in mixture.weights)
    page = (
        f'<figure class="companion-drag" data-drag="{_ID}"><style>{_CSS}</style>\n'
        f'<svg viewBox="{-_EDGE} {-_EDGE} {2 * _EDGE} {2 * _EDGE}" role="group" aria-label="{html.escape(alt)}">'
        f'{blobs}<path class="arrows" fill="none" stroke="{figures.MODEL}" stroke-width=".02" d="{_arrows(state)}"/>'
        f'{handles}</svg>\n<div class="companion-controls">{_row("noise", "noise σ")}{_row("weight", "weight")}</div>\n'
        f'<p class="state" aria-live="polite"></p>\n'
        + (f"<figcaption>{caption}</figcaption>\n" if caption else "")
        + f'<script type="application/json">{json.dumps(state)}</script>\n<script>{_JS}</script></figure>'
    )
    return page.replace(_ID, "d" + sha256(page.encode()).hexdigest()[:7])


def _arrows(state: dict) -> str:
    """The path of all arrows for a state: from the mixture's score, shortened so that none leaves its cell."""
    mixture = GaussianMixture(state["weights"], state["means"], state["covariances"])
    step = 2 * state["edge"] / state["size"]
    side = -state["edge"] + step * (torch.arange(state["size"], dtype=torch.float64) + 0.5)
    feet = torch.cartesian_prod(side, side)
    score = mixture.score(feet, 1.0, state["sigma"])
    tips = feet + 0.8 * step * score / (score.norm(dim=1, keepdim=True) + 2)
    drawn = []
    for (x, y), (u, v) in zip(feet.tolist(), tips.tolist(), strict=True):
        left, right = (
            ((x - u) * c - (y - v) * s * sign, (x - u) * s * sign + (y - v) * c)
            for sign in (1, -1)
            for c, s in [(0.35 * math.cos(0.5), 0.35 * math.sin(0.5))]
        )
        points = [(x, y), (u, v), (u + left[0], v + left[1]), (u, v), (u + right[0], v + right[1])]
        drawn.append("M" + "L".join(f"{a:.3f} {-b:.3f}" for a, b in points))
    return "".join(drawn)


def _row(name: str, label: str) -> str:
    return (
        f'<div><label for="{_ID}-{name}">{label}</label><input type="range" id="{_ID}-{name}" min="0" max="100" '
        f'step="1" data-lm-suppress-shortcuts="true" autocomplete="off" disabled>'
        f'<output for="{_ID}-{name}"></output></div>'
    )


_CSS = (
    explore._CSS.replace("companion-explore", "companion-drag")
    + """
.companion-drag svg{display:block;width:100%;max-width:30em;height:auto;border:1px solid currentColor}
.companion-drag [data-blob]{cursor:grab;touch-action:none}
.companion-drag [data-blob]:focus{outline:none}
.companion-drag [data-blob]:focus-visible .ring{stroke-width:.05}
.companion-drag .state{font-size:.92em;margin:.3em 0;font-variant-numeric:tabular-nums}
"""
)

_JS = f"""
(() => {{
  const root = document.querySelector('figure[data-drag="{_ID}"]:not([data-ready])');
  if (!root) return;
  root.dataset.ready = "";
  const state = JSON.parse(root.querySelector("script").textContent);
  const svg = root.querySelector("svg"), svgNS = "http://www.w3.org/2000/svg";
  const [noise, weight] = root.querySelectorAll("input");
  const K = state.weights.length, step = 2 * state.edge / state.size;
  let chosen = 0;

  const score = (x, y) => {{
    let log = [], pulls = [];
    for (let k = 0; k < K; k++) {{
      const [[a0, b], [, c0]] = state.covariances[k], [m, n] = state.means[k];
      const a = a0 + state.sigma ** 2, c = c0 + state.sigma ** 2, det = a * c - b * b, u = x - m, v = y - n;
      const pull = [-(c * u - b * v) / det, -(a * v - b * u) / det];
      pulls.push(pull);
      log.push(Math.log(state.weights[k]) - 0.5 * Math.log(det) + 0.5 * (u * pull[0] + v * pull[1]));
    }}
    const most = Math.max(...log), odds = log.map(l => Math.exp(l - most)), total = odds.reduce((s, o) => s + o);
    return [0, 1].map(i => pulls.reduce((s, pull, k) => s + odds[k] / total * pull[i], 0));
  }};

  const arrow = (x, y) => {{
    const [p, q] = score(x, y), long = Math.hypot(p, q) + 2;
    const u = x + 0.8 * step * p / long, v = y + 0.8 * step * q / long;
    const head = sign => {{
      const c = 0.35 * Math.cos(0.5), s = 0.35 * Math.sin(0.5) * sign;
      return [u + (x - u) * c - (y - v) * s, v + (x - u) * s + (y - v) * c];
    }};
    const points = [[x, y], [u, v], head(1), [u, v], head(-1)];
    return "M" + points.map(([a, b]) => a.toFixed(3) + " " + (-b).toFixed(3)).join("L");
  }};

  const ellipse = (k, reach) => {{
    const [[a0, b], [, c0]] = state.covariances[k], a = a0 + state.sigma ** 2, c = c0 + state.sigma ** 2;
    const middle = (a + c) / 2, apart = Math.hypot((a - c) / 2, b), turn = Math.atan2(b, (a - c) / 2) / 2;
    const drawn = document.createElementNS(svgNS, "ellipse"), [m, n] = state.means[k];
    const put = values => Object.entries(values).forEach(([name, value]) => drawn.setAttribute(name, value));
    put({{rx: reach * Math.sqrt(middle + apart), ry: reach * Math.sqrt(middle - apart)}});
    put({{opacity: 0.4 * Math.sqrt(state.weights[k])}});
    put({{transform: `translate(${{m}} ${{-n}}) rotate(${{-turn * 180 / Math.PI}})`}});
    return drawn;
  }};

  const show = () => {{
    let paths = "";
    for (let i = 0; i < state.size; i++)
      for (let j = 0; j < state.size; j++)
        paths += arrow(-state.edge + step * (i + 0.5), -state.edge + step * (j + 0.5));
    root.querySelector(".arrows").setAttribute("d", paths);
    root.querySelectorAll(".blob").forEach((blob, k) => blob.replaceChildren(ellipse(k, 1), ellipse(k, 2)));
    root.querySelectorAll("[data-blob]").forEach((handle, k) => {{
      const [m, n] = state.means[k], at = `(${{m.toFixed(2)}}, ${{n.toFixed(2)}})`;
      handle.setAttribute("transform", `translate(${{m}} ${{-n}})`);
      handle.setAttribute("aria-label", `centre of blob ${{k + 1}}, at ${{at}}: drag it, or use the arrow keys`);
      handle.setAttribute("aria-pressed", k === chosen);
      handle.querySelector(".ring").setAttribute("stroke-opacity", k === chosen ? 1 : 0.45);
    }});
    noise.value = 100 * Math.log(state.sigma / 0.05) / Math.log(40);
    weight.value = 100 * (state.weights[chosen] - 0.02) / 0.94;
    const texts = [state.sigma.toFixed(2), state.weights[chosen].toFixed(2)];
    [noise, weight].forEach((control, k) => {{
      control.style.setProperty("--at", control.value / 100);
      control.setAttribute("aria-valuetext", texts[k]);
      control.nextElementSibling.textContent = texts[k];
    }});
    weight.previousElementSibling.textContent = `weight of blob ${{chosen + 1}}`;
    const [m, n] = state.means[chosen];
    root.querySelector(".state").textContent =
      `Blob ${{chosen + 1}} at (${{m.toFixed(2)}}, ${{n.toFixed(2)}}) with weight ${{texts[1]}}; noise ${{texts[0]}}.`;
    root.dataset.state = JSON.stringify(state);
  }};

  const inside = v => Math.max(-state.edge, Math.min(state.edge, v));
  const move = (k, x, y) => {{ chosen = k; state.means[k] = [inside(x), inside(y)]; show(); }};
  root.querySelectorAll("[data-blob]").forEach((handle, k) => {{
    const ring = {{r: 0.09, class: "ring", fill: "none", stroke: "currentColor", "stroke-width": 0.03}};
    for (const shape of [{{r: 0.28, fill: "transparent"}}, ring]) {{  // the first is what a finger can hit
      const circle = document.createElementNS(svgNS, "circle");
      Object.entries(shape).forEach(([name, value]) => circle.setAttribute(name, value));
      handle.append(circle);
    }}
    handle.addEventListener("pointerdown", event => {{
      handle.setPointerCapture(event.pointerId);
      chosen = k;
      show();
    }});
    handle.addEventListener("pointermove", event => {{
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      move(k, at.x, -at.y);
    }});
    handle.addEventListener("focus", () => {{ chosen = k; show(); }});
    handle.addEventListener("keydown", event => {{
      const way = {{ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}}[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      move(k, state.means[k][0] + 0.1 * way[0], state.means[k][1] + 0.1 * way[1]);
    }});
  }});
  noise.addEventListener("input", () => {{ state.sigma = 0.05 * 40 ** (noise.value / 100); show(); }});
  weight.addEventListener("input", () => {{
    const wanted = 0.02 + 0.94 * weight.value / 100, rest = 1 - state.weights[chosen];
    state.weights = state.weights.map((w, k) => k === chosen ? wanted : w / rest * (1 - wanted));
    show();
  }});
  [noise, weight].forEach(control => control.disabled = false);
  show();
}})();
"""
