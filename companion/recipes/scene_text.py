"""A text encoder that has learned what captions say before it steers a denoiser (two minutes on one CPU thread).

It answers from the caption alone what ``scene_reader`` asks of a picture: which shape is on the left or above, in which
colour and size. "Left of" and "right of" exchange the places of the two, so no word says where its shape goes, and a
denoiser that has to find this out from pictures learns it later (``python -m companion.bench text``). Large models,
too, are given encoders that were trained before: those of CLIP and T5, say (Esser et al. 2024).
"""

import time

import torch
from torch import nn

from companion import gpu, recipes, scenes, zoo
from companion.nets.reader import KINDS, likeliest
from companion.recipes.scene_reader import mistakes

MODEL = {
    "net": {
        "class": "TextEncoder",
        "arguments": {"words": len(scenes.VOCABULARY), "length": scenes.LENGTH, "width": 64, "depth": 2},
    },
}
BATCH = 256


class Answers(nn.Module):
    """The encoder and one linear layer on the mean over the words: logits as ``nets.Reader`` gives them of pictures."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.decide = encoder, nn.Linear(encoder.width, sum(KINDS))

    def forward(self, tokens):  # (batch, length) -> (batch, logits)
        return self.decide(self.encoder(tokens).mean(1))


def main(arguments):
    """Train on captions drawn as it goes, measure, and write ``scene_text.safetensors`` with its card."""
    options = recipes.options("scene_text", __doc__, 2000)
    given = options.parse_args(arguments)
    device, began = gpu.device(), time.perf_counter()
    torch.manual_seed(given.seed)
    net = Answers(zoo.build(MODEL)).to(device)
    fit(net, given.steps, given.seed, device)
    seconds, net = time.perf_counter() - began, recipes.rounded(net.to("cpu"))
    zoo.save(
        given.name,
        net.encoder,
        {
            "description": "Encoder of captions of scenes, 12 tokens to as many vectors of 64 numbers, from whose mean "
            "a linear layer (not kept) tells the scene.",
            "model": MODEL,
            "recipe": recipes.command(options, given, "steps"),
            "data": "captions of companion.data.scenes, split 'seen', drawn while training; no pictures",
            **recipes.provenance(given, device),
            "batch": BATCH,
            "seconds": round(seconds),
            "metrics": measure(net),
        },
        given.out,
    )


def fit(net, steps, seed, device):
    """Cross-entropy of every field, of captions with two shapes mostly."""
    draw = torch.Generator(device).manual_seed(seed)

    def loss():
        what = scenes.describe(BATCH, draw, pairs=0.8)
        return mistakes(net(scenes.tokens(what)), what)

    recipes.reading(net, loss, steps, 2e-3)


@torch.no_grad()
def measure(net, count=2000):
    """What share of fresh captions is understood, field by field."""
    found = {}
    for seed, split in enumerate(("seen", "objects", "relations"), 1000):
        what = scenes.describe(count, torch.Generator().manual_seed(seed), split=split)
        right = scenes.agreement(likeliest(net(scenes.tokens(what))), what)
        found[f"{count:,} fresh captions, split '{split}'"] = {
            f"{key} told right": round(value.double().mean().item(), 4) for key, value in right.items()
        }
    return found
