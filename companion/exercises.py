"""The exercises' checks: each holds an answer against a closed form, and says where it goes wrong, not what is right.

A chapter calls ``check("1.2", answer)``. Adding an exercise is adding one function here, named after it.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from companion import _checks as check_argument
from companion import schedules
from companion.forward import q_posterior, sde_coefficients
from companion.nets import DiT
from companion.samplers import invert, sample
from companion.toy import EmpiricalDistribution, GaussianMixture


def check(exercise: str, answer) -> None:
    """Check an answer to an exercise, a number or a function as the exercise asks, and print that it is right.

    Raises AssertionError that says where the answer is off; ValueError for an exercise that does not exist.
    """
    checks = {name[1:].replace("_", "."): f for name, f in globals().items() if name[0] == "_" and name[1].isdigit()}
    check_argument.one_of(
        "exercise", exercise, sorted(checks, key=lambda name: [int(part) for part in name.split(".")])
    )
    if answer is None:
        raise AssertionError("there is no answer yet: it is None")
    try:
        checks[exercise](answer)
    except (TypeError, ValueError, AttributeError) as error:
        raise AssertionError(f"the answer has not the form that the exercise asks for: {error}") from error
    print(f"✓ Exercise {exercise}: right.")


def _same(found, wanted: Tensor, at: str, tolerance: float | int = 1e-6):
    """Raise AssertionError unless an answer equals the closed form, without printing the closed form."""
    if found is None:
        raise AssertionError(f"{at}: there is no answer yet: the function returns None")
    found = torch.as_tensor(found, dtype=torch.float64)
    if found.shape != wanted.shape:
        raise AssertionError(f"{at}: the answer should have shape {tuple(wanted.shape)}, it has {tuple(found.shape)}")
    off = (found - wanted).abs()
    if not off.max() <= tolerance:
        place = f", most at element {off.flatten().argmax().item()} of {off.numel()}" if off.numel() > 1 else ""
        raise AssertionError(f"{at}: the answer is off by {off.max().item():.2g}{place}")


def _grid(low, high, n=25):
    return torch.linspace(low, high, n, dtype=torch.float64)


# ---- chapter 1 ------------------------------------------------------------------------------------------------------


def _1_1(answer):
    """The time at which signal and noise have equal factors on the quarter circle."""
    _same(answer, torch.tensor(schedules.CosineVP(0.0).time_of(torch.tensor(0.0)).item(), dtype=torch.float64), "t")


def _1_2(answer):
    """snr(t) = alpha²/sigma² of the quarter circle."""
    t = _grid(0.05, 0.95)
    _same(answer(t), schedules.CosineVP(0.0).log_snr(t).exp(), "t from 0.05 to 0.95", 1e-6 * 400)


def _one_gaussian(f, exact):
    for alpha, sigma, mean, std in [
        (0.8, 0.6, 0.0, 1.0),
        (0.5, 0.9, 2.0, 0.3),
        (0.0, 1.0, -1.0, 2.0),
        (1.0, 3.0, 0.5, 1.5),
    ]:
        one = GaussianMixture([1.0], [[mean]], stds=[std])
        where = f"alpha = {alpha}, sigma = {sigma}, mean = {mean}, std = {std}"
        x = _grid(-3, 3)
        _same(f(x, alpha, sigma, mean, std), exact(one, x, alpha, sigma), where)


def _1_3(answer):
    """The denoiser of one Gaussian on the line."""
    _one_gaussian(answer, lambda one, x, alpha, sigma: one.denoise(x[:, None], alpha, sigma)[:, 0])


def _1_4(answer):
    """The posterior variance of x0 from the log-density alone, by the second-order Tweedie formula."""
    two, x = GaussianMixture.two(), _grid(-2, 2)
    fine = _grid(-6, 6, 4001)
    for alpha, sigma in [(0.8, 0.6), (0.5, 0.9), (0.9, 0.2)]:
        prior = two.log_prob(fine[:, None])
        weight = torch.softmax(prior - (x[:, None] - alpha * fine) ** 2 / (2 * sigma**2), 1)
        mean = weight @ fine
        exact = (weight * (fine - mean[:, None]) ** 2).sum(1)
        found = answer(lambda x, a=alpha, s=sigma: two.log_prob(x[..., None], a, s), x, alpha, sigma)
        _same(found, exact, f"alpha = {alpha}, sigma = {sigma}", 1e-5)


def _1_5(answer):
    """The variance that N DDIM steps leave of N(0, τ²) data, from N(0, 1) noise, on the quarter circle."""
    for steps, std in [(1, 0.5), (2, 0.5), (10, 0.5), (25, 2.0)]:
        angle = [math.pi / 2 * (1 - i / steps) for i in range(steps + 1)]
        now = 1.0
        for a, b in zip(angle, angle[1:], strict=False):
            alpha, sigma, spread = math.cos(a), math.sin(a), math.cos(a) ** 2 * std**2 + math.sin(a) ** 2
            now *= (math.cos(b) * alpha * std**2 + math.sin(b) * sigma) ** 2 / spread**2
        _same(answer(steps, std), torch.tensor(now, dtype=torch.float64), f"steps = {steps}, std = {std}", 1e-8)


def _1_6(answer):
    """The best denoiser of a finite data set: a mean weighted by a softmax."""
    g = torch.Generator().manual_seed(0)
    points = torch.randn(30, 2, generator=g, dtype=torch.float64)
    narrow = GaussianMixture(torch.full((30,), 1 / 30), points, stds=torch.full((30,), 1e-7))
    x = torch.randn(20, 2, generator=g, dtype=torch.float64)
    for alpha, sigma in [(0.8, 0.6), (0.3, 0.95), (0.0, 1.0), (0.99, 0.05)]:
        _same(
            answer(points, x, alpha, sigma), narrow.denoise(x, alpha, sigma), f"alpha = {alpha}, sigma = {sigma}", 1e-5
        )


# ---- chapter 2 ------------------------------------------------------------------------------------------------------


def _2_1(answer):
    """The noise variance after three steps of beta = 0.1, 0.2, 0.3, by the recursion v <- (1 − beta) v + beta."""
    variance = 0.0
    for beta in (0.1, 0.2, 0.3):
        variance = (1 - beta) * variance + beta
    _same(answer, torch.tensor(variance, dtype=torch.float64), "the variance")


def _2_2(answer):
    """The betas of a table of cumulative products."""
    for betas in (_grid(1e-4, 0.02, 1000), _grid(0.5, 0.1, 5), _grid(0.3, 0.3, 1)):
        _same(answer(torch.cumprod(1 - betas, 0)), betas, f"a table of {len(betas)} steps", 1e-6)


def _2_3(answer):
    """alpha and sigma of a variance-preserving schedule from lambda."""
    half_log_snr = _grid(-40, 40, 81)
    alpha, sigma = answer(half_log_snr)
    for name, found, sign in (("alpha", alpha, 1), ("sigma", sigma, -1)):
        relative = torch.as_tensor(found) * torch.exp(0.5 * torch.nn.functional.softplus(-2 * sign * half_log_snr))
        _same(relative, torch.ones_like(half_log_snr), f"{name}, relative, for lambda from −40 to 40", 1e-9)


def _2_4(answer):
    """The share of the final noise variance that entered in the last k steps, summed noise by noise."""
    betas = _grid(1e-3, 0.05, 60)
    entered = torch.stack([betas[s] * (1 - betas[s + 1 :]).prod() for s in range(60)])
    for k in (1, 10, 59, 60):
        _same(answer(betas, k), entered[60 - k :].sum() / entered.sum(), f"k = {k}", 1e-9)


def _2_5(answer):
    """Mutual information of Gaussian data with their noisy version, by quadrature of the entropy."""
    for std in (0.5, 2.0):
        for snr in (0.1, 1.0, 10.0):
            width = math.sqrt(std**2 + 1 / snr)
            x = _grid(-12 * width, 12 * width, 4001)
            log_p = GaussianMixture([1.0], [[0.0]], stds=[std]).log_prob(x[:, None], 1.0, snr**-0.5)
            entropy = -(log_p.exp() * log_p).sum() * (x[1] - x[0])
            exact = entropy - 0.5 * math.log(2 * math.pi * math.e / snr)
            _same(answer(torch.tensor(snr, dtype=torch.float64), std), exact, f"SNR = {snr}, std = {std}", 1e-6)


def _2_6(answer):
    """A straight path with its log-SNR lowered by 2 log 3."""
    t, straight = _grid(0.05, 0.95), schedules.RectifiedFlow()
    _same(answer.log_snr(t), straight.log_snr(t) - 2 * math.log(3), "log_snr(t)")
    _same(answer.alpha(t) + answer.sigma(t), torch.ones_like(t), "alpha + sigma")


def _2_7(answer):
    """The brightness spread that a sampler with fresh noise keeps, by the recursion of the exact reverse chain."""
    schedule, n = schedules.CosineVP(0.0), 4000
    for start, variance in [(0.9, 4.0), (0.95, 400.0), (0.6, 0.5)]:
        t = torch.linspace(start, 1e-4, n + 1, dtype=torch.float64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        now = sigma[0] ** 2
        for a, s, b, r in zip(alpha, sigma, alpha[1:], sigma[1:], strict=False):
            total = a**2 * variance + s**2  # of x_t; below: the exact law of the earlier point, given x_t
            gain = (b * a * variance + a / b * r**2) / total
            now = gain**2 * now + (b**2 * variance + r**2) - gain**2 * total
        L = (alpha[0] ** 2 * variance / sigma[0] ** 2).item()
        _same(answer(L), (now / variance).sqrt(), f"L = {L:.3f}", 2e-3)


# ---- chapter 3 ------------------------------------------------------------------------------------------------------


def _3_1(answer):
    """The posterior variances of a table, from the general two-time posterior."""
    table = schedules.DiscreteVP.linear(50, 1e-3, 0.2)
    t, x = torch.arange(1.0, 51.0, dtype=torch.float64), torch.zeros(50, 1, dtype=torch.float64)
    _same(answer(table.alphas_cumprod), q_posterior(x, x, t - 1, t, table).variance[:, 0], "the table", 1e-12)


def _3_2(answer):
    """x0 and eps from x and v on a circle."""
    angle, x0, eps = _grid(0, math.pi / 2), _grid(-1, 2), _grid(3, -3)
    alpha, sigma = angle.cos(), angle.sin()
    found = answer(alpha * x0 + sigma * eps, alpha * eps - sigma * x0, alpha, sigma)
    for name, got, wanted in zip(("x0", "eps"), found, (x0, eps), strict=True):
        _same(got, wanted, name, 1e-9)


def _3_3(answer):
    """The divergence between two centred Gaussians, by the library of distributions."""
    u, w = _grid(0.1, 3.0), _grid(2.0, 0.3)
    p, q = (torch.distributions.Normal(torch.zeros_like(v), v.sqrt()) for v in (u, w))
    _same(answer(u, w), torch.distributions.kl_divergence(p, q), "V from 0.1 to 3, V' from 2 to 0.3", 1e-9)


def _3_4(answer):
    """The variance of a step back for Gaussian data, by conditioning the joint Gaussian of x_s and x_t."""
    for alpha_s, sigma_s, alpha_t, sigma_t in [(0.9, 0.3, 0.6, 0.8), (0.8, 0.2, 0.5, 0.5), (1.0, 1.0, 1.0, 3.0)]:
        for tau in (0.5, 1.0, 2.0):
            before = alpha_s**2 * tau**2 + sigma_s**2
            together = alpha_t / alpha_s * before
            wanted = before - together**2 / (alpha_t**2 * tau**2 + sigma_t**2)
            where = f"alpha_s = {alpha_s}, sigma_s = {sigma_s}, alpha_t = {alpha_t}, sigma_t = {sigma_t}, tau = {tau}"
            found = answer(alpha_s, sigma_s, alpha_t, sigma_t, tau)
            _same(found, torch.tensor(wanted, dtype=torch.float64), where, 1e-9)


def _3_5(answer):
    """The mean of a step back from eps, by the two-time posterior."""
    table, x, eps = schedules.DiscreteVP.linear(50, 1e-3, 0.2), _grid(-2, 2)[:, None], _grid(1, -1)[:, None]
    for t in (1.0, 20.0, 50.0):
        t = torch.tensor(t, dtype=torch.float64)
        x0 = (x - table.sigma(t) * eps) / table.alpha(t)
        wanted = q_posterior(x0, x, t - 1, t, table).mean
        beta, alpha_bar = table.betas[int(t) - 1], table.alphas_cumprod[int(t) - 1]
        _same(answer(x, eps, beta, alpha_bar), wanted, f"t = {t.item():g}", 1e-9)


def _3_6(answer):
    """The variance that ancestral steps leave of N(0, tau²) data, followed through the transfer map with eta = 1."""
    for steps, tau in [(1, 0.5), (2, 0.5), (10, 0.5), (25, 2.0)]:
        angle = [math.pi / 2 * (1 - i / steps) for i in range(steps + 1)]
        now = 1.0
        for t, s in zip(angle, angle[1:], strict=False):
            gain = math.cos(t) * tau**2 / (math.cos(t) ** 2 * tau**2 + math.sin(t) ** 2)
            fresh = math.sin(s) * math.sqrt(
                max(0.0, 1 - (math.cos(t) * math.sin(s) / (math.cos(s) * math.sin(t))) ** 2)
            )
            kept = math.sqrt(max(0.0, math.sin(s) ** 2 - fresh**2)) / math.sin(t)
            now = (math.cos(s) * gain + kept * (1 - math.cos(t) * gain)) ** 2 * now + fresh**2
        _same(answer(steps, tau), torch.tensor(now, dtype=torch.float64), f"steps = {steps}, tau = {tau}", 1e-8)


# ---- chapter 4 ------------------------------------------------------------------------------------------------------


def _4_1(answer):
    """The divergence of two Gaussians in bits, by the library of distributions."""
    m1, m2, v1, v2 = _grid(-1, 1), _grid(0.5, -0.3), _grid(0.2, 2), _grid(1.5, 0.4)
    nats = torch.distributions.kl_divergence(
        torch.distributions.Normal(m1, v1.sqrt()), torch.distributions.Normal(m2, v2.sqrt())
    )
    _same(answer(m1, v1, m2, v2), nats / math.log(2), "m from −1 to 1, V from 0.2 to 2", 1e-9)


def _4_2(answer):
    """The prices of the steps of a table: the divergence of two posteriors, over the distance of their x0."""
    table = schedules.DiscreteVP.linear(30, 1e-3, 0.3)
    t = torch.arange(2.0, 31.0, dtype=torch.float64)
    zero, one = torch.zeros(29, 1, dtype=torch.float64), torch.ones(29, 1, dtype=torch.float64)
    here, there = (q_posterior(x0, zero, t - 1, t, table) for x0 in (zero, one))
    wanted = ((here.mean - there.mean) ** 2 / (2 * here.variance))[:, 0]
    _same(answer(table.alphas_cumprod), wanted, "a linear table of 30 steps", 1e-8)


def _4_3(answer):
    """Bits per dimension of a density on [−1, 1]: a uniform density must cost log2(levels) bits."""
    for d, levels in [(1, 2), (64, 17), (784, 256)]:
        for bits in (0.8, 1.7):
            mass = bits - math.log2(levels)  # on the scale of [−1, 1] the uniform density is (1/2)^d
            nats = (mass + 1) * d * math.log(2)
            wanted = torch.tensor(bits, dtype=torch.float64)
            _same(answer(nats, d, levels), wanted, f"d = {d}, levels = {levels}", 1e-9)


def _4_4(answer):
    """What a step with the posterior variance loses on Gaussian data: the cost less the information gained."""
    for tau in (0.3, 1.0, 2.0):
        low, high = _grid(0.01, 5), _grid(0.02, 60)
        cost = 0.5 * (high - low) / (1 / tau**2 + low)
        gained = 0.5 * (torch.log(1 + tau**2 * high) - torch.log(1 + tau**2 * low))
        _same(answer(high, low, tau), cost - gained, f"tau = {tau}", 1e-9)


def _4_5(answer):
    """The probabilities of cells that give the least variance, found by descent instead of by the formula."""
    second = torch.tensor([4.0, 1.0, 0.25, 9.0], dtype=torch.float64)
    widths = torch.tensor([0.1, 0.5, 0.3, 0.1], dtype=torch.float64)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def variance():
        descent.zero_grad()
        value = (second * widths**2 / torch.softmax(logits, 0)).sum()
        value.backward()
        return value

    descent.step(variance)
    _same(answer(second, widths), torch.softmax(logits.detach(), 0), "four cells", 1e-5)


def _4_6(answer):
    """All that a chain loses to the posterior variance: prices times errors, less the information gained."""
    for T, tau in [(2, 1.0), (100, 0.5), (1000, 1.3)]:
        table = schedules.DiscreteVP.linear(T, 0.1 / T, min(20 / T, 0.9))
        t = torch.arange(1.0, T + 1, dtype=torch.float64)
        snr = table.log_snr(t).exp()
        left = tau**2 * table.sigma(t) ** 2 / (table.alpha(t) ** 2 * tau**2 + table.sigma(t) ** 2)
        cost = 0.5 * ((snr[:-1] - snr[1:]) * left[1:]).sum()
        gained = 0.5 * (torch.log1p(tau**2 * snr[0]) - torch.log1p(tau**2 * snr[-1]))
        _same(answer(table.alphas_cumprod, tau), cost - gained, f"T = {T}, tau = {tau}", 1e-8)


# ---- chapter 5 ------------------------------------------------------------------------------------------------------


def _5_1(answer):
    """The score of an unnormalised density, by autograd of its logarithm."""
    for k in (1.0, 2.5):
        x = _grid(-4, 4).requires_grad_()
        (wanted,) = torch.autograd.grad((-k * torch.log(1 + x**2)).sum(), x)
        _same(answer(x.detach(), k), wanted, f"k = {k}, x from −4 to 4", 1e-9)


def _5_2(answer):
    """The stationary variance of a walk with the root of two lost, by iterating its variance."""
    for delta, tau in [(0.1, 1.0), (0.5, 0.7), (0.02, 0.3)]:
        variance = 1.0
        for _ in range(5000):
            variance = (1 - delta / tau**2) ** 2 * variance + delta
        wanted = torch.tensor(variance, dtype=torch.float64)
        _same(answer(delta, tau), wanted, f"delta = {delta}, tau = {tau}", 1e-9)


def _5_3(answer):
    """The variance of a quadratic form in signs, over all of them."""
    generator = torch.Generator().manual_seed(0)
    for d in (2, 5):
        A = torch.randn(d, d, dtype=torch.float64, generator=generator)
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * d)
        _same(answer(A), ((signs @ A) * signs).sum(1).var(correction=0), f"a matrix of {d} × {d}", 1e-9)


def _5_4(answer):
    """An energy linear in its parameters, fitted by descent on the objective of implicit score matching."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 1, dtype=torch.float64, generator=generator) * 0.8 + 0.3
    slopes = torch.cat([torch.ones_like(x), 2 * x, 4 * x**3], 1)
    curvatures = torch.cat([torch.zeros_like(x), 2 * torch.ones_like(x), 12 * x**2], 1)
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def objective():
        descent.zero_grad()
        value = (0.5 * (slopes @ theta) ** 2 - curvatures @ theta).mean()
        value.backward()
        return value

    descent.step(objective)
    _same(answer(slopes, curvatures), theta.detach(), "1, x² and x⁴ on 500 points", 1e-4)


