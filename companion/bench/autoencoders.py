"""What each term of an autoencoder's loss does, and Gaussian latents against a codebook, on 64×64 scenes.

Every row starts from the shipped ``scene_vae``, or from its body with a codebook, and is trained on with one loss. With
more time, on a GPU:

    python -m companion.bench autoencoders --steps 20000 --batch 128 --seeds 3
"""

import argparse
import json
import time

import torch

from companion import autoencoding, bench, data, gpu, metrics, scenes, zoo
from companion.bench._stored import provenance, write
from companion.nets import Discriminator

READER, START = "scene_reader", "scene_vae"
PERCEPTUAL, ADVERSARIAL = 0.2, 0.02

ROWS = {
    "L1": {},
    "L2": {"power": 2},
    "L1 + KL 4e-6": {"kl": 4e-6},
    "L1 + KL 1e-4": {"kl": 1e-4},
    "L1 + KL 1e-3": {"kl": 1e-3},
    "L1 + KL 4e-6 + perceptual": {"kl": 4e-6, "perceptual": PERCEPTUAL},
    "L1 + KL 4e-6 + adversarial": {"kl": 4e-6, "adversarial": ADVERSARIAL},
    "L1 + KL 4e-6 + both": {"kl": 4e-6, "perceptual": PERCEPTUAL, "adversarial": ADVERSARIAL},
    "VQ 64": {"codebook": 64},
    "VQ 512": {"codebook": 512},
    "VQ 512, no restarts": {"codebook": 512, "restart_every": None},
    "VQ 512, no commitment": {"codebook": 512, "commitment": 0.0},
}
QUANTITIES = {
    "psnr": "peak signal-to-noise ratio of reconstructions, in dB; the grain alone allows the ceiling's",
    "agreement": f"share of reconstructions in which {READER} finds everything as drawn",
    "frechet": f"Fréchet distance of {READER}'s features of reconstructions to those of other scenes",
    "sharpness": "power above half the highest frequency, over that of the same scenes without grain",
    "rate": "KL divergence in nats a picture, or bits a picture at the codebook's perplexity",
    "perplexity": "of the codebook's entries over the test scenes; null without one",
}


def main(arguments):
    """Measure, print the table, and write ``autoencoders.json``."""
    options = argparse.ArgumentParser(prog="companion.bench autoencoders", description=__doc__)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--samples", type=int, default=500)
    options.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options.add_argument("--bf16", action="store_true", help="the networks work in bfloat16")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began = time.perf_counter()
    reader = zoo.load(READER, device=gpu.device())
    test = data.scenes(given.samples, seed=7000)
    others = _features(reader, data.scenes(given.samples, seed=7001).images)
    rows = []
    for name in given.rows:
        found = [once(ROWS[name], reader, test, others, seed, given) for seed in range(given.seeds)]
        family = "VQ" if "codebook" in ROWS[name] else "KL"
        rows.append({"name": name, "family": family} | {key: [one[key] for one in found] for key in QUANTITIES})
        print(json.dumps(rows[-1]), flush=True)
    ceiling = {
        **quality(test.images, test, reader, others),
        "psnr": round(autoencoding.psnr(scenes.draw(test.what, test.where), test.images).item(), 3),
    }
    result = described(rows, ceiling, given, time.perf_counter() - began)
    write(result, given.out)
    print(table(result))


def once(options, reader, test, others, seed, given):
    """The figures of one loss and seed."""
    device, options = gpu.device(), dict(options)
    torch.manual_seed(seed)
    net, codebook = zoo.load(START, device=device), options.pop("codebook", None)
    if codebook:
        net = autoencoding.quantized(net, codebook, seed=seed)
    net.requires_grad_(True)
    critic = Discriminator().to(device) if options.get("adversarial") else None
    loop = autoencoding.fit(
        net,
        autoencoding.drawn(given.batch, seed=100 + seed, device=device),
        steps=given.steps,
        lr=5e-4,
        warmup=20,
        reader=reader,
        critic=critic,
        adversarial_from=0.2,
        restart_every=options.pop("restart_every", 25),
        seed=seed,
        bf16=given.bf16,
        **options,
    )
    for _ in loop:
        pass
    again, code = autoencoding.reconstructed(net, test.images.to(device))
    figures = quality(again, test, reader, others)
    (rate,) = code.values()
    if codebook:
        bits = 64 * torch.log2(torch.tensor(rate)).item()
        return {**figures, "rate": round(bits, 1), "perplexity": round(rate, 1)}
    return {**figures, "rate": round(rate, 1), "perplexity": None}


@torch.no_grad()
def quality(images, test, reader, others):
    """Figures of pictures that should be the test scenes."""
    read = torch.cat([reader.read(part) for part in images.split(250)])
    distance = metrics.frechet_distance(_features(reader, images), others).item()
    return {
        "psnr": round(autoencoding.psnr(images, test.images.to(images.device)).item(), 3),
        "agreement": round(scenes.agreement(read, test.what.to(read.device))["all"].double().mean().item(), 4),
        "frechet": round(distance, 3),
        "sharpness": round(autoencoding.sharpness(images.cpu(), test).item(), 4),
    }


@torch.no_grad()
def _features(reader, images):
    device = next(reader.parameters()).device
    return torch.cat([reader.features(part.to(device)) for part in images.split(250)])


def described(rows, ceiling, given, seconds):
    """The rows with all that a reader must know of them."""
    flags = " --bf16" if given.bf16 else ""
    return {
        "name": "autoencoders",
        "question": "What does each term of an autoencoder's loss do, and what does a codebook cost?",
        "command": f"python -m companion.bench autoencoders --seeds {given.seeds} --steps {given.steps} "
        f"--batch {given.batch} --samples {given.samples}{flags}",
        "protocol": {
            "start": f"{START} as shipped; rows with a codebook take its body, its means as z, and latents as entries",
            "training": f"{given.steps} steps, batch {given.batch}, AdamW, rate 5e-4, warmed up over 20 steps and "
            "brought to 0 along a cosine; entries out of use restarted every 25 steps of the first three quarters",
            "weights": f"perceptual {PERCEPTUAL}, adversarial {ADVERSARIAL} from a fifth of the steps on, commitment "
            "0.25; KL in nats a picture, beside the mean over values of the absolute (L1) or squared (L2) error",
            "test": f"{given.samples} fresh scenes, codes without draws",
            "caution": f"the perceptual rows were trained on {READER}'s activations, and {READER} judges them",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        "ceiling": ceiling,
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per loss: the means over seeds."""
    lines = [f"{'':28} " + " ".join(f"{key:>10}" for key in QUANTITIES)]
    for row in (*result["rows"], {"name": "the scenes themselves", **result["ceiling"]}):
        values = [row.get(key) for key in QUANTITIES]
        means = [
            value if not isinstance(value, list) else None if None in value else sum(value) / len(value)
            for value in values
        ]
        lines.append(f"{row['name']:28} " + " ".join(" " * 10 if m is None else f"{m:10.4g}" for m in means))
    return "\n".join(line.rstrip() for line in lines)
