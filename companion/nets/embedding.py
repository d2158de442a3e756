"""Time as a vector: sines and cosines over a geometric range of periods; and what a network makes of it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check


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


class Conditioned(nn.Module):
    """A network that is told the time and, with ``classes``, the class: what ``UNet`` and ``DiT`` share.

    ``frequencies`` numbers embed the time, two layers make ``emb`` of them, and a vector for the class is added.
    """

    def __init__(self, frequencies: int, emb: int, classes: int | None, time_scale: float | int):
        super().__init__()
        self.frequencies, self.classes, self.time_scale = frequencies, classes, time_scale
        self.time = nn.Sequential(nn.Linear(frequencies, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(classes + 1, emb) if classes is not None else None

    def embed(self, t: Float[Tensor, "batch"], cond) -> Float[Tensor, "batch emb"]:
        """The vector that tells every block the time and, if any, the class."""
        emb = self.time(timestep_embedding(self.time_scale * t, self.frequencies))
        if self.label is None:
            if cond is not None:
                raise ValueError("cond was given, but this network has no classes")
            return F.silu(emb)
        cond = torch.full(t.shape, self.classes, device=t.device) if cond is None else cond
        return F.silu(emb + self.label(cond))
