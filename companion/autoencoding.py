"""Training an autoencoder of pictures, term by term, and measuring what it keeps."""

import math
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion import data, metrics, scenes
from companion.nets.autoencoder import VAE, VQVAE, perplexity


class Fitted(NamedTuple):
    """After a step: its number from 1, and the terms of the loss, unweighted, as tensors on the device."""

    step: int
    terms: dict[str, Tensor]


def drawn(batch: int, *, seed: int = 0, device=None):
    """Batches of 64×64 scenes of the split "seen", (batch, 3, 64, 64), without end, drawn on the device."""
    check.positive_int("batch", batch)
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    while True:
        what = scenes.describe(batch, generator)
        yield scenes.draw(what, scenes.place(what, generator), grain=0.02, generator=generator)


def perceptual_distance(reader, x: Float[Tensor, "batch *data"], y: Float[Tensor, "batch *data"]) -> Tensor:
    """How differently a network sees x and y; a scalar.

    Mean over ``reader.levels`` of the squared difference of activations, each brought to length 1 across its channels,
    summed over these (Zhang et al. 2018, eq. 1, with weights 1). Raises ValueError for shapes that differ.
    """
    check.same_shape("x", x, "y", y)
    pairs = zip(reader.levels(x), reader.levels(y), strict=True)
    apart = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs]
    return torch.stack(apart).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What a critic minimises, given its logits for pictures and for reconstructions; a scalar (Lim & Ye 2017)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def fit(
    net: nn.Module,
    batches,
    *,
    steps: int,
    lr: float | int = 1e-3,
    warmup: int = 100,
    power: int = 1,
    kl: float | int = 0.0,
    commitment: float | int = 0.25,
    reader=None,
    perceptual: float | int = 0.0,
    critic: nn.Module | None = None,
    adversarial: float | int = 0.0,
    adversarial_from: float | int = 0.5,
    restart_every: int | None = 100,
    seed: int = 0,
    bf16: bool = False,
):
    """Train a ``VAE`` or ``VQVAE`` in place on ``batches`` and yield ``Fitted`` after every step.

    The loss is the mean over values of |x_hat − x|^power, plus: ``kl`` times the KL divergence in nats a picture; or
    the codebook's term and ``commitment`` times the latents' (van den Oord et al. 2017, eq. 3); ``perceptual`` times
    ``perceptual_distance`` under ``reader``; and, from a share ``adversarial_from`` of the steps on, minus
    ``adversarial`` times the mean of ``critic``'s logits, while the critic learns by ``hinge_loss`` (Esser et al.
    2021). AdamW, a rate that rises over ``warmup`` steps and falls along a cosine; gradients clipped to norm 1.
    Codebook entries out of use are restarted every ``restart_every`` steps of the first three quarters; None: never.
    Raises ValueError for arguments that do not fit, RuntimeError when the loss is no longer finite, which is looked at
    every hundred steps and at the last.
    """
    check.positive_int("steps", steps)
    if restart_every is not None:
        check.positive_int("restart_every", restart_every)
    check.one_of("power", power, (1, 2))
    if (perceptual and reader is None) or (adversarial and critic is None):
        raise ValueError("perceptual needs reader, and adversarial needs critic; one of them was not given")
    device = next(net.parameters()).device
    torch.manual_seed(seed)
    gaussian = isinstance(net, VAE)
    restarts = not gaussian and restart_every is not None
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    judge = torch.optim.AdamW(critic.parameters(), lr=lr / 4, betas=(0.5, 0.99)) if critic is not None else None
    net.train()
    for step, x in enumerate(islice(batches, steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        if restarts and step <= 0.75 * steps and (step - 1) % restart_every == 0:
            with torch.no_grad():
                net.restart(net.encode(x))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            found, latent = net(x)
        found = found.float()
        error = (found - x).abs()
        terms = {"reconstruction": (error if power == 1 else error.square()).mean()}
        weights = {"reconstruction": 1.0}
        if gaussian:
            terms["kl"], weights["kl"] = latent.kl().mean(), kl
        else:
            terms |= {"codebook": latent.codebook_loss, "commitment": latent.commitment_loss}
            weights |= {"codebook": 1.0, "commitment": commitment}
        if perceptual:
            terms["perceptual"], weights["perceptual"] = perceptual_distance(reader, found, x), perceptual
        fooling = adversarial and step > adversarial_from * steps
        if fooling:
            critic.requires_grad_(False)
            terms["adversarial"], weights["adversarial"] = -critic(found).mean(), adversarial
        loss = sum(weights[key] * value for key, value in terms.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if fooling:
            critic.requires_grad_(True)
            judge.zero_grad(set_to_none=True)
            terms["critic"] = hinge_loss(critic(x), critic(found.detach()))
            terms["critic"].backward()
            judge.step()
        terms = {key: value.detach() for key, value in terms.items()}
        if (step % 100 == 0 or step == steps) and not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()} at step {step}: a lower lr than {lr} may help")
        yield Fitted(step, terms)
    net.eval()


@torch.no_grad()
def quantized(vae: VAE, codebook: int, *, seed: int = 0) -> VQVAE:
    """A ``VQVAE`` of the same widths with the body of a trained ``VAE``, its entries latents of fresh scenes.

    It is a start for training: the encoder's means take the place of z.
    """
    made = VQVAE(vae.channels, vae.latent, vae.widths, vae.blocks, vae.patch, codebook).to(vae.scale)
    body = {key: value.clone() for key, value in vae.state_dict().items() if key != "scale"}
    last = f"encoder.{len(vae.encoder) - 1}"
    for key in (f"{last}.weight", f"{last}.bias"):
        body[key] = body[key][: vae.latent]
    made.load_state_dict({**body, "codebook": made.codebook})
    images = data.scenes(500, seed=seed).images.to(made.codebook.device)
    latents = torch.cat([vae.encode(part).mean for part in images.split(250)]).movedim(1, -1).flatten(0, 2)
    chosen = torch.randint(len(latents), (codebook,), generator=torch.Generator().manual_seed(seed))
    made.codebook.copy_(latents[chosen.to(latents.device)])
    return made


@torch.no_grad()
def latent_scale(vae: VAE, *, count: int = 2000, seed: int = 1) -> Float[Tensor, ""]:
    """One over the standard deviation of the latents of fresh scenes, all coordinates together; a scalar."""
    images = data.scenes(count, seed=seed).images.to(next(vae.parameters()).device)
    latents = torch.cat([vae.encode(part).sample() for part in images.split(250)])
    return 1 / latents.std()


@torch.no_grad()
def measured(net, reader, *, count: int = 1000, seed: int = 3000) -> dict:
    """What reconstructions of fresh scenes keep, split by split: a dictionary of figures for a card."""
    net.eval()
    others = data.scenes(count, seed=seed + 100)
    reference = _batched(reader.features, others.images)
    found = {}
    for split in ("seen", "objects"):
        real = data.scenes(count, seed=seed, split=split)
        again, extra = reconstructed(net, real.images)
        right = scenes.agreement(_batched(reader.read, again), real.what)["all"]
        original = scenes.agreement(_batched(reader.read, real.images), real.what)["all"]
        figures = {
            "PSNR in dB": psnr(again, real.images).item(),
            "scenes read right from their reconstructions": right.double().mean().item(),
            "scenes read right from the originals": original.double().mean().item(),
            "power above half the band, over the originals' (without grain)": sharpness(again, real).item(),
        }
        if split == "seen":
            figures["Fréchet distance of reader features to other scenes"] = metrics.frechet_distance(
                _batched(reader.features, again), reference
            ).item()
            figures["the same for the originals"] = metrics.frechet_distance(
                _batched(reader.features, real.images), reference
            ).item()
        found[f"{count:,} fresh scenes, split '{split}'"] = {k: round(v, 4) for k, v in {**figures, **extra}.items()}
    return found


@torch.no_grad()
def reconstructed(net, images: Float[Tensor, "n 3 64 64"]) -> tuple[Tensor, dict]:
    """Pictures from their codes (the mean of a ``VAE``'s), and the figures of the code: KL in nats, or perplexity."""
    parts, figures = [], []
    for part in images.split(250):
        if isinstance(net, VAE):
            posterior = net.encode(part)
            parts.append(net.decode(posterior.mean))
            figures.append(posterior.kl())
        else:
            codes = net.quantize(net.encode(part))
            parts.append(net.decode(codes.z_q))
            figures.append(codes.indices)
    if isinstance(net, VAE):
        return torch.cat(parts), {"KL in nats a picture": torch.cat(figures).mean().item()}
    used = perplexity(torch.cat(figures), len(net.codebook)).item()
    return torch.cat(parts), {f"perplexity of the {len(net.codebook)} entries": used}


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]: 10 log10(4 / mean squared error); a scalar."""
    check.same_shape("x", x, "y", y)
    return 10 * torch.log10(4 / (x - y).square().mean())


def sharpness(images: Float[Tensor, "n 3 64 64"], real: scenes.Scenes) -> Tensor:
    """Power of the pictures above half the highest frequency, over that of the same scenes drawn without grain.

    A scalar. Raises ValueError unless the pictures are as many and as large as the scenes.
    """
    check.same_shape("images", images, "real.images", real.images)
    clean = scenes.draw(real.what, real.where, images.shape[-1])
    return _high(images) / _high(clean)


def _high(images):
    power = torch.fft.fft2(images).abs().square()
    rows, columns = (torch.fft.fftfreq(n, device=images.device).abs() for n in images.shape[-2:])
    return power[..., torch.maximum(rows[:, None], columns) > 0.25].mean()


def _batched(function, images):
    return torch.cat([function(part) for part in images.split(250)])
