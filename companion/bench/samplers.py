"""How few evaluations are enough: every sampler on the shipped MNIST model, and on a distribution with an exact score.

Two denoisers of 32×32 digits on one schedule. ``mnist`` is the shipped network, asked for each class in turn; its
samples are compared with real images. ``mixture`` is the exact denoiser of the image mixture fitted to those images;
its samples are compared with draws from the mixture, so that nothing is wrong there but the steps. Samples of one seed
start from the same noise for all samplers. With more time, and in float32:

    python -m companion.bench samplers --seeds 5 --samples 10000 --evaluations 5 10 20 50 100 250 1000
"""

import argparse
import contextlib
import itertools
import json
import time

import torch

from companion import bench, data, gpu, metrics, samplers, schedules, toy, zoo
from companion.bench._real import SETS, rows_of_others
from companion.bench._stored import provenance, write

MODEL, READER, BATCH, KNOWN = "mnist", "mnist_classifier", 100, 10000
METHODS = {
    "ddim": (samplers.ddim, {}),
    "heun": (samplers.heun, {}),
    "plms": (samplers.plms, {}),
    "dpm_solver_2s": (samplers.dpm_solver_2s, {}),
    "dpm_solver_3s": (samplers.dpm_solver_3s, {}),
    "dpmpp_2m": (samplers.dpmpp_2m, {}),
    "dpm_solver_3m": (samplers.dpm_solver_3m, {}),
    "unipc": (samplers.unipc, {}),
    "dpmpp_2m_sde": (samplers.dpmpp_2m_sde, {}),
    "edm, churn 40": (samplers.edm, {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}),
    "ancestral": (samplers.ancestral, {}),
    "ancestral, larger variance": (samplers.ancestral, {"variance": "forward"}),
}
STOCHASTIC = ("dpmpp_2m_sde", "edm, churn 40", "ancestral", "ancestral, larger variance")
GRIDS = {"linspace": schedules.linspace, "uniform_log_snr": schedules.uniform_log_snr, "karras": schedules.karras}
ON_ALL_GRIDS = ("ddim", "heun", "dpmpp_2m")  # the others on the first and the last
FINE = 300  # steps that stand for infinitely many
FEW = 20  # evaluations, up to which grids other than the first are walked
LONG = {"ddim": (250,), "ancestral": (100, 1000)}

QUANTITIES = {
    "frechet": "Fréchet distance of the reader's features to those of the reference; lower is better",
    "precision": "share of the samples that lie among the reference, k = 3",
    "recall": "share of the reference that lies among the samples, k = 3, of as many reference images as samples",
    "accuracy": "share of the samples that the reader takes for the class asked for; of the mixture nothing is asked",
    "path_error": "root mean square distance per pixel to the end of the ODE from the same noise, deterministic "
    f"samplers only; the end is that of {FINE} steps of dpm_solver_3m on a grid uniform in log-SNR",
}


def main(arguments):
    """Measure, print the table, and write ``samplers.json``."""
    options = argparse.ArgumentParser(prog="companion.bench samplers", description=__doc__)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--samples", type=int, default=400, help="per seed and row, of the network")
    options.add_argument("--draws", type=int, default=1000, help="the same of the mixture, which costs far less")
    options.add_argument("--paths", type=int, default=32, help="samples on which path errors are measured")
    options.add_argument("--evaluations", type=int, nargs="+", default=[5, 10, 20, 50])
    options.add_argument("--models", nargs="+", default=["mixture", "mnist"], choices=["mnist", "mixture"])
    options.add_argument("--long", action=argparse.BooleanOptionalAction, default=True, help="rows of up to 1,000")
    options.add_argument("--bf16", action="store_true", help="the network works in bfloat16; path errors do not")
    options.add_argument("--compile", action="store_true", help="compile the network: a minute, and a C++ compiler")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began, rows, known, budget = time.perf_counter(), [], {}, None
    for name in given.models:
        model = Subject(name, given)
        known[name] = model.reference()
        for method, grid, evaluations in plan(given):
            rows.append(model.row(method, grid, evaluations))
            print(json.dumps(rows[-1]), flush=True)
        if name == "mixture":
            budget = prior_error(model)
        result = described(rows, known, given, time.perf_counter() - began, budget)
        write(result, given.out)
    print(table(result))


def plan(given):
    """(method, grid, evaluations) of every row."""
    for method, grid in itertools.product(METHODS, GRIDS):
        if grid == "uniform_log_snr" and method not in ON_ALL_GRIDS:
            continue
        for evaluations in given.evaluations:
            if grid == "linspace" or evaluations <= FEW:
                yield method, grid, evaluations
        if given.long and grid == "linspace":
            for evaluations in LONG.get(method, ()):
                yield method, grid, evaluations


