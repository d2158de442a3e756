"""The diffusion transformer: squares of pixels as a set of vectors, and attention among them (Peebles & Xie 2023)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.embedding import Conditioned, timestep_embedding


class DiTBlock(nn.Module):
    """Attention, then two layers, each normalised, shifted, scaled and gated by the time: adaLN-zero.

    The gates start at zero, so that the block starts as the identity.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaln = nn.Linear(width, 6 * width)

    def attend(self, x):  # (batch, tokens, width), kept
        """Every token looks at every other one, in ``heads`` heads."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x, emb):  # (batch, tokens, width), (batch, width) -> (batch, tokens, width)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaln(emb)[:, None].chunk(6, -1)
        x = x + gate * self.attend(self.norm(x) * (1 + scale) + shift)
        return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)


class DiT(Conditioned):
    """Patches of ``patch`` × ``patch`` pixels as tokens, ``depth`` blocks over all of them; output of x's size.

    Made for images of ``size`` by ``size`` alone, which patch must divide: each token is told its row and column by
    fixed sines and cosines, half of ``width`` for each (so width must be a multiple of 4, and of ``heads``). The time
    and the class act through each block's shifts, scales and gates. ``classes``, ``cond``, ``time_scale`` and
    ``outputs`` are as for ``UNet``. Each block starts as the identity, and the output at zero. Raises ValueError for
    arguments or inputs that do not fit. Source: Peebles & Xie 2023, section 3.2.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 32,
        patch: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 2,
        classes: int | None = None,
        time_scale: float | int = 1000.0,
        outputs: int | None = None,
    ):
        given = {"channels": channels, "size": size, "patch": patch, "width": width, "depth": depth, "heads": heads}
        for name, value in given.items():
            check.positive_int(name, value)
        if size % patch:
            raise ValueError(f"patch must be a divisor of size; got {patch} and {size}")
        if width % 4 or width % heads:
            raise ValueError(f"width must be a multiple of 4 and of heads; got {width} and {heads}")
        super().__init__(width, width, classes, time_scale)
        self.channels, self.size, self.patch = channels, size, patch
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        side = torch.arange(size // patch, dtype=torch.float32)
        rows, columns = torch.cartesian_prod(side, side).unbind(1)
        places = torch.cat([timestep_embedding(rows, width // 2), timestep_embedding(columns, width // 2)], 1)
        self.register_buffer("places", places, persistent=False)
        self.blocks = nn.ModuleList([DiTBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.adaln = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, (channels if outputs is None else outputs) * patch**2)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (*(block.adaln for block in self.blocks), self.adaln, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch channels size size"], t: Float[Tensor, "batch"], cond=None
    ) -> Float[Tensor, "batch outputs size size"]:
        """The output at x and t."""
        if x.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"x must have shape (batch, {self.channels}, {self.size}, {self.size}); got {tuple(x.shape)}"
            )
        emb = self.embed(t, cond)
        tokens = self.stem(x).flatten(2).mT + self.places
        for block in self.blocks:
            tokens = block(tokens, emb)
        shift, scale = self.adaln(emb)[:, None].chunk(2, -1)
        pixels = self.out(self.norm(tokens) * (1 + scale) + shift)
        side = self.size // self.patch
        return F.pixel_shuffle(pixels.mT.unflatten(-1, (side, side)), self.patch)