def _5_5(answer):
    """The least denoising loss on Gaussian data: half the variance of eps that is left when x_t is known, d times."""
    for alpha, sigma, tau, d in [(1.0, 0.5, 1.0, 1), (0.6, 0.8, 0.3, 64), (1.0, 5.0, 2.0, 3)]:
        joint = torch.tensor([[1.0, sigma], [sigma, alpha**2 * tau**2 + sigma**2]], dtype=torch.float64)  # eps, x_t
        wanted = d / 2 * torch.linalg.det(joint) / joint[1, 1]
        _same(answer(alpha, sigma, tau, d), wanted, f"alpha = {alpha}, sigma = {sigma}, tau = {tau}, d = {d}", 1e-9)


def _5_6(answer):
    """The surplus of variance at the bottom of a staircase, one step at a time in absolute units."""
    for size, k, ratio, levels in [(0.1, 3, 1.36, 16), (0.3, 1, 2.0, 1), (0.05, 7, 1.1, 40)]:
        sigma, variance = 1.0, 1.0
        for level in range(levels):
            sigma = sigma if level == 0 else sigma / ratio
            for _ in range(k):
                variance = (1 - size) ** 2 * variance + 2 * size * sigma**2
        wanted = torch.tensor(variance / sigma**2, dtype=torch.float64)
        _same(answer(size, k, ratio, levels), wanted, f"size = {size}, k = {k}, R = {ratio}, {levels} levels", 1e-8)


