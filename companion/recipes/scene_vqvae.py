"""The autoencoder of 64×64 scenes whose latents are 64 of 512 vectors (ten minutes on one CPU thread).

It starts from the weights of ``scene_vae``: a recipe for little time.
"""

from companion import autoencoding, zoo
from companion.recipes import scene_vae

MODEL = {
    "net": {
        "class": "VQVAE",
        "arguments": {**scene_vae.MODEL["net"]["arguments"], "codebook": 512},
    },
}


def main(arguments):
    """Train, measure, and write ``scene_vqvae.safetensors`` with its card."""
    options = scene_vae.parser("scene_vqvae", __doc__, 1500)
    given = options.parse_args(arguments)
    net = autoencoding.quantized(zoo.load("scene_vae"), MODEL["net"]["arguments"]["codebook"], seed=given.seed)
    net, seconds = scene_vae.trained(given, net.requires_grad_(True))
    scene_vae.write(
        given,
        MODEL,
        net,
        seconds,
        "Autoencoder of 64×64 scenes whose code is 8×8 of 512 vectors, trained from the weights of scene_vae on the "
        "absolute error and the two terms of vector quantisation.",
    )
