"""Pictures as a few numbers and back: an autoencoder whose latents are Gaussian, and one whose latents are words.

And what helps to train them: a network that tells pictures from reconstructions patch by patch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion import _checks as check
from companion.nets.unet import upsampled


class Upsampled(nn.Module):
    """Twice the height and width, as in the U-Net."""

    def forward(self, x):  # (batch, width, h, w) -> (batch, width, 2 h, 2 w)
        return upsampled(x)


class Block(nn.Module):
    """Two convolutions around a skip, as in the U-Net but with no time; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x):  # (batch, width, h, w), kept
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Autoencoder(nn.Module):
    """The body that ``VAE`` and ``VQVAE`` share: an encoder to ``outputs`` numbers a place, a decoder from ``latent``.

    Convolutions alone, so that any height and width divisible by patch × 2^(len(widths) − 1) will do.
    """

    def __init__(self, channels: int, latent: int, outputs: int, widths: Sequence[int], blocks: int, patch: int):
        for name, value in (("channels", channels), ("latent", latent), ("blocks", blocks), ("patch", patch)):
            check.positive_int(name, value)
        if not widths or any(width % 8 or width <= 0 for width in widths):
            raise ValueError(f"widths must be multiples of 8, one or more; got {tuple(widths)}")
        super().__init__()
        self.channels, self.latent, self.patch = channels, latent, patch
        self.widths, self.blocks = tuple(widths), blocks
        self.factor = patch * 2 ** (len(widths) - 1)
        down = [nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)]
        up = [nn.Conv2d(latent, widths[-1], 3, padding=1), Block(widths[-1]), Block(widths[-1])]
        for fine, coarse in zip(widths, widths[1:], strict=False):
            down += [*(Block(fine) for _ in range(blocks)), nn.Conv2d(fine, coarse, 3, stride=2, padding=1)]
        for fine, coarse in reversed(list(zip(widths, widths[1:], strict=False))):
            up += [Upsampled(), nn.Conv2d(coarse, fine, 3, padding=1)]
            up += [Block(fine) for _ in range(blocks)]
        down += [Block(widths[-1]), Block(widths[-1])]
        self.encoder = nn.Sequential(*down, *_last(widths[-1], outputs))
        self.decoder = nn.Sequential(*up, *_last(widths[0], channels * patch**2))
        self.to(memory_format=torch.channels_last)

    def _encode(self, x):
        """What the encoder says of each place, (batch, outputs, h, w), in x's dtype whatever the network worked in."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x must have shape (batch, {self.channels}, h, w), h and w divisible by {self.factor}; "
                f"got {tuple(x.shape)}"
            )
        seen = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        return self.encoder(seen).to(x.dtype)

    def decode(self, z: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch channels height width"]:
        """The picture of a latent, in z's dtype. Raises ValueError for a shape that does not fit."""
        if z.ndim != 4 or z.shape[1] != self.latent:
            raise ValueError(f"z must have shape (batch, {self.latent}, h, w); got {tuple(z.shape)}")
        pixels = self.decoder(z.contiguous(memory_format=torch.channels_last))
        return F.pixel_shuffle(pixels, self.patch).to(z.dtype)


def _last(inside: int, out: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, inside), nn.SiLU(), nn.Conv2d(inside, out, 3, padding=1)]


# ---- latents that are Gaussian --------------------------------------------------------------------------------------


class Posterior(NamedTuple):
    """q(z | x), independent normal distributions: ``mean`` and ``std``, each (batch, latent, h, w)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise=torch.randn_like) -> Tensor:
        """A draw, of the mean's shape: mean + std ``noise(mean)``; with ``torch.zeros_like`` it is the mean."""
        return self.mean + self.std * noise(self.mean)

    def kl(self) -> Float[Tensor, "batch"]:
        """KL(q(z | x) || N(0, 1)) in nats, summed over coordinates (Kingma & Welling 2014, appendix B)."""
        terms = (self.mean.square() + self.std.square() - 1) / 2 - self.std.log()
        return terms.flatten(1).sum(1)


