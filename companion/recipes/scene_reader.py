"""A reader of 64×64 scenes, which holds pictures against their captions (ten minutes on one CPU thread)."""

import time

import torch
import torch.nn.functional as F

from companion import data, gpu, metrics, recipes, scenes, zoo
from companion.nets.reader import KINDS

MODEL = {"net": {"class": "Reader", "arguments": {"width": 24, "features": 64}}}
BATCH = 64


def main(arguments):
    """Train on scenes drawn as it goes, measure, and write ``scene_reader.safetensors`` with its card."""
    options = recipes.options("scene_reader", __doc__, 3000)
    given = options.parse_args(arguments)

    device = gpu.device()
    torch.manual_seed(given.seed)
    net = zoo.build(MODEL).to(device)
    began = time.perf_counter()
    fit(net, given.steps, given.seed, device)
    seconds = time.perf_counter() - began
    zoo.save(
        given.name,
        net,
        {
            "description": "Reader of 64×64 scenes: background, relation, shapes, colours and sizes; its 64 features "
            "measure the distance between pictures.",
            "model": MODEL,
            "recipe": f"python -m companion.train scene_reader --steps {given.steps} --seed {given.seed}",
            "data": "companion.data.scenes, split 'all', drawn while training; a third of them blurred, each with "
            "noise of its own strength",
            **recipes.provenance(given, device),
            "batch": BATCH,
            "seconds": round(seconds),
            "metrics": measure(net.to("cpu").half().float()),  # measured as it is stored
        },
        given.out,
    )


def fit(net, steps, seed, device):
    """Cross-entropy of every field, on scenes drawn as it goes."""
    draw = torch.Generator(device).manual_seed(seed)

    def loss():
        what = scenes.describe(BATCH, draw, split="all")
        return mistakes(net(worn(scenes.draw(what, scenes.place(what, draw)), draw)), what)

    recipes.reading(net, loss, steps, 3e-3)


def mistakes(logits, what):
    """The cross-entropies of the fields, added up; a second shape that is not there asks nothing."""
    what = scenes.canonical(what)
    relation = (what[:, 1] + 1) // 2  # none, beside, above
    asked = torch.cat([what[:, :1], relation[:, None], what[:, 2:]], 1)
    each = zip(logits.split(KINDS, 1), asked.unbind(1), strict=True)
    return sum(F.cross_entropy(part, value, ignore_index=-1, reduction="sum") for part, value in each) / len(what)


def worn(images, draw, share=0.33):
    """Pictures as a model may give them: some blurred by a small Gaussian, all with noise of up to 0.15."""
    at = torch.arange(-2.0, 3.0, device=images.device)
    kernel = torch.exp(-0.5 * at**2)
    kernel = (kernel / kernel.sum())[:, None] * (kernel / kernel.sum())
    soft = F.conv2d(F.pad(images, [2] * 4, mode="replicate"), kernel.expand(3, 1, 5, 5), groups=3)
    one_each = (len(images), 1, 1, 1)
    some = torch.rand(one_each, generator=draw, device=images.device) < share
    strength = 0.15 * torch.rand(one_each, generator=draw, device=images.device) ** 2
    noise = torch.randn(images.shape, generator=draw, device=images.device)
    return torch.where(some, soft, images) + strength * noise


@torch.no_grad()
def measure(net, count=2000):
    """What share of fresh scenes is read right, field by field, and what the features' distance is among real ones."""
    net.eval()
    found, features = {}, {}
    for seed, split in enumerate(("seen", "objects", "relations"), 1000):
        drawn = data.scenes(count, seed=seed, split=split)
        read = torch.cat([net.read(part) for part in drawn.images.split(250)])
        right = scenes.agreement(read, drawn.what)
        found[f"{count:,} fresh scenes, split '{split}'"] = {
            f"{key} read right": round(value.double().mean().item(), 4) for key, value in right.items()
        }
    for seed in (2000, 2001):
        images = data.scenes(count, seed=seed).images
        features[seed] = torch.cat([net.features(part) for part in images.split(250)])
    apart = metrics.frechet_distance(features[2000], features[2001]).item()
    found[f"{count:,} scenes against {count:,} others"] = {"Fréchet distance of features": round(apart, 4)}
    return found
