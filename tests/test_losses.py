"""Losses, weightings and the variational bound, against quadrature, SciPy, simulated paths and joint Gaussians."""

import functools
import math

import numpy as np
import pytest
import torch
from conftest import between, refuses
from scipy import integrate, stats
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from companion import losses as L
from companion import schedules as S
from companion.denoisers import Denoiser, EDMPrecond
from companion.forward import q_posterior, q_sample
from companion.losses import elbo, simple_loss
from companion.predictions import KINDS, to_x0_eps
from companion.toy import GaussianMixture

F64, CPU = torch.float64, torch.device("cpu")
VARIANCES = ("posterior", "forward")


class Exact(torch.nn.Module):
    """eps predicted exactly for the mixture, so that the loss is the floor."""

    def __init__(self, mixture, schedule):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x, t, cond=None):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (x - alpha[:, None] * self.mixture.denoise(x, alpha, sigma)) / sigma[:, None]


class Zero(torch.nn.Module):
    """Always 0."""

    def forward(self, x, t, cond=None):
        return torch.zeros_like(x)


# ---- flow matching --------------------------------------------------------------------------------------------------


class Crooked(torch.nn.Module):
    """Some smooth answer that is right at no time."""

    def forward(self, x, t, cond=None):
        return torch.sin(2 * x) + widened(t, x) * x.flip(1) - 0.3


