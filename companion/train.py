"""``python -m companion.train RECIPE`` trains a model as its recipe in ``companion/recipes`` says.

Options after the name go to the recipe; ``python -m companion.train digits --help`` shows them. Under
``torchrun --nproc-per-node=N -m companion.train RECIPE`` N processes train together, each on its own GPU; with
``--shard``, where a recipe has it, none holds all weights.
"""

import importlib
import pkgutil
import sys

from companion import recipes
from companion.processes import distributed


def main(arguments: list[str]) -> int:
    """Run the recipe named first; returns the exit status."""
    known = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
    if not arguments or arguments[0] not in known:
        print(f"usage: python -m companion.train RECIPE [options]\nrecipes: {', '.join(known)}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    with distributed():
        importlib.import_module(f"companion.recipes.{arguments[0]}").main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
