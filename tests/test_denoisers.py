"""Denoisers: what they hand the network, and what wrappers change."""

import pytest
import torch
from conftest import SCHEDULES, refuses

from companion import schedules as S
from companion.denoisers import Clipped, Denoiser, reschedule
from companion.predictions import KINDS, target_coefficients
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
