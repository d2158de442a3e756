"""Log-likelihood along the probability-flow ODE, against exact densities, closed forms, quadrature and SciPy."""

import math

import numpy as np
import pytest
import torch
from conftest import refuses
from scipy.integrate import solve_ivp

from companion import likelihood as L
from companion import schedules as S
from companion.denoisers import Denoiser
from companion.likelihood import dequantize, exact_divergence, hutchinson_divergence, ode_log_likelihood
from companion.losses import bits_per_dim, discretized_gaussian_log_likelihood
from companion.nets import UNet
from companion.toy import GaussianMixture, ImageMixture

F64 = torch.float64
# (schedule, a clean end with sigma > 0): the noisy ends have alpha = 1, alpha small, alpha = 0
PATHS = {
    "linear": (S.LinearVP(), 1e-3),
    "sub-vp": (S.SubVP(), 0.01),
    "cosine": (S.CosineVP(), 1e-3),
    "table": (S.DiscreteVP.linear(), 1.0),
    "ve": (S.VE(), 0.0),
    "flow": (S.RectifiedFlow(), 1e-3),
}
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def level(schedule, t):
    """alpha and sigma as numbers."""
    t = torch.tensor(float(t), dtype=F64)
    return schedule.alpha(t).item(), schedule.sigma(t).item()


def problem(mixture, name, n=20):
    """Points of the diffused density at the clean end, its log-density there, and ``prior`` at the noisy end."""
    schedule, t = PATHS[name]
    alpha, sigma = level(schedule, t)
    x = mixture.sample(n, alpha, sigma)
    prior = lambda y: mixture.log_prob(y, *level(schedule, schedule.t_max))  # noqa: E731
    return x, mixture.log_prob(x, alpha, sigma), {"t_start": t, "prior": prior}


@pytest.mark.parametrize("name", PATHS)
def test_exact_diffused_density_comes_back(name, mixture):
    x, want, ends = problem(mixture, name)
    found = ode_log_likelihood(mixture.denoiser(PATHS[name][0]), PATHS[name][0], x, **ends, **TIGHT)
    assert (found.log_prob - want).abs().max() < 1e-5
    assert (found.rtol, found.atol) == (1e-8, 1e-8) and (found.standard_error == 0).all()
    assert found.code.shape == x.shape and found.evaluations > 100
    loose = ode_log_likelihood(mixture.denoiser(PATHS[name][0]), PATHS[name][0], x, **ends)
    assert 1e-7 < (loose.log_prob - want).abs().max() < 5e-3 and loose.evaluations < found.evaluations / 2


@pytest.mark.parametrize("name", ["linear", "flow"])
@pytest.mark.parametrize("dims", [2, 8, 32])
def test_random_mixtures(dims, name):
    mixture = random_mixture(dims)
    x, want, ends = problem(mixture, name, 5)
    found = ode_log_likelihood(mixture.denoiser(PATHS[name][0]), PATHS[name][0], x, **ends, rtol=1e-7, atol=1e-7)
    assert (found.log_prob - want).abs().max() < 1e-4


def random_mixture(dims, k=3):
    root = 0.4 * torch.randn(k, dims, dims, dtype=F64) / dims**0.5
    covariances = root @ root.mT + 0.02 * torch.eye(dims, dtype=F64)
    return GaussianMixture(torch.full((k,), 1 / k, dtype=F64), torch.randn(k, dims, dtype=F64), covariances)


