"""Diffusion models, derived and executed: the code that every chapter of *Reversing the Noise* calls.

Submodules load on first use, so that ``import companion`` costs torch and numpy and nothing else.
"""

import importlib
import platform

import numpy
import torch

__version__ = "0.1.0"

_MODULES = (
    "autoencoding couplings data denoisers drag exercises explore figures fokker_planck forward gpu latent likelihood "
    "losses metrics nets predictions processes samplers scenes schedules toy times training verify zoo"
).split()


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"companion.{name}")
    raise AttributeError(f"module 'companion' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULES])


def about() -> str:
    """One line with the versions in use and the device on which the chapters run."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return (
        f"companion {__version__} · Python {platform.python_version()} · torch {torch.__version__.split('+')[0]} · "
        f"numpy {numpy.__version__} · {where}"
    )
