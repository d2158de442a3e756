"""Samplers: identities to rounding, measured orders, an independent library, exact laws, bad grids."""

import functools
import math

import numpy as np
import pytest
import torch
from conftest import SCHEDULES, refuses
from scipy.integrate import solve_ivp

from companion import schedules as S
from companion.forward import q_posterior, sde_coefficients
from companion.samplers import (
    ancestral,
    annealed_langevin,
    ddim,
    dpm_solver_2s,
    dpm_solver_3m,
    dpm_solver_3s,
    dpmpp_2m,
    dpmpp_2m_sde,
    edm,
    euler,
    euler_maruyama,
    heun,
    invert,
    moments,
    plms,
    predictor_corrector,
    sample,
    start,
    unipc,
)
from companion.toy import GaussianMixture

HIGHER = [heun, plms, dpmpp_2m, dpm_solver_3m, unipc]
SINGLE = [dpm_solver_2s, dpm_solver_3s]  # these two ask the schedule between its nodes
ALL = [
    ddim,
    euler,
    ancestral,
    predictor_corrector,
    *HIGHER,
    dpmpp_2m_sde,
    edm,
]  # from any grid of nodes, an empty start too


def grid(schedule, steps, end=0.05):
    span = schedule.t_max - schedule.t_min
    return S.linspace(schedule, steps, t_start=schedule.t_min + 0.95 * span, t_end=schedule.t_min + end * span)


def noise_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def test_ddim_is_euler_is_dpm_solver_1(schedule, mixture):
    denoise, ts = mixture.denoiser(schedule), grid(schedule, 20)
    x = start(schedule, ts, (50, 2), dtype=torch.float64)
    by_ddim = sample(denoise, schedule, x, ts)
    scale = by_ddim.abs().max()
    assert (by_ddim - sample(denoise, schedule, x, ts, sampler=euler)).abs().max() < 1e-12 * scale
    # DPM-Solver-1 and DPM-Solver++-1 as in Lu et al. 2022 and 2022b, from lambda alone
    lam, alpha, sigma = schedule.half_log_snr(ts), schedule.alpha(ts), schedule.sigma(ts)
    one, plus = x, x
    for i in range(20):
        h = lam[i + 1] - lam[i]
        eps = (one - alpha[i] * denoise(one, ts[i])) / sigma[i]
        one = alpha[i + 1] / alpha[i] * one - sigma[i + 1] * torch.expm1(h) * eps
        plus = sigma[i + 1] / sigma[i] * plus - alpha[i + 1] * torch.expm1(-h) * denoise(plus, ts[i])
    assert (by_ddim - one).abs().max() < 1e-12 * scale and (by_ddim - plus).abs().max() < 1e-12 * scale


def test_ddim_on_the_straight_path_is_euler_in_time(mixture):
    schedule = S.RectifiedFlow()
    denoise, ts = mixture.denoiser(schedule), S.linspace(schedule, 20)
    x = start(schedule, ts, (50, 2), dtype=torch.float64)
    flow = x
    for t, s in zip(ts, ts[1:], strict=False):
        x0 = denoise(flow, t)
        flow = flow + (s - t) * ((flow - (1 - t) * x0) / t - x0)
    assert (sample(denoise, schedule, x, ts) - flow).abs().max() < 1e-12
    # on another schedule Euler in time is another method
    schedule = S.LinearVP()
    denoise, ts = mixture.denoiser(schedule), S.linspace(schedule, 50, t_end=1e-3)
    other = x
    for t, s in zip(ts, ts[1:], strict=False):
        x0 = denoise(other, t)
        eps = (other - schedule.alpha(t) * x0) / schedule.sigma(t)
        other = other + (s - t) * (schedule.alpha_rate(t) * x0 + schedule.sigma_rate(t) * eps)
    assert (sample(denoise, schedule, x, ts) - other).abs().max() > 0.05