# ---- chapter 6 ------------------------------------------------------------------------------------------------------


def _6_1(answer):
    """Drift and squared diffusion of the quarter circle, against finite differences of its steps."""
    t, step, circle = _grid(0.1, 0.9), 1e-5, schedules.CosineVP(0.0)
    before, after = t - step / 2, t + step / 2
    factor = circle.alpha(after) / circle.alpha(before)
    added = circle.sigma(after) ** 2 - (factor * circle.sigma(before)) ** 2
    wanted = torch.stack([(factor - 1) / step, added / step])
    _same(torch.stack(list(answer(t))), wanted, "t from 0.1 to 0.9", 1e-2)


def _6_2(answer):
    """The variance after one Euler–Maruyama step, by quadrature over two independent normals."""
    x = _grid(-9, 9, 601)
    odds = torch.softmax(-(x**2) / 2, 0)
    for variance, f, g, step in [(0.3, -2.0, 1.5, 0.1), (2.0, 0.0, 0.4, 0.5), (1.0, -0.5, 1.0, 1.0)]:
        moved = (x * variance**0.5 * (1 + f * step))[:, None] + g * step**0.5 * x
        _same(answer(variance, f, g, step), odds @ moved**2 @ odds, f"variance {variance}, f = {f}, g = {g}", 1e-6)


