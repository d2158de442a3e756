"""The metrics against closed forms, against other libraries, and against the mistakes that are easily made in them."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from companion import metrics
from companion.metrics import (
    frechet_distance,
    median_distance,
    mmd,
    precision_recall,
    sliced_wasserstein,
    two_sample_test,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of small sorts and products: two threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def z_score(values, exact):
    """How many standard errors the mean of independent estimates lies from the exact value."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])
    return float((values.mean() - exact).abs() / (values.std() / math.sqrt(len(values))))


# A right estimate lies within TOLERANCE standard errors of the exact value, a wrong one at least five times as far off.
TOLERANCE = 4


def right(values, exact):
    return z_score(values, exact) < TOLERANCE


def wrong(values, exact):
    return z_score(values, exact) > 5 * TOLERANCE


# ---- sliced Wasserstein


def stretch(points, copies):
    return np.sort(np.repeat(np.asarray(points), copies))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (6, 4), (5, 8), (1, 9), (30, 12)])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_one_dimension_is_exact_for_any_two_numbers_of_points(n, m, p):
    """Both sets repeated to one common length: then sorted points pair one to one."""
    x, y = normal(n, 1, seed=n), 2 * normal(m, 1, seed=100 + m) + 0.5
    common = math.lcm(n, m)
    expected = np.mean(np.abs(stretch(x[:, 0], common // n) - stretch(y[:, 0], common // m)) ** p) ** (1 / p)
    assert float(sliced_wasserstein(x, y, p=p, projections=3)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(9, 9), (11, 4), (200, 333)])
def test_one_dimension_agrees_with_scipy(n, m):
    from scipy.stats import wasserstein_distance

    x, y = normal(n, 1, seed=n), normal(m, 1, seed=1000 + m) ** 2
    assert float(sliced_wasserstein(x, y, p=1)) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)


def test_one_dimension_rejects_unsorted_and_interpolated_quantiles():
    x, y = normal(60, 1, seed=1), normal(45, 1, seed=2) + 1
    exact = float(sliced_wasserstein(x, y))
    levels = (torch.arange(60, dtype=x.dtype) + 0.5) / 60
    interpolated = (x.sort(0).values - torch.quantile(y, levels, dim=0)).square().mean().sqrt()
    unsorted = (x[:45] - y).square().mean().sqrt()
    assert abs(float(interpolated) - exact) > 1e-3 and abs(float(unsorted) - exact) > 0.1


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("d", [2, 5, 50])
def test_two_points_have_the_moments_of_the_sphere(d, p):
    """SW_p^p between the point masses at 0 and a is |a|^p E|θ_1|^p, a ratio of gamma functions."""
    a = 3 * math.sqrt(d) * torch.nn.functional.normalize(normal(1, d, seed=d))
    log_moment = math.lgamma(d / 2) + math.lgamma((p + 1) / 2) - math.lgamma((d + p) / 2) - math.log(math.pi) / 2
    exact = float(a.norm()) ** p * math.exp(log_moment)
    runs = [sliced_wasserstein(torch.zeros(3, d).to(a), a, p=p, generator=seeded(s)) for s in range(40)]
    assert right([run**p for run in runs], exact)
    assert p == 1 or wrong(runs, exact)  # the root forgotten
    assert wrong([run**p * d for run in runs], exact)  # directions taken for coordinates


MEAN, SCALE, D = torch.tensor([2.0, 0.0, -1.0, 0.0], dtype=torch.float64), 1.5, 4


def gaussians(seed, n, m, mean=MEAN):
    return normal(n, D, seed=seed), mean + SCALE * normal(m, D, seed=10_000 + seed)


def wrong_sliced(x, y, seed, *, unit=True, ordered=True, inside=False):
    """The same distance with one mistake, for as many points in x as in y."""
    theta = normal(256, D, seed=seed)
    theta = theta / theta.norm(dim=1, keepdim=True) if unit else theta
    x, y = theta @ x.T, theta @ y.T
    x, y = (x.sort(1).values, y.sort(1).values) if ordered else (x, y)
    squares = (x - y).square().mean(1)
    return squares.sqrt().mean() if inside else squares.mean().sqrt()


def test_gaussians_agree_with_the_closed_form():
    """Projected on θ they are N(0, 1) and N(θ·m, s²), so that SW_2² = |m|²/d + (s - 1)².

    The samples add about 1/n + s²/m = 0.008, a seventh of the standard error.
    """
    mean, runs = 2 * MEAN, range(60)
    exact = float(mean.square().sum()) / D + (SCALE - 1) ** 2
    found = [sliced_wasserstein(*gaussians(s, 300, 450, mean), generator=seeded(s)) for s in runs]
    assert right([value**2 for value in found], exact)
    assert wrong(found, exact) and wrong([value**4 for value in found], exact)  # a root lost, a root too many
    pairs = [gaussians(s, 300, 300, mean) for s in runs]
    assert right([wrong_sliced(*pairs[s], s) ** 2 for s in runs], exact)
    for mistake in ({"unit": False}, {"ordered": False}, {"inside": True}):
        assert wrong([wrong_sliced(*pairs[s], s, **mistake) ** 2 for s in runs], exact), mistake


def test_sliced_wasserstein_is_a_distance_between_sets():
    x, y, z = normal(20, 3, seed=0), normal(20, 3, seed=1) + 1, normal(35, 3, seed=2)
    distance = lambda a, b: float(sliced_wasserstein(a, b, generator=seeded(0)))  # noqa: E731
    assert distance(x, x[torch.randperm(20, generator=seeded(3))]) == pytest.approx(0, abs=1e-12)
    assert distance(x, x.repeat(3, 1)) == pytest.approx(0, abs=1e-12)
    assert distance(x, z) == pytest.approx(distance(z, x), rel=1e-12)
    assert distance(3 * x, 3 * y) == pytest.approx(3 * distance(x, y), rel=1e-12)
    assert distance(x + 5, y + 5) == pytest.approx(distance(x, y), rel=1e-9)
    assert distance(x, z) < distance(x, y) + distance(y, z)
    assert distance(x, z) == distance(x, z) and distance(x, z) != float(sliced_wasserstein(x, z, generator=seeded(1)))


def test_many_directions_come_in_blocks_of_the_same_value():
    x, y = normal(30, 3, seed=0), normal(20, 3, seed=1)
    whole = float(sliced_wasserstein(x, y, projections=130, generator=seeded(0)))
    theta = torch.nn.functional.normalize(torch.randn(130, 3, generator=seeded(0)).double(), dim=1)
    each = [float(sliced_wasserstein((x @ t)[:, None], (y @ t)[:, None], projections=1)) ** 2 for t in theta]
    assert whole == pytest.approx(math.sqrt(sum(each) / 130), rel=1e-10)


# ---- maximum mean discrepancy


def gaussian_kernel_mean(a, b, mean, d, bandwidth):
    """E exp(-|X - Y|²/(2h²)) for X ~ N(0, a² I) and Y ~ N(mean, b² I), in d dimensions."""
    total = bandwidth**2 + a**2 + b**2
    return (bandwidth**2 / total) ** (d / 2) * math.exp(-float(mean.square().sum()) / (2 * total))


def exact_mmd(bandwidth, n=None, m=None):
    """MMD² between N(0, I) and N(MEAN, SCALE² I); with n and m, the mean of the biased estimate from so many points."""
    zero = torch.zeros(D)
    xx = gaussian_kernel_mean(1, 1, zero, D, bandwidth)
    yy = gaussian_kernel_mean(SCALE, SCALE, zero, D, bandwidth)
    xy = gaussian_kernel_mean(1, SCALE, MEAN, D, bandwidth)
    return xx + yy - 2 * xy + ((1 - xx) / n + (1 - yy) / m if n else 0)


@pytest.mark.parametrize("bandwidth", [0.7, 4.0])
def test_mmd_agrees_with_the_closed_form(bandwidth):
    """Few points, many runs: there the bias, (1 - E k)/n from each set, is large, and is known exactly."""
    n, m, runs = 8, 12, 4000
    sets = [gaussians(s, n, m) for s in range(runs)]
    unbiased = [mmd(x, y, bandwidth=bandwidth) for x, y in sets]
    biased = [mmd(x, y, bandwidth=bandwidth, unbiased=False) for x, y in sets]
    assert right(unbiased, exact_mmd(bandwidth))
    assert right(biased, exact_mmd(bandwidth, n, m))
    assert wrong(biased, exact_mmd(bandwidth))
    assert wrong(unbiased, exact_mmd(bandwidth, n, m))
    assert wrong([value.clamp_min(0).sqrt() for value in unbiased], exact_mmd(bandwidth))
    for other in (bandwidth * math.sqrt(2), bandwidth / math.sqrt(2), math.sqrt(bandwidth)):
        assert wrong(unbiased, exact_mmd(other))  # a lost factor 2, or a lost square


def test_mmd_agrees_with_the_sum_over_pairs():
    x, y, h = normal(5, 3, seed=0), normal(4, 3, seed=1) + 0.3, 1.3
    k = lambda a, b: math.exp(-float((a - b).square().sum()) / (2 * h * h))  # noqa: E731
    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j)
    xy = sum(k(a, b) for a in x for b in y)
    assert float(mmd(x, y, bandwidth=h)) == pytest.approx(xx / 20 + yy / 12 - 2 * xy / 20, rel=1e-12)
    biased = float(mmd(x, y, bandwidth=h, unbiased=False))
    assert biased == pytest.approx((xx + 5) / 25 + (yy + 4) / 16 - 2 * xy / 20, rel=1e-12)
    assert float(mmd(x, x, bandwidth=h, unbiased=False)) == pytest.approx(0, abs=1e-14)
    assert float(mmd(x, x, bandwidth=h)) < 0


