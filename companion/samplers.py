"""One map, many walks: from a decreasing grid of times and ``denoise(x, t) -> x0_hat`` to samples.

Nearly every sampler here takes the step

    x' = alpha' x0_hat + sqrt(sigma'² − u²) eps_hat + u z,   u = eta sigma' sqrt(1 − (alpha sigma' / (alpha' sigma))²)

with eps_hat = (x − alpha x0_hat) / sigma (Song, Meng & Ermon 2021, eqs. 12 and 16). A method of higher order is the
same map with a better x0_hat (or eps_hat) put in: a mean of several, taken within the step or remembered from the
steps before. Outside it stand the larger of DDPM's two variances, the Euler–Maruyama method, and Langevin steps, which
walk on the spot. A sampler is a generator that yields ``State(x, x0)`` after each step, x0 being the denoiser's answer
where the step began. Coefficients are Python floats in float64: nothing in a loop waits for the device.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion.forward import sde_coefficients
from companion.losses import interpolated_variance


class State(NamedTuple):
    """A sample after a step, and the x0_hat from where the step began; both of the data's shape."""

    x: Tensor
    x0: Tensor


class Node(NamedTuple):
    """A node of the grid: its time as a tensor for the denoiser, then alpha, sigma and the time as Python floats."""

    t: Tensor
    alpha: float
    sigma: float
    time: float

    @property
    def half_log_snr(self) -> float:
        """lambda = log(alpha / sigma): −inf where alpha = 0, +inf where sigma = 0."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.alpha > 0 else -math.inf
        return math.log(self.alpha) - math.log(self.sigma)


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


def nodes_at(schedule, half_log_snrs: list[float], x: Tensor) -> list[Node]:
    """Nodes off the grid, where lambda has the given values. Raises ValueError where the schedule does not have them.

    Their times are filled in on x's device, not copied to it, so that a loop that needs them can be captured.
    """
    times = schedule.time_of(torch.tensor(half_log_snrs, dtype=torch.float64))
    alphas, sigmas = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    triples = zip(times.tolist(), alphas, sigmas, strict=True)
    return [Node(x.new_full((), time), alpha, sigma, time) for time, alpha, sigma in triples]


def between(schedule, grid: list[Node], x: Tensor, shares) -> list[list[Node]]:
    """For each step the nodes at the given shares of its way in lambda; none where one end has an infinite lambda."""
    ends = [(now.half_log_snr, then.half_log_snr) for now, then in zip(grid, grid[1:], strict=False)]
    finite = [math.isfinite(b - a) for a, b in ends]
    wanted = [a + share * (b - a) for (a, b), inner in zip(ends, finite, strict=True) if inner for share in shares]
    found = iter(nodes_at(schedule, wanted, x))
    return [[next(found) for _ in shares] if inner else [] for inner in finite]


def fresh_noise(now: Node, then: Node, eta: float) -> float:
    """u of the map: how much of the next noise is drawn anew; 0 at eta = 0 and where the next node is clean."""
    kept = now.alpha * then.sigma / (then.alpha * now.sigma)
    return eta * then.sigma * math.sqrt(max(0.0, 1 - kept**2))


def transfer(x, x0, now: Node, then: Node, u: float | int = 0.0, noise=torch.randn_like):
    """The map: from x at ``now`` to ``then``, given x0_hat and u; draws noise only where u > 0."""
    keep = math.sqrt(max(0.0, then.sigma**2 - u**2)) / now.sigma
    x = torch.add(keep * x, x0, alpha=then.alpha - keep * now.alpha)
    return x + u * noise(x) if u > 0 else x


def added_noise(now: Node, then: Node) -> float:
    """The standard deviation of q(x_now | x_then): the noise that the forward process adds from then up to now."""
    return math.sqrt(max(0.0, now.sigma**2 - (now.alpha * then.sigma / then.alpha) ** 2))


def exponential_weights(offsets: list[float], step: float) -> list[float]:
    """Weights of values of x0_hat that lie at ``offsets`` in lambda from here, for the map over a step in lambda.

    The exact step is the map with the mean of x0_hat over the step under the density proportional to e^lambda (Lu et
    al. 2022b, proposition 4.1). The weights give that mean exactly for polynomials in lambda, of degree one less than
    there are values. For eps_hat the density is e^−lambda: the same weights, offsets and step with the other sign.
    """
    mass = moment = -math.expm1(-step)
    moments = [1.0]
    for power in range(1, len(offsets)):
        moment = step**power - power * moment  # of offset^power, by parts
        moments.append(moment / mass)
    return np.linalg.solve(np.vander(offsets, increasing=True).T, moments).tolist()


def _mean(weights, values):
    """The weighted sum of tensors."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = torch.add(total, value, alpha=weight)
    return total


