"""28×28 digits of MNIST, no classes, trained for likelihood (forty minutes on one CPU core).

The log-SNR falls in a straight line and the loss is the plain one of eps, so that it is the continuous bound up to a
factor (Kingma et al. 2021, eq. 17). The pixels are the 784 of the original images, whose bound can be compared with
published ones; the first layer also sees sines of them, as the last bits decide. A GPU has time for more:

    python -m companion.train mnist_likelihood --steps 40000 --batch 256 --width 40 --patch 1 --bf16 --compile
"""

import torch

from companion import data, gpu
from companion.losses import bits_per_dim, continuous_elbo, elbo
from companion.processes import rank
from companion.recipes.mnist import fit, parser, read, working_in, write
from companion.schedules import linspace
from companion.training import sample_grid

MODEL = {
    "net": {
        "class": "UNet",
        "arguments": {"channels": 1, "width": 32, "multipliers": [1, 2], "patch": 2, "fourier": [6, 7]},
    },
    "schedule": {"class": "LinearLogSNR", "arguments": {"most": 13.3, "least": -5.0}},
    "kind": "eps",
}
STEPS = 1000  # of the chain whose bound is measured
EVALUATIONS = 200  # of the network for a sample of the picture
BATCH = 250
ENDS = (12.0, 12.5, 13.0, 13.3)  # log-SNRs at which the diffusion may stop; the training images choose


def main(arguments):
    """Train, measure, and write ``mnist_likelihood.safetensors`` with its card and a picture of samples."""
    options = parser("mnist_likelihood", __doc__, 8500)
    options.add_argument("--images", type=int, default=10000, help="test images to measure, 2 to 10,000")
    options.add_argument("--draws", type=int, default=8, help="random steps of the chain per image")
    given = read(options, arguments)
    if not (2 <= given.images <= 10000 and given.draws > 0):
        options.error(f"--images must lie between 2 and 10000, --draws above 0; got {given.images}, {given.draws}")

    images, _ = data.mnist("train", size=28)
    model, seconds = fit(MODEL, given, images)
    if rank():
        return
    with working_in(given):
        ts, picture = linspace(model.schedule, EVALUATIONS), given.out / f"{given.name}.webp"
        sample_grid(model, picture, shape=(64, 1, 28, 28), ts=ts, seed=given.seed, columns=8)
    test, _ = data.mnist("test", size=28)
    sets = {"test images": test[: given.images], "training images": images[: min(2000, given.images)]}
    torch.manual_seed(given.seed + 1)
    best = min(ENDS, key=lambda most: endless(model, sets["training images"][:500], given.draws, most).mean())
    write(
        model,
        given,
        options,
        MODEL,
        {
            "description": "Denoiser of 28×28 handwritten digits, not conditional, trained for likelihood.",
            "data": "MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0), 60,000 for training, at 28×28",
            "seconds": round(seconds),
            "grid": f"Sixty-four samples in rows of eight, {EVALUATIONS} evaluations each by DDIM.",
            "metrics": {f"{len(x):,} {name}": measure(model, x, given.draws, best) for name, x in sets.items()},
        },
    )


def endless(model, images, draws, most):
    """The bound in continuous time down to a log-SNR, in bits per dimension of each image."""
    ends = {"most": most, "least": model.schedule.least}
    parts = images.to(gpu.device()).split(BATCH)
    found = [continuous_elbo(model, x, **ends, bins=256, steps=draws).total for x in parts]
    return bits_per_dim(torch.cat(found).double(), images[0].numel())


def measure(model, images, draws, best):
    """The bound of 8-bit images in bits per dimension, term by term, in float32."""
    ts, parts = linspace(model.schedule, STEPS), images.to(gpu.device()).split(BATCH)
    found = zip(*(elbo(model, x, ts=ts, bins=256, steps=draws) for x in parts), strict=True)
    reconstruction, prior, diffusion = (bits_per_dim(torch.cat(term).double(), images[0].numel()) for term in found)
    total, whole = reconstruction + prior + diffusion, endless(model, images, draws, model.schedule.most)
    early = whole if best == model.schedule.most else endless(model, images, draws, best)
    words = f"{STEPS:,} steps ({draws} drawn at random per image)"
    return {
        f"bound in bits per dimension, {words}": round(total.mean().item(), 4),
        "standard error of it, over images": round((total.std() / len(total) ** 0.5).item(), 4),
        "reconstruction": round(reconstruction.mean().item(), 4),
        "prior": round(prior.mean().item(), 4),
        "diffusion": round(diffusion.mean().item(), 4),
        "bound in continuous time": round(whole.mean().item(), 4),
        f"bound in continuous time that stops at log-SNR {best}, as training images chose": round(
            early.mean().item(), 4
        ),
    }