def test_mmd_in_blocks_and_in_single_precision(monkeypatch):
    x, y = normal(70, 64, seed=0) + 30, normal(50, 64, seed=1) + 30.1
    whole = float(mmd(x, y))
    far = [(points + 1000).float() for points in (x, y)]
    assert float(mmd(*far)) == pytest.approx(float(mmd(*(points.double() for points in far))), abs=1e-6)
    half = mmd(x.half(), y.half(), bandwidth=8)
    assert half.dtype == torch.float32
    monkeypatch.setattr(metrics, "ROWS", 16)
    assert float(mmd(x, y)) == pytest.approx(whole, abs=1e-14)


def test_bandwidth_is_the_median_distance():
    from scipy.spatial.distance import pdist

    x, y = normal(30, 3, seed=0), normal(21, 3, seed=1) + 2
    distances = np.sort(pdist(torch.cat([x, y]).numpy()))
    expected = distances[(len(distances) - 1) // 2]
    assert float(median_distance(x, y)) == pytest.approx(expected, rel=1e-12)
    assert float(mmd(x, y)) == pytest.approx(float(mmd(x, y, bandwidth=expected)), rel=1e-12)
    assert float(median_distance(y, x)) == pytest.approx(expected, rel=1e-12)
    # Thinned: of 2,500 ordered points every third one, so that the whole range is still seen.
    line = torch.arange(2500.0)[:, None]
    assert float(median_distance(line, line)) == pytest.approx(2500 * (1 - math.sqrt(0.5)), rel=0.01)
    x, y = normal(2500, 1, seed=0), normal(900, 1, seed=1)
    assert float(median_distance(x, y)) == float(median_distance(x[::3], y))
    assert float(median_distance(line[:1000], line[:1])) == float(median_distance(line[:1], line[:1000]))


# ---- Fréchet distance


def fitted(n, mean, root, seed):
    """n points whose mean is ``mean`` and whose unbiased covariance is root rootᵀ, both to rounding."""
    raw = normal(n, len(root), seed=seed)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(raw.T.cov()), (raw - raw.mean(0)).T, upper=False)
    return mean + (root @ white).T


