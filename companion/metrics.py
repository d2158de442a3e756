"""How good are samples: distances between two clouds of points, and a test of whether they differ.

Every function takes points as rows; flatten images first (``images.flatten(1)``).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check

__all__ = [
    "PrecisionRecall",
    "frechet_distance",
    "median_distance",
    "mmd",
    "precision_recall",
    "sliced_wasserstein",
    "two_sample_test",
]

ROWS = 1024  # rows of the kernel matrix, or directions, at a time: bounds the memory


def sliced_wasserstein(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    *,
    projections: int = 256,
    p: int | float = 2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Return the sliced Wasserstein distance of order p between two sets of points.

    This is (mean over θ of W_p(θ·x, θ·y)^p)^(1/p): the root is taken after the mean, and the result is in the units of
    x, not squared. θ are ``projections`` directions uniform on the unit sphere, drawn from ``generator``; W_p between
    the projected points is exact, for n ≠ m too. There is no factor √d: two single points a apart have a mean of SW_2²
    over θ of a²/d. Two finite samples of one law stay above zero.
    x is (n, d) and y is (m, d), of one floating dtype and on one device; the result is a scalar, at least float32.
    Raises TypeError for a dtype that is not floating point, ValueError for wrong shapes, no points, values that are
    not finite, projections < 1, or p outside [1, ∞).
    Source: Rabin et al. 2011; Bonneel et al. 2015.
    """
    x, y = _points(x, y)
    check.positive_int("projections", projections)
    check.positive("p", p)
    if p < 1:
        raise ValueError(f"p must be at least 1; got {p}")
    where = "cpu" if generator is None else generator.device
    theta = torch.randn(projections, x.shape[1], generator=generator, device=where).to(x)
    theta = torch.nn.functional.normalize(theta, dim=1)
    total = sum(_wasserstein_1d(part @ x.T, part @ y.T, p).sum() for part in theta.split(64))
    return (total / projections) ** (1 / p)


def mmd(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    *,
    bandwidth: int | float | None = None,
    unbiased: bool = True,
) -> Float[Tensor, ""]:
    """Estimate the squared maximum mean discrepancy between two sets of points.

    The kernel is exp(-|a - b|²/(2 bandwidth²)); without a bandwidth, ``median_distance`` of the points sets it. The
    unbiased estimate leaves out each point's kernel with itself, and may be negative; the biased one keeps it, and may
    not. (Unbiased holds for a bandwidth that does not depend on the points.)
    x is (n, d) and y is (m, d), of one floating dtype and on one device, the bandwidth in their units; the result is a
    scalar without units, at least float32.
    Raises TypeError for a dtype that is not floating point, ValueError for wrong shapes, no points (fewer than two,
    when unbiased), values that are not finite, or a bandwidth that is not positive. Source: Gretton et al. 2012,
    lemma 6.
    """
    x, y = _points(x, y, least=2 if unbiased else 1)
    bandwidth = float(median_distance(x, y) if bandwidth is None else bandwidth)
    check.positive("bandwidth (None: the median distance)", bandwidth)
    n, m, own = len(x), len(y), int(unbiased)
    within_x = (_kernel_sum(x, x, bandwidth) - own * n) / (n * (n - own))
    within_y = (_kernel_sum(y, y, bandwidth) - own * m) / (m * (m - own))
    return within_x + within_y - 2 * _kernel_sum(x, y, bandwidth) / (n * m)


def median_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the median distance between different points of the two sets taken together.

    Of an even number of distances the lower middle one is taken. More than 1,000 points of a set are thinned evenly to
    at most 1,000. x is (n, d), y is (m, d), the result a scalar in the units of x. Raises as ``mmd`` does.
    Source: Gretton et al. 2012, section 8.
    """
    x, y = _points(x, y)
    together = torch.cat([part[:: math.ceil(len(part) / 1000)] for part in (x, y)])
    return torch.pdist(together).median()


def two_sample_test(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    statistic: Callable[[Tensor, Tensor], Tensor] = mmd,
    *,
    permutations: int = 200,
    generator: torch.Generator | None = None,
) -> float:
    """Return the permutation p-value for the hypothesis that x and y come from one law.

    It is (1 + b)/(1 + permutations), where b counts the random relabellings whose ``statistic(x, y)`` reaches the
    observed one, up to rounding; the larger the statistic, the more the sets differ. Where the hypothesis holds,
    P(p-value ≤ a) ≤ a for every a. x is (n, d) and y is (m, d); the result is a probability in (0, 1].
    Raises TypeError for a dtype that is not floating point, ValueError for wrong shapes, no points, values that are
    not finite, permutations < 1, or a statistic that is not finite. Source: Phipson & Smyth 2010; Gretton et al. 2012,
    section 8.
    """
    x, y = _points(x, y)
    check.positive_int("permutations", permutations)
    together, n = torch.cat([x, y]), len(x)
    where = "cpu" if generator is None else generator.device
    values = [torch.as_tensor(statistic(x, y))]
    for _ in range(permutations):
        order = torch.randperm(len(together), generator=generator, device=where).to(x.device)
        values.append(torch.as_tensor(statistic(together[order[:n]], together[order[n:]])))
    values = torch.stack(values).double().cpu()
    check.finite("statistic", values)
    slack = 1e-5 * values.abs().max()  # the same relabelling may come back summed in another order
    return float((values >= values[0] - slack).double().mean())


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the squared Fréchet distance between the Gaussians fitted to two sets of features.

    This is |μx - μy|² + tr(Cx + Cy - 2 (Cx Cy)^{1/2}), the square of the 2-Wasserstein distance between the Gaussians
    with the sets' means and unbiased covariances; with Inception's features it is the FID. The estimate is too large on
    average, by about a multiple of 1/n + 1/m: compare equal numbers of samples, state them, and give the value between
    two sets of real images beside. Fewer samples than dimensions are allowed, and there the bias is large.
    x is (n, d) and y is (m, d), of one floating dtype and on one device; the result is a scalar in float64, in squared
    units of x. Raises TypeError for a dtype that is not floating point, ValueError for wrong shapes, fewer than two
    points, or values that are not finite. Source: Dowson & Landau 1982; Heusel et al. 2017.
    """
    x, y = (points.double() for points in _points(x, y, least=2))
    # C = RᵀR from the triangular factor of the centred points. The eigenvalues of Cx Cy are then the squares of the
    # singular values of Rx Ryᵀ: no covariance is formed, and none of its small eigenvalues is lost under the root.
    rx, ry = (torch.linalg.qr(points - points.mean(0), mode="r").R / (len(points) - 1) ** 0.5 for points in (x, y))
    cross = torch.linalg.svdvals(rx @ ry.T).sum()
    spread = rx.square().sum() + ry.square().sum() - 2 * cross
    return (x.mean(0) - y.mean(0)).square().sum() + spread.clamp_min(0)


