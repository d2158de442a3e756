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

    With ``learned_variance`` the network has twice the channels (dimension 1): the first half is of the kind, the
    second says how wide a reverse step is, coordinate by coordinate (Nichol & Dhariwal 2021, eq. 15). ``with_variance``
    maps it to v by a sigmoid, so that v stays inside (0, 1); the paper leaves v free.
    """

    def __init__(self, net, schedule, kind: str, cond=None, learned_variance: bool = False):
        super().__init__()
        check.one_of("kind", kind, KINDS)
        self.net, self.schedule, self.kind, self.cond = net, schedule, kind, cond
        self.learned_variance = learned_variance

    def _raw(self, x, t, cond):
        """All that comes out of the network, in x's dtype whatever the network worked in."""
        check.time(t, x)
        raw = self.net(x, t.to(x).expand(x.shape[0]), self.cond if cond is None else cond).to(x.dtype)
        if self.learned_variance and raw.shape[1] != 2 * x.shape[1]:
            raise ValueError(
                f"net must have {2 * x.shape[1]} outputs, two per channel, for a learned variance; got {raw.shape[1]}"
            )
        return raw

    def output(self, x: Float[Tensor, "batch *data"], t, cond=None) -> Float[Tensor, "batch *data"]:
        """The network's raw output, of the denoiser's kind."""
        raw = self._raw(x, t, cond)
        return raw[:, : x.shape[1]] if self.learned_variance else raw

    def outputs(self, x: Float[Tensor, "batch *data"], t, cond=None) -> tuple[Tensor, Tensor]:
        """The raw output of the denoiser's kind, and v in (0, 1), both of x's shape.

        Raises TypeError for a denoiser made without ``learned_variance``.
        """
        if not self.learned_variance:
            raise TypeError("denoiser must be made with learned_variance=True to give a variance")
        output, v = self._raw(x, t, cond).chunk(2, 1)
        return output, v.sigmoid()

    def with_variance(self, x: Float[Tensor, "batch *data"], t, cond=None) -> tuple[Tensor, Tensor]:
        """x0_hat at x and t, and v for ``losses.interpolated_variance``. Raises as ``outputs`` does."""
        output, v = self.outputs(x, t, cond)
        return to_x0_eps(self.kind, output, x, self.schedule, t)[0], v

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

    def with_variance(self, x: Float[Tensor, "batch *data"], t) -> tuple[Tensor, Tensor]:
        """The clamped x0_hat, and v as it was. Raises TypeError where the inner denoiser has no variance."""
        check.learned_variance(self.denoise)
        x0, v = self.denoise.with_variance(x, t)
        return torch.clamp(x0, self.low, self.high), v


def reschedule(denoise, source, target):
    """A denoiser made for schedule ``source``, as one for ``target``: asked where the signal-to-noise ratios are equal.

    Returns ``denoise(x, t)`` with t a time of ``target``. x is rescaled on the way, so one network serves every
    schedule. Raises ValueError, when called, at a ratio that ``source`` does not have. Finds the time by bisection,
    which on a GPU waits for the device.
    """

    def moved(x, t):
        check.time(t, x)
        t = t.double()
        s = source.time_of(target.half_log_snr(t))
        there, here = (torch.hypot(path.alpha(v), path.sigma(v)) for path, v in ((source, s), (target, t)))
        return denoise(check.like(there / here, x) * x, s.to(x))

    return moved