def _6_3(answer):
    """The kappa that leaves the correlation one half."""
    c = _grid(0.05, 0.95)
    low, high = torch.zeros_like(c), torch.full_like(c, 9.0)
    for _ in range(60):  # bisection, instead of the formula
        middle = (low + high) / 2
        much = c ** (middle**2) > 0.5
        low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    _same(answer(c), low, "c from 0.05 to 0.95", 1e-6)


def _6_4(answer):
    """The code of a point of Gaussian data, by many small DDIM steps upwards."""
    for tau, path in [(0.5, schedules.LinearVP()), (2.0, schedules.RectifiedFlow())]:
        x0, ts = _grid(-2, 2, 9), schedules.uniform_log_snr(path, 4000, t_start=0.9, t_end=1e-4)
        denoise = GaussianMixture([1.0], [[0.0]], stds=[tau]).denoiser(path)
        code = sample(denoise, path, path.alpha(ts[-1]) * x0[:, None], ts, sampler=invert)[:, 0]
        alpha, sigma = path.alpha(ts[0]), path.sigma(ts[0])
        _same(answer(x0, tau, alpha, sigma), code, f"tau = {tau}", 5e-3)


def _6_5(answer):
    """What the bound loses to a score that is wrong by a constant factor, by quadrature over time."""
    path = schedules.LinearVP()
    for a, tau, low, high in [(0.1, 0.5, 0.05, 0.9), (-0.3, 2.0, 0.2, 0.7)]:
        t = _grid(low, high, 4001)
        variance = path.alpha(t) ** 2 * tau**2 + path.sigma(t) ** 2
        wanted = 0.5 * torch.trapezoid(sde_coefficients(t, path).diffusion ** 2 * a**2 / variance, t)
        ends = [rate(v) for v in (t[0], t[-1]) for rate in (path.alpha, path.sigma)]
        _same(answer(a, tau, *ends), wanted, f"a = {a}, tau = {tau}", 1e-5)


def _6_6(answer):
    """Heun's method: exact to second order, measured on Gaussian data, where the flow is known."""
    _second_order(answer, schedules.RectifiedFlow(), 0.95)


def _second_order(answer, path, first):
    """A solver's ends on Gaussian data are near the flow's, and twice the steps make them about four times as near."""
    tau = 0.5
    denoise, x = GaussianMixture([1.0], [[0.0]], stds=[tau]).denoiser(path), _grid(-2, 2, 9)[:, None]
    errors = []
    for steps in (40, 80):
        ts = schedules.uniform_log_snr(path, steps, t_start=first, t_end=0.05)
        variance = path.alpha(ts) ** 2 * tau**2 + path.sigma(ts) ** 2
        found = answer(denoise, path, x, ts)
        wanted = (variance[-1] / variance[0]).sqrt() * x
        _same(found, wanted, f"{steps} steps", 0.1)  # nearly there; the order says the rest
        errors.append((found - wanted).abs().max())
    if not errors[0] / errors[1] > 3.3:
        raise AssertionError(
            f"twice the steps make the error {errors[0] / errors[1]:.1f} times smaller: not second order"
        )


