"""A small network for points in the plane."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.embedding import timestep_embedding


class MLP(nn.Module):
    """Fully connected, with the time's embedding beside the input; output of x's shape (batch, dim).

    ``time_scale`` multiplies t before it is embedded: 1000 for times in [0, 1], 1 for times up to about 1000.
    """

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3, time_scale: float | int = 1000.0):
        super().__init__()
        for name, value in (("dim", dim), ("width", width), ("depth", depth)):
            check.positive_int(name, value)
        self.time_scale, self.time_dim = time_scale, 32
        sizes = [dim + self.time_dim, *[width] * depth]
        hidden = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, dim))

    def forward(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, "batch"], cond=None
    ) -> Float[Tensor, "batch dim"]:
        """The output at x and t; ``cond`` is not used."""
        return self.layers(torch.cat([x, timestep_embedding(self.time_scale * t, self.time_dim)], 1))
