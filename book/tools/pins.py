"""Write constraints.txt from what is installed: `python book/tools/pins.py > constraints.txt`.

A pin whose package asks for a newer Python than the book's oldest gets a marker, so that the older one still installs.
"""

import importlib.metadata
import re
import sys

OLDEST = (3, 10)
OWN = {"reversing-the-noise", "pip", "wheel"}
TIED = {"pydata-sphinx-theme": (3, 11)}  # the book theme's release for an older Python asks for another one


def pins():
    """Yield one line `name==version[; marker]` per installed distribution, sorted by name."""
    found = {}
    for dist in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
        if name in OWN or name in found:
            continue
        version = dist.version.split("+")[0]
        floor = re.search(r">=\s*(\d+)\.(\d+)", dist.metadata.get("Requires-Python") or "")
        needs = TIED.get(name) or (floor and (int(floor[1]), int(floor[2]))) or OLDEST
        marker = f'; python_version >= "{needs[0]}.{needs[1]}"' if needs > OLDEST else ""
        found[name] = f"{name}=={version}{marker}"
    for name in sorted(found):
        yield found[name]


if __name__ == "__main__":
    print("# The versions the book is built and tested with, on Python {}.{}.".format(*sys.version_info[:2]))
    print("# Written by book/tools/pins.py from an environment that passes `make test`; pip takes them with -c.")
    print("\n".join(pins()))
