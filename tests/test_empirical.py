"""The best denoisers of finitely many images: against a mixture, brute force, autograd and regression."""

import math

import pytest
import torch
from conftest import refuses
from torch.nn import functional as F

from companion import _empirical
from companion.samplers import ddim, sample, start
from companion.schedules import VE, CosineVP, linspace
from companion.toy import EmpiricalDistribution, GaussianMixture, LocalEmpirical

LEVELS = [(0.9, 0.3), (0.6, 0.8), (0.05, 1.2), (0.0, 1.0), (1.0, 5.0)]


def noisy(points, alpha, sigma, n):
    """n noisy points, as float64."""
    chosen = points[torch.randint(len(points), (n,))].double()
    return alpha * chosen + sigma * torch.randn_like(chosen)


# ---- the whole image


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_points_are_a_mixture_without_spread(alpha, sigma, monkeypatch):
    monkeypatch.setattr(_empirical, "ROWS", 5)  # blocks, the last of them not full
    points = torch.randn(12, 1, 2, 3, dtype=torch.float64) + 3
    mixture = GaussianMixture([1 / 12] * 12, points.flatten(1), stds=1e-7)
    exact, x = EmpiricalDistribution(points), noisy(points, alpha, sigma, 20)
    flat = x.flatten(1)
    close = {"atol": 1e-8, "rtol": 1e-7}
    torch.testing.assert_close(exact.denoise(x, alpha, sigma).flatten(1), mixture.denoise(flat, alpha, sigma), **close)
    torch.testing.assert_close(exact.score(x, alpha, sigma).flatten(1), mixture.score(flat, alpha, sigma), **close)
    torch.testing.assert_close(exact.log_prob(x, alpha, sigma), mixture.log_prob(flat, alpha, sigma), **close)
    shares = exact.responsibilities(x, alpha, sigma)
    torch.testing.assert_close(shares, mixture.responsibilities(flat, alpha, sigma), **close)
    wrong = mixture.denoise(flat / 2 + 1, alpha, sigma)
    assert alpha == 0 or (exact.denoise(x, alpha, sigma).flatten(1) - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_score_is_the_gradient_of_the_density(alpha, sigma):
    points = torch.randn(9, 2, 3, 3, dtype=torch.float64)
    exact, x = EmpiricalDistribution(points), noisy(points, alpha, sigma, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.log_prob(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(exact.score(x.detach(), alpha, sigma), gradient, atol=1e-10, rtol=1e-9)


def test_ends_and_one_level_per_sample():
    points = torch.randn(30, 5)
    exact, x = EmpiricalDistribution(points), torch.randn(4, 5)
    mean, nearest = points.mean(0).expand(4, 5), points[torch.cdist(x, points).argmin(1)]
    torch.testing.assert_close(exact.denoise(x, 0.0, 1.0), mean)
    torch.testing.assert_close(exact.denoise(x), nearest)
    torch.testing.assert_close(exact.denoise(x, 1.0, 1e-4), nearest)
    alpha, sigma = torch.tensor([0.0, 0.3, 0.8, 1.0]), torch.tensor([1.0, 0.9, 0.6, 0.0])
    together = exact.denoise(x, alpha, sigma)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], exact.denoise(x[i : i + 1], alpha[i], sigma[i]))
    assert together.dtype == torch.float32
    schedule, t = VE(0.01, 50.0), torch.tensor([0.9, 0.5, 0.2, 0.1])
    torch.testing.assert_close(exact.denoiser(schedule)(x, t), exact.denoise(x, 1.0, schedule.sigma(t)))
    levels = torch.tensor([0.5, 1.0, 2.0, 4.0])
    torch.testing.assert_close(
        exact.log_prob(x, 0.7, levels)[2:3], exact.log_prob(x[2:3], 0.7, 2.0), atol=1e-4, rtol=1e-5
    )


def test_close_points_far_out_are_told_apart():
    """Two points a hundredth apart, thirty from the origin in each of 3,000 coordinates, at a noise of 0.001."""
    base = torch.full((1, 3000), 30.0, dtype=torch.float64)
    step = torch.zeros_like(base)
    step[0, 0] = 0.01
    points, sigma, x = torch.cat([base, base + step]), 0.001, base + 0.49 * step
    want = 1 / (1 + math.exp(-(0.51**2 - 0.49**2) * 0.01**2 / (2 * sigma**2)))
    found = EmpiricalDistribution(points).responsibilities(x, 1.0, sigma)[0]
    assert found[0].item() == pytest.approx(want, abs=1e-6)
    x, points = x.float(), points.float()
    naive = torch.softmax((x @ points.T - points.square().sum(1) / 2) / sigma**2, 1)[0]
    assert abs(naive[0].item() - want) > 0.1  # what single precision makes of it


def test_its_samples_are_its_points():
    schedule, points = CosineVP(), torch.rand(40, 1, 4, 4) * 2 - 1
    exact, ts = EmpiricalDistribution(points), linspace(CosineVP(), 40)
    drawn = sample(exact.denoiser(schedule), schedule, start(schedule, ts, (30, 1, 4, 4)), ts, sampler=ddim)
    apart = (drawn[:, None] - points).flatten(2).norm(dim=2)
    assert apart.min(1).values.max() < 1e-5 and len(apart.argmin(1).unique()) > 5


def test_bad_points():
    with refuses(ValueError, "points must have shape"):
        EmpiricalDistribution(torch.zeros(0, 2))
    with refuses(ValueError, "points must be finite"):
        EmpiricalDistribution(torch.full((3, 2), math.nan))
    with refuses(TypeError, "points must be a floating"):
        EmpiricalDistribution(torch.zeros(3, 2, dtype=torch.int64))
    exact = EmpiricalDistribution(torch.zeros(3, 2))
    with refuses(ValueError, "x must have shape"):
        exact.denoise(torch.zeros(4, 3), 0.5, 0.5)
    with refuses(TypeError, "x must be a floating"):
        exact.denoise(torch.zeros(4, 2, dtype=torch.int64), 0.5, 0.5)
    for density in (exact.log_prob, exact.score):
        with refuses(ValueError, "sigma must be above 0"):
            density(torch.zeros(4, 2))


# ---- windows


def by_hand(images, x, patch, alpha, sigma, padding_noise, equivariant):
    """The denoiser pixel by pixel, where the padding carries a little noise, so that all windows can be compared."""
    pad = patch // 2
    n, channels, height, width = images.shape
    framed = F.pad(images, (pad,) * 4)
    spread = F.pad(torch.full_like(images[:1], sigma), (pad,) * 4, value=padding_noise)[0]
    out = torch.empty_like(x)
    places = [(row, column) for row in range(height) for column in range(width)]

    def window(of, row, column):
        return of[..., row : row + patch, column : column + patch]

    for b, picture in enumerate(F.pad(x, (pad,) * 4)):
        for row, column in places:
            logs, values = [], []
            for there in places if equivariant else [(row, column)]:
                normal = torch.distributions.Normal(alpha * window(framed, *there), window(spread, *there))
                logs.append(normal.log_prob(window(picture, row, column)).flatten(1).sum(1))
                values.append(images[:, :, there[0], there[1]])
            out[b, :, row, column] = torch.softmax(torch.cat(logs), 0) @ torch.cat(values)
    return out


@pytest.mark.parametrize("equivariant", [True, False])
@pytest.mark.parametrize("patch", [1, 3, 5])
@pytest.mark.parametrize("alpha,sigma", [(0.8, 0.6), (0.3, 0.9), (0.0, 1.0)])
def test_windows_against_brute_force(patch, equivariant, alpha, sigma, monkeypatch):
    """Padding with next to no noise: windows with other paddings lose by themselves, no matter how they compete."""
    monkeypatch.setattr(_empirical, "ENTRIES", 100)
    images = torch.randn(3, 2, 4, 6, dtype=torch.float64) + 0.5
    x = noisy(images, alpha, sigma, 2)
    found = LocalEmpirical(images, patch, equivariant=equivariant).denoise(x, alpha, sigma)
    want = by_hand(images, x, patch, alpha, sigma, 1e-9, equivariant)
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-4)
    if equivariant and patch == 3:  # padding as noisy as the image would let windows of all kinds compete
        assert (want - by_hand(images, x, patch, alpha, sigma, sigma, equivariant)).abs().max() > 0.02


