"""What single pieces of the networks cost, way by way: memory format, norm, attention, threads, the weights' average.

The ways of a group give the same numbers, which is made sure of before any is timed. On a GPU:

    python -m companion.bench pieces --images 64 1024 --width 40 --patch 1 --dtype bfloat16
"""

import argparse
import copy
import os
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from companion import _checks as check
from companion import bench, gpu, zoo
from companion.bench._stored import provenance, write
from companion.bench.sampling import DTYPES
from companion.bench.timing import in_turns, network, peaks, wait
from companion.bench.timing import seconds as once
from companion.denoisers import Denoiser
from companion.nets.count import flops, parameters
from companion.samplers import sample, start
from companion.schedules import DiscreteVP, trailing
from companion.training import EMA

CHANNELS, SIDE = 64, 16  # of the convolution
HEAD, HEADS = 32, 2  # features of a head of attention, and heads
STEPS = 20  # of the walk
PACE = 0.001  # the share of the way that an average moves
TURN = 0.01  # a way is called again until about so many seconds are over
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # root mean square, relative; float32 may be TF32 on a GPU

QUANTITIES = {
    "seconds": "a call takes: median over the repetitions, ways in turns",
    "quartiles": "first and third quartile over the repetitions",
    "times": "seconds of the group's first way over seconds",
    "flops_per_second": "operations of the group over seconds; null where element by element work is all there is",
    "bytes_per_second": "bytes that no way can avoid over seconds: of a norm, the images once read and once written, "
    "of an average, all weights twice read and once written; null where operations are counted",
    "of_peak": "the one of these two that is there, over that of a large matrix product or of a large copy; above 1 "
    "where what is moved stays in a cache, or more threads work than the peak was taken with",
    "kernels": "how many kernels a call launches on a GPU, copies among them; null on a CPU",
    "difference": "root mean square distance of the way's numbers from the first way's, over that of the first's",
}