def test_eta_one_is_ancestral_is_the_posterior(schedule, mixture):
    denoise, ts = mixture.denoiser(schedule), grid(schedule, 15)
    x = start(schedule, ts, (50, 2), dtype=torch.float64)
    by_eta = sample(denoise, schedule, x, ts, eta=1.0, noise=noise_of(3))
    by_name = sample(denoise, schedule, x, ts, sampler=ancestral, noise=noise_of(3))
    noise, by_posterior = noise_of(3), x
    for t, s in zip(ts, ts[1:], strict=False):
        law = q_posterior(denoise(by_posterior, t), by_posterior, s, t, schedule)
        by_posterior = law.mean + law.variance.sqrt() * noise(x)
    scale = by_eta.abs().max()
    assert (by_eta - by_name).abs().max() < 1e-12 * scale
    assert (by_eta - by_posterior).abs().max() < 1e-11 * scale


@functools.cache
def flow(schedule, t_start, t_end):
    """Twenty starts, and the ends of the book's mixture's probability-flow ODE from them, by DOP853."""
    mixture, ts = GaussianMixture.four(), torch.tensor([t_start, t_end], dtype=torch.float64)
    x = start(schedule, ts, (20, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def slope(t, flat):
        t, y = torch.tensor(t, dtype=torch.float64), torch.from_numpy(flat.reshape(-1, 2))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = mixture.denoise(y, alpha, sigma)
        return (schedule.alpha_rate(t) * x0 + schedule.sigma_rate(t) * (y - alpha * x0) / sigma).numpy().ravel()

    found = solve_ivp(slope, (t_start, t_end), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return x, torch.from_numpy(found.y[:, -1].reshape(-1, 2))


def orders(walk, mixture, schedule, make_grid, steps):
    """log2 of the ratios of the root-mean-square errors at numbers of steps that double; the last error."""
    x, exact = flow(schedule, *make_grid(1).tolist())
    ends = (sample(mixture.denoiser(schedule), schedule, x, make_grid(n), sampler=walk) for n in steps)
    errors = np.array([(end - exact).square().mean().sqrt().item() for end in ends])
    return np.log2(errors[:-1] / errors[1:]), errors[-1]


@pytest.mark.parametrize("name", ["linear", "circle", "flow", "ve"])
@pytest.mark.parametrize("sampler", [ddim, euler])
def test_measured_order(sampler, name, mixture):
    """The slope of the error against a DOP853 solution of the probability-flow ODE."""
    schedule = SCHEDULES[name]
    found, _ = orders(sampler, mixture, schedule, lambda n: grid(schedule, n, end=0.1), (200, 400))
    assert abs(found[-1] - sampler.order) < 0.1, found


class Wide:
    """The exact denoiser of N(0, variance) in 1-D, with the share v at which a step to s has the exact variance."""

    def __init__(self, schedule, variance, ts, v=None):
        self.schedule, self.variance, self.v = schedule, variance, v
        self.after = dict(zip(ts[:-1].tolist(), ts[1:], strict=True))

    def __call__(self, x, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x

    def with_variance(self, x, t):
        """By conditioning the joint Gaussian of (x_s, x_t), not from q(x_s | x_t, x_0)."""
        if self.v is not None:
            return self(x, t), torch.full_like(x, self.v)
        s = self.after[t.item()]
        (alpha_s, sigma_s), (alpha_t, sigma_t) = ((self.schedule.alpha(u), self.schedule.sigma(u)) for u in (s, t))
        if sigma_s == 0:
            return self(x, t), torch.full_like(x, math.nan)  # is not used
        step = alpha_t / alpha_s
        added = sigma_t**2 - step**2 * sigma_s**2
        of_s = alpha_s**2 * self.variance + sigma_s**2
        exact = of_s - (step * of_s) ** 2 / (step**2 * of_s + added)
        posterior = added * sigma_s**2 / sigma_t**2
        v = (exact / posterior).log() / (added / posterior).log()
        return self(x, t), v.expand_as(x)


def variance_left(denoise, schedule, ts, variance, start):
    """What the ancestral sampler leaves of data at 0 with this variance, exactly."""
    return moments(denoise, schedule, ts, 0.0, start**0.5, sampler=ancestral, variance=variance).std[-1].item() ** 2


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("name", ["linear", "cosine", "table-cosine"])
def test_the_right_learned_variance_is_exact_for_any_number_of_steps(name, steps):
    """On Gaussian data narrower than the prior's; the two fixed variances need many steps to come near."""
    schedule, variance = SCHEDULES[name], 0.25
    ts = grid(schedule, steps)
    if name == "table-cosine":
        ts = ts.round()
    alpha, sigma = schedule.alpha(ts[[0, -1]]), schedule.sigma(ts[[0, -1]])
    start, want = (alpha**2 * variance + sigma**2).tolist()
    denoise = Wide(schedule, variance, ts)
    assert variance_left(denoise, schedule, ts, "learned", start) == pytest.approx(want, rel=1e-9)
    wrong = [variance_left(denoise, schedule, ts, v, start) for v in ("posterior", "forward")]
    wrong.append(variance_left(Wide(schedule, variance, ts, 0.5), schedule, ts, "learned", start))  # half-way, always
    assert min(abs(w / want - 1) for w in wrong) > 0.02 / steps
    assert wrong[0] < want < wrong[1]
    for v, same in ((0.0, wrong[0]), (1.0, wrong[1])):  # the ends of eq. 15 are the fixed ones
        found = variance_left(Wide(schedule, variance, ts, v), schedule, ts, "learned", start)
        assert found == pytest.approx(same, rel=1e-9)


def test_a_learned_variance_draws_nothing_on_the_last_step_to_the_data():
    schedule, drawn = S.CosineVP(), []
    ts = S.linspace(schedule, 5)
    noise = lambda x: drawn.append(1) or torch.randn_like(x)  # noqa: E731
    x = torch.randn(4, 1, dtype=torch.float64)
    *_, state = ancestral(Wide(schedule, 0.25, ts), schedule, x, ts, variance="learned", noise=noise)
    assert len(drawn) == 4 and torch.isfinite(state.x).all()
    torch.testing.assert_close(state.x, state.x0, atol=1e-12, rtol=1e-12)


def gaussian_variance(schedule, ts, eta, variance):
    """The variance that eta-DDIM leaves of N(0, variance) data, by the affine recursion: no Monte Carlo."""
    a, s = schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist()
    now = s[0] ** 2 + a[0] ** 2 * variance
    for i in range(len(ts) - 1):
        gain = a[i] * variance / (a[i] ** 2 * variance + s[i] ** 2)  # x0_hat = gain x
        u = eta * s[i + 1] * math.sqrt(1 - (a[i] * s[i + 1] / (a[i + 1] * s[i])) ** 2)
        factor = a[i + 1] * gain + math.sqrt(s[i + 1] ** 2 - u**2) * (1 - a[i] * gain) / s[i]
        now = factor**2 * now + u**2
    return now


def test_moments_are_those_of_many_walks():
    """Data off the origin, and a sampler that draws more than once a step: means and deviations by Monte Carlo."""
    schedule, n = S.LinearVP(), 200_000
    denoise, ts = GaussianMixture([1.0], [[0.8]], stds=[0.5]).denoiser(schedule), grid(schedule, 6)
    options = {"sampler": predictor_corrector, "steps": 2, "size": 0.1}
    found = moments(denoise, schedule, ts, 0.3, 3.0, **options)
    x = first = 0.3 + 3.0 * torch.randn(n, 1, dtype=torch.float64)
    walk = [state.x for state in predictor_corrector(denoise, schedule, x, ts, steps=2, size=0.1)]
    for x, mean, spread, correlation in zip(walk, *found, strict=True):
        seen = torch.corrcoef(torch.cat([first, x], 1).T)[0, 1]
        assert abs(seen - correlation) < 4.5 * (1 - correlation**2) / n**0.5
        assert abs(x.mean() - mean) < 4.5 * spread / n**0.5
        assert abs(x.std() / spread - 1) < 4.5 / (2 * n) ** 0.5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_weak_order_of_the_noisy_sampler(eta):
    schedule, variance = S.CosineVP(0.0), 0.25
    errors = []
    for steps in (64, 128, 256):
        ts = grid(schedule, steps, end=0.1)
        want = schedule.alpha(ts[-1]) ** 2 * variance + schedule.sigma(ts[-1]) ** 2
        errors.append(abs(gaussian_variance(schedule, ts, eta, variance) - want.item()))
    assert abs(math.log2(errors[-2] / errors[-1]) - 1) < 0.1
    # and the package's sampler has the recursion's variance, by its exact moments and by Monte Carlo
    one = GaussianMixture([1.0], [[0.0]], stds=[variance**0.5])
    ts = grid(schedule, 8, end=0.1)
    begin = (schedule.alpha(ts[0]) ** 2 * variance + schedule.sigma(ts[0]) ** 2).sqrt().item()
    exact = moments(one.denoiser(schedule), schedule, ts, 0.0, begin, eta=eta)
    assert len(exact.std) == 8 and exact.std[-1] ** 2 == pytest.approx(gaussian_variance(schedule, ts, eta, variance))
    x = (schedule.alpha(ts[0]) ** 2 * variance + schedule.sigma(ts[0]) ** 2).sqrt() * torch.randn(400_000, 1).double()
    found = sample(one.denoiser(schedule), schedule, x, ts, eta=eta).var()
    want = gaussian_variance(schedule, ts, eta, variance)
    assert abs(found - want) < 5 * want * (2 / 400_000) ** 0.5


ONE = GaussianMixture([1.0], [[0.0]], stds=[0.5])


def rows(walk, schedule, ts, width, **options):
    """The variance a linear walk leaves, exactly: one row for the start, one for each draw."""
    draws = iter(range(1, width))

    def noise(x):
        z = torch.zeros_like(x)
        z[next(draws)] = 1.0
        return z

    x = torch.zeros(width, 1, dtype=torch.float64)
    x[0] = (0.25 * schedule.alpha(ts[0]) ** 2 + schedule.sigma(ts[0]) ** 2).sqrt()
    end = sample(ONE.denoiser(schedule), schedule, x, ts, sampler=walk, noise=noise, **options).square().sum()
    return end.item(), len(list(draws))


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "flow", "sub-vp"])
def test_weak_order_of_euler_maruyama(name, kappa):
    """Every kappa ends with the forward process's variance, up to an error that halves with the step."""
    schedule = S.VE(0.1, 10.0) if name == "ve" else SCHEDULES[name]
    errors = []
    for steps in (200, 400, 800):
        ts = grid(schedule, steps, end=0.1)
        want = 0.25 * schedule.alpha(ts[-1]) ** 2 + schedule.sigma(ts[-1]) ** 2
        found, unused = rows(euler_maruyama, schedule, ts, steps + 1, kappa=kappa)
        assert unused == (steps if kappa == 0 else 0)
        errors.append(abs(found / want.item() - 1))
    assert errors[-1] < 0.1 and abs(math.log2(errors[-2] / errors[-1]) - 1) < 0.15, errors


def moments_off(denoise, schedule, mixture, kappa=1.0, noise=torch.randn_like, n=6000):
    """The largest error of mean and second moments in the plane, in standard errors, at ten times on the way down."""
    generator = torch.Generator().manual_seed(5)
    ts = S.uniform_log_snr(schedule, 300, t_start=0.98, t_end=0.02)
    x, worst = mixture.sample(n, schedule.alpha(ts[0]).item(), schedule.sigma(ts[0]).item(), generator=generator), 0.0
    torch.manual_seed(6)
    for k, state in enumerate(euler_maruyama(denoise, schedule, x, ts, kappa=kappa, noise=noise), 1):
        if k % 30 == 0:
            alpha, sigma = schedule.alpha(ts[k]), schedule.sigma(ts[k])
            second = alpha**2 * (mixture.covariance() + torch.outer(mixture.mean(), mixture.mean()))
            want = torch.cat([alpha * mixture.mean(), (second + sigma**2 * torch.eye(2)).flatten()])
            each = torch.cat([state.x, torch.einsum("ni,nj->nij", state.x, state.x).flatten(1)], 1)
            worst = max(worst, ((each.mean(0) - want).abs() / (each.std(0) / n**0.5)).max().item())
    return worst


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["linear", "sub-vp"])
def test_every_reverse_process_has_the_exact_moments_at_ten_times(name, kappa, mixture):
    """Sixty numbers in standard errors: with the right law above 4.5 once in 2,500 runs, and the steps add to it."""
    schedule = SCHEDULES[name]
    assert moments_off(mixture.denoiser(schedule), schedule, mixture, kappa) < 5.5


def test_a_doubled_noise_and_a_lost_half_do_not_have_them(mixture):
    schedule = S.LinearVP()

    def half_lost(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return (x + 2 * sigma**2 * mixture.score(x, alpha, sigma)) / alpha

    exact = mixture.denoiser(schedule)
    assert moments_off(exact, schedule, mixture, noise=lambda x: 2**0.5 * torch.randn_like(x)) > 20
    assert moments_off(half_lost, schedule, mixture, 0.0) > 20


def test_euler_maruyama_without_noise_is_euler_in_time(mixture):
    schedule = S.LinearVP()
    denoise, ts = mixture.denoiser(schedule), S.linspace(schedule, 30, t_end=1e-3)
    x = other = start(schedule, ts, (50, 2), dtype=torch.float64)
    for t, s in zip(ts, ts[1:], strict=False):
        x0 = denoise(other, t)
        eps = (other - schedule.alpha(t) * x0) / schedule.sigma(t)
        other = other + (s - t) * (schedule.alpha_rate(t) * x0 + schedule.sigma_rate(t) * eps)
    assert (sample(denoise, schedule, x, ts, sampler=euler_maruyama, kappa=0.0) - other).abs().max() < 1e-9


def test_euler_maruyama_is_the_textbook_step(mixture):
    """One step, from the score of the mixture itself instead of x0_hat; and none of the noise at a clean end."""
    schedule, x = S.LinearVP(), torch.randn(40, 2, dtype=torch.float64)
    t, s = torch.tensor([0.6, 0.0], dtype=torch.float64)
    drift, diffusion = sde_coefficients(t, schedule)
    slope = drift * x - 0.5 * (1 + 0.49) * diffusion**2 * mixture.score(x, schedule.alpha(t), schedule.sigma(t))
    ones = {"sampler": euler_maruyama, "kappa": 0.7, "noise": torch.ones_like}
    found = sample(mixture.denoiser(schedule), schedule, x, torch.stack([t, s]), **ones)
    assert (found - (x - 0.6 * slope)).abs().max() < 1e-12
    s = torch.tensor(0.5, dtype=torch.float64)
    found = sample(mixture.denoiser(schedule), schedule, x, torch.stack([t, s]), **ones)
    assert (found - (x - 0.1 * slope + 0.7 * diffusion * 0.1**0.5)).abs().max() < 1e-12


@pytest.mark.parametrize("size", [0.02, 0.1, 0.5])
def test_langevin_keeps_its_own_variance_exactly(size):
    """On a Gaussian of variance V the chain is an AR(1) process: V / (1 − delta / 2V) is what it keeps, and not V."""
    schedule = S.VE(0.1, 10.0)
    t = torch.tensor([0.5, 0.4], dtype=torch.float64)
    V = 0.25 + schedule.sigma(t) ** 2
    delta = size * schedule.sigma(t) ** 2
    want = V[0]
    for v, d in zip(V, delta, strict=True):
        keeps = v / (1 - d / (2 * v))
        want = keeps + (1 - d / v) ** 40 * (want - keeps)
    found, unused = rows(annealed_langevin, schedule, t, 41, steps=20, size=size)
    assert unused == 0 and abs(found - want) < 1e-12


def test_annealed_langevin_carries_x_over_alpha_and_ends_clean(mixture):
    schedule, x = S.LinearVP(), torch.randn(5, 2, dtype=torch.float64)
    ts = torch.tensor([0.8, 0.3, 0.0], dtype=torch.float64)
    states = list(annealed_langevin(mixture.denoiser(schedule), schedule, x, ts, steps=1, size=1e-300))
    at = schedule.alpha(ts)
    assert len(states) == 3 and (states[0].x - x).abs().max() < 1e-12
    assert (states[1].x - at[1] / at[0] * x).abs().max() < 1e-9
    guess = mixture.denoise(states[1].x, at[1], schedule.sigma(ts[1]))
    assert (states[2].x - guess).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_predictor_corrector_is_a_predicted_step_and_langevin_steps(eta):
    """Three steps of the affine recursion by hand; corrections draw the variance towards the marginal's."""
    schedule = S.LinearVP()
    ts = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=torch.float64)
    V = 0.25 * schedule.alpha(ts) ** 2 + schedule.sigma(ts) ** 2
    want = V[0].item()
    for i in (1, 2, 3):
        pair = ts[i - 1 : i + 1]
        gain = gaussian_variance(schedule, pair, eta, 0.25)  # one step from the exact marginal …
        fresh = eta**2 * schedule.sigma(pair[1]).item() ** 2
        fresh *= (
            1
            - (schedule.alpha(pair[0]) * schedule.sigma(pair[1])).item() ** 2
            / (schedule.alpha(pair[1]) * schedule.sigma(pair[0])).item() ** 2
        )
        want = (gain - fresh) / V[i - 1].item() * want + fresh  # … and from any variance
        delta = 0.2 * schedule.sigma(ts[i]).item() ** 2
        keeps = V[i].item() / (1 - delta / (2 * V[i].item()))
        want = keeps + (1 - delta / V[i].item()) ** 4 * (want - keeps)
    found, unused = rows(predictor_corrector, schedule, ts, 10 if eta else 7, eta=eta, steps=2, size=0.2)
    assert unused == 0 and abs(found - want) < 1e-12


def test_annealing_finds_the_weights_that_langevin_alone_does_not():
    """Two modes far apart, an even start: one small level keeps half and half, many levels find 0.8 and 0.2."""
    modes = GaussianMixture([0.8, 0.2], [[4.0, 4.0], [-4.0, -4.0]], stds=[1.0, 1.0])
    schedule = S.VE(0.3, 16.0)
    x = 8 * torch.randn(4000, 2, dtype=torch.float64)
    walk = {"sampler": annealed_langevin, "noise": noise_of(1)}
    low = torch.tensor([1e-6, 0.0], dtype=torch.float64)
    alone = sample(modes.denoiser(schedule), schedule, x, low, steps=200, **walk)
    annealed = sample(modes.denoiser(schedule), schedule, x, S.linspace(schedule, 11), steps=60, **walk)
    shares = [modes.responsibilities(end)[:, 0].mean().item() for end in (alone, annealed)]
    assert abs(shares[0] - 0.5) < 0.05 and abs(shares[1] - 0.8) < 0.03, shares


class TestDiffusers:
    """Against the schedulers of an independent library, on the exact mixture."""

    def walk(self, mixture, scheduler, steps, ours):
        schedule = S.DiscreteVP(scheduler.alphas_cumprod)
        scheduler.set_timesteps(steps)
        denoise = mixture.denoiser(schedule)
        ts = torch.cat([scheduler.timesteps.double() + 1, torch.zeros(1, dtype=torch.float64)])
        x = torch.randn(40, 2, dtype=torch.float64)
        theirs = x
        for t in scheduler.timesteps:
            time = t.double() + 1
            eps = (theirs - schedule.alpha(time) * denoise(theirs, time)) / schedule.sigma(time)
            theirs = scheduler.step(eps, t, theirs, **ours[1]).prev_sample
        return theirs, sample(denoise, schedule, x, ts, **ours[0])

    @pytest.mark.parametrize("steps", [10, 50, 1000])
    def test_ddim(self, mixture, steps):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, beta_schedule="linear")
        theirs, mine = self.walk(mixture, scheduler, steps, ({}, {"eta": 0.0}))
        assert (theirs - mine).abs().max() < 1e-4
        assert S.leading(S.DiscreteVP.linear(), steps).tolist()[:-1] == (scheduler.timesteps + 1).tolist()

    @pytest.mark.parametrize("spacing,grid", [("trailing", S.trailing), ("leading", S.leading)])
    def test_grids(self, spacing, grid):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(timestep_spacing=spacing)
        for steps in (10, 50, 100):
            scheduler.set_timesteps(steps)
            assert grid(S.DiscreteVP.linear(), steps).tolist()[:-1] == (scheduler.timesteps + 1).tolist()

    @pytest.mark.parametrize("theirs_variance,variance", [("fixed_small", "posterior"), ("fixed_large", "forward")])
    def test_ddpm(self, mixture, theirs_variance, variance, monkeypatch):
        import diffusers.schedulers.scheduling_ddpm as module

        scheduler = module.DDPMScheduler(clip_sample=False, variance_type=theirs_variance)
        theirs_noise, mine_noise = noise_of(1), noise_of(1)
        monkeypatch.setattr(
            module, "randn_tensor", lambda shape, **_: theirs_noise(torch.empty(shape, dtype=torch.float64))
        )
        options = {"sampler": ancestral, "variance": variance, "noise": mine_noise}
        theirs, mine = self.walk(mixture, scheduler, 100, (options, {}))
        assert (theirs - mine).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", ALL)
