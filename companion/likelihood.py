"""The exact log-density of what a denoiser's probability-flow ODE makes of noise, by following a sample upwards.

Along dx = (alpha' x0_hat + sigma' eps_hat) dt the log-density changes by minus the divergence of the velocity (Song et
al. 2021, eq. 39). The ODE is integrated in coordinates in which it has no schedule: u = x / r with r = sqrt(alpha² +
sigma²), and the angle phi = atan(sigma / alpha). Then

    du/dphi = v_hat = (cos(phi) u − x0_hat) / sin(phi),    log p(x) = log p(u) − d log r,

finite from sigma > 0 up to alpha = 0; where the schedule preserves variance, u is x.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion import _divergence

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
FIXED = ("rk4", "heun2", "midpoint", "euler")
PROBES = ("rademacher", "gaussian")


class Likelihood(NamedTuple):
    """Log-densities in nats, and how they were found.

    ``log_prob`` and ``standard_error`` have shape (batch,), in float64; the latter is that of the mean over probes:
    0 with an exact trace, NaN with one probe. ``code`` is where the ODE brought x, of x's shape and dtype.
    ``evaluations`` counts calls of the denoiser; ``rtol`` and ``atol`` are None where the steps were fixed.
    """

    log_prob: Tensor
    standard_error: Tensor
    code: Tensor
    evaluations: int
    rtol: float | None
    atol: float | None


def hutchinson_divergence(
    field, x: Float[Tensor, "batch *data"], probe: Float[Tensor, "batch *data"]
) -> Float[Tensor, "batch"]:
    """v' (d field / d x) v per sample: for E[v v'] = 1 an unbiased estimate of the divergence (Hutchinson 1989).

    ``field(x)`` has x's shape and treats samples apart; ``probe`` is v. The variance over v is 2 ||S||² for standard
    normal numbers, S the symmetric part of the Jacobian, and for random signs 2 ||S||² less the diagonal's part. One
    pass forward and one back, also under ``torch.no_grad``. Raises ValueError for shapes that differ, TypeError where
    the field cannot be differentiated. Source: Grathwohl et al. 2019, eq. 7.
    """
    check.floating("x", x)
    check.same_shape("x", x, "probe", probe)
    return _hutchinson(field, x, probe[None])[1][:, 0]


def exact_divergence(field, x: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch"]:
    """The trace of d field / d x per sample, by one pass back for every dimension: for few of them.

    Arguments and errors as in ``hutchinson_divergence``.
    """
    check.floating("x", x)
    return _exact(field, x)[1][:, 0]


def _recorded(field, x):
    """x as a leaf, and field(x) with its graph."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = field(x)
    check.same_shape("x", x, "field(x)", value)
    if not value.requires_grad:
        raise TypeError("field must be differentiable in x; its value carries no graph (torch.no_grad inside it?)")
    return x, value


def _hutchinson(field, x, probes):
    """field(x), and v' J v for each of the probes (k, batch, *data): (batch, k)."""
    x, value = _recorded(field, x)
    return value.detach(), torch.stack([_divergence.along(v, value, x) for v in probes], 1)


def _exact(field, x):
    """field(x), and the trace of J, (batch, 1), row by row: layers that cannot batch their gradients are many."""
    x, value = _recorded(field, x)
    return value.detach(), _divergence.exact(value, x)[:, None]