def by_scipy(mixture, schedule, x, t_start, half=0.5, sign=1.0):
    """log p(x) from dx/dt = f x − ½ g² score in time, its divergence from the posterior's covariance; DOP853."""
    n, d = x.shape

    def rates(t):
        t = torch.tensor(t, dtype=F64)
        alpha, sigma, h = schedule.alpha(t), schedule.sigma(t), 1e-6
        f = (schedule.alpha(t + h).log() - schedule.alpha(t - h).log()) / (2 * h)
        g2 = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h) - 2 * f * sigma**2
        return alpha, sigma, f, g2

    def slope(t, flat):
        alpha, sigma, f, g2 = rates(t)
        y = torch.from_numpy(flat[: n * d].reshape(n, d))
        of_score = alpha**2 / sigma**4 * mixture.posterior_covariance(y, alpha, sigma).diagonal(0, 1, 2).sum(1)
        of_score = of_score - d / sigma**2
        dx = f * y - half * g2 * mixture.score(y, alpha, sigma)
        return np.concatenate([dx.flatten().numpy(), (sign * (f * d - half * g2 * of_score)).numpy()])

    end = 0.999
    begin = np.concatenate([x.flatten().numpy(), np.zeros(n)])
    path = solve_ivp(slope, (t_start, end), begin, method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    code, gained = torch.from_numpy(path[: n * d].reshape(n, d)), torch.from_numpy(path[n * d :])
    sigma = level(schedule, end)[1]
    return -0.5 * (code / sigma).square().sum(1) - d * math.log(sigma * math.sqrt(2 * math.pi)) + gained, code


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_scipy_agrees_and_rejects_wrong_equations(name, mixture):
    """In other coordinates, with another solver, in terms of f, g and the score; from the Gaussian prior."""
    schedule, x = PATHS[name][0], mixture.sample(10)
    found = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, t_start=0.05, t_end=0.999, **TIGHT)
    want, code = by_scipy(mixture, schedule, x, 0.05)
    assert (found.log_prob - want).abs().max() < 1e-5 and (found.code - code).abs().max() < 1e-5
    for wrong in ({"half": 1.0}, {"half": 0.25}, {"sign": -1.0}):
        assert (found.log_prob - by_scipy(mixture, schedule, x, 0.05, **wrong)[0]).abs().min() > 0.01


# ---- Gaussian data: map, density and each probe's estimate in closed form -------------------------------------------


def gaussian(schedule, t_start, t_end):
    """A Gaussian as a mixture, the matrix that the ODE applies to x − alpha mean, and the logarithm of that on u."""
    mean = torch.tensor([0.5, -0.2, 0.1], dtype=F64)
    root = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.3]], dtype=F64)
    mixture = GaussianMixture([1.0], mean[None], (root @ root.T)[None])
    (a0, s0), (a1, s1) = level(schedule, t_start), level(schedule, t_end)
    spread, axes = torch.linalg.eigh(root @ root.T)
    stretch = ((a1**2 * spread + s1**2) / (a0**2 * spread + s0**2)).sqrt()
    on_u = stretch / math.hypot(a1, s1) * math.hypot(a0, s0)
    return mixture, axes @ stretch.diag() @ axes.T, axes @ on_u.log().diag() @ axes.T


@pytest.mark.parametrize("name", PATHS)
def test_gaussian_prior_on_gaussian_data(name):
    """x − alpha mean is stretched along the axes; the prior's error is the density of N(0, sigma²) at that code."""
    schedule, t_start = PATHS[name]
    t_end = 0.6 * schedule.t_max
    mixture, stretch, _ = gaussian(schedule, t_start, t_end)
    (a0, s0), (a1, s1) = level(schedule, t_start), level(schedule, t_end)
    x = mixture.sample(20, a0, s0)
    code = a1 * mixture.means + (x - a0 * mixture.means) @ stretch
    found = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, t_start=t_start, t_end=t_end, **TIGHT)
    want = torch.distributions.Normal(0, s1).log_prob(code).sum(1) + torch.logdet(stretch)
    torch.testing.assert_close(found.code, code, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.log_prob, want, atol=1e-5, rtol=0)
    off = torch.distributions.Normal(0, s1).log_prob(code).sum(1) - mixture.log_prob(code, a1, s1)
    torch.testing.assert_close(found.log_prob - mixture.log_prob(x, a0, s0), off, atol=1e-5, rtol=0)
    assert off.abs().max() > 1e-3


