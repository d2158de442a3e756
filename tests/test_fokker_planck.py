"""The grid solver of the Fokker–Planck equation, against closed forms, the exact mixture and simulated paths."""

import functools
import math

import numpy as np
import pytest
import torch
from conftest import refuses
from scipy import stats

from companion import schedules as S
from companion.fokker_planck import evolve
from companion.forward import sde_coefficients
from companion.toy import GaussianMixture

F64 = torch.float64
# (schedule, a time at which the two peaks are a few cells wide, half the width of the line)
PATHS = {"linear": (S.LinearVP(), 0.05, 6.0), "sub-vp": (S.SubVP(), 0.05, 6.0), "ve": (S.VE(0.1, 3.0), 0.3, 16.0)}


@pytest.fixture
def pair():
    """The book's mixture on the line."""
    return GaussianMixture.two()


def cells(count, reach):
    """Centres of equal cells from −reach to reach."""
    return ((torch.arange(count, dtype=F64) + 0.5) / count * 2 - 1) * reach


def off(found, want, centres):
    """The largest difference anywhere, as a share of the highest peak."""
    return ((found - want).abs().amax() / want.amax()).item()


def exact(pair, schedule, times, centres):
    return torch.stack([pair.log_prob(centres[:, None], schedule.alpha(t), schedule.sigma(t)).exp() for t in times])


def coefficients(schedule):
    """f and g at a time, found once for both."""
    return functools.lru_cache(lambda t: sde_coefficients(torch.tensor(t, dtype=F64), schedule))


def forward(schedule):
    of = coefficients(schedule)
    return (lambda x, t: of(t.item()).drift * x), (lambda t: of(t.item()).diffusion)


def ornstein_uhlenbeck(count, g=0.8):
    """dx = −1.5 (x − 0.4) dt + g dw from N(−1, 0.3²): the solution's and the closed form's densities."""
    centres, times = cells(count, 4.0), torch.tensor([0.0, 0.2, 1.0], dtype=F64)
    decay = torch.exp(-1.5 * times)[:, None]
    mean = 0.4 - 1.4 * decay
    std = (0.09 * decay**2 + 0.64 / 3 * (1 - decay**2)).sqrt()
    want = torch.distributions.Normal(mean, std).log_prob(centres).exp()
    found = evolve(lambda x, t: -1.5 * (x - 0.4), lambda t: g, want[0], centres, times)
    return found, want, centres