def test_regression_finds_no_better_function_of_the_window():
    """The residual's mean is zero given which of 64 bins the window is in: at the ends of a line, and inside."""
    torch.manual_seed(3)
    images, alpha, sigma, n = torch.randn(4, 1, 1, 5, dtype=torch.float64), 0.7, 0.6, 200_000
    x0 = images[torch.randint(4, (n,))]
    x = alpha * x0 + sigma * torch.randn_like(x0)
    bins = torch.bucketize(x[:, 0, 0], torch.tensor([-0.6, 0.0, 0.6], dtype=torch.float64))  # (n, 5)
    codes = F.pad(bins, (1, 1))
    codes = codes[:, :-2] * 16 + codes[:, 1:-1] * 4 + codes[:, 2:]

    def worst(estimate):
        """The greatest mean residual of a bin, in standard errors, over positions that share a padding."""
        found = []
        for places in ([0], [1, 2, 3], [4]):
            residual, code = (x0 - estimate)[:, 0, 0, places].flatten(), codes[:, places].flatten()
            for bin in code.unique():
                part = residual[code == bin]
                if len(part) > 200:
                    found.append(part.mean().abs() / (part.std() / len(part) ** 0.5))
        return max(found).item()

    # positions of one image are not independent, which makes the errors up to sqrt(3) larger
    assert worst(LocalEmpirical(images, 3).denoise(x, alpha, sigma)) < 4.5 * 3**0.5
    assert worst(LocalEmpirical(images, 1).denoise(x, alpha, sigma)) > 40
    assert worst(LocalEmpirical(images, 3).denoise(x, alpha, 0.7 * sigma)) > 20
    framed = F.pad(x, (1, 1, 0, 0))
    wrong = LocalEmpirical(F.pad(images, (1, 1, 0, 0)), 3).denoise(framed, alpha, sigma)[..., 1:-1]
    assert worst(wrong) > 20  # the frame's zeros taken for more image