@pytest.mark.parametrize("probe", L.PROBES)
@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_each_probe_s_estimate_on_gaussian_data(name, probe):
    """There the integral along the path is v' M v, M the logarithm of the map on u: fixed probes, and no others."""
    schedule, t_start = PATHS[name]
    mixture, _, log_map = gaussian(schedule, t_start, 0.6)
    x = mixture.sample(7, *level(schedule, t_start))
    options = {"t_start": t_start, "t_end": 0.6, **TIGHT}
    exact = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, **options)
    drawn = []
    noise = lambda x: drawn.append(torch.randn_like(x)) or drawn[-1]  # noqa: E731
    found = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, probes=4, probe=probe, noise=noise, **options)
    assert len(drawn) == 4, "drawn once, and kept"
    v = torch.stack(drawn) if probe == "gaussian" else torch.stack(drawn).sign()
    each = torch.einsum("kbi,ij,kbj->bk", v, log_map, v)
    torch.testing.assert_close(found.log_prob, exact.log_prob + each.mean(1) - log_map.trace(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.standard_error, each.std(1) / 2, atol=1e-5, rtol=1e-5)
    one = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, probes=1, **options)
    assert torch.isfinite(one.log_prob).all() and one.standard_error.isnan().all()


# ---- divergences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", L.PROBES)
def test_hutchinson_is_unbiased_with_the_stated_variance(probe):
    weights = torch.randn(4, 6, dtype=F64)
    field = lambda x: torch.tanh(x.flatten(1) @ weights.T @ weights[:, [1, 0, 3, 2, 5, 4]]).reshape(x.shape)  # noqa: E731
    point = 0.3 * torch.randn(1, 2, 3, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(field, point).reshape(6, 6)
    assert exact_divergence(field, point).item() == pytest.approx(jacobian.trace().item())
    symmetric = (jacobian + jacobian.T) / 2
    want = 2 * symmetric.square().sum()
    if probe == "rademacher":
        want = want - 2 * symmetric.diagonal().square().sum()
    n = 200_000
    z = torch.randn(n, 2, 3, dtype=F64)
    found = hutchinson_divergence(field, point.expand(n, -1, -1), z if probe == "gaussian" else z.sign())
    assert abs(found.mean() - jacobian.trace()) < 4 * (want / n) ** 0.5
    assert abs(found.var() / want - 1) < 0.05
    other = 2 * symmetric.square().sum() - want + 2 * symmetric.square().sum() - 2 * symmetric.diagonal().square().sum()
    assert min(abs(found.var() / v - 1) for v in (want / 2, 2 * want, other)) > 0.1  # lost 2, asymmetric, other probe


def test_divergences_of_many_dimensions_and_without_a_graph():
    weights = torch.randn(100, 100, dtype=F64)
    with torch.no_grad():
        found = exact_divergence(lambda x: x @ weights.T, torch.randn(3, 100, dtype=F64))
        assert found.tolist() == pytest.approx(3 * [weights.trace().item()])
        v = torch.randn(3, 100)
        found = hutchinson_divergence(lambda x: x @ weights.float().T, torch.randn(3, 100), v)
    torch.testing.assert_close(found, torch.einsum("bi,ij,bj->b", v, weights.float(), v), atol=1e-3, rtol=1e-4)
    assert found.dtype == torch.float32 and not found.requires_grad


def random_field(x, t):
    """A denoiser that is no density's: some smooth function of x and t."""
    return torch.sin(1.5 * x + 3 * t) * (1 - t) + 0.3 * t


@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_the_density_of_any_denoiser_integrates_to_one(name):
    schedule = PATHS[name][0]
    t_start, t_end = (0.4, 0.6) if name == "ve" else (0.2, 1.0)  # of VE, sigma from 0.3 to 1.7
    x = torch.linspace(-16, 16, 3001, dtype=F64)[:, None]
    found = ode_log_likelihood(random_field, schedule, x, t_start=t_start, t_end=t_end, rtol=1e-6, atol=1e-6)
    assert torch.trapezoid(found.log_prob.exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-5)


# ---- solvers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, order, steps", [("rk4", 4, 24), ("heun2", 2, 48), ("euler", 1, 96)])
def test_measured_order_of_fixed_steps(method, order, steps, mixture):
    x, want, ends = problem(mixture, "linear")
    ends["t_start"], schedule = 0.2, S.LinearVP()
    want = mixture.log_prob(x, *level(schedule, 0.2))
    errors = []
    for n in (steps, 2 * steps, 4 * steps):
        found = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, **ends, method=method, steps=n)
        errors.append((found.log_prob - want).square().mean().sqrt().item())
        assert found.evaluations == n * {"rk4": 4, "heun2": 2, "euler": 1}[method] and found.rtol is None
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(orders[-1] - order) < 0.25, (orders, errors)


