"""Diffusion on the code of an autoencoder, steered by words: captions in, pictures out.

Everything takes a denoiser that was trained on captions' ``tokens`` and, where it works on latents, the ``vae`` that
made them; without one the denoiser's samples are the pictures.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion import _checks as check
from companion import scenes
from companion.denoisers import Guided
from companion.forward import q_sample
from companion.samplers import dpmpp_2m, sample, start

SIZE = 64  # of the pictures


@torch.no_grad()
def encoded(
    vae, n: int, *, seed: int = 0, split: str = "seen", pairs: float | int = 0.5, chunk: int = 500
) -> tuple[Float[Tensor, "n latent h w"], Int[Tensor, "n length"]]:
    """(latents, tokens) of n scenes: what a text-to-image model is trained on, made without keeping a picture.

    ``latents`` are draws of ``vae.latents``, on the vae's device; a share ``pairs`` of the scenes has two shapes.
    Raises ValueError as ``scenes.scenes`` does.
    """
    check.positive_int("n", n)
    check.positive_int("chunk", chunk)
    check.one_of("split", split, scenes.SPLITS)
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    apart = torch.Generator(device).manual_seed(seed + 1)  # so that every vae gets the same scenes
    latents, words = [], []
    for first in range(0, n, chunk):
        what = scenes.describe(min(chunk, n - first), generator, split=split, pairs=pairs)
        images = scenes.draw(what, scenes.place(what, generator), SIZE, grain=0.02, generator=generator)
        latents.append(vae.latents(images, _like(apart)))
        words.append(scenes.tokens(what))
    return torch.cat(latents), torch.cat(words)


def _like(generator):
    return lambda x: torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


@torch.no_grad()
def text_to_image(
    denoiser,
    tokens: Int[Tensor, "n length"],
    ts: Float[Tensor, "nodes"],
    *,
    vae=None,
    guidance_scale: float | int = 3.0,
    sampler=dpmpp_2m,
    refiner=None,
    refine_below: float | int = 0.3,
    seed: int = 0,
    x: Tensor | None = None,
    **options,
) -> Float[Tensor, "n channels height width"]:
    """Pictures for captions, with classifier-free guidance against no caption; not clamped.

    The walk goes down ``ts`` from noise, drawn by ``seed``, or from ``x``, by ``sampler`` with its ``options``.
    ``refiner``, another denoiser of the same latents and words, takes over at the first node below ``refine_below``
    (Podell et al. 2023, section 2.5). guidance_scale is 1 for none. Raises ValueError as ``Guided`` and the sampler do.
    """
    device = next(denoiser.parameters()).device
    tokens = tokens.to(device)
    schedule = denoiser.schedule
    if x is None:
        shape = (len(tokens), denoiser.net.channels, *_grid(vae))
        x = start(schedule, ts, shape, generator=torch.Generator().manual_seed(seed)).to(device)
    switch = len(ts) - (0 if refiner is None else int((ts < refine_below).sum()))
    parts = [(denoiser, ts[: switch + 1]), (refiner, ts[switch:])]
    parts = [(model, grid) for model, grid in parts if len(grid) > 1]  # a walk needs two nodes
    for model, grid in parts or [(denoiser, ts)]:
        x = sample(_told(model, tokens, guidance_scale), schedule, x, grid, sampler=sampler, **options)
    return x if vae is None else vae.pictures(x)


@torch.no_grad()
def image_to_image(
    denoiser,
    images: Float[Tensor, "n channels height width"],
    tokens: Int[Tensor, "n length"],
    ts: Float[Tensor, "nodes"],
    *,
    vae=None,
    seed: int = 0,
    **options,
) -> Float[Tensor, "n channels height width"]:
    """Pictures for captions that start from given ones, noised up to ts[0] (SDEdit, Meng et al. 2022).

    The earlier the walk starts, the less it keeps. ``options`` go to ``text_to_image``. Raises ValueError where the
    numbers of images and captions differ.
    """
    if len(images) != len(tokens):
        raise ValueError(f"images and tokens must be as many; got {len(images)} and {len(tokens)}")
    device = next(denoiser.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    images = images.to(device)
    x0 = images if vae is None else vae.latents(images, _like(generator))
    t = ts[0].to(device, x0.dtype)
    x = q_sample(x0, t, denoiser.schedule, _like(generator)(x0))
    return text_to_image(denoiser, tokens, ts, vae=vae, x=x, **options)


def _grid(vae):
    side = SIZE if vae is None else SIZE // vae.factor
    return side, side


def _told(denoiser, tokens, guidance_scale):
    if guidance_scale == 1:
        return lambda x, t: denoiser(x, t, tokens)
    return Guided(denoiser, tokens, guidance_scale)
