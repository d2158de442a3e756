"""Denoisers: what they hand the network, and what wrappers change."""

import math

import pytest
import torch
from conftest import NOT_PRESERVING, SCHEDULES, inside, refuses
from torch.utils._python_dispatch import TorchDispatchMode

from companion import nets, training
from companion import schedules as S
from companion.denoisers import Clipped, Denoiser, EDMPrecond, reschedule
from companion.losses import simple_loss
from companion.predictions import KINDS, make_target, target_coefficients
from companion.samplers import ddim, sample


class Recorder(torch.nn.Module):
    """A network that outputs the exact answer of its kind for data that are one point, and records its times."""

    def __init__(self, schedule, kind, point):
        super().__init__()
        self.schedule, self.kind, self.point, self.times = schedule, kind, point, []

    def forward(self, x, t, cond=None):
        self.times.append(t)
        p, q = target_coefficients(self.kind, self.schedule, t[:1].double())
        alpha, sigma = self.schedule.alpha(t[:1].double()), self.schedule.sigma(t[:1].double())
        return (p * self.point + q * (x - alpha * self.point) / sigma).to(x)


class Operators(TorchDispatchMode):
    """The operators that are called inside, by name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


def test_a_denoiser_asks_for_little_beside_its_network():
    schedule, x = S.DiscreteVP.linear(), torch.randn(2, 1, 4, 4)
    model = Denoiser(torch.nn.Identity(), schedule, "v")
    model.net.forward = lambda x, t, cond: x
    with torch.no_grad(), Operators() as one:
        model(x, torch.tensor(500.0, dtype=torch.float64))
    with torch.no_grad(), Operators() as apart:  # as a plain reading of the formulas would have it
        schedule.alpha(t := torch.tensor(500.0, dtype=torch.float64)), schedule.sigma(t)
    assert one.seen.count("aten::embedding") == 1 < apart.seen.count("aten::embedding")
    assert len(one.seen) < 50


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_point(kind):
    schedule, point = S.CosineVP(), torch.tensor([0.3, -0.7], dtype=torch.float64)
    net = Recorder(schedule, kind, point)
    ts = S.linspace(schedule, 12, t_start=0.98)
    x = torch.randn(5, 2, dtype=torch.float64)
    end = sample(Denoiser(net, schedule, kind), schedule, x, ts)
    torch.testing.assert_close(end, point.expand(5, 2), atol=1e-9, rtol=1e-9)
    assert [t.shape for t in net.times] == [(5,)] * 12
    # the network is asked at the node where x stands: not one node off
    torch.testing.assert_close(torch.stack([t[0] for t in net.times]), ts[:-1])


def test_clipped_recomputes_eps():
    schedule = S.CosineVP()
    outside = lambda x, t: torch.full_like(x, 3.0)  # noqa: E731
    clipped = Clipped(outside)
    ts = torch.tensor([0.8, 0.5], dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64)
    (state,) = ddim(clipped, schedule, x, ts)
    a, s = schedule.alpha(ts), schedule.sigma(ts)
    eps = (x - a[0] * 1.0) / s[0]
    torch.testing.assert_close(state.x, a[1] * 1.0 + s[1] * eps)
    stale = a[1] * 1.0 + s[1] * (x - a[0] * 3.0) / s[0]
    assert (state.x - stale).abs().max() > 0.1


class Doubling(torch.nn.Module):
    """Two channels for one: 0.2, and what eq. 15's v is made from; works in bfloat16 whatever comes."""

    def forward(self, x, t, cond=None):
        return torch.cat([torch.full_like(x, 0.2), x + 1], 1).bfloat16()


def test_a_learned_variance_is_the_second_half_of_the_channels():
    x, t = torch.randn(5, 3, 4, 4), torch.tensor(0.5)
    denoiser = Denoiser(Doubling(), S.CosineVP(), "x0", learned_variance=True)
    x0, v = denoiser.with_variance(x, t)
    assert x0.shape == v.shape == x.shape and x0.dtype == v.dtype == torch.float32
    torch.testing.assert_close(x0, torch.full_like(x, 0.2), rtol=1e-2, atol=0)
    assert torch.equal(x0, denoiser(x, t)) and torch.equal(denoiser.output(x, t), denoiser.outputs(x, t)[0])
    torch.testing.assert_close(v, 1 / (1 + torch.exp(-x - 1)), rtol=0, atol=0.01)
    clipped, same = Clipped(denoiser, -0.1, 0.1).with_variance(x, t)
    assert torch.equal(clipped, torch.full_like(x, 0.1)) and torch.equal(same, v)


def test_no_variance_where_none_was_learned():
    x, t = torch.randn(5, 3), torch.tensor(0.5)
    plain = Denoiser(torch.nn.Identity(), S.CosineVP(), "v")
    for denoise in (plain, Clipped(plain)):
        with refuses(TypeError, "learned_variance=True"):
            denoise.with_variance(x, t)
    with refuses(TypeError, "denoise must have with_variance"):
        Clipped(lambda x, t: x).with_variance(x, t)
    with refuses(ValueError, "net must have 6 outputs"):
        Denoiser(lambda x, t, cond: x, S.CosineVP(), "v", learned_variance=True)(x, t)