def test_a_table_of_nodes_is_enough(sampler, table, mixture):
    ts = torch.arange(10, -1, -1, dtype=torch.float64)
    end = sample(mixture.denoiser(table), table, start(table, ts, (30, 2), dtype=torch.float64), ts, sampler=sampler)
    assert torch.isfinite(end).all() and (mixture.log_prob(end) > -20).all()


@pytest.mark.parametrize("sampler", [ddim, ancestral, predictor_corrector, dpmpp_2m_sde, edm])
def test_no_noise_on_the_last_step(sampler, schedule):
    point = torch.tensor([0.5, -0.25], dtype=torch.float64)
    ts = S.linspace(schedule, 10)
    clean = not isinstance(schedule, S.VE | S.LinearLogSNR)  # these two end with a little noise, and keep it
    options = {"variance": "forward" if clean else "posterior"} if sampler is ancestral else {"eta": 1.0}
    options = {"s_churn": 3.0} if sampler is edm else options
    x = start(schedule, ts, (100, 2), dtype=torch.float64)
    end = sample(lambda x, t: point.expand_as(x), schedule, x, ts, sampler=sampler, **options)
    left = schedule.sigma(ts[-1:]).item()
    assert clean == (left == 0) and abs((end - point).std() - left) < 0.2 * left + 1e-12


