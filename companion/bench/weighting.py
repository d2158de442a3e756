"""Which weighting for likelihood, which for samples: 8×8 digits, two schedules, two weightings, two kinds.

The simple loss (Ho et al. 2020, eq. 14) against the bound's own weights (Kingma et al. 2021, eq. 17), for networks that
predict eps or v, on the cosine and the linear schedule. Eight small models a seed, otherwise alike.
"""

import argparse
import functools
import itertools
import json
import math
import time

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion import bench, data, metrics, zoo
from companion.bench._stored import provenance, write
from companion.denoisers import Clipped, Denoiser
from companion.losses import bits_per_dim, elbo, elbo_weight, simple_loss
from companion.nets import UNet
from companion.samplers import ancestral, ddim, sample, start
from companion.schedules import CosineVP, LinearVP
from companion.training import EMA, train

SCHEDULES = {"cosine": CosineVP(0.008), "linear": LinearVP(0.1, 20.0)}
WEIGHTINGS = ("simple", "elbo")
KINDS = ("eps", "v")
REACH = 8.0  # log-SNRs from REACH to −REACH: where the bound is taken, trained on by its weights, and samples walk
NET = {"channels": 1, "width": 16, "multipliers": [1, 2]}
BATCH, RATE, DECAY, WALK = 64, 2e-3, 0.995, 50

QUANTITIES = {
    "bits": "bound on -log2 of the probability of a test scan, bits per pixel; lower is better",
    "reconstruction": "its part for the last step, from log-SNR 8 to one of 17 grey levels",
    "prior": "its part for the start of the chain, at log-SNR -8",
    "diffusion": "its part for the steps between",
    "ddim": "sliced Wasserstein distance of the samples to the training scans; lower is better",
    "ancestral": "the same, of samples by the ancestral sampler",
    "ddim_parts": "as ddim, but of as many samples as there are test scans: the mean over parts of the samples",
    "ancestral_parts": "the same, of samples by the ancestral sampler",
    "loss": "the training loss, mean over the last tenth of the steps; not to be compared across weightings or kinds",
    "seconds": "training and measurement",
}