def estimates(mixture, steps):
    schedule = S.LinearVP()
    x, _, ends = problem(mixture, "linear", 8)
    torch.manual_seed(3)
    options = {"probes": 2, "method": "rk4", **ends, "t_start": 0.2}
    return [ode_log_likelihood(mixture.denoiser(schedule), schedule, x, steps=n, **options, noise=fixed) for n in steps]


def fixed(x):
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))


def test_fixed_probes_keep_the_solver_s_order_and_fresh_ones_would_not(monkeypatch, mixture):
    def last_order():
        coarse, middle, fine = (found.log_prob for found in estimates(mixture, (24, 48, 96)))
        return math.log2((coarse - middle).abs().max() / (middle - fine).abs().max())

    torch.manual_seed(0)
    assert abs(last_order() - 4) < 0.4
    right = L._hutchinson
    monkeypatch.setattr(L, "_hutchinson", lambda field, x, v: right(field, x, torch.randn_like(v).sign()))
    torch.manual_seed(0)
    assert last_order() < 2


def test_a_sample_does_not_depend_on_its_company(mixture):
    """An easy sample in a batch of many hard ones, and a hard one among easy ones."""
    schedule = S.LinearVP()
    far, near = torch.full((1, 2), 3.0, dtype=F64), mixture.means[:1]
    options = {"t_start": 1e-3, "rtol": 1e-5, "atol": 1e-5}
    alone = ode_log_likelihood(mixture.denoiser(schedule), schedule, far, **options).log_prob[0]
    crowd = ode_log_likelihood(mixture.denoiser(schedule), schedule, torch.cat([far, near.repeat(500, 1)]), **options)
    exact = ode_log_likelihood(mixture.denoiser(schedule), schedule, far, **(options | TIGHT)).log_prob[0]
    assert abs(alone - exact) < 0.01 and abs(crowd.log_prob[0] - exact) < 0.01


# ---- pictures, networks, dtypes -------------------------------------------------------------------------------------


def test_image_mixture():
    """1024 dimensions, by Hutchinson's estimate: within its standard error."""
    mixture, schedule = ImageMixture.load(), S.CosineVP()
    alpha, sigma = level(schedule, 0.05)
    x = mixture.sample(4, alpha=alpha, sigma=sigma, generator=torch.Generator().manual_seed(1))
    want = mixture.log_prob(x, alpha, sigma)
    options = {"t_start": 0.05, "method": "rk4"}
    found = ode_log_likelihood(mixture.denoiser(schedule), schedule, x, probes=16, steps=16, **options)
    assert ((found.log_prob - want).abs() < 4 * found.standard_error).all() and found.standard_error.max() < 15


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_a_network_on_pictures(kind):
    """Exact trace of a real network against the mean of many probes, float32, with and without a graph outside."""
    schedule = S.LinearLogSNR(8.0, -5.0)
    net = UNet(channels=1, width=8, multipliers=[1]).requires_grad_(False)
    torch.nn.init.normal_(list(net.parameters())[-2], std=0.05)
    torch.nn.init.normal_(list(net.parameters())[-1], std=0.05)
    model, x = Denoiser(net, schedule, kind), torch.rand(2, 1, 4, 4) * 2 - 1
    options = {"method": "rk4", "steps": 8}
    exact = ode_log_likelihood(model, schedule, x, **options)
    found = ode_log_likelihood(model, schedule, x, probes=64, **options)
    assert ((found.log_prob - exact.log_prob).abs() < 4 * found.standard_error + 1e-3).all()
    assert exact.code.dtype == torch.float32 and exact.log_prob.dtype == F64 and not exact.log_prob.requires_grad
    assert exact.code.shape == x.shape and torch.equal(found.code, exact.code)


