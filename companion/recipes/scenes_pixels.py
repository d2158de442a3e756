"""Scenes from captions without an autoencoder: the model that ``scenes`` is held against, of as many parameters.

Three quarters of an hour of one CPU core are too little for it (see the card); on a GPU:

    python -m companion.train scenes_pixels --steps 60000 --batch 512 --images 100000 --bf16 --compile
"""

from companion import data
from companion.processes import rank
from companion.recipes import scenes

MODEL = {
    "net": {
        "class": "UNet",
        "arguments": {
            "channels": 3,
            "width": 24,
            "multipliers": [1, 2, 4],
            "patch": 2,
            "attention": [2],
            "text": scenes.TEXT,
            "head": 16,
            "places": True,
        },
    },
    "schedule": {"class": "CosineVP", "arguments": {"s": 0.008}},
    "kind": "v",
}


def main(arguments):
    """Train on pictures, measure, and write ``scenes_pixels.safetensors`` with its card."""
    options = scenes.parser("scenes_pixels", __doc__, 3400)
    options.set_defaults(images=30000, batch=32)
    given = options.parse_args(arguments)
    drawn = data.scenes(given.images, seed=given.seed, pairs=scenes.PAIRS)
    model, seconds = scenes.fit(MODEL, given, drawn.images, scenes.scenes.tokens(drawn.what))
    if rank():
        return
    about = {
        "description": "Denoiser of 64×64 scenes, pixel by pixel, told a caption as 12 tokens (zeros: none).",
        "data": f"{given.images:,} {scenes.DATA}",
    }
    scenes.write(model, given, options, MODEL, seconds, about)
