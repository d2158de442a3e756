"""One map, many walks: from a decreasing grid of times and ``denoise(x, t) -> x0_hat`` to samples.

Nearly every sampler here takes the step

    x' = alpha' x0_hat + sqrt(sigma'² − u²) eps_hat + u z,   u = eta sigma' sqrt(1 − (alpha sigma' / (alpha' sigma))²)

with eps_hat = (x − alpha x0_hat) / sigma (Song, Meng & Ermon 2021, eqs. 12 and 16). Outside it stand the larger of
DDPM's two variances, the Euler–Maruyama method, and Langevin steps, which walk on the spot. A sampler is a generator
that yields ``State(x, x0)`` after each step. Coefficients are Python floats, computed once in float64: nothing in a
loop waits for the device.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion.forward import sde_coefficients
from companion.losses import interpolated_variance


class State(NamedTuple):
    """A sample after a step, and the x0_hat that the step used; both of the data's shape."""

    x: Tensor
    x0: Tensor


class Node(NamedTuple):
    """A node of the grid: its time as a tensor for the denoiser, then alpha, sigma and the time as Python floats."""

    t: Tensor
    alpha: float
    sigma: float
    time: float


def nodes(schedule, ts, x: Tensor) -> list[Node]:
    """The grid with its coefficients, times in x's dtype and on its device; a list of nodes passes through.

    Raises ValueError unless ts has at least two nodes, is finite, decreases, and starts where sigma > 0; TypeError
    unless x and ts are floating point.
    """
    check.floating("x", x)
    if isinstance(ts, list):
        return ts
    check.floating("ts", ts)
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"ts must have shape (steps + 1,) with at least one step; got {tuple(ts.shape)}")
    ts = ts.to("cpu", torch.float64)
    check.finite("ts", ts)
    if not (ts[1:] < ts[:-1]).all():
        raise ValueError(f"ts must decrease, noise first; got {ts[0].item():g} … {ts[-1].item():g}")
    if not (ts[0] <= schedule.t_max and ts[-1] >= schedule.t_min):
        raise ValueError(
            f"ts must lie in the schedule's [{schedule.t_min:g}, {schedule.t_max:g}]; "
            f"got {ts[0].item():g} … {ts[-1].item():g}"
        )
    alphas, sigmas = schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist()
    if min(sigmas[:-1]) <= 0:
        raise ValueError(f"sigma must be above 0 at every node but the last; got {min(sigmas[:-1])}")
    return [Node(*node) for node in zip(ts.to(x).unbind(), alphas, sigmas, ts.tolist(), strict=True)]


def fresh_noise(now: Node, then: Node, eta: float) -> float:
    """u of the map: how much of the next noise is drawn anew; 0 at eta = 0 and where the next node is clean."""
    kept = now.alpha * then.sigma / (then.alpha * now.sigma)
    return eta * then.sigma * math.sqrt(max(0.0, 1 - kept**2))


def transfer(x, x0, now: Node, then: Node, u: float | int = 0.0, noise=torch.randn_like):
    """The map: from x at ``now`` to ``then``, given x0_hat and u; draws noise only where u > 0."""
    keep = math.sqrt(max(0.0, then.sigma**2 - u**2)) / now.sigma
    x = keep * x + (then.alpha - keep * now.alpha) * x0
    return x + u * noise(x) if u > 0 else x


