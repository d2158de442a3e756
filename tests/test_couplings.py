"""Couplings against sorting, brute force and POT's other solver; reflow against the monotone map on the line."""

import itertools

import pytest
import torch
from conftest import refuses

from companion import samplers
from companion import schedules as S
from companion.couplings import independent, optimal_transport, reflow, straightness, transport_cost
from companion.toy import GaussianMixture

F64 = torch.float64


def draw(n, *shape, seed=0):
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def is_permutation(found, noise):
    """The same rows, all different, in some order."""
    rows, known = (torch.unique(side.flatten(1), dim=0) for side in (found, noise))
    return len(rows) == len(noise) and torch.equal(rows, known)


# ---- rules ----------------------------------------------------------------------------------------------------------


def test_independent_keeps_the_order():
    noise = draw(5, 2)
    assert torch.equal(independent(draw(5, 2, seed=1), noise), noise)


def test_on_the_line_transport_sorts():
    x0, noise = draw(200, 1), draw(200, 1, seed=1)
    found = optimal_transport(x0, noise)
    assert torch.equal(found[x0[:, 0].argsort(), 0], noise[:, 0].sort()[0])


def test_no_order_of_a_few_costs_less():
    x0, noise = draw(6, 1, 2, 2), draw(6, 1, 2, 2, seed=1)
    least = min(transport_cost(x0, noise[list(order)]).sum() for order in itertools.permutations(range(6)))
    assert transport_cost(x0, optimal_transport(x0, noise)).sum() == pytest.approx(least.item(), abs=1e-12)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=["plane", "images"])
def test_a_cost_no_higher_and_the_cost_of_another_library_s_solver(shape):
    from scipy.optimize import linear_sum_assignment

    for seed in range(5):
        x0, noise = 1 + 2 * draw(64, *shape, seed=seed), draw(64, *shape, seed=50 + seed)
        found = optimal_transport(x0, noise)
        assert is_permutation(found, noise)
        costs = torch.cdist(x0.flatten(1), noise.flatten(1)) ** 2
        rows, columns = linear_sum_assignment(costs.numpy())
        assert transport_cost(x0, found).sum() == pytest.approx(costs[rows, columns].sum().item(), rel=1e-12)
        assert transport_cost(x0, found).mean() < transport_cost(x0, noise).mean()


def test_ties_still_give_each_noise_once():
    noise = draw(30, 2)
    assert is_permutation(optimal_transport(torch.zeros(30, 2, dtype=F64), noise), noise)
    twice = draw(4, 2).repeat(5, 1)
    assert is_permutation(optimal_transport(twice, noise[:20]), noise[:20])


def test_one_sample_has_no_choice():
    noise = draw(1, 3)
    assert torch.equal(optimal_transport(draw(1, 3, seed=1), noise), noise)


@pytest.mark.parametrize("rows", [False, True], ids=["classes", "tokens"])
def test_noise_changes_places_within_a_condition_only(rows):
    x0, noise, cond = draw(60, 2), draw(60, 2, seed=1), torch.arange(60) % 3
    given = torch.stack([cond, 7 - cond], 1) if rows else cond
    found = optimal_transport(x0, noise, given)
    for k in range(3):
        of = cond == k
        assert is_permutation(found[of], noise[of]) and torch.equal(found[of], optimal_transport(x0[of], noise[of]))
    assert not torch.equal(found, optimal_transport(x0, noise))


def test_across_classes_the_noise_tells_the_class():
    """What is wrong without cond: two classes, left and right; a sampler's noise is independent of the class."""
    cond = torch.arange(400) % 2
    x0, noise = draw(400, 1) * 0.1 + 2.0 * cond[:, None] - 1, draw(400, 1, seed=1)
    means = {name: optimal_transport(x0, noise, given)[cond == 1].mean() for name, given in
             (("across", None), ("within", cond))}  # fmt: skip
    assert abs(means["within"]) < 4 / 200**0.5 and means["across"] == pytest.approx((2 / torch.pi) ** 0.5, abs=0.1)


def test_each_side_keeps_its_law(mixture):
    """Over many batches the coupled noise is still normal, by every moment up to the fourth."""
    batches = [optimal_transport(mixture.sample(32), draw(32, 2, seed=seed)) for seed in range(60)]
    noise = torch.cat(batches)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (noise**power).mean(0).sub(moment).abs().max() < 4 * (spread / len(noise)) ** 0.5


def test_refusals():
    x0 = draw(4, 2)
    for rule in (independent, optimal_transport):
        with refuses(ValueError, "noise and x0"):
            rule(x0, x0[:3])
        with refuses(ValueError, "cond must have one condition"):
            rule(x0, x0, torch.zeros(3))
        with refuses(TypeError, "floating"):
            rule(torch.zeros(4, 2, dtype=torch.long), x0)
    with refuses(ValueError, "noise must be finite"):
        optimal_transport(x0, x0 / 0)
    with refuses(ValueError, "as many|equally long"):
        straightness(torch.zeros(3, 4, 2), torch.tensor([1.0, 0.0]))
    with refuses(ValueError, "decrease"):
        straightness(torch.zeros(2, 4, 2), torch.tensor([0.0, 1.0]))


# ---- cost and straightness ------------------------------------------------------------------------------------------


def test_the_cost_is_the_squared_distance():
    """E||x0 − noise||² of independent Gaussians is the sum of both second moments."""
    assert transport_cost(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, -2.0]]])).tolist() == [25.0]
    cost = transport_cost(2 + 3 * draw(50_000, 2), draw(50_000, 2, seed=1))
    assert abs(cost.mean() - 2 * (4 + 9 + 1)) < 4 * cost.std() / 50_000**0.5


def walk(path, ts):
    return torch.stack([path(t) for t in ts])


