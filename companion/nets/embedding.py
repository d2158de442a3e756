"""Time as a vector: sines and cosines over a geometric range of periods; and what a network makes of it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.text import TextEncoder


def timestep_embedding(
    t: Float[Tensor, "batch"], dim: int, max_period: float | int = 10000.0
) -> Float[Tensor, "batch dim"]:
    """cos and sin of t at dim/2 frequencies from 1 to 1/max_period (Vaswani et al. 2017, section 3.5).

    Times up to about 1000 are told apart; scale t in [0, 1] up first. Raises ValueError unless dim is even and t has
    shape (batch,).
    """
    check.positive_int("dim", dim)
    if dim % 2 or t.ndim != 1:
        raise ValueError(f"dim must be even and t of shape (batch,); got {dim} and {tuple(t.shape)}")
    powers = torch.arange(dim // 2, device=t.device, dtype=t.dtype) / (dim // 2)
    angles = t[:, None] * torch.exp(-math.log(max_period) * powers)
    return torch.cat([angles.cos(), angles.sin()], 1)


def place_embedding(
    height: int, width: int, dim: int, *, device=None, max_period: float | int = 10000.0
) -> Float[Tensor, "places dim"]:
    """Where each pixel of a grid is, row by row: half of ``dim`` tells the row, the other half the column.

    Each half is ``timestep_embedding`` of a number from 0, in float32. Raises ValueError unless dim is a multiple of 4.
    """
    check.positive_int("height", height)
    check.positive_int("width", width)
    if not isinstance(dim, int) or dim < 4 or dim % 4:
        raise ValueError(f"dim must be a multiple of 4; got {dim}")
    rows, columns = (torch.arange(n, dtype=torch.float32, device=device) for n in (height, width))
    down, across = (timestep_embedding(n, dim // 2, max_period) for n in (rows, columns))
    return torch.cat([down.repeat_interleave(width, 0), across.repeat(height, 1)], 1)


class Conditioned(nn.Module):
    """A network that is told the time and, with ``classes`` or ``text``, what to show: ``UNet`` and ``DiT`` are such.

    ``frequencies`` numbers embed the time, two layers make ``emb`` of them, and a vector for the class is added, or one
    made of the mean over the words' vectors, which is zero at first. ``text`` holds the arguments of a ``TextEncoder``.
    ``null`` is what stands for no condition in ``cond``: the number ``classes``, or word 0; None where there is none.
    """

    def __init__(
        self, frequencies: int, emb: int, classes: int | None, time_scale: float | int, text: dict | None = None
    ):
        if classes is not None and text is not None:
            raise ValueError(f"classes must be None for a network with text; got {classes}")
        super().__init__()
        self.frequencies, self.classes, self.time_scale = frequencies, classes, time_scale
        self.null = classes if text is None else 0
        self.time = nn.Sequential(nn.Linear(frequencies, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(classes + 1, emb) if classes is not None else None
        self.text = TextEncoder(**text) if text is not None else None
        if text is not None:
            self.whole = nn.Linear(self.text.width, emb)
            nn.init.zeros_(self.whole.weight)
            nn.init.zeros_(self.whole.bias)

    def embed(self, t: Float[Tensor, "batch"], cond) -> tuple[Tensor, Tensor | None]:
        """What tells every block the time and what to show, (batch, emb); and the words' own vectors, or None."""
        emb = self.time(timestep_embedding(self.time_scale * t, self.frequencies))
        if self.text is not None:
            words = self.text(self._tokens(t, cond))
            return F.silu(emb + self.whole(words.mean(1))), words
        if self.label is None:
            if cond is not None:
                raise ValueError("cond was given, but this network has no classes and no text")
            return F.silu(emb), None
        cond = torch.full(t.shape, self.classes, device=t.device) if cond is None else cond
        return F.silu(emb + self.label(cond)), None

    def _tokens(self, t, cond):
        """The text of every sample, or none."""
        shape = len(t), self.text.length
        if cond is None:
            return torch.zeros(shape, dtype=torch.int64, device=t.device)
        if cond.shape != shape or cond.dtype != torch.int64:
            raise ValueError(f"cond must be int64 of shape {shape}; got {cond.dtype} of shape {tuple(cond.shape)}")
        return cond