def main(arguments):
    """Time every group, print the table, and write ``pieces.json``."""
    options = argparse.ArgumentParser(prog="companion.bench pieces", description=__doc__)
    options.add_argument("--images", type=int, nargs="+", default=[1, 64])
    options.add_argument("--repetitions", type=int, default=7)
    options.add_argument("--width", type=int, default=32, help="channels of the network")
    options.add_argument("--patch", type=int, default=2, choices=(1, 2))
    options.add_argument("--dtype", default="float32", choices=list(TOLERANCE), help="in which the pieces work")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="ways that compile")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    for name, value in (("repetitions", given.repetitions), *(("images", n) for n in given.images)):
        check.positive_int(name, value)

    began, device = time.perf_counter(), gpu.device()
    net, best = network(given.width, given.patch), peaks(device, DTYPES[given.dtype] or torch.float32, repetitions=100)
    rows = [row for group in groups(net, given) for row in timed(*group, given, best)]
    result = described(net, rows, best, given, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def groups(net, given):
    """Each group in turn: its name, how many images (or None), its ways by name, and the work of one call."""
    dtype, device = DTYPES[given.dtype] or torch.float32, gpu.device()
    for images in given.images:
        yield "convolution", images, *convolution(images, dtype, device)
        yield "U-Net", images, *formats(net, images)
        yield "norm, scale, shift, SiLU", images, *norms(net.down[0].norm2, images, 32 // given.patch, dtype, given)
        for places in (64, 1024):
            yield f"attention, {places} places", images, *attention(images, places, dtype, device)
        if device.type == "cpu":
            yield f"walk of {STEPS} steps", images, *threads(net, images)
    yield "average of the weights", None, *averages(net)


def timed(name, images, ways, work, given, best):
    """The rows of one group; ``work`` holds its operations or the bytes it must move."""
    device, dtype = gpu.device(), DTYPES[given.dtype]
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        apart = agree(ways, TOLERANCE[given.dtype])
        launched = {way: kernels(call, device) for way, call in ways.items()}
        often = {way: max(1, int(TURN / once(call, device))) for way, call in ways.items()}
        calls = {way: lambda call=call, n=often[way]: [call() for _ in range(n)][-1] for way, call in ways.items()}
        found = in_turns(calls, given.repetitions, device)
    first = next(iter(found))
    rows = []
    for way, row in found.items():
        low, middle, high = (value / often[way] for value in row["quartiles"])
        rate = {unit: work[unit] / middle if unit in work else None for unit in ("flops", "bytes")}
        (share,) = (rate[unit] / best[f"{unit}_per_second"] for unit in work)
        rows.append(
            {
                "group": name,
                "images": images,
                "way": way,
                "seconds": round(middle, 9),
                "quartiles": [round(low, 9), round(high, 9)],
                "times": round(found[first]["quartiles"][1] / often[first] / middle, 3),
                **{f"{unit}_per_second": value and float(f"{value:.4g}") for unit, value in rate.items()},
                "of_peak": round(share, 4),
                "kernels": launched[way],
                "difference": float(f"{apart[way]:.2g}"),
            }
        )
    return rows


def agree(ways: dict, tolerance: float) -> dict:
    """How far each way's numbers lie from the first's, relative. Raises ValueError for more than the tolerance."""
    first, found = None, {}
    for way, call in ways.items():
        answer = call()
        answer = torch.cat([v.flatten().float() for v in ([answer] if isinstance(answer, torch.Tensor) else answer)])
        first = answer if first is None else first
        found[way] = ((answer - first).square().mean().sqrt() / first.square().mean().sqrt()).item()
        if not found[way] <= tolerance:
            raise ValueError(
                f"{way!r} must give the numbers of {next(iter(ways))!r}; differs by {found[way]:.2g} of them"
            )
    return found


def kernels(call, device) -> int | None:
    """How many kernels a call launches on a GPU, copies among them; None on a CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        wait(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events())


# ---- the groups: ways by name, and the operations or the bytes of a call ---------------------------------------------


def convolution(images, dtype, device):
    """3×3, channels kept."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(device, dtype)
    x = torch.randn(images, CHANNELS, SIDE, SIDE, device=device, dtype=dtype)
    ways = {}
    for name, order in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
        layer, told = copy.deepcopy(conv).to(memory_format=order), x.contiguous(memory_format=order)
        ways[name] = lambda layer=layer, told=told: layer(told)
    return ways, {"flops": 2 * conv.weight.numel() * images * SIDE**2}


def formats(net, images):
    """The whole network's forward pass."""
    device = gpu.device()
    given = (
        torch.randn(images, 1, 32, 32, device=device),
        torch.full((images,), 500.0, device=device),
        torch.arange(images, device=device) % 10,
    )
    first = channels_first(net)
    ways = {"channels first": lambda: first(*given), "channels last": lambda: net(*given)}
    return ways, {"flops": flops(net, *given)}


def channels_first(net):
    """A copy of the network whose layers see the numbers of a channel side by side."""

    def first(v):
        return v.flatten().view(v.shape)  # contiguous() keeps the strides of what has one channel or one place

    found = copy.deepcopy(net)
    for p in found.parameters():
        p.data = first(p.data)
    found.stem.register_forward_pre_hook(lambda layer, given: (first(given[0]),))
    return found


def norms(norm, images, side, dtype, given):
    """What stands between the two convolutions of a residual block; the ways by hand as in the chapters' formulas."""
    device, channels = norm.weight.device, norm.num_channels
    norm = copy.deepcopy(norm)  # whose factors are all 1 at first, and its offsets 0
    for p in norm.parameters():
        nn.init.normal_(p)
    first = torch.randn(images, channels, side, side, device=device, dtype=dtype)
    last = first.contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(images, 2 * channels, device=device, dtype=dtype)[:, :, None, None].chunk(2, 1)

    def block(h):
        return F.silu(norm(h) * (1 + scale) + shift)

    def view(h):
        split = h.float().unflatten(1, (norm.num_groups, -1))
        variance, mean = torch.var_mean(split, (2, 3, 4), correction=0, keepdim=True)
        even = ((split - mean) * (variance + norm.eps).rsqrt()).flatten(1, 2)
        even = even * norm.weight[:, None, None] + norm.bias[:, None, None]
        return F.silu(even * (1 + scale) + shift)

    def folded(h):
        rows = h.float().flatten(2)  # the moments of each channel, then of each group; then all is one a h + b
        mean, square = (v.mean(2).unflatten(1, (norm.num_groups, -1)).mean(2, True) for v in (rows, rows.square()))
        each = (square - mean.square() + norm.eps).rsqrt().expand(-1, -1, channels // norm.num_groups).flatten(1)
        mean = mean.expand(-1, -1, channels // norm.num_groups).flatten(1)
        a = each * norm.weight * (1 + scale[:, :, 0, 0])
        b = norm.bias * (1 + scale[:, :, 0, 0]) + shift[:, :, 0, 0] - mean * a
        return F.silu(torch.addcmul(b[:, :, None, None], h.float(), a[:, :, None, None]))

    ways = {
        "channels first": lambda: block(first),
        "channels last": lambda: block(last),
        "channels last, var_mean over a view": lambda: view(last),
        "channels last, moments, one a h + b": lambda: folded(last),
    }
    if given.compile:
        compiled = torch.compile(block, dynamic=False)
        ways["channels last, compiled"] = lambda: compiled(last)
    return ways, {"bytes": 2 * first.numel() * dtype.itemsize}


def attention(images, places, dtype, device):
    """Queries, keys and values as they come out of a convolution in channels last."""
    q, k, v = torch.randn(images, places, 3, HEADS, HEAD, device=device, dtype=dtype).permute(2, 0, 3, 1, 4)
    ways = {
        "written out": lambda: torch.softmax(q @ k.mT / HEAD**0.5, -1) @ v,
        "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(q, k, v),
    }
    return ways, {"flops": 4 * images * HEADS * places**2 * HEAD}


def threads(net, images):
    """A walk by DDIM with one thread, two, four … and all there are."""
    schedule, labels = DiscreteVP.linear(), torch.arange(images) % 10
    ts, denoise = trailing(schedule, STEPS), Denoiser(net, schedule, "v", cond=labels)
    x = start(schedule, ts, (images, 1, 32, 32), generator=torch.Generator().manual_seed(0))

    def walk(count):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return sample(denoise, schedule, x, ts)
        finally:
            torch.set_num_threads(before)

    most = max(torch.get_num_threads(), os.cpu_count() or 1)
    counts = sorted({min(2**i, most) for i in range(most.bit_length() + 1)})
    ways = {f"{n} thread{'s' if n > 1 else ''}": lambda n=n: walk(n) for n in counts}
    return ways, {"flops": flops(net, x[:1], torch.ones(1), labels[:1]) * images * STEPS}


def averages(net):
    """One move of the average towards the weights; each way moves an average of its own."""
    weights = list(net.parameters())

    def moved(how):
        kept = EMA(net)
        averaged = list(kept.model.parameters())
        for p in averaged:
            p.zero_()  # after one move all numbers are the move's
        return lambda: how(kept, averaged) or averaged

    def three(kept, averaged):
        for mine, theirs in zip(averaged, weights, strict=True):
            mine.add_((theirs - mine) * PACE)

    def one(kept, averaged):
        for mine, theirs in zip(averaged, weights, strict=True):
            mine.lerp_(theirs, PACE)

    pace = torch.tensor(PACE, device=weights[0].device)
    ways = {
        "three passes, tensor by tensor": moved(three),
        "lerp, tensor by tensor": moved(one),
        "lerp of all at once": moved(lambda kept, averaged: torch._foreach_lerp_(averaged, weights, PACE)),
        "EMA.move, a number": moved(lambda kept, averaged: kept.move(net, PACE)),
        "EMA.move, a tensor": moved(lambda kept, averaged: kept.move(net, pace)),
    }
    return ways, {"bytes": 3 * 4 * parameters(net)}


# ---- what is told of it ---------------------------------------------------------------------------------------------


def described(net, rows, best, given, seconds):
    """The rows with all that a reader must know of them."""
    device = gpu.device()
    return {
        "name": "pieces",
        "question": "What does each piece of the network cost, written in one way and in another?",
        "command": f"python -m companion.bench pieces --images {' '.join(map(str, given.images))} "
        f"--repetitions {given.repetitions} --width {given.width} --patch {given.patch} --dtype {given.dtype}"
        + ("" if given.compile else " --no-compile"),
        "protocol": {
            "convolution": f"3×3, {CHANNELS} to {CHANNELS} channels, {SIDE}×{SIDE} places",
            "U-Net": f"one forward pass of the recipe mnist's, width {given.width}, patches of {given.patch}; "
            f"{parameters(net):,} parameters; 32×32 images, a class each",
            "norm, scale, shift, SiLU": f"silu(norm(h) (1 + scale) + shift) of its first residual block, "
            f"{given.width} channels, {32 // given.patch}×{32 // given.patch} places, 8 groups",
            "attention": f"{HEADS} heads of {HEAD} features; written out is softmax(q k / √{HEAD}) v",
            "walk": f"{STEPS} steps of DDIM, DDPM's linear table of 1000, trailing; on a CPU alone",
            "average of the weights": f"all weights of the U-Net, moved {PACE} of the way",
            "precision": f"{given.dtype}; by autocast where weights take part; averages in float32",
            "same numbers": f"made sure of before: within {TOLERANCE[given.dtype]:g}, root mean square, relative",
            "timing": f"{given.repetitions} turns of each way after two that warm up, each of as many calls as fill "
            f"about {TURN} s",
            "machine": f"{gpu.describe(device)}; load {' '.join(f'{v:.1f}' for v in os.getloadavg())} at the end",
        },
        "quantities": QUANTITIES,
        "peak": {key: float(f"{value:.4g}") for key, value in best.items()},
        "rows": rows,
        **provenance(seconds, device),
    }


def table(result: dict) -> str:
    """A row per group, number of images and way."""
    lines = [
        f"{'':24} {'images':>6} {'':35} {'µs':>10} {'quartiles':>19} {'×':>6} {'GFLOP/s':>8} {'GB/s':>7} "
        f"{'of peak':>7} {'differs':>8}"
    ]
    for row in result["rows"]:
        low, high = (1e6 * value for value in row["quartiles"])
        rates = (
            "" if row[unit] is None else f"{row[unit] / 1e9:.1f}" for unit in ("flops_per_second", "bytes_per_second")
        )
        work, moved = rates
        made = "" if row["kernels"] is None else f" ({row['kernels']} kernels)"
        lines.append(
            f"{row['group']:24} {row['images'] or '':>6} {row['way'] + made:35} {1e6 * row['seconds']:10.1f} "
            f"{low:9.1f}–{high:<9.1f} {row['times']:6.2f} {work:>8} {moved:>7} {row['of_peak']:7.1%} "
            f"{row['difference']:8.1e}"
        )
    return "\n".join(lines)
