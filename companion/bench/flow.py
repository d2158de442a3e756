"""Flow, diffusion, reflow: quality against evaluations at equal training, and how straight their paths are.

Three networks of 32×32 digits, asked for each class in turn. ``mnist_flow`` and ``mnist_diffusion`` differ in path and
kind alone: the same network, images, batches, times, noise and steps. ``mnist_reflow`` went on from the flow, on pairs
that the flow made. Beside them the exact denoiser of the image mixture on the diffusion's schedule and on the straight
path: one ODE in two coordinates, where nothing is wrong but the steps. With more time, and in float32:

    python -m companion.train mnist --name mnist_diffusion --steps 2500 --bf16 --compile
    python -m companion.bench flow --seeds 5 --samples 10000 --paths 500 --evaluations 1 2 3 5 10 25 50 100 250
"""

import argparse
import json
import time

import torch

from companion import bench, couplings, gpu, samplers, schedules, toy, zoo
from companion.bench import samplers as quality
from companion.bench._stored import provenance, write
from companion.denoisers import reschedule

WEIGHTS = {"diffusion": "mnist_diffusion", "flow": "mnist_flow", "reflow": "mnist_reflow"}
EXACT = {"exact, cosine": schedules.CosineVP(0.008), "exact, straight": schedules.RectifiedFlow()}
# this one does not ship: it is there to compare with
TRAINED = {"mnist_diffusion": "python -m companion.train mnist --name mnist_diffusion --steps 2500 --bf16 --compile"}
METHODS = ("ddim", "dpmpp_2m")  # on the straight path the first is Euler's method; one evaluation a step
STRAIGHT = schedules.RectifiedFlow()
FINE = 50  # steps of dpmpp_2m along which paths are followed

QUANTITIES = {
    "frechet": quality.QUANTITIES["frechet"],
    "precision": quality.QUANTITIES["precision"],
    "recall": quality.QUANTITIES["recall"],
    "accuracy": "share of the samples that the reader takes for the class asked for; of the mixture nothing is asked",
    "path_error": quality.QUANTITIES["path_error"],
    "straightness": "how far paths are from straight lines at even speed, which have 0: the integral over time of "
    "||dx/dt + x0 − noise||², over ||x0 − noise||², the mean over paths of each; "
    f"{FINE} steps of dpmpp_2m, the diffusion asked in the straight path's coordinates",
    "transport_cost": "mean of ||x0 − noise||² / 1,024 over noises and the ends of their paths",
    "cost_of_strangers": "the same with each noise given another one's end of the same class (of any, for the "
    "mixture): the same ends, coupled independently",
}


def main(arguments):
    """Measure, print the table, and write ``flow.json``."""
    options = argparse.ArgumentParser(prog="companion.bench flow", description=__doc__)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--samples", type=int, default=500, help="per seed and row, of the networks")
    options.add_argument("--draws", type=int, default=500, help="the same of the mixture")
    options.add_argument(
        "--paths", type=int, default=100, help="paths whose errors, straightness and cost are measured"
    )
    options.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 5, 10, 25, 50])
    options.add_argument("--models", nargs="+", default=[*EXACT, *WEIGHTS], choices=[*EXACT, *WEIGHTS])
    options.add_argument("--bf16", action="store_true", help="the networks work in bfloat16; path errors do not")
    options.add_argument("--compile", action="store_true", help="compile the networks: a minute, and a C++ compiler")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)
    if missing := {WEIGHTS[name] for name in given.models if name in WEIGHTS} - set(zoo.names()):
        options.error(f"train {', '.join(sorted(missing))} first: {TRAINED['mnist_diffusion']}")

    began, rows, paths, real, known = time.perf_counter(), [], [], {}, {}
    for name in given.models:
        model = Runner(name, given)
        if model.name in known:
            model.known = known[model.name]
        else:
            real[model.name], known[model.name] = model.reference(), model.known
        for method in METHODS:
            for evaluations in given.evaluations:
                if method == "ddim" or evaluations > 2:  # at both ends of the grid the second order is the first
                    rows.append(model.row(method, "linspace", evaluations))
                    print(json.dumps(rows[-1]), flush=True)
        paths.append(model.followed())
        print(json.dumps(paths[-1]), flush=True)
        result = described(rows, paths, real, given, time.perf_counter() - began)
        write(result, given.out)
    print(table(result))


