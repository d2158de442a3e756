"""What a network is trained on and judged by: a weighting times a squared error, and the variational bound.

The bound is counted in nats, as a bound on −log p(x0): larger is worse. Each of its terms has a closed form.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion import _divergence
from companion.forward import q_sample
from companion.predictions import target_coefficients, to_x0_eps


def simple_loss(
    denoiser,
    x0: Float[Tensor, "batch *data"],
    t: Float[Tensor, "batch"],
    noise=None,
    cond=None,
    *,
    weight=None,
    per_sample: bool = False,
) -> Tensor:
    """The mean squared error of the network's output against its target at the given times; a scalar.

    ``denoiser`` is a ``Denoiser`` or ``EDMPrecond``: it knows the schedule and what its network's target is. ``noise``
    is eps, drawn when not given. ``weight(t)`` gives one factor per sample, (batch,); without it the loss is
    unweighted, and with kind "eps" it is Ho et al. 2020, eq. 14. With ``per_sample`` the mean over the batch is left to
    the caller: (batch,). Raises ValueError for shapes that do not fit.
    """
    error = _error(denoiser, x0, t, noise, cond)
    if weight is None:
        return error.square().flatten(1).mean(1) if per_sample else error.square().mean()
    weights = weight(t)
    check.same_shape("weight(t)", weights, "t", t)
    weighted = check.like(weights, error) * error.square()
    return weighted.flatten(1).mean(1) if per_sample else weighted.mean()


def flow_matching_loss(
    denoiser,
    x0: Float[Tensor, "batch *data"],
    t: Float[Tensor, "batch"],
    noise=None,
    cond=None,
    *,
    per_sample: bool = False,
) -> Tensor:
    """The mean squared error of the velocity against that of the straight or curved path through x0 and noise.

    The path's velocity is d alpha/dt x0 + d sigma/dt noise; the expected loss has the gradient of the error against
    the marginal velocity, E[path's velocity | x_t], at which samples flow (Lipman et al. 2023, theorem 2). The
    denoiser's velocity is computed from its output, of whatever kind, so that the loss compares kinds; for kind
    "velocity" it is ``simple_loss``. Returns a scalar, or with ``per_sample`` (batch,). Raises ValueError for shapes
    that do not fit and, on the CPU, where the kind does not determine x0 and eps or the velocity is infinite; TypeError
    for a denoiser without a kind, such as ``EDMPrecond``.
    """
    if not hasattr(denoiser, "kind"):
        raise TypeError(f"denoiser must have a kind, as Denoiser has; {type(denoiser).__name__} has none")
    schedule, error = denoiser.schedule, _error(denoiser, x0, t, noise, cond)
    if denoiser.kind != "velocity":
        p, q = target_coefficients(denoiser.kind, schedule, t)
        alpha, rise = schedule.alpha(t), schedule.alpha_rate(t)
        sigma, growth = schedule.sigma(t), schedule.sigma_rate(t)
        # at fixed x an error e of the output is one of −sigma e / det in x0 and alpha e / det in eps
        factor = (alpha * growth - sigma * rise) / (alpha * q - sigma * p)
        if factor.device.type == "cpu" and not torch.isfinite(factor).all():
            at = t[~torch.isfinite(factor)].flatten()[0].item()
            raise ValueError(f"t must be a time at which kind {denoiser.kind!r} determines the velocity; got {at:g}")
        error = check.like(factor, error) * error
    losses = error.square().flatten(1).mean(1)
    return losses if per_sample else losses.mean()


def _asked(denoiser, x0, t, noise):
    """x_t, and the answer that the network should give there."""
    noise = torch.randn_like(x0) if noise is None else noise
    x = q_sample(x0, t, denoiser.schedule, noise)
    return x, denoiser.target(x0, noise, t)


def _error(denoiser, x0, t, noise, cond):
    """How far the network's output lies from that answer."""
    x, target = _asked(denoiser, x0, t, noise)
    return denoiser.output(x, t, cond) - target


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

    v is the network's second output mapped to [0, 1] (``Denoiser.with_variance``); all three broadcast, and numbers
    stay numbers. Raises TypeError unless v is a floating-point tensor, ValueError unless both variances are above 0:
    the last step, to the data, needs another one.
    """
    check.floating("v", v)
    posterior = _log_positive("posterior_variance", posterior_variance, v)
    forward = _log_positive("forward_variance", forward_variance, v)
    return torch.exp(v * forward + (1 - v) * posterior)


def _log_positive(name, value, x):
    """log(value), of a number on the host: a captured loop may not copy one to the device."""
    if isinstance(value, Tensor):
        return _positive(name, value, x).log()
    check.positive(name, value)
    return math.log(value)


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
    return _weigh(*_gains(schedule, ts[1:], ts[:-1]), 1.0 if variance == "forward" else 0.0)


def _gains(schedule, s, t):
    """½ (SNR(s) − SNR(t)), and the log of the posterior variance over the forward one, for steps from t to s."""
    log_snr_s, log_snr_t = schedule.log_snr(s), schedule.log_snr(t)
    weight = -0.5 * log_snr_s.exp() * torch.expm1(log_snr_t - log_snr_s)
    return weight, 2 * (schedule.sigma(s).log() - schedule.sigma(t).log())


def _weigh(weight, shrink, v):
    """Weight and constant of a step whose variance lies a share v of the way, in logs, from posterior to forward."""
    shrink = v * shrink
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


def _visits(count, steps, batch, device):
    """(number, factor) of the steps whose factor × term adds up to the sum of all: every one, or ``steps`` per sample.

    Drawn steps share one uniform shift: each sample's are uniform over the chain, and the batch's cover it evenly
    (Kingma et al. 2021, appendix I.1).
    """
    if steps is None:
        yield from ((i, 1.0) for i in range(count))
        return
    for even in _shares(steps, batch, device):
        yield (even * count).long().clamp(max=count - 1), count / steps


def _shares(steps, batch, device):
    """(batch,) shares of the walk, ``steps`` times: uniform for each sample, even over its steps and over the batch."""
    shift = torch.rand((), dtype=torch.float64)  # stays on the host, as a number
    one_each = torch.arange(batch, dtype=torch.float64, device=device)
    for j in range(steps):
        yield (shift + (j * batch + one_each) / (steps * batch)) % 1


def _schedule_of(denoise, schedule, x0):
    """The schedule given, or the one that the denoiser brings; raises where there is none or x0 is not as it should."""
    check.floating("x0", x0)
    check.finite("x0", x0)
    schedule = getattr(denoise, "schedule", None) if schedule is None else schedule
    if schedule is None:
        raise TypeError("schedule must be given, as denoise does not bring one")
    return schedule


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
    ``variance`` of ``samplers.ancestral`` (diffusion; "learned" asks ``denoise.with_variance``), and from its last node
    with sigma > 0, whether or not the data follow, x0 is drawn from N(x0_hat, (sigma/alpha)²) (reconstruction): a
    density, or with ``bins`` the probability of 8-bit levels in [−1, 1]. One x_t is drawn per step, by ``noise(x0)``;
    with ``steps`` only so many random steps per sample, weighted to stay unbiased. No gradient. Raises ValueError for
    a grid that does not decrease or has fewer than two nodes with sigma > 0, for x0 that is not finite, TypeError where
    no schedule is given, or "learned" is asked of a denoise that gives no variance.
    """
    schedule = _schedule_of(denoise, schedule, x0)
    if steps is not None:
        check.positive_int("steps", steps)
    check.one_of("variance", variance, ("posterior", "forward", "learned"))
    learned = variance == "learned"
    if learned:
        check.learned_variance(denoise)
    ts = _noisy_part(schedule, ts, may_be_clean=True)
    weight, constant = step_weights(schedule, ts, "posterior" if learned else variance)
    # copied once: nothing in the loop waits for the device
    nodes, shrink, weight = (v.to(x0.device) for v in (ts, _gains(schedule, ts[1:], ts[:-1])[1], weight))

    def noisy(t):
        return q_sample(x0, t, schedule, noise(x0)), t.to(x0)

    diffusion = x0.new_full((len(x0),), constant.sum().item() * x0[0].numel())
    for step, factor in _visits(len(weight), steps, len(x0), x0.device):
        if learned:  # a weight and a constant of each coordinate
            guess, v = denoise.with_variance(*noisy(nodes[step]))
            terms = _weigh(check.like(weight[step], x0), check.like(shrink[step], x0), v)
            diffusion = diffusion + factor * _per_sample(terms.weight * (x0 - guess) ** 2 + terms.constant)
        else:
            squares = _per_sample((x0 - denoise(*noisy(nodes[step]))) ** 2)
            diffusion = diffusion + (factor * weight[step]).to(x0) * squares
    return Bound(*_ends(denoise, x0, schedule, ts[0], ts[-1], bins, noise), diffusion)


@torch.no_grad()
def continuous_elbo(
    denoise,
    x0: Float[Tensor, "batch *data"],
    schedule=None,
    *,
    most: float | int,
    least: float | int,
    bins: int | None = None,
    steps: int = 1,
    noise=torch.randn_like,
) -> Bound:
    """One estimate per sample of the bound that endless steps give between two log-SNRs, in nats.

    Its diffusion is the integral of ½ ||x0 − x0_hat||² over the SNR from exp(least) to exp(most) (Kingma et al. 2021,
    eq. 15), estimated at ``steps`` random times per sample, about even in the log-SNR; prior and reconstruction are
    those of ``elbo`` at the two ends, and so are the other arguments. It depends on the schedule through the ends and
    the denoiser alone. No gradient. Raises ValueError unless most > least and the schedule has both, for x0 that is not
    finite or steps < 1, TypeError where no schedule is given.
    """
    schedule = _schedule_of(denoise, schedule, x0)
    check.positive_int("steps", steps)
    if not most > least:
        raise ValueError(f"most must be above least; got {most} and {least}")
    cells = 1024  # times are uniform in cells of equal log-SNR: no search for each of them
    edges = schedule.time_of(torch.linspace(most / 2, least / 2, cells + 1, dtype=torch.float64))
    clean, noisy = edges[0], edges[-1]
    edges, diffusion = edges.to(x0.device), x0.new_zeros(len(x0))
    for even in _shares(steps, len(x0), x0.device):
        even = even * cells
        cell = even.long().clamp(max=cells - 1)
        width = edges[cell + 1] - edges[cell]
        t = edges[cell] + (even - cell) * width
        factor = (continuous_elbo_weight(schedule, t) * cells * width / steps).to(x0)
        t = t.to(x0)
        squares = (x0 - denoise(q_sample(x0, t, schedule, noise(x0)), t)) ** 2
        diffusion = diffusion + factor * _per_sample(squares)
    return Bound(*_ends(denoise, x0, schedule, noisy, clean, bins, noise), diffusion)


def _ends(denoise, x0, schedule, noisiest, cleanest, bins, noise):
    """The reconstruction at the cleanest time and the prior at the noisiest, each (batch,)."""
    at = torch.stack([noisiest, cleanest])
    (alpha, alpha_clean), (sigma, sigma_clean) = schedule.alpha(at).tolist(), schedule.sigma(at).tolist()
    prior = normal_kl(alpha * x0, sigma**2, 0.0, sigma**2)
    x = q_sample(x0, cleanest.to(x0.device), schedule, noise(x0))
    mean, std = denoise(x, cleanest.to(x0)), sigma_clean / alpha_clean
    if bins is None:
        log_likelihood = _log_density(x0, mean, std)
    else:
        log_likelihood = discretized_gaussian_log_likelihood(x0, mean, std, bins=bins)
    return _per_sample(-log_likelihood), _per_sample(prior)


def _per_sample(value):
    return value.flatten(1).sum(1)


def _log_density(x, mean, std):
    """log N(x; mean, std²) of each coordinate."""
    std = torch.as_tensor(std, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


def hybrid_loss(
    denoiser,
    x0: Float[Tensor, "batch *data"],
    t: Float[Tensor, "batch"],
    noise=None,
    cond=None,
    *,
    step: float | int,
    scale: float | int = 0.001,
    per_sample: bool = False,
) -> Tensor:
    """L_simple + scale × L_vlb, from which a variance is learned beside the mean (Nichol & Dhariwal 2021, eq. 16).

    ``denoiser`` is a ``Denoiser`` with ``learned_variance``. L_vlb stands for the bound of a chain with steps of length
    ``step``, 1 for the nodes of a ``DiscreteVP``: the KL of the step from t to t − step, or, where that is not above
    t_min, −log N(x0; x0_hat, (sigma/alpha)²), times the number of steps (t_max − t_min) / step, so that its mean over
    uniform t is the bound less its prior, in nats per dimension (the paper's code counts bits, so that its ``scale``
    weighs 1.44 times as much). In it x0_hat is held fixed: only v learns from it. Other arguments and errors as in
    ``simple_loss``; raises TypeError for a denoiser that has no variance, ValueError for step or scale not above 0.
    """
    check.positive("step", step)
    check.positive("scale", scale)
    schedule = denoiser.schedule
    x, target = _asked(denoiser, x0, t, noise)
    output, v = denoiser.outputs(x, t, cond)
    guess = to_x0_eps(denoiser.kind, output.detach(), x, schedule, t)[0]
    time = t.double()
    last = time - step <= schedule.t_min
    s = torch.where(last, 0.5 * (time + schedule.t_min), time - step)  # any place where nothing is infinite
    weight, shrink = (check.like(value, x0) for value in _gains(schedule, s, time))
    terms = _weigh(weight, shrink, v)
    reconstruction = -_log_density(x0, guess, check.like((-schedule.half_log_snr(time)).exp(), x0))
    divergence = terms.weight * (x0 - guess) ** 2 + terms.constant
    vlb = torch.where(check.like(last, x0) > 0, reconstruction, divergence)
    steps = (schedule.t_max - schedule.t_min) / step
    losses = ((output - target).square() + scale * steps * vlb).flatten(1).mean(1)
    return losses if per_sample else losses.mean()


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


# ---- score matching -------------------------------------------------------------------------------------------------


def _field(score, x):
    """A leaf with x's values, and the score there, of the same shape."""
    check.floating("x", x)
    x = x.detach().requires_grad_()
    s = score(x)
    check.same_shape("score(x)", s, "x", x)
    return x, s


@torch.enable_grad()
def implicit_score_matching(score, x: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch"]:
    """½ ||s(x)||² + div s(x) of each sample: its mean is ½ E||s − grad log p||² up to a constant (Hyvärinen 2005).

    ``score(x)`` returns a field of x's shape, sample by sample. The divergence is exact, one backward pass for each
    coordinate; the result can be differentiated in the score's parameters. Where the density of x does not vanish at
    the edge of its support the mean is off by a boundary term. Raises TypeError unless x is a floating-point tensor,
    ValueError for a score of another shape.
    """
    x, s = _field(score, x)
    return 0.5 * _per_sample(s.square()) + _divergence.exact(s, x, create_graph=True)


@torch.enable_grad()
def sliced_score_matching(score, x: Float[Tensor, "batch *data"], *, noise=torch.randn_like) -> Float[Tensor, "batch"]:
    """½ ||s(x)||² + w·grad(w·s(x)) of each sample, with one random probe w (Song et al. 2019, SSM-VR).

    An unbiased estimate of ``implicit_score_matching`` from a single backward pass, where ``noise(x)`` gives probes of
    x's shape with E[w w'] = I: normal numbers, or signs, which vary less. Raises as ``implicit_score_matching`` does.
    """
    x, s = _field(score, x)
    return 0.5 * _per_sample(s.square()) + _divergence.along(noise(x).detach(), s, x, create_graph=True)


def denoising_score_matching(
    score, x0: Float[Tensor, "batch *data"], t, schedule, *, noise=torch.randn_like
) -> Float[Tensor, "batch"]:
    """½ sigma² ||s(x_t, t) + eps/sigma||² of each sample, with x_t = alpha x0 + sigma eps (Vincent 2011).

    ``score(x, t)`` returns x's shape; t has shape () or (batch,), and ``noise(x0)`` gives eps. The weight sigma² is
    that of Song & Ermon 2019; with it the loss is ½ ||eps − eps_hat||², for eps_hat = −sigma s, d/2 times a sample's
    ``simple_loss`` of kind "eps" in d dimensions. Raises TypeError unless t is a floating-point tensor, ValueError for
    shapes that do not fit.
    """
    eps = noise(x0)
    x = q_sample(x0, t, schedule, eps)
    s = score(x, t)
    check.same_shape("score(x, t)", s, "x", x)
    return 0.5 * _per_sample((check.like(schedule.sigma(t), x0) * s + eps).square())
