"""Scenes from captions, by diffusion on the latents of ``scene_vae`` (an hour and a quarter on one CPU core).

The text encoder starts as ``scene_text``, which already knows which shape goes where. On a GPU there is time for more:

    python -m companion.train scenes --steps 60000 --batch 512 --images 500000 --bf16 --compile

``scenes_refiner`` trains a model of the last steps from the weights of this one.
"""

import torch

from companion import data, gpu, latent, metrics, recipes, scenes, zoo
from companion.processes import rank
from companion.recipes import scene_text
from companion.schedules import linspace
from companion.times import logit_normal
from companion.training import save_grid

TEXT = scene_text.MODEL["net"]["arguments"]
MODEL = {
    "net": {
        "class": "UNet",
        "arguments": {
            "channels": 4,
            "width": 48,
            "multipliers": [1, 2],
            "attention": [0],
            "text": TEXT,
            "head": 16,
            "places": True,
        },
    },
    "schedule": {"class": "CosineVP", "arguments": {"s": 0.008}},
    "kind": "v",
}
PAIRS = 0.7  # share of the scenes with two shapes, which are harder to learn
DATA = f"scenes of companion.data.scenes, split 'seen', {PAIRS:.0%} of them with two shapes"
TIMES = logit_normal(0.6, 1.2)  # more of them near the noise, where a picture's layout is decided
WALK, SCALE = 20, 3.0  # evaluations of DPM-Solver++(2M) and guidance scale of the figures on the card


def main(arguments):
    """Train on latents, measure, and write ``scenes.safetensors`` with its card."""
    options = parser("scenes", __doc__, 13000)
    options.set_defaults(images=80000, lr=1.5e-3)
    options.add_argument("--autoencoder", default="scene_vae")
    given = options.parse_args(arguments)
    vae = zoo.load(given.autoencoder, device=gpu.device())
    x0, tokens = latent.encoded(vae, given.images, seed=given.seed, pairs=PAIRS)
    model, seconds = fit(MODEL, given, x0, tokens)
    if rank():
        return
    about = {
        "description": "Denoiser of the 8×8×4 latents of 64×64 scenes, told a caption as 12 tokens (zeros: none).",
        "autoencoder": given.autoencoder,
        "data": f"{given.images:,} {DATA}, as latents of {given.autoencoder}",
    }
    write(model, given, options, MODEL, seconds, about, vae)


def parser(name, text, steps):
    """The options of a recipe that trains a model of captioned scenes."""
    options = recipes.denoising(name, text, steps)
    options.add_argument("--images", type=int, default=60000, help="how many scenes to train on")
    options.add_argument("--samples", type=int, default=1000, help="how many to measure, of each split")
    return options


def fit(description, given, x0, tokens, *, start=None, times=TIMES):
    """The averaged model after training, its weights rounded as they will be stored, and the seconds it took.

    It starts from the weights of the denoiser ``start``, or else with the encoder of words that ``scene_text`` is.
    """
    torch.manual_seed(given.seed)
    model = zoo.build(description).to(gpu.device())
    if start is not None:
        model.load_state_dict(start.state_dict())
    else:
        model.net.text.load_state_dict(zoo.load("scene_text").state_dict())
    return recipes.averaged(model, given, x0, cond=tokens, times=times)


def write(model, given, options, description, seconds, about, vae=None, base=None):
    """Weights, a picture of samples and the card; ``base`` is the model that this one refines."""
    device, walk = gpu.device(), {} if base is None else {"refiner": model}
    shown, first = data.scenes(40, seed=given.seed + 7).what.to(device), model if base is None else base
    drawn = paint(first, shown, vae, given.seed, **walk)
    save_grid(drawn, given.out / f"{given.name}.webp", columns=10)
    card = {
        **recipes.provenance(given, device),
        "model": description,
        "recipe": recipes.command(options, given, "steps", "batch", "images", "lr"),
        "batch": given.batch,
        **about,
        "begun": "from scene_text, the text encoder" if base is None else "from scenes, all of it",
        "seconds": round(seconds),
        "grid": f"Forty scenes for captions of the kind that the model has seen; {WALK} evaluations by "
        f"DPM-Solver++(2M), guidance scale {SCALE:g}.",
        "metrics": measure(first, vae, given.samples, given.seed + 1, **walk),
    }
    card |= {"remark": given.remark} if given.remark else {}
    zoo.save(given.name, model.net, card, given.out)


def paint(model, what, vae, seed, *, scale=SCALE, steps=WALK, **options):
    """Pictures of described scenes, in [-1, 1], in batches."""
    ts, drawn = linspace(model.schedule, steps), []
    for number, part in enumerate(scenes.tokens(what).split(250)):
        drawn.append(
            latent.text_to_image(
                model, part, ts, vae=vae, guidance_scale=scale, seed=1000 * seed + number, **options
            ).clamp(-1, 1)
        )
    return torch.cat(drawn)


@torch.no_grad()
def judged(images, what, reader, reference):
    """Figures of pictures for described scenes: the shares that the reader finds right, and the Fréchet distance."""
    read = torch.cat([reader.read(part) for part in images.split(250)])
    agreed = {key: value.double() for key, value in scenes.agreement(read, what).items()}
    two, whole = what[:, 1] > 0, agreed["all"]
    right = {key: value.mean().item() for key, value in agreed.items()}
    parts = {"one shape": whole[~two].mean().item() if (~two).any() else None}
    parts["two shapes"] = whole[two].mean().item() if two.any() else None
    turned = scenes.agreement(read, scenes.exchanged(what))["all"].double() * (1 - whole)
    parts["exchanged"] = turned[two].mean().item() if two.any() else None
    features = torch.cat([reader.features(part) for part in images.split(250)])
    distance = metrics.frechet_distance(features, reference).item()
    found = {**right, **parts, "frechet": distance}
    return {key: None if value is None else round(value, 4) for key, value in found.items()}


@torch.no_grad()
def features_of_others(reader, count, seed=4000):
    """The reader's features of real scenes of the split "seen", against which distances are measured."""
    images = data.scenes(count, seed=seed).images.to(next(reader.parameters()).device)
    return torch.cat([reader.features(part) for part in images.split(250)])


def measure(model, vae, count, seed, **walk):
    """Captions of each split, drawn and read."""
    device = gpu.device()
    reader = zoo.load("scene_reader", device=device)
    reference, found = features_of_others(reader, count), {}
    for split in ("seen", "objects", "relations"):
        what = data.scenes(count, seed=5000 + seed, split=split).what.to(device)
        figures = judged(paint(model, what, vae, seed, **walk), what, reader, reference)
        found[f"{count:,} captions, split '{split}'"] = {
            NAMES.get(key, f"{key} right"): value for key, value in figures.items() if value is not None
        }
    real = data.scenes(count, seed=6000 + seed)
    figures = judged(real.images.to(device), real.what.to(device), reader, reference)
    found[f"{count:,} real scenes"] = {NAMES.get(key, f"{key} right"): value for key, value in figures.items()}
    return found


NAMES = {
    "relation": "beside or above right",
    "all": "everything right",
    "one shape": "everything right, captions with one shape",
    "two shapes": "everything right, captions with two shapes",
    "exchanged": "right but for the two shapes exchanged, captions with two shapes",
    "frechet": "Fréchet distance of reader features to scenes 'seen'",
}
