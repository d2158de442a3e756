"""The forward process: q(x_t | x_0), q(x_s | x_t, x_0), and the stochastic differential equation behind both."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check


def q_sample(x0: Float[Tensor, "batch *data"], t, schedule, noise=None) -> Float[Tensor, "batch *data"]:
    """Draw x_t = alpha(t) x0 + sigma(t) eps, in one step from the data (Ho et al. 2020, eq. 4).

    t has shape () or (batch,); ``noise`` is eps, of x0's shape, drawn when not given. Raises TypeError for a dtype
    that is not floating point and ValueError for shapes that do not fit.
    """
    check.floating("x0", x0)
    check.time(t, x0)
    noise = torch.randn_like(x0) if noise is None else noise
    check.same_shape("x0", x0, "noise", noise)
    return check.like(schedule.alpha(t), x0) * x0 + check.like(schedule.sigma(t), x0) * noise


class Gaussian(NamedTuple):
    """A Gaussian with independent coordinates: ``mean`` of the data's shape, ``variance`` that broadcasts to it."""

    mean: Tensor
    variance: Tensor


def q_posterior(x0: Float[Tensor, "batch *data"], x: Float[Tensor, "batch *data"], s, t, schedule) -> Gaussian:
    """q(x_s | x_t = x, x_0) for any s < t: mean and variance (Ho et al. 2020, eqs. 6–7, for any two times).

    s and t have shape () or (batch,). Raises ValueError unless s < t, or for shapes that differ.
    """
    check.same_shape("x0", x0, "x", x)
    check.time(s, x0)
    check.time(t, x0)
    if not (s < t).all():
        raise ValueError(f"s must be below t; got s = {s.flatten()[0].item():g}, t = {t.flatten()[0].item():g}")
    alpha_s, sigma_s, alpha_t, sigma_t = (
        check.like(c, x0) for c in (schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t))
    )
    step = alpha_t / alpha_s  # x_t = step x_s + noise of variance `added`
    added = sigma_t**2 - step**2 * sigma_s**2
    mean = (step * sigma_s**2 * x + alpha_s * added * x0) / sigma_t**2
    return Gaussian(mean, added * sigma_s**2 / sigma_t**2)


class Coefficients(NamedTuple):
    """Of dx = drift x dt + diffusion dw, each of t's shape."""

    drift: Tensor
    diffusion: Tensor


def sde_coefficients(t: Float[Tensor, "*time"], schedule) -> Coefficients:
    """The linear SDE whose marginals are alpha x0 + sigma eps: drift f and diffusion g (Song et al. 2021, eq. 5).

    f = alpha'/alpha and g² = 2 sigma sigma' − 2 f sigma², so dx = f x dt + g dw. Not finite where alpha = 0, nor at
    t = 0 of schedules on which sigma starts like a square root. Raises TypeError unless t is a floating-point tensor.
    """
    check.floating("t", t)
    sigma = schedule.sigma(t)
    drift = schedule.alpha_rate(t) / schedule.alpha(t)
    return Coefficients(drift, (2 * sigma * schedule.sigma_rate(t) - 2 * drift * sigma**2).clamp(min=0).sqrt())
