"""How many captioned scenes a second the package draws, at both sizes, on this machine's device.

Nothing but the drawing is timed: descriptions, places, pixels and grain, in batches. The one run serves every machine:

    python -m companion.bench scenes
"""

import argparse
import time

import torch

from companion import bench, data, gpu, zoo
from companion.bench._stored import provenance, write

WANTED = {"cuda": 50000, "cpu": 2000}  # pictures of 64 by 64 a second
QUANTITIES = {
    "size": "width and height in pixels",
    "scenes_per_second": "median over the repetitions",
    "fastest": "of the repetitions",
    "slowest": "of the repetitions",
}


def main(arguments):
    """Time it, print the table, and write ``scenes.json``."""
    options = argparse.ArgumentParser(prog="companion.bench scenes", description=__doc__)
    options.add_argument("--count", type=int, default=None, help="scenes a repetition (CPU 1,000, GPU 20,000)")
    options.add_argument("--repetitions", type=int, default=7)
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    device, began = gpu.device(), time.perf_counter()
    count = given.count or (20000 if device.type == "cuda" else 1000)
    rows = [timed(size, count, given.repetitions, device) for size in (32, 64)]
    result = {
        "name": "scenes",
        "question": "How fast are scenes drawn?",
        "command": f"python -m companion.bench scenes --repetitions {given.repetitions}"
        + (f" --count {given.count}" if given.count else ""),
        "protocol": {
            "count": f"{count:,} scenes a repetition, {given.repetitions} repetitions after one that warms up",
            "wanted": f"{WANTED[device.type]:,} pictures of 64×64 a second on such a device",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        **provenance(time.perf_counter() - began, device),
    }
    write(result, given.out)
    print(table(result))


def timed(size, count, repetitions, device):
    """Scenes per second at one size."""
    found = []
    for seed in range(repetitions + 1):
        began = time.perf_counter()
        data.scenes(count, size=size, seed=seed, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(count / (time.perf_counter() - began))
    found = sorted(found[1:])
    middle = found[len(found) // 2]
    return {"size": size, "scenes_per_second": round(middle), "fastest": round(found[-1]), "slowest": round(found[0])}


def table(result: dict) -> str:
    """A row per size."""
    return "\n".join(
        f"{row['size']}×{row['size']}: {row['scenes_per_second']:,} scenes a second "
        f"({row['slowest']:,} to {row['fastest']:,}), {result['hardware']}"
        for row in result["rows"]
    )
