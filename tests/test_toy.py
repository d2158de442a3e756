"""The mixture against quadrature, autograd and sampling."""

import pytest
import torch
from conftest import SCHEDULES, refuses
from scipy.stats import norm

from companion.toy import GaussianMixture, swiss_roll

LEVELS = [(1.0, 0.0), (0.9, 0.3), (0.6, 0.8), (0.1, 0.99), (0.0, 1.0), (1.0, 5.0)]


def random_mixture(k, d, seed):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64) / d**0.5
    weights = torch.rand(k, generator=g, dtype=torch.float64) + 0.1
    covariances = root @ root.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), torch.randn(k, d, generator=g, dtype=torch.float64), covariances)


@pytest.mark.parametrize("alpha,sigma", LEVELS)
@pytest.mark.parametrize("d", [1, 2, 8, 32])
def test_score_is_the_gradient_of_log_prob(d, alpha, sigma):
    m = random_mixture(3, d, d)
    x = torch.randn(20, d, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(m.log_prob(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(m.score(x.detach(), alpha, sigma), gradient, atol=1e-9, rtol=1e-9)
    assert (gradient + m.score(x.detach(), alpha, sigma)).abs().max() > 1e-2  # a lost sign shows


@pytest.mark.parametrize("alpha,sigma", [(0.9, 0.3), (0.6, 0.8), (0.1, 0.99)])
def test_denoiser_and_density_are_integrals(mixture, alpha, sigma):
    side = torch.linspace(-4, 4, 321, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    x = mixture.sample(10, alpha, sigma)
    joint = torch.exp(-(torch.cdist(x, alpha * grid) ** 2) / (2 * sigma**2)) / (2 * torch.pi * sigma**2)
    joint = joint * mixture.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mixture.log_prob(x, alpha, sigma).exp(), joint.sum(1), atol=1e-10, rtol=1e-9)
    mean = joint @ grid / joint.sum(1, keepdim=True)
    torch.testing.assert_close(mixture.denoise(x, alpha, sigma), mean, atol=1e-9, rtol=1e-9)
    draws = mixture.posterior_sample(x[0].expand(100_000, 2), alpha, sigma)
    assert ((draws.mean(0) - mean[0]).abs() < 5 * draws.std(0) / len(draws) ** 0.5).all()
    second = (joint[0] / joint[0].sum()) @ (grid - mean[0]).square()
    spread = (draws - mean[0]).square()
    assert ((spread.mean(0) - second).abs() < 5 * spread.std(0) / len(draws) ** 0.5).all()


@pytest.mark.parametrize("alpha,sigma", [(0.9, 0.3), (0.5, 0.8), (0.2, 1.5)])
def test_posterior_covariance_is_the_second_order_tweedie_formula(alpha, sigma):
    """Cov[x0 | x] = sigma²/alpha² (I + sigma² ∇² log p(x)), the Hessian by autograd; and at each level in one call."""
    tilted = [
        [[0.2, 0.1, 0.0], [0.1, 0.4, 0.2], [0.0, 0.2, 0.3]],
        [[0.5, -0.2, 0.1], [-0.2, 0.3, 0.0], [0.1, 0.0, 0.1]],
    ]
    mixture = GaussianMixture([0.4, 0.6], [[1.0, 0.2, 0.0], [-0.5, 0.0, 0.8]], tilted)
    x = mixture.sample(6, alpha, sigma)
    hessian = torch.func.vmap(torch.func.hessian(lambda y: mixture.log_prob(y, alpha, sigma)))(x)
    want = (sigma / alpha) ** 2 * (torch.eye(3, dtype=torch.float64) + sigma**2 * hessian)
    torch.testing.assert_close(mixture.posterior_covariance(x, alpha, sigma), want, atol=1e-10, rtol=1e-8)
    levels = torch.full((3, 1), alpha, dtype=torch.float64), torch.full((3, 1), sigma, dtype=torch.float64)
    torch.testing.assert_close(mixture.posterior_covariance(x.expand(3, 6, 3), *levels), want.expand(3, 6, 3, 3))
    assert (mixture.posterior_covariance(x, 1.0, 0.0).abs() < 1e-12).all()


@pytest.mark.parametrize("alpha,sigma", [(1.0, 0.0), (0.8, 0.6), (0.3, 2.0)])
def test_the_distribution_function_is_the_density_s_integral(alpha, sigma):
    line = GaussianMixture.two()
    x = torch.linspace(-12, 4, 4001, dtype=torch.float64)
    areas = torch.cumulative_trapezoid(line.log_prob(x[:, None], alpha, sigma).exp(), x)
    torch.testing.assert_close(line.cdf(x[1:, None], alpha, sigma), areas, atol=1e-4, rtol=0)
    levels = torch.full((3, 1), alpha, dtype=torch.float64), torch.full((3, 1), sigma, dtype=torch.float64)
    each = line.cdf(x[None, :50, None].expand(3, 50, 1), *levels)
    torch.testing.assert_close(each, line.cdf(x[:50, None], alpha, sigma).expand(3, 50))
    with refuses(ValueError, "on the line"):
        GaussianMixture.four().cdf(torch.zeros(3, 2))


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_samples_have_the_stated_moments(mixture, alpha, sigma):
    x = mixture.sample(200_000, alpha, sigma)
    error = 5 * x.std(0) / len(x) ** 0.5
    assert ((x.mean(0) - alpha * mixture.mean()).abs() < error).all()
    want = alpha**2 * mixture.covariance() + sigma**2 * torch.eye(2, dtype=torch.float64)
    centred = x - alpha * mixture.mean()
    products = centred[:, :, None] * centred[:, None, :]
    assert ((products.mean(0) - want).abs() < 5 * products.std(0) / len(x) ** 0.5).all()
    # log_prob belongs to the same distribution: the mean of grad log p is zero, and of x · grad log p is −d
    stein = (x * mixture.score(x, alpha, sigma)).sum(1)
    assert abs(stein.mean() + 2) < 5 * stein.std() / len(x) ** 0.5


def test_alpha_and_sigma_per_sample(mixture):
    x = torch.randn(5, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    schedule = SCHEDULES["cosine"]
    together = mixture.denoiser(schedule)(x, t)
    alone = torch.cat([mixture.denoiser(schedule)(x[i : i + 1], t[i]) for i in range(5)])
    torch.testing.assert_close(together, alone)
    assert torch.allclose(mixture.responsibilities(x, 0.5, 0.5).sum(-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("alpha,sigma", [(1.0, 0.0), (0.8, 0.6), (0.0, 1.0)])
def test_a_quantile_has_its_share_below_it(alpha, sigma):
    """By the component's own distribution functions, SciPy's."""
    line = GaussianMixture.two()
    share = torch.tensor([1e-6, 0.01, 0.3, 0.7, 0.999999], dtype=torch.float64)
    found = line.quantile(share, alpha, sigma)
    assert found.shape == (5, 1)
    scales = (alpha**2 * line.spread[:, 0] + sigma**2).sqrt()
    below = norm.cdf(found.numpy(), alpha * line.means[:, 0].numpy(), scales.numpy()) @ line.weights.numpy()
    assert abs(below / share.numpy() - 1).max() < 1e-8
    grid = line.quantile(share[:, None], torch.tensor([0.5, alpha]).double(), torch.tensor([0.7, sigma]).double())
    assert grid.shape == (5, 2, 1) and torch.allclose(grid[:, 1], found)
    for bad in (0.0, 1.0):
        with refuses(ValueError, "share must lie"):
            line.quantile(torch.tensor([0.5, bad]).double())
    with refuses(ValueError, "on the line"):
        GaussianMixture.four().quantile(share)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(weights=[0.5, 0.6], means=[[0.0], [1.0]], stds=[1.0, 1.0]), "weights"),
        (dict(weights=[0.5, 0.5], means=[0.0, 1.0], stds=[1.0, 1.0]), "shapes"),
        (dict(weights=[1.0], means=[[0.0, 0.0]], covariances=[[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
        (dict(weights=[1.0], means=[[0.0, 0.0]], covariances=[[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (dict(weights=[1.0], means=[[float("nan")]], stds=[1.0]), "means"),
        (dict(weights=[1.0], means=[[0.0]]), "one of"),
    ],
)
def test_bad_mixtures(arguments, message):
    with refuses(ValueError, message):
        GaussianMixture(**arguments)


def test_bad_points(mixture):
    with refuses(ValueError, "x must have shape"):
        mixture.log_prob(torch.zeros(3, 3))
    with refuses(TypeError, "x must be a floating"):
        mixture.log_prob(torch.zeros(3, 2, dtype=torch.int64))
    with refuses(ValueError, "n must be"):
        mixture.sample(0)


def test_swiss_roll_is_seeded_and_bounded():
    a, b = (swiss_roll(100, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (100, 2) and a.abs().max() < 2.5