def widened(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1)).to(x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_matching_loss_is_that_of_the_velocity_converted(schedule, kind):
    """Of every kind: its x0 and eps by the 2×2 system, their velocity, against the path's."""
    t = between(schedule, 40)
    t = t.clamp(min=0.05) if isinstance(schedule, S.DiscreteVP) else t
    x0, noise = torch.randn(2, 40, 2, 3, dtype=F64)
    model, x = Denoiser(Crooked(), schedule, kind), q_sample(x0, t, schedule, noise)
    x0_hat, eps_hat = to_x0_eps(kind, model.output(x, t), x, schedule, t)
    up, down = (widened(rate, x) for rate in (schedule.alpha_rate(t), schedule.sigma_rate(t)))
    error = up * (x0_hat - x0) + down * (eps_hat - noise)
    found = L.flow_matching_loss(model, x0, t, noise, per_sample=True)
    assert torch.allclose(found, error.square().mean((1, 2)), rtol=1e-7)
    assert torch.allclose(L.flow_matching_loss(model, x0, t, noise), found.mean())
    if kind == "velocity":
        assert torch.allclose(found.mean(), simple_loss(model, x0, t, noise), rtol=1e-12)
    else:
        assert not torch.allclose(found, simple_loss(model, x0, t, noise, per_sample=True), rtol=1e-3)


def test_conditional_and_marginal_flow_matching_have_one_gradient(mixture):
    """The theorem: E||v − (noise − x0)||² and E||v − u(x_t)||² differ by a constant in the parameters."""
    schedule = S.RectifiedFlow()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 6, dtype=F64), torch.nn.Tanh(), torch.nn.Linear(6, 2, dtype=F64))

    class Net(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return net(torch.cat([x, t[:, None]], 1))

    model, parameters = Denoiser(Net(), schedule, "velocity"), list(net.parameters())

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    def conditional(sign=1):
        x0, t = mixture.sample(2000), torch.rand(2000, dtype=F64)
        return gradient(L.flow_matching_loss(model, sign * x0, t, torch.randn_like(x0)))

    def marginal():
        t = torch.rand(2000, dtype=F64)
        x = (1 - t[:, None]) * mixture.sample(2000) + t[:, None] * torch.randn(2000, 2, dtype=F64)
        x0_hat = mixture.denoise(x, 1 - t, t)  # of the exact field: what x was made from is forgotten
        velocity = (x - x0_hat) / t[:, None]  # eps_hat − x0_hat
        return gradient((model.output(x, t) - velocity).square().mean())

    pairs, fields = (torch.stack([draw() for _ in range(150)]) for draw in (conditional, marginal))
    spread = ((pairs.var(0) + fields.var(0)) / 150).sqrt()
    apart = (pairs.mean(0) - fields.mean(0)) / spread
    assert len(apart) == 38 and apart.abs().max() < 4 and apart.square().mean() < 2.5
    # the data mirrored is another field
    mirrored = torch.stack([conditional(-1) for _ in range(150)]).mean(0)
    assert ((mirrored - fields.mean(0)) / spread).abs().max() > 20


def test_the_flow_matching_loss_refuses_where_there_is_no_velocity():
    x0 = torch.zeros(2, 1)
    with refuses(ValueError, "determines the velocity; got 1"):
        L.flow_matching_loss(Denoiser(Zero(), S.RectifiedFlow(), "eps"), x0, torch.tensor([0.5, 1.0]))
    with refuses(TypeError, "kind"):
        L.flow_matching_loss(EDMPrecond(Zero(), S.RectifiedFlow()), x0, torch.tensor([0.5, 0.6]))


# ---- the simple loss and its weightings -----------------------------------------------------------------------------


def test_floor_is_the_posterior_s_spread(mixture):
    schedule = S.CosineVP(0.0)
    t = torch.full((200_000,), 0.4, dtype=torch.float64)
    x0 = mixture.sample(len(t))
    found = simple_loss(Denoiser(Exact(mixture, schedule), schedule, "eps"), x0, t)
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    x = mixture.sample(200_000, alpha, sigma)
    draws = mixture.posterior_sample(x, alpha, sigma)
    spread = (alpha / sigma * (draws - mixture.denoise(x, alpha, sigma))).square().mean(1)
    assert abs(found - spread.mean()) < 8 * spread.std() / len(spread) ** 0.5


def test_loss_uses_the_noise_it_is_given():
    zero = Denoiser(Zero(), S.CosineVP(), "eps")
    noise = torch.randn(5, 3)
    torch.testing.assert_close(simple_loss(zero, torch.ones(5, 3), torch.rand(5), noise), noise.square().mean())


def test_weight_multiplies_each_sample_s_error():
    zero, t, noise = Denoiser(Zero(), S.CosineVP(), "eps"), torch.rand(5), torch.randn(5, 3, 2, 2)
    found = simple_loss(zero, torch.ones(5, 3, 2, 2), t, noise, weight=lambda t: 1 + t)
    want = sum((1 + float(s)) * float((n**2).mean()) for s, n in zip(t, noise, strict=True)) / 5
    assert found.item() == pytest.approx(want, rel=1e-5)
    plain = simple_loss(zero, torch.ones(5, 3, 2, 2), t, noise)
    assert simple_loss(zero, torch.ones(5, 3, 2, 2), t, noise, None, weight=torch.ones_like) == plain
    with refuses(ValueError, "weight"):
        simple_loss(zero, torch.ones(5, 3, 2, 2), t, noise, weight=lambda t: torch.ones(5, 1))


WEIGHTINGS = {
    "elbo": (L.elbo_weight, lambda snr, rate: -0.5 * rate),
    "min-snr": (L.min_snr_weight, lambda snr, rate: snr.clamp(max=5.0)),
    "p2": (L.p2_weight, lambda snr, rate: snr / (1 + snr)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_is_the_same_in_every_kind(schedule, name, kind):
    """Two outputs that differ imply two x0_hat that differ: weight × error² must agree with that of x0."""
    weighting, of_x0 = WEIGHTINGS[name]
    t = between(schedule).requires_grad_()
    snr = schedule.log_snr(t).exp()
    (rate,) = torch.autograd.grad(snr.sum(), t)
    t, snr = t.detach(), snr.detach()
    x, one, other = torch.randn(3, len(t), 2, dtype=F64)
    difference = to_x0_eps(kind, one, x, schedule, t)[0] - to_x0_eps(kind, other, x, schedule, t)[0]
    want = of_x0(snr, rate) * difference.square().sum(1)
    found = weighting(schedule, t, kind) * (one - other).square().sum(1)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
    if kind == "eps":  # the weights of eps used for x0
        wrong = weighting(schedule, t, kind) * difference.square().sum(1)
        assert (wrong / want - 1).abs().max() > 0.1


def test_weights_as_the_papers_write_them():
    schedule, t = S.CosineVP(), torch.tensor([0.05, 0.2, 0.3, 0.7, 0.99], dtype=F64)
    snr = 1 / torch.tan(torch.acos(schedule.alpha(t))) ** 2
    least = torch.minimum(snr, torch.tensor(5.0, dtype=F64))
    for kind, want in (("x0", least), ("eps", least / snr), ("v", least / (snr + 1))):  # Hang et al. 2023
        torch.testing.assert_close(L.min_snr_weight(schedule, t, kind), want)
    torch.testing.assert_close(L.p2_weight(schedule, t, "eps", 0.5, 2.0), 1 / (2 + snr) ** 0.5)
    half = t.clone().requires_grad_()
    (rate,) = torch.autograd.grad(schedule.log_snr(half).sum(), half)
    torch.testing.assert_close(L.continuous_elbo_weight(schedule, t), -0.5 * snr * rate)
    torch.testing.assert_close(L.elbo_weight(schedule, t, "eps"), -0.5 * rate)


def test_weights_at_the_ends():
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    for kind, want in (("x0", [5.0, 0.0]), ("eps", [0.0, 1.0]), ("v", [0.0, 0.0])):
        assert L.min_snr_weight(S.CosineVP(), ends, kind).tolist() == want, kind
    assert L.p2_weight(S.CosineVP(), ends, "eps").tolist() == [0.0, 1.0]
    assert L.continuous_elbo_weight(S.CosineVP(), ends)[1] == 0


def test_min_snr_trains():
    """As training.train calls it."""
    schedule = S.CosineVP()
    loss = functools.partial(simple_loss, weight=lambda t: L.min_snr_weight(schedule, t, "v"))
    net = torch.nn.Module()
    net.scale = torch.nn.Parameter(torch.ones(()))
    net.forward = lambda x, t, cond=None: net.scale * x
    loss(Denoiser(net, schedule, "v"), torch.randn(8, 2), torch.linspace(0, 1, 8), torch.randn(8, 2), None).backward()
    assert torch.isfinite(net.scale.grad)


# ---- Gaussians ------------------------------------------------------------------------------------------------------


def test_normal_kl():
    mean1, mean2, scale1, scale2 = torch.randn(4, 50, dtype=F64)
    scale1, scale2 = scale1.exp(), scale2.exp()
    want = kl_divergence(Normal(mean1, scale1), Normal(mean2, scale2))
    torch.testing.assert_close(L.normal_kl(mean1, scale1**2, mean2, scale2**2), want)
    one, two = stats.norm(0.3, 0.7), stats.norm(-0.2, 1.1)
    quad = integrate.quad(lambda x: one.pdf(x) * (one.logpdf(x) - two.logpdf(x)), -8, 8)[0]
    found = L.normal_kl(torch.tensor(0.3, dtype=F64), 0.7**2, -0.2, 1.1**2).item()
    assert abs(found - quad) < 1e-9
    turned = L.normal_kl(torch.tensor(-0.2, dtype=F64), 1.1**2, 0.3, 0.7**2).item()
    assert min(abs(turned - quad), abs(2 * found - quad)) > 1e-2  # the arguments turned round; a lost ½
    assert L.normal_kl(torch.zeros(3), 1.0, 0.0, 1.0).tolist() == [0.0, 0.0, 0.0]


def levels(bins=256, dtype=F64):
    return 2 * torch.arange(bins, dtype=dtype) / (bins - 1) - 1


@pytest.mark.parametrize("mean, std", [(0.1, 0.01), (-1.3, 0.2), (0.0, 30.0), (0.999, 1e-3), (40.0, 0.5)])
@pytest.mark.parametrize("bins", [2, 5, 256])
def test_masses_of_the_bins(mean, std, bins):
    found = L.discretized_gaussian_log_likelihood(levels(bins), torch.tensor(mean, dtype=F64), std, bins=bins)
    assert torch.isfinite(found).all()
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)
    edges = np.concatenate([[-np.inf], levels(bins).numpy()[:-1] + 1 / (bins - 1), [np.inf]])
    normal = stats.norm(mean, std)
    mass = np.where(edges[:-1] > mean, normal.sf(edges[:-1]) - normal.sf(edges[1:]), np.diff(normal.cdf(edges)))
    np.testing.assert_allclose(found.exp().numpy(), mass, rtol=1e-7, atol=1e-14)


def test_discretized_tails_and_gradients():
    mean = torch.zeros(256, dtype=torch.float32).requires_grad_()
    found = L.discretized_gaussian_log_likelihood(levels(dtype=torch.float32), mean, torch.full((256,), 1e-3))
    assert torch.isfinite(found).all() and found.min() < -4e5 and found.dtype == torch.float32
    torch.testing.assert_close(found, found.flip(0))  # the upper tail as exact as the lower
    (slope,) = torch.autograd.grad(found.sum(), mean)
    assert torch.isfinite(slope).all()
    deep = L.discretized_gaussian_log_likelihood(torch.ones(1, dtype=F64), torch.tensor(-30.0, dtype=F64), 1.0)
    want = stats.norm.logsf(31 - 1 / 255)
    assert deep.item() == pytest.approx(want, rel=1e-12)
    middle = levels()[200:201]
    narrow = L.discretized_gaussian_log_likelihood(middle, torch.tensor(0.3, dtype=F64), 0.4)
    assert narrow.item() == pytest.approx(stats.norm.logpdf(middle.item(), 0.3, 0.4) + math.log(2 / 255), abs=1e-4)


@pytest.mark.parametrize("x", [0.0, 1.02, -3.0, float("nan")])
def test_discretized_refuses_what_is_on_no_level(x):
    with refuses(ValueError, "x must lie"):
        L.discretized_gaussian_log_likelihood(torch.full((2,), x), torch.zeros(2), 0.1)


def test_interpolated_variance():
    v = torch.tensor([0.0, 0.25, 1.0], dtype=F64)
    found = L.interpolated_variance(v, 1e-6, 1e-2)
    torch.testing.assert_close(found, torch.tensor([1e-6, 1e-5, 1e-2], dtype=F64))
    assert (found[1] - (0.75 * 1e-6 + 0.25 * 1e-2)).abs() > 1e-3  # of the logs, not of the variances


def test_bits_per_dim():
    uniform = Independent(torch.distributions.Uniform(-torch.ones(6, dtype=F64), torch.ones(6, dtype=F64)), 1)
    nats = -uniform.log_prob(torch.zeros(6, dtype=F64))[None]
    assert L.bits_per_dim(nats, 6, bin_width=2 / 256).item() == pytest.approx(8)  # 256 levels, all alike
    assert L.bits_per_dim(0 * nats, 6, bin_width=1 / 256).item() == pytest.approx(8)  # the same on [0, 1]
    assert L.bits_per_dim(6 * torch.log(torch.tensor([256.0])), 6).item() == pytest.approx(8)


# ---- the bound: the data's and the noise's Gauss–Hermite nodes stand in for draws, so that there is no Monte Carlo ---


def hermite(n):
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(z), torch.tensor(w / w.sum())


def nodes_of(mixture, of_data, of_noise):
    """x0, noise, probabilities: all pairs of a node of the data (1-D) and one of the noise."""
    (za, wa), (zb, wb) = hermite(of_data), hermite(of_noise)
    x0 = torch.cat([m + v.sqrt() * za for m, v in zip(mixture.means[:, 0], mixture.spread[:, 0], strict=True)])
    weights = torch.cat([w * wa for w in mixture.weights])
    return x0.repeat_interleave(of_noise)[:, None], zb.repeat(len(x0))[:, None], torch.outer(weights, wb).flatten()


def expected(mixture, schedule, ts, of_data=24, of_noise=32, **options):
    """E[total] over data and noise."""
    x0, z, weights = nodes_of(mixture, of_data, of_noise)
    bound = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts, noise=lambda x: z, **options)
    return (bound.total * weights).sum().item()


def entropy(mixture, alpha=1.0, sigma=0.0):
    """Differential entropy of alpha x0 + sigma eps in nats, 1-D, by the trapezoid rule."""
    x = torch.linspace(-1, 1, 200_001, dtype=F64)[:, None] * (3.5 * alpha + 7 * sigma)
    log_p = mixture.log_prob(x, alpha, sigma)
    return -torch.trapezoid(log_p.exp() * log_p, x[:, 0]).item()


def prior_gap(mixture, alpha, sigma):
    """KL(q(x_T) ‖ N(0, sigma²)) in nats, 1-D."""
    second = (mixture.weights * (mixture.spread[:, 0] + mixture.means[:, 0] ** 2)).sum().item()
    cross = 0.5 * math.log(2 * math.pi * sigma**2) + (alpha**2 * second + sigma**2) / (2 * sigma**2)
    return cross - entropy(mixture, alpha, sigma)


CHAINS = {
    "linear": (S.DiscreteVP.linear(20, 1e-3, 0.5), lambda s: S.trailing(s, 20)),
    "cosine": (S.CosineVP(), lambda s: S.linspace(s, 12)),
    "flow": (S.RectifiedFlow(), lambda s: S.linspace(s, 9, t_end=0.05)),
    "ve": (S.VE(0.05, 8.0), lambda s: S.linspace(s, 10)),
}


def joint_gaussians(mean, std, schedule, ts, variance):
    """(x_0, x_last, …, x_T) under q and under p, by affine recursions with the best denoiser of N(mean, std²)."""
    ts = ts if schedule.sigma(ts[-1]) > 0 else ts[:-1]
    a, s = schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist()
    n = len(a)

    def push(rows, offsets, chain):
        """Each variable as offset + row · independent normals; chain gives (from, slope, shift, noise) in order."""
        for i, (source, slope, shift, noise) in enumerate(chain):
            row = torch.zeros(n + 1, dtype=F64)
            row[i] = noise
            rows.append(row if source is None else slope * rows[source] + row)
            offsets.append(shift if source is None else slope * offsets[source] + shift)
        rows, offsets = torch.stack(rows), torch.tensor(offsets, dtype=F64)
        return rows @ rows.T, offsets

    up = [(None, 0, mean, std), (0, a[-1], 0.0, s[-1])]
    for k in range(n - 1, 0, -1):
        step = a[k - 1] / a[k]
        up.append((len(up) - 1, step, 0.0, math.sqrt(s[k - 1] ** 2 - (step * s[k]) ** 2)))
    down = [(None, 0, 0.0, s[0])]
    for k in range(n):
        gain = a[k] * std**2 / (a[k] ** 2 * std**2 + s[k] ** 2)  # x0_hat = rest + gain x
        rest = mean * (1 - gain * a[k])
        if k == n - 1:
            down.append((k, gain, rest, s[k] / a[k]))
            break
        step = a[k] / a[k + 1]
        added = s[k] ** 2 - (step * s[k + 1]) ** 2
        wide = added if variance == "forward" else added * s[k + 1] ** 2 / s[k] ** 2
        on_x, on_x0 = step * s[k + 1] ** 2 / s[k] ** 2, a[k + 1] * added / s[k] ** 2
        down.append((k, on_x + on_x0 * gain, on_x0 * rest, math.sqrt(wide)))
    covariance, offset = push([], [], up)
    q = MultivariateNormal(offset, covariance)
    covariance, offset = push([], [], down)
    return q, MultivariateNormal(offset.flip(0), covariance.flip(0, 1))


def difference_on_gaussian_data(chain, variance):
    """The bound in nats, less the divergence between the joint Gaussians of the two paths and the data's entropy."""
    schedule, grid = CHAINS[chain]
    mean, std, ts = 0.4, 0.7, grid(schedule)
    q, p = joint_gaussians(mean, std, schedule, ts, variance)
    want = kl_divergence(q, p).item() + 0.5 * math.log(2 * math.pi * math.e * std**2)
    data = GaussianMixture([1.0], [[mean]], stds=[std])
    return expected(data, schedule, ts, 4, 4, variance=variance) - want


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("chain", CHAINS)
def test_on_gaussian_data_the_terms_are_the_kl_between_paths(chain, variance):
    assert abs(difference_on_gaussian_data(chain, variance)) < 1e-9


WRONG = {
    "half lost": lambda w, c: (2 * w, c),
    "sign": lambda w, c: (-w, c),
    "one step late": lambda w, c: (torch.cat([w[1:], w[-1:]]), c),
    "one step early": lambda w, c: (torch.cat([w[:1], w[:-1]]), c),
    "constant lost": lambda w, c: (w, 0 * c),
    "constant's sign": lambda w, c: (w, -c),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("chain", ("linear", "cosine"))
def test_wrong_weights_are_rejected(monkeypatch, chain, wrong):
    right = L.step_weights
    monkeypatch.setattr(L, "step_weights", lambda *a: L.StepWeights(*WRONG[wrong](*right(*a))))
    assert abs(difference_on_gaussian_data(chain, "forward")) > 1e-2


def test_step_weights_are_closed_forms_of_the_divergence(schedule):
    ts = S.linspace(schedule, 10)
    ts = ts if schedule.sigma(ts[-1]) > 0 else ts[:-1]
    x0, guess, z = torch.randn(3, 1, 4, dtype=F64)
    posterior, forward = (L.step_weights(schedule, ts, variance) for variance in VARIANCES)
    for i in range(len(ts) - 1):
        x = q_sample(x0, ts[i], schedule, z)
        true, model = (q_posterior(v, x, ts[i + 1], ts[i], schedule) for v in (x0, guess))
        wide = schedule.sigma(ts[i]) ** 2 * true.variance / schedule.sigma(ts[i + 1]) ** 2
        for found, variance in ((posterior, true.variance), (forward, wide)):
            want = kl_divergence(Normal(true.mean, true.variance.sqrt()), Normal(model.mean, variance.sqrt())).sum()
            got = found.weight[i] * (x0 - guess).square().sum() + 4 * found.constant[i]
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_terms_are_the_log_ratio_along_simulated_paths(variance):
    """Walk q forward from the data, and count log q − log p of each step."""
    mixture, schedule, n = GaussianMixture.two(), S.LinearVP(), 40_000
    ts = S.uniform_log_snr(schedule, 24, t_end=0.02)
    x0 = mixture.sample(n)
    a, s = schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist()
    x = a[-1] * x0 + s[-1] * torch.randn_like(x0)
    guess = mixture.denoise(x, a[-1], s[-1])
    reconstruction = -Normal(guess, s[-1] / a[-1]).log_prob(x0)
    ratio = Normal(a[-1] * x0, s[-1]).log_prob(x)
    for k in range(len(ts) - 2, -1, -1):
        step = a[k] / a[k + 1]
        width = math.sqrt(s[k] ** 2 - (step * s[k + 1]) ** 2)
        y = step * x + width * torch.randn_like(x)
        mean, narrow = q_posterior(mixture.denoise(y, a[k], s[k]), y, ts[k + 1], ts[k], schedule)
        reverse = Normal(mean, width if variance == "forward" else narrow.sqrt())
        ratio = ratio + Normal(step * x, width).log_prob(y) - reverse.log_prob(x)
        x = y
    ratio = ratio - Normal(0.0, s[0]).log_prob(x)
    found = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts, variance=variance)
    for mine, simulated in ((found.prior + found.diffusion, ratio[:, 0]), (found.reconstruction, reconstruction[:, 0])):
        error = ((mine.var() + simulated.var()) / n).sqrt()
        assert abs(mine.mean() - simulated.mean()) < 4 * error
        assert error < 0.02


CONTINUOUS = {"linear": S.LinearVP(), "cosine": S.CosineVP(), "flow": S.RectifiedFlow()}
SNR_MAX = 1e4


def exact_total(mixture, schedule, start, end):
    """E of the continuous bound, from entropies alone: prior gap, I(x0; x_end), and the reconstruction."""
    (a0, a1), (s0, s1) = (f(torch.stack([start, end])).tolist() for f in (schedule.alpha, schedule.sigma))
    information = entropy(mixture, a1, s1) - 0.5 * math.log(2 * math.pi * math.e * s1**2)
    reconstruction = 0.5 * math.log(2 * math.pi / SNR_MAX) + 0.5 * SNR_MAX * mmse(mixture, a1, s1)
    return prior_gap(mixture, a0, s0) + information + reconstruction


def mmse(mixture, alpha, sigma):
    """E Var(x0 | x), 1-D, by quadrature over x of the posterior's moments, component by component."""
    w, m, v = mixture.weights, mixture.means[:, 0], mixture.spread[:, 0]
    x = torch.cat([alpha * m_k + (alpha**2 * v_k + sigma**2) ** 0.5 * Z for m_k, v_k in zip(m, v, strict=True)])[
        :, None
    ]
    total = alpha**2 * v + sigma**2
    share = torch.softmax(w.log() - 0.5 * total.log() - 0.5 * (x - alpha * m) ** 2 / total, 1)
    mean = m + alpha * v / total * (x - alpha * m)
    spread = v * sigma**2 / total + (mean - (share * mean).sum(1, keepdim=True)) ** 2
    variance = (share * spread).sum(1).reshape(len(w), -1)
    return (w @ variance @ DENSITY).item()


Z = torch.linspace(-9, 9, 1001, dtype=F64)
DENSITY = torch.exp(-0.5 * Z**2) / torch.exp(-0.5 * Z**2).sum()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_continuous_bound_is_exact_by_quadrature(name):
    """The integral of −½ dSNR/dt times the mmse is the information between the ends, and so the schedule drops out."""
    mixture, schedule = GaussianMixture.two(), CONTINUOUS[name]
    end = schedule.time_of(torch.tensor(0.5 * math.log(SNR_MAX)))
    start = schedule.time_of(torch.tensor(-3.0))
    u, width = np.polynomial.legendre.leggauss(200)  # nodes in log t, which the integrand wants
    low, high = math.log(end), math.log(start)
    t = torch.tensor(0.5 * (high - low) * u + 0.5 * (high + low)).exp()
    errors = torch.tensor([mmse(mixture, schedule.alpha(v).item(), schedule.sigma(v).item()) for v in t], dtype=F64)
    parts = torch.tensor(width) * 0.5 * (high - low) * t * errors
    found = (L.continuous_elbo_weight(schedule, t) * parts).sum().item()

    def information(time):
        alpha, sigma = schedule.alpha(time).item(), schedule.sigma(time).item()
        return entropy(mixture, alpha, sigma) - 0.5 * math.log(2 * math.pi * math.e * sigma**2)

    want = information(end) - information(start)
    assert abs(found - want) < 1e-5
    for wrong in (2 * found, -found, (L.elbo_weight(schedule, t, "eps") * parts).sum().item()):
        assert abs(wrong - want) > 0.5


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_fine_chain_meets_the_continuous_bound_and_nearly_the_entropy(name):
    """The chain's excess is a series in 1/N: three chains, extrapolated twice, give its limit, with no Monte Carlo."""
    mixture, schedule = GaussianMixture.two(), CONTINUOUS[name]
    start, end = schedule.time_of(torch.tensor([-3.0, 0.5 * math.log(SNR_MAX)], dtype=F64))
    grids = (S.uniform_log_snr(schedule, n, t_start=start.item(), t_end=end.item()) for n in (100, 200, 400))
    one, two, three = (expected(mixture, schedule, ts) for ts in grids)
    want = exact_total(mixture, schedule, start, end)
    assert one > two > three > want + 0.05
    assert abs((8 * three - 6 * two + one) / 3 - want) < 1e-4
    assert 0 < want - entropy(mixture) < 2e-4  # nearly all of it the prior's, as the walk starts at SNR e^-6


def test_random_steps_of_a_fine_chain_meet_the_continuous_bound():
    mixture, schedule, n = GaussianMixture.two(), S.CosineVP(), 300_000
    start, end = schedule.time_of(torch.tensor([-3.0, 0.5 * math.log(SNR_MAX)], dtype=F64))
    ts = S.uniform_log_snr(schedule, 40_000, t_start=start.item(), t_end=end.item())
    x0 = mixture.sample(n)
    total = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts, steps=8).total
    total = total + mixture.log_prob(x0) + entropy(mixture)  # a control variate: −log p(x0), whose mean is known
    error = total.std().item() / n**0.5
    assert error < 0.005
    assert abs(total.mean().item() - exact_total(mixture, schedule, start, end)) < 3 * error