# ---- chapter 7 ------------------------------------------------------------------------------------------------------


def _7_1(answer):
    """The window of a stack of convolutions, by the gradient of its middle output."""
    layers = [nn.Conv2d(1, 1, 3, stride=stride, padding=1, dtype=torch.float64) for stride in (1, 1, 1, 2, 1, 1)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(nn.Sequential(*layers)(x)[0, 0, 10, 10], x)
    _same(answer, (seen[0, 0] > 0).any(0).sum().double(), "the side")


def _7_2(answer):
    """The noise at which two images are mistaken so often, by bisection of the probability."""
    ell, P = _grid(0.5, 8), _grid(0.45, 0.01)
    low, high = torch.full_like(P, 1e-6), torch.full_like(P, 1e4)
    for _ in range(100):
        middle = (low + high) / 2
        seldom = 0.5 * torch.special.erfc(ell / middle / 8**0.5) < P
        low, high = torch.where(seldom, middle, low), torch.where(seldom, high, middle)
    _same(answer(ell, P), low, "ell from 0.5 to 8, P from 0.45 to 0.01", 1e-6)


def _7_3(answer):
    """The parameters of a diffusion transformer, counted in one that is built."""
    for channels, patch, width, depth in [(1, 2, 16, 1), (3, 4, 32, 2), (2, 1, 8, 3)]:
        net = DiT(channels, 8, patch, width, depth)
        wanted = torch.tensor(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
        where = f"channels = {channels}, patch = {patch}, width = {width}, depth = {depth}"
        _same(answer(channels, patch, width, depth), wanted, where)


def _7_4(answer):
    """The excess loss of one slope for two gains, by least squares."""
    for G1, V1, G2, V2 in [(0.9, 0.5, 0.1, 1.0), (0.3, 2.0, 0.8, 0.7), (0.5, 1.0, 0.5, 3.0)]:
        root = torch.tensor([V1 / 2, V2 / 2], dtype=torch.float64).sqrt()[:, None]
        aim = root * torch.tensor([G1, G2], dtype=torch.float64)[:, None]
        wanted = (aim - root * torch.linalg.lstsq(root, aim).solution).square().sum()
        _same(answer(G1, V1, G2, V2), wanted, f"G1 = {G1}, V1 = {V1}, G2 = {G2}, V2 = {V2}", 1e-9)


def _7_5(answer):
    """The preconditioning of a network for the noise, by projecting eps on x."""
    for alpha, sigma, tau in [(0.8, 0.6, 0.5), (1.0, 3.0, 0.5), (0.3, 0.7, 2.0)]:
        x = torch.tensor([alpha * tau, sigma], dtype=torch.float64)  # in an orthonormal basis of x0 / tau and eps
        eps = torch.tensor([0.0, 1.0], dtype=torch.float64)
        slope = (x @ eps) / (x @ x)
        wanted = torch.stack([slope, (eps - slope * x).norm()])
        found = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in answer(alpha, sigma, tau)])
        _same(found, wanted, f"alpha = {alpha}, sigma = {sigma}, tau = {tau}", 1e-9)


def _7_6(answer):
    """The best mirror-equivariant denoiser: the exact one of the images and their mirrored copies."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(12, 1, 3, 4, generator=g, dtype=torch.float64)
    both = EmpiricalDistribution(torch.cat([images, images.flip(-1)]))
    x = torch.randn(5, 1, 3, 4, generator=g, dtype=torch.float64)
    for alpha, sigma in [(0.8, 0.6), (0.5, 1.5), (0.99, 0.3)]:
        _same(answer(images, x, alpha, sigma), both.denoise(x, alpha, sigma), f"alpha = {alpha}, sigma = {sigma}", 1e-8)


# ---- chapter 8 ------------------------------------------------------------------------------------------------------


def _8_1(answer):
    """The two weights in the paper's scale: at w = 0 the class's guess, and each unit of w adds their difference."""
    for w in (-1.0, 0.0, 0.5, 6.5):
        wanted = torch.tensor([1.0, 0.0], dtype=torch.float64) + w * torch.tensor([1.0, -1.0], dtype=torch.float64)
        _same(torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in answer(w)]), wanted, f"w = {w}", 1e-9)


def _8_2(answer):
    """Guidance of eps, by way of x0: to x0_hat by the definition of eps, guided there, and back."""
    x, eps, gradient = _grid(-1, 2), _grid(0.5, -0.5), _grid(-3, 1)
    for alpha, sigma, gamma in [(0.9, 0.4, 1.0), (0.3, 0.95, 4.0), (1.0, 5.0, 2.0)]:
        x0 = (x - sigma * eps) / alpha + gamma * sigma**2 / alpha * gradient
        where = f"alpha = {alpha}, sigma = {sigma}, gamma = {gamma}"
        _same(answer(eps, gradient, gamma, alpha, sigma), (x - alpha * x0) / sigma, where, 1e-9)


def _8_3(answer):
    """Mean and variance of a tilted Gaussian, by quadrature."""
    x = _grid(-15, 15, 6001)
    for m0, tau0, m1, tau1, gamma in [(0.0, 1.0, 1.0, 0.5, 2.0), (-0.5, 2.0, 1.0, 1.0, 4.0), (0.3, 1.0, 0.0, 1.1, 3.0)]:
        power = -(1 - gamma) * (x - m0) ** 2 / (2 * tau0**2) - gamma * (x - m1) ** 2 / (2 * tau1**2)
        odds = torch.softmax(power, 0)
        mean = odds @ x
        where = f"m0 = {m0}, tau0 = {tau0}, m1 = {m1}, tau1 = {tau1}, gamma = {gamma}"
        found = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in answer(m0, tau0, m1, tau1, gamma)])
        _same(found, torch.stack([mean, odds @ (x - mean) ** 2]), where, 1e-5)


def _8_4(answer):
    """The scale at which the tilted precision changes its sign, by bisection."""
    tau0, tau1 = _grid(0.3, 1.0), _grid(0.6, 4.0)
    low, high = torch.ones_like(tau0), torch.full_like(tau0, 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        falls_off = (1 - middle) / tau0**2 + middle / tau1**2 > 0
        low, high = torch.where(falls_off, middle, low), torch.where(falls_off, high, middle)
    _same(answer(tau0, tau1), low, "tau0 from 0.3 to 1, tau1 from 0.6 to 4", 1e-6)


def _8_5(answer):
    """The scale of the ODE whose spread is that of the tilted density, by bisection."""
    for gamma in (1.0, 2.0, 7.0):
        tau = _grid(0.1, 0.9)
        variance = 1 / ((1 - gamma) + gamma / tau**2)
        low, high = torch.zeros_like(tau), torch.full_like(tau, 50.0)
        for _ in range(80):
            middle = (low + high) / 2
            wide = tau ** (2 * middle) > variance
            low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
        _same(answer(tau, torch.tensor(gamma, dtype=torch.float64)), low, f"tau from 0.1 to 0.9, gamma = {gamma}", 1e-6)


def _8_6(answer):
    """The toll: what lies between the tilted density and that of the sampler, up to a constant, on Gaussian data."""
    path, tau, m, gamma = schedules.LinearVP(), 0.6, 0.5, 2.0
    everyone = GaussianMixture([1.0], [[0.0]], stds=[1.0]).denoiser(path)
    of_class = GaussianMixture([1.0], [[m]], stds=[tau]).denoiser(path)
    ts = schedules.uniform_log_snr(path, 3000, t_start=1.0, t_end=0.01)
    start = _grid(-2, 2, 9)[:, None]
    found, tolls = answer(everyone, of_class, path, start, ts, gamma)
    guided = sample(lambda x, t: everyone(x, t) + gamma * (of_class(x, t) - everyone(x, t)), path, start, ts)
    _same(found, guided, "the last x", 1e-6)
    alpha, sigma = path.alpha(ts[-1]), path.sigma(ts[-1])
    x, variance = guided[:, 0], alpha**2 * tau**2 + sigma**2
    tilted = -(1 - gamma) * x**2 / 2 - gamma * (x - alpha * m) ** 2 / (2 * variance)
    wanted = tilted + 0.5 * start[:, 0] ** 2  # the walk is affine: log-densities at its ends differ by a constant
    alpha, variance = path.alpha(ts[0]), 1 - path.alpha(ts[0]) ** 2 * (1 - tau**2)
    y = start[:, 0]  # the product at the noisy end is not quite that of noise
    wanted = wanted - (0.5 * gamma * y**2 - 0.5 * gamma * (y - alpha * m) ** 2 / variance)
    _same(tolls - tolls.mean(), wanted - wanted.mean(), "the tolls, less their mean", 1e-2)


# ---- chapter 9 ------------------------------------------------------------------------------------------------------


def _9_1(answer):
    """The fresh noise of a step, from the variances of (9.1): half of the posterior's."""
    factor = (0.6 / 0.8) * 0.6**2 / 0.8**2  # of x_t in the posterior's mean
    _same(answer, torch.tensor(0.5 * math.sqrt(0.6**2 - factor**2 * 0.8**2), dtype=torch.float64), "zeta", 1e-4)


