"""What a network is trained on and judged by: a weighting times a squared error, and the variational bound.

The bound is counted in nats, as a bound on −log p(x0): larger is worse. Each of its terms has a closed form.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion.forward import q_sample
from companion.predictions import make_target, target_coefficients


def simple_loss(
    denoiser, x0: Float[Tensor, "batch *data"], t: Float[Tensor, "batch"], noise=None, cond=None, *, weight=None
) -> Tensor:
    """The mean squared error of the network's output against its target at the given times; a scalar.

    ``denoiser`` is a ``Denoiser``: it knows the schedule and the prediction kind. ``noise`` is eps, drawn when not
    given. ``weight(t)`` gives one factor per sample, (batch,); without it the loss is unweighted, and with kind "eps"
    it is Ho et al. 2020, eq. 14. Raises ValueError for shapes that do not fit.
    """
    noise = torch.randn_like(x0) if noise is None else noise
    x = q_sample(x0, t, denoiser.schedule, noise)
    target = make_target(denoiser.kind, x0, noise, denoiser.schedule, t)
    error = denoiser.output(x, t, cond) - target
    if weight is None:
        return error.square().mean()
    weights = weight(t)
    check.same_shape("weight(t)", weights, "t", t)
    return (check.like(weights, error) * error.square()).mean()


# ---- weightings: factors on the squared error of a kind's own output ------------------------------------------------


def _ratios(kind, schedule, t):
    """At fixed x, an error of the kind's output is one of x0 times 1/first, and one of eps times 1/second, up to sign.

    The two are sigma / det and alpha / det of the kind's 2×2 system, written so that they exist at both ends.
    """
    p, q = target_coefficients(kind, schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    determinant = alpha * q - sigma * p
    return torch.where(q == 0, 1 / p, sigma / determinant), torch.where(p == 0, 1 / q, alpha / determinant)


def continuous_elbo_weight(schedule, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
    """−½ d SNR/dt, the continuous bound's factor on ||x0 − x0_hat||², of t's shape (Kingma et al. 2021, eq. 15).

    Its integral over t times the expected squared error (summed over coordinates) is the diffusion term in nats. Not
    finite where sigma = 0. Raises TypeError unless t is a floating-point tensor.
    """
    check.floating("t", t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha * (alpha * schedule.sigma_rate(t) - sigma * schedule.alpha_rate(t)) / sigma**3


def elbo_weight(schedule, t: Float[Tensor, "*time"], kind: str) -> Float[Tensor, "*time"]:
    """The continuous bound's factor on the squared error of the kind's own output, of t's shape.

    ``continuous_elbo_weight`` for kind "x0"; −½ d log SNR/dt for "eps" (Kingma et al. 2021, eq. 17). Not finite where
    sigma = 0, nor for eps and score where alpha = 0. Raises ValueError for an unknown kind, TypeError as above.
    """
    check.floating("t", t)
    return continuous_elbo_weight(schedule, t) * _ratios(kind, schedule, t)[0] ** 2


def min_snr_weight(schedule, t: Float[Tensor, "*time"], kind: str, gamma: float | int = 5.0) -> Float[Tensor, "*time"]:
    """min(SNR, gamma) on the squared error of x0_hat, in terms of the kind's own, of t's shape (Hang et al. 2023).

    For x0, eps and, on variance-preserving paths, v: min(SNR, gamma) times 1, 1/SNR, 1/(SNR + 1); finite at both ends.
    Raises ValueError for an unknown kind or gamma ≤ 0, TypeError unless t is a floating-point tensor.
    """
    check.floating("t", t)
    check.positive("gamma", gamma)
    of_x0, of_eps = _ratios(kind, schedule, t)
    return torch.minimum(of_eps**2, gamma * of_x0**2)


def p2_weight(
    schedule, t: Float[Tensor, "*time"], kind: str, gamma: float | int = 1.0, k: float | int = 1.0
) -> Float[Tensor, "*time"]:
    """1 / (k + SNR)^gamma on the squared error of eps_hat, in terms of the kind's own, of t's shape (Choi et al. 2022).

    gamma = 0 would be the simple loss of eps. For kind "x0" not finite where sigma = 0. Raises ValueError for an
    unknown kind, gamma ≤ 0 or k ≤ 0, TypeError unless t is a floating-point tensor.
    """
    check.floating("t", t)
    check.positive("gamma", gamma)
    check.positive("k", k)
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    return _ratios(kind, schedule, t)[1] ** 2 / (k + snr) ** gamma


# ---- Gaussians: divergence, mass of a bin, a variance between two ---------------------------------------------------


def _positive(name, value, x):
    """``value`` as a tensor of x's dtype; looked at on the CPU only, as elsewhere a check would wait for the device."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.device.type == "cpu" and not (value > 0).all():
        raise ValueError(f"{name} must be above 0 everywhere; got {value[~(value > 0)].flatten()[0].item():g}")
    return value