@pytest.mark.parametrize("name", CONTINUOUS)
def test_random_times_estimate_the_continuous_bound(name):
    mixture, schedule, n = GaussianMixture.two(), CONTINUOUS[name], 300_000
    start, end = schedule.time_of(torch.tensor([-3.0, 0.5 * math.log(SNR_MAX)], dtype=F64))
    x0 = mixture.sample(n)
    found = L.continuous_elbo(mixture.denoiser(schedule), x0, schedule, most=math.log(SNR_MAX), least=-6.0, steps=8)
    total = found.total + mixture.log_prob(x0) + entropy(mixture)  # the control variate of the test above
    error = total.std().item() / n**0.5
    assert error < 0.005
    assert abs(total.mean().item() - exact_total(mixture, schedule, start, end)) < 3 * error
    assert abs(total.mean().item() - entropy(mixture)) < 3 * error + 2e-4


def test_random_times_are_unbiased_for_each_sample():
    """Two samples: each must meet all times, not one half of them. The error is chosen so that the integral is 2."""
    schedule, x0 = S.LinearLogSNR(4.0, -4.0), torch.zeros(2, 1, dtype=F64)

    def off(x, t):
        return (t**0.5 * schedule.sigma(t) / schedule.alpha(t)).expand(2)[:, None]

    for steps, repeats in ((1, 600), (5, 150)):
        torch.manual_seed(2)
        found = [
            L.continuous_elbo(off, x0, schedule, most=4.0, least=-4.0, steps=steps).diffusion for _ in range(repeats)
        ]
        found = torch.stack(found)
        assert ((found.mean(0) - 2).abs() < 4 * (found.std(0) / repeats**0.5).clamp(min=1e-3)).all()


