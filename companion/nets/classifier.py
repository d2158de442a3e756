"""A small network that reads digits; what it knows just before it decides serves as perceptual features.

With a time it reads noisy digits too, and its gradient guides a sampler.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.embedding import timestep_embedding

TIME = 64  # numbers that embed a time


class Classifier(nn.Module):
    """Convolutions down to an eighth of the resolution, the mean over what is left, ``features`` numbers, the logits.

    ``width`` channels at half the resolution (a multiple of 8), doubled at each of two further halvings. There is no
    batch normalisation: an image's output does not depend on its neighbours. Made for images of 32 by 32; height and
    width must be divisible by 8. With ``timed`` it is called with times in [0, 1], one per sample: each scales and
    shifts what the normalisations give, as in the U-Net, and at first does nothing. Raises ValueError for arguments or
    inputs that do not fit.
    """

    def __init__(self, channels: int = 1, width: int = 32, classes: int = 10, features: int = 64, timed: bool = False):
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("classes", classes), ("features", features)):
            check.positive_int(name, value)
        if width % 8:
            raise ValueError(f"width must be a multiple of 8; got {width}")
        self.channels, self.timed = channels, timed
        self.body = nn.Sequential(
            *_block(channels, width, 2),
            *_block(width, width, 1),
            *_block(width, 2 * width, 2),
            *_block(2 * width, 2 * width, 1),
            *_block(2 * width, 4 * width, 2),
        )
        self.project, self.decide = nn.Linear(4 * width, features), nn.Linear(features, classes)
        if timed:
            self.time = nn.Sequential(nn.Linear(TIME, TIME), nn.SiLU())
            self.films = nn.ModuleList(_film(norm.num_channels) for norm in self.body[1::3])
        self.to(memory_format=torch.channels_last)

    def features(self, x: Float[Tensor, "batch channels height width"], t=None) -> Float[Tensor, "batch features"]:
        """The activations before the last layer, after their nonlinearity (SiLU, so that they are above -0.28)."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(
                f"x must have shape (batch, {self.channels}, h, w), h and w divisible by 8; got {tuple(x.shape)}"
            )
        if self.timed != (t is not None):
            raise ValueError(f"t must {'be given' if self.timed else 'be None'}: the network has timed={self.timed}")
        x = x.contiguous(memory_format=torch.channels_last)
        pooled = (self._told(x, t) if self.timed else self.body(x)).mean((2, 3))
        return F.silu(self.project(pooled))

    def _told(self, x, t):
        """The body, with the time between each normalisation and its nonlinearity."""
        emb = self.time(timestep_embedding(1000.0 * t, TIME))
        for convolve, normalise, film in zip(self.body[::3], self.body[1::3], self.films, strict=True):
            scale, shift = film(emb)[:, :, None, None].chunk(2, 1)
            x = F.silu(normalise(convolve(x)) * (1 + scale) + shift)
        return x

    def forward(self, x: Float[Tensor, "batch channels height width"], t=None) -> Float[Tensor, "batch classes"]:
        """The logits of the classes: their softmax is the probability of each."""
        return self.decide(self.features(x, t))


def _film(channels: int) -> nn.Linear:
    """A layer from the embedded time to a scale and a shift of each channel, zero at first."""
    layer = nn.Linear(TIME, 2 * channels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _block(inside: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, out, 3, stride=stride, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
