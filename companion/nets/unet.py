"""The U-Net: down to a coarse grid, up again, with the fine details handed across (Ho et al. 2020, appendix B)."""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.embedding import Conditioned, place_embedding
from companion.nets.text import CrossAttention


def upsampled(x):  # (batch, channels, h, w) -> (batch, channels, 2 h, 2 w)
    """Every pixel as a square of 2 × 2, which is ``F.interpolate(x, scale_factor=2.0, mode="nearest")``.

    Written out because PyTorch 2.13, which compiles that call under bfloat16 on a CPU, can lose the gradient of x.
    """
    batch, channels, height, width = x.shape
    wide = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return wide.reshape(batch, channels, 2 * height, 2 * width)


class ResBlock(nn.Module):
    """Two convolutions around a skip; the time shifts and scales the second normalisation (FiLM, AdaGN)."""

    def __init__(self, inside: int, out: int, emb: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inside), nn.Conv2d(inside, out, 3, padding=1)
        self.film = nn.Linear(emb, 2 * out)
        self.norm2, self.conv2 = nn.GroupNorm(8, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(inside, out, 1) if inside != out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x, emb, words=None):  # (batch, inside, h, w), (batch, emb) -> (batch, out, h, w); words unused
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every pixel looks at every other one, then at every word, in heads of ``head`` channels; starts as the identity.

    ``context`` is how many numbers a word has, None where there are no words.
    """

    def __init__(self, channels: int, context: int | None = None, head: int = 32):
        super().__init__()
        self.heads = max(1, channels // head)
        if channels % self.heads:
            raise ValueError(f"channels must fit into heads of about {head} for attention; got {channels}")
        self.norm, self.qkv = nn.GroupNorm(8, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.cross = CrossAttention(channels, context, self.heads) if context is not None else None

    def forward(self, x, words=None):  # (batch, channels, h, w), kept; (batch, length, context)
        batch, channels, height, width = x.shape
        split = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = split.transpose(-1, -2).unbind(1)  # each (batch, heads, pixels, channels per head)
        looked_up = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        x = x + self.out(looked_up.reshape(batch, channels, height, width))
        if self.cross is None:
            return x
        return self.cross(x.flatten(2).mT, words).mT.unflatten(-1, (height, width))


class AttentiveBlock(ResBlock):
    """A residual block, then attention over all pixels of its level, and over the words if there are any."""

    def __init__(self, inside: int, out: int, emb: int, context: int | None = None, head: int = 32):
        super().__init__(inside, out, emb)
        self.attention = Attention(out, context, head)

    def forward(self, x, emb, *words):  # as a residual block
        return self.attention(super().forward(x, emb), *words)


class UNet(Conditioned):
    """Residual blocks over resolutions that halve, attention at the coarsest; output of x's height and width.

    ``width`` channels at full resolution, ``width * multipliers[i]`` at level i (each a multiple of 8), ``blocks``
    residual blocks a level. With ``classes`` the network takes ``cond``, a class per sample as int64 of shape (batch,);
    the class number ``classes`` means none given, and so does cond=None. ``time_scale`` multiplies t before it is
    embedded: 1000 for times in [0, 1], 1 for times up to about 1000. With ``patch`` above 1, squares of patch × patch
    pixels become channels before the first convolution and pixels again after the last, which makes the network patch²
    times cheaper. ``fourier`` lists exponents n for which sin and cos of 2^n π x join the inputs, so that the network
    sees the last bits of x (Kingma et al. 2021, appendix C). ``outputs`` is the number of channels that come out,
    ``channels`` when not given. ``attention`` lists levels, 0 being the finest, where attention follows every residual
    block too. With ``text``, the arguments of a ``TextEncoder``, ``cond`` is a text per sample, int64 of shape (batch,
    length), all zeros or None for none: the mean over its words' vectors joins the time, and wherever there is
    attention among pixels, attention to the words follows. Attention works in heads of ``head`` channels. With
    ``places`` every pixel after the first convolution is told its row and column (``place_embedding``): convolutions
    know where they are only from the zeros around the picture. Height and width must be divisible by patch × 2^(levels
    − 1). Raises ValueError for arguments or inputs that do not fit.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        classes: int | None = None,
        time_scale: float | int = 1000.0,
        dropout: float | int = 0.0,
        patch: int = 1,
        fourier: Sequence[int] = (),
        outputs: int | None = None,
        attention: Sequence[int] = (),
        text: dict | None = None,
        head: int = 32,
        places: bool = False,
    ):
        if width % 8 or not multipliers:
            raise ValueError(f"width must be a multiple of 8 and multipliers not empty; got {width}, {multipliers}")
        check.positive_int("patch", patch)
        check.positive_int("head", head)
        if not set(attention) <= set(range(len(multipliers))):
            raise ValueError(f"attention must list levels from 0 to {len(multipliers) - 1}; got {list(attention)}")
        emb = 4 * width
        super().__init__(width, emb, classes, time_scale, text)
        context = None if self.text is None else self.text.width
        attentive = functools.partial(AttentiveBlock, context=context, head=head)
        self.channels, self.width, self.places = channels, width, places
        self.patch, self.factor = patch, patch * 2 ** (len(multipliers) - 1)
        self.register_buffer("octaves", math.pi * 2.0 ** torch.tensor(list(fourier)), persistent=False)
        self.stem = nn.Conv2d(channels * (1 + 2 * len(fourier)) * patch**2, width, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)

        self.down, self.up, handed = nn.ModuleList(), nn.ModuleList(), [width]
        now = width
        for level, multiplier in enumerate(multipliers):
            block = attentive if level in attention else ResBlock
            for _ in range(blocks):
                self.down.append(block(now, width * multiplier, emb))
                now = width * multiplier
                handed.append(now)
            if level < len(multipliers) - 1:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                handed.append(now)
        self.middle = nn.ModuleList([ResBlock(now, now, emb), Attention(now, context, head), ResBlock(now, now, emb)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            block = attentive if level in attention else ResBlock
            for _ in range(blocks + 1):
                self.up.append(block(now + handed.pop(), width * multiplier, emb))
                now = width * multiplier
            if level > 0:
                self.up.append(nn.Conv2d(now, now, 3, padding=1))
        outputs = channels if outputs is None else outputs
        self.norm, self.out = nn.GroupNorm(8, now), nn.Conv2d(now, outputs * patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], t: Float[Tensor, "batch"], cond=None
    ) -> Float[Tensor, "batch outputs height width"]:
        """The output at x and t."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x must have shape (batch, {self.channels}, h, w), h and w divisible by {self.factor}; "
                f"got {tuple(x.shape)}"
            )
        emb, words = self.embed(t, cond)
        told = () if words is None else (words,)
        angles = (self.octaves[:, None, None, None] * x[:, None]).flatten(1, 2)  # none without fourier
        seen = F.pixel_unshuffle(torch.cat([x, angles.sin(), angles.cos()], 1), self.patch)
        h = self.stem(seen.contiguous(memory_format=torch.channels_last))
        if self.places:
            table = place_embedding(*h.shape[2:], self.width, device=h.device).to(h.dtype)  # autocast: h stays half
            h = h + table.mT.unflatten(-1, h.shape[2:])
        handed = [h]
        for layer in self.down:
            h = layer(h, emb, *told) if isinstance(layer, ResBlock) else layer(h)
            handed.append(h)
        for layer in self.middle:
            h = layer(h, emb, *told) if isinstance(layer, ResBlock) else layer(h, *told)
        h = self.dropout(h)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, handed.pop()], 1), emb, *told)
            else:
                h = layer(upsampled(h))
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch)
