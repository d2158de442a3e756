"""How long a step of training takes, way by way: a loop as one writes it, ours, compiled, as one CUDA graph.

The same network, images and batch for all, the images on the device. On a GPU:

    python -m companion.bench training --batch 512 --width 40 --patch 1 --dtype bfloat16
"""

import argparse
import copy
import time

import torch

from companion import _checks as check
from companion import bench, gpu, zoo
from companion.bench._stored import provenance, write
from companion.bench.sampling import DTYPES
from companion.bench.timing import in_turns, network, peaks
from companion.denoisers import Denoiser
from companion.nets.count import flops, parameters
from companion.schedules import CosineVP
from companion.training import EMA

PLAIN = "plain loop"  # the way that others are compared with
STEPS = 5  # a turn

QUANTITIES = {
    "seconds": "a step takes: median over the repetitions, ways in turns",
    "quartiles": "first and third quartile over the repetitions",
    "first_call": f"seconds of the first {STEPS} steps, with what is compiled or recorded for them",
    "images_per_second": "the batch over seconds",
    "times_plain": "seconds of the plain loop over seconds",
    "flops_share": "three times the network's counted operations (forward, and twice backward), over those of a large "
    "matrix product in this time",
}


def main(arguments):
    """Time every way, print the table, and write ``training.json``."""
    options = argparse.ArgumentParser(prog="companion.bench training", description=__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--repetitions", type=int, default=5, help=f"turns, of {STEPS} steps each")
    options.add_argument("--width", type=int, default=32, help="channels of the network")
    options.add_argument("--patch", type=int, default=2, choices=(1, 2))
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="the network works in")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="ways that compile")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    for name in ("batch", "repetitions"):
        check.positive_int(name, getattr(given, name))

    began, device, autocast = time.perf_counter(), gpu.device(), DTYPES[given.dtype]
    net, best = network(given.width, given.patch), peaks(device, autocast or torch.float32)
    images = torch.rand(5000, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    labels = torch.arange(5000, device=device) % 10
    found = in_turns(ways(net, images, labels, given), given.repetitions, device)
    work = 3 * flops(net, images[:1], torch.ones(1, device=device), labels[:1]) * given.batch
    rows = []
    for name, row in found.items():
        low, seconds, high = (value / STEPS for value in row["quartiles"])
        rows.append(
            {
                "way": name,
                "seconds": round(seconds, 6),
                "quartiles": [round(low, 6), round(high, 6)],
                "first_call": round(row["first_call"], 3),
                "images_per_second": round(given.batch / seconds, 2),
                "times_plain": round(found[PLAIN]["quartiles"][1] / STEPS / seconds, 3),
                "flops_share": round(work / seconds / best["flops_per_second"], 4),
            }
        )
    result = {
        "name": "training",
        "question": "How fast is a step of training, way by way, and how far is that from what the machine can do?",
        "command": f"python -m companion.bench training --batch {given.batch} --repetitions {given.repetitions} "
        f"--width {given.width} --patch {given.patch} --dtype {given.dtype}"
        + ("" if given.compile else " --no-compile"),
        "protocol": {
            "network": f"the U-Net of the recipe mnist, width {given.width}, patches of {given.patch}; "
            f"{parameters(net):,} parameters; 32×32 images, a class each; AdamW, clipped gradients, an average",
            "precision": f"the network in {given.dtype} by autocast, weights and optimiser in float32",
            "timing": f"{given.repetitions} turns of {STEPS} steps of each way, after two that make ready and warm up",
            "plain loop": "PyTorch's pieces in the usual order, the loss read at every step for a progress bar",
        },
        "quantities": QUANTITIES,
        "peak": {key: float(f"{value:.4g}") for key, value in best.items()},
        "rows": rows,
        **provenance(time.perf_counter() - began, device),
    }
    write(result, given.out)
    print(table(result))


def ways(net, images, labels, given) -> dict:
    """Functions that take five steps each, by name; every one trains a network of its own."""
    device, autocast = images.device, DTYPES[given.dtype]

    def fresh():
        return Denoiser(copy.deepcopy(net).train(), CosineVP(), "v")

    def stepping(**how):
        model = fresh()
        about = {"batch": given.batch, "cond": labels, "ema": EMA(model), "autocast": autocast}
        step = gpu.compile_train_step(model, images, **about, **how)

        def some():
            for _ in range(STEPS):
                step(1e-3)

        return some

    found = {PLAIN: plain(fresh(), images, labels, given.batch, autocast), "our step": stepping(graph=False)}
    if given.compile:
        found["compiled"] = stepping(compile=True, graph=False)
    if device.type == "cuda":
        found["graph"] = stepping()
        if given.compile:
            found["compiled, graph"] = stepping(compile=True)
    return found


def plain(model, images, labels, batch, autocast):
    """Training as most would write it, on the same data and with the same loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    average, device = copy.deepcopy(model).requires_grad_(False), images.device

    def some():
        for _ in range(STEPS):
            rows = torch.randint(len(images), (batch,), device=device)
            x0, y, t = images[rows], labels[rows], torch.rand(batch, device=device)
            y = torch.where(torch.rand(batch, device=device) < 0.1, 10, y)
            eps, alpha, sigma = torch.randn_like(x0), model.schedule.alpha(t), model.schedule.sigma(t)
            alpha, sigma = (v.view(-1, 1, 1, 1) for v in (alpha, sigma))
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                output = model.net(alpha * x0 + sigma * eps, t, y)
                loss = (output - (alpha * eps - sigma * x0)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                    mine.lerp_(theirs, 0.001)
            loss.item()

    return some


def table(result: dict) -> str:
    """A row per way."""
    lines = [f"{'':18} {'ms a step':>10} {'quartiles':>17} {'images/s':>10} {'× plain':>8} {'FLOPs':>6}"]
    for row in result["rows"]:
        low, high = (1e3 * value for value in row["quartiles"])
        lines.append(
            f"{row['way']:18} {1e3 * row['seconds']:10.2f} {low:8.1f}–{high:<8.1f} {row['images_per_second']:10.1f} "
            f"{row['times_plain']:8.2f} {row['flops_share']:6.1%}"
        )
    return "\n".join(lines)