def test_ornstein_uhlenbeck_with_the_order_in_the_cell_s_width():
    errors = [off(*ornstein_uhlenbeck(count)) for count in (50, 100, 200, 400)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(orders[-1] - 2) < 0.05 and errors[-1] < 5e-4, (orders, errors)


@pytest.mark.parametrize("g", [0.8 * 2**0.5, 0.8 * 0.5**0.5, 2 * 0.8])  # no half in front of g², half twice, doubled
def test_another_diffusion_is_rejected(g):
    assert off(*ornstein_uhlenbeck(400, g)) > 0.05


def test_heat_spreads_without_drift():
    centres, times = cells(300, 5.0), torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    want = torch.distributions.Normal(0.2, (0.09 + 0.49 * times[:, None]).sqrt()).log_prob(centres).exp()
    assert off(evolve(lambda x, t: torch.zeros_like(x), lambda t: 0.7, want[0], centres, times), want, centres) < 1e-3


@pytest.mark.parametrize("name", PATHS)
def test_mixture_along_the_forward_sde(pair, name):
    schedule, start, reach = PATHS[name]
    centres, times = cells(600, reach), torch.linspace(start, 1.0, 4, dtype=F64)
    want = exact(pair, schedule, times, centres)
    found = evolve(*forward(schedule), want[0], centres, times)
    assert off(found, want, centres) < 1e-3
    assert (found.sum(1) / found[0].sum() - 1).abs().max() < 1e-13 and found.min() > -1e-9
    drift, diffusion = forward(schedule)
    wrong = [(drift, lambda t: 2**0.5 * diffusion(t))]
    if name == "linear":
        wrong += [(lambda x, t: 0.5 * drift(x, t), diffusion), (lambda x, t: -drift(x, t), diffusion)]
    for equation in wrong:
        assert off(evolve(*equation, want[0], centres, times[:2], rtol=1e-4), want[:2], centres) > 0.02


def backward(pair, schedule, kappa, centres, times, half=0.5, add=1.0):
    """The reverse SDE dx = (f x − ½ (1 + kappa²) g² score) dt + kappa g dw, from noise to data: in t_max − t."""

    of = coefficients(schedule)

    def drift(x, s):
        t = schedule.t_max - s
        f, g = of(t.item())
        score = pair.score(x[:, None], schedule.alpha(t), schedule.sigma(t))[:, 0]
        return -f * x + half * (add + kappa**2) * g**2 * score

    start = exact(pair, schedule, schedule.t_max - times[:1], centres)[0]
    return evolve(drift, lambda s: kappa * of((schedule.t_max - s).item()).diffusion, start, centres, times, rtol=1e-5)


@pytest.mark.parametrize("kappa", [0.5, 1.0, 1.5])
def test_every_reverse_process_keeps_the_marginals(pair, kappa):
    schedule, centres, times = S.LinearVP(), cells(400, 6.0), torch.tensor([0.0, 0.5, 0.9], dtype=F64)
    want = exact(pair, schedule, schedule.t_max - times, centres)
    assert off(backward(pair, schedule, kappa, centres, times), want, centres) < 5e-3
    for wrong in ({"half": 1.0}, {"add": 0.0}) if kappa == 1.0 else ():
        assert off(backward(pair, schedule, kappa, centres, times, **wrong), want, centres) > 0.05


def p_value(found, centres, points, bins=25):
    """Chi-square of points against the cells' masses, in bins that hold about as many each."""
    width = (centres[1] - centres[0]).item()
    mass = (found * width).cumsum(0)
    edges = centres[torch.searchsorted(mass, torch.linspace(0, 1, bins + 1, dtype=F64)[1:-1])] + width / 2
    share = torch.stack([mass[centres + width / 2 <= edge + 1e-9][-1] for edge in edges])
    share = torch.cat([torch.zeros(1), share, torch.ones(1)]).diff().numpy()
    counts = np.bincount(torch.bucketize(points, edges).numpy(), minlength=bins)
    return stats.chisquare(counts, share * len(points)).pvalue


def test_histogram_of_simulated_paths(pair):
    """Euler–Maruyama with steps so small that their bias hides below the noise of 20,000 points, level 1 in 1000."""
    schedule, start, end, steps, n = S.LinearVP(), 0.05, 0.35, 600, 20_000
    centres, times = cells(600, 6.0), torch.tensor([start, end], dtype=F64)
    x = pair.sample(n, *(f(times[0]).item() for f in (schedule.alpha, schedule.sigma)))[:, 0]
    h = (end - start) / steps
    for t in torch.arange(steps, dtype=F64) * h + start + h / 2:
        f, g = sde_coefficients(t, schedule)
        x = x + f * x * h + g * math.sqrt(h) * torch.randn_like(x)
    begin = exact(pair, schedule, times[:1], centres)[0]
    drift, diffusion = forward(schedule)
    assert p_value(evolve(drift, diffusion, begin, centres, times)[1], centres, x) > 1e-3
    for wrong in ((lambda t: 2**0.5 * diffusion(t)), (lambda t: 1.05 * diffusion(t))):
        assert p_value(evolve(drift, wrong, begin, centres, times)[1], centres, x) < 1e-3


def test_a_constant_drift_settles_to_the_exact_exponential():
    """Between walls, with no flux: p ∝ exp(2 b x / g²), which these fluxes hold to rounding on any grid."""
    centres = cells(20, 1.0)
    found = evolve(lambda x, t: 3.0 + 0 * x, lambda t: 1.2, torch.full((20,), 0.5), centres, torch.tensor([0.0, 40.0]))
    want = torch.exp(2 * 3.0 * centres / 1.44)
    torch.testing.assert_close(found[1] / found[1].sum(), want / want.sum(), atol=1e-7, rtol=1e-5)


def test_little_diffusion_on_a_coarse_grid_stays_positive():
    centres = cells(60, 3.0)
    spike = torch.zeros(60, dtype=F64)
    spike[10] = 10.0
    found = evolve(lambda x, t: torch.cos(3 * x) + 2, lambda t: 0.02, spike, centres, torch.linspace(0, 1, 5))
    assert found.min() > -1e-8 and (found.sum(1) - 10).abs().max() < 1e-12
    mean = (found * centres).sum(1) / 10
    assert (mean.diff() > 0.1).all()


GOOD = {
    "drift": lambda x, t: -x,
    "diffusion": lambda t: 1.0,
    "density": torch.ones(5),
    "centres": torch.linspace(-1, 1, 5),
    "times": torch.tensor([0.0, 1.0]),
}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"density": -torch.ones(5)}, ValueError, "density must not be negative"),
        ({"density": torch.ones(4)}, ValueError, "density"),
        ({"density": torch.full((5,), math.nan)}, ValueError, "density must be finite"),
        ({"density": torch.ones(5).long()}, TypeError, "density must be"),
        ({"centres": torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0])}, ValueError, "centres must increase in equal steps"),
        ({"centres": torch.linspace(1, -1, 5)}, ValueError, "centres must increase"),
        ({"centres": torch.zeros(2), "density": torch.ones(2)}, ValueError, "at least 3"),
        ({"times": torch.tensor([0.0, 0.0])}, ValueError, "times"),
        ({"times": torch.tensor([0.0])}, ValueError, "times"),
        ({"diffusion": lambda t: 0.0}, ValueError, "diffusion"),
        ({"rtol": 0.0}, ValueError, "rtol"),
    ],
)
def test_refuses(wrong, error, message):
    given = GOOD | wrong
    with refuses(error, message):
        evolve(**given)
