"""A second model of the latents of scenes for the last steps alone, where t is below 0.3 (ten minutes on a CPU core).

It starts from the weights of ``scenes`` and is trained on those times only.
"""

import torch

from companion import gpu, latent, zoo
from companion.processes import rank
from companion.recipes import scenes
from companion.times import Times

BELOW = 0.3


def late(n, *, generator=None, device=None):
    """Times spread evenly over (0, BELOW), weight 1 each."""
    shift = torch.rand((), generator=generator, device=device)
    t = BELOW * ((torch.arange(n, device=device) / n + shift) % 1)
    return Times(t.clamp_min(1e-5), torch.ones_like(t))


def main(arguments):
    """Train from the shipped model's weights, measure, and write ``scenes_refiner.safetensors`` with its card."""
    options = scenes.parser("scenes_refiner", __doc__, 1500)
    options.set_defaults(lr=3e-4)
    given = options.parse_args(arguments)
    base = zoo.load("scenes", device=gpu.device())
    autoencoder = zoo.card("scenes")["autoencoder"]
    vae = zoo.load(autoencoder, device=gpu.device())
    x0, tokens = latent.encoded(vae, given.images, seed=given.seed, pairs=scenes.PAIRS)
    model, seconds = scenes.fit(scenes.MODEL, given, x0, tokens, start=base, times=late)
    if rank():
        return
    about = {
        "description": f"Refiner of the latents of scenes: made for t below {BELOW} alone, where it takes over from "
        "the model scenes.",
        "autoencoder": autoencoder,
        "data": f"{given.images:,} {scenes.DATA}, as latents of {autoencoder}",
    }
    scenes.write(model, given, options, scenes.MODEL, seconds, about, vae, base=base)
