"""denoise(x, t) -> x0_hat is all that a sampler sees; this file makes one from a network, and wraps it.

A wrapper takes such a function and returns another. They compose from the inside out: ``Clipped(Denoiser(…))``.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.predictions import KINDS, to_x0_eps


class Denoiser(nn.Module):
    """A network together with the schedule and the prediction kind it was trained with.

    ``net(x, t, cond)`` gives an output of x's shape; ``denoiser(x, t)`` turns it into x0_hat. t has shape () or
    (batch,); the network always gets one time per sample, in x's dtype. Raises ValueError for an unknown kind, and at
    times where the kind does not determine x0 (see ``predictions.to_x0_eps``).
    """

    def __init__(self, net, schedule, kind: str, cond=None):
        super().__init__()
        check.one_of("kind", kind, KINDS)
        self.net, self.schedule, self.kind, self.cond = net, schedule, kind, cond

    def output(self, x: Float[Tensor, "batch *data"], t, cond=None) -> Float[Tensor, "batch *data"]:
        """The network's raw output, of the denoiser's kind."""
        check.time(t, x)
        return self.net(x, t.to(x).expand(x.shape[0]), self.cond if cond is None else cond)

    def forward(self, x: Float[Tensor, "batch *data"], t, cond=None) -> Float[Tensor, "batch *data"]:
        """x0_hat at x and t."""
        return to_x0_eps(self.kind, self.output(x, t, cond), x, self.schedule, t)[0]


class Clipped:
    """x0_hat clamped to [low, high], for data that live there; samplers then recompute eps from the clamped x0_hat.

    Never inside guidance, never on latents. Raises ValueError unless low < high.
    """

    def __init__(self, denoise, low: float | int = -1.0, high: float | int = 1.0):
        if not low < high:
            raise ValueError(f"low must be below high; got {low} and {high}")
        self.denoise, self.low, self.high = denoise, low, high

    def __call__(self, x: Float[Tensor, "batch *data"], t) -> Float[Tensor, "batch *data"]:
        """The clamped x0_hat at x and t."""
        return torch.clamp(self.denoise(x, t), self.low, self.high)
