"""How long a walk takes, way by way: diffusers' loop, the plain loop, the network compiled, the loop as a CUDA graph.

The same network, weights, labels and starting noise for all; 50 steps of DDIM on DDPM's linear table. On a GPU:

    python -m companion.bench sampling --images 1 64 1024 --width 40 --patch 1 --dtype float32 bfloat16
"""

import argparse
import functools
import importlib.util
import time
import warnings

import torch

from companion import _checks as check
from companion import bench, gpu, zoo
from companion.bench._stored import provenance, write
from companion.bench.timing import in_turns, network, peaks, traffic
from companion.denoisers import Denoiser
from companion.nets.count import flops, parameters
from companion.samplers import ddim, sample, start
from companion.schedules import DiscreteVP, trailing

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIFFUSERS = "diffusers"  # the way that others are compared with

QUANTITIES = {
    "seconds": "a whole walk of so many images takes: median over the repetitions, ways in turns",
    "quartiles": "first and third quartile over the repetitions",
    "first_call": "seconds of the first walk, with what is compiled or recorded for it",
    "images_per_second": "images over seconds",
    "times_diffusers": "seconds of diffusers' loop in the same precision, with the network as it is, over seconds",
    "flops_share": "operations counted in the network, over those of a large matrix product of its dtype in this time",
    "bytes_share": "bytes that the layers read and write when none is fused, over those of a large copy in this time; "
    "above 1 only where layers are fused or what they exchange stays in a cache",
    "difference": "root mean square distance of the samples from those of the plain loop in float32, over their spread",
}