def rotation(d, seed):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def test_frechet_distance_of_commuting_covariances():
    """With common axes the Gaussians part into one-dimensional ones: |m|² + the sum of (a - b)²."""
    q, mean = rotation(5, 0), normal(5, seed=1)
    a, b = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double(), torch.tensor([1.0, 2.5, 1.0, 4.0, 0.2]).double()
    x, y = fitted(40, 0 * mean, q * a, seed=2), fitted(31, mean, q * b, seed=3)
    exact = float(mean.square().sum() + (a - b).square().sum())
    found = frechet_distance(x, y)
    assert float(found) == pytest.approx(exact, rel=1e-12) and found.dtype == torch.float64
    x, y = x[:, :1], 3 * y[:, 1:2] + 7  # one dimension
    exact = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert float(frechet_distance(x, y)) == pytest.approx(float(exact), rel=1e-12)


def test_frechet_distance_agrees_with_scipy_and_rejects_mistakes():
    from scipy.linalg import sqrtm

    n, m, d = 60, 45, 6
    x, y = normal(n, d, seed=0) @ normal(d, d, seed=1), normal(m, d, seed=2) @ normal(d, d, seed=3) + 0.7
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    cx, cy = np.cov(x.numpy().T), np.cov(y.numpy().T)
    product = np.trace(sqrtm(cx @ cy)).real
    exact = mean + np.trace(cx + cy) - 2 * product
    found = float(frechet_distance(x, y))
    assert found == pytest.approx(exact, rel=1e-10)
    wrong_versions = {
        "the 2 forgotten": mean + np.trace(cx + cy) - product,
        "no root": mean + np.trace(cx + cy) - 2 * np.trace(cx @ cy),
        "the roots' product": mean + np.trace(cx + cy) - 2 * np.trace(sqrtm(cx) @ sqrtm(cy)).real,
        "roots for covariances": mean + np.trace(sqrtm(cx) + sqrtm(cy) - 2 * sqrtm(sqrtm(cx) @ sqrtm(cy))).real,
        "divided by n": mean + np.trace(cx) * (n - 1) / n + np.trace(cy) * (m - 1) / m
        - 2 * product * math.sqrt((n - 1) * (m - 1) / (n * m)),
        "the means' distance not squared": exact - mean + math.sqrt(mean),
        "the root of it all": math.sqrt(exact),
    }  # fmt: skip
    for name, value in wrong_versions.items():
        assert abs(value - exact) > 1e-3 * exact, name