def _9_2(answer):
    """Weights of three slopes for steps of length r, r and 1: they integrate 1, c and c² from 0 to 1."""
    powers = torch.arange(3, dtype=torch.float64)
    for r in (0.4, 1.0, 2.5):
        places = torch.tensor([0.0, -r, -2 * r], dtype=torch.float64)
        wanted = torch.linalg.solve(places[None] ** powers[:, None], 1 / (powers + 1))
        _same(answer(torch.tensor(r, dtype=torch.float64)), wanted, f"r = {r}", 1e-9)


def _9_3(answer):
    """The eta of a noise level kappa: from the variance that quadrature of the noise over the step gives."""
    for h in (0.05, 1.0, 3.0):
        kappa, c = _grid(0.1, 1.0), _grid(0.0, h, 4001)
        drawn = torch.trapezoid(2 * kappa[:, None] ** 2 * torch.exp(-2 * kappa[:, None] ** 2 * c), c)
        most = torch.trapezoid(2 * torch.exp(-2 * c), c)
        wanted = (drawn / most).sqrt()
        _same(answer(kappa, torch.tensor(h, dtype=torch.float64)), wanted, f"h = {h}", 1e-5)


def _9_4(answer):
    """The best grid of a method of order k: for w = e^(-a lambda) its nodes are known in closed form."""
    for a, k, steps in [(1.0, 1, 12), (-2.0, 2, 7), (3.0, 3, 20)]:
        lam, rate = _grid(-2.0, 2.0, 40_001), a / (k + 1)
        ends = math.exp(-rate * -2.0), math.exp(-rate * 2.0)
        wanted = -torch.log(_grid(*ends, steps + 1)) / rate
        _same(answer(lam, torch.exp(-a * lam), k, steps), wanted, f"order {k}, {steps} steps", 2e-3)


def _9_5(answer):
    """The second moment of a step under e^lambda, relative to h², by its power series and by the recursion."""
    small = torch.logspace(-8, -2, 13, dtype=torch.float64)
    series = small**2 * (1 / 3 + small / 12 + small**2 / 360 - small**3 / 720)
    large = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    mass = -torch.expm1(-large)
    exact = large**2 / mass - 2 * (large / mass - 1)
    h, wanted = torch.cat([small, large]), torch.cat([series, exact])
    found = answer(h)
    _same(None if found is None else found / wanted, torch.ones_like(h), "m2 over its value", 2e-8)


def _9_6(answer):
    """A single-step solver in the data form: second order, measured on Gaussian data."""
    _second_order(answer, schedules.LinearVP(), 0.9)


# ---- chapter 10 -----------------------------------------------------------------------------------------------------


def _10_1(answer):
    """What a coordinate above the water saves, as a difference of two rates, in bits."""
    factor, variance, level = _grid(1.0, 40.0), 100.0, 0.7
    _same(
        answer(factor), torch.log2(math.sqrt(variance / level) / (variance / (factor * level)).sqrt()), "factors", 1e-9
    )


def _10_2(answer):
    """The time at which codes that were not scaled are as noisy, by bisection in the log-SNR."""
    path = schedules.CosineVP(0.0)
    for c in (0.18, 1.0, 5.5):
        t = _grid(0.1, 0.9)
        wanted = path.time_of(path.half_log_snr(t) - math.log(c))
        _same(answer(t, torch.tensor(c, dtype=torch.float64)), wanted, f"t from 0.1 to 0.9, c = {c}", 1e-6)


