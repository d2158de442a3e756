"""Training times: each rule is unbiased against quadrature; who has the least variance; importance resumes exactly."""

import math

import pytest
import torch
from conftest import refuses
from scipy import integrate

from companion import schedules as S
from companion.times import Importance, Times, antithetic, logit_normal, uniform

TABLE = S.DiscreteVP.linear(50)
SCHEDULES = {"cosine": S.CosineVP(), "table": TABLE}


class Late(S.CosineVP):
    """A schedule that does not start at zero."""

    t_min, t_max = 0.2, 0.9


def heavy(schedule, t):
    """A loss that is large at few times, near the data, as an unweighted bound's is."""
    share = (t.double() - schedule.t_min) / (schedule.t_max - schedule.t_min)
    return 0.1 + 10 * torch.exp(-20 * share)


def mean_of_heavy(schedule):
    if isinstance(schedule, S.DiscreteVP):
        return heavy(schedule, torch.arange(1.0, schedule.t_max + 1)).mean().item()
    f = lambda t: heavy(schedule, torch.tensor(t)).item()  # noqa: E731
    return integrate.quad(f, schedule.t_min, schedule.t_max)[0] / (schedule.t_max - schedule.t_min)


def trained(schedule, rounds=40, **options):
    """An ``Importance`` that knows ``heavy``."""
    importance = Importance(schedule, **options)
    for i in range(rounds):
        t = uniform(schedule, 500, generator=torch.Generator().manual_seed(i)).t
        importance.update(t, heavy(schedule, t))
    assert (importance.counts >= importance.history).all()
    return importance


def estimates(draw, schedule, n=32, repeats=1000):
    """mean(weight × f) of many batches; each line is one."""
    generator = torch.Generator().manual_seed(1)
    batches = [draw(n, generator=generator) for _ in range(repeats)]
    return torch.stack([(b.weight * heavy(schedule, b.t)).mean() for b in batches])


def rules(schedule):
    return {
        "uniform": lambda n, **options: uniform(schedule, n, **options),
        "antithetic": lambda n, **options: antithetic(schedule, n, **options),
        "importance": trained(schedule),
    }


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_rule_estimates_the_mean_over_the_schedule_s_times(schedule):
    want, spread = mean_of_heavy(schedule), {}
    for name, draw in rules(schedule).items():
        found = estimates(draw, schedule)
        spread[name] = found.std().item()
        assert abs(found.mean() - want) < 4 * spread[name] / len(found) ** 0.5, name
    # covering the times evenly pays, and so does looking where the loss is; both at once are best here
    assert spread["uniform"] > 2 * spread["antithetic"] > 4 * spread["importance"]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_wrong_weights_are_biased(schedule):
    importance, want = trained(schedule), mean_of_heavy(schedule)
    wrong = {
        "p for 1/p": lambda w: 1 / w,
        "none": torch.ones_like,
        "its root": torch.sqrt,
    }
    for name, turn in wrong.items():

        def draw(n, generator, turn=turn):
            t, weight = importance(n, generator=generator)
            return Times(t, turn(weight))

        found = estimates(draw, schedule)
        assert abs(found.mean() - want) > 20 * found.std() / len(found) ** 0.5, name