def test_frechet_distance_has_the_symmetries_of_a_squared_distance():
    x, y, q = normal(30, 4, seed=0), normal(40, 4, seed=1) * torch.tensor([1.0, 2, 3, 4]) + 1, rotation(4, 2)
    whole = float(frechet_distance(x, y))
    assert float(frechet_distance(y, x)) == pytest.approx(whole, rel=1e-12)
    assert float(frechet_distance(x @ q + 5, y @ q + 5)) == pytest.approx(whole, rel=1e-10)
    assert float(frechet_distance(3 * x, 3 * y)) == pytest.approx(9 * whole, rel=1e-12)
    assert 0 <= float(frechet_distance(x, x.flip(0))) < 1e-12
    assert float(frechet_distance(x, x + 2)) == pytest.approx(16, rel=1e-12)
    far = [(points + 1000).float() for points in (x, y)]
    assert float(frechet_distance(*far)) == pytest.approx(
        float(frechet_distance(*(p.double() for p in far))), rel=1e-12
    )


def test_frechet_distance_of_degenerate_sets_is_exact():
    """Square roots of eigenvalues that are zero but for rounding would cost half of the digits here."""
    d = 50
    a, b = rotation(d, 0)[:2]
    s, t = normal(20, seed=1), 2 * normal(30, seed=2) + 1
    one, other = (s.mean(), s.std()), (t.mean(), t.std())
    same_line = (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
    assert float(frechet_distance(s[:, None] * a, t[:, None] * a)) == pytest.approx(float(same_line), rel=1e-12)
    across = sum(part**2 for part in (*one, *other))
    assert float(frechet_distance(s[:, None] * a, t[:, None] * b)) == pytest.approx(float(across), rel=1e-12)
    points = torch.ones(3, d).double()
    assert float(frechet_distance(points, 3 * points)) == pytest.approx(4 * d, rel=1e-12)
    few = normal(5, d, seed=3)
    assert 0 <= float(frechet_distance(few, few)) < 1e-12


def test_frechet_distance_of_finite_sets_is_too_large_by_a_known_amount():
    """To first order in 1/n, for two sets from N(0, I): d for the means and d(d + 1)/4 for the covariances."""
    n, m, d = 1500, 1000, 3
    found = [frechet_distance(normal(n, d, seed=s), normal(m, d, seed=9000 + s)) for s in range(150)]
    bias = (1 / n + 1 / m) * (d + d * (d + 1) / 4)
    assert right(found, bias) and wrong(found, 0)
    assert not right(found, 0.8 * bias) and not right(found, 1.25 * bias)


# ---- precision and recall


@pytest.mark.parametrize(("n", "m", "k"), [(60, 45, 3), (45, 60, 1), (90, 90, 6)])
def test_precision_and_recall_agree_with_scikit_learn(n, m, k, monkeypatch):
    from scipy.spatial.distance import cdist
    from sklearn.neighbors import NearestNeighbors

    real, fake = normal(n, 3, seed=n), 0.8 * normal(m, 3, seed=100 + m) + 1

    def covered(points, reference, k):
        reach = NearestNeighbors(n_neighbors=k).fit(reference).kneighbors()[0][:, -1]  # without arguments: not itself
        return (cdist(points, reference) <= reach).any(1).mean()

    expected = covered(fake, real, k), covered(real, fake, k)
    assert precision_recall(real, fake, k=k) == pytest.approx(expected, rel=1e-12) and 0.2 < min(expected) < 0.95
    assert precision_recall(fake, real, k=k) == pytest.approx(expected[::-1], rel=1e-12)
    assert expected[0] != covered(fake, real, k + 1) and expected[1] != covered(real, fake, k + 1)
    monkeypatch.setattr(metrics, "ROWS", 16)
    assert precision_recall(real, fake, k=k) == pytest.approx(expected, rel=1e-12)
    far = [(points + 100).float() for points in (real, fake)]
    assert precision_recall(*far, k=k) == pytest.approx(expected, abs=0.03)


def test_precision_by_hand_on_a_line():
    """0, 1, 3 and 7 reach 1, 1, 2 and 4 to their nearest neighbour: their region is [-1, 11], with its ends."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([[-1.5], [-1.0], [11.0], [11.5]])
    assert precision_recall(real, fake, k=1) == (0.5, 0.0)  # 0 if a point were its own nearest neighbour
    assert precision_recall(real, fake, k=2) == (1.0, 1.0)  # they reach 3, 2, 3 and 6: the region is [-3, 13]
    assert precision_recall(fake, real, k=1) == (0.0, 0.5)


def test_precision_and_recall_of_equal_distinct_and_missing_modes():
    left, right_, more = normal(400, 2, seed=0), normal(400, 2, seed=1) + 50, normal(800, 2, seed=2)
    both = torch.cat([left, right_])
    assert precision_recall(both, both.flip(0)) == (1.0, 1.0)
    assert precision_recall(left, right_) == (0.0, 0.0)
    dropped = precision_recall(both, more)  # the model never draws the right-hand mode
    assert dropped.precision > 0.95 and 0.45 < dropped.recall < 0.5
    invented = precision_recall(more, both)
    assert 0.45 < invented.precision < 0.5 and invented.recall > 0.95
    assert all(isinstance(share, float) for share in dropped)


def test_precision_of_repeated_points_does_not_hang_on_rounding():
    """Where a point occurs more than k times its ball is the point itself, which a copy must still meet."""
    point = normal(1, 64, seed=0).float() + 1000
    copies = point.repeat(9, 1)
    assert precision_recall(copies, copies[:5]) == (1.0, 1.0)
    assert precision_recall(copies, copies[:5] + 1e-3) == (0.0, 0.0)


# ---- the permutation test


@pytest.mark.parametrize("statistic", [mmd, partial(sliced_wasserstein, projections=16)], ids=["mmd", "sliced"])
def test_p_values_have_their_level_and_their_power(statistic):
    """Under the hypothesis P(p ≤ a) = a for a = k/20, by the relabelling's symmetry; binomial errors of 160 runs."""
    runs, permutations = 160, 19
    same = torch.tensor(
        [
            two_sample_test(
                normal(12, 2, seed=s),
                normal(9, 2, seed=5000 + s),
                statistic,
                permutations=permutations,
                generator=seeded(s),
            )
            for s in range(runs)
        ]
    )
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        share = (same <= level + 1e-9).double().mean()
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / runs), level
    torch.manual_seed(0)
    other = [
        two_sample_test(normal(30, 2, seed=s), normal(30, 2, seed=500 + s) * 2 + 1, statistic, permutations=99)
        for s in range(10)
    ]
    assert max(other) < 0.05 and min(other) >= 0.01


