"""What a step costs beside the network: this book's samplers and denoiser, and diffusers' ``scheduler.step``.

Both sides take the same number of steps over the same small tensor and get the same noise from a network that costs
nothing, so that what is timed is the bookkeeping: coefficients, the way from noise to data, history, and a few
additions. Needs diffusers.
"""

import argparse
import importlib.util
import time
import warnings

import torch

from companion import _checks as check
from companion import bench, zoo
from companion.bench._stored import provenance, write
from companion.bench.timing import in_turns
from companion.denoisers import Denoiser
from companion.samplers import ddim, dpmpp_2m, nodes, start
from companion.schedules import DiscreteVP, trailing

SHAPE = (4, 3, 8, 8)
SAMPLERS = {"DDIM": (ddim, "DDIMScheduler", {}), "DPM-Solver++(2M)": (dpmpp_2m, "DPMSolverMultistepScheduler", {})}
SAMPLERS["DDIM"][2].update(clip_sample=False, set_alpha_to_one=True)  # clipping would be one more operation of theirs

QUANTITIES = {
    "ours_us": "time a step of the package takes outside the network, microseconds: median over the repetitions",
    "sampler_us": "the sampler's part of it: the same with a denoiser that costs nothing",
    "diffusers_us": "the same of diffusers' scheduler.step, which does what ours does",
    "ratio": "ours_us over diffusers_us",
    "ours_quartiles_us": "first and third quartile over the repetitions",
    "sampler_quartiles_us": "the same of the sampler alone",
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
    return {
        "name": "overhead",
        "question": "How long does a sampler take beside the network, and how long does diffusers' scheduler?",
        "command": f"python -m companion.bench overhead --steps {given.steps} --repetitions {given.repetitions}",
        "protocol": {
            "tensor": f"float32 of shape {SHAPE}, on the CPU, one thread",
            "network": "of kind eps; returns the same tensor at every call",
            "walk": f"{given.steps} steps of DDPM's linear table of 1000, to sigma = 0; grids are made before",
            "timing": f"{given.repetitions} whole walks of each, in turns, after two to warm up; time over steps",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        **provenance(seconds, peers=("diffusers",)),
    }


def timed(name, steps, repetitions):
    """One row: a sampler with its denoiser and alone, and diffusers' own, in turns so that a busy machine slows all."""
    import diffusers

    sampler, theirs, options = SAMPLERS[name]
    schedule = DiscreteVP.linear()
    ts = trailing(schedule, steps)
    x = start(schedule, ts, SHAPE)
    answer = torch.randn(SHAPE)
    grid = nodes(schedule, ts, x)
    denoise = Denoiser(Answering(answer), schedule, "eps")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, theirs)(timestep_spacing="trailing", **options)
        scheduler.set_timesteps(steps)

    def walk(denoise):
        for _ in sampler(denoise, schedule, x, grid):
            pass

    def other():
        scheduler.set_timesteps(steps)  # forgets the last walk; its own time is taken off
        now = x
        for t in scheduler.timesteps:
            now = scheduler.step(answer, t, now).prev_sample

    ways = {
        "ours": lambda: walk(denoise),
        "sampler": lambda: walk(lambda x, t: answer),
        "diffusers": other,
        "": lambda: scheduler.set_timesteps(steps),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = in_turns(ways, repetitions, torch.device("cpu"))
    prepared = found.pop("")["quartiles"][1]
    found["diffusers"]["quartiles"] = [v - prepared for v in found["diffusers"]["quartiles"]]
    row = {who: [round(1e6 * v / steps, 2) for v in taken["quartiles"]] for who, taken in found.items()}
    return {
        **{f"{who}_us": mid for who, (_, mid, _) in row.items()},
        "ratio": round(row["ours"][1] / row["diffusers"][1], 3),
        **{f"{who}_quartiles_us": [low, high] for who, (low, _, high) in row.items()},
    }


class Answering(torch.nn.Module):
    """A network that costs nothing: the same noise at every call."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t, cond=None):
        """The noise."""
        return self.answer


def table(result: dict) -> str:
    """A row per sampler: medians with their quartiles, and the ratio."""
    columns = {"ours": "ours, µs a step", "sampler": "of it the sampler", "diffusers": "diffusers, µs a step"}
    lines = [f"{'sampler':18}" + "".join(f" {title:>24}" for title in columns.values()) + f" {'ratio':>6}"]
    for row in result["rows"]:
        cells = (
            f"{row[f'{who}_us']:8.1f} ({row[f'{who}_quartiles_us'][0]:.1f}–{row[f'{who}_quartiles_us'][1]:.1f})"
            for who in columns
        )
        lines.append(f"{row['sampler']:18}" + "".join(f" {cell:>24}" for cell in cells) + f" {row['ratio']:6.2f}")
    return "\n".join(lines)
