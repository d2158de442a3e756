"""How a transformer should hear the words: an encoder trained before or along, cross- or joint attention, on latents.

All are ``DiT`` on the 8×8 places of a latent, of equal cost. With more time, on a GPU:

    python -m companion.bench text --steps 60000 --batch 256 --images 200000 --seeds 3 --samples 2000 --bf16 --compile
"""

import argparse
import json
import time

import torch

from companion import bench, data, gpu, latent, nets, zoo
from companion.bench._stored import provenance, write
from companion.denoisers import Denoiser
from companion.losses import simple_loss
from companion.nets.count import flops, parameters
from companion.recipes.scenes import PAIRS, TEXT, TIMES, features_of_others, judged, paint
from companion.training import EMA, train

READER = "scene_reader"
SIZES = {"cross": {"width": 96, "depth": 5}, "joint": {"width": 96, "depth": 5, "joint": True}}
CASES = (("cross", "new"), ("cross", "trained"), ("joint", "trained"))  # attention; encoder, trained: scene_text
QUANTITIES = {
    "parameters": "of the network, its text encoder included",
    "flops": "of one evaluation for one latent",
    "loss": "mean squared error of v on latents of fresh scenes, with their captions",
    "loss_without": "the same without captions",
    "adherence": f"share of the pictures in which {READER} finds everything that the caption says",
    "colours": "share in which every colour is right",
    "exchanged": "share of the captions with two shapes whose picture is wrong and would be right with them exchanged",
    "relation": "share with two shapes beside or above each other as asked, or one alone; which is on which side "
    "counts under shapes and colours",
    "seconds": "of training",
}


def main(arguments):
    """Measure, print the table, and write ``text.json``."""
    options = argparse.ArgumentParser(prog="companion.bench text", description=__doc__)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--images", type=int, default=20000)
    options.add_argument("--samples", type=int, default=300)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--bf16", action="store_true", help="the networks work in bfloat16")
    options.add_argument("--compile", action="store_true", help="compile the networks: minutes, and a C++ compiler")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began, device = time.perf_counter(), gpu.device()
    autoencoder = zoo.card("scenes")["autoencoder"]
    vae, reader = zoo.load(autoencoder, device=device), zoo.load(READER, device=device)
    known = latent.encoded(vae, given.images, seed=11, pairs=PAIRS)
    fresh = latent.encoded(vae, 1000, seed=12, pairs=PAIRS)
    reference = features_of_others(reader, given.samples)
    what = data.scenes(given.samples, seed=8600).what.to(device)
    rows = []
    for attention, encoder in CASES:
        case = SIZES[attention], encoder == "trained"
        found = [once(*case, known, fresh, vae, reader, reference, what, seed, given) for seed in range(given.seeds)]
        figures = {key: [one[key] for one in found] for key in QUANTITIES}
        rows.append({"attention": attention, "encoder": encoder, **figures})
        print(json.dumps(rows[-1]), flush=True)
    flags = "".join(f" --{key}" for key in ("bf16", "compile") if getattr(given, key))
    result = {
        "name": "text",
        "question": "Which hears the words better at equal cost: an encoder trained before or along with the rest, "
        "cross-attention or joint attention?",
        "command": f"python -m companion.bench text --seeds {given.seeds} --steps {given.steps} --batch {given.batch} "
        f"--images {given.images} --samples {given.samples}{flags}",
        "protocol": {
            "networks": f"DiT on 8×8 latents of {autoencoder}, patch 1: {SIZES}; text encoder {TEXT}, new "
            "or as scene_text is; in either case it is trained with the rest",
            "training": f"{given.images:,} latents, {given.steps:,} steps, batch {given.batch}, AdamW, rate "
            f"{given.lr:g} warmed up over 100 steps and brought to 0 along a cosine; times and share of pairs as for "
            "the model scenes; a tenth of the captions left out; average of the weights with decay 0.995",
            "loss": "1,000 fresh latents, 4 times and noises each, the same for both",
            "samples": f"{given.samples} captions of the split 'seen', 20 steps of dpmpp_2m, guidance scale 3",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        **provenance(time.perf_counter() - began, device),
    }
    write(result, given.out)
    print(table(result))


def once(size, trained, known, fresh, vae, reader, reference, what, seed, given):
    """The figures of one network and seed."""
    torch.manual_seed(seed)
    net = nets.DiT(channels=vae.latent, size=latent.SIZE // vae.factor, patch=1, heads=3, text=TEXT, **size)
    if trained:
        net.text.load_state_dict(zoo.load("scene_text").state_dict())
    model = Denoiser(net, zoo.load("scenes").schedule, "v").to(gpu.device())
    ema, began = EMA(model, decay=0.995), time.perf_counter()
    if given.compile:
        model.net.compile(dynamic=False)
    x0, tokens = known
    loop = train(
        model,
        x0,
        cond=tokens,
        steps=given.steps,
        batch=given.batch,
        lr=given.lr,
        ema=ema,
        seed=seed,
        times=TIMES,
        autocast=torch.bfloat16 if given.bf16 else None,
        progress=False,
    )
    for _ in loop:
        pass
    seconds, model = time.perf_counter() - began, ema.model
    figures = judged(paint(model, what, vae, seed), what, reader, reference)
    return {
        "parameters": parameters(net),
        "flops": flops(net, x0[:1], torch.zeros(1, device=x0.device), tokens[:1]),
        "loss": held_out(model, *fresh),
        "loss_without": held_out(model, fresh[0], torch.zeros_like(fresh[1])),
        "adherence": figures["all"],
        "colours": figures["colours"],
        "exchanged": figures["exchanged"],
        "relation": figures["relation"],
        "seconds": round(seconds),
    }


@torch.no_grad()
def held_out(model, x0, tokens, draws=4) -> float:
    """The loss on latents that the model was not trained on, at the same times and noises at every call."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(draws):
        t = (torch.randperm(len(x0), generator=generator) + 0.5) / len(x0)
        noise = torch.randn(x0.shape, generator=generator)
        for part in zip(*(v.to(x0.device).split(250) for v in (x0, t, noise, tokens)), strict=True):
            total += simple_loss(model, *part, per_sample=True).sum().item()
    return round(total / (draws * len(x0)), 5)


def table(result: dict) -> str:
    """A row per case: the means over seeds."""
    lines = [f"{'':16} " + " ".join(f"{key[:12]:>12}" for key in QUANTITIES)]
    for row in result["rows"]:
        means = (sum(row[key]) / len(row[key]) for key in QUANTITIES)
        lines.append(f"{row['attention']:8}{row['encoder']:8} " + " ".join(f"{value:12.5g}" for value in means))
    return "\n".join(lines)