def test_the_ends_of_the_continuous_bound_are_those_of_a_chain(mixture):
    schedule, x0 = S.LinearLogSNR(5.0, -4.0), mixture.sample(5)
    ts, zero = torch.tensor([1.0, 0.0], dtype=F64), torch.zeros_like
    chain = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts, noise=zero)
    limit = L.continuous_elbo(mixture.denoiser(schedule), x0, schedule, most=5.0, least=-4.0, noise=zero)
    torch.testing.assert_close(limit.prior, chain.prior)
    torch.testing.assert_close(limit.reconstruction, chain.reconstruction)


def test_the_posterior_variance_costs_nearly_half_a_nat():
    """With the exact denoiser, T = 1000, against the data's entropy: what is left is what Gaussian steps cost."""
    mixture, schedule = GaussianMixture.two(), S.DiscreteVP.linear()
    for variance, want in (("posterior", 0.4457), ("forward", 0.0054)):
        total = expected(mixture, schedule, S.trailing(schedule, 1000), 12, 20, variance=variance)
        assert total - entropy(mixture) == pytest.approx(want, abs=3e-4)


def test_a_few_random_steps_estimate_all_of_them():
    mixture, schedule = GaussianMixture.two(), S.DiscreteVP.linear(30, 1e-3, 0.4)
    ts, x0 = S.trailing(schedule, 30), mixture.sample(20_000)
    for variance in VARIANCES:
        every = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts, variance=variance).diffusion
        for steps in (1, 3):
            few = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts, variance=variance, steps=steps).diffusion
            assert abs(few.mean() - every.mean()) < 4 * ((few.var() + every.var()) / len(x0)) ** 0.5
            assert few.std() > every.std()