def test_bad_arguments():
    net = torch.nn.Identity()
    with refuses(ValueError, "kind must be one of"):
        Denoiser(net, S.CosineVP(), "epsilon")
    with refuses(ValueError, "low must be below high"):
        Clipped(net, 1.0, -1.0)
    with refuses(ValueError, "t must have shape"):
        Denoiser(net, S.CosineVP(), "v")(torch.ones(2, 3), torch.ones(3))


@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "flow", "table-cosine"])
def test_reschedule_is_the_exact_denoiser_of_the_other_schedule(name, mixture):
    source, target = S.CosineVP(0.0), SCHEDULES[name]
    for share in (0.3, 0.7):
        t = torch.tensor(target.t_min + share * (target.t_max - target.t_min), dtype=torch.float64)
        x = torch.randn(20, 2, dtype=torch.float64) * torch.hypot(target.alpha(t), target.sigma(t))
        moved = reschedule(mixture.denoiser(source), source, target)
        assert (moved(x, t) - mixture.denoiser(target)(x, t)).abs().max() < 1e-9
        per_sample = moved(x.float(), t.expand(20).float())
        assert per_sample.dtype == torch.float32 and (per_sample - moved(x, t)).abs().max() < 1e-3


def test_reschedule_at_the_empty_end_and_beyond_the_source(mixture):
    x, one = torch.randn(5, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    found = reschedule(mixture.denoiser(S.CosineVP(0.0)), S.CosineVP(0.0), S.RectifiedFlow())(x, one)
    assert (found - mixture.mean()).abs().max() < 1e-9  # alpha = 0 on both
    with refuses(ValueError, "half_log_snr"):
        reschedule(mixture.denoiser(S.LinearVP()), S.LinearVP(), S.RectifiedFlow())(x, one)


# ---- preconditioning ------------------------------------------------------------------------------------------------


def scaled(net, schedule, x, t, coefficients):
    """x0_hat by given coefficients, written out."""
    c_skip, c_out, c_in, c_noise = coefficients
    return c_skip * x + c_out * net(c_in * x, c_noise.expand(len(x)), None)


def odd(x, t, cond):
    """A network that depends on all that it is given."""
    return torch.sin(3 * x) + t[:, None] + (0 if cond is None else cond[:, None])


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_preconditioning_is_that_of_an_independent_library(schedule, spread):
    """Its formulas are for x / alpha at noise level sigma / alpha; their v is the negative of this F."""
    from diffusers import EDMEulerScheduler

    theirs = EDMEulerScheduler(sigma_data=spread, prediction_type="epsilon")
    denoiser = EDMPrecond(odd, schedule, spread)
    for t in inside(schedule, 5):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = torch.randn(9, 3, dtype=torch.float64) * torch.hypot(alpha, sigma)
        level, per = (sigma / alpha).item(), x / alpha
        raw = odd(theirs.precondition_inputs(per, level), theirs.precondition_noise(level).double().expand(9), None)
        found = denoiser(x, t)
        tolerance = {"rtol": 1e-6, "atol": 1e-6}  # their log(sigma) is in float32
        torch.testing.assert_close(found, theirs.precondition_outputs(per, raw, level), **tolerance)
        torch.testing.assert_close(denoiser.output(x, t), raw, **tolerance)
        torch.testing.assert_close(denoiser(x, t.expand(9)), found, rtol=1e-12, atol=1e-12)
        coefficients = denoiser.coefficients(t)
        torch.testing.assert_close(scaled(odd, schedule, x, t, coefficients), found)
        if abs(alpha - 1) > 0.1:
            for at in (0, 2):  # as if x were x / alpha
                wrong = [c * alpha if i == at else c for i, c in enumerate(coefficients)]
                assert (scaled(odd, schedule, x, t, wrong) - found).abs().max() > 1e-3


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["cosine", "ve", "flow"])
def test_the_network_s_input_and_target_have_unit_variance(name, spread):
    """On data that are no Gaussian: two points and their noise, by Monte Carlo with its standard error."""
    schedule, n = SCHEDULES[name], 200_000
    denoiser, seen = EDMPrecond(lambda x, t, cond: seen.append(x) or x, schedule, spread), []
    for t in inside(schedule, 4):
        x0 = spread * torch.randn(n, 1, dtype=torch.float64).sign()
        eps = torch.randn(n, 1, dtype=torch.float64)
        x = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
        denoiser.output(x, t)
        for value in (seen.pop(), denoiser.target(x0, eps, t)):
            squares = value**2
            assert abs(squares.mean() - 1) < 4 * squares.std() / n**0.5 < 0.05
        # c_skip is the slope of the regression of x0 on x, and c_out the deviation that it leaves
        c_skip, c_out, *_ = denoiser.coefficients(t)
        residual = x0 - c_skip * x
        assert abs((residual * x).mean()) < 4 * (residual * x).std() / n**0.5
        for other in (0.9 * c_skip, 1.1 * c_skip):
            assert (x0 - other * x).square().mean() > residual.square().mean() or c_skip**2 * x.var() < 0.01 * spread**2
        assert c_out**2 == pytest.approx(residual.square().mean().item(), rel=0.03)
        torch.testing.assert_close(denoiser.target(x0, eps, t), residual / c_out, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - NOT_PRESERVING))