class PrecisionRecall(NamedTuple):
    """The share of samples that lie among the real points, and of real points that lie among the samples."""

    precision: float
    recall: float


def precision_recall(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 3) -> PrecisionRecall:
    """Return how many samples look real, and how much of the real points the samples cover.

    A set's region is the union of balls round its points, each as far as the point's k-th nearest other point of the
    set, boundary included. Precision is the share of ``fake`` in the region of ``real``, recall the share of ``real``
    in the region of ``fake``. Both depend on n, m and k: state them, and compare equal numbers.
    real is (n, d) and fake is (m, d), of one floating dtype and on one device, n and m above k; memory grows with
    n + m, time with their product. Raises TypeError for a dtype that is not floating point, ValueError for wrong
    shapes, too few points, values that are not finite, or k < 1. Source: Kynkäänniemi et al. 2019.
    """
    check.positive_int("k", k)
    real, fake = _points(real, fake, least=k + 1, names=("real", "fake"))
    real_reach, fake_reach = _reach(real, k), _reach(fake, k)
    fake_is_in, real_is_in = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, reach in zip(fake.split(ROWS), fake_reach.split(ROWS), strict=True):
        distances = _distances(part, real)
        fake_is_in.append((distances <= real_reach).any(1))
        real_is_in |= (distances <= reach[:, None]).any(0)
    return PrecisionRecall(*(found.double().mean().item() for found in (torch.cat(fake_is_in), real_is_in)))


def _reach(points: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Return each point's distance to its k-th nearest other point: one place further on, for the nearest is itself."""
    parts = points.split(ROWS)
    return torch.cat([_distances(part, points).topk(k + 1, dim=1, largest=False).values[:, k] for part in parts])


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return all distances from sums of squared differences: equal points are at 0, and rounding never moves a tie."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _points(x: Tensor, y: Tensor, least: int = 1, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Check two sets of points, and return them in at least float32."""
    for name, points in zip(names, (x, y), strict=True):
        check.floating(name, points)
        if points.ndim != 2 or len(points) < least or points.shape[1] < 1:
            need = f"(points, dimensions), at least ({least}, 1); flatten images"
            raise ValueError(f"{name} must have shape {need}; got {tuple(points.shape)}")
        check.finite(name, points)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{' and '.join(names)} must have the same number of dimensions; got {x.shape[1]} and {y.shape[1]}"
        )
    if (x.dtype, x.device) != (y.dtype, y.device):
        raise ValueError(f"{names[1]} must be {x.dtype} on {x.device}, as {names[0]} is; got {y.dtype} on {y.device}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype), y.to(dtype)


def _wasserstein_1d(x: Float[Tensor, "k n"], y: Float[Tensor, "k m"], p: int | float) -> Float[Tensor, " k"]:
    """Integrate |F⁻¹(u) - G⁻¹(u)|^p over u in [0, 1], exactly: both are constant between the nodes i/n and j/m.

    The nodes are kept as integers, in units of 1/(nm), so that equal ones are equal.
    """
    n, m = x.shape[1], y.shape[1]
    x, y = x.sort(dim=1).values, y.sort(dim=1).values
    if n == m:
        return (x - y).abs().pow(p).mean(1)
    nodes = torch.cat([torch.arange(n + 1, device=x.device) * m, torch.arange(m + 1, device=x.device) * n]).unique()
    left, width = nodes[:-1], nodes.diff().to(x.dtype) / (n * m)
    return (x[:, left // m] - y[:, left // n]).abs().pow(p) @ width


def _kernel_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], bandwidth: float) -> Float[Tensor, ""]:
    """Sum exp(-|a - b|²/(2 bandwidth²)) over all pairs, a block of rows at a time."""
    centre = x.mean(0)  # keeps |a|² + |b|² - 2ab small beside what it cancels to
    x, y = (x - centre) / bandwidth, (y - centre) / bandwidth
    squares = y.square().sum(1)
    blocks = ((part.square().sum(1, keepdim=True) + squares - 2 * part @ y.T).clamp_min(0) for part in x.split(ROWS))
    return torch.stack([block.div(-2).exp().sum() for block in blocks]).sum()
