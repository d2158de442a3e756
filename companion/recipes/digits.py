"""8×8 digits, conditional on the class: the model of chapter 01 (about eleven minutes on two CPU cores)."""

import time

import torch

from companion import data, gpu, metrics, recipes, zoo
from companion.denoisers import Clipped
from companion.processes import rank
from companion.samplers import ancestral, ddim, sample, start
from companion.schedules import linspace
from companion.training import EMA, sample_grid, train

MODEL = {
    "net": {
        "class": "UNet",
        "arguments": {"channels": 1, "width": 32, "multipliers": [1, 2], "classes": 10, "dropout": 0.1},
    },
    "schedule": {"class": "CosineVP", "arguments": {"s": 0.008}},
    "kind": "v",
}
GRID = "A hundred samples, ten of each class, zeros at the top; 50 evaluations by DDIM, no guidance."


def main(arguments):
    """Train, measure, and write ``digits.safetensors`` with its card."""
    options = recipes.options("digits", __doc__, 3000)
    options.add_argument("--checkpoint", type=zoo.Path)
    given = options.parse_args(arguments)

    device = gpu.device()
    torch.manual_seed(given.seed)
    images, labels = data.digits("train")
    model = zoo.build(MODEL).to(device)
    ema = EMA(model, decay=0.999)
    began = time.perf_counter()
    loop = train(model, images, cond=labels, steps=given.steps, ema=ema, seed=given.seed, checkpoint=given.checkpoint)
    for _ in loop:
        pass
    seconds = time.perf_counter() - began
    if rank():  # of several processes one writes
        return
    zoo.save(
        given.name,
        ema.model.net,
        {
            "description": "Denoiser of 8×8 scans of handwritten digits, conditional on the class (10 = none given).",
            "model": MODEL,
            "recipe": " ".join(["python -m companion.train digits", *arguments]),
            "data": "scikit-learn's digits (UCI Optical Recognition of Handwritten Digits), 1,500 for training",
            **recipes.provenance(given, device),
            "batch": 128,
            "seconds": round(seconds),
            "grid": GRID,
            "metrics": measure(ema.model.to("cpu"), given.seed),
        },
        given.out,
    )
    picture(ema.model, given.out / f"{given.name}.webp", given.seed)


def picture(model, path, seed):
    """The samples that ``GRID`` describes."""
    ts, rows = linspace(model.schedule, 50), torch.arange(100) // 10
    return sample_grid(model, path, shape=(100, 1, 8, 8), ts=ts, seed=seed, cond=rows, columns=10)


def measure(model, seed):
    """How good samples are, each figure beside what as many real test images give."""
    from sklearn.svm import SVC

    real, real_labels = data.digits("train")
    reader = SVC(gamma=0.05).fit(real.flatten(1), real_labels)

    def figures(images, labels):
        flat, draw = images.flatten(1), torch.Generator().manual_seed(0)
        return {
            "class accuracy, read by a support vector machine": round(float(reader.score(flat, labels)), 4),
            "sliced Wasserstein distance to the training images": round(
                metrics.sliced_wasserstein(flat, real.flatten(1), generator=draw).item(), 4
            ),
            "median distance to the nearest training image": round(
                torch.cdist(flat, real.flatten(1)).min(1).values.median().item(), 3
            ),
        }

    found = {"297 real test images": figures(*data.digits("test"))}
    labels, ts = data.digits("test")[1], linspace(model.schedule, 50)  # as many, of the same classes
    model.cond = labels
    for sampler in (ddim, ancestral):
        torch.manual_seed(seed + 1)
        x = start(model.schedule, ts, (len(labels), 1, 8, 8))
        drawn = sample(Clipped(model), model.schedule, x, ts, sampler=sampler)
        found[f"297 samples, {sampler.__name__}, 50 evaluations"] = figures(drawn, labels)
    model.cond = None
    return found
