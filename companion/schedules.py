"""A schedule is two functions of time, alpha(t) and sigma(t); a grid is a decreasing walk from noise to data.

Everything else (signal-to-noise ratio, rates, drift and diffusion) is derived from the two, here and in ``forward``.
``alpha`` is the square root of the papers' cumulative product (Ho et al. 2020, eq. 4).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check


class Schedule:
    """The path x_t = alpha(t) x0 + sigma(t) eps; a subclass needs ``alpha`` and ``sigma``, for t of any shape.

    Time runs from ``t_min`` (data) to ``t_max`` (noise). ``alpha`` must not increase and ``alpha / sigma`` must
    decrease. Everything else in this class is derived from the two.
    """

    t_min: float = 0.0
    t_max: float = 1.0

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The factor on the data at time t, between 0 and 1."""
        raise TypeError(f"{type(self).__name__} must define alpha(t)")

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The standard deviation of the noise at time t."""
        raise TypeError(f"{type(self).__name__} must define sigma(t)")

    def alpha_sigma(self, t: Float[Tensor, "*time"]) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)), each of t's shape: one call where both are wanted at every step."""
        return self.alpha(t), self.sigma(t)

    def half_log_snr(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """lambda(t) = log(alpha / sigma), the time variable of Lu et al. 2022; infinite where alpha or sigma is 0."""
        return self.alpha(t).log() - self.sigma(t).log()

    def log_snr(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """log(alpha² / sigma²), the natural logarithm of the signal-to-noise ratio (Kingma et al. 2021)."""
        return 2 * self.half_log_snr(t)

    def alpha_rate(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """d alpha / dt, by forward-mode differentiation."""
        return torch.func.jvp(self.alpha, (t.contiguous(),), (torch.ones_like(t).contiguous(),))[1]

    def sigma_rate(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """d sigma / dt, by forward-mode differentiation; infinite at t = 0 of the linear schedule."""
        return torch.func.jvp(self.sigma, (t.contiguous(),), (torch.ones_like(t).contiguous(),))[1]

    def time_of(self, half_log_snr: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The time at which lambda has the given value, by bisection in float64.

        Raises ValueError where no time between ``t_min`` and ``t_max`` has it.
        """
        target = torch.as_tensor(half_log_snr, dtype=torch.float64)
        low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
        most, least = self.half_log_snr(low), self.half_log_snr(high)
        slack = 1e-9 * (1 + target.abs().nan_to_num(posinf=0.0))  # an infinite target is met by an infinite end only
        if not ((target <= most + slack) & (target >= least - slack)).all():
            raise ValueError(
                f"half_log_snr must lie between {least.min():.4g} and {most.max():.4g} on this schedule; "
                f"got {target.min():.4g} … {target.max():.4g}"
            )
        for _ in range(100):
            middle = (low + high) / 2
            noisier = self.half_log_snr(middle) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2


class LinearVP(Schedule):
    """Variance preserving with the rate beta(t) = beta_min + t (beta_max − beta_min), 0 ≤ t ≤ 1.

    The continuous form of Ho et al.'s linear betas (Song et al. 2021, eq. 33): 1000 steps of 1e-4 … 0.02 are about
    ``LinearVP(0.1, 20)``. Raises ValueError unless 0 < beta_min ≤ beta_max.
    """

    def __init__(self, beta_min: float | int = 0.1, beta_max: float | int = 20.0):
        check.positive("beta_min", beta_min)
        check.positive("beta_max", beta_max)
        if beta_max < beta_min:
            raise ValueError(f"beta_max must be at least beta_min = {beta_min}; got {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """−½ of the integral of beta from 0 to t."""
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """exp(−½ of the integral of beta)."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """sqrt(1 − alpha²), by expm1, which keeps its digits near t = 0."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()


class SubVP(LinearVP):
    """The alpha of ``LinearVP`` with less noise, sigma = 1 − alpha² instead of its root (Song et al. 2021, eq. 29).

    Raises as ``LinearVP`` does.
    """

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """1 − alpha², by expm1, which keeps its digits near t = 0."""
        return -torch.expm1(2 * self.log_alpha(t))


class CosineVP(Schedule):
    """Variance preserving with alpha a quarter of a cosine, 0 ≤ t ≤ 1 (Nichol & Dhariwal 2021, eq. 17).

    alpha(0) = 1 and alpha(1) = 0 exactly; ``s`` keeps the first steps from being too small. Raises ValueError
    unless s ≥ 0.
    """

    def __init__(self, s: float | int = 0.008):
        if not (isinstance(s, int | float) and math.isfinite(s) and s >= 0):
            raise ValueError(f"s must be a finite number, at least 0; got {s!r}")
        self.s = s
        self._start = math.pi / 2 * s / (1 + s)

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """cos((t+s)/(1+s) π/2) / cos(s/(1+s) π/2), written as a sine so that it is exactly 0 at t = 1."""
        return torch.sin(math.pi / 2 * (1 - t) / (1 + self.s)) / math.cos(self._start)

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """sqrt(1 − alpha²), by sin²a − sin²b = sin(a−b) sin(a+b), which keeps its digits near t = 0."""
        turn = math.pi / 2 * t / (1 + self.s)
        if self.s == 0:
            return torch.sin(turn)
        return (torch.sin(turn) * torch.sin(turn + 2 * self._start)).sqrt() / math.cos(self._start)


class LinearLogSNR(Schedule):
    """Variance preserving with a log-SNR that falls in a straight line from ``most`` to ``least``, 0 ≤ t ≤ 1.

    On it the simple loss of kind "eps" is the continuous bound, up to a constant factor (Kingma et al. 2021, eq. 17);
    13.3 and −5 are the ends they learned for pictures. Its cleanest node, t = 0, still carries noise. Raises
    ValueError unless most > least, both finite.
    """

    def __init__(self, most: float | int = 13.3, least: float | int = -5.0):
        if not (math.isfinite(most) and math.isfinite(least) and most > least):
            raise ValueError(f"most must be above least, both finite; got {most} and {least}")
        self.most, self.least = most, least

    def log_snr(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """most + t (least − most)."""
        return self.most + t * (self.least - self.most)

    def half_log_snr(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """Half of ``log_snr``."""
        return 0.5 * self.log_snr(t)

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The square root of the log-SNR's logistic sigmoid."""
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The square root of the sigmoid of its negative."""
        return torch.sigmoid(-self.log_snr(t)).sqrt()


class DiscreteVP(Schedule):
    """A table of T noise levels, variance preserving; t = 0 is data and t = i is ``alphas_cumprod[i − 1]``.

    Between nodes the log-SNR is interpolated, so that rates and solvers work at any real t in [0, T]; between t = 0
    and t = 1 the variance grows linearly. Raises ValueError unless 1 > alphas_cumprod[0] > … ≥ 0.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, "T"]):
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        if table.ndim != 1 or table.numel() < 1:
            raise ValueError(f"alphas_cumprod must have shape (T,) with T ≥ 1; got {tuple(table.shape)}")
        check.finite("alphas_cumprod", table)
        if not (table[0] < 1 and table[-1] >= 0 and (table[1:] < table[:-1]).all()):
            raise ValueError("alphas_cumprod must decrease and stay below 1 and not below 0")
        self.alphas_cumprod = table
        self.t_max = float(table.numel())
        log_snr = table.log() - torch.log1p(-table)
        rise = (torch.cat([log_snr[1:], log_snr[-1:]]) - log_snr).nan_to_num(nan=0.0, neginf=0.0)
        self._nodes, self._on = F.pad(torch.stack([log_snr, rise, table], 1), (0, 0, 1, 0)), {}  # row i is of t = i
        self._to_zero = table[-1].item() == 0  # then the last log-SNR is infinite, and alpha² goes there linearly
        self._first = 1 - table[0].item()

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float | int = 1e-4, beta_end: float | int = 0.02) -> "DiscreteVP":
        """Betas in equal steps from ``beta_start`` to ``beta_end`` (Ho et al. 2020, section 4)."""
        check.positive_int("T", T)
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"beta_start and beta_end need 0 < beta_start ≤ beta_end < 1; got {beta_start}, {beta_end}"
            )
        betas = torch.linspace(beta_start, beta_end, T, dtype=torch.float64)
        return cls(torch.cumprod(1 - betas, 0))

    @classmethod
    def cosine(cls, T: int = 1000, s: float | int = 0.008, max_beta: float | int = 0.999) -> "DiscreteVP":
        """Betas from the squared cosine, none above ``max_beta`` (Nichol & Dhariwal 2021, section 3.2)."""
        check.positive_int("T", T)
        alpha_bar = CosineVP(s).alpha(torch.linspace(0, 1, T + 1, dtype=torch.float64)) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)
        return cls(torch.cumprod(1 - betas, 0))

    @property
    def betas(self) -> Float[Tensor, "T"]:
        """beta_t = 1 − alphas_cumprod[t−1] / alphas_cumprod[t−2]: the variance added by step t, t = 1 … T."""
        return 1 - self.alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    def _variances(self, t):
        """alpha² and sigma² in float64 at any real t, by interpolation of the log-SNR."""
        time, last = t.to(torch.float64), max(len(self.alphas_cumprod) - 1, 1)
        if t.device not in self._on:  # copied once: a captured loop may not copy from the host
            self._on[t.device] = self._nodes.to(t.device)
        left = time.detach().long().clamp(1, last)
        part = time - left
        here, rise, level = F.embedding(left, self._on[t.device]).unbind(-1)  # brackets would ask the host
        inside = torch.addcmul(here, part, rise)
        signal, noise = inside.sigmoid(), (-inside).sigmoid()
        if self._to_zero:
            linear = level * (1 - part)
            signal, noise = torch.where(left < last, signal, linear), torch.where(left < last, noise, 1 - linear)
        first, beyond = time * self._first, time >= 1  # up to the first node the variance grows linearly
        return torch.where(beyond, signal, 1 - first), torch.where(beyond, noise, first)

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The square root of the table's entry, interpolated between nodes."""
        return self._variances(t)[0].sqrt().to(t.dtype)

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """sqrt(1 − alpha²), interpolated between nodes."""
        return self._variances(t)[1].sqrt().to(t.dtype)

    def alpha_sigma(self, t: Float[Tensor, "*time"]) -> tuple[Tensor, Tensor]:
        """Both, from one look into the table."""
        signal, noise = self._variances(t)
        return signal.sqrt().to(t.dtype), noise.sqrt().to(t.dtype)


class VE(Schedule):
    """Variance exploding: alpha = 1 and sigma from sigma_min to sigma_max in equal ratios, 0 ≤ t ≤ 1.

    Song et al. 2021, eq. 31. Its cleanest node, t = 0, still carries noise of sigma_min. Raises ValueError unless
    0 < sigma_min < sigma_max.
    """

    def __init__(self, sigma_min: float | int = 0.01, sigma_max: float | int = 50.0):
        check.positive("sigma_min", sigma_min)
        check.positive("sigma_max", sigma_max)
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max must be above sigma_min = {sigma_min}; got {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """One at every time."""
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))


class RectifiedFlow(Schedule):
    """The straight path alpha = 1 − t, sigma = t, 0 ≤ t ≤ 1 (Liu et al. 2023; Lipman et al. 2023)."""

    def alpha(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """1 − t."""
        return 1 - t

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """t."""
        return t


# ---- grids: N+1 decreasing times, noise first -----------------------------------------------------------------------


def _ends(schedule, t_start, t_end):
    start = schedule.t_max if t_start is None else t_start
    end = schedule.t_min if t_end is None else t_end
    if not schedule.t_min <= end < start <= schedule.t_max:
        raise ValueError(
            f"t_start and t_end need {schedule.t_min} ≤ t_end < t_start ≤ {schedule.t_max}; got {start} and {end}"
        )
    return float(start), float(end)


def linspace(schedule: Schedule, steps: int, *, t_start=None, t_end=None) -> Float[Tensor, "nodes"]:
    """Equal steps of time from ``t_start`` (default t_max) to ``t_end`` (default t_min).

    Returns ``steps + 1`` decreasing times in float64, as every grid here does. Raises ValueError for steps < 1 or
    ends outside the schedule.
    """
    check.positive_int("steps", steps)
    return torch.linspace(*_ends(schedule, t_start, t_end), steps + 1, dtype=torch.float64)


def _table_size(schedule, steps):
    check.positive_int("steps", steps)
    if not isinstance(schedule, DiscreteVP):
        raise TypeError(f"schedule must be a DiscreteVP: integer grids need a table; got {type(schedule).__name__}")
    T = len(schedule.alphas_cumprod)
    if steps > T:
        raise ValueError(f"steps must not exceed the table's T = {T}; got {steps}")
    return T


def trailing(schedule: DiscreteVP, steps: int) -> Float[Tensor, "nodes"]:
    """Integer nodes T, T − T/steps, …, counted back from the noisiest one, then the data at 0 (Lin et al. 2024).

    Raises TypeError for a schedule that is not a table, ValueError for more steps than nodes.
    """
    T = _table_size(schedule, steps)
    return torch.round(T - torch.arange(steps + 1, dtype=torch.float64) * T / steps)


def leading(schedule: DiscreteVP, steps: int) -> Float[Tensor, "nodes"]:
    """Integer nodes 1, 1 + T//steps, …, counted up from the cleanest one, then the data at 0.

    The grid of many published DDIM results. It never visits the noisiest node T (except with steps = T): the sampler
    starts from pure noise at a time whose marginal is not pure noise. Raises as ``trailing`` does.
    """
    T = _table_size(schedule, steps)
    visited = 1 + torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (T // steps)
    return torch.cat([visited, torch.zeros(1, dtype=torch.float64)])


def _in_ratio(schedule, steps, t_start, t_end, sigma_min, sigma_max, forth, back):
    """Nodes equally spaced in forth(sigma / alpha); a clean end is reached by a last step from sigma_min."""
    check.positive_int("steps", steps)
    start, end = (torch.tensor(t, dtype=torch.float64) for t in _ends(schedule, t_start, t_end))
    most = (schedule.sigma(start) / schedule.alpha(start)).item()
    empty = math.isinf(most)
    most = sigma_max if empty else most
    least = (schedule.sigma(end) / schedule.alpha(end)).item()
    clean = least == 0
    least = sigma_min if clean else least
    if not 0 < least < most:
        raise ValueError(f"sigma_min must be above 0 and below the start's sigma/alpha = {most:.4g}; got {least}")
    ratios = back(torch.linspace(forth(most), forth(least), steps + (0 if clean else 1), dtype=torch.float64))
    times = schedule.time_of(-ratios.log())
    times[0] = times[0] if empty else start
    return torch.cat([times if clean else times[:-1], end[None]])


def karras(
    schedule: Schedule, steps: int, *, rho: float | int = 7.0, t_start=None, t_end=None, sigma_min=0.002, sigma_max=80.0
) -> Float[Tensor, "nodes"]:
    """Equal steps of (sigma/alpha)^(1/rho), finer near the data (Karras et al. 2022, eq. 5).

    Where the end is clean (sigma = 0) the last step goes there from sigma/alpha = ``sigma_min``; where the start holds
    no data (alpha = 0) the walk starts where sigma/alpha = ``sigma_max``. Raises ValueError for ends outside the
    schedule.
    """
    check.positive("rho", rho)
    return _in_ratio(schedule, steps, t_start, t_end, sigma_min, sigma_max, lambda r: r ** (1 / rho), lambda u: u**rho)


def uniform_log_snr(
    schedule: Schedule, steps: int, *, t_start=None, t_end=None, sigma_min=0.002, sigma_max=80.0
) -> Float[Tensor, "nodes"]:
    """Equal steps of the log-SNR (Lu et al. 2022, section 4); its ends as in ``karras``."""
    return _in_ratio(schedule, steps, t_start, t_end, sigma_min, sigma_max, math.log, torch.exp)


def shifted(ts: Float[Tensor, "*time"], shift: float | int) -> Float[Tensor, "*time"]:
    """shift t / (1 + (shift − 1) t): times of the straight path, moved towards noise by ``shift`` > 1.

    At the new time sigma / alpha of ``RectifiedFlow`` is ``shift`` times what it was. An image with k times as many
    pixels a side, equal pixels side by side, is as uncertain after averaging them at shift = k (Esser et al. 2024, eq.
    23: the root of the ratio of pixel numbers). Shifts compose: by a, then by b, is by ab. ts lie in [0, 1]; the ends
    stay. Raises ValueError for shift not above 0 or times outside [0, 1], TypeError unless ts are floating point.
    """
    check.positive("shift", shift)
    check.floating("ts", ts)
    if not ((ts >= 0) & (ts <= 1)).all():
        raise ValueError(f"ts must lie in [0, 1]; got {ts.min().item():g} … {ts.max().item():g}")
    return shift * ts / (shift * ts + (1 - ts))  # at t = 1 this is 1 exactly


def rescale_zero_terminal_snr(schedule: DiscreteVP) -> DiscreteVP:
    """The same table shifted and stretched so that its last alpha is exactly 0 (Lin et al. 2024, algorithm 1).

    The first alpha stays as it was. Raises TypeError for a schedule that is not a table.
    """
    _table_size(schedule, 1)
    root = schedule.alphas_cumprod.sqrt()
    return DiscreteVP(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)