def test_random_steps_are_unbiased_for_each_sample():
    """Every sample of a batch visits every step equally often, not only the batch as a whole."""
    weight = torch.arange(1.0, 5.0, dtype=F64)
    sums = torch.stack([sum(f * weight[i] for i, f in L._visits(4, 2, 3, CPU)) for _ in range(4000)])
    torch.testing.assert_close(sums.mean(0), weight.sum().expand(3), rtol=0, atol=4 * sums.std().item() / 4000**0.5)
    assert list(L._visits(4, None, 3, CPU)) == [(i, 1.0) for i in range(4)]
    visited = torch.cat([i for i, _ in L._visits(6, 3, 4, CPU)])
    assert torch.bincount(visited).tolist() == 6 * [2]  # twelve visits cover six steps evenly


# ---- a learned variance ---------------------------------------------------------------------------------------------


class Gauss:
    """The exact denoiser of N(0, std²) in 1-D and, on the grid ts, the exact v; or a given one."""

    def __init__(self, schedule, std, ts, v=None):
        self.schedule, self.std, self.v = schedule, std, v
        self.table = {round(t.item(), 9): s for t, s in zip(ts, ts[1:], strict=False)}

    def __call__(self, x, t):
        alpha, sigma = (check(t).reshape(-1, 1) for check in (self.schedule.alpha, self.schedule.sigma))
        return alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x

    def with_variance(self, x, t):
        v = [exact_v(self.schedule, self.std, self.table[round(u.item(), 9)], u) for u in t.reshape(-1)]
        v = torch.tensor(v, dtype=x.dtype).reshape(-1, 1) if self.v is None else torch.tensor(self.v, dtype=x.dtype)
        return self(x, t), v.expand_as(x)