def _10_3(answer):
    """The variance at which the bound, times a constant, is the program's loss."""
    for beta, d, n in ((1e-3, 12288, 256), (0.5, 4, 4), (2.0, 10, 3)):
        of_bound = torch.tensor(
            [[1 / d, 0.0], [0.0, beta / n]], dtype=torch.float64
        )  # of the error's sum, the KL's sum
        wanted = 0.5 * of_bound[1, 1] / of_bound[0, 0]
        _same(torch.as_tensor(answer(beta, d, n), dtype=torch.float64) / wanted, wanted / wanted, f"d = {d}, n = {n}")


def _10_4(answer):
    """The water level, by bisection on the rate."""
    for variances, rate in (([4.0, 1.5, 0.7, 0.3, 0.02], 1.7), ([2.0, 2.0, 1.9], 0.05), ([1.0, 9.0], 6.0)):
        variances = torch.tensor(variances, dtype=torch.float64)
        low, high = torch.tensor(1e-12, dtype=torch.float64), variances.max()
        for _ in range(200):
            level = (low + high) / 2
            costs = 0.5 * (variances / level).clamp(min=1).log().sum() > rate
            low, high = (level, high) if costs else (low, level)
        _same(answer(variances, rate), level, f"{len(variances)} variances, {rate} nats", 1e-7)


def _10_5(answer):
    """The SNR whose posterior draws have this correlation: from the joint Gaussian of three, by its covariances."""
    for tau in (0.5, 1.0, 3.0):
        snr = _grid(0.05, 20.0)
        told = (snr * tau**2) ** 2 / (snr * tau**2 + 1) / snr / tau**2  # Var E[z0 | z_t] over Var z0, at alpha² = snr
        _same(answer(told, tau), snr, f"tau = {tau}", 1e-6)


def _10_6(answer):
    """The best codebooks of a Gaussian, by what they lose (Max 1960, table 1)."""
    shares = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    z = torch.special.ndtri(shares)
    for number, lost in ((2, 0.3634), (4, 0.1175), (8, 0.03454)):
        first = torch.linspace(-0.5, 2.0, number, dtype=torch.float64)
        first[-1] = 100.0  # serves nobody until it is moved
        found = answer(z, first)
        _same(None if found is None else found.sort()[0], found, f"{number} entries, in ascending order")
        loss = (z[:, None] - found).square().amin(1).mean()
        _same(loss, torch.tensor(lost, dtype=torch.float64), f"mean squared error of {number} entries", 4e-4)


# ---- chapter 11 -----------------------------------------------------------------------------------------------------


def _11_1(answer):
    """The velocity of Gaussian data: in the papers' convention by regression, in the book's from the denoiser."""
    x, m, tau = _grid(-2, 2)[:, None], 0.7, 0.4

    def net(x, s):  # E[data − noise | s data + (1 − s) noise = x]
        return m + (s * tau**2 - (1 - s)) / (s**2 * tau**2 + (1 - s) ** 2) * (x - s * m)

    found, law = answer(net), GaussianMixture([1.0], [[m]], stds=[tau])
    for t in (0.1, 0.5, 0.9):
        _same(found(x, t), (x - law.denoise(x, 1 - t, t)) / t, f"t = {t}", 1e-9)


def _11_2(answer):
    """The score of the mixture from its velocity on the straight path."""
    x, law = _grid(-2, 2)[:, None], GaussianMixture.two()
    for t in (0.1, 0.6, 1.0):
        u = (x - law.denoise(x, 1 - t, t)) / t
        _same(answer(u, x, t), law.score(x, 1 - t, t), f"t = {t}", 1e-8)


def _11_3(answer):
    """The variance of ε − x0 given x_t of correlated Gaussian pairs, averaged over time, by quadrature."""
    t = (_grid(0, 1, 20_001)[1:] + _grid(0, 1, 20_001)[:-1]) / 2
    for tau, c, d in [(0.3, 0.0, 2), (1.0, 0.8, 1), (2.0, 0.5, 5)]:
        covariance = t - (1 - t) * tau**2 + (1 - 2 * t) * c * tau
        variance = t**2 + 2 * c * t * (1 - t) * tau + (1 - t) ** 2 * tau**2
        wanted = d * (1 - 2 * c * tau + tau**2 - covariance**2 / variance).mean()
        given = (torch.tensor(value, dtype=torch.float64) for value in (tau, c))
        _same(answer(*given, d), wanted, f"tau = {tau}, c = {c}, d = {d}", 1e-5)


def _11_4(answer):
    """The velocity of one Gaussian coupled to its noise, by regression with the covariance matrix of the pair."""
    x = _grid(-2, 2)
    for m, tau, c in [(0.0, 1.0, 0.0), (0.5, 0.6, 0.7), (-1.0, 2.0, -0.4)]:
        pair = torch.tensor([[tau**2, c * tau], [c * tau, 1.0]], dtype=torch.float64)
        means, rate = torch.tensor([m, 0.0], dtype=torch.float64), torch.tensor([-1.0, 1.0], dtype=torch.float64)
        for t in (0.2, 0.5, 0.9):
            point = torch.tensor([1 - t, t], dtype=torch.float64)
            wanted = rate @ means + (rate @ pair @ point) / (point @ pair @ point) * (x - point @ means)
            _same(answer(x, t, m, tau, c), wanted, f"m = {m}, tau = {tau}, c = {c}, t = {t}", 1e-9)


def _11_5(answer):
    """The factor of Euler's walk down the straight path, by the package's sampler."""
    path, x = schedules.RectifiedFlow(), torch.ones(1, 1, dtype=torch.float64)
    for tau, n in [(0.4, 1), (0.4, 5), (1.0, 3), (2.0, 8)]:
        denoise = GaussianMixture([1.0], [[0.0]], stds=[tau]).denoiser(path)
        _same(answer(tau, n), sample(denoise, path, x, _grid(1, 0, n + 1))[0, 0], f"tau = {tau}, n = {n}", 1e-9)


