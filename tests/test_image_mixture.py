"""The image mixture against dense Gaussians, autograd, Bayes' rule and sampling; and the file that ships."""

import json
import math
import shutil

import pytest
import torch
from conftest import SCHEDULES, refuses

from companion._image_mixture import SHIPPED, ImageMixture
from companion.recipes.image_mixture import fit_class

LEVELS = [(1.0, 0.0), (0.9, 0.3), (0.6, 0.8), (0.1, 0.99), (0.0, 1.0), (1.0, 5.0)]
SMALL = (1, 3, 4)


def small(seed=0, classes=3, k=2, rank=2, shape=SMALL):
    """A random mixture of few pixels, unequal in weight, width and noise."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(classes, k, generator=g, dtype=torch.float64) + 0.1
    means = torch.randn(classes, k, *shape, generator=g, dtype=torch.float64)
    factors = 0.7 * torch.randn(classes, k, rank, *shape, generator=g, dtype=torch.float64)
    noise = 0.2 + 0.3 * torch.rand(classes, k, generator=g, dtype=torch.float64)
    return ImageMixture(weights / weights.sum(), means, factors, noise)


def dense(m, alpha, sigma):
    """(mean, covariance of x, covariance of x0) per component, in full."""
    d = math.prod(m.shape)
    means, factors = m.means.reshape(-1, d), m.factors.flatten(0, 1).flatten(2)
    eye = torch.eye(d, dtype=torch.float64)
    clean = factors.mT @ factors + m.noise.reshape(-1, 1, 1) ** 2 * eye
    return means, alpha**2 * clean + sigma**2 * eye, clean


def joint(m, x, alpha, sigma):
    """log w N(x) per component by Cholesky factors of full covariances, (batch, classes, k)."""
    means, full, _ = dense(m, alpha, sigma)
    normal = torch.distributions.MultivariateNormal(alpha * means, full)
    return (normal.log_prob(x.flatten(1)[:, None]) + m.weights.flatten().log()).unflatten(1, m.weights.shape)


def points(m, n=20, seed=1):
    return torch.randn(n, *m.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def per_class(m, x, alpha, sigma):
    return torch.stack([m.score(x, alpha, sigma, c) for c in range(m.classes)], 1)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_densities_are_those_of_full_covariances(alpha, sigma):
    m, labels = small(), torch.arange(20) % 3
    x, prior = points(m), m.weights.sum(1)
    parts = joint(m, x, alpha, sigma)
    close(m.log_prob(x, alpha, sigma), parts.logsumexp((1, 2)))
    given_class = parts.logsumexp(2) - prior.log()
    close(m.class_log_prob(x, alpha, sigma), given_class)
    close(m.log_prob(x, alpha, sigma, labels), given_class[torch.arange(20), labels])
    close(m.log_prob(x, alpha, sigma, 1), given_class[:, 1])
    weighed = given_class.exp() * prior
    close(m.class_posterior(x, alpha, sigma), weighed / weighed.sum(1, keepdim=True))
    close(m.responsibilities(x, alpha, sigma), parts.flatten(1).softmax(1).view_as(parts))
    inside = m.responsibilities(x, alpha, sigma, labels)
    close(inside.sum(2), torch.nn.functional.one_hot(labels, 3).double())


@pytest.mark.parametrize("label", [None, 1, torch.arange(20) % 3])
@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_score_is_the_gradient_and_denoise_is_tweedie(alpha, sigma, label):
    m = small()
    x = points(m).requires_grad_()
    (gradient,) = torch.autograd.grad(m.log_prob(x, alpha, sigma, label).sum(), x)
    x = x.detach()
    score = m.score(x, alpha, sigma, label)
    close(score, gradient)
    assert (score + gradient).abs().max() > 1e-2  # a lost sign shows
    if alpha > 0:
        close(m.denoise(x, alpha, sigma, label), (x + sigma**2 * gradient) / alpha)


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_denoise_conditions_full_gaussians(alpha, sigma):
    m = small()
    x = points(m)
    means, full, clean = dense(m, alpha, sigma)
    gain = alpha * clean @ torch.linalg.inv(full)
    guesses = means + torch.einsum("kde,nke->nkd", gain, x.flatten(1)[:, None] - alpha * means)
    shares = joint(m, x, alpha, sigma).flatten(1).softmax(1)
    close(m.denoise(x, alpha, sigma).flatten(1), (shares[..., None] * guesses).sum(1))
    if alpha == 0:
        close(m.denoise(x, alpha, sigma).flatten(1), (m.weights.flatten() @ means).expand(20, -1))


@pytest.mark.parametrize("alpha,sigma", LEVELS)
def test_guidance(alpha, sigma):
    m, label = small(), torch.arange(20) % 3
    x = points(m)
    plain, conditional = m.score(x, alpha, sigma), m.score(x, alpha, sigma, label)
    close(m.guided_score(x, alpha, sigma, label, 0), plain)
    close(m.guided_score(x, alpha, sigma, label, 1.0), conditional)
    w = 1.5  # the paper's: (1 + w) conditional − w unconditional
    close(m.guided_score(x, alpha, sigma, label, 1 + w), (1 + w) * conditional - w * plain)
    guided = m.guided_denoise(x, alpha, sigma, label, 2.5)
    close(guided, 2.5 * m.denoise(x, alpha, sigma, label) - 1.5 * m.denoise(x, alpha, sigma))
    if alpha > 0:
        close(guided, (x + sigma**2 * m.guided_score(x, alpha, sigma, label, 2.5)) / alpha)
    # conditional − unconditional is the classifier's gradient, and its mean over p(c | x) is zero
    x.requires_grad_()
    chance = m.class_posterior(x, alpha, sigma)[torch.arange(20), label]
    (gradient,) = torch.autograd.grad(chance.log().sum(), x)
    close(conditional - plain, gradient, 1e-8)
    x = x.detach()
    posterior = m.class_posterior(x, alpha, sigma)
    close((posterior[..., None, None, None] * per_class(m, x, alpha, sigma)).sum(1), plain)


def test_wrong_versions_are_seen():
    """One-token mistakes miss the dense answer by far more than the tolerance."""
    m, (alpha, sigma), label = small(), (0.6, 0.8), torch.arange(20) % 3
    x, d, rank = points(m), math.prod(SMALL), m.factors.shape[2]
    right = m.log_prob(x, alpha, sigma)
    log_part, _, off, on, *_ = m._parts(x, alpha, sigma)
    bare = (alpha**2 * m.noise.flatten() ** 2).log()
    wrong = {
        "no log determinant": log_part + 0.5 * ((d - rank) * off.log() + on.log().sum(2)),
        "sigma² lost in the determinant": log_part + 0.5 * (d - rank) * (off.log() - bare),
        "the determinant over d, not d − r": log_part - 0.5 * rank * off.log(),
        "weights left out": log_part - m.weights.flatten().log(),
    }
    for name, value in wrong.items():
        assert (value.logsumexp(1) - right).abs().max() > 1e-2, name
    plain, conditional = m.score(x, alpha, sigma), m.score(x, alpha, sigma, label)
    guided = m.guided_score(x, alpha, sigma, label, 3.0)
    for value in (
        plain + 3.0 * conditional,  # weights that do not sum to one
        4.0 * conditional - 3.0 * plain,  # the other convention
        conditional + 3.0 * (plain - conditional),  # a swapped pair
    ):
        assert (value - guided).abs().max() > 1e-2
    uniform = per_class(m, x, alpha, sigma).mean(1)
    assert (uniform - plain).abs().max() > 1e-2  # p(c) for p(c | x) in the sum rule


@pytest.mark.parametrize("alpha,sigma", [(1.0, 0.0), (0.6, 0.8), (0.0, 1.0)])
@pytest.mark.parametrize("label", [None, 2])
def test_samples_have_the_stated_moments(alpha, sigma, label):
    m, n = small(shape=(1, 2, 2), rank=1), 100_000
    drawn = m.sample(n, label, alpha, sigma, generator=torch.Generator().manual_seed(3))
    assert drawn.shape == (n, 1, 2, 2) and drawn.dtype == torch.float64
    means, full, _ = dense(m, alpha, sigma)
    weights = m.weights if label is None else m.weights[label] / m.weights[label].sum()
    chosen = slice(None) if label is None else slice(2 * label, 2 * label + 2)
    means, full, weights = alpha * means[chosen], full[chosen], weights.flatten()
    mean = weights @ means
    between = means - mean
    want = torch.einsum("k,kde->de", weights, full + between[:, :, None] * between[:, None])
    flat = drawn.flatten(1)
    assert ((flat.mean(0) - mean).abs() < 5 * flat.std(0) / n**0.5).all()
    products = (flat - mean)[:, :, None] * (flat - mean)[:, None]
    assert ((products.mean(0) - want).abs() < 5 * products.std(0) / n**0.5).all()
    stein = (drawn * m.score(drawn, alpha, sigma, label)).flatten(1).sum(1)
    assert abs(stein.mean() + 4) < 5 * stein.std() / n**0.5


def test_labels_alpha_and_sigma_per_sample():
    m, labels = small(), torch.tensor([0, 1, 2, 2, 1])
    x, t = points(m, 5), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    schedule = SCHEDULES["cosine"]
    for scale in (None, 2.0):
        together = m.denoiser(schedule, labels, scale)(x, t)
        alone = [m.denoiser(schedule, int(labels[i]), scale)(x[i : i + 1], t[i]) for i in range(5)]
        close(together, torch.cat(alone))
    close(m.denoiser(schedule)(x, t[2]), m.denoise(x, schedule.alpha(t[2]), schedule.sigma(t[2])))
    seeds = [torch.Generator().manual_seed(4) for _ in range(2)]
    first, second = (m.sample(5, labels, generator=g) for g in seeds)
    assert torch.equal(first, second)


def test_the_fit_of_one_component_is_the_closed_form():
    m = small(classes=1, k=1)
    x = m.sample(2000, generator=torch.Generator().manual_seed(5))
    found = fit_class(x.float(), 1, 2, 40, torch.Generator().manual_seed(6))
    values, vectors = torch.linalg.eigh(torch.cov(x.flatten(1).T, correction=0))
    floor, axes = values[:-2].mean(), vectors[:, -2:]
    want = axes @ torch.diag(values[-2:] - floor) @ axes.T + floor * torch.eye(12, dtype=torch.float64)
    close(dense(found, 1.0, 0.0)[1][0], want, 1e-3)
    close(found.means[0, 0], x.mean(0), 1e-4)


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(weights=torch.full((3, 2), 0.2)), "weights"),
        (dict(weights=torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]])), "no class"),
        (dict(means=torch.zeros(3, 2, 12)), "weights and means must have shapes"),
        (dict(factors=torch.zeros(3, 2, 2, 1, 4, 3)), "factors must have shape"),
        (dict(factors=torch.zeros(3, 2, 12, *SMALL)), "rank"),
        (dict(noise=0.0), "noise must be above 0"),
        (dict(noise=[0.1, 0.1]), "noise must be a number"),
        (dict(means=torch.full((3, 2, *SMALL), math.nan)), "means must be finite"),
    ],
)
def test_bad_mixtures(change, message):
    good = dict(weights=torch.full((3, 2), 1 / 6), means=torch.zeros(3, 2, *SMALL), noise=0.1)
    good["factors"] = torch.zeros(3, 2, 2, *SMALL)
    ImageMixture(**good)
    with refuses(ValueError, message):
        ImageMixture(**good | change)


def test_bad_arguments():
    m = small()
    x, schedule = points(m, 4), SCHEDULES["cosine"]
    for error, message, call in (
        (ValueError, "x must have shape", lambda: m.log_prob(torch.zeros(4, 1, 4, 3))),
        (ValueError, "x must have shape", lambda: m.score(torch.zeros(4, 12))),
        (TypeError, "x must be a floating", lambda: m.denoise(torch.zeros(4, *SMALL, dtype=torch.int64))),
        (TypeError, "x must be float32 or float64", lambda: m.denoise(x.bfloat16())),
        (ValueError, "alpha must be", lambda: m.log_prob(x, torch.ones(3))),
        (ValueError, "label must be a class", lambda: m.score(x, 1.0, 1.0, 3)),
        (ValueError, "label must be one class", lambda: m.score(x, 1.0, 1.0, torch.tensor([0, 1]))),
        (TypeError, "label must be None", lambda: m.score(x, 1.0, 1.0, 0.5)),
        (ValueError, "label must be a class", lambda: m.guided_score(x, 1.0, 1.0, None, 2.0)),
        (ValueError, "scale must be a finite", lambda: m.guided_score(x, 1.0, 1.0, 0, math.nan)),
        (ValueError, "label must be a class", lambda: m.denoiser(schedule, guidance_scale=2.0)),
        (ValueError, "label has 2 classes", lambda: m.denoiser(schedule, torch.tensor([0, 1]))(x, torch.tensor(0.5))),
        (ValueError, "n must be", lambda: m.sample(0)),
        (ValueError, "label must be a class", lambda: m.sample(2, -1)),
    ):
        with refuses(error, message):
            call()


@pytest.fixture(scope="module")
def shipped():
    return ImageMixture.load()


def test_what_ships(shipped):
    card = json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
    for key in "description model recipe data seed steps hardware seconds metrics bytes sha256 licence".split():
        assert card[key] not in (None, ""), key
    assert SHIPPED.stat().st_size == card["bytes"] < 1_000_000
    assert shipped.shape == (1, 32, 32) and shipped.classes == 10
    assert card["parameters"] == sum(getattr(shipped, key).numel() for key in ("weights", "means", "factors", "noise"))
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (shipped.means[:, :, 0, border] + 1).abs().max() < 1e-3 and shipped.factors[..., border].abs().max() < 1e-3


def test_shipped_samples_are_read_as_their_class(shipped):
    labels = torch.arange(200) % 10
    x = shipped.sample(200, labels)
    assert (shipped.class_posterior(x).argmax(1) == labels).double().mean() > 0.97
    noisy = shipped.class_posterior(shipped.sample(200, labels, 0.1, 0.995), 0.1, 0.995)
    assert 0.5 < x.std() < 0.6  # the padded training images have 0.55
    assert 0.15 < (noisy.argmax(1) == labels).double().mean() < 0.4


@pytest.mark.parametrize("alpha,sigma", [(1.0, 0.0), (0.99, 0.1), (0.6, 0.8), (0.0, 1.0)])
def test_shipped_in_single_precision(shipped, alpha, sigma):
    labels = torch.arange(16) % 10
    x = shipped.sample(16, labels, alpha, sigma)
    assert shipped.log_prob(x.float(), alpha, sigma).dtype == torch.float32
    close(shipped.denoise(x.float(), alpha, sigma).double(), shipped.denoise(x, alpha, sigma), 1e-5)
    close(shipped.log_prob(x.float(), alpha, sigma).double(), shipped.log_prob(x, alpha, sigma), 1e-4)
    guided = shipped.guided_denoise(x, alpha, sigma, labels, 3.0)
    close(shipped.guided_denoise(x.float(), alpha, sigma, labels, 3.0).double(), guided, 1e-4)


def test_changed_weights_are_refused(tmp_path):
    for path in SHIPPED.parent.glob("image_mixture.*"):
        shutil.copy(path, tmp_path)
    copy = tmp_path / SHIPPED.name
    ImageMixture.load(copy)
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x07")
    with pytest.raises(RuntimeError, match="sha256"):
        ImageMixture.load(copy)
