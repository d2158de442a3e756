"""A distribution over images, fitted to MNIST, whose diffused density, score and denoiser are exact."""

import hashlib
import json
import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion import _checks as check

SHIPPED = Path(__file__).parent / "weights" / "mixtures" / "image_mixture.safetensors"


class ImageMixture:
    """sum_cj w_cj N(mu_cj, F_cj' F_cj + n_cj² I) over images: per class c, k Gaussians of low rank plus noise.

    ``weights`` (classes, k) sum to one, so that row sums are the classes' probabilities; ``means`` (classes, k,
    channel, height, width); ``factors`` (classes, k, rank, channel, height, width), pictures too; ``noise`` is the
    standard deviation n per pixel, a number or (classes, k), and above zero. Diffused by x = alpha x0 + sigma eps it
    is a mixture again, and every formula is exact; one evaluation costs matrix products with the r axes of each
    component (Woodbury), never a full covariance.

    Every method takes images (batch, channel, height, width) in float32 or float64 (answers come in the same dtype;
    the work between is done in float64), alpha and sigma as numbers, 0-dimensional tensors or one value per sample (the
    defaults (1, 0) are the clean density), and ``label`` as a class, one class per sample of shape (batch,), or None
    for the whole mixture. Raises ValueError for shapes that do not fit, weights that are not a distribution, noise that
    is not above zero or a label that is no class; TypeError for images of another dtype. Source: Tipping & Bishop 1999,
    Mixtures of probabilistic principal component analysers.
    """

    def __init__(self, weights, means, factors, noise):
        weights, means, factors, noise = (
            torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, factors, noise)
        )
        if means.ndim != 5 or weights.shape != means.shape[:2]:
            raise ValueError(
                "weights and means must have shapes (classes, k) and (classes, k, channel, height, width); "
                f"got {tuple(weights.shape)}, {tuple(means.shape)}"
            )
        if factors.ndim != 6 or factors.shape[:2] + factors.shape[3:] != means.shape:
            raise ValueError(
                f"factors must have shape {tuple(means.shape[:2])} + (rank,) + {tuple(means.shape[2:])}; "
                f"got {tuple(factors.shape)}"
            )
        if not 0 < factors.shape[2] < means[0, 0].numel():
            raise ValueError(f"factors must have a rank of 1 to {means[0, 0].numel() - 1}; got {factors.shape[2]}")
        if noise.ndim and noise.shape != weights.shape:
            raise ValueError(f"noise must be a number or have shape {tuple(weights.shape)}; got {tuple(noise.shape)}")
        for name, value in (("weights", weights), ("means", means), ("factors", factors), ("noise", noise)):
            check.finite(name, value)
        if (weights < 0).any() or abs(weights.sum().item() - 1) > 1e-6 or not (weights.sum(1) > 0).all():
            raise ValueError(
                f"weights must be at least 0, sum to 1, and leave no class without; got {weights.tolist()}"
            )
        if not (noise > 0).all():
            raise ValueError(f"noise must be above 0; the least is {noise.min():.3g}")
        self.weights, self.means, self.factors, self.noise = weights, means, factors, noise.expand(weights.shape)
        # F' F = A' diag(spread) A with orthonormal rows A, so that alpha² Sigma + sigma² I is inverted by division
        _, singular, axes = torch.linalg.svd(factors.flatten(0, 1).flatten(2), full_matrices=False)
        flat, noise = means.flatten(0, 1).flatten(1), self.noise.flatten()
        centre = weights.flatten() @ flat
        flat = flat - centre
        offsets = torch.einsum("krd,kd->kr", axes, flat)
        self._tables = (weights.flatten().log(), centre, flat, axes.flatten(0, 1), offsets, singular**2, noise**2)
        self._moved = {}

    @classmethod
    def load(cls, path=SHIPPED) -> "ImageMixture":
        """The mixture that ships: ten digits at 32×32, fitted to MNIST's training images in [-1, 1].

        Stored in half precision; the rounded numbers define the mixture, and nothing is rounded after that. Raises
        RuntimeError when the file is not the one that the card beside it names.
        """
        from safetensors.torch import load as from_bytes

        path = Path(path)
        stored = path.read_bytes()
        wanted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        found = hashlib.sha256(stored).hexdigest()
        if found != wanted:
            raise RuntimeError(f"{path.name} has sha256 {found}, its card says {wanted}: install again")
        tables = {key: value.double() for key, value in from_bytes(stored).items()}
        weights = tables.pop("weights")
        return cls(weights / weights.sum(), **tables)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.weights.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of an image."""
        return tuple(self.means.shape[2:])

    def _on(self, x):
        """The tables on x's device, moved once."""
        if x.device not in self._moved:
            self._moved[x.device] = tuple(v.to(x.device) for v in self._tables)
        return self._moved[x.device]

    def _level(self, name, value, x):
        value = torch.as_tensor(value, dtype=torch.float64, device=x.device)
        if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != x.shape[0]):
            raise ValueError(f"{name} must be one number or have shape ({x.shape[0]},); got {tuple(value.shape)}")
        return value.reshape(-1, 1)

    def _label(self, label, count):
        """One class per sample, as a tensor; waits for the device if it is on one."""
        if label is None:
            return None
        label = torch.as_tensor(label)
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise TypeError(f"label must be None or hold integers; got a tensor of {label.dtype}")
        if label.ndim > 1 or (label.ndim == 1 and label.shape[0] != count):
            raise ValueError(f"label must be one class or have shape ({count},); got {tuple(label.shape)}")
        if label.numel() and not 0 <= label.min() <= label.max() < self.classes:
            raise ValueError(f"label must be a class from 0 to {self.classes - 1}; got {label.unique().tolist()}")
        return label.expand(count)

    def _parts(self, x, alpha, sigma):
        """Per component: log w N(x), x − alpha mu along the axes (batch, K, r), variances off and on them."""
        check.floating("x", x)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"x must be float32 or float64; got a tensor of {x.dtype}")
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape {('batch', *self.shape)}; got {tuple(x.shape)}".replace("'", ""))
        log_weights, centre, means, axes, offsets, spread, noise = self._on(x)
        alpha, sigma = self._level("alpha", alpha, x), self._level("sigma", sigma, x)
        off = alpha**2 * noise + sigma**2  # (batch or 1, K): the variance in every direction but a component's axes
        on = (alpha**2)[..., None] * spread + off[..., None]  # (batch or 1, K, r)
        far = x.flatten(1).double() - alpha * centre  # float32 would lose tenths of a nat in log_part
        along = (far @ axes.mT).unflatten(1, offsets.shape) - alpha[..., None] * offsets
        distance = (far**2).sum(1, keepdim=True) - 2 * alpha * (far @ means.mT) + alpha**2 * (means**2).sum(1)
        squares = along**2
        quadratic = (distance - squares.sum(2)) / off + (squares / on).sum(2)
        log_det = (means.shape[1] - on.shape[2]) * off.log() + on.log().sum(2)
        log_part = log_weights - 0.5 * (quadratic + log_det + means.shape[1] * math.log(2 * math.pi))
        return log_part, along, off, on, far, alpha, sigma

    def _masked(self, log_part, label):
        """log w N(x), with −infinity for the components of other classes; label (batch,) or None."""
        if label is None:
            return log_part
        owner = torch.arange(self.classes, device=log_part.device).repeat_interleave(self.weights.shape[1])
        return log_part.masked_fill(owner != label.to(log_part.device)[:, None], -math.inf)

    def _mixing(self, log_part, label, scale=None):
        """What each component counts for in a posterior mean (batch, K), which sums to one, guided or not.

        Score and denoiser are linear in it, so that one pass gives unconditional + scale (conditional − unconditional).
        """
        conditional = torch.softmax(self._masked(log_part, label), 1)
        if scale is None:
            return conditional
        plain = torch.softmax(log_part, 1)
        return plain + scale * (conditional - plain)

    def _score(self, x, alpha, sigma, label=None, scale=None):
        log_part, along, off, on, far, alpha, _ = self._parts(x, alpha, sigma)
        _, _, means, axes, _, spread, _ = self._on(x)
        mixing = self._mixing(log_part, label, scale)
        pull = mixing / off
        kept = (alpha**2)[..., None] * spread / (off[..., None] * on) * along  # (1/off − 1/on) along, not subtracted
        flat = (alpha * pull) @ means - pull.sum(1, keepdim=True) * far
        return (flat + (mixing[..., None] * kept).flatten(1) @ axes).reshape(x.shape).to(x.dtype)

    def _denoise(self, x, alpha, sigma, label=None, scale=None):
        log_part, along, off, on, far, alpha, sigma = self._parts(x, alpha, sigma)
        _, centre, means, axes, _, spread, noise = self._on(x)
        mixing = self._mixing(log_part, label, scale)
        gain = mixing * alpha * noise / off
        kept = (alpha * sigma**2)[..., None] * spread / (off[..., None] * on) * along
        flat = centre + (mixing - alpha * gain) @ means + gain.sum(1, keepdim=True) * far
        return (flat + (mixing[..., None] * kept).flatten(1) @ axes).reshape(x.shape).to(x.dtype)

    def log_prob(
        self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0, label=None
    ) -> Float[Tensor, "batch"]:
        """Log-density in nats of alpha x0 + sigma eps at x, given the class where ``label`` says one."""
        label, log_part = self._label(label, len(x)), self._parts(x, alpha, sigma)[0]
        total = torch.logsumexp(self._masked(log_part, label), 1)
        if label is not None:
            total = total - self.weights.sum(1).log().to(x.device)[label.to(x.device)]
        return total.to(x.dtype)

    def class_log_prob(
        self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0
    ) -> Float[Tensor, "batch classes"]:
        """log p(x | c) in nats, for every class c at once."""
        log_part = self._parts(x, alpha, sigma)[0].unflatten(1, self.weights.shape)
        return (torch.logsumexp(log_part, 2) - self.weights.sum(1).log().to(x.device)).to(x.dtype)

    def class_posterior(
        self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0
    ) -> Float[Tensor, "batch classes"]:
        """p(c | x), which sums to one: Bayes' classifier of noisy images, exact under this mixture."""
        return self.responsibilities(x, alpha, sigma).sum(2)

    def responsibilities(
        self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0, label=None
    ) -> Float[Tensor, "batch classes k"]:
        """p(class, component | x), which sums to one over the last two axes; zero outside ``label``."""
        mixing = self._mixing(self._parts(x, alpha, sigma)[0], self._label(label, len(x)))
        return mixing.unflatten(1, self.weights.shape).to(x.dtype)

    def score(
        self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0, label=None
    ) -> Float[Tensor, "batch channel height width"]:
        """Gradient in x of ``log_prob``."""
        return self._score(x, alpha, sigma, self._label(label, len(x)))

    def denoise(
        self, x: Float[Tensor, "batch channel height width"], alpha=1.0, sigma=0.0, label=None
    ) -> Float[Tensor, "batch channel height width"]:
        """E[x0 | x], or E[x0 | x, class]; defined at alpha = 0 too, where it is E[x0]."""
        return self._denoise(x, alpha, sigma, self._label(label, len(x)))

    def guided_score(
        self, x: Float[Tensor, "batch channel height width"], alpha, sigma, label, scale: float | int
    ) -> Float[Tensor, "batch channel height width"]:
        """Classifier-free guided score: unconditional + scale (conditional − unconditional), both exact.

        Scale 0 is unconditional, 1 conditional, more is guidance. The paper's w is scale − 1: (1 + w) conditional −
        w unconditional. Raises ValueError without a label. Source: Ho & Salimans 2022, eq. 6.
        """
        return self._score(x, alpha, sigma, self._guided(label, scale, len(x)), scale)

    def guided_denoise(
        self, x: Float[Tensor, "batch channel height width"], alpha, sigma, label, scale: float | int
    ) -> Float[Tensor, "batch channel height width"]:
        """The same rule for E[x0 | x]; where alpha > 0 it is Tweedie's formula applied to ``guided_score``."""
        return self._denoise(x, alpha, sigma, self._guided(label, scale, len(x)), scale)

    def _guided(self, label, scale, count):
        if isinstance(scale, bool) or not isinstance(scale, float | int) or not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number; got {scale!r}")
        if label is None:
            raise ValueError(
                "label must be a class or one class per sample; got None, which leaves nothing to guide to"
            )
        return self._label(label, count)

    def denoiser(self, schedule, label=None, guidance_scale: float | int | None = None):
        """``denoise(x, t) -> x0_hat`` along a schedule: what every sampler takes; conditional with a label, or guided.

        ``label`` and ``guidance_scale`` are those of ``guided_score``, and are checked here, once.
        """
        count = 1 if label is None or torch.as_tensor(label).ndim == 0 else len(label)
        if guidance_scale is None:
            label = self._label(label, count)
        else:
            label = self._guided(label, guidance_scale, count)

        def exact(x, t):
            nonlocal label
            if label is not None and count != 1 and count != len(x):
                raise ValueError(f"label has {count} classes, one per sample; x has {len(x)} samples")
            label = None if label is None else label.to(x.device)  # moved on the first call
            return self._denoise(x, schedule.alpha(t), schedule.sigma(t), label, guidance_scale)

        return exact

    def sample(
        self, n: int, labels: int | Int[Tensor, "n"] | None = None, alpha=1.0, sigma=0.0, *, generator=None
    ) -> Float[Tensor, "n channel height width"]:
        """n draws of alpha x0 + sigma eps, in float64 on the CPU; ``labels`` a class, one per draw, or None."""
        check.positive_int("n", n)
        labels = self._label(labels, n)
        chances = self.weights.flatten().expand(n, -1)
        if labels is not None:
            chances = self._masked(chances.log(), labels.cpu()).exp()
        chosen = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        _, _, _, axes, _, spread, noise = self._tables
        means, axes = self.means.flatten(0, 1)[chosen].flatten(1), axes.unflatten(0, spread.shape)
        alpha, sigma = float(alpha), float(sigma)
        white = torch.randn(n, means.shape[1], dtype=torch.float64, generator=generator)
        wide = torch.randn(n, spread.shape[1], dtype=torch.float64, generator=generator)
        drawn = alpha * means + (alpha**2 * noise[chosen] + sigma**2).sqrt()[:, None] * white
        for k in chosen.unique():
            drawn[chosen == k] += alpha * (wide[chosen == k] * spread[k].sqrt()) @ axes[k]
        return drawn.unflatten(1, self.shape)
