"""Schedules: ends, monotony, rates against finite differences; grids."""

import math

import pytest
import torch
from conftest import NOT_PRESERVING, SCHEDULES, between, inside, refuses

from companion import losses
from companion import schedules as S


def test_ends_and_monotony(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 501, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert (alpha[1:] <= alpha[:-1]).all() and (sigma[1:] >= sigma[:-1]).all()
    ratio = sigma / alpha
    assert (ratio[1:] > ratio[:-1]).all()
    assert alpha[0] == (1 if schedule is not SCHEDULES["log-snr"] else pytest.approx(1, abs=1e-6))
    if schedule not in [SCHEDULES[name] for name in NOT_PRESERVING]:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-14, rtol=0)


def test_rates_are_derivatives(schedule):
    t, h = between(schedule), 1e-6 * (schedule.t_max - schedule.t_min)
    for f, rate in ((schedule.alpha, schedule.alpha_rate), (schedule.sigma, schedule.sigma_rate)):
        slope = (f(t + h) - f(t - h)) / (2 * h)
        torch.testing.assert_close(rate(t), slope, atol=1e-7, rtol=1e-5)


def test_log_snr_and_its_inverse(schedule):
    t = inside(schedule)
    torch.testing.assert_close(schedule.log_snr(t), torch.log(schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2))
    torch.testing.assert_close(schedule.time_of(schedule.half_log_snr(t)), t, atol=1e-9, rtol=1e-9)
    assert schedule.log_snr(t.float()).dtype == torch.float32


def test_the_noise_of_sub_vp_is_the_square_of_vp_s():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(S.SubVP().alpha(t), S.LinearVP().alpha(t))
    torch.testing.assert_close(S.SubVP().sigma(t), S.LinearVP().sigma(t) ** 2)


def test_a_straight_log_snr_makes_the_simple_loss_the_bound():
    schedule, t = S.LinearLogSNR(9.0, -4.0), torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(2 * (schedule.alpha(t) / schedule.sigma(t)).log(), 9 - 13 * t)
    # one constant factor on the squared error of eps: half the range (Kingma et al. 2021, eq. 17)
    torch.testing.assert_close(losses.elbo_weight(schedule, t, "eps"), torch.full_like(t, 6.5))


@pytest.mark.parametrize("ends", [(1.0, 1.0), (-2.0, 3.0), (float("inf"), 0.0)])
def test_straight_log_snr_refuses_bad_ends(ends):
    with refuses(ValueError, "most must be above least"):
        S.LinearLogSNR(*ends)


def test_published_values():
    # Ho et al. 2020: sqrt of the last cumulative product is 0.0064; a popular latent model's is 0.068
    assert S.DiscreteVP.linear().alpha(torch.tensor(1000.0)).item() == pytest.approx(0.00635, abs=2e-5)
    latent = S.DiscreteVP(
        torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    )
    assert latent.alpha(torch.tensor(1000.0)).item() == pytest.approx(0.0683, abs=1e-4)
    assert S.CosineVP(0.0).alpha(torch.tensor(0.5)).item() == pytest.approx(math.sqrt(0.5))


def test_table_is_exact_at_its_nodes_and_against_the_product():
    schedule = S.DiscreteVP.linear(50, 1e-3, 0.2)
    betas = torch.linspace(1e-3, 0.2, 50, dtype=torch.float64)
    product = 1.0
    for i, beta in enumerate(betas.tolist()):
        product *= 1 - beta
        assert schedule.alpha(torch.tensor(float(i + 1), dtype=torch.float64)).item() ** 2 == pytest.approx(product)
    torch.testing.assert_close(schedule.betas, betas, atol=1e-14, rtol=1e-12)
    assert schedule.alpha(torch.tensor(0.0)) == 1 and schedule.sigma(torch.tensor(0.0)) == 0
    middle = schedule.half_log_snr(torch.tensor([3.0, 3.5, 4.0], dtype=torch.float64))
    assert middle[1].item() == pytest.approx((middle[0] + middle[2]).item() / 2)