def exact_v(schedule, std, s, t):
    """Where between the logs of the posterior and the forward variance that of q(x_s | x_t) lies, by conditioning."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = ((schedule.alpha(u), schedule.sigma(u)) for u in (s, t))
    step = alpha_t / alpha_s
    added = sigma_t**2 - step**2 * sigma_s**2
    prior = alpha_s**2 * std**2 + sigma_s**2
    exact = 1 / (1 / prior + step**2 / added)
    posterior = 1 / (1 / sigma_s**2 + step**2 / added)
    return (math.log(exact / posterior) / math.log(added / posterior)).__float__()


@pytest.mark.parametrize("nodes, steps", [(2, None), (5, None), (40, None), (5, 3)])
@pytest.mark.parametrize("schedule", [S.CosineVP(0.0), S.LinearVP(0.1, 40)], ids=["cosine", "linear"])
def test_with_the_right_learned_variance_the_bound_is_the_entropy(schedule, nodes, steps):
    """However few the steps; up to the reconstruction's 1e-7, and the prior's e^-20. The posterior variance costs."""
    std = 0.5
    ts = S.linspace(schedule, nodes, t_end=schedule.time_of(torch.tensor(4.0)).item())
    x0, z, weights = nodes_of(GaussianMixture([1.0], [[0.0]], stds=[std]), 4, 4)
    want = 0.5 * math.log(2 * math.pi * math.e * std**2)

    def found(variance, v=None, steps=None):
        bound = elbo(
            Gauss(schedule, std, ts, v), x0, schedule, ts=ts, variance=variance, noise=lambda x: z, steps=steps
        )
        return (bound.total * weights).sum().item()

    if steps:  # few random steps estimate the same
        runs = torch.tensor([found("learned", None, steps) for _ in range(100)])
        assert abs(runs.mean() - want) < 4 * runs.std() / len(runs) ** 0.5 + 1e-5
        return
    assert found("learned") == pytest.approx(want, abs=1e-5)
    for v, variance in ((0.0, "posterior"), (1.0, "forward")):
        assert found("learned", v) == pytest.approx(found(variance), rel=1e-12)
    assert found("posterior") > want + 1e-2 and found("forward") > want + 3e-4 and found("learned", 0.5) > want + 1e-3


class Affine(torch.nn.Module):
    """A network of two outputs: gain × x, and a number that is learned."""

    def __init__(self, gain, raw=0.0):
        super().__init__()
        self.gain, self.raw = (torch.nn.Parameter(torch.tensor(value, dtype=F64)) for value in (gain, raw))

    def forward(self, x, t, cond=None):
        return torch.cat([self.gain * x, self.raw.expand_as(x)], 1)


def affine(schedule, std, t):
    """The exact denoiser at one time."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    gain = (alpha * std**2 / (alpha**2 * std**2 + sigma**2)).item()
    return Denoiser(Affine(gain), schedule, "x0", learned_variance=True)


@pytest.mark.parametrize("t, step", [(0.5, 0.3), (0.9, 0.05), (0.3, 0.01)])
def test_the_hybrid_loss_finds_the_exact_variance(t, step):
    schedule, std = S.CosineVP(0.0), 0.5
    time = torch.tensor(t, dtype=F64)
    denoiser = affine(schedule, std, time)
    x0, z, weights = nodes_of(GaussianMixture([1.0], [[0.0]], stds=[std]), 4, 4)
    optimizer = torch.optim.LBFGS([denoiser.net.raw], line_search_fn="strong_wolfe", tolerance_grad=1e-12, max_iter=100)

    def value():
        optimizer.zero_grad()
        losses = L.hybrid_loss(denoiser, x0, time.expand(len(x0)), z, step=step, scale=1.0, per_sample=True)
        (losses @ weights).backward()
        return losses @ weights

    optimizer.step(value)
    assert denoiser.net.raw.sigmoid().item() == pytest.approx(exact_v(schedule, std, time - step, time), abs=1e-4)


