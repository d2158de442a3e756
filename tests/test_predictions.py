"""Prediction kinds: round trips on every schedule, and clear words where a kind ends."""

import pytest
import torch
from conftest import inside, refuses

from companion import schedules as S
from companion.predictions import KINDS, make_target, target_coefficients, to_x0, to_x0_eps


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, schedule):
    t = inside(schedule)
    x0, eps = torch.randn(2, 7, 3, dtype=torch.float64)
    x = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * eps
    output = make_target(kind, x0, eps, schedule, t)
    back = to_x0_eps(kind, output, x, schedule, t)
    assert torch.equal(to_x0(kind, output, x, schedule, t), back[0])
    assert all(map(torch.equal, schedule.alpha_sigma(t), (schedule.alpha(t), schedule.sigma(t))))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = target_coefficients(kind, schedule, t)
    # rounding grows with the condition of the 2×2 system, so the bound is 1e-12 times that
    condition = (1 + p.abs() + q.abs()) * (1 + sigma) / (alpha * q - sigma * p).abs()
    for got, want in zip(back, (x0, eps), strict=True):
        assert ((got - want).abs().amax(1) / condition.clamp(min=1)).max() < 1e-12


def test_kinds_against_their_definitions(mixture):
    schedule, t = S.CosineVP(), torch.tensor(0.37, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = mixture.sample(9, alpha, sigma)
    x0 = mixture.denoise(x, alpha, sigma)
    eps = (x - alpha * x0) / sigma
    torch.testing.assert_close(make_target("score", x0, eps, schedule, t), mixture.score(x, alpha, sigma))
    h = 1e-6  # v is the derivative by the angle on a variance-preserving path
    angle = torch.atan2(sigma, alpha)
    turned = torch.cos(angle + h) * x0 + torch.sin(angle + h) * eps
    torch.testing.assert_close(make_target("v", x0, eps, schedule, t), (turned - x) / h, atol=1e-5, rtol=1e-5)
    later = schedule.alpha(t + h) * x0 + schedule.sigma(t + h) * eps
    torch.testing.assert_close(make_target("velocity", x0, eps, schedule, t), (later - x) / h, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind,schedule,t",
    [
        ("eps", S.CosineVP(), 1.0),
        ("score", S.CosineVP(), 1.0),
        ("eps", S.RectifiedFlow(), 1.0),
        ("x0", S.CosineVP(), 0.0),
        ("score", S.CosineVP(), 0.0),
        ("velocity", S.LinearVP(), 0.0),
        ("eps", S.rescale_zero_terminal_snr(S.DiscreteVP.linear()), 1000.0),
    ],
)
def test_singular_ends_say_so(kind, schedule, t):
    x = torch.ones(2, 3, dtype=torch.float64)
    for time in (torch.tensor(t, dtype=torch.float64), torch.tensor([t, t], dtype=torch.float64)):
        with pytest.raises(ValueError, match=f"'{kind}' does not determine x0 and eps at t = {t:g}"):
            to_x0_eps(kind, x, x, schedule, time)


def test_v_and_flow_have_no_singular_end():
    x = torch.randn(2, 3, dtype=torch.float64)
    for kind, schedule in (("v", S.CosineVP()), ("v", S.LinearVP()), ("velocity", S.RectifiedFlow())):
        for t in (0.0, 1.0):
            for part in to_x0_eps(kind, x, x, schedule, torch.tensor(t, dtype=torch.float64)):
                assert torch.isfinite(part).all()


def test_bad_arguments():
    x, t = torch.ones(2, 3), torch.tensor(0.5)
    with refuses(ValueError, "kind must be one of"):
        to_x0_eps("noise", x, x, S.CosineVP(), t)
    with refuses(ValueError, "same shape"):
        to_x0_eps("v", x, x[:1], S.CosineVP(), t)
    with refuses(ValueError, "t must have shape"):
        to_x0_eps("v", x, x, S.CosineVP(), torch.ones(3))
    with refuses(TypeError, "t must be a floating"):
        make_target("v", x, x, S.CosineVP(), torch.tensor(1))
