"""The forward process against simulation: moments of the chain, Bayes for the posterior, the SDE."""

import torch
from conftest import between, inside, refuses

from companion import schedules as S
from companion.forward import q_posterior, q_sample, sde_coefficients


def test_q_sample_is_the_chain_of_single_steps():
    schedule = S.DiscreteVP.linear(20, 0.01, 0.05)
    x = torch.full((200_000,), 1.5, dtype=torch.float64)
    for beta in schedule.betas.tolist():
        x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn_like(x)
    t = torch.tensor(20.0, dtype=torch.float64)
    once = q_sample(torch.full((200_000,), 1.5, dtype=torch.float64), t, schedule)
    error = 5 * (2 / len(x)) ** 0.5
    assert abs(once.mean() - x.mean()) < error and abs(once.var() - x.var()) < 2 * error
    assert abs(once.var() - schedule.sigma(t)) > 4 * error  # sigma in place of sigma² would show


def test_q_sample_takes_given_noise_and_times(schedule):
    t = inside(schedule, 4)
    x0, eps = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    x = q_sample(x0, t, schedule, eps)
    for i in range(4):
        want = schedule.alpha(t[i]) * x0[i] + schedule.sigma(t[i]) * eps[i]
        torch.testing.assert_close(x[i], want)


def test_posterior_is_bayes(schedule):
    s, t = inside(schedule, 7)[[2, 4]]
    x0, x = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.2]], dtype=torch.float64)
    alpha_s, sigma_s, alpha_t, sigma_t = (f(u) for u in (s, t) for f in (schedule.alpha, schedule.sigma))
    step = alpha_t / alpha_s
    added = sigma_t**2 - step**2 * sigma_s**2
    grid = alpha_s * x0 + sigma_s * torch.linspace(-12, 12, 40001, dtype=torch.float64)
    log = -((grid - alpha_s * x0) ** 2) / (2 * sigma_s**2) - (x - step * grid) ** 2 / (2 * added)
    weight = torch.softmax(log, -1)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean) ** 2).sum()
    found = q_posterior(x0, x, s, t, schedule)
    torch.testing.assert_close(found.mean.squeeze(), mean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.variance.squeeze(), variance, atol=1e-12, rtol=1e-8)


def test_sde_has_the_schedule_s_moments(schedule):
    # d mean/dt = f mean and d variance/dt = 2 f variance + g², by finite differences of alpha and sigma²
    t, h = between(schedule), 1e-6 * (schedule.t_max - schedule.t_min)
    f, g = sde_coefficients(t, schedule)
    mean_rate = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
    variance_rate = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(f * schedule.alpha(t), mean_rate, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(2 * f * schedule.sigma(t) ** 2 + g**2, variance_rate, atol=1e-6, rtol=1e-5)


def test_sde_published_forms():
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    beta = 0.1 + t * 19.9
    f, g = sde_coefficients(t, S.LinearVP())
    torch.testing.assert_close(f, -beta / 2)
    torch.testing.assert_close(g, beta.sqrt())
    f, g = sde_coefficients(t[:-1], S.RectifiedFlow())
    torch.testing.assert_close(f, -1 / (1 - t[:-1]))
    torch.testing.assert_close(g**2, 2 * t[:-1] / (1 - t[:-1]))


def test_bad_arguments():
    x, t, schedule = torch.ones(2, 3), torch.tensor(0.5), S.CosineVP()
    with refuses(TypeError, "x0 must be a floating"):
        q_sample(torch.ones(2, 3, dtype=torch.int64), t, schedule)
    with refuses(ValueError, "noise"):
        q_sample(x, t, schedule, torch.ones(3, 3))
    with refuses(ValueError, "t must have shape"):
        q_sample(x, torch.ones(5), schedule)
    with refuses(ValueError, "s must be below t"):
        q_posterior(x, x, t, t, schedule)