def test_independent_draws_from_the_learned_distribution_have_less_variance_than_uniform_ones():
    """The gain is the distribution's, not the strata's alone: the variance of weight × f at a single draw."""
    schedule = S.CosineVP()
    draws = trained(schedule)(100_000)
    alone = uniform(schedule, 100_000)
    importance, even = (b.weight * heavy(schedule, b.t) for b in (draws, alone))
    assert importance.var() < 0.01 * even.var()
    # and the optimum, p ∝ f, whose variance would be 0, is nearly reached: what is left is f's slope inside a cell
    assert importance.std() < 0.15 * importance.mean()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_weights_have_mean_one_and_follow_the_definition(schedule):
    importance = trained(schedule, uniform_share=0.01)
    t, weight = importance(200_000, generator=torch.Generator().manual_seed(3))
    assert t.dtype == weight.dtype == torch.float32 and (t.diff() >= 0).all()
    assert abs(weight.double().mean() - 1) < 1e-3
    p = importance.probabilities()
    if schedule is TABLE:
        root = heavy(schedule, torch.arange(1.0, 51))  # at a node the loss is always the same
        torch.testing.assert_close(p, 0.99 * root / root.sum() + 0.01 / 50)
        found = torch.bincount(t.long(), minlength=51)[1:] / len(t)
        bins = t.long() - 1
    else:
        found = torch.histc(t.double(), 100, 0, 1) / len(t)
        bins = (t.double() * 100).long().clamp(max=99)
    torch.testing.assert_close(found.double(), p, atol=2e-5, rtol=0)
    right = (weight - 1 / (len(p) * p[bins])).abs() < 1e-5 * weight
    assert right.double().mean() > 0.999  # a few times round to the next cell in float32
    assert weight.max() <= 100


def test_the_root_of_the_mean_square_of_the_last_losses():
    importance = Importance(S.DiscreteVP.linear(2), history=3, uniform_share=1e-9)
    t = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0])
    importance.update(t, torch.tensor([9.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0]))  # the 9 is one too many in one update
    want = math.sqrt(14 / 3)
    assert importance.probabilities()[0].item() == pytest.approx(want / (want + 1), rel=1e-6)
    importance.update(torch.tensor([1.0]), torch.tensor([5.0]))  # the oldest, 1, goes
    want = math.sqrt((4 + 9 + 25) / 3)
    assert importance.probabilities()[0].item() == pytest.approx(want / (want + 1), rel=1e-6)
    assert abs(want - (2 + 3 + 5) / 3) > 0.2  # not the mean of the losses


def test_uniform_until_every_bin_has_its_history():
    schedule = S.CosineVP()
    importance = Importance(schedule, bins=4, history=2)
    importance.update(torch.tensor([0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.9]), torch.arange(7.0))
    generator = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    before = importance(64, generator=generator())
    want = antithetic(schedule, 64, generator=generator())
    torch.testing.assert_close(before.t, want.t)
    assert torch.equal(before.weight, want.weight)
    importance.update(torch.tensor([0.95]), torch.tensor([6.0]))
    assert (importance(64, generator=generator()).t - want.t).abs().max() > 0.05
    importance.update(torch.tensor([0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.9, 0.9]), torch.zeros(8))
    assert torch.equal(importance(64, generator=generator()).weight, want.weight)  # nothing is left to prefer


def test_a_late_start_and_the_cells():
    importance = Importance(Late(), bins=7, history=1)
    t = torch.tensor([0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85])
    importance.update(t, torch.arange(1.0, 8.0))
    assert importance.losses[:-1, 0].tolist() == list(range(1, 8))
    drawn = importance(1000).t
    assert 0.2 <= drawn.min() and drawn.max() <= 0.9
    assert (drawn > 0.8).double().mean() == pytest.approx(7 / 28, abs=2e-3)


def test_a_state_resumes_the_draws():
    one, other = trained(TABLE), Importance(TABLE)
    state = one.state_dict()
    one.update(torch.ones(3), torch.ones(3))
    other.load_state_dict(state)
    other.update(torch.ones(3), torch.ones(3))
    draws = [i(20, generator=torch.Generator().manual_seed(2)) for i in (one, other)]
    assert torch.equal(draws[0].t, draws[1].t) and torch.equal(draws[0].weight, draws[1].weight)


def test_antithetic_times_are_even():
    for schedule in (S.CosineVP(), S.VE()):
        t, weight = antithetic(schedule, 1000)
        assert ((t * 1000).floor() == torch.arange(1000)).float().mean() > 0.99
        assert (weight == 1).all()
    t = antithetic(S.DiscreteVP.linear(10), 1000).t
    assert sorted(set(t.tolist())) == list(range(1, 11))
    assert (torch.bincount(t.long())[1:] - 100).abs().max() <= 1