def test_cosine_table_follows_the_curve_until_the_cap():
    table, curve = S.DiscreteVP.cosine(1000), S.CosineVP()
    t = torch.arange(1, 999, dtype=torch.float64)
    torch.testing.assert_close(table.alpha(t), curve.alpha(t / 1000), atol=1e-12, rtol=1e-9)
    assert table.betas.max() <= 0.999 + 1e-12


def test_zero_terminal_snr():
    before = S.DiscreteVP.linear()
    after = S.rescale_zero_terminal_snr(before)
    one, last = torch.tensor(1.0, dtype=torch.float64), torch.tensor(1000.0, dtype=torch.float64)
    assert after.alpha(last) == 0 and after.sigma(last) == 1
    assert after.alpha(one).item() == pytest.approx(before.alpha(one).item(), abs=1e-15)
    assert torch.isfinite(after.alpha(torch.tensor([999.5]))).all()


def test_cosine_keeps_its_digits_in_float32():
    t = torch.tensor([1e-4, 1e-3, 1e-2])
    for s in (0.0, 0.008):
        schedule = S.CosineVP(s)
        torch.testing.assert_close(schedule.sigma(t).double(), schedule.sigma(t.double()), atol=0, rtol=1e-6)
        naive = (1 - schedule.alpha(t) ** 2).sqrt()  # computed naively, it loses three digits here
        assert ((naive.double() / schedule.sigma(t.double())) - 1).abs().max() > 1e-4


@pytest.mark.parametrize("grid", [S.linspace, S.karras, S.uniform_log_snr])
@pytest.mark.parametrize("steps", [1, 2, 10, 57])
def test_real_grids(schedule, grid, steps):
    if steps == 1 and grid is not S.linspace:
        steps = 3
    ts = grid(schedule, steps)
    assert ts.shape == (steps + 1,) and ts.dtype == torch.float64 and (ts[1:] < ts[:-1]).all()
    assert ts[-1] == schedule.t_min
    assert ts[0] == schedule.t_max or schedule.alpha(torch.tensor(schedule.t_max, dtype=torch.float64)) == 0
    assert grid(schedule, 4, t_start=schedule.t_max * 0.9, t_end=schedule.t_max * 0.1)[-1] == schedule.t_max * 0.1


def test_karras_and_uniform_spacing(schedule):
    start, end = 0.9 * schedule.t_max, 0.1 * schedule.t_max
    ts = S.karras(schedule, 9, rho=7, t_start=start, t_end=end)
    root = torch.exp(-schedule.half_log_snr(ts)) ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(9), atol=0, rtol=1e-6)
    ts = S.uniform_log_snr(schedule, 9, t_start=start, t_end=end)
    lam = schedule.half_log_snr(ts)
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(9), atol=0, rtol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_a_shift_is_what_averaging_pixels_undoes(k):
    """k×k equal pixels, each seen through the straight path's noise: their mean is seen through 1/k of it.

    Averaged pixels at the shifted time are as uncertain as one pixel at t: sigma/alpha over k is what it was.
    """
    path, ts = S.RectifiedFlow(), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    t = S.shifted(ts, k)
    pixels = torch.randn(4000, k * k, 1, dtype=torch.float64) * path.sigma(t) / path.alpha(t)  # x/alpha less the data
    averaged = pixels.mean(1).std(0)
    assert (averaged / (path.sigma(ts) / path.alpha(ts)) - 1).abs().max() < 5 / 8000**0.5
    torch.testing.assert_close(path.half_log_snr(t), path.half_log_snr(ts) - math.log(k))
    for wrong in (S.shifted(ts, k * k), S.shifted(ts, 1 / k), ts):
        ratio = path.sigma(wrong) / path.alpha(wrong) / k / (path.sigma(ts) / path.alpha(ts))
        assert (ratio - 1).abs().min() > 0.3


