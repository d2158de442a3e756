"""From nothing to a class-conditional model of MNIST in a minute of training on one large GPU.

    python -m companion.train mnist_minute

First some dozens of steps are taken, timed and undone: they compile, record and tell how many steps the seconds hold.
That many are then trained, so that the learning rate reaches zero as the time is over. On a CPU a smaller network:

    python -m companion.train mnist_minute --width 32 --patch 2 --batch 64

Data, network, measurement and card are those of ``mnist``.
"""

import argparse
import math
import statistics
import time

import torch
from tqdm.auto import trange

from companion import data, gpu, recipes, zoo
from companion.gpu import WARM_UP, compile_train_step
from companion.processes import world
from companion.recipes import mnist
from companion.recipes.mnist import IMAGES, MODEL
from companion.times import logit_normal
from companion.training import EMA

TURNS, TIMED = 5, 10  # turns of so many steps, after those that compile and record
MARGIN = 0.97  # of the steps that the seconds would hold: a GPU slows down as it warms

# What differs from ``mnist``, tried on a CPU one after the other: width 16, patches of 2, 2,400 steps of batch 64, one
# seed; the Fréchet distance of 2,000 samples over that of real images. ``mnist``'s own way comes to 7.8.
# A tenth of the classes is left out as there: guidance needs it.
AVERAGED = 0.04  # of the steps: 7.4; the usual average reaches back over 0.11 of them, when the rate was still high
RATE = 2e-3  # with twice the rate of ``mnist``: 4.8; it falls to zero, and so can begin high
TIMES = logit_normal(0.0, 1.0)  # most times in the middle, where it is decided what the digit is: 3.3
WARMED = 0.05  # the share of the steps in which the rate rises


def main(arguments):
    """Train for so many seconds, measure, and write ``mnist_minute.safetensors``, its card and a picture."""
    options = parser()
    given = read(options, arguments)
    images, labels = (part[:IMAGES] for part in data.mnist("train"))
    model, took = fit(given, images, labels)
    words = (
        f"Denoiser of 32×32 handwritten digits, trained for {round(took['seconds'])} seconds, conditional on the class"
    )
    mnist.finish(model, given, options, MODEL, took["seconds"], words, took=took)


def parser():
    """The options; half precision and the compiler are there by default where a GPU is."""
    options = mnist.measured(mnist.sizes(recipes.options("mnist_minute", __doc__, None), width=40, patch=1))
    on_gpu = gpu.device().type == "cuda"
    options.add_argument(
        "--seconds", type=float, default=60.0, help="of training; what it takes to make ready is apart"
    )
    options.add_argument("--batch", type=int, default=512)
    options.add_argument("--lr", type=float, default=RATE)
    for name, words in (("bf16", "the network works in bfloat16"), ("compile", "compile the step, made ready apart")):
        options.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=on_gpu, help=words)
    options.add_argument("--remark", help="what the card should add about the training")
    return options


def read(options, arguments):
    """The options given; refused where there is nothing to train."""
    given = mnist.parsed(options, arguments)
    for name in ("seconds", "batch", "lr", "steps"):
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            options.error(f"--{name} must be a finite number above 0; got {value}")
    if world() > 1:
        options.error("a minute is for one process: others would count other steps")
    return given


def fit(given, images, labels):
    """The averaged model, rounded as it will be stored, and for the card what the training took.

    Sets ``given.steps`` to what the seconds hold, where none were given.
    """
    torch.manual_seed(given.seed)
    model, began = zoo.build(mnist.sized(MODEL, given)).to(gpu.device()).train(), time.perf_counter()
    ema = EMA(model)
    about = {"batch": given.batch, "seed": given.seed, "autocast": torch.bfloat16 if given.bf16 else None}
    step = compile_train_step(model, images, cond=labels, ema=ema, times=TIMES, compile=given.compile, **about)
    each = rehearse(step, ema)
    given.steps = given.steps or max(1, int(MARGIN * given.seconds / each))
    ema.decay = 1 - 1 / max(1.0, AVERAGED * given.steps)
    ready, began = time.perf_counter() - began, time.perf_counter()
    train(step, given)
    seconds = time.perf_counter() - began
    seen = given.steps * given.batch
    took = {
        "seconds": round(seconds, 2),
        "seconds to make ready": round(ready, 1),
        "images": seen,
        "images per second": round(seen / seconds),
    }
    return recipes.rounded(ema.model), took


def rehearse(step, ema):
    """How long a step takes; afterwards all is as if none had been taken.

    At a learning rate of zero no weight moves, and so no average. The optimiser's state is all zeros at first, and
    goes back to that in place: a recorded step reads it where it lies.
    """
    first = step.generator.get_state()
    for _ in range(WARM_UP + 1):  # the last one records
        loss, _ = step(0.0)
    loss.item()  # waits for the device
    taken = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(TIMED):
            loss, _ = step(0.0)
        loss.item()
        taken.append((time.perf_counter() - began) / TIMED)
    for state in step.optimizer.state.values():
        for value in state.values():
            value.zero_()
    step.generator.set_state(first)
    ema.updates = 0
    return statistics.median(taken)


def train(step, given):
    """All the steps; the last one's loss is waited for. Raises RuntimeError when a loss is not finite."""
    for number in trange(1, given.steps + 1, desc="training", unit="step", mininterval=0.5):
        loss, _ = step(given.lr * risen_and_fallen(number, given.steps))
        if (number % 100 == 0 or number == given.steps) and not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()} at step {number}: a lower --lr than {given.lr} may help")


def risen_and_fallen(number, steps):
    """The share of the learning rate at a step, from 1: up along a line, down along a cosine that ends at zero."""
    return min(1.0, number / max(1.0, WARMED * steps)) * 0.5 * (1 + math.cos(math.pi * (number - 1) / steps))
