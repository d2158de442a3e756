"""The ODE's likelihood beside the bound: one trained model, the same test images, bits per dimension.

``companion/weights/mnist_likelihood`` was trained on the bound. Its bound is compared with the log-likelihood along its
probability-flow ODE (Song et al. 2021, appendix D.2), of images made continuous in two ways: by uniform noise in each
level's bin, and by the chain's own noise at the cleanest time. In the second the ODE stands exactly where the bound has
its diffusion and prior, and the rest of the two is the same.
"""

import argparse
import math
import time

import torch

from companion import bench, data, zoo
from companion.bench._stored import provenance, write
from companion.forward import q_sample
from companion.likelihood import dequantize, ode_log_likelihood
from companion.losses import bits_per_dim, continuous_elbo, elbo
from companion.schedules import linspace

MODEL, CHAIN, PART = "mnist_likelihood", 1000, 25

QUANTITIES = {
    "uniform": "-log2 p along the ODE of images with uniform noise in each level's bin, bits per pixel",
    "own_noise": "the same with the chain's noise at t_min: the ODE for the bound's prior and diffusion, plus the "
    "bound's reconstruction",
    "bound": f"the bound of {CHAIN:,} steps",
    "endless": "the bound in continuous time",
}


def main(arguments):
    """Measure, print the table, and write ``likelihood.json``."""
    options = argparse.ArgumentParser(prog="companion.bench likelihood", description=__doc__)
    options.add_argument("--images", type=int, default=100, help="the first so many test images")
    options.add_argument("--steps", type=int, default=32, help="of the Runge-Kutta method of order 4")
    options.add_argument("--probes", type=int, default=2)
    options.add_argument("--draws", type=int, default=40, help="times per image at which the bounds are taken")
    options.add_argument("--few", type=int, default=25, help="images on which the number of steps is varied")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began = time.perf_counter()
    model = zoo.load(MODEL)
    split = "sample" if given.images <= 100 else "test"
    images = data.mnist(split, size=28)[0][: given.images]
    torch.manual_seed(0)
    found = measured(model, images, given.steps, given.probes, given.draws)
    steps = varied(model, images[: given.few], given.steps, given.probes)
    result = described(found, steps, given, split, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def bits(nats, width=1.0):
    """Of nats per 28×28 image."""
    return bits_per_dim(nats.double(), 784, bin_width=width)


def own_noise(model, images):
    """Noisy images at t_min, and −log q of their noise in nats."""
    t = torch.tensor(model.schedule.t_min, dtype=torch.float64)
    eps = torch.randn_like(images)
    each = eps.double() ** 2 / 2 + model.schedule.sigma(t).log() + 0.5 * math.log(2 * math.pi)
    return q_sample(images, t, model.schedule, eps), each.flatten(1).sum(1)


def measured(model, images, steps, probes, draws):
    """Every quantity of every image, and the standard errors of the ODE's two over probes."""
    rows, options = [], {"method": "rk4", "steps": steps, "probes": probes}
    ends = {"most": model.schedule.most, "least": model.schedule.least}
    for part in images.split(PART):
        chain = elbo(model, part, ts=linspace(model.schedule, CHAIN), bins=256, steps=draws)
        endless = continuous_elbo(model, part, **ends, bins=256, steps=draws)
        uniform = ode_log_likelihood(model, model.schedule, dequantize(part), **options)
        noisy, surprise = own_noise(model, part)
        own = ode_log_likelihood(model, model.schedule, noisy, **options)
        rows.append(
            {
                "uniform": bits(-uniform.log_prob, 2 / 255),
                "uniform_probes": uniform.standard_error / (784 * math.log(2)),
                "own_noise": bits(-own.log_prob - surprise + chain.reconstruction),
                "own_noise_probes": own.standard_error / (784 * math.log(2)),
                "bound": bits(chain.total),
                "endless": bits(endless.total),
                "reconstruction": bits(chain.reconstruction),
            }
        )
        print(f"{sum(len(row['bound']) for row in rows)} images", flush=True)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def varied(model, images, steps, probes):
    """The ODE's part of ``own_noise`` of the same points and probes, by half, once and twice as many steps."""
    torch.manual_seed(1)
    (points, surprise), found = own_noise(model, images), {}
    for count in (max(1, steps // 2), steps, 2 * steps):
        torch.manual_seed(2)
        at = ode_log_likelihood(model, model.schedule, points, method="rk4", steps=count, probes=probes)
        error = bits(at.standard_error.square().sum().sqrt()) / len(images)
        found[str(count)] = {
            "mean": round(bits(-at.log_prob - surprise).mean().item(), 4),
            "standard error over probes": round(error.item(), 4),
        }
        print(f"{count} steps", flush=True)
    return found


def described(found, steps, given, split, seconds):
    """The figures with all that a reader must know of them."""
    count = len(found["bound"])

    def summary(values):
        error = values.std().item() / math.sqrt(count) if count > 1 else 0.0
        return {"mean": round(values.mean().item(), 4), "standard error over images": round(error, 4)}

    means = {name: summary(found[name]) for name in (*QUANTITIES, "reconstruction")}
    for name in ("uniform", "own_noise"):
        means[name]["standard error over probes, of one image"] = round(
            found[f"{name}_probes"].square().mean().sqrt().item(), 4
        )
        means[f"{name} less bound"] = summary(found[name] - found["bound"])
    return {
        "name": "likelihood",
        "question": "How far is the likelihood along the probability-flow ODE from the bound of the same network?",
        "command": f"python -m companion.bench likelihood --images {given.images} --steps {given.steps} "
        f"--probes {given.probes} --draws {given.draws} --few {given.few}",
        "protocol": {
            "model": f"{MODEL}, as shipped",
            "data": f"MNIST, the first {count} test images ({split}), 28×28, 256 levels",
            "ode": f"{given.steps} steps of the Runge-Kutta method of order 4, uniform in log(1 + alpha/sigma), from "
            f"t_min to t_max, prior N(0, sigma²); {given.probes} Rademacher probes per image",
            "bound": f"{given.draws} random steps or times per image",
            "steps": f"the ODE's part of own_noise, mean of the first {min(count, given.few)} images, same points "
            "and probes",
        },
        "quantities": QUANTITIES,
        "means": means,
        "steps": steps,
        "runs": {name: [round(v, 5) for v in values.tolist()] for name, values in found.items()},
        **provenance(seconds),
    }


def table(result: dict) -> str:
    """A row per quantity with its standard error over images, then the mean for each number of steps."""
    lines = [
        f"{name:22} {row['mean']:8.4f} ± {row['standard error over images']:6.4f}"
        for name, row in result["means"].items()
    ]
    for count, row in result["steps"].items():
        lines.append(f"{'by ' + count + ' steps':22} {row['mean']:8.4f} ± {row['standard error over probes']:6.4f}")
    return "\n".join(lines)
