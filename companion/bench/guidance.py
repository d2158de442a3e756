"""What guidance does to the shipped MNIST model: class, quality, diversity, saturation over the scale, and mends.

``mnist`` is asked for each class in turn at every scale; ``mnist_classifier``, which knows none of its training images,
reads and measures the samples. At large scales each mend of the chapter stands beside what it mends. All rows of a
seed start from the same noise. With more time, in float32 (an hour on a GPU):

    python -m companion.bench guidance --seeds 3 --samples 10000 --steps 50 --mended 5 8
"""

import argparse
import contextlib
import json
import time

import torch

from companion import bench, data, gpu, metrics, samplers, zoo
from companion.bench._real import rows_of_others
from companion.bench._stored import provenance, write
from companion.denoisers import ClassifierGuided, Clipped, Guided, Thresholded
from companion.schedules import linspace

MODEL, READER, CLASSIFIER = "mnist", "mnist_classifier", "mnist_noisy_classifier"
BATCH, KNOWN = 100, 10000  # samples drawn at a time, of every class as many; images that the samples are compared with
SCALES = (0.0, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
INTERVAL = (0.2, 0.8)  # log-SNRs from 2.2 to -2.3
FAR = 0.1  # a pixel this far outside is no rounding of black or white

MENDS = {
    "clipped": lambda model, classifier, label, scale: Clipped(Guided(model, label, scale)),
    "thresholded": lambda model, classifier, label, scale: Thresholded(Guided(model, label, scale)),
    "rescale 0.7": lambda model, classifier, label, scale: Guided(model, label, scale, rescale=0.7),
    "interval": lambda model, classifier, label, scale: Guided(model, label, scale, interval=INTERVAL),
    "clipped inside guidance": lambda model, classifier, label, scale: Guided(
        Clipped(model), label, scale, null=model.net.classes
    ),
    "classifier guidance": lambda model, classifier, label, scale: ClassifierGuided(model, classifier, label, scale),
}
QUANTITIES = {
    "accuracy": f"share of the samples that {READER} takes for the class asked for",
    "precision": "share of the samples that lie among as many training images, k = 3",
    "recall": "share of as many training images that lie among the samples, k = 3",
    "frechet": f"Fréchet distance of the features to those of training images 0 to {KNOWN:,}",
    "outside": "share of the pixels of x0_hat, as the sampler sees it, outside [-1, 1]: mean over the steps",
    "far_outside": f"the same, outside [-{1 + FAR:g}, {1 + FAR:g}]",
    "end_far_outside": f"share of the pixels of the samples outside [-{1 + FAR:g}, {1 + FAR:g}]",
}


def main(arguments):
    """Measure, print the table, and write ``guidance.json``."""
    options = argparse.ArgumentParser(prog="companion.bench guidance", description=__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--samples", type=int, default=500, help=f"per seed and row, a multiple of {BATCH}")
    options.add_argument("--steps", type=int, default=20, help="of dpmpp_2m, two evaluations of the network each")
    options.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    options.add_argument("--mended", type=float, nargs="*", default=[5.0], help="scales of the mends")
    options.add_argument("--classifier", type=float, nargs="*", default=[1.0], help="more scales of its guidance")
    options.add_argument("--bf16", action="store_true", help="the network works in bfloat16")
    options.add_argument("--compile", action="store_true", help="compile the network: a minute, and a C++ compiler")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    if given.samples % BATCH or not 0 < given.samples <= KNOWN:
        options.error(f"--samples must be a multiple of {BATCH}, and at most {KNOWN}; got {given.samples}")

    began = time.perf_counter()
    device = gpu.device()
    model, reader, classifier = (zoo.load(name, device=device) for name in (MODEL, READER, CLASSIFIER))
    if given.compile:
        model.net.compile(dynamic=False)
    label = torch.arange(BATCH, device=device) % 10
    known, real = reference(reader, given)

    def row(start, denoise):
        found = []
        for seed in range(given.seeds):
            found.append(once(denoise, model.schedule, reader, known, label, seed, given))
        print(json.dumps(whole := start | {key: [one[key] for one in found] for key in found[0]}), flush=True)
        return whole

    rows = [row({"scale": scale}, Guided(model, label, scale)) for scale in given.scales]
    mends = [
        row({"name": name, "scale": scale}, MENDS[name](model, classifier, label, scale)) for name, scale in plan(given)
    ]
    result = described(rows, mends, real, given, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def plan(given):
    """(mend, scale) of every further row."""
    yield from (("classifier guidance", scale) for scale in given.classifier)
    yield from ((name, scale) for scale in given.mended for name in MENDS)


@torch.no_grad()
def features(reader, images):
    """The reader's features of images clamped to the data's range, as a picture would be."""
    device = gpu.device()
    return torch.cat([reader.features(part.to(device).float().clamp(-1, 1)) for part in images.split(500)])


def compared(known, mine):
    """Fréchet distance, precision and recall of a set of features."""
    precision, recall = metrics.precision_recall(known[: len(mine)], mine)
    distance = metrics.frechet_distance(mine, known).item()
    return {"precision": round(precision, 4), "recall": round(recall, 4), "frechet": round(distance, 4)}


def reference(reader, given):
    """The features of the known images, and what sets of other real images give, each as large as a seed's."""
    images, labels = data.mnist("train")
    known, found = features(reader, images[:KNOWN]), []
    for rows in rows_of_others(labels, KNOWN, given.samples):
        mine = features(reader, images[rows])
        found.append({"accuracy": accuracy(reader, mine, labels[rows].to(mine.device)), **compared(known, mine)})
    return known, {key: [one[key] for one in found] for key in found[0]}


def accuracy(reader, mine, label):
    """How often the reader's answer is the label."""
    return round((reader.decide(mine).argmax(1) == label).double().mean().item(), 4)


@torch.no_grad()
def once(denoise, schedule, reader, known, label, seed, given):
    """All figures of one seed."""
    draw, device = torch.Generator().manual_seed(seed), gpu.device()
    ts, ends, outside = linspace(schedule, given.steps), [], []
    fast = torch.autocast(device.type, dtype=torch.bfloat16) if given.bf16 else contextlib.nullcontext()
    for _ in range(given.samples // BATCH):
        x = samplers.start(schedule, ts, (BATCH, 1, 32, 32), generator=draw).to(device)
        with fast:
            for state in samplers.dpmpp_2m(denoise, schedule, x, ts):
                outside.append([beyond(state.x0, 0.0), beyond(state.x0, FAR)])
        ends.append(state.x)
    ends = torch.cat(ends)
    mine = features(reader, ends)
    strict, far = torch.tensor(outside).mean(0).tolist()
    return {
        "accuracy": accuracy(reader, mine, label.repeat(given.samples // BATCH)),
        **compared(known, mine),
        "outside": round(strict, 4),
        "far_outside": round(far, 4),
        "end_far_outside": round(beyond(ends, FAR).item(), 4),
    }


def beyond(x, margin):
    """The share of the pixels outside [-1, 1] by more than the margin."""
    return (x.abs() > 1 + margin).double().mean()


def described(rows, mends, real, given, seconds):
    """The rows with all that a reader must know of them."""
    flags, usual = "", {"scales": list(SCALES), "mended": [5.0], "classifier": [1.0]}
    for key, values in usual.items():
        if getattr(given, key) != values:
            flags += " ".join([f" --{key}", *(f"{scale:g}" for scale in getattr(given, key))])
    flags += "".join(f" --{key}" for key in ("bf16", "compile") if getattr(given, key))
    return {
        "name": "guidance",
        "question": "What does a larger guidance scale gain, what does it cost, and what mends the cost?",
        "command": f"python -m companion.bench guidance --seeds {given.seeds} --samples {given.samples} "
        f"--steps {given.steps}{flags}",
        "protocol": {
            "model": f"{MODEL} as shipped; scale 0 is unconditional, 1 conditional",
            "classifier": f"{CLASSIFIER} as shipped, beside {MODEL} without a class",
            "samples": f"{given.samples} per seed and row, classes in turn; the same starting noise in every row; "
            "samples clamped to [-1, 1] before they are read",
            "sampler": f"{given.steps} steps of dpmpp_2m, uniform in time, from t_max to t_min",
            "features": f"the 64 of {READER}",
            "real": f"{len(real['accuracy'])} sets of as many training images from {KNOWN:,} on, classes in turn",
            "mends": f"thresholded: quantile 0.995; interval: t from {INTERVAL[0]:g} to {INTERVAL[1]:g}; clipped "
            "inside guidance: the wrong order",
            "network": "bfloat16" if given.bf16 else "float32",
        },
        "quantities": QUANTITIES,
        "real": real,
        "rows": rows,
        "mends": mends,
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per scale, then per mend: the means over seeds."""
    keys = list(QUANTITIES)
    lines = [f"{'':24} {'scale':>5} " + " ".join(f"{key[:9]:>9}" for key in keys)]
    for row in (*result["rows"], *result["mends"], {"name": "as many real images", **result["real"]}):
        means = [f"{sum(row[key]) / len(row[key]):9.4f}" if key in row else " " * 9 for key in keys]
        scale = f"{row['scale']:5g}" if "scale" in row else " " * 5
        lines.append(f"{row.get('name', ''):24} {scale} " + " ".join(means).rstrip())
    return "\n".join(lines)
