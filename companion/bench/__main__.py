"""``python -m companion.bench NAME`` measures again, prints a table, and writes ``companion/bench/results/NAME.json``.

Options after the name go to the measurement; ``python -m companion.bench weighting --help`` shows them.
"""

import importlib
import pkgutil
import sys

from companion import bench

TOOLS = {"timing"}  # public, but no measurement


def main(arguments: list[str]) -> int:
    """Run the measurement named first; returns the exit status."""
    found = {module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_")}
    known = sorted(found - TOOLS)
    if not arguments or arguments[0] not in known:
        print(f"usage: python -m companion.bench NAME [options]\nmeasurements: {', '.join(known)}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    importlib.import_module(f"companion.bench.{arguments[0]}").main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