class Runner(quality.Subject):
    """One of the five: samples, references and rows as the measurement ``samplers`` has them."""

    def __init__(self, model, given):
        self.model, self.device, self.ends = model, gpu.device(), {}
        self.name = "mixture" if model in EXACT else "mnist"
        paths = given.draws if model in EXACT else given.paths
        self.given = argparse.Namespace(**{**vars(given), "paths": paths})
        self.reader = zoo.load(quality.READER, device=self.device)
        self.labels = torch.arange(max(quality.BATCH, paths), device=self.device) % 10
        if model in EXACT:
            self.mixture, self.schedule, self.count = toy.ImageMixture.load(), EXACT[model], given.draws
            self.network = self.mixture.denoiser(self.schedule)
        else:
            self.network, self.count = zoo.load(WEIGHTS[model], device=self.device), given.samples
            self.schedule = self.network.schedule
            if given.compile:
                self.network.net.compile(dynamic=False)

    def row(self, method, grid, evaluations):
        """All seeds of one sampler."""
        row = super().row(method, grid, evaluations)
        return {**row, "model": self.model}

    def followed(self):
        """Straightness and cost of the paths from one noise, and how far the next noise's end would have been."""
        denoise = self.denoise
        if not isinstance(self.schedule, schedules.RectifiedFlow):
            denoise = reschedule(self.denoise, self.schedule, STRAIGHT)
        z, ts = self.noise(77, self.given.paths), schedules.linspace(STRAIGHT, FINE)
        z = z.double() if self.name == "mixture" else z
        began = time.perf_counter()
        with torch.no_grad():
            states = torch.stack([z, *(state.x for state in samplers.dpmpp_2m(denoise, STRAIGHT, z, ts))])
        ends, pixels = states[-1], z[0].numel()
        bent, cost = couplings.straightness(states, ts), couplings.transport_cost(ends, z)
        others = torch.arange(len(z), device=z.device).roll(-10 if len(z) > 10 else 1)
        strangers = couplings.transport_cost(ends[others], z)
        ratio = bent / cost.mean() - bent.mean() * cost / cost.mean() ** 2  # its mean is 0, its spread the ratio's
        return {
            "model": self.model,
            "straightness": round((bent.mean() / cost.mean()).item(), 6),
            "straightness_error": round((ratio.std() / len(z) ** 0.5).item(), 6),
            "transport_cost": round(cost.mean().item() / pixels, 5),
            "cost_of_strangers": round(strangers.mean().item() / pixels, 5),
            "cost_saved_error": round(((strangers - cost).std() / len(z) ** 0.5).item() / pixels, 5),
            "seconds": round(time.perf_counter() - began, 1),
        }


def described(rows, paths, real, given, seconds):
    """The rows with all that a reader must know of them."""
    models = given.models if given.models != [*EXACT, *WEIGHTS] else []
    command = f"python -m companion.bench flow --seeds {given.seeds} --samples {given.samples} --draws {given.draws} "
    command += f"--paths {given.paths} --evaluations {' '.join(map(str, given.evaluations))}"
    command += f" --models {' '.join(map(repr, models))}" if models else ""
    command += "".join(f" --{key}" for key in ("bf16", "compile") if getattr(given, key))
    trained = {name: zoo.card(WEIGHTS[name]) for name in given.models if name in WEIGHTS}
    return {
        "name": "flow",
        "question": "At equal training, does a flow need fewer evaluations than a diffusion model, and does reflow?",
        "command": command,
        "protocol": {
            "networks": "no guidance, classes in turn, against the training images 0 to 10,000; "
            + "; ".join(f"{name} is {card['name']}, {card['steps']:,} steps" for name, card in trained.items()),
            "mixture": "the exact denoiser of the image mixture on both schedules, against 10,000 of its draws",
            "samples": f"{given.samples} of the networks and {given.draws} of the mixture per seed and row; the same "
            "starting noise for all; no clamping of x0 on the way, samples clamped to [-1, 1] before they are read",
            "paths": f"{given.paths} of the networks, {given.draws} of the mixture",
            "grid": "equal steps of time, each of one evaluation; dpmpp_2m is of first order in the first and the "
            "last step, so that it is left out at one and two evaluations, where it is ddim",
            "features": f"the 64 of {quality.READER}",
            "real": "ten sets of as many images: of the networks, training images from 10,000 on, classes in turn",
            "network": "bfloat16 for samples, float32 for paths" if given.bf16 else "float32",
        },
        "cards": {
            name: {
                key: card[key] for key in ("name", "steps", "seed", "batch", "data", "hardware", "model", "parameters")
            }
            for name, card in trained.items()
        },
        "quantities": QUANTITIES,
        "real": real,
        "rows": rows,
        "paths": paths,
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per model, sampler and number of evaluations, the means over seeds; then one per model's paths."""
    lines = [f"{'':16} {'':9} {'calls':>5} {'Fréchet':>8} {'precis.':>8} {'recall':>8} {'class':>8} {'path':>9}"]
    for row in result["rows"]:
        keys = ("frechet", "precision", "recall", "accuracy")
        means = [f"{sum(row[key]) / len(row[key]):8.3f}" if key in row else 8 * " " for key in keys]
        path = f"{row['path_error']:9.5f}"
        lines.append(f"{row['model']:16} {row['sampler']:9} {row['evaluations']:5d} " + " ".join([*means, path]))
    for name, known in result["real"].items():
        means = [sum(known[key]) / len(known[key]) for key in ("frechet", "precision", "recall")]
        lines.append(f"{name:8} {'as many others':23} " + " ".join(f"{mean:8.3f}" for mean in means))
    for row in result["paths"]:
        lines.append(
            f"{row['model']:16} straightness {row['straightness']:.4f} ± {row['straightness_error']:.4f}, "
            f"cost {row['transport_cost']:.4f}, of strangers {row['cost_of_strangers']:.4f}"
        )
    return "\n".join(lines)