def test_samples_come_from_the_mixture(mixture):
    schedule = S.CosineVP(0.0)
    for sampler in ALL:
        ts = S.linspace(schedule, 300 if getattr(sampler, "order", 1) == 1 else 40)
        end = sample(mixture.denoiser(schedule), schedule, torch.randn(20_000, 2), ts, sampler=sampler).double()
        error = 5 * end.std(0) / len(end) ** 0.5
        assert ((end.mean(0) - mixture.mean()).abs() < error + 0.005).all()
        shares = mixture.responsibilities(end).mean(0)
        assert (shares - mixture.weights).abs().max() < 5 * 0.5 / len(end) ** 0.5 + 0.005


def test_inversion_returns(schedule, mixture):
    ts = grid(schedule, 2000, end=0.3)
    denoise = mixture.denoiser(schedule)
    x = start(schedule, ts, (20, 2), dtype=torch.float64)
    down = sample(denoise, schedule, x, ts)
    back = sample(denoise, schedule, down, ts, sampler=invert)
    assert (back - x).abs().max() < 0.02 * x.abs().max()
    coarse = sample(
        denoise,
        schedule,
        sample(denoise, schedule, x, grid(schedule, 1000, 0.3)),
        grid(schedule, 1000, 0.3),
        sampler=invert,
    )
    ratio = (coarse - x).abs().max() / (back - x).abs().max()
    assert 1.6 < ratio < 2.5  # first order, so the way back is right, not only near


