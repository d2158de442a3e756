"""U-Net against transformer at equal cost: 8×8 digits, three sizes of each, FLOPs of an evaluation matched.

Same images, batches, steps and noise for all. The learning rate is chosen for each family beforehand, at its smallest
size, by the loss on training scans set aside.
"""

import argparse
import json
import time

import torch

from companion import bench, data, gpu, nets, zoo
from companion.bench import _digits
from companion.bench._stored import provenance, write
from companion.nets import count

MODELS = [
    ("U-Net", "S", {"width": 16}),
    ("U-Net", "M", {"width": 24}),
    ("U-Net", "L", {"width": 32}),
    ("DiT", "S", {"width": 68, "depth": 4, "heads": 2}),
    ("DiT", "M", {"width": 84, "depth": 6, "heads": 3}),
    ("DiT", "L", {"width": 96, "depth": 8, "heads": 3}),
]
CLASSES = {"U-Net": nets.UNet, "DiT": nets.DiT}
COMMON = {"U-Net": {"multipliers": [1, 2]}, "DiT": {"size": 8, "patch": 2}}
RATES = (0.004, 0.008, 0.016, 0.032)
ASIDE = 300  # training scans by which the rate is chosen

QUANTITIES = {
    "loss": "mean squared error of v on the test scans; lower is better",
    "sliced_wasserstein": "of samples to the training scans; lower is better",
    "flops": "of one evaluation of one image; a multiplication with its addition is two",
    "seconds": "training and measurement",
}


def main(arguments):
    """Choose the rates, train and measure every model for every seed, print the table, write the result."""
    options = argparse.ArgumentParser(prog="companion.bench architectures", description=__doc__)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--steps", type=int, default=500)
    options.add_argument("--tune", type=int, default=500, help="steps for each rate that is tried")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began = time.perf_counter()
    tried = {family: tuned(family, given.tune) for family in CLASSES}
    print(json.dumps(tried), flush=True)
    models = [fresh(*which, given.steps) for which in MODELS]
    for seed in range(given.seeds):
        for model in models:
            once(model, best(tried[model["family"]]), seed, given.steps)
            print(json.dumps({name: model[name] for name in ("family", "size", *list(model)[-3:])}), flush=True)
        result = described(models, tried, given, time.perf_counter() - began)  # a run cut short leaves whole seeds
        write(result, given.out)
    print(table(result))


def build(family, arguments):
    """An untrained network."""
    return CLASSES[family](channels=1, classes=10, **COMMON[family], **arguments)


def fresh(family, size, arguments, steps):
    """A model's row before it is trained."""
    net = build(family, arguments)
    one = torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    row = {"family": family, "size": size, "arguments": {**COMMON[family], **arguments}}
    row |= {"parameters": count.parameters(net), "flops": count.flops(net, *one), "steps": steps}
    return row | {"loss": [], "sliced_wasserstein": [], "seconds": []}


def tuned(family, steps):
    """The loss on training scans set aside, by rate, of the family's smallest model."""
    images, labels = data.digits("train")
    arguments = next(arguments for name, _, arguments in MODELS if name == family)
    asked, found = _digits.questions(images[-ASIDE:], labels[-ASIDE:]), {}
    for rate in RATES:
        torch.manual_seed(0)
        known = {"steps": steps, "rate": rate, "seed": 0}
        model = _digits.trained(build(family, arguments), images[:-ASIDE], labels[:-ASIDE], **known)
        found[str(rate)] = round(_digits.loss(model, asked), 5)
    return found


def best(tried):
    """The rate with the least loss."""
    return float(min(tried, key=tried.get))


def once(model, rate, seed, steps):
    """Train and measure one model, and add what is found to its row."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    arguments = {name: value for name, value in model["arguments"].items() if name not in COMMON[model["family"]]}
    net = build(model["family"], arguments)
    found = _digits.measured(_digits.trained(net, *data.digits("train"), steps=steps, rate=rate, seed=seed), seed)
    for name, value in (found | {"seconds": round(time.perf_counter() - began, 1)}).items():
        model[name].append(value)


def described(models, tried, given, seconds):
    """The rows with all that a reader must know of them."""
    return {
        "name": "architectures",
        "question": "At equal cost, which predicts digits better: a U-Net or a transformer?",
        "command": f"python -m companion.bench architectures --seeds {len(models[0]['loss'])} --steps {given.steps} "
        f"--tune {given.tune}",
        "protocol": {
            **_digits.PROTOCOL,
            "training": _digits.described(given.steps, {family: best(rates) for family, rates in tried.items()}),
            "rates": f"the best of {', '.join(map(str, RATES))} for the smallest model of each family: {given.tune} "
            f"steps on 1,200 training scans, judged by the loss on the other {ASIDE}",
        },
        "quantities": QUANTITIES,
        "reference": _digits.reference(),
        "rates": tried,
        "models": models,
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per model: cost, and each quantity's mean over the seeds and range."""
    lines = [f"{'family':6} {'size':4} {'parameters':>10} {'MFLOP':>7} {'loss':>26} {'sliced Wasserstein':>26}"]
    for row in result["models"]:
        cells = [spread(row[name]) for name in ("loss", "sliced_wasserstein")]
        head = f"{row['family']:6} {row['size']:4} {row['parameters']:10,} {row['flops'] / 1e6:7.2f}"
        lines.append(f"{head} {cells[0]:>26} {cells[1]:>26}")
    return "\n".join(lines)


def spread(values) -> str:
    """Mean and range over the seeds."""
    return f"{sum(values) / len(values):.4f} ({min(values):.4f} … {max(values):.4f})"