def main(arguments):
    """Train and measure every combination for every seed, print the table, and write ``weighting.json``."""
    options = argparse.ArgumentParser(prog="companion.bench weighting", description=__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--samples", type=int, default=594)
    options.add_argument("--nodes", type=int, default=48, help="steps of the chain whose bound is measured")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began, runs = time.perf_counter(), []
    for seed in range(given.seeds):
        for schedule, weighting, kind in itertools.product(SCHEDULES, WEIGHTINGS, KINDS):
            found = once(schedule, weighting, kind, seed, given.steps, given.samples, given.nodes)
            runs.append({"schedule": schedule, "weighting": weighting, "kind": kind, "seed": seed, **found})
            print(json.dumps(runs[-1]), flush=True)
        result = described(runs, given, time.perf_counter() - began)  # a long run that is cut short leaves whole seeds
        write(result, given.out)
    print(table(result))


def described(runs, given, seconds):
    """The runs with all that a reader must know of them."""
    seeds = len({run["seed"] for run in runs})
    return {
        "name": "weighting",
        "question": "Does training with the bound's weights lower the bound, and does it improve the samples?",
        "command": f"python -m companion.bench weighting --seeds {seeds} --steps {given.steps} "
        f"--samples {given.samples} --nodes {given.nodes}",
        "protocol": {
            "data": "scikit-learn's digits, 8×8, 17 grey levels: 1,500 scans to train on, 297 to test",
            "net": {"class": "UNet", "arguments": NET},
            "training": f"{given.steps:,} steps, batch {BATCH}, AdamW, rate {RATE} warmed up over 100 steps and "
            f"brought to 0 along a cosine; average of the weights with decay {DECAY}",
            "weights": "simple: 1 at all times; elbo: -1/2 dlogSNR/dt on the squared error of eps, in terms of the "
            f"kind's own, 0 where |log-SNR| > {REACH:g}, mean over time 1",
            "bound": f"{given.nodes} steps, uniform in log-SNR from {-REACH:g} to {REACH:g}, each visited once a scan",
            "samples": f"{given.samples:,} by {WALK} evaluations, the times uniform in log-SNR over the same range, "
            "then the data; x0 clamped to [-1, 1]",
            "distance": "sliced Wasserstein of order 2, 256 directions, to the 1,500 training scans; fewer samples lie "
            "further away, so the test scans are to be compared with the quantities whose names end in _parts",
        },
        "quantities": QUANTITIES,
        "reference": reference(),
        "runs": runs,
        **provenance(seconds),
    }


def bounded(schedule, kind: str, reach: float | int = REACH):
    """The bound's weight as ``weight(t)``: ``elbo_weight`` within the log-SNRs ±reach, 0 outside, mean 1 over time.

    Times have any shape; the mean is over t uniform in [t_min, t_max]. Raises ValueError for an unknown kind, or a
    reach that is not above 0 or that the schedule does not cover.
    """
    check.one_of("kind", kind, KINDS)
    check.positive("reach", reach)
    first, last = schedule.time_of(torch.tensor([reach / 2, -reach / 2], dtype=torch.float64)).tolist()

    def weight(t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        inside = elbo_weight(schedule, t.double().clamp(first, last), kind)
        return (inside * ((t >= first) & (t <= last))).to(t)

    # the midpoint rule over log-SNR, where the integrand is smooth: dt = dlogSNR / (dlogSNR/dt)
    grid = schedule.time_of(torch.linspace(reach / 2, -reach / 2, 2001, dtype=torch.float64))
    middle = (grid[1:] + grid[:-1]) / 2
    mean = (weight(middle) * grid.diff()).sum().item() / (schedule.t_max - schedule.t_min)
    return lambda t: weight(t) / mean


def walk(schedule, steps):
    """A grid of so many steps, uniform in log-SNR from −REACH to REACH."""
    return schedule.time_of(torch.linspace(-REACH / 2, REACH / 2, steps + 1, dtype=torch.float64))


def once(schedule, weighting, kind, seed, steps, samples, nodes):
    """One model trained and measured: the quantities of one run."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    images, _ = data.digits("train")
    path = SCHEDULES[schedule]
    model = Denoiser(UNet(**NET), path, kind)
    ema = EMA(model, decay=DECAY)
    loss = functools.partial(simple_loss, weight=bounded(path, kind)) if weighting == "elbo" else simple_loss
    options = {"steps": steps, "batch": BATCH, "lr": RATE, "ema": ema, "seed": seed, "loss": loss, "progress": False}
    losses = [progress.loss for progress in train(model, images, **options)]
    tail = torch.stack(losses[-math.ceil(steps / 10) :]).mean().item()
    found = measure(ema.model, seed, samples, nodes)
    return found | {"loss": round(tail, 5), "seconds": round(time.perf_counter() - began, 1)}


def measure(model, seed, samples, nodes):
    """The bound on the test scans, and how far samples lie from the training scans."""
    torch.manual_seed(1000 + seed)
    test, _ = data.digits("test")
    dims = test[0].numel()
    bound = elbo(model, test, ts=walk(model.schedule, nodes), bins=17)
    found = {name: bits_per_dim(getattr(bound, name), dims).mean().item() for name in bound._fields}
    found = {"bits": sum(found.values()), **found}
    clean = torch.tensor([model.schedule.t_min], dtype=torch.float64)
    ts = torch.cat([walk(model.schedule, WALK - 1), clean])
    for sampler in (ddim, ancestral):
        x = start(model.schedule, ts, (samples, 1, 8, 8))
        drawn = sample(Clipped(model), model.schedule, x, ts, sampler=sampler)
        parts = [distance(part) for part in drawn.split(len(test)) if len(part) == min(len(test), samples)]
        found[sampler.__name__] = distance(drawn)
        found[f"{sampler.__name__}_parts"] = sum(parts) / len(parts)
    return {name: round(value, 5) for name, value in found.items()}


def distance(images):
    """Sliced Wasserstein distance to the training scans, along the same directions at every call."""
    known, draw = data.digits("train")[0].flatten(1), torch.Generator().manual_seed(0)
    return metrics.sliced_wasserstein(images.flatten(1), known, generator=draw).item()


def reference():
    """What the 297 test scans give: to be compared with the means over parts of as many samples."""
    found = round(distance(data.digits("test")[0]), 5)
    return {"297 test scans": {"ddim_parts": found, "ancestral_parts": found}}


def table(result: dict) -> str:
    """A row per combination: each quantity's mean over the seeds ± its standard deviation."""
    shown = ("bits", "ddim", "ddim_parts", "ancestral", "ancestral_parts")
    lines = [f"{'schedule':9} {'weighting':9} {'kind':4} " + " ".join(f"{name:>17}" for name in shown)]
    for schedule, weighting, kind in itertools.product(SCHEDULES, WEIGHTINGS, KINDS):
        same = [r for r in result["runs"] if (r["schedule"], r["weighting"], r["kind"]) == (schedule, weighting, kind)]
        values = torch.tensor([[run[name] for name in shown] for run in same], dtype=torch.float64)
        spread = values.std(0) if len(same) > 1 else torch.full_like(values[0], math.nan)
        cells = (f"{mean:8.4f} ± {deviation:6.4f}" for mean, deviation in zip(values.mean(0), spread, strict=True))
        lines.append(f"{schedule:9} {weighting:9} {kind:4} " + " ".join(cells))
    for name, found in result["reference"].items():
        lines.append(
            f"{name:24} " + " ".join(f"{found[key]:8.4f}         " if key in found else " " * 17 for key in shown)
        )
    return "\n".join(lines)