def _eps(x, x0, now: Node):
    """eps_hat, from x and x0_hat at a node."""
    return torch.add(x, x0, alpha=-now.alpha) / now.sigma


def _transfer_eps(x, eps, now: Node, then: Node):
    """The map without fresh noise, given eps_hat where ``transfer`` is given x0_hat."""
    return transfer(x, torch.add(x, eps, alpha=-now.sigma) / now.alpha, now, then)


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
            wide = added_noise(now, then)
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


def _improved(denoise, x, x0, now: Node, then: Node):
    """Heun's step from x and its x0_hat: the map with the mean of eps_hat here and where Euler's step leads.

    At infinite sigma/alpha there is no Euler step to improve, and at sigma = 0 no eps_hat to improve it with.
    """
    ahead = transfer(x, x0, now, then)
    if now.alpha == 0 or then.sigma == 0:
        return ahead
    other = _eps(ahead, denoise(ahead, then.t), then)
    return _transfer_eps(x, 0.5 * (_eps(x, x0, now) + other), now, then)


@torch.no_grad()
def heun(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """Heun's method on the probability-flow ODE in the coordinates x/alpha, sigma/alpha (Karras et al. 2022, alg. 1).

    Order 2, at two evaluations a step; a last step to sigma = 0 and a first one from alpha = 0 are Euler's, with one.
    ``noise`` is not used. Yields ``State`` after each step. Raises ValueError for a grid that does not decrease.
    """
    grid = nodes(schedule, ts, x)
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        x = _improved(denoise, x, x0, now, then)
        yield State(x, x0)


@torch.no_grad()
def dpm_solver_2s(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """DPM-Solver-2, single-step: the map with the eps_hat found half-way in lambda (Lu et al. 2022, algorithm 1).

    Order 2, at two evaluations a step; a last step to sigma = 0 and a first one from alpha = 0, which have no middle,
    are the map's, with one. The schedule is asked between the nodes. ``noise`` is not used. Yields ``State`` after each
    step. Raises ValueError for a grid that does not decrease.
    """
    grid = nodes(schedule, ts, x)
    for now, then, inner in zip(grid, grid[1:], between(schedule, grid, x, (1 / 2,)), strict=False):
        x0 = denoise(x, now.t)
        if inner:
            (middle,) = inner
            ahead = transfer(x, x0, now, middle)
            x = _transfer_eps(x, _eps(ahead, denoise(ahead, middle.t), middle), now, then)
        else:
            x = transfer(x, x0, now, then)
        yield State(x, x0)


@torch.no_grad()
def dpm_solver_3s(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """DPM-Solver-3, single-step: eps_hat also at one and two thirds of the way in lambda (Lu et al. 2022, algorithm 2).

    Order 3, at three evaluations a step; a last step to sigma = 0 and a first one from alpha = 0 are the map's, with
    one. The schedule is asked between the nodes. ``noise`` is not used. Yields ``State`` after each step. Raises
    ValueError for a grid that does not decrease.
    """
    grid = nodes(schedule, ts, x)
    for now, then, inner in zip(grid, grid[1:], between(schedule, grid, x, (1 / 3, 2 / 3)), strict=False):
        x0 = denoise(x, now.t)
        if inner:
            third, two_thirds = inner
            back = now.half_log_snr - then.half_log_snr  # of the other sign, for weights of eps_hat
            eps = _eps(x, x0, now)
            ahead = transfer(x, x0, now, third)
            later = _eps(ahead, denoise(ahead, third.t), third)
            weights = exponential_weights([0.0, back / 3], 2 * back / 3)
            ahead = _transfer_eps(x, _mean(weights, [eps, later]), now, two_thirds)
            later = _eps(ahead, denoise(ahead, two_thirds.t), two_thirds)
            weights = exponential_weights([0.0, 2 * back / 3], back)
            x = _transfer_eps(x, _mean(weights, [eps, later]), now, then)
        else:
            x = transfer(x, x0, now, then)
        yield State(x, x0)


ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@torch.no_grad()
def plms(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """PLMS: the map with an Adams–Bashforth mean of the last four eps_hat (Liu et al. 2022, section 3).

    The first step is Heun's, with two evaluations; all others have one. The coefficients are those for equal steps of
    sigma/alpha: on such a grid the order is 3, which is the start's doing, on any other it is 2. A first step from
    alpha = 0 is the map's, and is not remembered. ``noise`` is not used. Yields ``State`` after each step. Raises
    ValueError for a grid that does not decrease.
    """
    grid, past = nodes(schedule, ts, x), []
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        if now.alpha > 0:
            past = [_eps(x, x0, now), *past][:4]
        if len(past) < 2:
            x = _improved(denoise, x, x0, now, then)
        else:
            x = _transfer_eps(x, _mean(ADAMS_BASHFORTH[len(past)], past), now, then)
        yield State(x, x0)


def _half_way(past, then: Node):
    """x0_hat half-way to the next node in lambda, on the line through the two last (node, x0_hat), newest first.

    The newest itself where there is one only, or where the step goes to lambda = +inf: no line can be followed there.
    """
    if len(past) < 2 or then.sigma == 0:
        return past[0][1]
    (now, x0), (before, x0_before) = past[:2]
    step = then.half_log_snr - now.half_log_snr
    last = now.half_log_snr - before.half_log_snr  # inf where the walk began at alpha = 0: then x0 itself is right
    return torch.lerp(x0, x0_before, -0.5 * step / last)


@torch.no_grad()
def dpmpp_2m(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """DPM-Solver++(2M): the map with x0_hat extrapolated half-way in lambda (Lu et al. 2022b, algorithm 2).

    Order 2, at one evaluation a step. The first step and a step to sigma = 0 are the map's. ``noise`` is not used.
    Yields ``State`` after each step. Raises ValueError for a grid that does not decrease.
    """
    grid, past = nodes(schedule, ts, x), []
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        past = [(now, x0), *past][:2]
        x = transfer(x, _half_way(past, then), now, then)
        yield State(x, x0)


def _through(points, now: Node, then: Node):
    """What the map needs for x0_hat along the polynomial in lambda through all (node, x0_hat) given.

    A point at alpha = 0 is infinitely far away and has no say.
    """
    points = [(node, x0) for node, x0 in points if node.alpha > 0]
    offsets = [node.half_log_snr - now.half_log_snr for node, _ in points]
    return _mean(exponential_weights(offsets, then.half_log_snr - now.half_log_snr), [x0 for _, x0 in points])


@torch.no_grad()
def dpm_solver_3m(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, noise=torch.randn_like):
    """The third-order multistep solver of the same family: a parabola in lambda through the three last x0_hat.

    Order 3, at one evaluation a step. Published code halves the coefficient of the second difference, which leaves
    order 2. The first step and a step to sigma = 0 are the map's, the second is that of ``dpmpp_2m`` with an exact
    line: so order 3 is what one measures where the walk starts near pure noise and x0_hat hardly changes yet; else
    the first step alone makes it 2. ``noise`` is not used. Yields ``State`` after each step. Raises ValueError for a
    grid that does not decrease.
    """
    grid, past = nodes(schedule, ts, x), []
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        past = [(now, x0), *past][:3]
        first_order = now.alpha == 0 or then.sigma == 0  # a polynomial cannot be followed over an infinite step
        x = transfer(x, x0 if first_order else _through(past, now, then), now, then)
        yield State(x, x0)


@torch.no_grad()
def unipc(denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, solver_order: int = 2, noise=torch.randn_like):
    """UniPC with B2(h) in x0_hat: each step is done again when the next x0_hat is known (Zhao et al. 2023).

    The predictor takes the ``solver_order`` last x0_hat, the corrector one more, which the predictor's x has given:
    still one evaluation a step, and with one order more than the predictor's: 3 by default. A step from alpha = 0 or to
    sigma = 0 is the map's. ``noise`` is not used. Yields ``State`` after each step, x as predicted. Raises ValueError
    for a grid that does not decrease, or a solver_order other than 1, 2 and 3.
    """
    check.one_of("solver_order", solver_order, (1, 2, 3))
    grid, past, left = nodes(schedule, ts, x), [], x
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        if past and past[0][0].alpha > 0:
            if len(past) == 1:  # B2 takes the plain mean here, as it takes 2M's middle below
                better = 0.5 * (past[0][1] + x0)
            else:
                better = _through([(now, x0), *past], past[0][0], now)
            x = transfer(left, better, past[0][0], now)
        past = [(now, x0), *past][:solver_order]
        left = x
        if len(past) == 3 and then.sigma > 0:
            x = transfer(x, _through(past, now, then), now, then)
        else:
            x = transfer(x, _half_way(past, then), now, then)
        yield State(x, x0)


@torch.no_grad()
def dpmpp_2m_sde(
    denoise, schedule, x: Float[Tensor, "batch *data"], ts, *, eta: float | int = 1.0, noise=torch.randn_like
):
    """SDE-DPM-Solver++(2M): ``dpmpp_2m`` with fresh noise in the map (Lu et al. 2022b, in its midpoint form).

    ``eta`` means what it means in ``ddim``: 0 is ``dpmpp_2m``, 1 the paper's method. Weak order 2, measured on Gaussian
    data. Yields ``State`` after each step; nothing is drawn on a last step to sigma = 0. Raises ValueError for a grid
    that does not decrease or eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")
    grid, past = nodes(schedule, ts, x), []
    for now, then in zip(grid, grid[1:], strict=False):
        x0 = denoise(x, now.t)
        past = [(now, x0), *past][:2]
        x = transfer(x, _half_way(past, then), now, then, fresh_noise(now, then, eta), noise)
        yield State(x, x0)


@torch.no_grad()
def edm(
    denoise,
    schedule,
    x: Float[Tensor, "batch *data"],
    ts,
    *,
    s_churn: float | int = 0.0,
    s_tmin: float | int = 0.0,
    s_tmax: float | int = math.inf,
    s_noise: float | int = 1.0,
    noise=torch.randn_like,
):
    """Heun's steps, each after a little new noise: EDM's stochastic sampler (Karras et al. 2022, algorithm 2).

    Where sigma/alpha lies in [s_tmin, s_tmax], the forward process first raises it by the factor 1 + gamma, gamma =
    min(s_churn / steps, sqrt 2 − 1), with noise of standard deviation ``s_noise``; the step starts from there. It is
    raised to the schedule's noisiest level at most, and not at alpha = 0. Without churn it is ``heun``; the noise keeps
    the marginals, so the (weak) order stays 2, but an s_noise other than 1 leaves an error that no number of steps
    removes. Yields ``State`` after each step. Raises ValueError for a grid that does not decrease, a negative s_churn,
    s_tmin or s_noise, and s_tmax below s_tmin.
    """
    for name, value in {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise}.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number, at least 0; got {value}")
    if not s_tmax >= s_tmin:
        raise ValueError(f"s_tmax must be at least s_tmin = {s_tmin}; got {s_tmax}")
    grid = nodes(schedule, ts, x)
    gamma = min(s_churn / (len(grid) - 1), math.sqrt(2) - 1)
    churned = [now for now in grid[:-1] if gamma > 0 < now.alpha and s_tmin <= now.sigma / now.alpha <= s_tmax]
    least = schedule.half_log_snr(torch.tensor(schedule.t_max, dtype=torch.float64)).item()
    levels = [max(now.half_log_snr - math.log1p(gamma), least) for now in churned]
    raised = {now.time: up for now, up in zip(churned, nodes_at(schedule, levels, x), strict=True)}
    for now, then in zip(grid, grid[1:], strict=False):
        if now.time in raised:
            up = raised[now.time]
            x = up.alpha / now.alpha * x + s_noise * added_noise(up, now) * noise(x)
            now = up
        x0 = denoise(x, now.t)
        x = _improved(denoise, x, x0, now, then)
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


class Moments(NamedTuple):
    """``mean`` and ``std`` after each step of a walk, ``correlation`` with its start: (steps,) each, float64."""

    mean: Tensor
    std: Tensor
    correlation: Tensor


def moments(
    denoise, schedule, ts, mean: float | int | Tensor, std: float | int | Tensor, *, sampler=ddim, **options
) -> Moments:
    """The ``Moments`` of a walk from N(mean, std²) on a line.

    Exact, with no chance in it, where the walk is affine in its start and its draws, as it is for Gaussian data: one
    row of a batch carries the start's deviation and one each draw. ``correlation`` is nan where nothing is spread.
    ``options`` go to the sampler; ``noise`` is not one. Raises ValueError for a negative std, and as the sampler does.
    """
    if not std >= 0:
        raise ValueError(f"std must be at least 0; got {std}")
    draws = 0

    def none(x):
        nonlocal draws
        draws += 1
        return torch.zeros_like(x)

    def one_row_each(x):
        nonlocal draws
        draws -= 1
        z = torch.zeros_like(x)
        z[draws] = 1.0
        return z

    middle = torch.full((1, 1), float(mean), dtype=torch.float64)
    means = [state.x for state in sampler(denoise, schedule, middle, ts, noise=none, **options)]
    rows = middle.repeat(draws + 1, 1)
    rows[-1] += float(std)
    walk = sampler(denoise, schedule, rows, ts, noise=one_row_each, **options)
    apart = torch.stack([(state.x - mean)[:, 0] for state, mean in zip(walk, means, strict=True)])
    spread = apart.norm(dim=1)
    return Moments(torch.cat(means)[:, 0], spread, apart[:, -1] / spread)


# annealed_langevin and predictor_corrector have none: the bias of a Langevin step depends on its size, not on the grid
ddim.order = ancestral.order = euler.order = euler_maruyama.order = 1
heun.order = edm.order = dpm_solver_2s.order = plms.order = dpmpp_2m.order = dpmpp_2m_sde.order = 2
dpm_solver_3s.order = dpm_solver_3m.order = unipc.order = 3