def test_the_hybrid_loss_moves_the_mean_by_its_simple_part_alone():
    schedule = S.DiscreteVP.linear(20, 1e-3, 0.4)
    t, x0, z = torch.tensor([1.0, 5.0, 20.0], dtype=F64), *torch.randn(2, 3, 1, dtype=F64)
    denoiser = Denoiser(Affine(0.3, 0.7), schedule, "v", learned_variance=True)
    L.hybrid_loss(denoiser, x0, t, z, step=1, scale=100.0).backward()
    mean, variance = denoiser.net.gain.grad.clone(), denoiser.net.raw.grad.clone()
    denoiser.zero_grad()
    simple_loss(denoiser, x0, t, z).backward()
    torch.testing.assert_close(mean, denoiser.net.gain.grad)
    assert denoiser.net.raw.grad is None or denoiser.net.raw.grad == 0
    assert variance.abs() > 1e-3


@pytest.mark.parametrize(
    "schedule, step", [(S.DiscreteVP.linear(20, 1e-3, 0.4), 1), (S.DiscreteVP.linear(20, 1e-3, 0.4), 4)]
)
def test_the_hybrid_loss_s_bound_is_the_elbo_without_its_prior(schedule, step):
    """Averaged over the nodes, in nats per dimension, with a variance that is not exact; elbo has no part in it."""
    denoiser = Denoiser(Affine(0.3, 0.7), schedule, "v", learned_variance=True)
    nodes, (x0, z) = torch.arange(1.0, 21, dtype=F64), torch.randn(2, 6, 2, dtype=F64)
    parts = []
    for t in nodes:
        both = L.hybrid_loss(denoiser, x0, t.expand(6), z, step=step, scale=2.0, per_sample=True)
        parts.append((both - simple_loss(denoiser, x0, t.expand(6), z, per_sample=True)) / 2)
    chains = [torch.arange(20.0 - offset, 0, -step, dtype=F64) for offset in range(step)]
    bounds = [elbo(denoiser, x0, ts=chain, variance="learned", noise=lambda x: z) for chain in chains]
    want = sum(bound.reconstruction + bound.diffusion for bound in bounds) / len(bounds) / 2
    torch.testing.assert_close(torch.stack(parts).mean(0).detach(), want)
    wrong = torch.stack(parts).mean(0) / math.log(2)  # bits
    assert ((wrong - want).abs() > 0.1 * want.abs()).all()


def test_losses_per_sample_have_the_loss_as_their_mean():
    schedule, t, (x0, z) = S.CosineVP(), torch.linspace(0.1, 0.9, 5, dtype=F64), torch.randn(2, 5, 1, 2, 2, dtype=F64)
    denoiser = Denoiser(Affine(0.3), schedule, "v", learned_variance=True)
    hybrid = functools.partial(L.hybrid_loss, step=0.01)
    weighted = functools.partial(simple_loss, weight=lambda t: 1 + t)
    for loss in (simple_loss, hybrid, weighted):
        each = loss(denoiser, x0, t, z, per_sample=True)
        assert each.shape == (5,)
        torch.testing.assert_close(each.mean(), loss(denoiser, x0, t, z))
        torch.testing.assert_close(each[2:3], loss(denoiser, x0[2:3], t[2:3], z[2:3], per_sample=True))


def test_hybrid_loss_refuses():
    x0, t = torch.ones(3, 1), torch.full((3,), 0.5)
    denoiser = Denoiser(Affine(0.3).float(), S.CosineVP(), "v", learned_variance=True)
    for options, message in (({"step": 0.0}, "step"), ({"step": 0.1, "scale": -1.0}, "scale")):
        with refuses(ValueError, message):
            L.hybrid_loss(denoiser, x0, t, **options)
    with refuses(TypeError, "learned_variance=True"):
        L.hybrid_loss(Denoiser(Zero(), S.CosineVP(), "v"), x0, t, step=0.1)


def test_bound_of_pixels():
    """A network that knows the picture pays for the prior and the first pixels only; shapes and dtypes."""
    schedule = S.DiscreteVP.linear(50, 1e-4, 0.3)
    x0 = levels(dtype=torch.float32)[torch.randint(1, 255, (3, 1, 4, 4))]
    ts = S.trailing(schedule, 50)
    known = elbo(lambda x, t: x0, x0, schedule, ts=ts, bins=256)
    assert all(term.shape == (3,) and term.dtype == torch.float32 for term in known)
    torch.testing.assert_close(known.total, known.reconstruction + known.prior + known.diffusion)
    assert (known.diffusion == 0).all()
    std = 0.01 / 0.9999**0.5
    inner = -math.log(stats.norm.cdf(1 / 255 / std) - stats.norm.cdf(-1 / 255 / std))
    assert known.reconstruction.tolist() == pytest.approx(3 * [16 * inner], rel=1e-4)
    final = 1 - schedule.alphas_cumprod[-1].item()
    want = (1 - final) / (2 * final) * x0.square().flatten(1).sum(1)
    torch.testing.assert_close(known.prior, want)
    mean_free = elbo(lambda x, t: x0, x0, schedule, ts=ts, variance="forward").diffusion
    shrink = (1 - schedule.alphas_cumprod[:-1]) / (1 - schedule.alphas_cumprod[1:])
    assert mean_free.tolist() == pytest.approx(3 * [8 * (shrink - 1 - shrink.log()).sum().item()], rel=1e-5)


def test_a_denoiser_brings_its_schedule_and_the_data_may_follow_or_not(mixture):
    schedule = S.DiscreteVP.linear(10)
    model, x0, z = Denoiser(Exact(mixture, schedule), schedule, "eps"), mixture.sample(6), torch.randn(6, 2, dtype=F64)
    ts = S.trailing(schedule, 10)
    one = elbo(model, x0, ts=ts, noise=lambda x: z)
    two = elbo(mixture.denoiser(schedule), x0, schedule, ts=ts[:-1], noise=lambda x: z)
    torch.testing.assert_close(torch.stack(list(one)), torch.stack(list(two)))
    assert not elbo(model.requires_grad_(), x0, ts=ts).total.requires_grad


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"ts": torch.tensor([0.1, 0.5])}, ValueError, "decrease"),
        ({"ts": torch.tensor([0.5, 0.0])}, ValueError, "two nodes"),
        ({"ts": torch.tensor([1.5, 0.5])}, ValueError, "ts must lie"),
        ({"ts": torch.tensor([0.5, float("nan")])}, ValueError, "ts must be finite"),
        ({"ts": torch.tensor([[0.5, 0.1]])}, ValueError, "shape"),
        ({"variance": "small"}, ValueError, "variance"),
        ({"variance": "learned"}, TypeError, "denoise must have with_variance"),
        ({"steps": 0}, ValueError, "steps"),
        ({"bins": 1}, ValueError, "bins"),
        ({"schedule": None}, TypeError, "schedule"),
        ({"x0": torch.full((2, 1), float("inf"))}, ValueError, "x0 must be finite"),
        ({"x0": torch.ones(2, 1, dtype=torch.long)}, TypeError, "x0 must be"),
    ],
)
def test_elbo_refuses(options, error, message):
    arguments = {"x0": torch.ones(2, 1), "schedule": S.CosineVP(), "ts": torch.tensor([0.9, 0.5, 0.1])} | options
    with refuses(error, message):
        elbo(lambda x, t: x, arguments.pop("x0"), arguments.pop("schedule"), **arguments)


