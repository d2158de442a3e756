"""Python's share of a step: this book's generators beside diffusers' ``scheduler.step``, with a denoiser free of cost.

Both sides take the same number of steps over the same small tensor and get the same constant from the network, so that
what is timed is the bookkeeping: coefficients, history, and a few additions. Needs diffusers.
"""

import argparse
import importlib.util
import statistics
import time
import warnings

import torch

from companion import _checks as check
from companion import bench, zoo
from companion.bench._stored import provenance, write
from companion.samplers import ddim, dpmpp_2m, nodes, start
from companion.schedules import DiscreteVP, trailing

SHAPE = (4, 3, 8, 8)
SAMPLERS = {"DDIM": (ddim, "DDIMScheduler", {}), "DPM-Solver++(2M)": (dpmpp_2m, "DPMSolverMultistepScheduler", {})}
SAMPLERS["DDIM"][2].update(clip_sample=False, set_alpha_to_one=True)  # clipping would be one more operation of theirs

QUANTITIES = {
    "ours_us": "time a step of the package takes outside the network, microseconds: median over the repetitions",
    "diffusers_us": "the same of diffusers' scheduler.step",
    "ratio": "ours_us over diffusers_us",
    "ours_quartiles_us": "first and third quartile over the repetitions",
    "diffusers_quartiles_us": "the same of diffusers",
}


def main(arguments):
    """Time both, in turns, print the table, and write ``overhead.json``."""
    options = argparse.ArgumentParser(prog="companion.bench overhead", description=__doc__)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--repetitions", type=int, default=200)
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    check.positive_int("steps", given.steps)
    check.positive_int("repetitions", given.repetitions)
    if importlib.util.find_spec("diffusers") is None:
        raise SystemExit("overhead compares with diffusers, which is not installed: pip install diffusers")

    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [{"sampler": name, **timed(name, given.steps, given.repetitions)} for name in SAMPLERS]
    finally:
        torch.set_num_threads(threads)
    result = described(rows, given, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def described(rows, given, seconds):
    """The rows with all that a reader must know of them."""
    import diffusers

    found = provenance(seconds)
    found["versions"]["diffusers"] = diffusers.__version__
    return {
        "name": "overhead",
        "question": "How long does a sampler take beside the network, and how long does diffusers' scheduler?",
        "command": f"python -m companion.bench overhead --steps {given.steps} --repetitions {given.repetitions}",
        "protocol": {
            "tensor": f"float32 of shape {SHAPE}, on the CPU, one thread",
            "network": "a function that returns the same tensor at every call",
            "walk": f"{given.steps} steps of DDPM's linear table of 1000, to sigma = 0; grids are made before",
            "timing": f"{given.repetitions} whole walks of each, in turns, after 5 to warm up; time over steps",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        **found,
    }


def timed(name, steps, repetitions):
    """One row: a sampler and diffusers' own, timed in turns so that a busy machine slows both."""
    import diffusers

    sampler, theirs, options = SAMPLERS[name]
    schedule = DiscreteVP.linear()
    ts = trailing(schedule, steps)
    x = start(schedule, ts, SHAPE)
    answer = torch.randn(SHAPE)
    grid = nodes(schedule, ts, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, theirs)(timestep_spacing="trailing", **options)

    def ours():
        began = time.perf_counter()
        for _ in sampler(lambda x, t: answer, schedule, x, grid):
            pass
        return time.perf_counter() - began

    def other():
        scheduler.set_timesteps(steps)  # which also forgets the last walk
        now = x
        with torch.no_grad():
            began = time.perf_counter()
            for t in scheduler.timesteps:
                now = scheduler.step(answer, t, now).prev_sample
            return time.perf_counter() - began

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            ours(), other()
        pairs = [(ours(), other()) for _ in range(repetitions)]
    mine, their = (spread([1e6 * walk / steps for walk in walks]) for walks in zip(*pairs, strict=True))
    return {
        "ours_us": mine[1],
        "diffusers_us": their[1],
        "ratio": round(mine[1] / their[1], 3),
        "ours_quartiles_us": [mine[0], mine[2]],
        "diffusers_quartiles_us": [their[0], their[2]],
    }


def spread(values):
    """The three quartiles."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [round(value, 2) for value in found]


def table(result: dict) -> str:
    """A row per sampler: both medians with their quartiles, and the ratio."""
    lines = [f"{'sampler':18} {'ours, µs a step':>24} {'diffusers, µs a step':>24} {'ratio':>6}"]
    for row in result["rows"]:
        cells = (
            f"{row[f'{who}_us']:8.1f} ({row[f'{who}_quartiles_us'][0]:.1f}–{row[f'{who}_quartiles_us'][1]:.1f})"
            for who in ("ours", "diffusers")
        )
        lines.append(f"{row['sampler']:18} " + " ".join(f"{cell:>24}" for cell in cells) + f" {row['ratio']:6.2f}")
    return "\n".join(lines)
