"""What each part of a U-Net is worth: 8×8 digits, one part left out at a time, otherwise alike."""

import argparse
import functools
import json
import time

import torch
from torch import nn

from companion import bench, data, gpu, zoo
from companion.bench import _digits, architectures
from companion.bench._stored import provenance, write
from companion.nets import UNet, count
from companion.nets.unet import Attention, ResBlock

RATE = 0.004
NET = {"channels": 1, "width": 24, "multipliers": [1, 2], "classes": 10}  # the U-Net M of ``architectures``

MEANING = {
    "nothing": "the whole network",
    "skips": "what is handed across from down to up is replaced by zeros (the parameters that would read it remain)",
    "attention": "the middle has none",
    "time": "every time is embedded as 0.5; the class is still told",
    "FiLM's scale": "time and class shift the features of a block, and do not scale them",
    "normalisation": "no group normalisation anywhere",
    "zero start": "the last convolution of every block, of attention and of the network start as PyTorch draws them",
    "halving": "one level: full resolution throughout, 5 blocks in place of 8",
    "halving, more blocks": "one level of full resolution, 9 blocks, which cost about as much as the whole network",
}


def main(arguments):
    """Train and measure every variant for every seed, print the table, and write ``parts.json``."""
    options = argparse.ArgumentParser(prog="companion.bench parts", description=__doc__)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--out", type=zoo.Path, default=bench.FOLDER)
    given = options.parse_args(arguments)

    began = time.perf_counter()
    rows = [fresh(left_out) for left_out in MEANING]
    for seed in range(given.seeds):
        for row in rows:
            once(row, seed, given.steps)
            print(json.dumps({name: row[name] for name in ("left_out", *list(row)[-3:])}), flush=True)
        result = described(rows, given, time.perf_counter() - began)  # a run cut short leaves whole seeds
        write(result, given.out)
    print(table(result))


# ---- networks with a part left out


class Timeless(UNet):
    """A U-Net that is told the same time whatever the time is."""

    def embed(self, t, cond):
        """The vector of time 0.5, and of the class."""
        return super().embed(torch.full_like(t, 0.5), cond)


class ShiftOnly(nn.Module):
    """FiLM with a shift and no scale, in place of a block's ``film``."""

    def __init__(self, emb, out):
        super().__init__()
        self.shift = nn.Linear(emb, out)

    def forward(self, emb):
        """A scale of zero, by which the block multiplies one more than, and the shift."""
        shift = self.shift(emb)
        return torch.cat([torch.zeros_like(shift), shift], 1)


def _only_below(channels, block, inputs):
    """Zeros for what was handed across: a block's input beyond so many channels."""
    x, emb = inputs
    return torch.cat([x[:, :channels], torch.zeros_like(x[:, channels:])], 1), emb


def build(left_out) -> UNet:
    """The untrained U-Net without the part."""
    if left_out == "time":
        return Timeless(**NET)
    if left_out.startswith("halving"):
        return UNet(**NET | {"multipliers": [1], "blocks": 3 if "more" in left_out else 1})
    net = UNet(**NET)
    blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
    if left_out == "skips":
        now = net.middle[-1].conv2.out_channels
        for block in (layer for layer in net.up if isinstance(layer, ResBlock)):
            block.register_forward_pre_hook(functools.partial(_only_below, now))
            now = block.conv2.out_channels
    elif left_out == "attention":
        net.middle[1] = nn.Identity()
    elif left_out == "FiLM's scale":
        for block in blocks:
            block.film = ShiftOnly(block.film.in_features, block.film.out_features // 2)
    elif left_out == "normalisation":
        for module in list(net.modules()):
            for name in [name for name, child in module.named_children() if isinstance(child, nn.GroupNorm)]:
                setattr(module, name, nn.Identity())
    elif left_out == "zero start":
        looks = [module for module in net.modules() if isinstance(module, Attention)]
        for last in (*(block.conv2 for block in blocks), *(look.out for look in looks), net.out):
            last.reset_parameters()
    return net


def fresh(left_out):
    """A variant's row before it is trained."""
    net = build(left_out)
    one = torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    row = {"left_out": left_out, "parameters": count.parameters(net), "flops": count.flops(net, *one)}
    return row | {"loss": [], "sliced_wasserstein": [], "seconds": []}


def once(row, seed, steps):
    """Train and measure one variant, and add what is found to its row."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    net = build(row["left_out"])
    found = _digits.measured(_digits.trained(net, *data.digits("train"), steps=steps, rate=RATE, seed=seed), seed)
    for name, value in (found | {"seconds": round(time.perf_counter() - began, 1)}).items():
        row[name].append(value)


def described(rows, given, seconds):
    """The rows with all that a reader must know of them."""
    return {
        "name": "parts",
        "question": "What is each part of a U-Net worth?",
        "command": f"python -m companion.bench parts --seeds {len(rows[0]['loss'])} --steps {given.steps}",
        "protocol": {
            **_digits.PROTOCOL,
            "net": {"class": "UNet", "arguments": NET},
            "training": _digits.described(given.steps, RATE),
            "left out": MEANING,
        },
        "quantities": architectures.QUANTITIES,
        "reference": _digits.reference(),
        "rows": rows,
        **provenance(seconds, gpu.device()),
    }


def table(result: dict) -> str:
    """A row per variant: cost, and each quantity's mean over the seeds and range."""
    lines = [f"{'left out':21} {'parameters':>10} {'MFLOP':>7} {'loss':>26} {'sliced Wasserstein':>26}"]
    for row in result["rows"]:
        cells = [architectures.spread(row[name]) for name in ("loss", "sliced_wasserstein")]
        head = f"{row['left_out']:21} {row['parameters']:10,} {row['flops'] / 1e6:7.2f}"
        lines.append(f"{head} {cells[0]:>26} {cells[1]:>26}")
    return "\n".join(lines)