def test_shifts_compose_and_keep_the_ends():
    ts = torch.linspace(1, 0, 41, dtype=torch.float64)
    for a, b in ((3, 1.5), (0.2, 7.0)):
        torch.testing.assert_close(S.shifted(S.shifted(ts, a), b), S.shifted(ts, a * b), atol=1e-15, rtol=1e-14)
        torch.testing.assert_close(S.shifted(S.shifted(ts, a), 1 / a), ts, atol=1e-15, rtol=1e-14)
        assert S.shifted(ts, a)[[0, -1]].tolist() == [1, 0] and (S.shifted(ts, a).diff() < 0).all()
    assert torch.equal(S.shifted(ts, 1), ts) and S.shifted(ts.float(), 3).dtype == torch.float32
    # a published scheduler's value: 1,000 times, shift 3, the smallest sigma
    assert S.shifted(torch.tensor(0.001, dtype=torch.float64), 3).item() == pytest.approx(0.0029940, abs=1e-7)


def test_integer_grids():
    schedule = S.DiscreteVP.linear(1000)
    assert S.trailing(schedule, 10).tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert S.leading(schedule, 10).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert S.trailing(schedule, 1000).tolist() == S.leading(schedule, 1000).tolist() == list(range(1000, -1, -1))
    for steps in (3, 7, 999):
        for ts in (S.trailing(schedule, steps), S.leading(schedule, steps)):
            assert (ts[1:] < ts[:-1]).all() and len(ts) == steps + 1 and ts[-1] == 0


@pytest.mark.parametrize(
    "make,error,message",
    [
        (lambda: S.LinearVP(0.0, 20), ValueError, "beta_min"),
        (lambda: S.LinearVP(3.0, 2.0), ValueError, "beta_max"),
        (lambda: S.CosineVP(-1), ValueError, "s must be"),
        (lambda: S.VE(1.0, 0.5), ValueError, "sigma_max"),
        (lambda: S.VE(float("nan")), ValueError, "sigma_min"),
        (lambda: S.DiscreteVP([0.9, 0.95]), ValueError, "decrease"),
        (lambda: S.DiscreteVP([[0.9]]), ValueError, "shape"),
        (lambda: S.DiscreteVP([float("nan")]), ValueError, "finite"),
        (lambda: S.DiscreteVP.linear(0), ValueError, "T must be"),
        (lambda: S.DiscreteVP.linear(10, 0.5, 0.1), ValueError, "beta_start"),
        (lambda: S.linspace(S.LinearVP(), 0), ValueError, "steps"),
        (lambda: S.linspace(S.LinearVP(), 5, t_start=2.0), ValueError, "t_start"),
        (lambda: S.linspace(S.LinearVP(), 5, t_start=0.2, t_end=0.3), ValueError, "t_start"),
        (lambda: S.trailing(S.LinearVP(), 5), TypeError, "DiscreteVP"),
        (lambda: S.leading(S.DiscreteVP.linear(10), 11), ValueError, "steps"),
        (lambda: S.karras(S.LinearVP(), 5, rho=-1), ValueError, "rho"),
        (lambda: S.karras(S.LinearVP(), 5, sigma_min=1e9), ValueError, "sigma_min"),
        (lambda: S.LinearVP().time_of(torch.tensor(-100.0)), ValueError, "half_log_snr"),
        (lambda: S.rescale_zero_terminal_snr(S.LinearVP()), TypeError, "DiscreteVP"),
        (lambda: S.Schedule().alpha(torch.tensor(0.0)), TypeError, "alpha"),
    ],
)
def test_bad_arguments(make, error, message):
    with refuses(error, message):
        make()


def test_rates_of_one_time_spread_over_a_batch(schedule):
    """An expanded tensor shares its memory among its values, which jvp refuses."""
    t = torch.tensor(0.5 * (schedule.t_min + schedule.t_max), dtype=torch.float64)
    assert torch.equal(schedule.alpha_rate(t.expand(3)), schedule.alpha_rate(t.repeat(3)))
    assert torch.equal(schedule.sigma_rate(t.expand(3)), schedule.sigma_rate(t.repeat(3)))