@torch.no_grad()
def ode_log_likelihood(
    denoise,
    schedule,
    x: Float[Tensor, "batch *data"],
    *,
    t_start: float | int | None = None,
    t_end: float | int | None = None,
    prior=None,
    probes: int | None = None,
    probe: str = "rademacher",
    method: str = "dopri5",
    rtol: float | int = 1e-5,
    atol: float | int = 1e-5,
    steps: int | None = None,
    noise=torch.randn_like,
) -> Likelihood:
    """log p(x) at ``t_start`` in nats, of the density that the probability-flow ODE carries there from ``prior``.

    x is a point of the diffused density at t_start (default t_min, where sigma > 0 there), not of the data's; t_end
    (default t_max) may have alpha = 0 if the denoiser knows x0 there. ``prior(x) -> (batch,)`` is the log-density at
    t_end, given float64; the default, N(0, sigma²), knows nothing of the data.

    With ``probes=None`` the trace is exact, at one pass back per dimension. Otherwise so many ``probe`` vectors per
    sample ("rademacher": the signs of ``noise(x)``; "gaussian": the numbers themselves) are drawn once and kept along
    the whole path: drawn anew at each evaluation they would make the right-hand side random, which no solver of higher
    order stands. Their mean is unbiased for the integral, at a standard error that is reported.

    ``method`` is one of torchdiffeq's: dopri5, dopri8, bosh3 or adaptive_heun choose their steps from rtol and atol,
    for the worst sample of the batch; rk4, heun2, midpoint or euler take ``steps`` of them, uniform in
    log(1 + alpha/sigma). State and log-density are kept in float64, the denoiser sees x's dtype. No gradient.
    Raises ValueError for times outside the schedule or in the wrong order, sigma = 0 at t_start, an unknown method or
    probe, steps missing or not wanted; TypeError for a denoiser that cannot be differentiated. Source: Song et al.
    2021, appendix D.2.
    """
    from torchdiffeq import odeint

    check.floating("x", x)
    check.finite("x", x)
    check.one_of("method", method, ADAPTIVE + FIXED)
    check.one_of("probe", probe, PROBES)
    check.positive("rtol", rtol)
    check.positive("atol", atol)
    if method in FIXED:
        check.positive_int("steps", steps)
    elif steps is not None:
        raise ValueError(f"steps must be None where {method!r} chooses them; fixed steps are taken by {FIXED}")
    start, end = _ends(schedule, t_start, t_end, x.device)
    clock, grid = _clock(schedule, start, end), _angles(schedule, start, end, steps or 1)
    vectors = None if probes is None else _probes(x, probes, probe, noise)
    dims, calls = x[0].numel(), 0
    squares = dims if vectors is None else vectors.square().flatten(2).sum(2).T

    def rate(phi, state):
        """v_hat, and its divergence along each probe."""
        nonlocal calls
        calls += 1
        t = clock(phi)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        r = torch.hypot(alpha, sigma)
        u, time = state[0], t.to(x)

        def guess(y):
            return denoise(y.to(x.dtype), time).to(y)

        x0, products = _exact(guess, r * u) if vectors is None else _hutchinson(guess, r * u, vectors)
        return (alpha / r * u - x0) / (sigma / r), (alpha / r * squares - r * products) / (sigma / r)

    r_start, r_end = (torch.hypot(schedule.alpha(t), schedule.sigma(t)) for t in (start, end))
    u = x.double() / r_start
    state = u, u.new_zeros(len(x), probes or 1)
    options = {"grid_constructor": lambda *_: grid} if method in FIXED else {"norm": _worst}
    path = odeint(rate, state, grid[[0, -1]], rtol=float(rtol), atol=float(atol), method=method, options=options)
    code, gained = r_end * path[0][-1], path[1][-1]
    log_prior = _centred(code, schedule.sigma(end)) if prior is None else prior(code).double()
    if log_prior.shape != x.shape[:1]:
        raise ValueError(f"prior must give one number per sample, ({len(x)},); got {tuple(log_prior.shape)}")
    log_prob = log_prior + gained.mean(1) + dims * (r_end / r_start).log()
    error = torch.full_like(log_prob, 0.0 if probes is None else math.nan)
    if probes is not None and probes > 1:
        error = gained.std(1) / math.sqrt(probes)
    tolerances = (None, None) if method in FIXED else (float(rtol), float(atol))
    return Likelihood(log_prob, error, code.to(x.dtype), calls, *tolerances)


