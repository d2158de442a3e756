"""denoise(x, t) -> x0_hat is all that a sampler sees; this file makes one from a network, and wraps it.

A wrapper takes such a function and returns another. They compose from the inside out: ``Clipped(Guided(Denoiser(…)))``.
Guidance asks for ``denoise(x, t, cond)``; a wrapper that stands inside it hands cond on.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.predictions import KINDS, make_target, to_x0


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
        return to_x0(self.kind, output, x, self.schedule, t), v

    def forward(self, x: Float[Tensor, "batch *data"], t, cond=None) -> Float[Tensor, "batch *data"]:
        """x0_hat at x and t."""
        return to_x0(self.kind, self.output(x, t, cond), x, self.schedule, t)

    def target(self, x0: Float[Tensor, "batch *data"], eps: Float[Tensor, "batch *data"], t):
        """What ``output`` should be at alpha x0 + sigma eps, of the data's shape."""
        return make_target(self.kind, x0, eps, self.schedule, t)


class EDMPrecond(nn.Module):
    """x0_hat = c_skip x + c_out net(c_in x, c_noise, cond), scaled for data of standard deviation ``sigma_data``.

    The network's input and its target then have unit variance at every noise level, and c_skip is the one that lets
    the network's error into x0_hat least (Karras et al. 2022, section 5 and appendix B.6, there for x / alpha). It
    trains through ``losses.simple_loss``: the network's own squared error, unweighted, is that of x0_hat times
    1 / c_out², their weight. In place of the time the network gets c_noise = ¼ log(sigma / alpha), (batch,), in x's
    dtype. Raises ValueError for sigma_data not above 0 and, when t is on the CPU, at times where alpha = 0 or
    sigma = 0, as c_noise is infinite there: start a grid a little below, and train on times inside.
    """

    def __init__(self, net, schedule, sigma_data: float | int = 0.5, cond=None):
        super().__init__()
        check.positive("sigma_data", sigma_data)
        self.net, self.schedule, self.sigma_data, self.cond = net, schedule, sigma_data, cond

    def coefficients(self, t: Float[Tensor, "*time"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, c_noise) at time t, each of t's shape, for x itself and not for x / alpha.

        Karras et al. 2022, table 1, with sigma / alpha for their sigma; c_skip and c_in divided by alpha.
        """
        alpha, sigma, spread = self.schedule.alpha(t), self.schedule.sigma(t), self.sigma_data
        if t.device.type == "cpu" and not ((alpha > 0) & (sigma > 0)).all():  # elsewhere it would wait for the device
            at = t[~((alpha > 0) & (sigma > 0))].flatten()[0].item()
            raise ValueError(f"t must be a time at which alpha > 0 and sigma > 0, for log(sigma / alpha); got {at:g}")
        total = torch.hypot(sigma, alpha * spread)  # the standard deviation of x
        return alpha * spread**2 / total**2, sigma * spread / total, 1 / total, -self.schedule.half_log_snr(t) / 4

    def output(self, x: Float[Tensor, "batch *data"], t, cond=None) -> Float[Tensor, "batch *data"]:
        """The network's raw output, in x's dtype whatever the network worked in."""
        check.time(t, x)
        _, _, c_in, c_noise = self.coefficients(t)
        given = cond if cond is not None else self.cond
        return self.net(check.like(c_in, x) * x, c_noise.to(x).expand(x.shape[0]), given).to(x.dtype)

    def forward(self, x: Float[Tensor, "batch *data"], t, cond=None) -> Float[Tensor, "batch *data"]:
        """x0_hat at x and t."""
        output = self.output(x, t, cond)
        c_skip, c_out = (check.like(c, x) for c in self.coefficients(t)[:2])
        return c_skip * x + c_out * output

    def target(self, x0: Float[Tensor, "batch *data"], eps: Float[Tensor, "batch *data"], t):
        """What ``output`` should be at x = alpha x0 + sigma eps: (x0 − c_skip x) / c_out, of the data's shape."""
        check.same_shape("x0", x0, "eps", eps)
        check.time(t, x0)
        alpha, spread = self.schedule.alpha(t), self.sigma_data
        c_skip, c_out, c_in, _ = self.coefficients(t)
        # (1 − alpha c_skip) / c_out = sigma c_in / sigma_data, without the difference that loses digits at small sigma
        of_x0, of_eps = self.schedule.sigma(t) * c_in / spread, -alpha * spread * c_in
        return check.like(of_x0, x0) * x0 + check.like(of_eps, x0) * eps


# ---- wrappers -------------------------------------------------------------------------------------------------------


def _number(name, value):
    """Raise ValueError unless ``value`` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")


class Guided:
    """Classifier-free guidance: unconditional + guidance_scale (conditional − unconditional), on x0_hat.

    Scale 0 is unconditional, 1 conditional, more is guidance; the paper's w is the scale − 1 (Ho & Salimans 2022,
    eq. 6). As the two weights sum to one, guiding x0_hat is guiding eps, the score or v.

    ``denoise(x, t, cond)`` is called once, on a batch twice as large: every sample with its condition, then every one
    with ``null``. ``cond`` has one condition per sample, (batch, …), or is one class for all, or one text, (length,),
    for a ``denoise.net`` that takes text; ``null`` is what stands for no condition, broadcast to cond's shape (default:
    ``denoise.net.null``).

    ``interval`` = (t_low, t_high): outside these times, ends included in them, the scale is 1 (Kynkäänniemi et al.
    2024); both evaluations are still made. ``rescale`` = phi brings the standard deviation of each sample's guided
    x0_hat, over all its coordinates, back towards the conditional one's: phi of the way in the factor that multiplies
    x0_hat (Lin et al. 2024, eq. 15–16). They do it to the network's output, there v, which is about −x0 at the noisy
    end and mostly noise at the clean one, so that it acts less there than here.

    Raises ValueError for a scale that is not finite, an interval that is not increasing, or rescale outside [0, 1];
    TypeError where no null is given and the denoiser has no net with classes or text; when called, ValueError unless
    cond has one condition per sample, or, with rescale, for samples of one coordinate.
    """

    def __init__(self, denoise, cond, guidance_scale: float | int, *, null=None, interval=None, rescale=0.0):
        _number("guidance_scale", guidance_scale)
        _number("rescale", rescale)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1]; got {rescale}")
        if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
            raise ValueError(f"interval must be two times, the lower first; got {interval!r}")
        net = getattr(denoise, "net", None)
        if null is None:
            null = getattr(net, "null", getattr(net, "classes", None))
            if null is None:
                raise TypeError("null must be given, as denoise has no net with classes or text")
        self.denoise, self.guidance_scale, self.interval, self.rescale = denoise, guidance_scale, interval, rescale
        self.cond = torch.as_tensor(cond)
        self.for_all = self.cond.ndim == (0 if getattr(net, "text", None) is None else 1)
        self.null = torch.as_tensor(null, dtype=self.cond.dtype, device=self.cond.device)

    def both(self, x: Float[Tensor, "batch *data"], t) -> tuple[Tensor, Tensor]:
        """x0_hat with the condition and without, from one call."""
        check.time(t, x)
        batch = x.shape[0]
        if not self.for_all and self.cond.shape[:1] != (batch,):
            raise ValueError(f"cond must have one condition per sample, {batch}; got shape {tuple(self.cond.shape)}")
        if self.cond.device != x.device:  # on the first call alone: a captured graph may not copy from the host
            self.cond, self.null = self.cond.to(x.device), self.null.to(x.device)
        cond = self.cond.expand(batch, *self.cond.shape) if self.for_all else self.cond
        times = t if t.ndim == 0 else torch.cat([t, t])
        found = self.denoise(torch.cat([x, x]), times, torch.cat([cond, self.null.expand_as(cond)]))
        return found[:batch], found[batch:]

    def __call__(self, x: Float[Tensor, "batch *data"], t) -> Float[Tensor, "batch *data"]:
        """The guided x0_hat at x and t."""
        conditional, unconditional = self.both(x, t)
        guided = _extrapolate(unconditional, conditional, self._scale(t))
        if not self.rescale:
            return guided
        if x[0].numel() < 2:
            raise ValueError(f"rescale needs samples of two coordinates or more; got x of shape {tuple(x.shape)}")
        wanted, found = (check.like(v.flatten(1).std(1), x) for v in (conditional, guided))
        ratio = torch.where(found > 0, wanted / found, 1.0)
        return guided * (1 + self.rescale * (ratio - 1))

    def _scale(self, t):
        """The scale, or where there is an interval the scale of each time, with no decision on the host."""
        if self.interval is None:
            return self.guidance_scale
        low, high = self.interval
        return torch.where((low <= t) & (t <= high), float(self.guidance_scale), 1.0)


def _extrapolate(start, end, scale):
    """start + scale (end − start), exactly ``start`` at 0 and ``end`` at 1, as ``torch.lerp`` sees to."""
    return torch.lerp(start, end, check.like(scale, start))


class ClassifierGuided:
    """Classifier guidance: x0_hat + guidance_scale sigma²/alpha grad_x log p(label | x, t) (Dhariwal & Nichol 2021).

    Their eq. 14 by Tweedie's formula. ``classifier(x, t)`` gives logits, (batch, classes), and must know noisy x: it
    gets one time per sample, in x's dtype. ``label`` is a class, or one per sample, (batch,). The schedule is
    denoise's, unless given. With the exact classifier of the same data, scale 1 is the conditional denoiser. Works
    under ``torch.no_grad``, and is differentiable outside it.

    Where alpha = 0 x says nothing about the class, and the gradient of an exact classifier is zero; the limit of
    sigma²/alpha times it is not, but no gradient at that time shows it. x0_hat is left as it is there: a sampler's
    first step from such an end is not guided. Raises ValueError for a scale that is not finite, TypeError where there
    is no schedule or labels are no integers; when called, ValueError for logits or labels that do not fit.
    """

    def __init__(self, denoise, classifier, label, guidance_scale: float | int = 1.0, *, schedule=None):
        _number("guidance_scale", guidance_scale)
        self.schedule = getattr(denoise, "schedule", None) if schedule is None else schedule
        if self.schedule is None:
            raise TypeError("schedule must be given, as denoise does not bring one")
        self.label = torch.as_tensor(label)
        if self.label.dtype == torch.bool or self.label.is_floating_point():
            raise TypeError(f"label must hold integers; got a tensor of {self.label.dtype}")
        self.denoise, self.classifier, self.guidance_scale = denoise, classifier, guidance_scale

    def gradient(self, x: Float[Tensor, "batch *data"], t) -> Float[Tensor, "batch *data"]:
        """grad_x log p(label | x, t), by differentiating through the classifier."""
        check.time(t, x)
        batch = x.shape[0]
        if self.label.shape not in ((), (batch,)):
            raise ValueError(f"label must be one class or have shape ({batch},); got {tuple(self.label.shape)}")
        if self.label.device != x.device:  # on the first call alone, as in Guided
            self.label = self.label.to(x.device)
        times, label = t.to(x).expand(batch), self.label.long().expand(batch)

        def of_label(x):
            logits = self.classifier(x, times)
            if logits.ndim != 2 or logits.shape[0] != batch:
                raise ValueError(f"classifier must give logits ({batch}, classes); got {tuple(logits.shape)}")
            return F.log_softmax(logits.to(x.dtype), 1).gather(1, label[:, None]).sum()

        return torch.func.grad(of_label)(x)  # its own gradient mode: no_grad around it does not reach inside

    def __call__(self, x: Float[Tensor, "batch *data"], t) -> Float[Tensor, "batch *data"]:
        """The guided x0_hat at x and t."""
        gradient = self.gradient(x, t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        factor = torch.where(alpha == 0, 0.0, self.guidance_scale * sigma**2 / alpha)
        return self.denoise(x, t) + check.like(factor, x) * gradient


class AutoGuided:
    """weak + guidance_scale (strong − weak) of two denoisers of the same data (Karras et al. 2024).

    ``weak`` is a worse version of ``strong``: smaller, or trained less. Scale 1 is ``strong``. A condition, if given,
    goes to both. Raises ValueError for a scale that is not finite.
    """

    def __init__(self, strong, weak, guidance_scale: float | int):
        _number("guidance_scale", guidance_scale)
        self.strong, self.weak, self.guidance_scale = strong, weak, guidance_scale

    def __call__(self, x: Float[Tensor, "batch *data"], t, *cond) -> Float[Tensor, "batch *data"]:
        """The guided x0_hat at x and t."""
        return _extrapolate(self.weak(x, t, *cond), self.strong(x, t, *cond), self.guidance_scale)


class Thresholded:
    """Dynamic thresholding: x0_hat clamped to [−s, s] and brought back to [−floor, floor] (Saharia et al. 2022, 2.3).

    s is each sample's own ``quantile`` of |x0_hat| over its coordinates, or ``floor`` where that is more. ``floor`` is
    the bound of the data, 1 in the paper; a sample within it is left as it is, but for what exceeds the bound, which is
    clamped. As ``Clipped``, never inside guidance, never on latents. Raises ValueError unless 0 < quantile ≤ 1 and
    floor > 0.
    """

    def __init__(self, denoise, quantile: float | int = 0.995, floor: float | int = 1.0):
        check.positive("quantile", quantile)
        check.positive("floor", floor)
        if quantile > 1:
            raise ValueError(f"quantile must be at most 1; got {quantile}")
        self.denoise, self.quantile, self.floor = denoise, quantile, floor

    def __call__(self, x: Float[Tensor, "batch *data"], t, *cond) -> Float[Tensor, "batch *data"]:
        """The thresholded x0_hat at x and t."""
        x0 = self.denoise(x, t, *cond)
        reach = torch.quantile(x0.flatten(1).abs().float(), float(self.quantile), dim=1).to(x0.dtype)
        return torch.clamp(check.like(self.floor / reach.clamp(min=self.floor), x0) * x0, -self.floor, self.floor)


class Clipped:
    """x0_hat clamped to [low, high], for data that live there; samplers then recompute eps from the clamped x0_hat.

    Never inside guidance, never on latents. Raises ValueError unless low < high.
    """

    def __init__(self, denoise, low: float | int = -1.0, high: float | int = 1.0):
        if not low < high:
            raise ValueError(f"low must be below high; got {low} and {high}")
        self.denoise, self.low, self.high = denoise, low, high

    def __call__(self, x: Float[Tensor, "batch *data"], t, *cond) -> Float[Tensor, "batch *data"]:
        """The clamped x0_hat at x and t."""
        return torch.clamp(self.denoise(x, t, *cond), self.low, self.high)

    def with_variance(self, x: Float[Tensor, "batch *data"], t) -> tuple[Tensor, Tensor]:
        """The clamped x0_hat, and v as it was. Raises TypeError where the inner denoiser has no variance."""
        check.learned_variance(self.denoise)
        x0, v = self.denoise.with_variance(x, t)
        return torch.clamp(x0, self.low, self.high), v


def reschedule(denoise, source, target):
    """A denoiser made for schedule ``source``, as one for ``target``: asked where the signal-to-noise ratios are equal.

    Returns ``denoise(x, t)`` with t a time of ``target``; a condition is handed on. x is rescaled on the way, so one
    network serves every schedule. Raises ValueError, when called, at a ratio that ``source`` does not have. Finds the
    time by bisection, which on a GPU waits for the device.
    """

    def moved(x, t, *cond):
        check.time(t, x)
        t = t.double()
        s = source.time_of(target.half_log_snr(t))
        there, here = (torch.hypot(path.alpha(v), path.sigma(v)) for path, v in ((source, s), (target, t)))
        return denoise(check.like(there / here, x) * x, s.to(x), *cond)

    return moved
