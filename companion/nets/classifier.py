"""A small network that reads digits; what it knows just before it decides serves as perceptual features."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check


class Classifier(nn.Module):
    """Convolutions down to an eighth of the resolution, the mean over what is left, ``features`` numbers, the logits.

    ``width`` channels at half the resolution (a multiple of 8), doubled at each of two further halvings. There is no
    batch normalisation: an image's output does not depend on its neighbours. Made for images of 32 by 32; height and
    width must be divisible by 8. Raises ValueError for arguments or inputs that do not fit.
    """

    def __init__(self, channels: int = 1, width: int = 32, classes: int = 10, features: int = 64):
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("classes", classes), ("features", features)):
            check.positive_int(name, value)
        if width % 8:
            raise ValueError(f"width must be a multiple of 8; got {width}")
        self.channels = channels
        self.body = nn.Sequential(
            *_block(channels, width, 2),
            *_block(width, width, 1),
            *_block(width, 2 * width, 2),
            *_block(2 * width, 2 * width, 1),
            *_block(2 * width, 4 * width, 2),
        )
        self.project, self.decide = nn.Linear(4 * width, features), nn.Linear(features, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The activations before the last layer, after their nonlinearity (SiLU, so that they are above -0.28)."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(
                f"x must have shape (batch, {self.channels}, h, w), h and w divisible by 8; got {tuple(x.shape)}"
            )
        pooled = self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        return F.silu(self.project(pooled))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits of the classes: their softmax is the probability of each."""
        return self.decide(self.features(x))


def _block(inside: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, out, 3, stride=stride, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