def test_float32_keeps_the_digits(mixture):
    schedule = S.LinearVP()
    x, want, ends = problem(mixture, "linear")
    found = ode_log_likelihood(mixture.denoiser(schedule), schedule, x.float(), **ends, rtol=1e-6, atol=1e-6)
    assert (found.log_prob - mixture.log_prob(x, *level(schedule, 1e-3))).abs().max() < 2e-2
    assert found.code.dtype == torch.float32


def test_dequantised_bits_are_those_of_the_levels():
    """Narrow bins of a smooth density: bits per dimension from densities and from masses agree with width 2/255."""
    levels = (2 * torch.arange(20, 236, dtype=F64) / 255 - 1)[None].expand(2000, -1)
    normal = torch.distributions.Normal(torch.tensor(0.1, dtype=F64), 0.4)
    noisy = dequantize(levels)
    assert (noisy - levels).abs().max() <= 1 / 255 and (noisy - levels).abs().max() > 0.999 / 255
    found = bits_per_dim(-normal.log_prob(noisy).sum(1), 216, bin_width=2 / 255).mean()
    mass = discretized_gaussian_log_likelihood(levels[:1], torch.tensor(0.1, dtype=F64), 0.4)
    want = bits_per_dim(-mass.sum(1), 216).mean()
    assert found == pytest.approx(want.item(), abs=2e-4)
    assert abs(bits_per_dim(-normal.log_prob(noisy).sum(1), 216, bin_width=2 / 256).mean() - want) > 5e-3
    drawn = dequantize(torch.ones(1000, 1), bins=2)
    assert 0 <= drawn.min() < 0.05 and 1.95 < drawn.max() <= 2
    assert torch.equal(dequantize(torch.ones(3, 1), 17, noise=lambda x: 0.5 * x), torch.ones(3, 1))


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"t_start": 0.0}, ValueError, "t_start must be a time at which sigma > 0"),
        ({"t_start": 0.5, "t_end": 0.5}, ValueError, "t_start and t_end"),
        ({"t_end": 1.5}, ValueError, "t_start and t_end"),
        ({"method": "scipy"}, ValueError, "method"),
        ({"method": "rk4"}, ValueError, "steps"),
        ({"steps": 10}, ValueError, "steps must be None"),
        ({"probes": 0}, ValueError, "probes"),
        ({"probe": "uniform"}, ValueError, "probe"),
        ({"rtol": 0.0}, ValueError, "rtol"),
        ({"prior": lambda y: y}, ValueError, "prior"),
        ({"x": torch.full((2, 1), float("nan"))}, ValueError, "x must be finite"),
        ({"x": torch.ones(2, 1, dtype=torch.long)}, TypeError, "x must be"),
        ({"denoise": torch.no_grad()(lambda x, t: 0.5 * x)}, TypeError, "field must be differentiable"),
        ({"denoise": lambda x, t: x[:1]}, ValueError, "same shape"),
    ],
)
def test_refuses(options, error, message):
    arguments = {"denoise": lambda x, t: 0.5 * x, "x": torch.ones(2, 1), "t_start": 0.1} | options
    with refuses(error, message):
        ode_log_likelihood(arguments.pop("denoise"), S.CosineVP(), arguments.pop("x"), **arguments)


def test_refuses_noise_where_the_kind_knows_no_data(mixture):
    class Eps(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return x

    with refuses(ValueError, "'eps' does not determine"):
        ode_log_likelihood(Denoiser(Eps(), S.CosineVP(), "eps"), S.CosineVP(), torch.ones(2, 2), t_start=0.1)


@pytest.mark.parametrize("x", [0.0, 1.02, -3.0, float("nan")])
def test_dequantize_refuses_what_is_on_no_level(x):
    with refuses(ValueError, "x must lie"):
        dequantize(torch.full((2, 1), x))
    with refuses(ValueError, "bins"):
        dequantize(torch.ones(2, 1), 1)