def test_p_value_counts_the_observed_labelling_and_ties():
    x, y = torch.zeros(3, 1), torch.ones(3, 1)
    p_value = partial(two_sample_test, permutations=2000, generator=seeded(0))
    difference = lambda a, b: (a.mean() - b.mean()).abs()  # noqa: E731
    # 2 of the 20 ways to part six points are as extreme as the observed one.
    assert p_value(x, y, difference) == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 2000))
    # Ties must still be ties where the same sum is rounded in another order.
    rounded = iter([1.0, *[1 - 1e-7] * 2000])
    assert p_value(x, y, lambda a, b: torch.tensor(next(rounded))) == 1
    assert p_value(x, y, lambda a, b: torch.tensor(0.0)) == 1
    assert two_sample_test(x, y + 100, lambda a, b: float(difference(a, b)), permutations=1) in (0.5, 1.0)
    torch.manual_seed(0)
    assert two_sample_test(normal(40, 1, seed=0), normal(40, 1, seed=1) + 9, permutations=50) == pytest.approx(1 / 51)


# ---- bad arguments


GOOD = torch.zeros(3, 2) + torch.arange(3.0)[:, None]


@pytest.mark.parametrize("function", [sliced_wasserstein, mmd, median_distance, two_sample_test, frechet_distance])
@pytest.mark.parametrize(
    ("x", "y", "error", "says"),
    [
        (torch.zeros(3, 0), torch.zeros(3, 0), ValueError, "x must have shape"),
        (torch.zeros(0, 2), GOOD, ValueError, "x must have shape"),
        (GOOD, torch.zeros(0, 2), ValueError, "y must have shape"),
        (GOOD, GOOD.log() * float("nan"), ValueError, "y must be finite"),
        (GOOD / 0, GOOD, ValueError, "x must be finite"),
        (GOOD, GOOD.double(), ValueError, "y must be torch.float32"),
        # Shapes and dtypes that the signature states: where annotations are checked, theirs is the error.
        (torch.zeros(3, 1, 8, 8), GOOD, (ValueError, TypeError), r"flatten images; got \(3, 1, 8, 8\)|type"),
        (torch.zeros(3), GOOD, (ValueError, TypeError), "x must have shape|type"),
        (GOOD, torch.zeros(3, 5), (ValueError, TypeError), "same number of dimensions; got 2 and 5|type"),
        (GOOD.long(), GOOD, TypeError, "x must be a floating-point|type"),
    ],
)
def test_bad_points_are_named(function, x, y, error, says):
    with pytest.raises(error, match=says):
        function(x, y)


