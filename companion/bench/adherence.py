"""How often a picture shows what its caption says: the shipped text-to-image model over the guidance scale.

``scenes`` paints captions of three kinds: as seen in training, with a shape in a colour it was never seen in, and with
two shapes in an order never seen; ``scene_reader`` reads the pictures. With more time, on a GPU:

    python -m companion.bench adherence --seeds 3 --samples 5000 --steps 50
"""

import argparse
import json
import time

import torch

from companion import bench, data, gpu, scenes, zoo
from companion.bench._stored import provenance, write
from companion.recipes.scenes import features_of_others, judged, paint

MODEL, READER, REFINER = "scenes", "scene_reader", "scenes_refiner"
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
FIELDS = {"one shape": "one", "two shapes": "two"}
QUANTITIES = {
    "all": f"share of the pictures in which {READER} finds everything that the caption says, and nothing else",
    "one": "the same, of the captions with one shape",
    "two": "the same, of the captions with two",
    "exchanged": "share of the captions with two shapes whose picture is wrong and would be right with them exchanged",
    "background": "share with the right background",
    "number": "share with the right number of shapes",
    "shapes": "share in which every shape is right (and so is their number)",
    "colours": "share in which every colour is right",
    "sizes": "share in which every size is right",
    "relation": "share with two shapes beside or above each other as asked, or one alone; which is on which side "
    "counts under shapes and colours",
    "frechet": f"Fréchet distance of {READER}'s features to those of as many real scenes of the split 'seen'",
}


def main(arguments):
    """Measure, print the table, and write ``adherence.json``."""
    options = argparse.ArgumentParser(prog="companion.bench adherence", description=__doc__)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--samples", type=int, default=400, help="per seed and row")
    options.add_argument("--steps", type=int, default=20, help="of dpmpp_2m, two evaluations of the network each")
    options.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    options.add_argument("--unseen", type=float, nargs="*", default=[1.0, 3.0, 5.0], help="scales of held-out captions")
    options.add_argument("--refined", type=float, nargs="*", default=[3.0], help="scales with the refiner")
    options.add_argument("--each", type=float, default=3.0, help="scale of what is held out, thing by thing")
    options.add_argument("--bf16", action="store_true", help="the network works in bfloat16")
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began, device = time.perf_counter(), gpu.device()
    model, reader = zoo.load(MODEL, device=device), zoo.load(READER, device=device)
    vae = zoo.load(zoo.card(MODEL)["autoencoder"], device=device)
    reference = features_of_others(reader, given.samples)

    def row(split, scale, **walk):
        found = []
        for seed in range(given.seeds):
            what = data.scenes(given.samples, seed=8000 + seed, split=split).what.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=given.bf16):
                drawn = paint(model, what, vae, seed, scale=scale, steps=given.steps, **walk)
            found.append(judged(drawn.float(), what, reader, reference))
        whole = {"captions": split, "scale": scale, "refined": bool(walk)}
        whole |= {FIELDS.get(key, key): [one[key] for one in found] for key in found[0]}
        print(json.dumps(whole), flush=True)
        return whole

    rows = [row("seen", scale) for scale in given.scales]
    rows += [row(split, scale) for split in ("objects", "relations") for scale in given.unseen]
    if given.refined:
        refiner = zoo.load(REFINER, device=device)
        rows += [row("seen", scale, refiner=refiner) for scale in given.refined]
    each = {}
    for split in ("objects", "relations"):
        what = data.scenes(2 * given.samples, seed=8700, split=split).what.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=given.bf16):
            drawn = paint(model, what, vae, 0, scale=given.each, steps=given.steps).float()
        read = torch.cat([reader.read(part) for part in drawn.split(250)])
        each |= one_by_one(scenes.agreement(read, what)["all"], what, split)
    real = data.scenes(given.samples, seed=9000)
    figures = judged(real.images.to(device), real.what.to(device), reader, reference)
    result = {
        "name": "adherence",
        "question": "How often does a picture show what its caption says, and what does guidance do to that?",
        "command": f"python -m companion.bench adherence --seeds {given.seeds} --samples {given.samples} "
        f"--steps {given.steps}" + (" --bf16" if given.bf16 else ""),
        "protocol": {
            "model": f"{MODEL} as shipped; scale 1 is without guidance",
            "captions": f"{given.samples} a seed and row; half with two shapes, of the split 'relations' all; the same "
            "captions and starting noise at every scale",
            "sampler": f"{given.steps} steps of dpmpp_2m, uniform in time; latents decoded and clamped to [-1, 1]",
            "held out": f"objects: {scenes.HELD_OUT_OBJECTS}; "
            f"relations: {[' '.join(each) for each in scenes.HELD_OUT_RELATIONS]}",
            "each": f"{2 * given.samples} captions with a held-out shape, and as many with a held-out arrangement, by "
            "what was held out: how many, and the share in which everything is right",
            "refined": f"{REFINER} takes over where t is below 0.3",
            "network": "bfloat16" if given.bf16 else "float32",
        },
        "quantities": QUANTITIES,
        "rows": rows,
        "each": {"scale": given.each, "right": each},
        "real": {FIELDS.get(key, key): value for key, value in figures.items()},
        **provenance(time.perf_counter() - began, device),
    }
    write(result, given.out)
    print(table(result))


def one_by_one(right, what, split):
    """For each thing that is held out in a split: how many captions have it, and the share that came right."""
    what, kinds = scenes.canonical(what), {}
    if split == "objects":
        for shape, colour in scenes.HELD_OUT_OBJECTS.items():
            named = torch.tensor([scenes.SHAPES.index(shape), list(scenes.COLOURS).index(colour)], device=what.device)
            kinds[f"{colour} {shape}"] = (what[:, 2:4] == named).all(1) | (what[:, 5:7] == named).all(1)
    else:
        for one, relation, other in scenes.HELD_OUT_RELATIONS:
            named = [1 + scenes.RELATIONS.index(relation), scenes.SHAPES.index(one), scenes.SHAPES.index(other)]
            kinds[f"{one} {relation} {other}"] = (what[:, [1, 2, 5]] == torch.tensor(named, device=what.device)).all(1)
    return {
        name: {"captions": (n := int(mask.sum())), "all": round(int(right[mask].sum()) / n, 4) if n else None}
        for name, mask in kinds.items()
    }


def table(result: dict) -> str:
    """A row per kind of caption and scale: the means over seeds."""
    keys = list(QUANTITIES)
    lines = [f"{'captions':10} {'scale':>5} " + " ".join(f"{key[:10]:>10}" for key in keys)]
    for row in (*result["rows"], {"captions": "real", **result["real"]}):
        means = []
        for key in keys:
            values = row[key] if isinstance(row[key], list) else [row[key]]
            means.append(" " * 10 if None in values else f"{sum(values) / len(values):10.4g}")
        scale = f"{row['scale']:5g}" if "scale" in row else " " * 5
        lines.append(f"{row['captions']:10} {scale} " + " ".join(means) + ("  refined" if row.get("refined") else ""))
    return "\n".join(line.rstrip() for line in lines)