def normal_kl(mean1: Tensor, variance1, mean2, variance2) -> Tensor:
    """KL(N(mean1, variance1) ‖ N(mean2, variance2)) of each coordinate, in nats.

    Tensors or numbers that broadcast; the result is not summed. Raises TypeError unless mean1 is a floating-point
    tensor, ValueError unless both variances are above 0.
    """
    check.floating("mean1", mean1)
    variance1, variance2 = _positive("variance1", variance1, mean1), _positive("variance2", variance2, mean1)
    ratio = variance1.log() - variance2.log()
    return 0.5 * (torch.expm1(ratio) - ratio + (mean1 - mean2) ** 2 / variance2)


def discretized_gaussian_log_likelihood(x: Float[Tensor, "*data"], mean, std, *, bins: int = 256) -> Tensor:
    """Log of the mass that N(mean, std²) gives to the bin of x, in nats, elementwise (Ho et al. 2020, eq. 13).

    x lies on the levels −1, −1 + 2/(bins − 1), …, 1; a bin reaches half a level to either side, the first and the last
    to infinity, so that the masses sum to 1. mean and std broadcast to x. Computed in float64 from differences of
    log-probabilities, finite far in the tails; returned in x's dtype. Raises TypeError unless x is a floating-point
    tensor, ValueError for bins < 2, std ≤ 0 and, on the CPU, x off the levels.
    """
    check.floating("x", x)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise ValueError(f"bins must be an integer, at least 2; got {bins!r}")
    wide = x.double()
    mean, std = torch.as_tensor(mean, dtype=wide.dtype, device=x.device), _positive("std", std, wide)
    level = (wide + 1) / 2 * (bins - 1)
    index = level.round()
    if x.device.type == "cpu" and not (((level - index).abs() < 0.05) & (index >= 0) & (index < bins)).all():
        raise ValueError(f"x must lie on the {bins} levels −1 … 1; got values from {x.min():g} to {x.max():g}")
    low, high = (((2 * index + side) / (bins - 1) - 1 - mean) / std for side in (-1, 1))
    # the open bins: all below the upper edge of the first, all above the lower edge of the last
    first, last = torch.special.log_ndtr(high), torch.special.log_ndtr(-low)
    turned = low + high > 0  # in the upper tail the mirrored bin, whose log-probabilities keep their digits
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    below, upto = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    inside = upto + torch.log(-torch.expm1(below - upto))
    return torch.where(index == 0, first, torch.where(index == bins - 1, last, inside)).to(x)


def interpolated_variance(v: Tensor, posterior_variance, forward_variance) -> Tensor:
    """exp(v log forward + (1 − v) log posterior), a learned variance (Nichol & Dhariwal 2021, eq. 15).

    v is the network's second output mapped to [0, 1]; all three broadcast. Raises TypeError unless v is a
    floating-point tensor, ValueError unless both variances are above 0: the last step, to the data, needs another one.
    """
    check.floating("v", v)
    posterior = _positive("posterior_variance", posterior_variance, v)
    forward = _positive("forward_variance", forward_variance, v)
    return torch.exp(v * forward.log() + (1 - v) * posterior.log())


# ---- the variational bound ------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """−log p(x0) ≤ reconstruction + prior + diffusion, each (batch,), in nats per sample: larger is worse."""

    reconstruction: Tensor
    prior: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, (batch,), in nats per sample."""
        return self.reconstruction + self.prior + self.diffusion


class StepWeights(NamedTuple):
    """KL of a step = weight ||x0 − x0_hat||² + constant × dimensions, in nats; both (steps,), in the grid's order."""

    weight: Tensor
    constant: Tensor


def step_weights(schedule, ts: Float[Tensor, "nodes"], variance: str = "posterior") -> StepWeights:
    """w_t of KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) for the steps of a decreasing grid on which sigma > 0.

    With the posterior variance w_t = ½ (SNR(s) − SNR(t)) (Kingma et al. 2021, eq. 13); with the forward one, that of
    q(x_t | x_s), it is sigma_s²/sigma_t² times that, and the variances differ too, which costs a constant per
    dimension. In float64. Raises ValueError for another variance, or a grid that does not decrease or leaves sigma > 0.
    """
    check.one_of("variance", variance, ("posterior", "forward"))
    ts = _noisy_part(schedule, ts)
    log_snr = schedule.log_snr(ts)
    weight = -0.5 * log_snr[1:].exp() * torch.expm1(log_snr[:-1] - log_snr[1:])
    if variance == "posterior":
        return StepWeights(weight, torch.zeros_like(weight))
    shrink = 2 * (schedule.sigma(ts[1:]).log() - schedule.sigma(ts[:-1]).log())  # log of posterior over forward
    return StepWeights(weight * shrink.exp(), 0.5 * (torch.expm1(shrink) - shrink))


