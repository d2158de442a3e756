"""What the measurements on 8×8 digits share: how a network is trained, its loss on images it has not seen, its samples.

All are of kind v on the cosine schedule, as the shipped ``digits`` is.
"""

import torch

from companion import data, gpu, metrics
from companion.denoisers import Clipped, Denoiser
from companion.losses import simple_loss
from companion.samplers import sample, start
from companion.schedules import CosineVP, linspace
from companion.training import EMA, train

SCHEDULE = CosineVP(0.008)
BATCH, DECAY, WALK, DRAWS = 64, 0.995, 25, 16

PROTOCOL = {
    "data": "scikit-learn's digits, 8×8, 17 grey levels: 1,500 scans to train on, 297 to test",
    "schedule": "cosine with s = 0.008; the network predicts v",
    "loss": f"mean squared error of v on the 297 test scans, {DRAWS} times and noises for each, the same for every "
    "network; the times are one of each of as many equal strata of [0, 1]",
    "samples": f"594 by {WALK} evaluations of DDIM, of the classes of the test scans, x0 clamped to [-1, 1]",
    "distance": "sliced Wasserstein of order 2, 256 directions, to the 1,500 training scans: the mean over two parts "
    "of 297 samples, since fewer images lie further away",
}


def described(steps, rate):
    """A training in words."""
    return (
        f"{steps:,} steps, batch {BATCH}, AdamW, rate {rate} warmed up over 100 steps and brought to 0 along a "
        f"cosine; average of the weights with decay {DECAY}"
    )


def trained(net, images, labels, *, steps, rate, seed) -> Denoiser:
    """The averaged model after training; ``labels`` may be None."""
    model = Denoiser(net, SCHEDULE, "v").to(gpu.device())
    ema = EMA(model, decay=DECAY)
    for _ in train(model, images, cond=labels, steps=steps, batch=BATCH, lr=rate, ema=ema, seed=seed, progress=False):
        pass
    return ema.model


def questions(images, labels, draws=DRAWS):
    """Images, times, noises and classes at which losses are compared: ``draws`` of each image, always the same."""
    generator = torch.Generator().manual_seed(0)
    count = draws * len(images)
    shuffled = torch.randperm(count, generator=generator)
    times = (shuffled + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    noise = torch.randn(count, *images.shape[1:], generator=generator)
    asked = images.repeat(draws, 1, 1, 1), times.float(), noise, None if labels is None else labels.repeat(draws)
    return tuple(None if part is None else part.to(gpu.device()) for part in asked)


@torch.no_grad()
def loss(model, asked) -> float:
    """The mean squared error of v at these questions."""
    x0, t, noise, labels = asked
    parts = torch.arange(len(x0), device=x0.device).split(1024)
    each = [
        simple_loss(model, x0[i], t[i], noise[i], None if labels is None else labels[i], per_sample=True) for i in parts
    ]
    return torch.cat(each).mean().item()


def samples(model, labels, count, seed, walk=WALK):
    """So many samples by DDIM; ``labels``, one for each or None."""
    torch.manual_seed(1000 + seed)
    ts = linspace(SCHEDULE, walk)
    x = start(SCHEDULE, ts, (count, 1, 8, 8)).to(gpu.device())
    labels = None if labels is None else labels.to(x.device)
    with torch.no_grad():
        return sample(Clipped(lambda x, t: model(x, t, labels)), SCHEDULE, x, ts).cpu()


def distance(images) -> float:
    """Sliced Wasserstein distance to the training scans, along the same directions at every call."""
    known, draw = data.digits("train")[0].flatten(1), torch.Generator().manual_seed(0)
    return metrics.sliced_wasserstein(images.flatten(1), known, generator=draw).item()


def measured(model, seed) -> dict:
    """The loss on the test scans, and how far samples lie from the training scans."""
    images, labels = data.digits("test")
    drawn = samples(model, labels.repeat(2), 2 * len(labels), seed)
    apart = sum(distance(part) for part in drawn.split(len(labels))) / 2
    return {"loss": round(loss(model, questions(images, labels)), 5), "sliced_wasserstein": round(apart, 5)}


def reference() -> dict:
    """What the test scans give in place of samples."""
    return {"297 test scans": {"sliced_wasserstein": round(distance(data.digits("test")[0]), 5)}}
