"""An equation and its check: two independent routes to the same numbers, and wrong versions that must not pass.

A chapter calls ``verify`` below each equation. It raises when the equation fails, and also when a wrong version of it
would have passed, so that the check is itself checked.
"""

import html
import json
import math
import platform
import sys
from datetime import datetime, timezone
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import companion

MARGIN = 5.0  # tolerances by which every wrong version must miss


def verify(label: str, lhs, rhs, *, atol=None, rtol=None, se=None, of=None, wrong=None, how: str | None = None) -> None:
    """Check that an equation's two sides agree, show a badge, and raise AssertionError if they do not.

    ``lhs`` and ``rhs`` are numbers, arrays or tensors of the same shape, got by independent routes. Give either
    ``atol`` (1e-9 when nothing is given) and ``rtol``, so that the tolerance is atol + rtol |rhs|, or ``se``, the
    standard error of lhs − rhs (a number or one per element): then the tolerance is four of them, and more for many
    elements at once (Bonferroni at 1e-4). ``wrong`` maps the names of
    plausible wrong versions of the equation to their values in place of rhs; each must miss by five tolerances in some
    element. ``of`` is the function of ``companion`` that implements the equation, ``how`` a few words on the check.
    Raises AssertionError when a side is not finite, when the sides differ, or when a wrong version passes; ValueError
    or TypeError for arguments that do not fit.
    """
    if not isinstance(label, str) or not label.startswith("eq-"):
        raise ValueError(f"label must be an equation's id, 'eq-…'; got {label!r}")
    lhs, rhs = _numbers("lhs", lhs), _numbers("rhs", rhs)
    tolerance = _tolerance(atol, rtol, se, lhs, rhs)
    ratio = _ratio(label, lhs, rhs, tolerance)
    worst = int(np.argmax(ratio))
    found = float(np.abs(lhs - rhs).flat[worst]), float(np.broadcast_to(tolerance, lhs.shape).flat[worst])
    if not ratio.max() <= 1:
        raise AssertionError(f"{label} fails: the sides differ by {found[0]:.3g}, the tolerance is {found[1]:.3g}")
    misses = {}
    for name, value in (wrong or {}).items():
        missed = float(_ratio(label, lhs, _numbers(f"wrong[{name!r}]", value), tolerance).max())
        misses[name] = min(missed, 1e99)  # infinite is no number in JSON
        if not misses[name] >= MARGIN:
            raise AssertionError(
                f"{label}: the check cannot tell the wrong version {name!r} from the right one: "
                f"it misses by {misses[name]:.2g} tolerances, not by {MARGIN:g}"
            )
    record = {
        "id": label,
        "number": _equations().get(label, {}).get("number"),
        "difference": found[0],
        "tolerance": found[1],
        "statistical": se is not None,
        "wrong": misses,
        "function": None if of is None else _name(of),
        "how": how,
        "versions": _versions(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    _show(record)


def extrapolated(rows):
    """The limit of rows computed with steps of h, h/2, h/4, …, whose error is a power series in h (Richardson 1911).

    ``rows`` are numbers, arrays or tensors of one shape; so is the result. Raises ValueError where there is none.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows must hold at least one value; got none")
    for order in range(1, len(rows)):
        rows = [(2**order * b - a) / (2**order - 1) for a, b in pairwise(rows)]
    return rows[0]


def _numbers(name, value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers; got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty")
    return array.astype(np.float64)


def _tolerance(atol, rtol, se, lhs, rhs):
    if se is not None and (atol, rtol) != (None, None):
        raise ValueError("give either a standard error, se, or atol and rtol")
    given = {
        name: _numbers(name, value) for name, value in (("atol", atol), ("rtol", rtol), ("se", se)) if value is not None
    }
    for name, value in given.items():
        if not (np.isfinite(value).all() and (value > 0).all() and value.shape in ((), lhs.shape)):
            raise ValueError(f"{name} must be finite, above 0, and one number or one per element; got {value}")
    if se is not None:
        return given["se"] * max(4.0, -torch.special.ndtri(torch.tensor(0.5e-4 / lhs.size, dtype=torch.float64)).item())
    if rtol is None:
        return given.get("atol", 1e-9)
    return given.get("atol", 0.0) + given["rtol"] * np.where(np.isfinite(rhs), np.abs(rhs), 0.0)


def _ratio(label, lhs, rhs, tolerance):
    """|lhs − rhs| in tolerances, per element; nothing broadcasts but the tolerance."""
    if lhs.shape != rhs.shape:
        raise ValueError(f"{label}: the sides must have the same shape; got {lhs.shape} and {rhs.shape}")
    if not np.isfinite(lhs).all():
        raise AssertionError(f"{label} fails: the left side is not finite")
    difference = np.abs(lhs - rhs)
    return np.where(np.isfinite(difference), difference, math.inf) / tolerance


def _name(function):
    """Where a reader finds it: a class may be public in another module than the one it is written in."""
    name = function.__qualname__
    owner = getattr(sys.modules.get(function.__module__), name.split(".")[0], function)
    return f"{owner.__module__}.{name}"


def _versions():
    return {
        "companion": companion.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
    }


@cache
def _equations():
    """id -> number and notebook, as read off the chapters (``python book/tools/equations.py``)."""
    path = Path(__file__).parent / "equations.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _show(record):
    """Display the badge where there is a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if get_ipython() is None:
        return
    from IPython.display import display

    number = f"({record['number']})" if record["number"] else record["id"]
    text = f"holds: largest difference {record['difference']:.1e}, tolerance {record['tolerance']:.1e}"
    if count := len(record["wrong"]):
        plural = "s" if count > 1 else ""
        nearest = _round(min(record["wrong"].values()))
        text += f"; {count} wrong version{plural} rejected, the nearest {nearest} tolerances off"
    function = ""
    if record["function"]:
        name = html.escape(record["function"])
        function = f' <code class="companion-api" data-api="{name}">{name}</code>'
    badge = (
        f'<div class="companion-verify" data-check="{record["id"]}" style="font-size:0.9em;margin:0.2em 0">'
        f'<span class="companion-ok" style="color:#2f9e6e;font-weight:bold">✓</span> '
        f'<a href="#{record["id"]}">{number}</a> {text}{function}</div>'
    )
    bundle = {"text/plain": f"✓ {number} {text}", "text/html": badge, "application/vnd.companion.check+json": record}
    display(bundle, raw=True)


def _round(ratio):
    return f"{ratio:.0f}" if ratio < 1e4 else f"{ratio:.0e}"
