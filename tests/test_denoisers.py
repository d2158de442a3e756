"""Denoisers: what they hand the network, and what wrappers change."""

import pytest
import torch
from conftest import refuses

from companion import schedules as S
from companion.denoisers import Clipped, Denoiser
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


def test_bad_arguments():
    net = torch.nn.Identity()
    with refuses(ValueError, "kind must be one of"):
        Denoiser(net, S.CosineVP(), "epsilon")
    with refuses(ValueError, "low must be below high"):
        Clipped(net, 1.0, -1.0)
    with refuses(ValueError, "t must have shape"):
        Denoiser(net, S.CosineVP(), "v")(torch.ones(2, 3), torch.ones(3))