def _noisy_part(schedule, ts, may_be_clean=False):
    """The grid in float64, less a last node at the data where that is allowed; raises unless it is a grid."""
    check.floating("ts", ts)
    ts = ts.to("cpu", torch.float64)
    check.finite("ts", ts)
    if ts.ndim != 1 or not (ts[1:] < ts[:-1]).all():
        raise ValueError(f"ts must have shape (nodes,) and decrease, noise first; got shape {tuple(ts.shape)}")
    if len(ts) and not schedule.t_min <= ts[-1] <= ts[0] <= schedule.t_max:
        raise ValueError(f"ts must lie in the schedule's [{schedule.t_min:g}, {schedule.t_max:g}]; got {ts[0]:g} …")
    ts = ts[:-1] if may_be_clean and len(ts) and schedule.sigma(ts[-1]) == 0 else ts
    if len(ts) < 2 or not (schedule.sigma(ts) > 0).all():
        raise ValueError("ts must have at least two nodes with sigma > 0, and no other one unless it is the last")
    return ts


def _visits(ts, weight, steps, batch):
    """(t, factor) whose factor × squared error adds up to the diffusion term: every step, or ``steps`` per sample.

    Drawn steps share one uniform shift: each sample's are uniform over the chain, and the batch's cover it evenly
    (Kingma et al. 2021, appendix I.1).
    """
    if steps is None:
        yield from zip(ts[:-1], weight, strict=True)
        return
    shift, one_each = torch.rand((), dtype=torch.float64), torch.arange(batch, dtype=torch.float64)
    for j in range(steps):
        even = (shift + (j * batch + one_each) / (steps * batch)) % 1
        drawn = (even * len(weight)).long().clamp(max=len(weight) - 1)
        yield ts[drawn], len(weight) / steps * weight[drawn]


@torch.no_grad()
def elbo(
    denoise,
    x0: Float[Tensor, "batch *data"],
    schedule=None,
    *,
    ts: Float[Tensor, "nodes"],
    variance: str = "posterior",
    bins: int | None = None,
    steps: int | None = None,
    noise=torch.randn_like,
) -> Bound:
    """One unbiased estimate per sample of the variational bound on −log p(x0), in nats (Ho et al. 2020, eq. 5).

    ``denoise(x, t) -> x0_hat`` walks the chain ``ts``; a ``Denoiser`` brings its schedule. The chain starts from
    N(0, sigma²) at ts[0] (prior), each step draws from the Gaussian around the posterior mean given x0_hat, with the
    ``variance`` of ``samplers.ancestral`` (diffusion), and from its last node with sigma > 0, whether or not the data
    follow, x0 is drawn from N(x0_hat, (sigma/alpha)²) (reconstruction): a density, or with ``bins`` the probability of
    8-bit levels in [−1, 1]. One x_t is drawn per step, by ``noise(x0)``; with ``steps`` only so many random steps per
    sample, weighted to stay unbiased. No gradient. Raises ValueError for a grid that does not decrease or has fewer
    than two nodes with sigma > 0, for x0 that is not finite, TypeError where no schedule is given.
    """
    check.floating("x0", x0)
    check.finite("x0", x0)
    schedule = getattr(denoise, "schedule", None) if schedule is None else schedule
    if schedule is None:
        raise TypeError("schedule must be given, as denoise does not bring one")
    if steps is not None:
        check.positive_int("steps", steps)
    ts = _noisy_part(schedule, ts, may_be_clean=True)
    weight, constant = step_weights(schedule, ts, variance)

    def guess(t):
        return denoise(q_sample(x0, t.to(x0.device), schedule, noise(x0)), t.to(x0))

    diffusion = x0.new_full((len(x0),), constant.sum().item() * x0[0].numel())
    for t, factor in _visits(ts, weight, steps, len(x0)):
        diffusion = diffusion + factor.to(x0) * _per_sample((x0 - guess(t)) ** 2)
    alpha, sigma = schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist()
    prior = normal_kl(alpha[0] * x0, sigma[0] ** 2, 0.0, sigma[0] ** 2)
    mean, std = guess(ts[-1]), sigma[-1] / alpha[-1]
    if bins is None:
        log_likelihood = -0.5 * ((x0 - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    else:
        log_likelihood = discretized_gaussian_log_likelihood(x0, mean, std, bins=bins)
    return Bound(_per_sample(-log_likelihood), _per_sample(prior), diffusion)


def _per_sample(value):
    return value.flatten(1).sum(1)


def bits_per_dim(nats: Tensor, dims: int, *, bin_width: float | int = 1.0) -> Tensor:
    """−log p in nats per sample, as bits per dimension of data in levels: nats / (dims ln 2) − log2(bin_width).

    ``bin_width`` is the width of one level on the scale of the density: 1 where ``nats`` come from a probability
    (``elbo`` with ``bins``) or from a density on 0 … 255; 1/256 (8 bits added) for dequantised data in [0, 1]; 2/256
    (7 bits) for dequantised data that fill [−1, 1]; 2/255 (6.994) where the 256 levels run from −1 to 1. For a density
    the result bounds the probability only if its data were dequantised (Theis et al. 2016). Raises TypeError unless
    nats is a floating-point tensor, ValueError for dims or bin_width not above 0.
    """
    check.floating("nats", nats)
    check.positive_int("dims", dims)
    check.positive("bin_width", bin_width)
    return nats / (dims * math.log(2)) - math.log2(bin_width)