# ---- score matching -------------------------------------------------------------------------------------------------


def crooked(x):
    """A field that is no gradient, with a divergence that varies: (sin x1 + x2², x1 x2), and more of it in an image."""
    first, second = x.flatten(1)[:, ::2], x.flatten(1)[:, 1::2]
    return torch.stack([first.sin() + second**2, first * second], -1).reshape(x.shape)


def test_implicit_score_matching_is_half_the_square_plus_the_divergence():
    x = torch.randn(6, 1, 2, 2, dtype=F64)
    first, second = x.flatten(1)[:, ::2], x.flatten(1)[:, 1::2]
    want = 0.5 * ((first.sin() + second**2) ** 2 + (first * second) ** 2).sum(1) + (first.cos() + first).sum(1)
    torch.testing.assert_close(L.implicit_score_matching(crooked, x), want)
    with torch.no_grad():
        torch.testing.assert_close(L.implicit_score_matching(crooked, x), want)


def test_implicit_score_matching_is_the_fisher_divergence_up_to_a_constant(mixture):
    """By quadrature over the plane, for a field of which nothing is special."""
    side = torch.linspace(-5, 5, 301, dtype=F64)
    grid = torch.cartesian_prod(side, side)
    weights = mixture.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    explicit = 0.5 * (crooked(grid) - mixture.score(grid)).square().sum(1) - 0.5 * mixture.score(grid).square().sum(1)
    implicit = L.implicit_score_matching(crooked, grid)
    assert (weights @ implicit).item() == pytest.approx((weights @ explicit).item(), abs=1e-8)


@pytest.mark.parametrize("loss", [L.implicit_score_matching, L.sliced_score_matching])
def test_score_matching_can_be_trained(loss):
    """A Gaussian's score, fitted to a cloud, is that of the cloud's own mean and variance."""
    x = torch.randn(4000, 1, dtype=F64) * 0.6 + 0.3
    mean, precision = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.0, 1.0))
    options = {} if loss is L.implicit_score_matching else {"noise": torch.ones_like}
    descent = torch.optim.LBFGS([mean, precision], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def value():
        descent.zero_grad()
        total = loss(lambda x: -precision * (x - mean), x, **options).mean()
        total.backward()
        return total

    descent.step(value)
    assert mean.item() == pytest.approx(x.mean().item(), abs=1e-4)
    assert precision.item() == pytest.approx(1 / x.var(correction=0).item(), rel=1e-4)


def test_sliced_score_matching_averages_to_the_exact_one():
    """The mean over all sign patterns is the trace; over normal probes, to within the standard error."""
    x = torch.randn(5, 4, dtype=F64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 4)
    every = [L.sliced_score_matching(crooked, x, noise=lambda x, w=w: w.expand_as(x)) for w in signs]
    exact = L.implicit_score_matching(crooked, x)
    torch.testing.assert_close(torch.stack(every).mean(0), exact)
    many = L.sliced_score_matching(crooked, x[:1].expand(100_000, 4))
    assert abs(many.mean() - exact[0]) < 5 * many.std() / len(many) ** 0.5


def test_denoising_score_matching_is_the_loss_of_eps(schedule):
    """Per sample, to rounding, for a network that knows nothing."""
    x0, eps, t = torch.randn(7, 3, dtype=F64), torch.randn(7, 3, dtype=F64), between(schedule)
    model = Denoiser(lambda x, t, cond: torch.sin(3 * x) + t[:, None], schedule, "eps")

    def score(x, t):
        return -model.output(x, t) / schedule.sigma(t)[:, None]

    found = L.denoising_score_matching(score, x0, t, schedule, noise=lambda x: eps)
    torch.testing.assert_close(found, 1.5 * simple_loss(model, x0, t, eps, per_sample=True))
    one = L.denoising_score_matching(lambda x, s: score(x, s.expand(7)), x0, t[3], schedule, noise=lambda x: eps)
    assert one[3] == found[3]


def test_denoising_score_matching_is_the_fisher_divergence_and_what_no_score_removes(mixture):
    """½ σ² E||s − score||² + ½ α²/σ² E||x0 − D||², the last by the exact posterior's covariance."""
    schedule, t, n = S.VE(0.3, 5.0), torch.tensor(0.2, dtype=F64), 200_000
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    found = L.denoising_score_matching(lambda x, t: -0.7 * x, mixture.sample(n), t, schedule)
    x = mixture.sample(n, alpha, sigma)
    excess = 0.5 * sigma**2 * (-0.7 * x - mixture.score(x, alpha, sigma)).square().sum(1)
    floor = 0.5 * (alpha / sigma) ** 2 * mixture.posterior_covariance(x, alpha, sigma).diagonal(dim1=1, dim2=2).sum(1)
    want = excess + floor
    assert abs(found.mean() - want.mean()) < 5 * ((found.var() + want.var()) / n) ** 0.5


def test_score_matching_refuses():
    x = torch.randn(3, 2)
    for loss in (L.implicit_score_matching, L.sliced_score_matching):
        with refuses(ValueError, "score"):
            loss(lambda x: x.sum(1), x)
        with refuses(TypeError, "x must be"):
            loss(lambda x: x, torch.ones(3, 2, dtype=torch.long))
    with refuses(ValueError, "score"):
        L.denoising_score_matching(lambda x, t: x[:, :1], x, torch.tensor(0.5), S.CosineVP())
    with refuses(TypeError, "t must be"):
        L.denoising_score_matching(lambda x, t: x, x, 0.5, S.CosineVP())
