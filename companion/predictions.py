"""A prediction kind is a pair (p, q): the network is trained to output p x0 + q eps.

Together with x = alpha x0 + sigma eps this is a 2×2 linear system, so any kind gives x0 and eps by one solve. Its
determinant, alpha q − sigma p, says at which times the kind cannot.
"""

import math

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
    return _system(kind, schedule, t)[:2]


def _system(kind, schedule, t):
    """p, q, alpha and sigma, each of t's shape."""
    check.one_of("kind", kind, KINDS)
    alpha, sigma = schedule.alpha_sigma(t)
    if kind == "x0":
        p, q = torch.ones_like(t), torch.zeros_like(t)
    elif kind == "eps":
        p, q = torch.zeros_like(t), torch.ones_like(t)
    elif kind == "score":
        p, q = torch.zeros_like(t), -1 / sigma
    elif kind == "v":
        p, q = -sigma, alpha
    else:
        p, q = schedule.alpha_rate(t), schedule.sigma_rate(t)
    return p, q, alpha, sigma


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
    system = _solvable(kind, output, x, schedule, t)
    p, _, alpha, _, determinant = system
    eps = check.like(alpha / determinant, x) * output - check.like(p / determinant, x) * x
    return _x0(system, output, x), eps


def to_x0(kind: str, output: Float[Tensor, "batch *data"], x: Float[Tensor, "batch *data"], schedule, t):
    """The x0 of ``to_x0_eps`` alone, of the data's shape: all that a walk needs. Raises as that does."""
    return _x0(_solvable(kind, output, x, schedule, t), output, x)


def _x0(system, output, x):
    """Cramer's rule for the first of the two unknowns."""
    _, q, _, sigma, determinant = system
    return check.like(q / determinant, x) * x - check.like(sigma / determinant, x) * output


def _solvable(kind, output, x, schedule, t):
    """p, q, alpha, sigma and the determinant at t, after a look whether the system has a solution."""
    check.same_shape("output", output, "x", x)
    check.time(t, x)
    p, q, alpha, sigma = _system(kind, schedule, t)
    determinant = alpha * q - sigma * p
    if len(x) and determinant.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it would wait
        least, most = (end.item() for end in determinant.abs().aminmax())
        if not 0 < least <= most < math.inf:  # zero, infinite, or not a number somewhere
            singular = ~torch.isfinite(determinant) | (determinant == 0)
            at, a, s = (v[singular].flatten()[0].item() for v in (t, alpha, sigma))
            raise ValueError(
                f"kind {kind!r} does not determine x0 and eps at t = {at:g}, where alpha = {a:.3g} and "
                f"sigma = {s:.3g}: use another kind or another end of the grid"
            )
    return p, q, alpha, sigma, determinant
