"""Diffusion on latents against diffusion on pixels at equal parameters: speed and quality in one run.

``scenes`` works on 8×8×4 latents, ``scenes_pixels`` on 64×64×3 pixels gathered in squares of four; a third network, not
trained, sees every pixel by itself. With more time, on a GPU:

    python -m companion.bench latent --samples 5000 --batch 256 --repeats 20
"""

import argparse
import statistics
import time

import torch

from companion import bench, data, gpu, latent, nets, scenes, zoo
from companion.bench._stored import provenance, write
from companion.bench.timing import seconds
from companion.denoisers import Denoiser
from companion.losses import simple_loss
from companion.nets.count import flops, parameters
from companion.recipes.scenes import features_of_others, judged, paint
from companion.schedules import linspace

READER = "scene_reader"
EVERY_PIXEL = {"width": 16, "multipliers": (1, 2, 4, 6), "patch": 1, "attention": (3,)}
QUANTITIES = {
    "parameters": "of the denoiser; the autoencoder's are counted apart",
    "flops": "of one evaluation for one picture, multiplications and additions",
    "numbers": "a picture is to the denoiser",
    "train_images_per_second": "forward, backward and step of the denoiser, median over repeats",
    "sample_seconds_per_image": "a whole walk with guidance, and decoding where there is some; median over repeats",
    "trained_images": "pictures that the shipped weights saw in training, repetitions counted",
    "trained_seconds": "of that training, on the card",
    "adherence": f"share of the pictures in which {READER} finds everything that the caption says",
    "frechet": f"Fréchet distance of {READER}'s features to those of as many real scenes",
}


def main(arguments):
    """Measure, print the table, and write ``latent.json``."""
    options = argparse.ArgumentParser(prog="companion.bench latent", description=__doc__)
    options.add_argument("--samples", type=int, default=300)
    options.add_argument("--batch", type=int, default=16, help="pictures at a time when speed is measured")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--steps", type=int, default=20, help="of dpmpp_2m, two evaluations of the network each")
    options.add_argument("--scale", type=float, default=3.0)
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began, device = time.perf_counter(), gpu.device()
    reader = zoo.load(READER, device=device)
    reference = features_of_others(reader, given.samples)
    vae = zoo.load(zoo.card("scenes")["autoencoder"], device=device)
    text = zoo.card("scenes")["model"]["net"]["arguments"]["text"]
    whole = Denoiser(nets.UNet(3, text=text, **EVERY_PIXEL), zoo.load("scenes").schedule, "v").to(device)
    models = {
        "latent": ("scenes", zoo.load("scenes", device=device), vae),
        "pixels": ("scenes_pixels", zoo.load("scenes_pixels", device=device), None),
        "pixels, every one": (None, whole.eval(), None),
    }
    what = data.scenes(given.samples, seed=8500).what.to(device)
    rows = []
    for name, (stored, model, code) in models.items():
        row = {"model": name, **speeds(model, code, given)}
        if stored:
            card = zoo.card(stored)
            found = judged(paint(model, what, code, 0, scale=given.scale, steps=given.steps), what, reader, reference)
            row |= {"trained_images": card["steps"] * card["batch"], "trained_seconds": card["seconds"]}
            row |= {"adherence": found["all"], "frechet": found["frechet"]}
        print(row, flush=True)
        rows.append(row)
    again = vae.decode(vae.encode(reals := data.scenes(given.samples, seed=9000).images.to(device)).mean)
    about = data.scenes(given.samples, seed=9000).what.to(device)
    x = reals[: given.batch]
    result = {
        "name": "latent",
        "question": "Is diffusion on latents about ten times faster, and as good, at equal parameters?",
        "command": f"python -m companion.bench latent --samples {given.samples} --batch {given.batch} "
        f"--repeats {given.repeats} --steps {given.steps} --scale {given.scale:g}",
        "protocol": {
            "models": "as shipped; the third is not trained, and stands for speed alone",
            "speed": f"batches of {given.batch}, float32, one warm-up, the median of {given.repeats}",
            "samples": f"{given.samples} captions of the split 'seen', {given.steps} steps of dpmpp_2m, guidance scale "
            f"{given.scale:g}",
            "caution": "the two were not trained for equally long; trained_seconds says how long each was",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        "autoencoder": {
            "parameters": parameters(vae),
            "encode_seconds_per_image": round(_median(lambda: vae.encode(x), given) / given.batch, 6),
            "decode_seconds_per_image": round(_median(lambda: vae.decode(vae.encode(x).mean), given) / given.batch, 6),
        },
        "reconstructions": judged(again.clamp(-1, 1), about, reader, reference),
        "real": judged(reals, about, reader, reference),
        **provenance(time.perf_counter() - began, device),
    }
    write(result, given.out)
    print(table(result))


def speeds(model, vae, given):
    """Size, cost and speed of a denoiser, in training and in sampling."""
    device = gpu.device()
    side = latent.SIZE if vae is None else latent.SIZE // vae.factor
    x0 = torch.randn(given.batch, model.net.channels, side, side, device=device)
    tokens = scenes.tokens(data.scenes(given.batch, seed=1).what).to(device)
    t, ts = torch.rand(given.batch, device=device), linspace(model.schedule, given.steps)
    cost = flops(model.net, x0[:1], t[:1], tokens[:1])
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters())

    def step():
        optimizer.zero_grad(set_to_none=True)
        simple_loss(model, x0, t, cond=tokens).backward()
        optimizer.step()

    kept = {key: value.clone() for key, value in model.state_dict().items()}
    training = _median(step, given)
    model.load_state_dict(kept)
    model.requires_grad_(False)

    def walk():
        latent.text_to_image(model, tokens, ts, vae=vae, guidance_scale=given.scale)

    return {
        "parameters": parameters(model.net),
        "flops": cost,
        "numbers": x0[0].numel(),
        "train_images_per_second": round(given.batch / training, 2),
        "sample_seconds_per_image": round(_median(walk, given) / given.batch, 6),
    }


def _median(call, given):
    """Seconds of a call: the median of some, after one that warms up."""
    call()
    return statistics.median(seconds(call, gpu.device()) for _ in range(given.repeats))


def table(result: dict) -> str:
    """A row per model."""
    lines = [f"{'':18} " + " ".join(f"{key[:14]:>14}" for key in QUANTITIES)]
    for row in result["rows"]:
        values = [" " * 14 if row.get(key) is None else f"{row[key]:14.5g}" for key in QUANTITIES]
        lines.append(f"{row['model']:18} " + " ".join(values).rstrip())
    return "\n".join(lines)
