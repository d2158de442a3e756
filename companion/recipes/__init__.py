"""Recipes of the shipped weights: plain Python files, each with a ``main(arguments)``; here is what they share."""

import argparse
import platform

import torch

from companion import gpu, zoo


def options(name: str, text: str, steps: int, *, folder=zoo.FOLDER) -> argparse.ArgumentParser:
    """A parser of what every recipe takes: steps, seed, and where the model goes under which name."""
    found = argparse.ArgumentParser(
        prog=f"companion.train {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--steps", type=int, default=steps)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--name", default=name)
    found.add_argument("--out", type=zoo.Path, default=folder)
    return found


def provenance(given: argparse.Namespace, device: torch.device) -> dict:
    """What every card says of a training: seed, steps, hardware, versions, licence."""
    return {
        "seed": given.seed,
        "steps": given.steps,
        "hardware": gpu.describe(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "licence": "MIT",
    }
