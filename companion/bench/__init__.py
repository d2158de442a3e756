"""The book's own measurements: ``python -m companion.bench NAME`` runs one, ``load`` reads what a run has found.

A result names its protocol, the machine, the versions and the date, and keeps the figures of every seed.
"""

import json
from pathlib import Path

from companion import _checks as check

FOLDER = Path(__file__).parent / "results"


def names() -> list[str]:
    """The measurements whose results ship."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict:
    """A stored result: question, protocol, quantities, reference, runs, hardware. Raises ValueError if unknown."""
    check.one_of("name", name, names())
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
