"""Time as a vector: sines and cosines over a geometric range of periods."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

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
