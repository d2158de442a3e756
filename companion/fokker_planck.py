"""The Fokker–Planck equation on a line, solved on a grid: densities of any SDE in one dimension, by no closed form.

dx = b(x, t) dt + g(t) dw moves the density by dp/dt = −d/dx (b p) + ½ g² d²p/dx². Here it is a witness: what the book
derives about marginals is compared with a finite-volume solution that knows drift, diffusion and the first density.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check


def evolve(
    drift,
    diffusion,
    density: Float[Tensor, "cells"],
    centres: Float[Tensor, "cells"],
    times: Float[Tensor, "times"],
    *,
    rtol: float | int = 1e-6,
    atol: float | int = 1e-10,
) -> Float[Tensor, "times cells"]:
    """The density at each of the increasing ``times``, started from ``density`` at the first; float64 on the CPU.

    ``centres`` are those of equal cells; nothing leaves through the outer walls, so they should stand where the density
    is negligible. ``drift(x, t)`` is b at points x of any shape (n,), ``diffusion(t)`` is g, one number above 0; both
    get float64 tensors. The fluxes are exact for constant b between two centres (Scharfetter & Gummel 1969): of second
    order in the cells' width, they keep the sum of the density to rounding and never make it negative. What is left is
    the error of the steps in time, SciPy's Radau within ``rtol`` and ``atol``: values below 0 are of the order of
    ``atol``. Raises ValueError for cells of unequal width, fewer than three, times that do not increase, a density that
    is negative or not finite, g not above 0; RuntimeError where SciPy gives up.
    """
    from scipy.integrate import solve_ivp
    from scipy.sparse import diags_array

    for name, value in (("density", density), ("centres", centres), ("times", times)):
        check.floating(name, value)
        check.finite(name, value)
    check.same_shape("density", density, "centres", centres)
    check.positive("rtol", rtol)
    check.positive("atol", atol)
    density, centres, times = (v.detach().to("cpu", torch.float64) for v in (density, centres, times))
    if centres.ndim != 1 or len(centres) < 3:
        raise ValueError(f"centres must have shape (cells,) with at least 3 cells; got {tuple(centres.shape)}")
    width = (centres[-1] - centres[0]).item() / (len(centres) - 1)
    if width <= 0 or not ((centres.diff() - width).abs() < 1e-6 * width).all():
        raise ValueError("centres must increase in equal steps")
    if times.ndim != 1 or len(times) < 2 or not (times.diff() > 0).all():
        raise ValueError(f"times must be at least two and increase; got {times.tolist()[:4]} …")
    if (density < 0).any():
        raise ValueError(f"density must not be negative; the least value is {density.min():.3g}")
    walls = (centres[1:] + centres[:-1]) / 2

    @functools.lru_cache(maxsize=8)  # Newton's iterations ask for the same times again
    def rates(t):
        t = torch.tensor(t, dtype=torch.float64)
        return [rate.numpy() for rate in _rates(drift(walls, t), diffusion(t), width, t)]

    def change(t, p):
        """dp/dt: what a cell loses through a wall, its neighbour gains."""
        rightward, leftward = rates(t)
        through = rightward * p[:-1] - leftward * p[1:]
        return np.append(0.0, through) - np.append(through, 0.0)

    def matrix(t, p):
        """The same as a matrix: its columns sum to 0."""
        rightward, leftward = rates(t)
        lost = np.append(rightward, 0.0) + np.append(0.0, leftward)
        return diags_array([rightward, -lost, leftward], offsets=[-1, 0, 1], format="csc")

    ends = (times[0].item(), times[-1].item())
    options = {"method": "Radau", "rtol": float(rtol), "atol": float(atol), "t_eval": times.numpy()}
    found = solve_ivp(change, ends, density.numpy(), jac=matrix, **options)
    if not found.success:
        raise RuntimeError(f"SciPy's Radau stopped at t = {found.t[-1]:g}: {found.message}")
    return torch.from_numpy(found.y.T.copy())


def _rates(b, g, width, t):
    """Per wall: the share of the left cell that goes right per unit of time, and of the right cell that goes left."""
    g = float(g)
    if not (math.isfinite(g) and g > 0):
        raise ValueError(f"diffusion must be finite and above 0; got {g:g} at t = {t:g}")
    spread = 0.5 * g**2 / width**2
    ratio = b.to(torch.float64) / width / spread  # of drift to diffusion across a cell
    return spread * _bernoulli(-ratio), spread * _bernoulli(ratio)


def _bernoulli(z):
    """z / (e^z − 1), above 0, and 1 at z = 0."""
    return torch.where(z == 0, 1.0, z / torch.expm1(torch.where(z == 0, 1.0, z)))
