"""What a network is trained on: a weighting times the squared error of its target."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.forward import q_sample
from companion.predictions import make_target


def simple_loss(denoiser, x0: Float[Tensor, "batch *data"], t: Float[Tensor, "batch"], noise=None, cond=None) -> Tensor:
    """The mean squared error of the network's output against its target at the given times, unweighted; a scalar.

    ``denoiser`` is a ``Denoiser``: it knows the schedule and the prediction kind. ``noise`` is eps, drawn when not
    given. With kind "eps" this is Ho et al. 2020, eq. 14.
    """
    noise = torch.randn_like(x0) if noise is None else noise
    x = q_sample(x0, t, denoiser.schedule, noise)
    target = make_target(denoiser.kind, x0, noise, denoiser.schedule, t)
    return (denoiser.output(x, t, cond) - target).square().mean()
