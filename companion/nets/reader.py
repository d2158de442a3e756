"""A network that reads drawn scenes: what is in a picture, to be held against its caption."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion import _checks as check
from companion.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES

# the relation is one of none, beside, above: a picture has no wording
KINDS = (len(BACKGROUNDS), 3, *(len(SHAPES), len(COLOURS), len(SIZES)) * 2)


def likeliest(logits):  # (batch, logits) -> (batch, fields)
    """A row of ``what`` from the logits of its fields, ``KINDS`` long each, in the wording of ``scenes.canonical``."""
    best = [part.argmax(1) for part in logits.split(KINDS, 1)]
    two = best[1] > 0
    relation = torch.where(two, 2 * best[1] - 1, 0)
    second = [torch.where(two, part, -1) for part in best[5:]]
    return torch.stack([best[0], relation, *best[2:5], *second], 1)


class Reader(nn.Module):
    """Convolutions down to a sixteenth of 64 by 64 pixels, all that is left in one layer, and logits for each field.

    Called as net(x): the logits of the fields of ``scenes.FIELDS`` side by side, ``KINDS`` long each; the shapes are
    counted from left to right or from above to below (``scenes.canonical``). ``width`` channels (a multiple of 8) at
    half the resolution. Raises ValueError for arguments or inputs that do not fit.
    """

    def __init__(self, width: int = 24, features: int = 64):
        super().__init__()
        check.positive_int("features", features)
        if isinstance(width, bool) or width <= 0 or width % 8:
            raise ValueError(f"width must be a multiple of 8; got {width}")
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        self.body = nn.ModuleList([_stage(inside, out) for inside, out in pairwise(widths)])
        self.project, self.decide = nn.Linear(4 * width * 16, features), nn.Linear(features, sum(KINDS))
        self.to(memory_format=torch.channels_last)

    def levels(self, x: Float[Tensor, "batch 3 64 64"]) -> list[Tensor]:
        """The activations at 32, 16, 8 and 4 pixels: a perceptual distance compares two pictures there."""
        if x.shape[1:] != (3, 64, 64):
            raise ValueError(f"x must have shape (batch, 3, 64, 64); got {tuple(x.shape)}")
        found, x = [], x.contiguous(memory_format=torch.channels_last)
        for stage in self.body:
            x = stage(x)
            found.append(x)
        return found

    def features(self, x: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch features"]:
        """The activations before the last layer, after their nonlinearity (SiLU)."""
        return F.silu(self.project(self.levels(x)[-1].flatten(1)))

    def forward(self, x: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch logits"]:
        """The logits of all fields."""
        return self.decide(self.features(x))

    def read(self, x: Float[Tensor, "batch 3 64 64"]) -> Int[Tensor, "batch fields"]:
        """The likeliest value of each field, as ``scenes.canonical`` gives them: a row of ``what`` a picture."""
        return likeliest(self(x))


def _stage(inside: int, out: int) -> nn.Sequential:
    """Half the resolution, and once more at it, but for the first, where pixels are many."""
    layers = [nn.Conv2d(inside, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
    more = [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
    return nn.Sequential(*layers, *(more if inside > 3 else []))