def test_uniform_times_are_independent():
    """Gaps between sorted independent times are far from even."""
    t = uniform(S.CosineVP(), 10_000).t
    assert abs(t.mean() - 0.5) < 4 / math.sqrt(12 * 10_000) and abs(t[1:].dot(t[:-1]) / 9999 - 0.25) < 0.02
    assert sorted(set(uniform(S.DiscreteVP.linear(10), 1000).t.tolist())) == list(range(1, 11))


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-0.6, 0.4), (1, 2)])
def test_logit_normal_times_have_the_density_of_torch_distributions(loc, scale):
    """A normal number through a sigmoid: the distribution function from quadrature of torch's density."""
    base = torch.distributions.Normal(torch.tensor(float(loc), dtype=torch.float64), float(scale))
    law = torch.distributions.TransformedDistribution(base, torch.distributions.SigmoidTransform())
    density = lambda t: law.log_prob(torch.tensor(t, dtype=torch.float64)).exp().item()  # noqa: E731
    assert integrate.quad(density, 0, 1, epsabs=1e-10)[0] == pytest.approx(1, abs=1e-6)
    t, weight = logit_normal(loc, scale)(20_000, generator=torch.Generator().manual_seed(0))
    assert t.dtype == weight.dtype == torch.float32 and (weight == 1).all() and (t[1:] >= t[:-1]).all()
    for at in (0.1, 0.4, 0.5, 0.7, 0.95):  # strata: off by one of them at most
        assert abs((t < at).double().mean().item() - integrate.quad(density, 0, at)[0]) < 1.01 / 20_000 + 1e-6
    for wrong in (
        logit_normal(loc + 0.1, scale),
        logit_normal(loc, 1.1 * scale),
        lambda n: antithetic(S.CosineVP(), n),
    ):
        apart = [abs((wrong(20_000).t < at).double().mean() - (t < at).double().mean()) for at in (0.1, 0.4, 0.5, 0.9)]
        assert max(apart) > 5e-3


def test_each_logit_normal_time_is_so_by_itself():
    """One number of a small batch, over many shifts, has mean 1/2 and the law's second moment."""
    draw, generator = logit_normal(0.0, 1.0), torch.Generator().manual_seed(0)
    shuffled = [draw(4, generator=generator).t for _ in range(4000)]
    t = torch.stack(shuffled).double()
    normal = lambda z: math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) / (1 + math.exp(-z)) ** 2  # noqa: E731
    second = integrate.quad(normal, -12, 12)[0]
    batches = t.square().mean(1)
    assert abs(t.mean(1).mean() - 0.5) < 5 * t.mean(1).std() / 4000**0.5 + 1e-6
    assert abs(batches.mean() - second) < 5 * batches.std() / 4000**0.5


def test_logit_normal_refuses():
    with refuses(ValueError, "scale"):
        logit_normal(0.0, 0.0)
    with refuses(ValueError, "loc"):
        logit_normal(math.inf)
    with refuses(ValueError, "n must be"):
        logit_normal()(0)


def test_bad_arguments():
    for draw in (uniform, antithetic):
        with refuses(ValueError, "n must be"):
            draw(TABLE, 0)
    with refuses(ValueError, "n must be"):
        Importance(TABLE)(0)
    for options, message in [({"history": 0}, "history"), ({"uniform_share": 0.0}, "share"), ({"bins": 0}, "bins")]:
        with refuses(ValueError, message):
            Importance(TABLE, **options)
    with refuses(ValueError, "losses and t"):
        Importance(TABLE).update(torch.ones(3), torch.ones(2))
    with refuses(ValueError, "losses and this object's"):
        Importance(TABLE).load_state_dict(Importance(TABLE, history=3).state_dict())
