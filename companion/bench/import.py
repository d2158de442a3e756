"""How long ``import companion`` takes, and what it brings along: fresh interpreters, one after the other."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time

from companion import _checks as check
from companion import bench, zoo
from companion.bench._stored import provenance, write
from companion.bench.timing import quartiles

WAYS = {
    "torch": "import torch",
    "companion": "import companion",
    "companion, to sample": "from companion import samplers, schedules, zoo",
    "diffusers": "import diffusers",
    "diffusers, to sample": "from diffusers import DDIMScheduler, UNet2DModel",
}
SCRIPT = """
import sys, time
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
import json
parts = {{name.split(".")[0] for name in sys.modules if name[0] != "_"}} - set(sys.stdlib_module_names)
print(json.dumps([took, len(sys.modules), sorted(parts)]))
"""
QUANTITIES = {
    "seconds": "the statement takes in a fresh interpreter: median over the repetitions, in turns",
    "quartiles": "first and third quartile over the repetitions",
    "modules": "loaded afterwards, the standard library's among them",
    "packages": "loaded afterwards that are not of the standard library and that torch alone does not load",
}


def main(arguments):
    """Time the imports, print the table, and write ``import.json``."""
    options = argparse.ArgumentParser(prog="companion.bench import", description=__doc__)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    check.positive_int("repetitions", given.repetitions)

    began = time.perf_counter()
    ways = {k: v for k, v in WAYS.items() if "diffusers" not in k or importlib.util.find_spec("diffusers")}
    for statement in ways.values():
        once(statement)  # files come from the disk once
    runs = {name: [] for name in ways}
    for _ in range(given.repetitions):
        for name, statement in ways.items():
            runs[name].append(once(statement))
    of_torch = set(runs["torch"][0][2])
    rows = []
    for name, found in runs.items():
        low, middle, high = quartiles([seconds for seconds, *_ in found])
        rows.append(
            {
                "import": name,
                "statement": ways[name],
                "seconds": round(middle, 4),
                "quartiles": [round(low, 4), round(high, 4)],
                "modules": found[0][1],
                "packages": sorted(set(found[0][2]) - of_torch),
            }
        )
    result = {
        "name": "import",
        "question": "What does an import cost before anything runs?",
        "command": f"python -m companion.bench import --repetitions {given.repetitions}",
        "protocol": {
            "timing": f"{given.repetitions} fresh interpreters for each statement, in turns, after one that warms up"
        },
        "quantities": QUANTITIES,
        "rows": rows,
        **provenance(time.perf_counter() - began),
    }
    write(result, given.out)
    print(table(result))


def once(statement: str) -> list:
    """Seconds, modules and packages of a statement in an interpreter of its own."""
    script = SCRIPT.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(result: dict) -> str:
    """A row per statement."""
    lines = [f"{'':22} {'seconds':>8} {'quartiles':>13} {'modules':>8}  packages besides torch's"]
    for row in result["rows"]:
        low, high = row["quartiles"]
        names = ", ".join(row["packages"][:6]) + (", …" if len(row["packages"]) > 6 else "")
        lines.append(f"{row['import']:22} {row['seconds']:8.2f} {low:6.2f}–{high:<6.2f} {row['modules']:8d}  {names}")
    return "\n".join(lines)
