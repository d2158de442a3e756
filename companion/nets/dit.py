"""The diffusion transformer: squares of pixels as a set of vectors, and attention among them (Peebles & Xie 2023)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.embedding import Conditioned, place_embedding
from companion.nets.text import CrossAttention


class DiTBlock(nn.Module):
    """Attention, then two layers, each normalised, shifted, scaled and gated by the time: adaLN-zero.

    The gates start at zero, so that the block starts as the identity. With ``context``, how many numbers a word has,
    attention to the words stands between the two.
    """

    def __init__(self, width: int, heads: int, context: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaln = nn.Linear(width, 6 * width)
        self.cross = CrossAttention(width, context, heads) if context is not None else None

    def ask(self, x):
        """Queries, keys and values, each (batch, heads, tokens, width / heads)."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def gather(self, found):
        """What the heads found, as one vector for each token."""
        return self.out(found.transpose(1, 2).flatten(2))

    def attend(self, x):  # (batch, tokens, width), kept
        """Every token looks at every other one, in ``heads`` heads."""
        return self.gather(F.scaled_dot_product_attention(*self.ask(x)))

    def forward(self, x, emb, words=None):  # (batch, tokens, width), (batch, width) -> (batch, tokens, width)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaln(emb)[:, None].chunk(6, -1)
        x = x + gate * self.attend(self.norm(x) * (1 + scale) + shift)
        if self.cross is not None:
            x = self.cross(x, words)
        return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)


class Stream(DiTBlock):
    """A transformer block in two halves, so that its attention can be shared with another's."""

    def open(self, x, emb):
        """Queries, keys and values; and what ``close`` needs besides."""
        shift, scale, *rest = self.adaln(emb)[:, None].chunk(6, -1)
        return self.ask(self.norm(x) * (1 + scale) + shift), rest

    def close(self, x, found, rest):
        """The block's output, given what its queries found."""
        gate, shift, scale, gate_mlp = rest
        x = x + gate * self.gather(found)
        return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale) + shift)


class LastStream(nn.Module):
    """The words in the last joint block: looked at, and left as they are, as nobody looks at them again."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.kv, self.adaln = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def open(self, x, emb):
        """No queries, keys and values."""
        shift, scale = self.adaln(emb)[:, None].chunk(2, -1)
        k, v = self.kv(self.norm(x) * (1 + scale) + shift).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (k[:, :, :0], k, v), None

    def close(self, x, found, rest):
        """x as it was."""
        return x


class JointBlock(nn.Module):
    """Patches and words, each with weights of their own, and one attention over both: MM-DiT.

    Starts as the identity of both; the ``last`` one of a network stays it for the words. Source: Esser et al. 2024,
    section 4.
    """

    def __init__(self, width: int, heads: int, last: bool = False):
        super().__init__()
        self.image, self.words = Stream(width, heads), (LastStream if last else Stream)(width, heads)

    def forward(self, x, words, emb):  # (batch, tokens, width), (batch, length, width), (batch, width): the first two
        asked, rest = self.image.open(x, emb)
        asked_by_words, rest_of_words = self.words.open(words, emb)
        both = (torch.cat(parts, 2) for parts in zip(asked, asked_by_words, strict=True))
        found, tokens = F.scaled_dot_product_attention(*both), x.shape[1]
        x = self.image.close(x, found[:, :, :tokens], rest)
        return x, self.words.close(words, found[:, :, tokens:], rest_of_words)


class DiT(Conditioned):
    """Patches of ``patch`` × ``patch`` pixels as tokens, ``depth`` blocks over all of them; output of x's size.

    Made for images of ``size`` by ``size`` alone, which patch must divide: each token is told its row and column by
    fixed sines and cosines, half of ``width`` for each (so width must be a multiple of 4, and of ``heads``). The time
    and the class act through each block's shifts, scales and gates. ``classes``, ``cond``, ``time_scale`` and
    ``outputs`` are as for ``UNet``, and so is ``text``: every block looks at the words after the patches, or with
    ``joint`` at both at once, and then the words change from block to block too (Esser et al. 2024). Each block starts
    as the identity, and the output at zero. Raises ValueError for arguments or inputs that do not fit. Source: Peebles
    & Xie 2023, section 3.2.
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
        text: dict | None = None,
        joint: bool = False,
    ):
        given = {"channels": channels, "size": size, "patch": patch, "width": width, "depth": depth, "heads": heads}
        for name, value in given.items():
            check.positive_int(name, value)
        if size % patch:
            raise ValueError(f"patch must be a divisor of size; got {patch} and {size}")
        if width % 4 or width % heads:
            raise ValueError(f"width must be a multiple of 4 and of heads; got {width} and {heads}")
        if joint and text is None:
            raise ValueError("joint must be False for a network without text; got True")
        super().__init__(width, width, classes, time_scale, text)
        self.channels, self.size, self.patch = channels, size, patch
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("places", place_embedding(size // patch, size // patch, width), persistent=False)
        if joint:
            self.project = nn.Linear(self.text.width, width)  # the words, as the first block takes them
            blocks = [JointBlock(width, heads, last=i == depth - 1) for i in range(depth)]
        else:
            context = None if self.text is None else self.text.width
            blocks = [DiTBlock(width, heads, context) for _ in range(depth)]
        self.blocks, self.joint = nn.ModuleList(blocks), joint
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.adaln = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, (channels if outputs is None else outputs) * patch**2)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        zero = [layer for name, layer in self.blocks.named_modules() if name.endswith((".adaln", ".cross.out"))]
        for layer in (*zero, self.adaln, self.out):
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
        emb, words = self.embed(t, cond)
        tokens = self.stem(x).flatten(2).mT + self.places
        if self.joint:
            words = self.project(words)
        for block in self.blocks:
            if self.joint:
                tokens, words = block(tokens, words, emb)
            else:
                tokens = block(tokens, emb, words)
        shift, scale = self.adaln(emb)[:, None].chunk(2, -1)
        pixels = self.out(self.norm(tokens) * (1 + scale) + shift)
        side = self.size // self.patch
        return F.pixel_shuffle(pixels.mT.unflatten(-1, (side, side)), self.patch)
