"""The best denoisers of a finite set of points: the exact one, and the best that looks at a window only."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from companion import _checks as check

ROWS = 4096  # points at a time: bounds what is copied to float64
ENTRIES = 1 << 23  # of a matrix of windows against windows at a time
LEAST = 1e-100  # stands for sigma = 0, whose limit is the nearest point


class EmpiricalDistribution:
    """n points, each with probability 1/n: a mixture without spread, diffused by x = alpha x0 + sigma eps.

    ``points`` (n, *data) in float32 or float64. Every method takes x (batch, *data), and alpha and sigma as numbers,
    0-dimensional tensors or one value per sample; answers come in x's dtype, the work between is done in float64, in
    blocks of points. Raises ValueError for points that are none, not finite, or of another shape than x, and TypeError
    for points that are not floating-point tensors.
    """

    def __init__(self, points: Float[Tensor, "n *data"]):
        check.floating("points", points)
        if points.ndim < 2 or not points.numel():
            raise ValueError(f"points must have shape (n, *data), n at least 1; got {tuple(points.shape)}")
        check.finite("points", points)
        self.points = points
        # distances are taken from the middle of the points, where they cancel least
        self._flat = points.flatten(1)
        self._centre = self._flat.mean(0, dtype=torch.float64)
        self._squares = torch.cat([(part - self._centre).square().sum(1) for part in self._flat.split(ROWS)])

    def _logits(self, x, alpha, sigma):
        """−|x − alpha x_i|² / 2 sigma² up to a constant per sample; and x, alpha, sigma, in float64, a row each."""
        check.floating("x", x)
        if x.shape[1:] != self.points.shape[1:]:
            raise ValueError(f"x must have shape (batch, *{tuple(self.points.shape[1:])}); got {tuple(x.shape)}")
        if self.points.device != x.device:
            raise ValueError(f"x must be on {self.points.device}, as the points are; got {x.device}")
        rows = x.flatten(1).double()
        alpha, sigma = check.like(alpha, rows), check.like(sigma, rows).clamp_min(LEAST)
        moved = rows - alpha * self._centre
        products = torch.cat([moved @ (part - self._centre).T for part in self._flat.split(ROWS)], 1)
        return alpha / sigma**2 * (products - alpha / 2 * self._squares), rows, alpha, sigma

    def _mean(self, shares):
        """The points' mean under each row of shares, float64."""
        parts = zip(shares.split(ROWS, 1), self._flat.split(ROWS))
        return self._centre + sum(share @ (part - self._centre) for share, part in parts)

    def responsibilities(self, x: Float[Tensor, "batch *data"], alpha=1.0, sigma=0.0) -> Float[Tensor, "batch n"]:
        """p(point | x), which sums to one over the last axis; at sigma = 0 all of it is the nearest point's."""
        return torch.softmax(self._logits(x, alpha, sigma)[0], 1).to(x.dtype)

    def denoise(self, x: Float[Tensor, "batch *data"], alpha=1.0, sigma=0.0) -> Float[Tensor, "batch *data"]:
        """E[x0 | x], the least squared error there is on these points: a mean of them, weighted by who they may be.

        Defined at alpha = 0, where it is the mean of all points, and at sigma = 0, where it is the nearest point.
        """
        logits = self._logits(x, alpha, sigma)[0]
        return self._mean(torch.softmax(logits, 1)).reshape(x.shape).to(x.dtype)

    def score(self, x: Float[Tensor, "batch *data"], alpha=1.0, sigma=0.0) -> Float[Tensor, "batch *data"]:
        """Gradient in x of ``log_prob``. Raises ValueError unless sigma > 0."""
        _with_noise(sigma)
        logits, rows, alpha, sigma = self._logits(x, alpha, sigma)
        pulls = (alpha * self._mean(torch.softmax(logits, 1)) - rows) / sigma**2
        return pulls.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Float[Tensor, "batch *data"], alpha=1.0, sigma=0.0) -> Float[Tensor, "batch"]:
        """Log-density in nats of alpha x0 + sigma eps at x. Raises ValueError unless sigma > 0: points have none."""
        _with_noise(sigma)
        logits, rows, alpha, sigma = self._logits(x, alpha, sigma)
        n, d = self._flat.shape
        constant = (rows - alpha * self._centre).square().sum(1) / (2 * sigma**2).expand(len(rows), 1)[:, 0]
        normal = d / 2 * (2 * math.pi * sigma**2).log().expand(len(rows), 1)[:, 0]
        return (torch.logsumexp(logits, 1) - math.log(n) - constant - normal).to(x.dtype)

    def denoiser(self, schedule):
        """``denoise(x, t) -> x0_hat`` along a schedule: what every sampler takes."""

        def exact(x, t):
            return self.denoise(x, schedule.alpha(t), schedule.sigma(t))

        return exact


