"""A prediction kind is a pair (p, q): the network is trained to output p x0 + q eps.

Together with x = alpha x0 + sigma eps this is a 2×2 linear system, so any kind gives x0 and eps by one solve. Its
determinant, alpha q − sigma p, says at which times the kind cannot.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check

KINDS = ("x0", "eps", "score", "v", "velocity")


def target_coefficients(kind: str, schedule, t: Float[Tensor, "*time"]) -> tuple[Tensor, Tensor]:
    """(p, q) of a kind at time t, each of t's shape.

    x0 = (1, 0), eps = (0, 1), score = (0, −1/sigma), v = (−sigma, alpha) (Salimans & Ho 2022, appendix D),
    velocity = (d alpha/dt, d sigma/dt) (Lipman et al. 2023). Raises ValueError for an unknown kind.
    """
    check.one_of("kind", kind, KINDS)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    if kind == "x0":
        return one, zero
    if kind == "eps":
        return zero, one
    if kind == "score":
        return zero, -1 / schedule.sigma(t)
    if kind == "v":
        return -schedule.sigma(t), schedule.alpha(t)
    return schedule.alpha_rate(t), schedule.sigma_rate(t)


def make_target(kind: str, x0: Float[Tensor, "batch *data"], eps: Float[Tensor, "batch *data"], schedule, t):
    """The network's target p x0 + q eps, of the data's shape; t has shape () or (batch,).

    Raises ValueError for an unknown kind or shapes that differ.
    """
    check.same_shape("x0", x0, "eps", eps)
    check.time(t, x0)
    p, q = (check.like(c, x0) for c in target_coefficients(kind, schedule, t))
    return p * x0 + q * eps


def to_x0_eps(
    kind: str, output: Float[Tensor, "batch *data"], x: Float[Tensor, "batch *data"], schedule, t
) -> tuple[Tensor, Tensor]:
    """(x0, eps) that a network's output of the given kind implies at x; t has shape () or (batch,).

    Solves p x0 + q eps = output, alpha x0 + sigma eps = x. Raises ValueError for an unknown kind, shapes that differ,
    and, when t is on the CPU, a time at which the kind's determinant is zero or not finite: eps and score where
    alpha = 0, x0 and score where sigma = 0.
    """
    check.same_shape("output", output, "x", x)
    check.time(t, x)
    p, q = target_coefficients(kind, schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    determinant = alpha * q - sigma * p
    if determinant.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere a check would wait
        singular = ~torch.isfinite(determinant) | (determinant == 0)
        if singular.any():
            at, a, s = (v[singular].flatten()[0].item() for v in (t, alpha, sigma))
            raise ValueError(
                f"kind {kind!r} does not determine x0 and eps at t = {at:g}, where alpha = {a:.3g} and "
                f"sigma = {s:.3g}: use another kind or another end of the grid"
            )
    x0 = check.like(q / determinant, x) * x - check.like(sigma / determinant, x) * output
    eps = check.like(alpha / determinant, x) * output - check.like(p / determinant, x) * x
    return x0, eps