def test_a_straight_line_at_even_speed_is_straight_on_any_grid():
    start, move = draw(7, 3), draw(7, 3, seed=1)
    ts = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.0], dtype=F64)
    assert straightness(walk(lambda t: start + t * move, ts), ts).abs().max() < 1e-28


def test_straightness_is_the_integral():
    """x = a t + b t² deviates by b (2t − 1): the integral is |b|²/3, of which steps leave out a share 1/steps²."""
    a, b = draw(5, 2, 2), draw(5, 2, 2, seed=1)
    for steps in (10, 40):
        ts = torch.linspace(1, 0, steps + 1, dtype=F64)
        found = straightness(walk(lambda t: a * t + b * t**2, ts), ts)
        exact = b.square().flatten(1).sum(1) / 3
        assert torch.allclose(found, exact * (1 - 1 / steps**2), rtol=1e-12)
    uneven = 1 - torch.linspace(0, 1, 2001, dtype=F64) ** 3
    assert torch.allclose(straightness(walk(lambda t: a * t + b * t**2, uneven), uneven), exact, rtol=1e-5)


def test_on_gaussian_data_straightness_is_quadrature():
    """The flow of N(0, s²) on the straight path: x(t) = x(1) sqrt((1 − t)² s² + t²)."""
    from scipy import integrate

    s, schedule = 0.3, S.RectifiedFlow()
    speed = lambda t: (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2) ** 0.5  # noqa: E731
    exact = integrate.quad(lambda t: (speed(t) - (1 - s)) ** 2, 0, 1)[0]
    mixture, ts = GaussianMixture([1.0], [[0.0]], stds=s), S.linspace(schedule, 400)
    x = torch.ones(1, 1, dtype=F64)
    denoise = mixture.denoiser(schedule)
    states = torch.stack([x, *(state.x for state in samplers.dpmpp_2m(denoise, schedule, x, ts))])
    assert straightness(states, ts).item() == pytest.approx(exact, rel=2e-3)
    assert states[-1].item() == pytest.approx(s, rel=1e-3)


# ---- reflow ---------------------------------------------------------------------------------------------------------


def monotone(mixture, noise):
    """The map that keeps quantiles, by bisection of the mixture's distribution function."""
    share = torch.special.ndtr(noise[:, 0])
    low, high = torch.full_like(noise, -4), torch.full_like(noise, 4)
    for _ in range(60):
        middle = (low + high) / 2
        below = (mixture.cdf(middle) < share)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


@pytest.mark.parametrize("schedule", [S.RectifiedFlow(), S.CosineVP()], ids=["straight", "cosine"])
def test_on_the_line_reflow_is_the_monotone_map_and_costs_less(schedule):
    mixture, noise = GaussianMixture.two(), draw(1500, 1)
    ts = S.linspace(schedule, 120)
    denoise = mixture.denoiser(schedule)
    x0 = reflow(denoise, schedule, noise, ts, sampler=samplers.dpmpp_2m, batch=700)
    apart = (x0 - monotone(mixture, noise)).abs()
    assert apart.mean() < 1e-3 and apart.max() < 0.15  # the last between the two Gaussians, where few paths go
    drawn = mixture.sample(1500)
    cost, before = transport_cost(x0, noise), transport_cost(drawn, noise)
    assert before.mean() - cost.mean() > 10 * before.std() / 1500**0.5
    # nor does any other order of these pairs cost less
    assert cost.sum() == pytest.approx(transport_cost(x0, optimal_transport(x0, noise)).sum().item(), rel=1e-6)
    # and the paths between the pairs do not cross: the new flow's velocity is that of each pair
    assert (x0[noise[:, 0].argsort(), 0].diff() >= 0).all()


def test_reflow_hands_each_noise_its_condition_and_goes_on_in_batches():
    schedule, noise, cond = S.RectifiedFlow(), draw(7, 1).float(), torch.tensor([0, 1, 2, 3, 4, 5, 6])
    ts, sizes = S.linspace(schedule, 3), []

    def denoise(x, t, given):
        sizes.append(len(x))
        return given[:, None].to(x)

    found = reflow(denoise, schedule, noise, ts, cond=cond, batch=3)
    assert found[:, 0].tolist() == cond.tolist() and sizes == [3] * 6 + [1] * 3 and found.dtype == torch.float32


def test_reflow_starts_from_noise_of_the_grid_s_first_sigma():
    """On a schedule that ends at sigma = 50 the standard normal number is scaled."""
    schedule, noise = S.VE(), draw(10, 1)
    ts = S.linspace(schedule, 4)
    stays = reflow(lambda x, t: x, schedule, noise, ts)
    assert torch.allclose(stays, 50 * noise, rtol=1e-12)


def test_reflow_refuses():
    schedule, noise, ts = S.RectifiedFlow(), draw(4, 1), torch.tensor([1.0, 0.0])
    with refuses(ValueError, "batch must be"):
        reflow(lambda x, t: x, schedule, noise, ts, batch=0)
    with refuses(ValueError, "cond must have one condition"):
        reflow(lambda x, t, c: x, schedule, noise, ts, cond=torch.zeros(3))
    with refuses(ValueError, "decrease"):
        reflow(lambda x, t: x, schedule, noise, ts.flip(0))


def test_small_batches_are_always_permuted():
    """Thousands of them: POT takes a cost below zero for infeasible once in some hundred and returns no plan."""
    generator = torch.Generator().manual_seed(0)
    for n in range(3000):
        x0, noise = torch.randn(2, 2 + n % 3, 2, generator=generator)
        moved = optimal_transport(x0, noise)
        assert (torch.cdist(moved, noise) == 0).sum(0).tolist() == [1] * len(noise)