def test_bad_options_are_named():
    for options, says in [
        ({"projections": 0}, "projections must be an integer above 0"),
        ({"p": 0.5}, "p must be at least 1"),
        ({"p": math.inf}, "p must be a finite"),
        ({"p": math.nan}, "p must be a finite"),
    ]:
        with pytest.raises(ValueError, match=says):
            sliced_wasserstein(GOOD, GOOD, **options)
    for bandwidth in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bandwidth"):
            mmd(GOOD, GOOD, bandwidth=bandwidth)
    with pytest.raises(ValueError, match="bandwidth .*median"):
        mmd(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"at least \(2, 1\)"):
        mmd(GOOD[:1], GOOD)
    assert mmd(GOOD[:1], GOOD, bandwidth=1, unbiased=False).isfinite()
    with pytest.raises(ValueError, match="permutations must be"):
        two_sample_test(GOOD, GOOD, permutations=0)
    with pytest.raises(ValueError, match="statistic must be finite"):
        two_sample_test(GOOD, GOOD, lambda a, b: torch.tensor(math.nan))
    with pytest.raises(ValueError, match=r"y must have shape .* at least \(2, 1\)"):
        frechet_distance(GOOD, GOOD[:1])
    with pytest.raises(ValueError, match="k must be an integer above 0"):
        precision_recall(GOOD, GOOD, k=0)
    with pytest.raises(ValueError, match=r"real must have shape .* at least \(4, 1\)"):
        precision_recall(GOOD, GOOD)
    with pytest.raises(ValueError, match=r"fake must have shape .* at least \(3, 1\)"):
        precision_recall(GOOD, GOOD[:2], k=2)
    with pytest.raises(ValueError, match="fake must be finite"):
        precision_recall(GOOD, GOOD / 0, k=2)
    with pytest.raises((ValueError, TypeError), match="real and fake must have the same number|type"):
        precision_recall(GOOD, GOOD[:, :1], k=2)
    with pytest.raises(ValueError, match="fake must be torch.float32 on cpu, as real is"):
        precision_recall(GOOD, GOOD.double(), k=2)
