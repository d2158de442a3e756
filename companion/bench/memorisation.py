"""When does a network memorise? 8×8 digits without classes, one U-Net, as many steps on 20 images as on 1,500.

Beside its loss stands the floor: the loss of the best denoiser of the very images it was trained on, which reproduces
them and nothing else. Its samples are held against the images it has seen, and against as many it has not.
"""

import argparse
import json
import time

import torch

from companion import bench, data, gpu, zoo
from companion.bench import _digits
from companion.bench._stored import provenance, write
from companion.forward import q_sample
from companion.nets import UNet, count
from companion.toy import EmpiricalDistribution

NET = {"channels": 1, "width": 16, "multipliers": [1, 2]}
RATE, SAMPLES, WALK, CLOSE = 0.002, 200, 50, 1 / 3

QUANTITIES = {
    "nearest_trained": "median distance of the samples to the nearest of all images trained on",
    "compared": "how many images, seen and unseen, the next two take",
    "nearest_trained_equal": "median distance to the nearest of so many of the images trained on",
    "nearest_held_out": "the same, of as many images that were not trained on",
    "copies": f"share of samples whose nearest image trained on is closer than {CLOSE:.2f} of the second nearest",
    "train_loss": "mean squared error of v on the images trained on",
    "held_out_loss": "mean squared error of v on the 297 test scans",
    "floor": "the least that train_loss can be: the exact denoiser of the images trained on, at the same questions",
    "floor_held_out": "what the exact denoiser of the images trained on has on the test scans",
    "seconds": "training and measurement",
}


def main(arguments):
    """Train on each number of images, measure, print the table, and write ``memorisation.json``."""
    options = argparse.ArgumentParser(prog="companion.bench memorisation", description=__doc__)
    options.add_argument("--images", type=int, nargs="+", default=[20, 100, 500, 1500])
    options.add_argument("--steps", type=int, default=2500)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began, rows = time.perf_counter(), []
    for number in given.images:
        rows.append(once(number, given.seed, given.steps))
        print(json.dumps(rows[-1]), flush=True)
    result = described(rows, given, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def once(number, seed, steps):
    """The row of one number of images: the first so many of the training scans."""
    began = time.perf_counter()
    train, test = (data.digits(split)[0] for split in ("train", "test"))
    seen, unseen = train[:number], torch.cat([test, train[number:]])
    torch.manual_seed(seed)
    model = _digits.trained(UNet(**NET), seen, None, steps=steps, rate=RATE, seed=seed)
    drawn = _digits.samples(model, None, SAMPLES, seed, WALK)
    compared = min(number, len(unseen))
    # as many questions of the images trained on as of the test scans, at the same times
    asked, new = _digits.questions(seen[torch.arange(len(test)) % number], None), _digits.questions(test, None)
    row = {
        "images": number,
        "nearest_trained": _median(drawn, seen),
        "compared": compared,
        "nearest_trained_equal": _median(drawn, seen[:compared]),
        "nearest_held_out": _median(drawn, unseen[:compared]),
        "copies": copies(drawn, seen),
        "train_loss": _digits.loss(model, asked),
        "held_out_loss": _digits.loss(model, new),
        "floor": floor(seen, asked),
        "floor_held_out": floor(seen, new),
        "seconds": time.perf_counter() - began,
    }
    return {name: round(value, 5) for name, value in row.items()}


def _median(images, known):
    return torch.cdist(images.flatten(1), known.flatten(1)).min(1).values.median().item()


def copies(images, known) -> float:
    """The share of images whose nearest known one is much closer than the second nearest."""
    two = torch.cdist(images.flatten(1), known.flatten(1)).topk(2, largest=False).values
    return (two[:, 0] < CLOSE * two[:, 1]).double().mean().item()


def floor(points, asked) -> float:
    """The mean squared error of v of the exact denoiser of these points.

    On a path that preserves the variance an error of x0 is one of v times sigma.
    """
    x0, t, noise, _ = (v if v is None else v.double() for v in asked)
    exact, schedule = EmpiricalDistribution(points.to(x0.device)), _digits.SCHEDULE
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    error = exact.denoise(q_sample(x0, t, schedule, noise), alpha, sigma) - x0
    return (error / sigma[:, None, None, None]).square().mean().item()


def real(numbers) -> dict:
    """What the 297 test scans give in place of samples, by the number of images trained on."""
    train, test = (data.digits(split)[0] for split in ("train", "test"))
    near = {str(n): round(_median(test, train[:n]), 5) for n in numbers}
    return {"nearest_trained": near, "copies": {str(n): round(copies(test, train[:n]), 5) for n in numbers}}


def described(rows, given, seconds):
    """The rows with all that a reader must know of them."""
    net = UNet(**NET)
    one = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    return {
        "name": "memorisation",
        "question": "On how many images does a network copy, and from how many on does it make new ones?",
        "command": f"python -m companion.bench memorisation --images {' '.join(map(str, given.images))} "
        f"--steps {given.steps} --seed {given.seed}",
        "protocol": {
            "data": f"{_digits.PROTOCOL['data']}; the first n of those to train on, without their classes",
            "schedule": _digits.PROTOCOL["schedule"],
            "net": {"class": "UNet", "arguments": NET},
            "parameters": count.parameters(net),
            "flops": count.flops(net, *one),
            "training": _digits.described(given.steps, RATE),
            "loss": f"mean squared error of v at {297 * _digits.DRAWS:,} questions, the same times and noises for all",
            "samples": f"{SAMPLES} by {WALK} evaluations of DDIM, x0 clamped to [-1, 1]",
            "distance": "Euclidean, over the 64 pixels in [-1, 1]",
        },
        "quantities": QUANTITIES,
        "real": real(given.images),
        "rows": rows,
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per number of images."""
    names = [name for name in QUANTITIES if name != "seconds"]
    width = max(map(len, names)) + 1
    lines = [f"{'images':>7}" + "".join(f"{name:>{width}}" for name in names)]
    for row in result["rows"]:
        lines.append(f"{row['images']:7}" + "".join(f"{row[name]:{width}.4g}" for name in names))
    return "\n".join(lines)