@torch.no_grad()
def ddim(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, eta: float | int = 0.0, noise=torch.randn_like):
    """DDIM: the map with a chosen share ``eta`` of fresh noise (Song, Meng & Ermon 2021, eq. 12).

    eta = 0 is deterministic, of order 1; eta = 1 is ancestral sampling. Yields ``State`` after each step; ``noise(x)``
    gives standard normal numbers of x's shape. Raises ValueError for a grid that does not decrease or eta outside
    [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")
    grid = nodes(schedule, ts, x)
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        x = transfer(x, x0, now, then, fresh_noise(now, then, eta), noise)
        yield State(x, x0)


@torch.no_grad()
def ancestral(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, variance="posterior", noise=torch.randn_like):
    """DDPM: each step draws from q(x_s | x_t, x0_hat) (Ho et al. 2020, algorithm 2).

    ``variance="posterior"`` is the variance of q(x_s | x_t, x_0), "forward" the larger one, that of q(x_t | x_s), and
    "learned" lies between the two where ``denoise.with_variance`` says (Nichol & Dhariwal 2021, eq. 15). None of them
    draws anything on a last step to sigma = 0. Yields ``State`` after each step. Raises ValueError for another variance
    or a grid that does not decrease, TypeError for "learned" and a denoise that gives no variance.
    """
    check.one_of("variance", variance, ("posterior", "forward", "learned"))
    if variance == "learned":
        check.learned_variance(denoise)
    grid = nodes(schedule, ts, x)
    for now, then in zip(grid, grid[1:], strict=False):
        x0, v = denoise.with_variance(x, now.t) if variance == "learned" else (denoise(x, now.t), None)
        u = fresh_noise(now, then, 1.0)
        if variance == "posterior" or then.sigma == 0:
            x = transfer(x, x0, now, then, u, noise)
        else:
            wide = math.sqrt(now.sigma**2 - (now.alpha * then.sigma / then.alpha) ** 2)
            scale = wide if v is None else interpolated_variance(v, u**2, wide**2).sqrt()
            x = transfer(x, x0, now, then, u, torch.zeros_like) + scale * noise(x)
        yield State(x, x0)


@torch.no_grad()
def euler(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """Euler's method on the probability-flow ODE in the coordinates x/alpha, sigma/alpha (Karras et al. 2022, eq. 4).

    There the ODE reads d(x/alpha) = eps_hat d(sigma/alpha). Order 1; equal to ``ddim`` with eta = 0 to rounding, and
    written out apart from it so that tests can say so. ``noise`` is not used. Yields ``State`` after each step. Where
    alpha = 0, at the first node only, the step is the map's limit. Raises ValueError for a grid that does not decrease.
    """
    grid = nodes(schedule, ts, x)
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        if now.alpha == 0:
            x = transfer(x, x0, now, then)
        else:
            slope = (x - now.alpha * x0) / now.sigma
            x = then.alpha * (x / now.alpha + (then.sigma / then.alpha - now.sigma / now.alpha) * slope)
        yield State(x, x0)


@torch.no_grad()
def euler_maruyama(
    denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, kappa: float | int = 1.0, noise=torch.randn_like
):
    """The Euler–Maruyama method on the reverse processes dx = (f x − ½ (1 + kappa²) g² score) dt + kappa g dw.

    All of them have the forward process's marginals: kappa = 1 is the reverse SDE (Anderson 1982; Song et al. 2021,
    eq. 6), kappa = 0 the probability-flow ODE (their eq. 13). Weak order 1. The score comes from x0_hat, f and g from
    ``forward.sde_coefficients``. Yields ``State`` after each step; nothing is drawn on a last step to sigma = 0. Raises
    ValueError for a grid that does not decrease, one on which f or g is not finite where a step starts (alpha = 0), and
    a negative kappa.
    """
    if not (kappa >= 0 and math.isfinite(kappa)):
        raise ValueError(f"kappa must be a finite number, at least 0; got {kappa}")
    grid = nodes(schedule, ts, x)
    times = torch.tensor([node.time for node in grid[:-1]], dtype=torch.float64)
    drifts, diffusions = sde_coefficients(times, schedule)
    if not (drifts.isfinite() & diffusions.isfinite()).all():
        raise ValueError(
            f"ts must start where alpha > 0: the drift is not finite at all of {times[0]:g} … {times[-1]:g}"
        )
    for now, then, f, g in zip(grid, grid[1:], drifts.tolist(), diffusions.tolist(), strict=False):
        x0 = denoise(x, now.t)
        pull = 0.5 * (1 + kappa**2) * g**2
        x = x + (then.time - now.time) * (f * x - pull * _score(x, x0, now))
        if kappa > 0 and then.sigma > 0:
            x = x + kappa * g * math.sqrt(now.time - then.time) * noise(x)
        yield State(x, x0)


def _score(x, x0, now: Node):
    """The score that x0_hat implies at a node: (alpha x0_hat − x) / sigma²."""
    return (now.alpha * x0 - x) / now.sigma**2


def _langevin(denoise, x, now: Node, steps: int, size: float, noise):
    """After ``steps`` Langevin steps x + delta score + sqrt(2 delta) z, delta = size sigma²: x, and the last x0_hat."""
    delta = size * now.sigma**2
    for _ in range(steps):
        x0 = denoise(x, now.t)
        x = x + delta * _score(x, x0, now) + math.sqrt(2 * delta) * noise(x)
    return x, x0


@torch.no_grad()
def annealed_langevin(
    denoise,
    schedule,
    x: Float[Tensor, "batch *data"],
    ts,
    *,
    steps: int = 10,
    size: float | int = 0.1,
    noise=torch.randn_like,
):
    """Langevin dynamics at every node in turn, from the noisiest down (Song & Ermon 2019, algorithm 1).

    At each node ``steps`` steps of delta = ``size`` sigma² (the paper's step is twice ours); on the way to the next
    node x / alpha is kept. A last node with sigma = 0 is reached by x0_hat. Yields ``State`` after each node. Raises
    ValueError for a grid that does not decrease or starts at alpha = 0, and for steps or size not above 0.
    """
    check.positive_int("steps", steps)
    check.positive("size", size)
    grid = nodes(schedule, ts, x)
    if grid[0].alpha == 0:
        raise ValueError("ts must start where alpha > 0: Langevin steps are carried from node to node as x / alpha")
    last = grid[0]
    for now in grid:
        if now.sigma == 0:
            x0 = denoise(x, last.t)
            x = now.alpha * x0
        else:
            x, x0 = _langevin(denoise, now.alpha / last.alpha * x, now, steps, size, noise)
        yield State(x, x0)
        last = now


@torch.no_grad()
def predictor_corrector(
    denoise,
    schedule,
    x: Float[Tensor, "batch *data"],
    ts,
    *,
    eta: float | int = 1.0,
    steps: int = 1,
    size: float | int = 0.05,
    noise=torch.randn_like,
):
    """A step of ``ddim`` with the given eta predicts, then Langevin steps at the new node correct (Song et al. 2021).

    ``steps`` corrections of delta = ``size`` sigma²; the paper's signal-to-noise ratio r is size = 2 r². Langevin's
    bias stays whatever the grid: on a Gaussian of variance V they aim at V / (1 − delta / 2V). Costs 1 + steps
    evaluations a node; a node with sigma = 0 is not corrected. Yields ``State`` after each node. Raises
    ValueError for a grid that does not decrease, eta outside [0, 1], steps < 1 or a size not above 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")
    check.positive_int("steps", steps)
    check.positive("size", size)
    grid = nodes(schedule, ts, x)
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        x = transfer(x, x0, now, then, fresh_noise(now, then, eta), noise)
        if then.sigma > 0:
            x, x0 = _langevin(denoise, x, then, steps, size, noise)
        yield State(x, x0)


@torch.no_grad()
def invert(denoise, schedule, x: Float[Tensor, "batch *data"], ts):
    """DDIM run upwards, from data-like x at ts[-1] to its code at ts[0], on a grid a sampler would walk down.

    Each step is evaluated at the cleaner end, where x stands. Yields ``State`` after each step. Raises ValueError
    unless the grid decreases and ends at sigma > 0, where eps_hat exists.
    """
    grid = nodes(schedule, ts, x)
    if grid[-1].sigma <= 0:
        raise ValueError("ts must end where sigma > 0: at sigma = 0 the noise in x cannot be read off")
    upwards = grid[::-1]
    for now, then in zip(upwards, upwards[1:], strict=False):
        x0 = denoise(x, now.t)
        x = transfer(x, x0, now, then)
        yield State(x, x0)


def sample(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, sampler=ddim, **options):
    """The last x of a sampler's walk, of x's shape; ``options`` go to the sampler."""
    for state in sampler(denoise, schedule, x, ts, **options):  # noqa: B007
        pass
    return state.x


def start(schedule, ts, shape, *, generator=None, dtype=torch.float32, device=None) -> Tensor:
    """Pure noise at the grid's first node: sigma(ts[0]) times standard normal numbers of the given shape."""
    check.floating("ts", ts)
    z = torch.randn(shape, generator=generator, dtype=dtype, device=device)
    return schedule.sigma(ts[:1].double()).item() * z


# annealed_langevin and predictor_corrector have none: the bias of a Langevin step depends on its size, not on the grid
ddim.order = ancestral.order = euler.order = euler_maruyama.order = 1
