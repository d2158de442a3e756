"""The flow of 32×32 digits made straighter: reflow of ``mnist_flow`` (ten minutes on one CPU core, likewise).

Noise is carried to the end of its path by a sampler of higher order, and training goes on from the flow's weights on
these pairs, each noise with its own end and class (Liu et al. 2023). No digit of MNIST is seen again: what the flow
does wrong is kept. A better flow, and more pairs, need a GPU:

    python -m companion.train mnist_reflow --width 40 --patch 1 --pairs 100000 --walk 50 --steps 20000 --batch 256
"""

import time

import torch

from companion import couplings, gpu, samplers, zoo
from companion.losses import flow_matching_loss
from companion.recipes.mnist import BATCH, conditional, finish, fit, read, working_in
from companion.recipes.mnist_flow import MODEL
from companion.schedules import linspace


def main(arguments):
    """Make the pairs, train, measure, and write ``mnist_reflow.safetensors`` with its card and a picture of samples."""
    options = conditional("mnist_reflow", __doc__, 1200)
    options.add_argument("--pairs", type=int, default=8000, help="of noise and image, of every class as many")
    options.add_argument("--walk", type=int, default=12, help="steps of unipc from the noise to the image")
    given = read(options, arguments)
    flow, began = zoo.load("mnist_flow", device=gpu.device()), time.perf_counter()
    images, noise, labels = (None, None, None) if given.from_weights else pairs(flow, given)
    spent = time.perf_counter() - began
    model, seconds = fit(MODEL, given, images, labels, first=flow.net, noise=noise, loss=flow_matching_loss)
    finish(
        model,
        given,
        options,
        MODEL,
        seconds,
        "Flow of 32×32 handwritten digits made straighter, conditional on the class",
        data=f"{given.pairs:,} pairs of noise and image made by mnist_flow in {given.walk} steps of unipc, of every "
        "class as many; that model's data: MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0)",
        seconds_for_pairs=round(spent),
    )


def pairs(flow, given):
    """(images, noise, classes): where the flow carries each noise, classes in turn."""
    noise = torch.randn(given.pairs, 1, 32, 32, generator=torch.Generator().manual_seed(given.seed + 3))
    noise, labels = noise.to(gpu.device()), torch.arange(given.pairs, device=gpu.device()) % 10
    if given.compile:
        flow.net.compile(dynamic=False)
    ts = linspace(flow.schedule, given.walk)
    with working_in(given):
        made = couplings.reflow(
            flow, flow.schedule, noise, ts, cond=labels, sampler=samplers.unipc, batch=min(BATCH, given.pairs)
        )
    return made, noise, labels
