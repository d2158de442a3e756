"""Recipes of the shipped weights: plain Python files, each with a ``main(arguments)``; here is what they share."""

import argparse
import copy
import platform
import time

import torch

from companion import gpu, processes, zoo
from companion.processes import world
from companion.training import EMA, train


def options(name: str, text: str, steps: int | None, *, folder=zoo.FOLDER) -> argparse.ArgumentParser:
    """A parser of what every recipe takes: steps, seed, and where the model goes under which name."""
    found = argparse.ArgumentParser(
        prog=f"companion.train {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--steps", type=int, default=steps)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--name", default=name)
    found.add_argument("--out", type=zoo.Path, default=folder)
    return found


def denoising(name: str, text: str, steps: int) -> argparse.ArgumentParser:
    """A parser of what ``averaged`` takes besides."""
    found = options(name, text, steps)
    found.add_argument("--batch", type=int, default=64)
    found.add_argument("--lr", type=float, default=1e-3)
    found.add_argument("--bf16", action="store_true", help="the network works in bfloat16")
    found.add_argument("--compile", action="store_true", help="compile the network: minutes, and a C++ compiler")
    found.add_argument("--checkpoint", type=zoo.Path)
    found.add_argument("--shard", action="store_true", help="no process holds all weights; the checkpoint is a folder")
    found.add_argument("--metrics", type=zoo.Path, help="append a line of JSON here every hundred steps")
    found.add_argument("--remark", help="what the card should add about the training")
    return found


def command(parser: argparse.ArgumentParser, given: argparse.Namespace, *names: str) -> str:
    """The command to type: each of the options ``names`` that is not as it is by default."""
    words = [f"python -m {parser.prog}"]
    for name in (*names, "seed"):
        value = getattr(given, name)
        words += [f"--{name} {value}"] if value != parser.get_default(name) else []
    return " ".join(words + [f"--{name}" for name in ("bf16", "compile") if getattr(given, name, False)])


def averaged(model, given: argparse.Namespace, x0, *, watch=None, **how) -> tuple:
    """(model, seconds): its average over training, rounded as it will be stored, and how long training took.

    ``watch(progress, average)`` is called after every step; ``how`` goes on to ``train``.
    """
    whole = copy.deepcopy(model).eval().requires_grad_(False) if given.shard else None
    ema, began = EMA(model, decay=0.999), time.perf_counter()
    if given.compile:
        for net in (model.net, ema.model.net):
            net.compile(dynamic=False)
    loop = train(
        model,
        x0,
        steps=given.steps,
        batch=given.batch,
        lr=given.lr,
        ema=ema,
        seed=given.seed,
        autocast=torch.bfloat16 if given.bf16 else None,
        graph=given.compile and world() == 1,
        shard=given.shard,
        checkpoint=given.checkpoint,
        metrics=given.metrics,
        **how,
    )
    for progress in loop:
        if watch is not None:
            watch(progress, ema.model)
    average = ema.model if whole is None else processes.gather(ema.model, into=whole)
    return rounded(average), time.perf_counter() - began


@torch.no_grad()
def rounded(model):
    """The model, its weights in place brought to what half precision holds of them."""
    for p in model.parameters():
        p.copy_(p.half())
    return model


def reading(net, loss, steps: int, rate: float):
    """Train a network that reads: AdamW on ``loss()``, its rate up to ``rate`` in a tenth of the steps, then to 0."""
    from tqdm.auto import trange

    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in trange(steps, desc="training", unit="step", mininterval=0.5):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        cycle.step()


def provenance(given: argparse.Namespace, device: torch.device) -> dict:
    """What every card says of a training: seed, steps, hardware, versions, licence."""
    return {
        "seed": given.seed,
        "steps": given.steps,
        "hardware": gpu.describe(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "licence": "MIT",
    }