def _ends(schedule, t_start, t_end, device):
    """The two times, float64 on the device; raises unless they lie in the schedule, in order, with noise at both."""
    start = schedule.t_min if t_start is None else t_start
    end = schedule.t_max if t_end is None else t_end
    if not schedule.t_min <= start < end <= schedule.t_max:
        raise ValueError(
            f"t_start and t_end need {schedule.t_min:g} ≤ t_start < t_end ≤ {schedule.t_max:g}; got {start} and {end}"
        )
    ends = torch.tensor([start, end], dtype=torch.float64)
    if not schedule.sigma(ends)[0] > 0:
        raise ValueError(
            f"t_start must be a time at which sigma > 0: data without noise may have no density; got {start}"
        )
    return ends.to(device).unbind()


def _angle(schedule, t):
    """phi = atan(sigma / alpha), which grows with t: ½ pi where alpha = 0."""
    return torch.atan2(schedule.sigma(t), schedule.alpha(t))


def _clock(schedule, start, end, parts=512):
    """The time at which the schedule has an angle, by six searches of a grid; does not wait for the device."""
    shares = torch.arange(1, parts, dtype=torch.float64, device=start.device) / parts

    def time(phi):
        low, width = start, end - start
        for _ in range(6):
            passed = (_angle(schedule, low + width * shares) <= phi).sum()
            low, width = low + width * passed / parts, width / parts
        return low

    return time


def _angles(schedule, start, end, steps):
    """Angles from start to end, uniform in log(1 + alpha/sigma): in the log-SNR near the data, up to alpha = 0."""
    ends = torch.stack([start, end])
    most, least = torch.log1p(schedule.alpha(ends) / schedule.sigma(ends)).unbind()
    shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=start.device)
    angles = torch.atan2(torch.ones_like(shares), torch.expm1(most + (least - most) * shares))
    angles[0], angles[-1] = _angle(schedule, start), _angle(schedule, end)
    return angles


def _probes(x, count, kind, noise):
    """``count`` probes per sample, (count, batch, *data) in float64."""
    check.positive_int("probes", count)
    normal = torch.stack([noise(x) for _ in range(count)]).double()
    return normal if kind == "gaussian" else torch.where(normal < 0, -1.0, 1.0).to(normal)


def _centred(x, sigma):
    """log N(x; 0, sigma²) per sample."""
    return (-0.5 * (x / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def _worst(state):
    """The root mean square of the worst sample: a sample's accuracy does not depend on its company."""
    return torch.stack([part.square().flatten(1).mean(1).max() for part in state]).max().sqrt()


def dequantize(
    x: Float[Tensor, "batch *data"], bins: int = 256, *, noise=torch.rand_like
) -> Float[Tensor, "batch *data"]:
    """x + (u − ½) 2/(bins − 1): uniform in the bin of each level −1, −1 + 2/(bins − 1), …, 1 (Theis et al. 2016).

    The bins are those of ``losses.discretized_gaussian_log_likelihood``, but for the outermost two, which end half a
    level outside [−1, 1]. The mean over u of −log p(x) bounds that of the levels' probability from above:
    ``bits_per_dim(-log_prob, dims, bin_width=2 / (bins - 1))``, for bytes 2/255, not 2/256. ``noise(x)`` is u, uniform
    in [0, 1). Raises TypeError unless x is a floating-point tensor, ValueError for bins < 2 and, on the CPU, x off the
    levels.
    """
    check.floating("x", x)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise ValueError(f"bins must be an integer, at least 2; got {bins!r}")
    if x.device.type == "cpu":
        level = (x.double() + 1) / 2 * (bins - 1)
        on_levels = ((level - level.round()).abs() < 0.05) & (x.abs() < 1 + 0.1 / bins)
        if not on_levels.all():
            raise ValueError(f"x must lie on the {bins} levels from -1 to 1; got {x[~on_levels][0].item():g}")
    return x + (noise(x) - 0.5) * (2 / (bins - 1))
