"""Distributions whose diffused density, score and denoiser are known exactly, at every noise level."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion._empirical import EmpiricalDistribution, LocalEmpirical
from companion._image_mixture import ImageMixture

__all__ = ["EmpiricalDistribution", "GaussianMixture", "ImageMixture", "LocalEmpirical", "swiss_roll"]
# where they are found; they have files of their own for their length
EmpiricalDistribution.__module__ = LocalEmpirical.__module__ = ImageMixture.__module__ = "companion.toy"


class GaussianMixture:
    """sum_k w_k N(mu_k, Sigma_k) in d dimensions; diffused by x = alpha x0 + sigma eps it is a mixture again.

    ``weights`` (k,) sum to one, ``means`` (k, d), ``covariances`` (k, d, d) or ``stds`` (k,) for round components.
    Every method takes alpha and sigma as numbers, 0-dimensional tensors or one value per sample; the defaults (1, 0)
    are the clean density. Raises ValueError for shapes that do not fit, weights that are not a distribution, or
    covariances that are not symmetric and positive definite.
    """

    def __init__(self, weights, means, covariances=None, *, stds=None):
        weights, means = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means))
        if (covariances is None) == (stds is None):
            raise ValueError("give one of covariances and stds")
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            raise ValueError(
                f"weights and means must have shapes (k,) and (k, d); got {tuple(weights.shape)}, {tuple(means.shape)}"
            )
        k, d = means.shape
        if stds is not None:
            stds = torch.as_tensor(stds, dtype=torch.float64).expand(k)
            covariances = stds[:, None, None] ** 2 * torch.eye(d, dtype=torch.float64)
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.shape != (k, d, d):
            raise ValueError(f"covariances must have shape ({k}, {d}, {d}); got {tuple(covariances.shape)}")
        for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
            check.finite(name, value)
        if (weights < 0).any() or abs(weights.sum().item() - 1) > 1e-6:
            raise ValueError(f"weights must be at least 0 and sum to 1; got {weights.tolist()}")
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("covariances must be symmetric")
        # Sigma_k = Q_k diag(spread_k) Q_k', so that alpha² Sigma_k + sigma² I is inverted by division
        self.spread, self.axes = torch.linalg.eigh(covariances)
        if not (self.spread > 0).all():
            raise ValueError(f"covariances must be positive definite; the least eigenvalue is {self.spread.min():.3g}")
        self.weights, self.means, self.covariances = weights, means, covariances
        self._on = {}

    @property
    def dimension(self) -> int:
        """d, the number of coordinates."""
        return self.means.shape[1]

    @classmethod
    def four(cls) -> "GaussianMixture":
        """The book's mixture: four Gaussians in the plane, unequal in weight, width and tilt."""
        tilted = [[0.08, 0.05], [0.05, 0.08]]
        return cls(
            weights=[0.4, 0.3, 0.2, 0.1],
            means=[[1.2, 1.0], [-1.3, 0.8], [-0.8, -1.2], [1.3, -1.1]],
            covariances=[tilted, [[0.04, 0.0], [0.0, 0.04]], [[0.10, 0.0], [0.0, 0.02]], [[0.02, 0.0], [0.0, 0.02]]],
        )

    @classmethod
    def two(cls) -> "GaussianMixture":
        """The one-dimensional sister: two Gaussians on the line."""
        return cls(weights=[0.7, 0.3], means=[[-1.0], [1.2]], stds=[0.3, 0.2])

    def _parts(self, x, alpha, sigma):
        """Per component log w_k N(x), x − alpha mu_k along the axes, their variances; and the rest, in x's dtype."""
        check.floating("x", x)
        if x.ndim < 1 or x.shape[-1] != self.dimension:
            raise ValueError(f"x must have shape (…, {self.dimension}); got {tuple(x.shape)}")
        key = x.device, x.dtype
        if key not in self._on:  # copied once: a recorded loop may not copy from the host
            self._on[key] = tuple(v.to(x) for v in (self.weights, self.means, self.spread, self.axes))
        weights, means, spread, axes = self._on[key]
        alpha, sigma = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (alpha, sigma))
        alpha, sigma = (v[..., None, None] if v.ndim else v for v in (alpha, sigma))
        variance = alpha**2 * spread + sigma**2  # (…, k, d)
        along = torch.einsum("...kd,kde->...ke", x[..., None, :] - alpha * means, axes)
        log_part = weights.log() - 0.5 * (along**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        return log_part, along, variance, alpha, sigma, means, spread, axes

    def _guesses(self, x, alpha, sigma):
        """Of each component: its share, and the mean (…, k, d), variances (…, k, d) and axes of x0 given x and it."""
        log_part, along, variance, alpha, sigma, means, spread, axes = self._parts(x, alpha, sigma)
        guesses = means + torch.einsum("...ke,kde->...kd", alpha * spread * along / variance, axes)
        return torch.softmax(log_part, -1), guesses, spread * sigma**2 / variance, axes

    def log_prob(self, x: Float[Tensor, "*batch d"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*batch"]:
        """Log-density in nats of alpha x0 + sigma eps at x."""
        return torch.logsumexp(self._parts(x, alpha, sigma)[0], -1)

    def cdf(self, x: Float[Tensor, "*batch 1"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*batch"]:
        """The share of alpha x0 + sigma eps below x, for a mixture on the line; raises ValueError for another."""
        if self.dimension != 1:
            raise ValueError(f"a distribution function needs a mixture on the line; got dimension {self.dimension}")
        weights, means, spread = (v.to(x) for v in (self.weights, self.means[:, 0], self.spread[:, 0]))
        alpha, sigma = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (alpha, sigma))
        alpha, sigma = (v[..., None] if v.ndim else v for v in (alpha, sigma))
        below = torch.special.ndtr((x - alpha * means) / (alpha**2 * spread + sigma**2).sqrt())
        return (weights * below).sum(-1)

    def quantile(self, share: Float[Tensor, "*batch"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*points 1"]:
        """The point of the line with the given share of alpha x0 + sigma eps below it, by bisection of ``cdf``.

        share in float64 keeps the digits; share, alpha and sigma broadcast to *points. Raises ValueError for a share
        outside (0, 1) or a mixture that is not on the line, TypeError for a share that is not floating point.
        """
        check.floating("share", share)
        if not ((share > 0) & (share < 1)).all():
            raise ValueError(f"share must lie between 0 and 1; got {share.min():g} … {share.max():g}")
        alpha, sigma = (torch.as_tensor(v, dtype=share.dtype, device=share.device) for v in (alpha, sigma))
        share = share.expand(torch.broadcast_shapes(share.shape, alpha.shape, sigma.shape))
        reach = self.means.abs().max() + 40 * self.spread.max().sqrt()  # of x0; no double lies further out than 40
        high = (alpha * reach + 40 * sigma).expand(share.shape)
        low = -high
        for _ in range(100):
            middle = (low + high) / 2
            below = self.cdf(middle[..., None], alpha, sigma) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2)[..., None]

    def responsibilities(self, x: Float[Tensor, "*batch d"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*batch k"]:
        """p(component | x), which sums to one over the last axis."""
        return torch.softmax(self._parts(x, alpha, sigma)[0], -1)

    def score(self, x: Float[Tensor, "*batch d"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*batch d"]:
        """Gradient in x of ``log_prob``."""
        log_part, along, variance, *_, axes = self._parts(x, alpha, sigma)
        pulls = torch.einsum("...ke,kde->...kd", -along / variance, axes)
        return (torch.softmax(log_part, -1)[..., None] * pulls).sum(-2)

    def denoise(self, x: Float[Tensor, "*batch d"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*batch d"]:
        """E[x0 | x], the denoiser of least mean squared error; defined at alpha = 0 too, where it is E[x0]."""
        shares, guesses, _, _ = self._guesses(x, alpha, sigma)
        return (shares[..., None] * guesses).sum(-2)

    def posterior_covariance(self, x: Float[Tensor, "*batch d"], alpha=1.0, sigma=0.0) -> Float[Tensor, "*batch d d"]:
        """Cov[x0 | x]: within the components, and between their means; its average trace is the least squared error."""
        shares, guesses, variance, axes = self._guesses(x, alpha, sigma)
        apart = guesses - (shares[..., None] * guesses).sum(-2, keepdim=True)
        within = torch.einsum("...ke,kde,kfe->...df", shares[..., None] * variance, axes, axes)
        return within + torch.einsum("...k,...kd,...kf->...df", shares, apart, apart)

    def denoiser(self, schedule):
        """``denoise(x, t) -> x0_hat`` along a schedule: what every sampler takes."""

        def exact(x, t):
            return self.denoise(x, schedule.alpha(t), schedule.sigma(t))

        return exact

    def posterior_sample(self, x: Float[Tensor, "*batch d"], alpha, sigma, generator=None) -> Float[Tensor, "*batch d"]:
        """One draw from p(x0 | x), exact: first the component, then its Gaussian; needs sigma > 0."""
        shares, guesses, variance, axes = self._guesses(x, alpha, sigma)
        chosen = torch.multinomial(shares.reshape(-1, shares.shape[-1]), 1, generator=generator)
        noise = torch.randn(guesses.shape, dtype=x.dtype, device=x.device, generator=generator)
        draws = guesses + torch.einsum("...ke,kde->...kd", variance.sqrt() * noise, axes)
        index = chosen.reshape(*draws.shape[:-2], 1, 1).expand(*draws.shape[:-2], 1, self.dimension)
        return draws.gather(-2, index).squeeze(-2)

    def sample(self, n: int, alpha=1.0, sigma=0.0, *, generator=None) -> Float[Tensor, "n d"]:
        """n draws of alpha x0 + sigma eps, in float64 on the CPU; alpha and sigma are numbers."""
        check.positive_int("n", n)
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dimension, dtype=torch.float64, generator=generator)
        variance = float(alpha) ** 2 * self.spread + float(sigma) ** 2
        step = torch.einsum("ne,nde->nd", variance[chosen].sqrt() * noise, self.axes[chosen])
        return float(alpha) * self.means[chosen] + step

    def mean(self) -> Float[Tensor, "d"]:
        """E[x0]."""
        return self.weights @ self.means

    def covariance(self) -> Float[Tensor, "d d"]:
        """Cov[x0], within components plus between them."""
        between = self.means - self.mean()
        return torch.einsum("k,kde->de", self.weights, self.covariances + between[:, :, None] * between[:, None, :])


def swiss_roll(n: int, *, noise: float | int = 0.05, generator=None) -> Float[Tensor, "n 2"]:
    """n points of a spiral in the plane, about 2 wide, with Gaussian noise of the given standard deviation; float64."""
    check.positive_int("n", n)
    turn = 1.5 * math.pi * (1 + 2 * torch.rand(n, dtype=torch.float64, generator=generator))
    spiral = turn[:, None] * torch.stack([turn.cos(), turn.sin()], 1) / (4.5 * math.pi) * 2
    return spiral + noise * torch.randn(n, 2, dtype=torch.float64, generator=generator)
