"""Words for networks: a transformer that reads them, and attention from pixels to words (Rombach et al. 2022)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion import _checks as check


class TextBlock(nn.Module):
    """Attention among the words, then two layers, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x):  # (batch, length, width), kept
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """A transformer over ``length`` words out of ``words``: from numbers of words to as many vectors of ``width``.

    A vector for each word and one for each place, both learned; ``depth`` blocks of attention among all of them, in
    ``heads`` heads, which must divide width. Word 0, which fills a short text up, is a word like any other: a text of
    zeros alone stands for no text. Raises ValueError for arguments or tokens that do not fit.
    """

    def __init__(self, words: int, length: int, width: int, depth: int = 2, heads: int = 4):
        given = {"words": words, "length": length, "width": width, "depth": depth, "heads": heads}
        for name, value in given.items():
            check.positive_int(name, value)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads; got {width} and {heads}")
        super().__init__()
        self.length, self.width = length, width
        self.word, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width))
        self.blocks = nn.Sequential(*(TextBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """What each word means where it stands."""
        if tokens.ndim != 2 or tokens.shape[1] != self.length or tokens.dtype != torch.int64:
            raise ValueError(
                f"tokens must be int64 of shape (batch, {self.length}); got {tokens.dtype} of shape "
                f"{tuple(tokens.shape)}"
            )
        return self.norm(self.blocks(self.word(tokens) + self.places))


class CrossAttention(nn.Module):
    """Every place of x looks at every word: queries from x, keys and values from the words; added to x.

    ``channels`` numbers a place, ``context`` numbers a word; ``heads`` heads, which must divide channels, by default
    of about 32 channels each. Starts as the identity. Raises ValueError for arguments or inputs that do not fit.
    Source: Rombach et al. 2022, section 3.3.
    """

    def __init__(self, channels: int, context: int, heads: int | None = None):
        check.positive_int("channels", channels)
        check.positive_int("context", context)
        heads = max(1, channels // 32) if heads is None else heads
        check.positive_int("heads", heads)
        if channels % heads:
            raise ValueError(f"channels must be a multiple of heads; got {channels} and {heads}")
        super().__init__()
        self.heads = heads
        self.norm, self.q = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.kv, self.out = nn.Linear(context, 2 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "batch places channels"], words: Float[Tensor, "batch length context"]
    ) -> Float[Tensor, "batch places channels"]:
        """x and what it found among the words."""
        wanted = x.shape[:1], self.kv.in_features
        if x.ndim != 3 or words.ndim != 3 or (words.shape[:1], words.shape[2]) != wanted:
            raise ValueError(
                f"words must have shape (batch, length, {self.kv.in_features}) for x of shape (batch, places, "
                f"{self.q.in_features}); got {tuple(words.shape)} and {tuple(x.shape)}"
            )
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(words).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