def test_states_and_gradients(mixture):
    schedule = S.CosineVP()
    ts, x = S.linspace(schedule, 5), torch.randn(3, 2)
    states = list(ddim(mixture.denoiser(schedule), schedule, x, ts))
    assert len(states) == 5 and all(s.x.shape == s.x0.shape == x.shape and s.x.dtype == x.dtype for s in states)
    torch.testing.assert_close(states[-1].x, states[-1].x0, atol=1e-6, rtol=1e-6)  # the last step lands on the guess
    walk = ddim(mixture.denoiser(schedule), schedule, x, ts)
    next(walk)
    assert torch.is_grad_enabled()  # a paused walk leaves autograd as it was


@pytest.mark.parametrize("sampler", [*ALL, *SINGLE, euler_maruyama, annealed_langevin, invert])
@pytest.mark.parametrize(
    "ts,error,message",
    [
        (torch.tensor([0.1, 0.5, 0.9]), ValueError, "ts must decrease"),
        (torch.tensor([0.9, 0.5, 0.5]), ValueError, "ts must decrease"),
        (torch.tensor([0.9]), ValueError, "ts must have shape"),
        (torch.tensor([[0.9, 0.5]]), ValueError, "ts must have shape"),
        (torch.tensor([0.9, float("nan")]), ValueError, "ts must be finite"),
        (torch.tensor([1.5, 0.5]), ValueError, "lie in the schedule"),
        (torch.tensor([1, 0]), TypeError, "ts must be a floating"),
    ],
)
def test_bad_grids(sampler, ts, error, message, mixture):
    schedule = S.CosineVP()
    with refuses(error, message):
        sample(mixture.denoiser(schedule), schedule, torch.randn(3, 2), ts, sampler=sampler)