class LocalEmpirical:
    """The best denoiser of n images among those whose every output pixel sees the window round it and no more.

    ``images`` (n, channel, height, width); windows are ``patch`` × ``patch``, patch odd. Each output pixel is
    E[its x0 | its window of x]: a softmax over windows of the images, valued at their centres. With ``equivariant`` one
    function serves all positions, as a convolution's does, and windows of all positions compete, equally likely before
    any is seen; without, only those at the pixel's own. Beyond the border a window holds zeros, as a convolution's
    padding does, and these zeros carry no noise: a noisy pixel is never exactly 0, so that the window itself tells how
    many of its rows and columns lie outside, and on which side. Therefore only windows with the same padding compete,
    and only their pixels inside are compared. A patch of twice the size less one or more sees the whole image at every
    position, and is ``EmpiricalDistribution``.

    Memory for the windows is n × height × width × patch² numbers. Work is done in float64 where the noise is small, in
    float32 otherwise. Raises ValueError for images that are none or not finite and a patch that is not odd, TypeError
    for images that are not floating-point tensors. Source: Kamb & Ganguli 2025, An analytic theory of creativity in
    convolutional diffusion models: their equivariant local score machine with borders, and their local one without.
    """

    def __init__(self, images: Float[Tensor, "n channel height width"], patch: int, *, equivariant: bool = True):
        check.floating("images", images)
        check.positive_int("patch", patch)
        if patch % 2 == 0:
            raise ValueError(f"patch must be odd, so that a window has a centre; got {patch}")
        if images.ndim != 4 or not images.numel():
            raise ValueError(f"images must have shape (n, channel, height, width); got {tuple(images.shape)}")
        check.finite("images", images)
        self.images, self.patch, self.equivariant = images, patch, equivariant
        self._centre = images.mean((0, 2, 3), dtype=torch.float64)[:, None, None]
        height, width = images.shape[2:]
        alike = {}  # padding -> rows and columns of the image that have it; each position alone if not equivariant
        for row in range(height):
            for column in range(width):
                key = _sides(row, height, patch // 2), _sides(column, width, patch // 2)
                alike.setdefault(key if equivariant else (*key, row, column), []).append((row, column))
        windows, centres = self._windows(images.double() - self._centre), images.flatten(2).double()
        self._groups = []
        for ((up, down), (left, right), *_), places in alike.items():
            index = torch.tensor([row * width + column for row, column in places], device=images.device)
            seen = torch.zeros(patch, patch, dtype=torch.bool, device=images.device)
            seen[up : patch - down, left : patch - right] = True
            seen = seen.flatten().repeat(images.shape[1])
            keys = windows[:, seen][:, :, index].transpose(1, 2).flatten(0, 1)  # (n × places, pixels inside)
            values = centres[:, :, index].transpose(1, 2).flatten(0, 1)  # (n × places, channel)
            keys = torch.cat([keys, keys.square().sum(1, keepdim=True)], 1)
            self._groups.append((index, seen, keys, values))

    def _windows(self, x):
        """(batch, channel × patch², height × width), beyond the border zeros."""
        return F.unfold(x, self.patch, padding=self.patch // 2)

    def denoise(self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0) -> Tensor:
        """E[pixel of x0 | its window of x], of x's shape and dtype.

        alpha and sigma are numbers, 0-dimensional tensors or one value per sample. Defined at alpha = 0, where it is
        the mean of the competing pixels, and at sigma = 0, where it is the centre of the nearest window.
        """
        check.floating("x", x)
        if x.shape[1:] != self.images.shape[1:]:
            raise ValueError(f"x must have shape (batch, *{tuple(self.images.shape[1:])}); got {tuple(x.shape)}")
        alpha, sigma = (check.like(v, x.double()).flatten().expand(len(x)) for v in (alpha, sigma))
        sigma = sigma.clamp_min(LEAST)
        windows = self._windows(x.double() - alpha[:, None, None, None] * self._centre)
        out = x.new_empty(*x.shape[:2], x[0, 0].numel())
        for index, seen, keys, values in self._groups:
            # the logits are differences of terms of this size, which float32 knows to 1e-7 of it
            size = (alpha.square() * keys[:, -1].max() / sigma.square()).max()
            keys, values = (v.to(torch.float32 if size < 1e4 else torch.float64) for v in (keys, values))
            asked = windows[:, seen][:, :, index].transpose(1, 2)  # (batch, places, pixels inside)
            pull = (alpha / sigma**2)[:, None, None]
            query = torch.cat([pull * asked, (-alpha[:, None, None] / 2 * pull).expand(-1, len(index), 1)], 2)
            query = query.flatten(0, 1).to(keys)
            parts = query.split(max(1, ENTRIES // len(keys)))
            found = torch.cat([torch.softmax(part @ keys.T, 1) @ values for part in parts])
            out[:, :, index] = found.unflatten(0, (len(x), len(index))).mT.to(x.dtype)
        return out.reshape(x.shape)

    def denoiser(self, schedule):
        """``denoise(x, t) -> x0_hat`` along a schedule: what every sampler takes."""

        def local(x, t):
            return self.denoise(x, schedule.alpha(t), schedule.sigma(t))

        return local


def _sides(place, length, reach):
    """How many rows (columns) of a window lie before the first and after the last of the image."""
    return max(0, reach - place), max(0, reach - (length - 1 - place))


def _with_noise(sigma):
    if not (torch.as_tensor(sigma) > 0).all():
        raise ValueError(f"sigma must be above 0: without noise points have no density; got {sigma}")