def _11_6(answer):
    """One round of reflow on the line, against a walk by NumPy for few groups; for many, ranks are kept."""
    generator = torch.Generator().manual_seed(0)
    x0 = GaussianMixture.two().sample(16_384, generator=generator)[:, 0]
    eps = torch.randn(16_384, generator=generator, dtype=torch.float64)
    for n, bins in [(512, 2), (1024, 8)]:
        z0, z1 = answer(x0[:n], eps[:n], bins)
        _same(z1, eps[:n], f"the noises of {n} pairs")
        _same(z0, _walk(x0[:n], eps[:n], bins), f"the ends of {n} particles, {bins} groups", 1e-6)
    z0, _ = answer(x0, eps, 64)
    missed = (torch.as_tensor(z0)[eps.argsort()] - x0.sort().values).abs().mean()
    _same(missed, torch.zeros((), dtype=torch.float64), "mean distance from the datum of the same rank", 0.04)


def _walk(x0, eps, bins):
    """Fifty Euler steps from the noises by the groups' mean velocities."""
    pairs, z = np.stack([x0.numpy(), eps.numpy()]), eps.numpy()
    for t in np.linspace(1, 0, 51)[:-1]:
        x = (1 - t) * pairs[0] + t * pairs[1]
        groups = np.split(np.argsort(x, kind="stable"), bins)
        z = z - 0.02 * np.interp(z, [x[g].mean() for g in groups], [(pairs[1] - pairs[0])[g].mean() for g in groups])
    return torch.from_numpy(z)


# ---- chapter 18 ----------------------------------------------------------------------------------------------------


def _18_1(answer):
    """Two parts of a second, sped up apart, by adding up what a thousand operations take."""
    for phi, r, r2 in [(0.3, 4.0, 1.2), (0.75, 2.0, 1.0), (0.1, 10.0, 3.0)]:
        count = round(1000 * phi)
        spent = sum([1 / r] * count + [1 / r2] * (1000 - count))
        _same(
            answer(phi, r, r2),
            torch.tensor(1000 / spent, dtype=torch.float64),
            f"phi = {phi}, r = {r}, r2 = {r2}",
            1e-6,
        )


def _18_2(answer):
    """The rows at which arithmetic overtakes moving, by bisection on the roof."""

    def ahead(n, C, C_out, R, R_bytes, size):
        return 2 * C * C_out * n / R - size * (C * n + C_out * n + C * C_out) / R_bytes

    for case in [
        (256, 512, 6e13, 2e12, 2),
        (64, 64, 1e11, 4e10, 4),
        (1024, 1024, 1e12, 1e12, 4),
        (32, 32, 1e14, 1e11, 4),
    ]:
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (low, middle) if ahead(middle, *case) > 0 else (middle, high)
        wanted = math.inf if ahead(1e9, *case) < 0 else high
        found = float(answer(*case))
        if math.isinf(wanted) or math.isinf(found):
            if found != wanted:
                raise AssertionError(
                    f"C = {case[0]}, C_out = {case[1]}: off by infinity, for whether there is such a number"
                )
            continue
        _same(found / wanted, torch.ones((), dtype=torch.float64), f"C = {case[0]}, C_out = {case[1]}", 1e-6)


def _18_3(answer):
    """A queue with places, by small steps of time."""
    generator = torch.Generator().manual_seed(0)
    for depth in (1, 2, 5, 100):
        kernels = (torch.rand(12, generator=generator) * 30).round().int().add(1).tolist()
        clock, launch = 0, 10  # whole ticks
        waiting, left, sent, done, begun = [], 0, 0, 0, 0
        while done < len(kernels):
            if sent < len(kernels) and clock - begun >= launch and sent - done < depth:
                waiting.append(kernels[sent])
                sent, begun = sent + 1, clock
            if left == 0 and waiting:
                left = waiting.pop(0)
            clock += 1
            if left:
                left -= 1
                done += left == 0
        _same(answer(launch, kernels, depth), torch.tensor(float(clock), dtype=torch.float64), f"depth {depth}", 1e-9)


def _18_4(answer):
    """Just above the limit an average in bfloat16 or float16 stands still, just below it moves."""
    generator = torch.Generator().manual_seed(0)
    for kind, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        average = (0.1 + 20 * torch.rand(200, generator=generator)).to(kind).double()
        theta = average * (1.1 + torch.rand(200, generator=generator).double())
        limit = torch.as_tensor(answer(average, theta, bits), dtype=torch.float64)
        if limit.shape != average.shape:
            raise AssertionError(f"the answer should have shape {tuple(average.shape)}, it has {tuple(limit.shape)}")
        for decay, moves in ((limit - 1e-6, True), (limit + 1e-6, False)):
            moved = (average + (1 - decay) * (theta - average)).to(kind).double() != average
            if not (moved == moves).all():
                side, verb = ("below", "move") if moves else ("above", "stand still")
                raise AssertionError(
                    f"{bits} bits: the limit is off by 1e-6 or more: just {side} it the average should {verb}"
                )


def _18_5(answer):
    """Two halves of a softmax put together, against the whole."""
    generator = torch.Generator().manual_seed(0)
    a = 200 * torch.randn(5, 12, generator=generator, dtype=torch.float64)
    v = torch.randn(12, 3, generator=generator, dtype=torch.float64)

    def part(a, v):
        m = a.max(1, keepdim=True).values
        return m, torch.exp(a - m).sum(1, keepdim=True), torch.exp(a - m) @ v

    found = answer(*part(a[:, :5], v[:5]), *part(a[:, 5:], v[5:]))
    for name, mine, wanted in zip(("m", "Z", "y"), found, part(a, v), strict=True):
        _same(mine, wanted, name, 1e-9)


def _18_6(answer):
    """The sums, and what every process sends, and to whom."""
    generator = torch.Generator().manual_seed(0)
    for M in (2, 3, 5):
        vectors = [torch.randn(6 * M, generator=generator, dtype=torch.float64) for _ in range(M)]
        sent = [0] * M

        def send(values, i, j, sent=sent, M=M):
            if j != (i + 1) % M:
                raise AssertionError(f"{M} processes: {i} sends to {j}, which is not the next one")
            sent[i] += torch.as_tensor(values).numel()
            return torch.as_tensor(values).clone()

        found = answer([v.clone() for v in vectors], send)
        wanted: Tensor = torch.stack(vectors).sum(0)
        if len(found) != M:
            raise AssertionError(f"there should be {M} sums, there are {len(found)}")
        for j, mine in enumerate(found):
            _same(mine, wanted, f"{M} processes, the sum of process {j}", 1e-9)
        if not 0 < max(sent) <= 12 * (M - 1):
            raise AssertionError(f"{M} processes: what one sends is off by {max(sent) - 12 * (M - 1)} numbers")