class VAE(Autoencoder):
    """A variational autoencoder of pictures (Kingma & Welling 2014), as small as a CPU asks for.

    Squares of ``patch`` × ``patch`` pixels become channels; ``blocks`` residual blocks of ``widths[i]`` channels (each
    a multiple of 8) at level i, half the resolution at each next one, two blocks at the coarsest; ``latent`` means and
    as many standard deviations for each place there. The decoder is the mirror image. By default 64 × 64 × 3 numbers
    become 8 × 8 × 4. Called on x it gives (x_hat, posterior), x_hat decoded from a draw.

    At first the standard deviations are about e^−3: a decoder that hears nothing but noise learns to do without z.

    The buffer ``scale`` is for diffusion on latents: one number that brings their standard deviation to 1, measured
    after training, until then 1 (Rombach et al. 2022, appendix G). Raises ValueError for arguments or inputs that do
    not fit.
    """

    def __init__(
        self,
        channels: int = 3,
        latent: int = 4,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        patch: int = 2,
    ):
        super().__init__(channels, latent, 2 * latent, widths, blocks, patch)
        self.register_buffer("scale", torch.tensor(1.0))
        nn.init.constant_(self.encoder[-1].bias[latent:], -6.0)

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """q(z | x). The variance stays between e^−20 and e^10."""
        mean, log_variance = self._encode(x).chunk(2, 1)
        return Posterior(mean, (log_variance.clamp(-20.0, 10.0) / 2).exp())

    def forward(self, x: Float[Tensor, "batch channels height width"], noise=torch.randn_like):
        """x again, by way of a latent drawn with ``noise``; and q(z | x)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(noise)), posterior

    def latents(
        self, x: Float[Tensor, "batch channels height width"], noise=torch.randn_like
    ) -> Float[Tensor, "batch latent h w"]:
        """What a diffusion model is trained on: ``scale`` times a draw from q(z | x)."""
        return self.scale * self.encode(x).sample(noise)

    def pictures(self, z: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch channels height width"]:
        """The pictures of a diffusion model's samples: z / ``scale``, decoded."""
        return self.decode(z / self.scale)


# ---- latents that are words -----------------------------------------------------------------------------------------


class Codes(NamedTuple):
    """Latents brought to the codebook: ``z_q`` (batch, latent, h, w), its gradient handed to z as it is (straight
    through); the entries' ``indices`` (batch, h, w); two scalars, each the mean over coordinates of (z − z_q)²:
    ``codebook_loss`` pulls the entries towards z, ``commitment_loss`` z towards the entries.
    """

    z_q: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