def test_other_bad_arguments(mixture):
    schedule, ts = S.CosineVP(), torch.tensor([0.9, 0.5, 0.0])
    denoise, x = mixture.denoiser(schedule), torch.randn(3, 2)
    with refuses(ValueError, "eta"):
        sample(denoise, schedule, x, ts, eta=1.5)
    with refuses(ValueError, "variance"):
        sample(denoise, schedule, x, ts, sampler=ancestral, variance="small")
    with refuses(TypeError, "denoise must have with_variance"):
        sample(denoise, schedule, x, ts, sampler=ancestral, variance="learned")
    with refuses(ValueError, "sigma > 0"):
        sample(denoise, schedule, x, ts, sampler=invert)
    for sampler in (euler_maruyama, annealed_langevin):
        with refuses(ValueError, "alpha > 0"):
            sample(denoise, schedule, x, torch.tensor([1.0, 0.5]), sampler=sampler)
    for sampler in (predictor_corrector, annealed_langevin):
        with refuses(ValueError, "steps"):
            sample(denoise, schedule, x, ts, sampler=sampler, steps=0)
        with refuses(ValueError, "size"):
            sample(denoise, schedule, x, ts, sampler=sampler, size=-0.1)
    with refuses(ValueError, "eta"):
        sample(denoise, schedule, x, ts, sampler=predictor_corrector, eta=-1.0)
    with refuses(ValueError, "kappa"):
        sample(denoise, schedule, x, ts, sampler=euler_maruyama, kappa=-1.0)
    with refuses(TypeError, "x must be a floating"):
        sample(denoise, schedule, torch.ones(3, 2, dtype=torch.int64), ts)