def calls(method, schedule, ts) -> int:
    """How many evaluations a walk costs, counted on a point."""
    sampler, options = METHODS[method]
    count = 0

    def denoise(x, t):
        nonlocal count
        count += 1
        return torch.zeros_like(x)

    samplers.sample(denoise, schedule, torch.zeros(1, 1), ts, sampler=sampler, **options)
    return count


def grid_for(method, grid, evaluations, schedule):
    """The longest grid of its kind that costs no more than so many evaluations (or the shortest there is)."""
    steps = evaluations
    while steps > 2 and calls(method, schedule, GRIDS[grid](schedule, steps)) > evaluations:
        steps -= max(1, steps // 50)
    return GRIDS[grid](schedule, steps)


class Subject:
    """One of the two denoisers, its reference images and its starting noise."""

    def __init__(self, name, given):
        self.name, self.given, self.device = name, given, gpu.device()
        self.count = given.samples if name == "mnist" else given.draws
        self.reader = zoo.load(READER, device=self.device)
        self.network = zoo.load(MODEL, device=self.device)
        self.schedule = self.network.schedule
        if name == "mixture":
            self.mixture = toy.ImageMixture.load()
            self.network = self.mixture.denoiser(self.schedule)
        elif given.compile:
            self.network.net.compile(dynamic=False)
        self.labels = torch.arange(BATCH, device=self.device) % 10
        self.ends = {}

    def denoise(self, x, t):
        """x0_hat; of the network, for each class in turn."""
        return self.network(x, t, self.labels[: len(x)]) if self.name == "mnist" else self.network(x, t)

    def noise(self, seed, count):
        """The starting noise of a seed; standard normal, to be scaled by the grid's first sigma."""
        return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def walk(self, method, ts, z):
        """Where a batch ends; fresh noise comes from torch's default generator."""
        sampler, options = METHODS[method]
        first = self.schedule.sigma(ts[:1]).item()
        return samplers.sample(self.denoise, self.schedule, first * z, ts, sampler=sampler, **options)

    def working_in(self):
        """The context in which the network works in the type asked for."""
        fast = self.given.bf16 and self.name == "mnist"
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if fast else contextlib.nullcontext()

    def features(self, images):
        """The reader's features of images clamped to the data's range."""
        with torch.no_grad():
            parts = [self.reader.features(part.to(self.device).float().clamp(-1, 1)) for part in images.split(500)]
        return torch.cat(parts)

    def reference(self):
        """Features to compare with, and what as many independent images of the same kind give, set by set."""
        n = self.count
        if self.name == "mnist":
            images, labels = data.mnist("train")
            known, others = images[:KNOWN], [images[rows] for rows in rows_of_others(labels, KNOWN, n)]
        else:
            draw = torch.Generator().manual_seed(99)
            known = self.mixture.sample(KNOWN, generator=draw).float()
            others = [self.mixture.sample(n, generator=draw).float() for _ in range(SETS)]
        self.known = self.features(known)
        found = [self.compared(self.features(other)) for other in others]
        return {key: [row[key] for row in found] for key in found[0]}

    def compared(self, features):
        """Fréchet distance, precision and recall of the features of one seed."""
        precision, recall = metrics.precision_recall(self.known[: len(features)], features)
        distance = metrics.frechet_distance(features, self.known).item()
        return {"frechet": round(distance, 4), "precision": round(precision, 4), "recall": round(recall, 4)}

    def row(self, method, grid, evaluations):
        """All seeds of one sampler on one grid."""
        ts = grid_for(method, grid, evaluations, self.schedule)
        row = {
            "model": self.name,
            "sampler": method,
            "grid": grid,
            "steps": len(ts) - 1,
            "evaluations": calls(method, self.schedule, ts),
        }
        began, found = time.perf_counter(), []
        for seed in range(self.given.seeds):
            torch.manual_seed(1000 + seed)
            with self.working_in(), torch.no_grad():
                drawn = torch.cat([self.walk(method, ts, z) for z in self.noise(seed, self.count).split(BATCH)])
            features = self.features(drawn)
            one = self.compared(features)
            if self.name == "mnist":
                asked = torch.arange(len(drawn), device=self.device) % BATCH % 10
                right = self.reader.decide(features).argmax(1) == asked
                one["accuracy"] = round(right.double().mean().item(), 4)
            found.append(one)
        row |= {key: [one[key] for one in found] for key in found[0]}
        if method not in STOCHASTIC and evaluations <= 100:
            row["path_error"] = self.path_error(method, ts)
        return row | {"seconds": round(time.perf_counter() - began, 1)}

    def path_error(self, method, ts):
        """RMS distance per pixel to the ODE's end, from the same noise at the same first node, in float32 at least."""
        z = self.noise(77, self.given.paths)
        dtype = torch.float64 if self.name == "mixture" else torch.float32
        first = ts[0].item()
        with torch.no_grad():
            if first not in self.ends:
                fine = schedules.uniform_log_snr(self.schedule, FINE, t_start=first)
                fine = torch.cat([ts[:1], fine[1:]]) if first == fine[0] else torch.cat([ts[:1], fine])
                self.ends[first] = self.far(samplers.dpm_solver_3m, {}, fine, z.to(dtype))
            sampler, options = METHODS[method]
            end = self.far(sampler, options, ts, z.to(dtype))
        return round((end - self.ends[first]).square().mean().sqrt().item(), 6)

    def far(self, sampler, options, ts, z):
        x = self.schedule.sigma(ts[:1]).item() * z
        return samplers.sample(self.denoise, self.schedule, x, ts, sampler=sampler, **options)


def prior_error(subject) -> dict:
    """Fréchet distances of the mixture's ODE, started from pure noise and from the exact law of x_T.

    On the linear table of 1,000 steps, where alpha does not end at zero; 60 steps of dpmpp_2m.
    """
    schedule, given, found = schedules.DiscreteVP.linear(), subject.given, {"pure noise": [], "exact law": []}
    ts, denoise = schedules.uniform_log_snr(schedule, 60), subject.mixture.denoiser(schedule)
    alpha, sigma = schedule.alpha(ts[:1]).item(), schedule.sigma(ts[:1]).item()
    for seed in range(given.seeds):
        draw = torch.Generator().manual_seed(500 + seed)
        starts = {
            "pure noise": sigma * torch.randn(subject.count, 1, 32, 32, generator=draw),
            "exact law": subject.mixture.sample(subject.count, alpha=alpha, sigma=sigma, generator=draw).float(),
        }
        for name, x in starts.items():
            parts = [samplers.sample(denoise, schedule, v, ts, sampler=samplers.dpmpp_2m) for v in x.split(BATCH)]
            found[name].append(subject.compared(subject.features(torch.cat(parts)))["frechet"])
    return found


def described(rows, known, given, seconds, budget=None):
    """The rows with all that a reader must know of them."""
    flags = "".join(f" --{key}" for key in ("bf16", "compile") if getattr(given, key))
    flags += "" if given.long else " --no-long"
    return {
        "name": "samplers",
        "question": "How few evaluations are enough, for which sampler, and which error is left?",
        "command": f"python -m companion.bench samplers --seeds {given.seeds} --samples {given.samples} "
        f"--draws {given.draws} --paths {given.paths} --evaluations {' '.join(map(str, given.evaluations))}"
        + (f" --models {' '.join(given.models)}" if len(given.models) == 1 else "")
        + flags,
        "protocol": {
            "mnist": f"{MODEL} as shipped, no guidance, classes in turn, against the training images 0 to {KNOWN:,}",
            "mixture": f"the exact denoiser of the image mixture, on the same schedule, against {KNOWN:,} of its draws",
            "samples": f"{given.samples} of the network and {given.draws} of the mixture per seed and row; the "
            "same starting noise for all samplers; no clamping of x0 on the way, samples clamped to [-1, 1] before "
            "they are read",
            "features": f"the 64 of {READER}",
            "real": f"ten sets of as many images: of the network, training images from {KNOWN:,} on, classes in turn",
            "steps": "as many as cost no more evaluations than asked for; evaluations are counted",
            "network": "bfloat16 for samples, float32 for path errors" if given.bf16 else "float32",
        },
        "quantities": QUANTITIES,
        "real": known,
        "rows": rows,
        "budget": {"prior, linear table": budget} if budget else {},
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per model, sampler, grid and number of evaluations: the means over seeds."""
    lines = [f"{'':8} {'':27} {'':16} {'calls':>5} {'Fréchet':>8} {'precis.':>8} {'recall':>8} {'path':>9}"]
    for row in result["rows"]:
        means = [sum(row[key]) / len(row[key]) for key in ("frechet", "precision", "recall")]
        path = f"{row['path_error']:9.5f}" if "path_error" in row else ""
        lines.append(
            f"{row['model']:8} {row['sampler']:27} {row['grid']:16} {row['evaluations']:5d} "
            + " ".join(f"{mean:8.3f}" for mean in means)
            + " "
            + path
        )
    for name, known in result["real"].items():
        means = [sum(known[key]) / len(known[key]) for key in ("frechet", "precision", "recall")]
        lines.append(f"{name:8} {'as many independent images':50} " + " ".join(f"{mean:8.3f}" for mean in means))
    return "\n".join(lines)