class VQVAE(Autoencoder):
    """An autoencoder whose latent at each place is one of ``codebook`` vectors (van den Oord et al. 2017).

    The body is that of ``VAE``. The codebook learns through ``Codes.codebook_loss``, the paper's second term; the
    third, ``commitment_loss``, is weighted by the caller (0.25 there). Called on x it gives (x_hat, codes). Raises
    ValueError for arguments or inputs that do not fit.
    """

    def __init__(
        self,
        channels: int = 3,
        latent: int = 4,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        patch: int = 2,
        codebook: int = 512,
    ):
        check.positive_int("codebook", codebook)
        super().__init__(channels, latent, latent, widths, blocks, patch)
        self.codebook = nn.Parameter(torch.randn(codebook, latent))

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent h w"]:
        """z, before it is brought to the codebook."""
        return self._encode(x)

    def nearest(self, z: Float[Tensor, "batch latent h w"]) -> Int[Tensor, "batch h w"]:
        """The index of the entry nearest to z at each place, in squared distance."""
        if z.ndim != 4 or z.shape[1] != self.latent:
            raise ValueError(f"z must have shape (batch, {self.latent}, h, w); got {tuple(z.shape)}")
        with torch.no_grad():
            # cdist works in single precision under autocast, where a matrix product would not
            return torch.cdist(z.movedim(1, -1).flatten(0, 2), self.codebook).argmin(1).unflatten(0, z[:, 0].shape)

    def quantize(self, z: Float[Tensor, "batch latent h w"]) -> Codes:
        """z brought to the codebook, place by place."""
        indices = self.nearest(z)
        entries = self._entries(indices)
        codebook_loss, commitment_loss = F.mse_loss(entries, z.detach()), F.mse_loss(z, entries.detach())
        return Codes(z + (entries - z).detach(), indices, codebook_loss, commitment_loss)

    def _entries(self, indices):
        """(batch, h, w) -> (batch, latent, h, w)"""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]):
        """x again, by way of the codebook; and the codes."""
        codes = self.quantize(self.encode(x))
        return self.decode(codes.z_q), codes

    def decode_indices(self, indices: Int[Tensor, "batch h w"]) -> Float[Tensor, "batch channels height width"]:
        """The pictures of indices into the codebook. Raises ValueError unless they are int64 of shape (batch, h, w)."""
        if indices.ndim != 3 or indices.dtype != torch.int64:
            raise ValueError(
                f"indices must be int64 of shape (batch, h, w); got {indices.dtype} of shape {tuple(indices.shape)}"
            )
        return self.decode(self._entries(indices))

    @torch.no_grad()
    def restart(self, z: Float[Tensor, "batch latent h w"]) -> Int[Tensor, ""]:
        """Move every entry that is nearest to no place of z onto a place drawn at random; returns how many it moved.

        Once on a large batch before training, and then now and again: an entry that no latent is near gets no gradient
        (the remedy of Dhariwal et al. 2020, section 3.1).
        """
        used = torch.zeros(len(self.codebook), dtype=torch.bool, device=z.device)
        used.index_fill_(0, self.nearest(z).flatten(), True)
        places = z.movedim(1, -1).flatten(0, 2)
        drawn = places[torch.randint(len(places), used.shape, device=z.device)]
        self.codebook.copy_(torch.where(used[:, None], self.codebook, drawn))
        return (~used).sum()


def perplexity(indices: Int[Tensor, "*places"], entries: int) -> Float[Tensor, ""]:
    """How many of the ``entries`` are in use: e to the entropy of their frequencies among ``indices``, a scalar.

    1 where all indices are equal, ``entries`` where all are equally frequent. Raises ValueError for indices that are
    none or outside 0 … entries − 1.
    """
    check.positive_int("entries", entries)
    if not indices.numel() or indices.min() < 0 or indices.max() >= entries:
        raise ValueError(f"indices must lie between 0 and {entries - 1}, one or more; got {indices.numel()} of them")
    share = torch.bincount(indices.flatten(), minlength=entries) / indices.numel()
    return torch.special.entr(share).sum().exp()


# ---- a critic -------------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """Tells pictures from reconstructions, patch by patch: a logit for each 8 × 8 pixels, (batch, 1, h/8, w/8).

    Three convolutions that halve the resolution, ``width`` channels after the first, twice and four times as many after
    the others; each logit looks at 38 × 38 pixels (Isola et al. 2017, section 3.2.2). The normalisation is by groups: a
    picture's logits do not depend on its neighbours in the batch. Raises ValueError for arguments or inputs that do not
    fit.
    """

    def __init__(self, channels: int = 3, width: int = 32):
        check.positive_int("channels", channels)
        check.positive_int("width", width)
        if width % 8:
            raise ValueError(f"width must be a multiple of 8; got {width}")
        super().__init__()
        self.channels = channels
        layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for inside in (width, 2 * width):
            layers += [nn.Conv2d(inside, 2 * inside, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * inside)]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 h w"]:
        """The logits: above 0 where it takes the patch for one of a picture."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(
                f"x must have shape (batch, {self.channels}, h, w), h and w divisible by 8; got {tuple(x.shape)}"
            )
        return self.layers(x.contiguous(memory_format=torch.channels_last))