def test_a_window_that_sees_everything_is_the_whole_image():
    images = torch.randn(7, 1, 4, 3)
    x = noisy(images, 0.7, 0.6, 5).float()
    exact = EmpiricalDistribution(images)
    for level in ((0.7, 0.6), (0.0, 1.0), (1.0, 0.0), (1.0, 1e-3)):
        torch.testing.assert_close(LocalEmpirical(images, 7).denoise(x, *level), exact.denoise(x, *level))
    assert (LocalEmpirical(images, 3).denoise(x, 0.7, 0.6) - exact.denoise(x, 0.7, 0.6)).abs().max() > 0.1


def test_locality_and_equivariance():
    local = LocalEmpirical(torch.randn(5, 1, 9, 9, dtype=torch.float64), 3)
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    out = local.denoise(x, 0.5, 0.8)
    (seen,) = torch.autograd.grad(out[0, 0, 4, 5], x)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[3:6, 4:7] = True
    assert (seen[0, 0][inside] != 0).all() and (seen[0, 0][~inside] == 0).all()
    x = x.detach()
    moved = local.denoise(x.roll((2, 1), (2, 3)), 0.5, 0.8)
    torch.testing.assert_close(moved[..., 3:8, 2:8], out.detach()[..., 1:6, 1:7])
    anchored = LocalEmpirical(local.images, 3, equivariant=False)
    fixed, moved = anchored.denoise(x, 0.5, 0.8), anchored.denoise(x.roll((2, 1), (2, 3)), 0.5, 0.8)
    assert (moved[..., 3:8, 2:8] - fixed[..., 1:6, 1:7]).abs().max() > 0.1


def test_precision_follows_the_noise():
    """Half of the levels are computed in single precision, half in double: all as in double alone."""
    images = torch.rand(50, 1, 6, 6) * 2 - 1
    x, sigma = noisy(images, 1.0, 0.01, 6), torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.003])
    local = LocalEmpirical(images, 5)
    together = local.denoise(x, 1.0, sigma)  # double, for the least of the levels
    for i in range(6):
        torch.testing.assert_close(together[i : i + 1], local.denoise(x[i : i + 1], 1.0, sigma[i]), atol=2e-3, rtol=0.0)
    t = torch.tensor(0.5)
    schedule = CosineVP()
    want = local.denoise(x, schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(local.denoiser(schedule)(x, t), want)


def test_bad_windows():
    images = torch.zeros(3, 1, 4, 4)
    for patch in (0, 2, -1):
        with refuses(ValueError, "patch must be"):
            LocalEmpirical(images, patch)
    for wrong in (images[:0], images[0]):
        with refuses(ValueError, "images must have shape"):
            LocalEmpirical(wrong, 3)
    with refuses(ValueError, "images must be finite"):
        LocalEmpirical(images / 0, 3)
    with refuses(ValueError, "x must have shape"):
        LocalEmpirical(images, 3).denoise(torch.zeros(2, 1, 5, 4), 0.5, 0.5)
