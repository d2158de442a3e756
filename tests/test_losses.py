"""The simple loss against its definition and its floor."""

import torch

from companion import schedules as S
from companion.denoisers import Denoiser
from companion.losses import simple_loss


class Exact(torch.nn.Module):
    """eps predicted exactly for the mixture, so that the loss is the floor."""

    def __init__(self, mixture, schedule):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x, t, cond=None):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (x - alpha[:, None] * self.mixture.denoise(x, alpha, sigma)) / sigma[:, None]


def test_floor_is_the_posterior_s_spread(mixture):
    schedule = S.CosineVP(0.0)
    t = torch.full((200_000,), 0.4, dtype=torch.float64)
    x0 = mixture.sample(len(t))
    found = simple_loss(Denoiser(Exact(mixture, schedule), schedule, "eps"), x0, t)
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    x = mixture.sample(200_000, alpha, sigma)
    draws = mixture.posterior_sample(x, alpha, sigma)
    spread = (alpha / sigma * (draws - mixture.denoise(x, alpha, sigma))).square().mean(1)
    assert abs(found - spread.mean()) < 8 * spread.std() / len(spread) ** 0.5


def test_loss_uses_the_noise_it_is_given():
    schedule = S.CosineVP()
    net = torch.nn.Module()
    net.forward = lambda x, t, cond=None: torch.zeros_like(x)
    zero = Denoiser(net, schedule, "eps")
    noise = torch.randn(5, 3)
    torch.testing.assert_close(simple_loss(zero, torch.ones(5, 3), torch.rand(5), noise), noise.square().mean())