def test_with_unit_variance_it_is_minus_v(name):
    schedule = SCHEDULES[name]
    x0, eps = torch.randn(2, 7, 3, dtype=torch.float64)
    t = inside(schedule)
    denoiser = EDMPrecond(odd, schedule, 1.0)
    torch.testing.assert_close(denoiser.target(x0, eps, t), -make_target("v", x0, eps, schedule, t))
    by_v = Denoiser(lambda x, t, cond: -odd(x, denoiser.coefficients(t)[3], cond), schedule, "v")
    torch.testing.assert_close(denoiser(x0, t), by_v(x0, t))


def test_the_simple_loss_weighs_x0_by_one_over_c_out_squared():
    schedule, x0, noise = S.RectifiedFlow(), *torch.randn(2, 6, 3, dtype=torch.float64)
    denoiser, t = EDMPrecond(odd, schedule, 0.7), torch.rand(6, dtype=torch.float64)
    x = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * noise
    squares = (denoiser(x, t, torch.arange(6)) - x0).square().mean(1)
    level = schedule.sigma(t) / schedule.alpha(t)
    weight = (level**2 + 0.7**2) / (level * 0.7) ** 2  # lambda(sigma) of Karras et al. 2022, table 1
    found = simple_loss(denoiser, x0, t, noise, torch.arange(6), per_sample=True)
    torch.testing.assert_close(found, weight * squares)
    torch.testing.assert_close(simple_loss(denoiser, x0, t, noise, torch.arange(6)), found.mean())
    for wrong in (weight.sqrt(), 1 / weight, torch.ones_like(weight)):
        assert (wrong * squares - found).abs().max() > 0.05


def test_a_preconditioned_network_learns_the_denoiser():
    """Nine points in ten at ½, the others at −½: E[x0 | x] = ½ tanh(½ alpha x / sigma² + ½ log 9)."""
    schedule = S.LinearLogSNR(4.0, -4.0)
    denoiser = EDMPrecond(nets.MLP(1, 48, 2, time_scale=10.0), schedule, 0.5)

    def draw(n):
        return torch.where(torch.rand(n, 1) < 0.9, 0.5, -0.5)

    steps = training.train(denoiser, draw(20_000), steps=300, batch=256, lr=1e-2, progress=False)
    losses = [step.loss.item() for step in steps]
    assert sum(losses[:5]) / 5 > 0.8 and sum(losses[-50:]) / 50 < 0.5
    for t in inside(schedule, 5).float():
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * draw(4000) + sigma * torch.randn(4000, 1)
        right = 0.5 * torch.tanh(0.5 * alpha * x / sigma**2 + 0.5 * math.log(9))
        error, of_c_skip = (
            (guess - right).square().mean().sqrt() for guess in (denoiser(x, t), denoiser.coefficients(t)[0] * x)
        )
        assert error < 0.1 and error < 0.6 * of_c_skip


def test_a_preconditioned_network_keeps_dtypes_and_hands_on_conditions():
    seen = []

    def net(x, t, cond):
        seen.append((x.dtype, t.dtype, t.shape, cond))
        return x.bfloat16()

    denoiser, x = EDMPrecond(net, S.CosineVP(), cond="class"), torch.randn(4, 2)
    assert denoiser(x, torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float32
    denoiser(x, torch.full((4,), 0.5), "another")
    assert seen == [(torch.float32, torch.float32, (4,), name) for name in ("class", "another")]
    assert len(list(EDMPrecond(nets.MLP(2, 8, 1), S.CosineVP()).parameters())) > 0


def test_preconditioning_needs_a_finite_noise_level():
    denoiser, x = EDMPrecond(odd, S.CosineVP()), torch.randn(2, 3)
    for t in (torch.tensor(0.0), torch.tensor(1.0), torch.tensor([0.5, 1.0])):
        for call in (lambda t: denoiser(x, t), lambda t: denoiser.target(x, x, t), denoiser.coefficients):
            with refuses(ValueError, "t must be a time at which alpha > 0 and sigma > 0"):
                call(t)
    with refuses(ValueError, "sigma_data must be"):
        EDMPrecond(odd, S.CosineVP(), 0.0)
    with refuses(ValueError, "t must have shape"):
        denoiser(x, torch.full((3,), 0.5))
    with refuses(ValueError, "x0 and eps must have the same shape"):
        denoiser.target(x, x[:1], torch.tensor(0.5))