def main(arguments):
    """Time every way, print the table, and write ``sampling.json``."""
    options = argparse.ArgumentParser(prog="companion.bench sampling", description=__doc__)
    options.add_argument("--images", type=int, nargs="+", default=[1, 64])
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--width", type=int, default=32, help="channels of the network")
    options.add_argument("--patch", type=int, default=2, choices=(1, 2))
    options.add_argument("--dtype", nargs="+", default=["float32"], choices=list(DTYPES), help="the network works in")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="ways that compile")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    for name in ("steps", "repetitions"):
        check.positive_int(name, getattr(given, name))

    began, device = time.perf_counter(), gpu.device()
    net = network(given.width, given.patch)
    best = {dtype: peaks(device, DTYPES[dtype] or torch.float32) for dtype in given.dtype}
    rows = []
    for images in given.images:
        check.positive_int("images", images)
        rows += timed(net, images, given, best)
    result = described(net, rows, best, given, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def timed(net, images, given, best):
    """The rows of one number of images, in every precision."""
    device = gpu.device()
    schedule, labels = DiscreteVP.linear(), torch.arange(images, device=gpu.device()) % 10
    ts = trailing(schedule, given.steps)
    denoise, shape = Denoiser(net, schedule, "v", cond=labels), (images, 1, 32, 32)
    x = start(schedule, ts, shape, generator=torch.Generator().manual_seed(0)).to(device)
    exact, every_t = sample(denoise, schedule, x, ts), torch.ones(images, device=device)
    work = flops(net, x[:1], every_t[:1], labels[:1]) * images * given.steps
    rows = []
    for dtype in given.dtype:
        if given.compile:
            torch.compiler.reset()  # of a function it makes only so many versions, and those before are done with
        calls = ways(denoise, schedule, ts, x, given, DTYPES[dtype])
        found = in_turns({name: lambda call=call: call(x) for name, call in calls.items()}, given.repetitions, device)
        moved = traffic(net, x, every_t, labels, dtype=DTYPES[dtype] or torch.float32) * given.steps
        theirs = found.get(DIFFUSERS, {"quartiles": [None] * 3})["quartiles"][1]
        for name, row in found.items():
            low, seconds, high = row["quartiles"]
            apart = (calls[name](x) - exact).square().mean().sqrt() / exact.std()
            rows.append(
                {
                    "images": images,
                    "dtype": dtype,
                    "way": name,
                    "seconds": round(seconds, 6),
                    "quartiles": [round(low, 6), round(high, 6)],
                    "first_call": round(row["first_call"], 3),
                    "images_per_second": round(images / seconds, 3),
                    "times_diffusers": None if theirs is None else round(theirs / seconds, 3),
                    "flops_share": round(work / seconds / best[dtype]["flops_per_second"], 4),
                    "bytes_share": round(moved / seconds / best[dtype]["bytes_per_second"], 4),
                    "difference": round(apart.item(), 7),
                }
            )
    return rows


def ways(denoise, schedule, ts, x, given, autocast) -> dict:
    """Functions of the starting noise, by name; each makes what it needs at its first call."""
    device, shape = x.device, tuple(x.shape)
    found = {}
    if importlib.util.find_spec("diffusers"):
        about = denoise.cond, given.steps, autocast
        found[DIFFUSERS] = made_at_first(lambda: diffusers_loop(denoise.net, *about))
        if given.compile:
            found["diffusers, network compiled"] = made_at_first(
                lambda: diffusers_loop(torch.compile(denoise.net, dynamic=False), *about)
            )

    def plain(x):
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return sample(denoise, schedule, x, ts)

    found["plain loop"] = plain

    def ours(**how):
        return gpu.compile_sampler(ddim, denoise, schedule, ts, shape, device=device, autocast=autocast, **how)

    if device.type == "cuda":
        found["graph"] = made_at_first(ours)
    if given.compile:
        found["compiled, graph" if device.type == "cuda" else "compiled"] = made_at_first(lambda: ours(compile=True))
    return found


def made_at_first(make):
    """A function that makes what it calls when it is first called, so that the making is timed with that call."""
    made = functools.cache(make)
    return lambda x: made()(x)


def diffusers_loop(net, labels, steps, autocast):
    """The loop of diffusers' DDIM pipeline around a network, without its progress bar."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = diffusers.DDIMScheduler(
            beta_schedule="linear",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
        )

    @torch.no_grad()
    def run(x):
        scheduler.set_timesteps(steps, device=x.device)
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            for t in scheduler.timesteps:
                output = net(x, (t + 1).float().expand(len(x)), labels)  # their table counts from 0
                x = scheduler.step(output.to(x.dtype), t, x).prev_sample
        return x

    return run


def described(net, rows, best, given, seconds):
    """The rows with all that a reader must know of them."""
    return {
        "name": "sampling",
        "question": "How fast is a walk, way by way, and how far is that from what the machine can do?",
        "command": f"python -m companion.bench sampling --images {' '.join(map(str, given.images))} "
        f"--steps {given.steps} --repetitions {given.repetitions} --width {given.width} --patch {given.patch} "
        f"--dtype {' '.join(given.dtype)}" + ("" if given.compile else " --no-compile"),
        "protocol": {
            "network": f"the U-Net of the recipe mnist, width {given.width}, patches of {given.patch}, weights drawn; "
            f"{parameters(net):,} parameters; 32×32 images, a class each",
            "walk": f"{given.steps} steps of DDIM, DDPM's linear table of 1000, trailing",
            "precision": f"the network in {' and in '.join(given.dtype)}, by autocast where it is not float32; the "
            "walk in float32",
            "timing": f"{given.repetitions} walks of each way, in turns, after two that make ready and warm up",
            "diffusers": "DDIMScheduler.step around the same network, as DDIMPipeline has it, no progress bar",
        },
        "quantities": QUANTITIES,
        "peak": {dtype: {key: float(f"{value:.4g}") for key, value in of.items()} for dtype, of in best.items()},
        "rows": rows,
        **provenance(seconds, gpu.device(), peers=("diffusers",)),
    }


def table(result: dict) -> str:
    """A row per number of images, precision and way."""
    lines = [
        f"{'images':>6} {'':8} {'':28} {'ms':>10} {'quartiles':>17} {'× diffusers':>11} "
        f"{'FLOPs':>6} {'bytes':>6} {'differs':>8}"
    ]
    for row in result["rows"]:
        low, high = (1e3 * value for value in row["quartiles"])
        faster = "" if row["times_diffusers"] is None else f"{row['times_diffusers']:.2f}"
        lines.append(
            f"{row['images']:6d} {row['dtype']:8} {row['way']:28} {1e3 * row['seconds']:10.2f} "
            f"{low:8.1f}–{high:<8.1f} {faster:>11} {row['flops_share']:6.1%} {row['bytes_share']:6.1%} "
            f"{row['difference']:8.1e}"
        )
    return "\n".join(lines)
